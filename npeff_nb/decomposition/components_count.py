"""How many components: what more of them explain of examples that were held out, beside what they would explain by chance.

Explained variance of held-out Fishers has no maximum to look for: coefficients are fitted to every example, so one more direction never hurts it
much.  Two questions can be asked of the curve E(r) instead.

1. *Do more components gain more than they would by chance?*  Looked at is E(r) less the same curve of a null
   (:mod:`npeff_nb.decomposition.null`), as the gap statistic of Tibshirani, Walther and Hastie (2001) does for clusters.  It stops rising where
   directions that come back are used up.  The **end** is the smallest number at which it is its largest, but for :data:`SAME` of it.
2. *Do the gains fall off before?*  Over the candidates up to the end, with log r along the axis (what a doubling gains is what counts), the **elbow**
   is the point of E(r) furthest above the chord from the first to the last (Kneedle: Satopaa, Albrecht, Irwin and Raghavan 2011).  A curve that
   hardly bends has no elbow, any point of it would be an accident of the candidates that were tried: so it has to be :data:`CLEAR` above the chord.

Suggested is the elbow where there is one, and the end where there is none.  When the end is the last candidate the curve still rises: then the
Fishers name no number, how fine to look is up to the reader, and the reason says so.  A rule by standard errors would pick some number even then, by
how many examples were held out; here it is also unreliable, because what differs between splits is mostly whether a start was poor.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb._progress import Bar, Progress
from npeff_nb.decomposition.held_out import (
    Groups,
    carried,
    check_carried,
    check_count,
    check_settings,
    examples_of,
    explained,
    generator,
    seed,
    splits,
)
from npeff_nb.decomposition.null import Keep, null_fishers

if TYPE_CHECKING:
    import plotly.graph_objects as go

CANDIDATES = (2, 4, 8, 16, 32, 64)
SAME = 0.02
"""A share of what is explained beyond chance that is not worth more components."""
MORE = 0.25
"""At least so much more than by chance has to be explained before there is anything to count, and twice the standard error of the difference."""
CLEAR = 0.15
"""Height of an elbow above the chord, as a share of the rise from first to last candidate."""


@dataclass(frozen=True, repr=False)
class ComponentsCount:
    """What :func:`choose_n_components` found.

    Attributes
    ----------
    table : one row a candidate: ``n_components``; ``training`` and ``held_out``, shares explained of the examples fitted on and of the others, means
        over the splits; ``standard_error`` of ``held_out``; ``chance_training`` and ``chance_held_out``, the same of the null; ``dead``, components
        that no example uses, mean; ``seconds`` of a fit with its scores, mean.
    suggested : a number of components.
    why : the reason for it in words.
    """

    table: pd.DataFrame
    suggested: int
    why: str

    def figure(self) -> go.Figure:
        """The table as curves over the number of components."""
        import plotly.graph_objects as go

        t, figure = self.table, go.Figure()
        # Mid-tones on a white card: as readable in a dark notebook as in a light one.
        for column, name, colour, dash in (
            ("training", "examples fitted on", "#8fb4e3", "dot"), ("held_out", "held out", "#2468be", "solid"),
            ("chance_held_out", "held out, by chance", "#b3541e", "dash"),
        ):  # fmt: skip
            figure.add_scatter(
                x=t["n_components"], y=100 * t[column], name=name, mode="lines+markers", line={"color": colour, "dash": dash},
                error_y={"array": 100 * t["standard_error"], "visible": column == "held_out" and bool(t["standard_error"].notna().all())},
                hovertemplate="%{x} components explain %{y:.1f} %<extra>" + name + "</extra>",
            )  # fmt: skip
        figure.add_vline(x=self.suggested, line={"color": "#777", "width": 1})
        # Unlike lines, plotly wants texts on a log axis at the logarithm.
        figure.add_annotation(
            x=np.log10(self.suggested), y=0, yref="paper", text=f"suggested: {self.suggested}", showarrow=False, yanchor="bottom",
            xanchor="right" if self.suggested == t["n_components"].max() else "left",
        )  # fmt: skip
        figure.update_layout(
            title="How much more components explain", template="plotly_white", height=380, margin={"l": 70, "r": 20, "t": 60, "b": 60},
            xaxis={"title": "number of components", "type": "log", "tickvals": t["n_components"], "ticktext": t["n_components"].astype(str)},
            yaxis={"title": "explained, %", "rangemode": "tozero"},
        )  # fmt: skip
        return figure

    def __repr__(self) -> str:
        return f"ComponentsCount({self.suggested}: {self.why})"

    def _repr_html_(self) -> str:
        return f"<p><b>{self.suggested} components</b>: {html.escape(self.why)}</p>{self.table.round(4).to_html(index=False)}"


def choose_n_components(
    X: Any,
    candidates: Sequence[int] | np.ndarray | int | None = None,
    *,
    held_out: float = 0.2,
    repeats: int = 2,
    groups: Groups = None,
    chance: Keep = "average",
    random_state: Any = 0,
    n_init: int = 2,
    progress: bool | Progress = True,
    **npeff_settings: Any,
) -> ComponentsCount:
    """Fits several numbers of components to a part of the examples and looks at what they explain of the others.

    Parameters
    ----------
    X : as for :meth:`NPEFF.fit <npeff_nb.NPEFF.fit>`.
    candidates : numbers of components to try; by default those of 2, 4, 8, 16, 32, 64 that the examples can carry.
    held_out : share of the examples that is held out.
    repeats : random splits, each with starts of its own.  With one there is no standard error.
    groups : examples that belong together and are fitted on or held out together: (n,) one value an example, or a column of the PEFs' examples.
        By default PEFs with the same ``text`` do: near copies on both sides would make held-out examples look better explained than they are.
    chance : what the null keeps beside the spectra, see :func:`~npeff_nb.decomposition.null.null_fishers`.  It is drawn once and fitted on the first
        split.  ``"average"`` errs towards fewer: components at right angles that differ in how often they are used are the axes of its cloud.
    n_init : starts of a fit.  A poor start misses a component or two, and then more of them seem to be needed.
    progress : show a bar, or a function (done, total, what), which may raise :class:`npeff_nb._progress.Cancelled`.
    npeff_settings : of :class:`~npeff_nb.NPEFF`.

    Raises
    ------
    ValueError
        No candidates, more components than the examples that are left can carry, too few examples to hold some out.
    """
    rng = generator(random_state)
    settings = check_settings({"n_init": n_init} | npeff_settings)
    X = examples_of(X)
    every = splits(X, held_out, check_count("repeats", repeats), groups, rng)
    numbers = _numbers(X, candidates, every)
    seeds = [[seed(rng) for _ in numbers] for _ in range(repeats + 1)]
    null = null_fishers(X, keep=chance, random_state=seed(rng))
    runs = [(null, every[0]), *((X, split) for split in every)]
    found, seconds = [], np.zeros((len(runs), len(numbers)))
    with Bar(progress, len(runs) * len(numbers), "numbers of components", "fit") as bar:
        for run, (Y, (training, out)) in enumerate(runs):
            parts, of_run = (Y[training], Y[out]), []
            for i, r in enumerate(numbers):
                began = time.perf_counter()
                of_run.append(explained(*parts, r, seeds[run][i], settings))
                seconds[run, i] = time.perf_counter() - began
                bar.add(1)
            found.append(of_run)
    by_chance, real = found[0], found[1:]
    curves = np.array([[one.held_out for one in of_run] for of_run in real])
    table = pd.DataFrame({
        "n_components": numbers,
        "training": np.mean([[one.training for one in of_run] for of_run in real], axis=0),
        "held_out": curves.mean(0),
        "standard_error": standard_error(curves, every),
        "chance_training": [one.training for one in by_chance],
        "chance_held_out": [one.held_out for one in by_chance],
        "dead": np.mean([[one.dead for one in of_run] for of_run in real], axis=0),
        "seconds": seconds[1:].mean(0),
    })  # fmt: skip
    suggested, why = suggest(np.array(numbers), table["held_out"].to_numpy(), table["chance_held_out"].to_numpy(), table["standard_error"].to_numpy())
    return ComponentsCount(table, suggested, why)


def standard_error(values: np.ndarray, every: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Of the mean of ``values`` (splits, ...) over J random splits: √((1/J + held out/fitted on) s²), since they share examples.

    Source: Nadeau and Bengio (2003).  NaN for one split.
    """
    if len(every) == 1:
        return np.full(values.shape[1:], np.nan)
    ratio = np.mean([len(out) / len(training) for training, out in every])
    return np.sqrt((1 / len(every) + ratio) * values.var(axis=0, ddof=1))


