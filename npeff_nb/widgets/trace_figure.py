"""A trace as a picture: tokens across, layers upward, an edge's width by its share, red towards the class and blue against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

if TYPE_CHECKING:
    from npeff_nb.directions.trace import Trace

TOWARDS, AGAINST, QUIET = "214,69,61", "47,119,208", "122,132,144"
"""Red, blue and grey as r,g,b that can be read on white and on near-black."""
STRENGTHS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6)
"""Edges are drawn in classes of width that begin at these shares of the strongest edge; the slider's steps."""
SHOWN = 0.02
WIDEST = 11.0
OPACITY = {"introduced": 1.0, "passed on": 0.6, "residual": 0.35}
"""What enters stands out from what flows by."""
_CURVE = np.linspace(0, 1, 13)
_ABOVE = 1.4
"""How far the logits stand above the last block."""


def figure(trace: Trace, title: str | None = None) -> go.Figure:
    """The trace as a figure to look at and to ask: hover for numbers, a menu for the class, a slider for the least share, a legend that hides kinds.

    Rows from below: embeddings, then attention and MLP of every layer, then the logits.  Heads are taken together, norms with what they belong to.
    Bars on the right: what each row introduces in sum.
    """
    edges = _edges(trace)
    bars = edges[edges["kind"] == "introduced"].groupby("y1")[trace.classes].sum()
    pictures = [_picture(trace, edges, bars, at) for at in range(len(trace.classes))]
    start = int(np.argmax(trace.logits))
    # Room for reading, less of it where there is much to show.
    across, upward = (int(np.clip(room / n, least, most)) for room, n, least, most in (
        (1400, len(trace.tokens), 26, 58), (1100, 2 * trace.n_layers + 2, 24, 42)))  # fmt: skip
    drawn = go.Figure([go.Scatter(style | data) if "marker" not in style or style.get("mode") else go.Bar(style | data)
                       for style, data in zip(_styles(), pictures[start], strict=True)])  # fmt: skip
    share = [s for s, _, _ in _groups()]
    heading = [_heading(trace, at, title) for at in range(len(trace.classes))]
    keys = ("x", "y", "text")
    drawn.update_layout(
        title={"text": heading[start], "x": 0.01, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 22},
               "font": {"size": 15}},
        font={"color": f"rgb({QUIET})", "size": 12}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        hoverlabel={"bgcolor": "#2b3138", "bordercolor": "#2b3138", "font": {"color": "#ffffff"}},
        width=max(560, 330 + across * len(trace.tokens)), height=250 + upward * (2 * trace.n_layers + 2),
        margin={"l": 100, "r": 20, "t": 120, "b": 120}, bargap=0.45, barmode="relative",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "trace"},
        xaxis={"domain": [0, 0.82], "tickvals": list(range(len(trace.tokens))), "ticktext": [_shown(token) for token in trace.tokens],
               "tickangle": -40, "showgrid": False, "zeroline": False, "range": [-0.7, len(trace.tokens) - 0.3]},
        xaxis2={"domain": [0.86, 1], "title": {"text": "introduced", "font": {"size": 11}}, "zeroline": True, "showgrid": False, "nticks": 3,
                "zerolinecolor": f"rgba({QUIET},0.5)"},
        yaxis={"tickvals": _heights(trace), "ticktext": _names(trace), "showgrid": False, "zeroline": False,
               "range": [-1.1, 2 * trace.n_layers + _ABOVE + 0.5]},
        updatemenus=[{
            "buttons": [{"label": _shown(name), "method": "update",
                         "args": [{key: [data.get(key) for data in picture] for key in keys}, {"title.text": heading[at]}]}
                        for at, (name, picture) in enumerate(zip(trace.classes, pictures, strict=True))],
            "active": start, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "bgcolor": "#eef1f5",
            "bordercolor": f"rgba({QUIET},0.4)", "font": {"color": "#39414b"},
        }],
        sliders=[{
            "steps": [{"label": f"{100 * least:g} %", "method": "restyle",
                       "args": [{"opacity": [float(s is None or s >= least) for s in share], "hoverinfo": [_hover(s, least) for s in share]}]}
                      for least in STRENGTHS],
            "active": STRENGTHS.index(SHOWN), "currentvalue": {"prefix": "edges of at least ", "suffix": " of the strongest"}, "len": 0.82, "x": 0,
            "pad": {"t": 60}, "tickcolor": f"rgba({QUIET},0.6)", "bgcolor": f"rgba({QUIET},0.25)", "bordercolor": f"rgba({QUIET},0.4)",
        }],
    )  # fmt: skip
    return drawn


