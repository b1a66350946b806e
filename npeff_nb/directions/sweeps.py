"""Sweeps: components and controls as edits of many strengths and both signs, judged on examples that use the component and on others.

:func:`sweep` runs the model and keeps a row for every example; :func:`effects`, :func:`matched` and :func:`medians` read the table, so that the
questions one asks of it cost no further pass.

Intervals are percentile intervals from resampling the examples of each set (and components, for :func:`medians`).  One resample serves all
directions and strengths of a component: what a component does beyond its control is a difference on the same examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from npeff_nb._progress import Bar, Progress
from npeff_nb.directions.controls import KINDS, clusters, control
from npeff_nb.directions.lift import Direction, direction, subject_of
from npeff_nb.directions.perturb import edit_sets, kl, perturb
from npeff_nb.fisher.predictions import decided, gold_labels, predicted_classes, predictions_of

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation
    from npeff_nb.fisher.pefs import PEFs

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""L2 distances at which the model is run, each with both signs; 0.3 is where a profile judges a component."""
SETS = ("top", "baseline", "label_matched")
COMPONENT = "component"
"""The kind of the direction that the controls are controls of."""
INTERVAL = (0.025, 0.975)
IN_RANGE = 0.9
"""An interval at matched effect is given where at least this share of the resamples could be matched: those that could not are not like the rest."""

Controls = Iterable[str | int] | Mapping[str | int, Iterable[float] | None]


def sweep(
    npeff: Factorisation,
    components: int | Iterable[int] | Mapping[int, Direction] | None = None,
    strengths: Iterable[float] = STRENGTHS,
    *,
    controls: Controls = ("random",),
    fishers: PEFs | None = None,
    n_top: int = 32,
    n_baseline: int = 96,
    seed: int = 0,
    progress: bool | Progress = True,
) -> pd.DataFrame:
    """Runs the model under θ ± strength · direction: one forward of the examples for every direction and signed strength, and one as it is.

    Examples are judged in three sets.  ``top``: those with the largest coefficients.  ``baseline``: drawn at random from all others.
    ``label_matched``: drawn from all others, as many of each predicted class as in the top set (or all that are left), for an edit may simply disturb
    a class.  The last two share what examples they can.

    Parameters
    ----------
    components : all that examples use by default; or component -> direction, for directions lifted before, or changed since.
    strengths : L2 distances.  Both signs are always run.
    controls : some of ``"random"``, ``"combination"``, ``"kmeans"``, ``"other"`` (:mod:`npeff_nb.directions.controls`) and numbers of components;
        or a mapping from these to strengths of their own (None for the same): a random direction needs hundreds of times those for the same effect.
    fishers : the PEFs of the fit, for ``"kmeans"`` (as many clusters as there are components).
    progress : a bar, none, or a function called as (done, total, what), which may raise :class:`~npeff_nb._progress.Cancelled`; the model is edited
        meanwhile.

    Returns
    -------
    DataFrame, one row a component, direction, signed strength, set and example: ``component``; ``direction``, ``"component"`` or the control;
    ``strength``; ``set``; ``example``; ``kl``, KL(perturbed ‖ original) in nats; ``log_odds``, change of those of the class predicted before (of
    independent labels, of all predictions together); ``flip``, whether another class is predicted; ``correct`` and ``was_correct``, missing where
    there is no gold label; ``norm``, ‖F_i‖_F.  Where few of many classes were kept, predictions are among these.

    Raises
    ------
    ValueError
        What does not exist or cannot be run; no model at hand.
    """
    subject = subject_of(npeff)
    lifted = dict(components) if isinstance(components, Mapping) else {}
    chosen = _chosen(npeff, components)
    grids = _grids(npeff, strengths, controls)
    found = None
    if "kmeans" in grids:
        if fishers is None:
            raise ValueError('the control "kmeans" clusters per-example gradients, which a decomposition does not keep: give fishers=')
        found = clusters(fishers, npeff, min(len(npeff.components_), int((npeff.norms > 0).sum())), seed)
    labels, gold = predictions_of(npeff), gold_labels(npeff.examples, npeff.classes)
    assert labels is not None, "Fishers always come with logits"
    kinds = pd.CategoricalDtype([_name(kind) for kind in grids])
    parts = []
    with Bar(progress, len(chosen) * (1 + sum(map(len, grids.values()))), "Sweep", "forward pass") as bar:
        for k in chosen:
            sets = _sets(npeff, k, labels, n_top, n_baseline, seed)
            rows = np.unique(np.concatenate(list(sets.values())))
            bar.what = f"component {k}: the model as it is"
            # In the same batches as under every edit: what is measured is the edit, not a difference of paddings.
            judge = _Judge(npeff, subject.logits(rows).numpy(), None if gold is None else gold[rows])
            bar.add(1)
            like = lifted[k] if k in lifted else direction(npeff, k)
            for kind, signed in grids.items():
                along = like if kind == COMPONENT else control(npeff, k, kind, like, found, seed)
                judged, edit = [], perturb(subject.model, along, signed[0])
                with edit:
                    for strength in signed:
                        edit.move(strength)
                        bar.what = f"component {k}: {_name(kind)} at strength {strength:+g}"
                        judged.append(judge.of(subject.logits(rows).numpy()))
                        bar.add(1)
                parts.append(_frame(npeff, k, pd.Categorical([_name(kind)], dtype=kinds), signed, sets, rows, judge, judged))
    return pd.concat(parts, ignore_index=True)