def suggest(numbers: np.ndarray, held_out: np.ndarray, chance: np.ndarray, errors: np.ndarray) -> tuple[int, str]:
    """The rule of this module: rising ``numbers``, what they explain of held-out Fishers, what of the null, and standard errors, (m,) each.

    ``errors`` may be NaN where they are not known.
    """
    beyond = held_out - chance
    best = int(beyond.argmax())
    # Both curves have that error.
    if not beyond[best] > max(MORE * chance[best], 2 * 2**0.5 * np.nan_to_num(errors[best])):
        return int(numbers[0]), (
            f"no number of components explains held-out Fishers clearly better than chance ({numbers[best]}: {_percent(held_out[best])}, "
            f"{_percent(chance[best])} by chance): there may be nothing in them beyond what the null keeps"
        )
    end = int((beyond >= (1 - SAME) * beyond[best]).argmax())
    elbow = _elbow(numbers[: end + 1], held_out[: end + 1])
    if elbow is not None:
        return int(numbers[elbow]), (
            f"here is the elbow: of held-out Fishers {numbers[elbow - 1]} components explain {_percent(held_out[elbow - 1])}, {numbers[elbow]} "
            f"{_percent(held_out[elbow])}, and {numbers[end]} {_percent(held_out[end])}"
        )
    if len(numbers) == 1:
        return int(numbers[0]), f"it is the only candidate, and explains {_percent(beyond[0])} more of held-out Fishers than it would by chance"
    if end < len(numbers) - 1:
        return int(numbers[end]), (
            f"beyond what chance explains, {numbers[end]} components explain {_percent(beyond[end])} of held-out Fishers and {numbers[end + 1]} "
            f"{_percent(beyond[end + 1])}: further ones add no more than they would by chance"
        )
    return int(numbers[end]), (
        f"the curve still rises at the last candidate and has no elbow: {numbers[end - 1]} components explain {_percent(held_out[end - 1])} of "
        f"held-out Fishers and {numbers[end]} {_percent(held_out[end])} ({_percent(chance[end])} by chance). These Fishers name no number of their "
        "own: try more, or take as many as you can read and stability() finds again"
    )


def _elbow(numbers: np.ndarray, held_out: np.ndarray) -> int | None:
    if len(numbers) < 3 or held_out[-1] <= held_out[0]:
        return None
    along = np.log(numbers / numbers[0]) / np.log(numbers[-1] / numbers[0])
    above = (held_out - held_out[0]) / (held_out[-1] - held_out[0]) - along
    return int(above.argmax()) if above.max() >= CLEAR else None


def _numbers(X: Any, candidates: Sequence[int] | np.ndarray | int | None, every: list[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    """Rising candidates that every training part can carry; those of the default that cannot be are left out."""
    if candidates is None:
        numbers = [r for r in CANDIDATES if r <= carried(X, every)] or [CANDIDATES[0]]
    else:
        numbers = sorted({check_count("candidates", r) for r in np.array(candidates, dtype=object).ravel()})
        if not numbers:
            raise ValueError("candidates is empty: give numbers of components to try, such as (4, 8, 16)")
    check_carried(X, numbers[-1], every)
    return numbers


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
