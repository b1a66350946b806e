"""A diagonal component as an edit: the Fisher-weighted merge of the model with a copy of itself that was moved where the component is.

A D-NPEFF component h (:class:`~npeff_nb.DNPEFF`) says how much each parameter matters, not which way to go.  The way is the sign pattern s of the
loss's gradient on the examples that use it most.  The model θ, weighted by the data set's diagonal Fisher f, is merged with θ − δs, weighted by h:

    θ' = [(1−λ) f̃ θ + λh (θ − δs)] / [(1−λ) f̃ + λh] = θ − δ s · λh / ((1−λ) f̃ + λh),        f̃ = max(f, floor),        0 < λ < 1,

h and f at unit L2 norm.  Source: Matena and Raffel, arXiv 2310.04649 (D-NPEFF perturbations).  The reference implementation takes the *smaller* of f
and the floor, an inversion that also admits 0/0; here it is the larger.  The edit is linear in δ: a direction that depends on λ, of strength δ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor, nn

from npeff_nb.directions.lift import norm, pull_back
from npeff_nb.directions.perturb import edit_sets, edited_logits, kl, kl_ratio
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.predictions import gold_labels
from npeff_nb.fisher.subject import Subject

if TYPE_CHECKING:
    from npeff_nb.decomposition.diagonal import DNPEFF
    from npeff_nb.fisher.pefs import PEFs

FLOOR = 1e-6
"""Least entry of the unit-norm Fisher, as in the reference implementation."""
MIXES = (0.05, 0.2, 0.5, 0.8, 0.95)
"""λ that are tried, in this order, within the reference's range of 0.035 to 0.965: the smallest moves only what the component weighs far more than
the data set does."""
FIRST_STEP = 0.01
"""Where a search begins: an edit of this share of the length of the parameters that take part."""
GROWTH = 4.0
"""Factor between steps while the range of KL is looked for, and ..."""
REACH = 12
"""... how often at most, up or down: seven orders of magnitude."""
HALVINGS = 30
"""Of the bracket's log: what is left of one factor 4 then is below the rounding of float32."""
N_TOP, N_BASELINE = 32, 96


class MergeDirection(dict[str, Tensor]):
    """θ' − θ for δ = 1: parameter name -> tensor of its shape, for :func:`npeff_nb.perturb`, whose strength is then δ.

    Attributes
    ----------
    mix : λ.
    gold : share of the examples behind the sign pattern whose gold label was known; the loss of the others is that of the predicted label.
    """

    mix: float
    gold: float


@dataclass(frozen=True)
class Merge:
    """A merge whose KL on the component's top examples lies in a given range.

    Attributes
    ----------
    direction, step : ``nb.perturb(model, merge.direction, merge.step)`` is the edit; ``step`` is δ, negative for the opposite edit.
    mix : λ.
    kl_top, kl_baseline : mean KL(merged ‖ original) in nats on the two sets, and
    kl_ratio : theirs; None where the baseline did not move.
    top, baseline : the examples, disjoint; the baseline drawn at random from all that are not among the top.
    evaluations : how often the model was run on the top set.
    """

    direction: MergeDirection
    step: float
    mix: float
    kl_top: float
    kl_baseline: float
    kl_ratio: float | None
    top: np.ndarray
    baseline: np.ndarray
    evaluations: int


@dataclass(frozen=True)
class _Merging:
    """All that a merge needs but λ: by parameter h, f̃ and the sign of −∂loss/∂θ; and the model with its examples."""

    k: int
    subject: Subject
    h: dict[str, Tensor]
    fisher: dict[str, Tensor]
    downhill: dict[str, Tensor]
    scales: dict[str, float]
    gold: float

    @property
    def size(self) -> float:
        """Length of the parameters that take part."""
        return norm({name: p.detach() for name, p in self.subject.model.named_parameters() if name in self.h})

    def direction(self, mix: float) -> MergeDirection:
        if not 0 < mix < 1:
            raise ValueError(f"mix={mix!r}: λ lies between 0 (the model as it is) and 1 (moved wherever the component is)")
        found = MergeDirection()
        for name, h in self.h.items():
            # In the coordinates of the Fisher, θ/scale, and back from there.
            found[name] = self.scales[name] * self.downhill[name] * (mix * h / ((1 - mix) * self.fisher[name] + mix * h))
        if not any(value.any() for value in found.values()):
            raise ValueError(f"component {self.k} moves nothing: the loss of its top examples has no gradient where the component has entries")
        found.mix, found.gold = float(mix), self.gold
        return found


