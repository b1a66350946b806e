"""Which components come back: fits with other seeds, and of other samples of the examples, matched to a decomposition.

Fits end in different minima (:mod:`npeff_nb.decomposition.fitting`).  A component that every fit finds again is a fact about the Fishers; one that
comes and goes is at best one way of several to cut up what it explains.  By the usual reading of congruence (Lorenzo-Seva and ten Berge 2006) 0.95
and more is the same component, 0.85 a similar one; there it is a cosine, here a product of two numbers of which one is a correlation, so it is the
stricter measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from npeff_nb._progress import Bar, Progress
from npeff_nb.decomposition.factorisation import Factorisation
from npeff_nb.decomposition.held_out import check_count, check_settings, examples_of, generator, seed
from npeff_nb.decomposition.matching import pairs

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class Stability:
    """What :func:`stability` found; all numbers lie between 0, never found again, and 1, always found as it is.

    Attributes
    ----------
    table : one row a component of the reference: ``component``; ``stability``, mean agreement over the runs (|cos| of directions times correlation
        of coefficients, :mod:`npeff_nb.decomposition.matching`); ``lowest``, the agreement in the worst run; ``direction`` and ``coefficients``,
        means of the two; ``share`` of the explained energy; ``dead``, whether no example uses it: then its stability is 0.
    pairs : one row a run and component: ``run``, ``kind`` (``"seed"`` or ``"bootstrap"``), ``component``, ``matched`` of the run, ``direction``,
        ``coefficients``, ``agreement``.
    median : of ``stability`` over the components.
    reference : the decomposition that ``component`` counts in.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    median: float
    reference: Factorisation

    def figure(self) -> go.Figure:
        """Each component's agreement with its match: a dot a run, a bar at the mean."""
        import plotly.graph_objects as go

        figure = go.Figure()
        # Mid-tones on a white card: as readable in a dark notebook as in a light one.
        figure.add_bar(
            x=self.table["component"], y=self.table["stability"], name="mean", marker_color="#bcd3f0",
            hovertemplate="component %{x}: %{y:.2f} on average<extra></extra>",
        )  # fmt: skip
        for kind, name, colour in (("seed", "another seed", "#2468be"), ("bootstrap", "other examples", "#b3541e")):
            some = self.pairs[self.pairs["kind"] == kind]
            if len(some):
                figure.add_scatter(
                    x=some["component"], y=some["agreement"], name=name, mode="markers", marker={"color": colour, "size": 6, "opacity": 0.7},
                    customdata=some[["run", "matched"]],
                    hovertemplate="run %{customdata[0]}, component %{customdata[1]}: %{y:.2f}<extra></extra>",
                )  # fmt: skip
        figure.update_layout(
            title=f"How surely components come back (median {self.median:.2f})", template="plotly_white", height=380,
            margin={"l": 70, "r": 20, "t": 60, "b": 60}, xaxis={"title": "component"}, yaxis={"title": "agreement (1: the same)", "range": [0, 1.02]},
        )  # fmt: skip
        return figure

    def __repr__(self) -> str:
        r, runs = len(self.table), self.pairs["run"].nunique()
        return f"Stability(median {self.median:.2f} over {r} component{'s' * (r != 1)} and {runs} run{'s' * (runs != 1)})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table.round(3).to_html(index=False)}"


def stability(
    X: Any,
    npeff: Factorisation | int,
    *,
    seeds: int = 5,
    bootstraps: int = 0,
    random_state: Any = 0,
    progress: bool | Progress = True,
    **npeff_settings: Any,
) -> Stability:
    """Fits again with other seeds and on other samples, and says how well each component is found.

    Parameters
    ----------
    X : the Fishers of the decomposition, or others in the same coordinates.
    npeff : a fitted decomposition, which is compared with all runs and whose settings they have; or a number of components: then the run over other
        seeds with the lowest loss is the reference for the others.
    seeds : fits of all examples with other seeds.
    bootstraps : fits of as many examples, drawn with replacement; compared are coefficients of all examples.
    progress : show a bar, or a function (done, total, what), which may raise :class:`npeff_nb._progress.Cancelled`.
    npeff_settings : of :class:`~npeff_nb.NPEFF`.

    Raises
    ------
    ValueError
        Fewer runs than there is something to compare, or Fishers that the decomposition cannot be applied to.
    """
    rng = generator(random_state)
    settings = check_settings(npeff_settings)
    check_count("seeds", seeds, 0)
    check_count("bootstraps", bootstraps, 0)
    reference = npeff if isinstance(npeff, Factorisation) else None
    if seeds + bootstraps < (2 if reference is None else 1) or (reference is None and seeds < 1):
        raise ValueError(
            f"seeds={seeds} and bootstraps={bootstraps} leave nothing to compare: "
            + (
                "one run over a seed is the reference, and at least one more is compared with it"
                if reference is None
                else "at least one run is needed"
            )
        )
    X = examples_of(X)
    if reference is None:
        settings = settings | {"n_components": check_count("n_components", npeff)}
    else:
        check_is_fitted(reference, "components_")
        coefficients = reference.transform(X)
        # Where that fit began, and on how many machines, is not a setting of runs that begin elsewhere.
        settings = reference.get_params() | {"n_components": len(reference.components_), "init": "k-means++", "shards": None} | settings
    samples = [None] * seeds + [np.bincount(rng.integers(len(X), size=len(X)), minlength=len(X)) for _ in range(bootstraps)]
    runs = []
    with Bar(progress, len(samples), "other seeds and samples", "fit") as bar:
        for counts in samples:
            runs.append(Factorisation(**(settings | {"random_state": seed(rng)})).fit(X, sample_weight=counts))
            bar.add(1)
    if reference is None:
        reference = min(runs[:seeds], key=lambda run: run.reconstruction_err_)
        coefficients = reference.coefficients_
    found = []
    for number, run in enumerate(runs):
        if run is not reference:
            matched = pairs(reference.components_, coefficients, run.components_, run.coefficients_)
            matched = matched.drop(columns="same_sign").rename(columns={"a": "component", "b": "matched"})
            found.append(matched.assign(run=number, kind="seed" if number < seeds else "bootstrap"))
    every = pd.concat(found, ignore_index=True)[["run", "kind", "component", "matched", "direction", "coefficients", "agreement"]]
    of_each = every.groupby("component")
    shares = reference.component_shares_
    table = pd.DataFrame({
        "component": range(len(shares)),
        "stability": of_each["agreement"].mean(),
        "lowest": of_each["agreement"].min(),
        "direction": of_each["direction"].mean(),
        "coefficients": of_each["coefficients"].mean(),
        "share": shares / max(float(shares.sum()), np.finfo(float).tiny),
        "dead": ~(coefficients > 0).any(0),
    }).reset_index(drop=True)  # fmt: skip
    return Stability(table, every, float(table["stability"].median()), reference)
