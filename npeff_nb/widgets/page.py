"""One self-contained HTML file: the explorer with its data, for machines without a kernel, without torch, without a network."""

from __future__ import annotations

import html
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npeff_nb import _files
from npeff_nb.explain.enriched import bands, sample
from npeff_nb.widgets.bundle import NOT_PROFILED, PARTS, Bundle, first_state, sendable

if TYPE_CHECKING:
    from npeff_nb.npeff import NPEFF

STATIC = files("npeff_nb.widgets") / "static"


A_BAND = 8
"""Examples of each band of a component's coefficients that are in a page."""
KEPT = 8000
"""Of so many examples a page has everything; of more a sample, and those that some component shows."""


def static_text(name: str) -> str:
    """A built file of the front end."""
    return (STATIC / name).read_text(encoding="utf-8")


def page(npeff: NPEFF, *, bundle: Bundle | None = None, panels: list[str] | None = None, **state: Any) -> str:
    """The page's text.  Data stands in it as JSON in which no ``<`` occurs, so that no text of an example can become markup.

    ``bundle`` is the decomposition's, where there is one already; ``panels`` and ``state`` are what
    :class:`~npeff_nb.widgets.explorer.Explorer` has under these names.
    """
    bundle = Bundle(npeff) if bundle is None else bundle
    overview = bundle.overview(live=False)
    details = [bundle.detail(k, NOT_PROFILED) for k in range(len(npeff.components_))]
    samples = [_samples(npeff.coefficients_[:, k]) for k in range(len(npeff.components_))]
    kept = bundle.grid.sample(KEPT)
    rows = range(len(bundle.texts)) if kept is None else sorted({*kept.tolist(), *_shown(details, samples), *state.get("selection", [])})
    data: dict[str, Any] = sendable({
        "overview": overview | ({} if kept is None else {"sampled": len(kept)}),
        "panels": panels or list(PARTS),
        "labels": {str(k): v for k, v in npeff.labels.items()},
        "notes": {str(k): v for k, v in npeff.notes.items()},
        "stars": sorted(npeff.stars),
        "state": first_state(overview) | {"theme": "auto"} | state,
        "details": details,
        "examples": {str(i): bundle.example(i) for i in rows},
        "bands": samples,
        "heat": bundle.grid.static(kept),
    })  # fmt: skip
    filled = {
        "<!--TITLE-->": html.escape(data["overview"]["title"]),
        "<!--FALLBACK-->": fallback(npeff, data["overview"]),
        "/*EXPLORER_CSS*/": static_text("explorer.css"),
        "/*EXPLORER_JS*/": static_text("page.js").replace("</script", "<\\/script"),
        "/*DATA*/": as_script_data(data),
    }
    return fill(filled)


def fill(filled: dict[str, str]) -> str:
    """The page's frame with its placeholders filled."""
    out = static_text("page.html")
    # Split at all placeholders first: what is filled in is never searched for placeholders again.
    for placeholder in filled:
        if out.count(placeholder) != 1:
            raise RuntimeError(f"page.html holds {placeholder} {out.count(placeholder)} times, expected once: the front end was built wrongly")
    pieces = sorted(filled, key=out.index)
    parts, at = [], 0
    for placeholder in pieces:
        where = out.index(placeholder)
        parts += [out[at:where], filled[placeholder]]
        at = where + len(placeholder)
    return "".join([*parts, out[at:]])


def write_page(npeff: NPEFF, path: str | os.PathLike, **state: Any) -> Path:
    """Writes :func:`page` to ``path``, whole or not at all."""
    return _files.write_text(path, page(npeff, **state))


Samples = list[list[tuple[int, float]]]
"""By band: some of its examples, each with its coefficient."""


def _samples(w: np.ndarray) -> Samples:
    return [[(int(row), round(float(w[row]), 5)) for row in sample(w, band, A_BAND)] for band in range(len(bands(w)))]


def _shown(details: list[dict[str, Any]], samples: list[Samples]) -> set[int]:
    """Rows of the examples that details and samples of bands speak of."""
    top = {row for detail in details for example in detail["top"] for row in (example["row"], *example["duplicates"])}
    return top | {row for of_one in samples for band in of_one for row, _ in band}


def as_script_data(data: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def fallback(npeff: NPEFF, overview: dict[str, Any], most: int = 100) -> str:
    """A plain table of the components: what GitHub, nbconvert and a page without scripts show."""
    rows = []
    for summary in overview["components"][:most]:
        k = summary["component"]
        name = npeff.labels.get(k) or summary["label"]
        example = _strongest(npeff, k)
        cells = (str(k), name, f"{100 * summary['share']:.1f} %", str(summary["examples"]), summary["main_label"], example)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("component", "name", "share", "examples", "label", "strongest example"))
    title = html.escape(f"{overview['title']} · {overview['subtitle']}")
    return sendable(f"<table><caption>{title}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _strongest(npeff: NPEFF, k: int) -> str:
    top = npeff.top_examples(k, 1)
    if npeff.examples is None or "text" not in npeff.examples.columns or not len(top):
        return ""
    text = npeff.examples["text"].iloc[top[0]]
    return text if len(text) <= 120 else text[:119] + "…"