def merge_direction(
    dnpeff: DNPEFF, k: int, fishers: PEFs, mix: float = 0.5, *, model: nn.Module | None = None, n_top: int = N_TOP, floor: float = FLOOR
) -> MergeDirection:
    """The merge's direction −s · λh / ((1−λ) f̃ + λh) of component ``k``.

    A positive strength lowers the loss of the component's top examples (to first order), a negative one raises it.  Where the Fishers were taken with
    ``scale=``, the merge is one of θ/scale, and the direction is in θ itself.

    Parameters
    ----------
    fishers : the PEFs of the fit, or others of the same parameters, with the data set's diagonal Fisher (``diagonal=``).  Their model is taken where
        ``dnpeff`` has none, as after loading without :meth:`~npeff_nb.DNPEFF.attach`.
    mix : λ, the component's weight in the merge.
    n_top : examples behind the sign pattern, those with the largest coefficients.  Their loss is that of the gold label where column ``label`` has
        one that is a class of the model, else (and for independent labels without ``fisher="empirical"``) that of the prediction.
    floor : least entry of f̃, for the Fisher at unit L2 norm.

    Raises
    ------
    ValueError
        When there is no such component, no diagonal Fisher, no model, or nothing that moves; when ``mix`` or ``floor`` is out of range.
    """
    return _merging(dnpeff, k, fishers, model, n_top, floor).direction(mix)


def fisher_merge(
    dnpeff: DNPEFF,
    k: int,
    fishers: PEFs,
    kl_range: tuple[float, float],
    *,
    mixes: Sequence[float] = MIXES,
    sign: int = 1,
    model: nn.Module | None = None,
    n_top: int = N_TOP,
    n_baseline: int = N_BASELINE,
    floor: float = FLOOR,
    seed: int | None = None,
) -> Merge:
    """The first λ of ``mixes`` for which a step δ brings the mean KL on the top examples into ``kl_range``, with that step.

    For each λ the step grows or shrinks by factors of 4 until the KLs of two steps have the range between them, and their ratio is halved then: no
    randomness, and no trust that KL rises everywhere.  Only the top set steers the search; the baseline is looked at once, at the end.

    Parameters
    ----------
    kl_range : (low, high) in nats, 0 < low < high.
    sign : +1 as in the paper, towards a lower loss of the top examples, or −1.
    seed : of the baseline's draw; by default the component's number.
    dnpeff, k, fishers, model, n_top, floor : see :func:`merge_direction`.

    Raises
    ------
    ValueError
        When no λ reaches the range; the message says how far each came.
    """
    low, high = kl_range
    if not 0 < low < high < np.inf:
        raise ValueError(f"kl_range={kl_range!r}: give two numbers of nats with 0 < low < high, such as (0.05, 0.1)")
    if sign not in (1, -1):
        raise ValueError(f"sign={sign!r}: 1 lowers the loss of the top examples, -1 raises it")
    if not len(mixes):
        raise ValueError("mixes is empty: give at least one λ between 0 and 1")
    merging = _merging(dnpeff, k, fishers, model, n_top, floor)
    sets = edit_sets(dnpeff.coefficients_[:, merging.k], n_top, n_baseline, merging.k if seed is None else seed, dnpeff.norms > 0)
    subject, family = merging.subject, dnpeff.family
    original = subject.logits(sets.top).numpy()
    failures, evaluations = [], 0
    for mix in mixes:
        direction = merging.direction(mix)

        def on_top(step: float, direction: MergeDirection = direction) -> float:
            nonlocal evaluations
            evaluations += 1
            return float(kl(edited_logits(subject, direction, [sign * step], sets.top)[0], original, family).mean())

        step, reached, why = _search(on_top, FIRST_STEP * merging.size / norm(direction), low, high)
        if step is None:
            failures.append(f"λ = {mix:g}: {why}")
            continue
        still = subject.logits(sets.baseline).numpy()
        below = kl(edited_logits(subject, direction, [sign * step], sets.baseline)[0], still, family)
        ratio = kl_ratio(np.array([reached]), below) if len(below) else None
        mean = float(below.mean()) if len(below) else float("nan")
        return Merge(direction, sign * step, float(mix), reached, mean, ratio, sets.top, sets.baseline, evaluations)
    raise ValueError(
        f"no step brings the mean KL on the {len(sets.top)} top examples of component {merging.k} into {low:g} to {high:g} nats: "
        f"{'; '.join(failures)}. Ask for another range or give other mixes="
    )


def _search(value: Callable[[float], float], step: float, low: float, high: float) -> tuple[float | None, float, str]:
    """A step > 0 for which ``low`` ≤ value ≤ ``high``, its value, and, where none was found, why."""

    def at(step: float) -> float:
        found = value(step)
        return found if np.isfinite(found) else np.inf  # the model has left the numbers: far too much

    before, found = step, at(step)
    grows, furthest = found < low, found
    for _ in range(REACH):
        if low <= found <= high or (found > high) == grows:
            break
        before, step = step, step * (GROWTH if grows else 1 / GROWTH)
        found = at(step)
        furthest = max(furthest, found) if grows else min(furthest, found)
    if low <= found <= high:
        return step, found, ""
    if (found > high) != grows:
        return None, furthest, f"KL {'rises no higher' if grows else 'falls no lower'} than {furthest:.3g} up to a step of {step:.3g}"
    below, above = (before, step) if grows else (step, before)
    for _ in range(HALVINGS):
        step = float(np.sqrt(below * above))
        found = at(step)
        if low <= found <= high:
            return step, found, ""
        below, above = (step, above) if found < low else (below, step)
    return None, found, f"KL jumps over the range at a step of {step:.3g}"


