"""Plotly figures of a decomposition, for papers and slides; plain ``go.Figure`` objects, so that a notebook stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from npeff_nb.widgets.bundle import NO_MODEL, Bundle

if TYPE_CHECKING:
    from npeff_nb.npeff import NPEFF


def parameter_map(npeff: NPEFF, k: int) -> go.Figure:
    """Where component ``k`` lives: share of its squared length in each layer × kind of matrix.

    Raises
    ------
    ValueError
        When the component does not exist, was not profiled yet (:func:`npeff_nb.explain.profile.profile`), or has no layers.
    """
    k = npeff.check_component(k)
    if k not in npeff.profiles:
        raise ValueError(f"component {k} has no profile yet. {NO_MODEL if npeff.subject is None else 'Run npeff.profile(' + str(k) + ') first.'}")
    cells, others = Bundle(npeff).energy(npeff.profiles[k])
    if cells is None:
        raise ValueError("the parameters that took part belong to no numbered layer, so there is no layer map")
    percent = [[None if v is None else 100 * v for v in row] for row in cells["values"]]
    figure = go.Figure(
        go.Heatmap(
            z=percent, x=cells["kinds"], y=cells["layers"], colorscale=[[0, "#f5f8fc"], [1, "#2468be"]], zmin=0, xgap=3, ygap=3,
            colorbar={"title": "share, %", "thickness": 12}, hovertemplate="%{y}, %{x}: %{z:.1f} %<extra></extra>",
        )
    )  # fmt: skip
    rest = ", ".join(f"{o['name']} {100 * o['value']:.1f} %" for o in others)
    figure.update_layout(
        title={"text": f"Where component {k} lives" + (f"<br><sup>elsewhere: {rest}</sup>" if rest else "")},
        template="plotly_white", height=90 + 42 * len(cells["layers"]) + 60, margin={"l": 70, "r": 20, "t": 70, "b": 60},
    )  # fmt: skip
    return figure