def effects(table: pd.DataFrame, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """What each edit did: one row a component, direction and signed strength of a :func:`sweep`.

    Columns, beside these three: ``examples_top`` and ``examples_baseline``, how many; ``kl_top``, ``kl_baseline``, ``kl_label_matched``, mean KL of
    each set.  ``kl_ratio``, kl_top / kl_baseline (Matena and Raffel, section 4), and ``label_ratio``, kl_top / kl_label_matched.
    ``kl_ratio_per_norm``, kl_ratio divided by the same ratio of mean ‖F_i‖_F: to second order KL is in proportion to F_i, so a direction that knows
    nothing of the examples has about 1 here whatever the sets are.  ``advantage``, the component's kl_ratio / this direction's at the same signed
    strength (1 for the component itself).  Each ratio has a 95 % interval, ``…_low`` and ``…_high``.  ``flips_…``, share of predictions that changed;
    ``accuracy_change_…``; ``log_odds_…``, mean change; each by set.  Missing where a set is empty, has no gold label, or did not move.

    Parameters
    ----------
    draws : resamples of the examples behind an interval.
    """
    _check_table(table)
    parts = []
    for k, means in _resampled(table, draws, seed):
        found = means.grid.assign(component=k, examples_top=means.sizes["top"], examples_baseline=means.sizes["baseline"])
        for name in SETS:
            found[f"kl_{name}"] = means.kl[name][0]
        for name, ratio in means.ratios().items():
            found[name] = ratio[0]
            found[f"{name}_low"], found[f"{name}_high"] = _interval(ratio)
        parts.append(found)
    found, keys = pd.concat(parts, ignore_index=True), ["component", "direction", "strength"]
    change = _numbers(table["correct"]) - _numbers(table["was_correct"])
    rest = table[[*keys, "set"]].assign(
        direction=table["direction"].astype(str), accuracy_change=change, flips=table["flip"].astype(float), log_odds=table["log_odds"].astype(float)
    ).pivot_table(index=keys, columns="set", values=["flips", "accuracy_change", "log_odds"], observed=True)  # fmt: skip
    for what in ("flips", "accuracy_change", "log_odds"):
        for name in SETS:  # a pivot table leaves out what is missing throughout
            rest[f"{what}_{name}", ""] = rest[what, name] if (what, name) in rest.columns else np.nan
    rest = rest.loc[:, rest.columns.get_level_values("set") == ""].droplevel("set", axis=1).reset_index()
    return found[[*keys, *(c for c in found.columns if c not in keys)]].merge(rest, on=keys, how="left")


def matched(table: pd.DataFrame, on: str = "kl_baseline", *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Controls at the strength at which they cause what the component causes: one row a component, control and signed strength of the component.

    Equal lengths are a weak comparison: most directions do nothing.  Here the control's strength is chosen, on the side of the same sign, so that its
    ``on`` equals the component's: read off its own curve, straight lines in log strength and log KL, at the first point that reaches it.
    Missing where its strengths do not reach so far up or down; give the control other ones in :func:`sweep`.

    Parameters
    ----------
    on : ``"kl_baseline"``, ``"kl_top"`` or ``"kl_label_matched"``.

    Returns
    -------
    DataFrame: ``component``, ``direction``, ``strength``; ``matched_strength`` of the control; ``kl_top`` and ``kl_top_control``; ``kl_baseline`` and
    ``kl_baseline_control``; ``kl_ratio`` and ``kl_ratio_control``; ``advantage``, the one by the other, with its 95 % interval.
    """
    _check_table(table, on)
    parts = []
    for k, means in _resampled(table, draws, seed):
        for kind, own, found in _matched_to(means, on):
            part = means.grid.iloc[own].assign(component=k, direction=kind, **{name: values[0] for name, values in found.items()})
            part["advantage_low"], part["advantage_high"] = _interval(found["advantage"], IN_RANGE)
            parts.append(part)
    if not parts:
        raise ValueError("the table has no controls to match: sweep with controls=")
    result = pd.concat(parts, ignore_index=True)
    result = result[["component", *(c for c in result.columns if c != "component")]]
    return result.sort_values(["component", "direction", "strength"], kind="stable", ignore_index=True)


def medians(table: pd.DataFrame, on: str | None = None, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Medians over the components: one row a direction and signed strength.

    Parameters
    ----------
    on : None for edits of equal length as in :func:`effects`; or as for :func:`matched`, and then a row is a control's.

    Returns
    -------
    DataFrame: ``direction``, ``strength``; ``components`` that have a ratio (and are in the control's range, where it is matched); ``kl_ratio``,
    ``kl_ratio_per_norm`` and ``advantage``, or ``kl_ratio``, ``kl_ratio_control`` and ``advantage``, each the median over these components, with its
    95 % interval from resampling components, and for each its examples.
    """
    _check_table(table, on)
    names = ("kl_ratio", "kl_ratio_per_norm", "advantage") if on is None else ("kl_ratio", "kl_ratio_control", "advantage")
    parts: list[tuple[int, pd.DataFrame, dict[str, np.ndarray]]] = []
    for row, (_, means) in enumerate(_resampled(table, draws, seed)):
        if on is None:
            parts.append((row, means.grid, means.ratios()))
            continue
        for kind, own, found in _matched_to(means, on):
            missing = np.isnan(found["advantage"])
            parts.append((row, means.grid.iloc[own].assign(direction=kind), {name: np.where(missing, np.nan, found[name]) for name in names}))
    if not parts:
        raise ValueError("the table has no controls to match: sweep with controls=")
    result = pd.concat([grid for _, grid, _ in parts]).drop_duplicates().sort_values(["direction", "strength"], ignore_index=True)
    places, n = pd.MultiIndex.from_frame(result), table["component"].nunique()
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n))
    which = 1 + (np.arange(draws)[:, None] + np.arange(n)) % draws  # a component that is drawn twice has two resamples of its examples
    for name in names:
        values = np.full((n, draws + 1, len(places)), np.nan)
        for row, grid, of_part in parts:
            values[row][:, places.get_indexer(pd.MultiIndex.from_frame(grid))] = of_part[name]
        resampled = values[drawn, which]  # (draws, components, grid)
        middle = np.concatenate([_median(values[:, 0], 0)[None], _median(resampled, 1)])
        if name == names[0]:
            result["components"] = (~np.isnan(values[:, 0])).sum(0)
        result[name] = middle[0]
        result[f"{name}_low"], result[f"{name}_high"] = _interval(middle, IN_RANGE)
    return result