def _merging(dnpeff: DNPEFF, k: int, fishers: PEFs, model: nn.Module | None, n_top: int, floor: float) -> _Merging:
    k = dnpeff.check_component(k)
    if dnpeff.parameters is None:
        raise ValueError("this D-NPEFF was fitted on an array, so its columns are no parameters of a model: fit it on PEFs to merge along it")
    if not floor > 0:
        raise ValueError(f"floor={floor!r}: the Fisher's least entry must be above 0, or what neither side weighs would be 0/0")
    table = dnpeff.parameters
    if any(list(table[column]) != list(fishers.parameters[column]) for column in ("name", "shape", "scale")):
        raise ValueError("these Fishers are over other parameters than the D-NPEFF; give those that it was fitted on")
    subject = _subject(dnpeff, fishers, model)
    names = list(table["name"])
    fishers.diagonal_by_name()  # says what to do where there is none
    f = np.array(fishers.diagonal, dtype=np.float32)
    length = float(np.sqrt(np.square(f, dtype=np.float64).sum()))
    if not 0 < length < np.inf:
        raise ValueError(f"the data set's diagonal Fisher has length {length:g}: there is nothing to merge against")
    h = np.zeros(dnpeff.n_parameters_, dtype=np.float32)
    row = dnpeff.components_[[k]]
    h[dnpeff.kept_columns_] = (row.toarray() if issparse(row) else row)[0]

    def by_name(values: np.ndarray) -> dict[str, Tensor]:
        parts = np.split(values, np.cumsum(table["numel"])[:-1])
        return {
            name: torch.from_numpy(part.reshape(shape)).to(subject.device) for name, shape, part in zip(names, table["shape"], parts, strict=True)
        }

    rows = edit_sets(dnpeff.coefficients_[:, k], n_top, 0, eligible=dnpeff.norms > 0).top
    if not len(rows):
        raise ValueError(f"component {k} is used by no example, so no loss says which way to move")
    downhill, gold = _downhill(dnpeff, subject, names, rows)
    scales = dict(zip(names, table["scale"], strict=True))
    return _Merging(k, subject, by_name(h), by_name((f / length).clip(floor)), downhill, scales, gold)


def _downhill(dnpeff: DNPEFF, subject: Subject, names: list[str], rows: np.ndarray) -> tuple[dict[str, Tensor], float]:
    """The sign of Σ_i ∇ log p(label_i) over the examples ``rows``, by parameter, and the share of gold labels among them."""
    family = subject.recipe.family
    # The prediction over all that the model itself has, whatever was kept for the Fishers.
    plain = Subject(subject.model, subject.batches, subject.output, Recipe(family=family), subject.tokenizer)
    z = plain.logits(rows)
    labels = Recipe(family=family, fisher="predicted").decide(z, rows)["labels"]
    known = np.zeros(len(rows), dtype=bool)
    named = None if "outcomes" in dnpeff.choices else gold_labels(dnpeff.examples, dnpeff.classes)
    if subject.gold is not None:
        labels, known = subject.gold[rows].reshape(len(rows), -1), ~known
    elif named is not None and family == "categorical":
        number = {name: at for at, name in enumerate(dnpeff.classes)}
        known = np.array([name in number for name in named[rows]])
        labels[known, 0] = [number[name] for name in named[rows][known]]
    chosen = np.zeros((len(subject.batches), labels.shape[1]), dtype=np.int32)
    chosen[rows] = labels
    # ∇ log p(label) is the one row of an "empirical" Fisher.
    plain.recipe, plain.choices = Recipe(family=family, fisher="empirical"), {"labels": chosen}
    gradient = pull_back(plain, names, rows, np.ones((len(rows), 1)), z.numpy())
    return {name: value.sign_() for name, value in gradient.items()}, float(known.mean())


def _subject(dnpeff: DNPEFF, fishers: PEFs, model: nn.Module | None) -> Subject:
    subject = dnpeff.subject
    if subject is None and fishers.subject is not None and np.array_equal(fishers.logits, dnpeff.logits):
        subject = fishers.subject
    if subject is None:
        raise ValueError(
            "there is no model at hand for the examples of this D-NPEFF: call dnpeff.attach(model, tokenizer), or give the Fishers that it was "
            "fitted on, after fishers.attach(model, tokenizer)"
        )
    return subject if model is None or model is subject.model else subject.with_model(model)