def _groups() -> list[tuple[float | None, str, str]]:
    """(least share, kind, colour) of every trace of lines, then what is no edge: kinds for the legend, positions, bars."""
    lines: list[tuple[float | None, str, str]] = [(s, kind, colour) for kind in reversed(OPACITY) for s in STRENGTHS for colour in (AGAINST, TOWARDS)]
    return lines + [(None, kind, QUIET) for kind in OPACITY] + [(None, "positions", QUIET), (None, "bars", TOWARDS), (None, "bars", AGAINST)]


def _hover(share: float | None, least: float) -> str:
    return "text" if share is None or share >= least else "skip"


def _styles() -> list[dict[str, Any]]:
    """What does not depend on the class."""
    found: list[dict[str, Any]] = []
    for share, kind, colour in _groups():
        if kind == "bars":
            found.append(
                {
                    "orientation": "h",
                    "xaxis": "x2",
                    "marker": {"color": f"rgb({colour})", "line": {"width": 0}},
                    "hoverinfo": "text",
                    "showlegend": False,
                    "textposition": "none",
                }
            )
        elif kind == "positions":
            found.append({"mode": "markers", "marker": {"size": 5, "color": f"rgba({QUIET},0.7)"}, "hoverinfo": "text", "showlegend": False})
        elif share is None:
            found.append(
                {"mode": "lines", "name": kind, "legendgroup": kind, "line": {"color": f"rgba({colour},{max(0.3, OPACITY[kind])})", "width": 5}}
            )
        else:
            top = STRENGTHS[STRENGTHS.index(share) + 1] if share < STRENGTHS[-1] else 1.0
            found.append({
                "mode": "lines", "legendgroup": kind, "showlegend": False, "opacity": float(share >= SHOWN), "hoverinfo": _hover(share, SHOWN),
                "line": {"color": f"rgba({colour},{OPACITY[kind]})", "width": round(WIDEST * float(np.sqrt(share * top)) ** 0.6, 2)},
            })  # fmt: skip
    return found


def _edges(trace: Trace) -> pd.DataFrame:
    """Edges between points of the picture: x0, y0, x1, y1, kind, what, and the classes' values."""
    table, end = trace.table, _end(trace)
    part = table["module"].astype(str).str.removesuffix(" norm")
    layer, source, target = (table[name].astype("float").to_numpy() for name in ("layer", "source", "target"))
    top = 2.0 * trace.n_layers + _ABOVE
    below = np.select([part == "embedding", part == "attention", part == "MLP"], [-0.9, 2 * layer, 2 * layer + 1], top - _ABOVE)
    above = np.select([part == "embedding", part == "attention", part == "MLP"], [0, 2 * layer + 1, 2 * layer + 2], top)
    nowhere = np.isnan(source)  # a head's parameters that see no position: from the side
    places = {
        "x0": np.where(nowhere, end + 1.3, source), "y0": np.where(nowhere, top, below), "x1": np.where(np.isnan(target), end, target), "y1": above,
        "kind": table["kind"].astype(str), "part": part, "layer": layer,
    }  # fmt: skip
    return pd.DataFrame(places | {name: table[name].to_numpy() for name in trace.classes}).groupby(
        list(places), sort=False, dropna=False, as_index=False)[trace.classes].sum()  # fmt: skip