# ---------------------------------------------------------------------------------------------------------------- what is run, and on what


def _chosen(npeff: Factorisation, components: int | Iterable[int] | Mapping[int, Direction] | None) -> list[int]:
    """Numbers of the components, each used by some example."""
    if len(npeff.coefficients_) < 2:
        raise ValueError("this decomposition has 1 example: an edit is judged against other examples, so a sweep needs at least 2")
    used = np.asarray((npeff.coefficients_ > 0).any(0))
    if components is None:
        return np.flatnonzero(used).tolist()
    given = [components] if isinstance(components, (int, np.integer)) else components
    chosen = list(dict.fromkeys(npeff.check_component(k) for k in given))
    unused = [k for k in chosen if not used[k]]
    if unused:
        raise ValueError(f"component {unused[0]} is used by no example, so there is nothing on which to judge its edit")
    if not chosen:
        raise ValueError("components is empty: give numbers of components, or leave it out for all")
    return chosen


def _grids(npeff: Factorisation, strengths: Iterable[float], controls: Controls) -> dict[str | int, np.ndarray]:
    """Kind of direction -> signed strengths, rising."""
    grids: dict[str | int, np.ndarray] = {COMPONENT: signed_strengths(strengths)}
    asked = controls if isinstance(controls, Mapping) else dict.fromkeys([controls] if isinstance(controls, (str, int)) else controls)
    for kind, own in asked.items():
        if isinstance(kind, str) and kind not in KINDS:
            raise ValueError(f"controls has {kind!r}; choose from {', '.join(map(repr, KINDS))} and the numbers of components")
        name = kind if isinstance(kind, str) else npeff.check_component(kind)
        grids[name] = grids[COMPONENT] if own is None else signed_strengths(own)
    return grids


def signed_strengths(strengths: Iterable[float]) -> np.ndarray:
    """Both signs of each strength, rising, without zero.

    Raises
    ------
    ValueError
        Nothing but zeros, or what is not finite.
    """
    sizes = np.unique(np.abs(np.asarray(list(strengths), dtype=np.float64)))
    sizes = sizes[np.flatnonzero(sizes)]
    if not len(sizes) or not np.isfinite(sizes).all():
        raise ValueError(f"strengths={strengths!r}: give finite L2 distances other than 0; both signs of each are run")
    return np.concatenate([-sizes[::-1], sizes])


def _sets(npeff: Factorisation, k: int, labels: np.ndarray, n_top: int, n_baseline: int, seed: int) -> dict[str, np.ndarray]:
    """Set -> examples."""
    if n_top < 1 or n_baseline < 1:
        raise ValueError(f"n_top={n_top}, n_baseline={n_baseline}: each set needs at least 1 example")
    eligible = npeff.norms > 0
    sets = edit_sets(npeff.coefficients_[:, k], n_top, n_baseline, seed + k, eligible)
    rest = np.setdiff1d(np.flatnonzero(eligible), sets.top)
    # The very order of which the baseline is the beginning: what both sets can share is run once.
    order = np.random.default_rng(seed + k).permutation(rest)
    return dict(zip(SETS, (sets.top, sets.baseline, label_matched(labels, sets.top, order)), strict=True))