def _picture(trace: Trace, edges: pd.DataFrame, bars: pd.DataFrame, at: int) -> list[dict[str, Any]]:
    """x, y and text of every trace for one class."""
    name, whole = trace.classes[at], trace.derivative[at]
    share = edges[name].abs() / (edges[name].abs().max() or 1.0)
    strong = edges[share >= STRENGTHS[0]]
    steps = np.searchsorted(STRENGTHS, share[share >= STRENGTHS[0]], side="right") - 1
    groups: dict[Any, dict[str, list]] = {key: {"x": [], "y": [], "text": []} for key in _groups()[: 2 * len(STRENGTHS) * len(OPACITY)]}
    for step, edge in zip(steps, strong.to_dict("records"), strict=True):
        group = groups[STRENGTHS[step], edge["kind"], TOWARDS if edge[name] > 0 else AGAINST]
        x, y = _curve(edge)
        said = _said(trace, edge) + f"<br>{_number(edge[name], whole)}"
        group["x"] += [*x, None]
        group["y"] += [*y, None]
        group["text"] += [said if 0.25 <= part <= 0.75 else "" for part in _CURVE] + [""]  # at its ends many edges meet
    found: list[dict[str, Any]] = list(groups.values())
    found += [{"x": [None], "y": [None], "text": None} for _ in OPACITY]
    totals = trace.totals[name].to_numpy()
    where = trace.totals["boundary"].to_numpy()
    found.append({
        "x": [*trace.totals["position"].tolist(), _end(trace)], "y": [*(2 * where).tolist(), 2 * trace.n_layers + _ABOVE],
        "text": [*(f"{_shown(token)}, {_boundary(b)}<br>carries {_number(v, whole)}"
                   for token, b, v in zip(trace.totals["token"], where, totals, strict=True)),
                 f"logit of {_shown(name)}: {trace.logits[at]:.3f}<br>changes by {whole:+.4g} a unit of strength"],
    })  # fmt: skip
    for sign in (1, -1):
        some = bars[name][sign * bars[name] > 0]
        heights = dict(zip(_heights(trace), _names(trace), strict=True))
        text = [f"{heights[y]}: introduces {_number(v, whole)}" for y, v in some.items()]
        found.append({"x": some.tolist(), "y": [float(y) for y in some.index], "text": text})
    return found


def _curve(edge: dict[str, Any]) -> tuple[list[float], list[float]]:
    """An edge's points; kinds between the same two positions lie side by side."""
    side = {"introduced": 0.14, "passed on": -0.14, "residual": 0.0}[edge["kind"]]
    apart = 2 * _CURVE * (1 - _CURVE) if edge["x0"] != edge["x1"] else np.full_like(_CURVE, edge["part"] != "head")
    x = edge["x0"] + (edge["x1"] - edge["x0"]) * (3 * _CURVE**2 - 2 * _CURVE**3) + side * apart
    y = edge["y0"] + (edge["y1"] - edge["y0"]) * _CURVE
    return np.round(x, 3).tolist(), np.round(y, 3).tolist()


def _said(trace: Trace, edge: dict[str, Any]) -> str:
    where = {"embedding": "embeddings", "head": "head"}.get(edge["part"]) or f"layer {edge['layer']:.0f}, {edge['part']}"
    if edge["part"] == "head":
        tokens = "to the logits" if edge["y0"] == edge["y1"] else f"{_shown(trace.tokens[int(edge['x0'])])} → logits"
    else:
        ends = [_shown(trace.tokens[int(edge[end])]) for end in ("x0", "x1")]
        tokens = ends[0] if edge["x0"] == edge["x1"] else " → ".join(ends)
    return f"{where}: {tokens}<br>{edge['kind']}"


def _number(value: float, whole: float) -> str:
    return f"{value:+.3g}" + (f" ({100 * value / whole:.1f} % of the whole)" if whole else "")


def _boundary(b: int) -> str:
    return f"below layer {b}" if b == 0 else f"above layer {b - 1}"


def _heading(trace: Trace, at: int, title: str | None) -> str:
    name, heading = _shown(trace.classes[at]), _shown(title or "Where the edit enters and how it reaches the prediction")
    legend = f'<span style="color:rgb({TOWARDS})">red: towards {name}</span>, <span style="color:rgb({AGAINST})">blue: against</span>'
    return f"{heading}<br><sup>logit of {name} changes by {trace.derivative[at]:+.3g} a unit of strength · {legend}</sup>"


def _shown(text: str) -> str:
    """As text: the figure would read a token such as <s> as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "↵")


def _end(trace: Trace) -> int:
    """Where the logits stand: above the token whose position carries most to them."""
    carried = trace.totals[trace.totals["boundary"] == trace.n_layers]
    return int(carried[trace.classes].abs().sum(axis=1).to_numpy().argmax())


def _heights(trace: Trace) -> list[float]:
    return [*map(float, range(2 * trace.n_layers + 1)), 2 * trace.n_layers + _ABOVE]


def _names(trace: Trace) -> list[str]:
    return ["embeddings", *(f"{part} {layer}" for layer in range(trace.n_layers) for part in ("attention", "MLP")), "logits"]