def label_matched(labels: np.ndarray, top: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The first of ``order`` with the labels of ``top``, as many of each; where fewer are left, all there are."""
    codes = pd.factorize(labels)[0]
    wanted, of_order = np.bincount(codes[top], minlength=codes.max() + 1), codes[order]
    by_label = np.argsort(of_order, kind="stable")
    starts = np.searchsorted(of_order[by_label], np.arange(len(wanted)))
    rank = np.empty(len(order), dtype=int)  # how many of the same label come before
    rank[by_label] = np.arange(len(order)) - starts[of_order[by_label]]
    return np.sort(order[rank < wanted[of_order]])


class _Judge:
    """What an edit did to some examples, from their logits before and after."""

    def __init__(self, npeff: Factorisation, original: np.ndarray, gold: np.ndarray | None) -> None:
        self.family, self.classes, self.gold, self.original = npeff.family, npeff.classes, gold, original
        self._predicted = partial(decided, npeff)
        self.predicted = self._predicted(original)
        self.odds = self._log_odds(original)
        self.known = np.zeros(len(original), dtype=bool) if gold is None else np.asarray(pd.notna(gold))
        self.was_correct = self._correct(original)

    def of(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the table, (m,) each."""
        changed = self._predicted(logits) != self.predicted
        return {
            "kl": kl(logits, self.original, self.family), "log_odds": self._log_odds(logits) - self.odds,
            "flip": changed if changed.ndim == 1 else changed.any(1), "correct": self._correct(logits),
        }  # fmt: skip

    def _log_odds(self, z: np.ndarray) -> np.ndarray:
        """Of what was predicted before, log P/(1 − P), float64."""
        x = torch.from_numpy(z).double()
        before = torch.from_numpy(self.predicted)
        if self.family == "bernoulli":
            log_p = torch.nn.functional.logsigmoid(torch.where(before, x, -x)).sum(1)
            return (log_p - torch.log(-torch.expm1(log_p))).numpy()
        others = x.scatter(1, before[:, None], float("-inf"))
        return (x.gather(1, before[:, None])[:, 0] - others.logsumexp(1)).numpy()

    def _correct(self, z: np.ndarray) -> np.ndarray:
        return np.zeros(len(z), dtype=bool) if self.gold is None else predicted_classes(z, self.classes, self.family) == self.gold


def _frame(
    npeff: Factorisation, k: int, kind: pd.Categorical, signed: np.ndarray, sets: dict[str, np.ndarray], rows: np.ndarray, judge: _Judge,
    judged: list[dict[str, np.ndarray]],
) -> pd.DataFrame:  # fmt: skip
    """The rows of one component and direction, categories and small integers throughout."""
    examples = np.concatenate(list(sets.values()))
    at, times = np.searchsorted(rows, examples), len(signed)
    columns = {name: np.stack([one[name][at] for one in judged]).ravel() for name in judged[0]}
    unknown = np.tile(~judge.known[at], times)
    return pd.DataFrame({
        "component": np.full(times * len(at), k, dtype=np.int32),
        "direction": kind.repeat(times * len(at)),
        "strength": np.repeat(signed, len(at)),
        "set": pd.Categorical.from_codes(np.tile(np.repeat(np.arange(len(SETS)), [len(some) for some in sets.values()]), times), SETS),
        "example": np.tile(examples.astype(np.int32), times),
        "kl": columns["kl"],
        "log_odds": columns["log_odds"].astype(np.float32),
        "flip": columns["flip"],
        "correct": pd.arrays.BooleanArray(columns["correct"], unknown),
        "was_correct": pd.arrays.BooleanArray(np.tile(judge.was_correct[at], times), unknown.copy()),
        "norm": np.tile(npeff.norms[examples], times),
    })  # fmt: skip


def _name(kind: str | int) -> str:
    return kind if isinstance(kind, str) else f"component {kind}"


# ---------------------------------------------------------------------------------------------------------------- reading the table


@dataclass(frozen=True)
class _Means:
    """Means over the examples of one component, by set: first the observed one, then of every resample.

    Attributes
    ----------
    grid : one row a direction and signed strength, G in all.
    kl : set -> (1 + draws, G); norm : set -> (1 + draws, 1); sizes : set -> examples.
    """

    grid: pd.DataFrame
    kl: dict[str, np.ndarray]
    norm: dict[str, np.ndarray]
    sizes: dict[str, int]

    def ratios(self) -> dict[str, np.ndarray]:
        """Name -> (1 + draws, G): those of :func:`effects`."""
        plain = _divided(self.kl["top"], self.kl["baseline"])
        norms = _divided(self.norm["top"], self.norm["baseline"])
        own = self.grid[self.grid["direction"] == COMPONENT]
        at = pd.Series(own.index, index=own["strength"]).reindex(self.grid["strength"]).fillna(-1).to_numpy(dtype=int)
        advantage = _divided(plain[:, at], plain)
        advantage[:, at < 0] = np.nan  # the component was not run at that strength
        matched_labels = _divided(self.kl["top"], self.kl["label_matched"])
        return {"kl_ratio": plain, "label_ratio": matched_labels, "kl_ratio_per_norm": _divided(plain, norms), "advantage": advantage}

    def along(self, kind: str, sign: float) -> np.ndarray:
        """Places of one direction's strengths of one sign, smallest first."""
        found = self.grid[(self.grid["direction"] == kind) & (np.sign(self.grid["strength"]) == sign)]
        return found["strength"].abs().sort_values().index.to_numpy()


def _resampled(table: pd.DataFrame, draws: int, seed: int) -> Iterator[tuple[int, _Means]]:
    """Component -> means."""
    for k, part in table.groupby("component", observed=True):
        # Not a pivot table, which would average what must be one row.
        wide = part.pivot(index=["direction", "strength"], columns=["set", "example"], values="kl").sort_index(axis=1)  # noqa: PD010
        norms = part.drop_duplicates(["set", "example"]).set_index(["set", "example"])["norm"].reindex(wide.columns)
        rng = np.random.default_rng([seed, int(k)])
        found: dict[str, dict] = {"kl": {}, "norm": {}, "sizes": {}}
        for name in SETS:
            here = (wide.columns.get_level_values("set") == name).nonzero()[0]
            n = found["sizes"][name] = len(here)
            if n == 0:
                found["kl"][name], found["norm"][name] = np.full((draws + 1, len(wide)), np.nan), np.full((draws + 1, 1), np.nan)
                continue
            times = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=draws)]) / n
            found["kl"][name] = times @ wide.iloc[:, here].to_numpy().T
            found["norm"][name] = times @ norms.iloc[here].to_numpy()[:, None]
        grid = wide.index.to_frame(index=False).astype({"direction": str})
        yield int(k), _Means(grid, **found)


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient a/b, missing where b is zero."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _matched_to(means: _Means, on: str) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """Control and sign by control and sign: its kind, the places of the component's strengths, and columns of :func:`matched`, (1 + draws, S)."""
    ratio, strengths = means.ratios()["kl_ratio"], means.grid["strength"].abs().to_numpy()
    for kind in means.grid["direction"].unique():
        for sign in (-1.0, 1.0) if kind != COMPONENT else ():
            own, other = means.along(COMPONENT, sign), means.along(kind, sign)
            if not len(own) or not len(other):
                continue
            target, curve = (means.kl[on.removeprefix("kl_")][:, at] for at in (own, other))
            read = _reader(curve, target)
            top, baseline = read(means.kl["top"][:, other]), read(means.kl["baseline"][:, other])
            yield kind, own, {
                "matched_strength": sign * read(np.broadcast_to(strengths[other], curve.shape)),
                "kl_top": means.kl["top"][:, own], "kl_top_control": top, "kl_baseline": means.kl["baseline"][:, own],
                "kl_baseline_control": baseline, "kl_ratio": ratio[:, own], "kl_ratio_control": _divided(top, baseline),
                "advantage": _divided(ratio[:, own], _divided(top, baseline)),
            }  # fmt: skip


def _reader(curve: np.ndarray, target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that reads other curves (draws, T) where ``curve`` (draws, T), at rising strengths, first reaches each ``target`` (draws, S).

    Straight lines between the logarithms, (draws, S); missing where it does not reach it, or begins above.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        y, t = np.log(curve), np.log(target)
        reached = y[:, None, :] >= t[:, :, None]
        after = reached.argmax(2)
        before = np.maximum(after - 1, 0)
        low, high = np.take_along_axis(y, before, 1), np.take_along_axis(y, after, 1)
        share = np.where(after > 0, (t - low) / (high - low), np.where(low == t, 0.0, np.nan))
        share = np.where(reached.any(2) & np.isfinite(low), share, np.nan)

    def read(other: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.log(other)
            return np.exp((1 - share) * np.take_along_axis(z, before, 1) + share * np.take_along_axis(z, after, 1))

    return read


def _interval(values: np.ndarray, least: float = 1.0) -> np.ndarray:
    """(2, G) ends of the interval from (1 + draws, G), the first of which was observed; missing where a smaller share than ``least`` has a value."""
    drawn = values[1:]
    found = np.full((2, values.shape[1]), np.nan)
    there = ~np.isnan(drawn)
    enough = (there.mean(0) >= least) & ~np.isnan(values[0]) if len(drawn) else np.zeros(values.shape[1], dtype=bool)
    if enough.any():
        found[:, enough] = np.nanquantile(drawn[:, enough], INTERVAL, axis=0)
    return found


def _median(values: np.ndarray, axis: int) -> np.ndarray:
    """Median of what is there."""
    return np.ma.median(np.ma.masked_invalid(values), axis=axis).filled(np.nan)


def _numbers(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _check_table(table: pd.DataFrame, on: str | None = None) -> None:
    missing = [name for name in ("component", "direction", "strength", "set", "example", "kl", "norm") if name not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(map(repr, missing))}: give what sweep returned")
    if not (table["direction"] == COMPONENT).any():
        raise ValueError("the table has no row of a component's own direction: give what sweep returned")
    if table.duplicated(["component", "direction", "strength", "set", "example"]).any():
        raise ValueError("the table has the same component, direction, strength, set and example twice: of two sweeps that overlap, drop duplicates")
    curves = [f"kl_{name}" for name in SETS]
    if on is not None and on not in curves:
        raise ValueError(f"on={on!r}: choose one of {', '.join(map(repr, curves))}")
