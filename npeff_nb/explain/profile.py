"""The portrait of one component: where it lives, which tokens it hears, what happens when it is turned.

A profile is plain data (lists, numbers, strings), so that it is saved with the decomposition, travels in a bundle and needs no torch to be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from npeff_nb._progress import Progress
from npeff_nb.directions.lift import Direction, direction, random_direction, subject_of
from npeff_nb.directions.perturb import EditSets, edit_sets, edited_logits, kl, kl_ratio
from npeff_nb.explain.describe import SHOWN
from npeff_nb.explain.tokens import ELSEWHERE, token_shares, words
from npeff_nb.fisher.batches import TextBatches
from npeff_nb.fisher.predictions import probabilities

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

N_TOP, N_BASELINE = 32, 96
"""Sizes of the sets on which an edit is judged."""
STRENGTHS = (-1.0, -0.6, -0.3, -0.15, 0.0, 0.15, 0.3, 0.6, 1.0)
"""Grid of strengths (L2) on which the model is really run."""
JUDGED_AT = 0.3
"""Strength at which the KL ratio of a component is reported."""
RANDOM_SEED = 0


def profile(npeff: Factorisation, k: int, progress: Progress | None = None) -> dict[str, Any]:
    """Everything a picture of component ``k`` needs; computed once and kept in ``npeff.profiles``.

    Parameters
    ----------
    progress : called as (done, total, what comes next); may raise :class:`~npeff_nb._progress.Cancelled`.

    Raises
    ------
    ValueError
        When the component does not exist or there is no model (:func:`npeff_nb.directions.lift.subject_of`).
    """
    k = npeff.check_component(k)
    if k in npeff.profiles:
        return npeff.profiles[k]
    subject = subject_of(npeff)
    steps = 3 + len(STRENGTHS)
    tell = progress or (lambda done, total, what: None)

    tell(0, steps, "finding the component's direction among the weights")
    if not len(npeff.top_examples(k, 1)):
        raise ValueError(f"component {k} is used by no example, so it has no direction and no profile")
    if len(npeff.coefficients_) < 2:
        raise ValueError("this decomposition has 1 example: an edit is judged against other examples, so a profile needs at least 2")
    found = direction(npeff, k)
    shown = npeff.top_examples(k, SHOWN)
    tell(1, steps, "splitting coefficients over tokens")
    result = {
        "component": k,
        "direction": {"cosine": found.cosine, "examples": found.examples},
        "energy": [{"name": name, "share": float(value.double().square().sum())} for name, value in found.items()],
        "tokens": _tokens(npeff, found, shown) if isinstance(subject.batches, TextBatches) else None,
    }
    sets = edit_sets(npeff.coefficients_[:, k], N_TOP, N_BASELINE, seed=k, eligible=npeff.norms > 0)
    result["edit"] = _edit(npeff, found, sets, shown, lambda done, what: tell(2 + done, steps, what))
    tell(steps, steps, "done")
    npeff.profiles[k] = result
    return result


def profile_all(npeff: Factorisation, components: Iterable[int] | None = None, progress: bool = True) -> None:
    """Profiles of several components (all by default), with a progress bar; those already there are kept."""
    chosen = range(len(npeff.components_)) if components is None else [npeff.check_component(k) for k in components]
    used = [k for k in chosen if len(npeff.top_examples(k, 1))]
    for k in tqdm(used, desc="Components", unit="component", disable=not progress):
        profile(npeff, k)


def _tokens(npeff: Factorisation, found: Direction, rows: np.ndarray) -> dict[str, Any]:
    subject = subject_of(npeff)
    batches = subject.batches
    assert isinstance(batches, TextBatches), "tokens are split for texts only"
    out = {}
    for row, (shares, rest) in token_shares(subject, found, rows).items():
        spoken, asides = words(subject.tokenizer, batches.texts[row], shares, None if batches.pairs is None else batches.pairs[row],
                               list(batches.encoded["input_ids"][row]))  # fmt: skip
        if abs(rest) > 1e-9:
            asides.append({"name": ELSEWHERE, "share": rest})
        out[str(row)] = {"words": spoken, "asides": asides}
    return out


def _edit(npeff: Factorisation, found: Direction, sets: EditSets, shown: np.ndarray, tell: Callable[[int, str], None]) -> dict[str, Any]:
    subject = subject_of(npeff)
    rows = np.union1d(np.union1d(sets.top, sets.baseline), shown)
    at = {int(row): i for i, row in enumerate(rows)}
    top, baseline, seen = ([at[int(r)] for r in some] for some in (sets.top, sets.baseline, shown))
    # The unperturbed model in the same batches: what is measured is the edit, not a difference of paddings.
    original = subject.logits(rows).numpy()
    random = random_direction(found, RANDOM_SEED)

    moved, random_top = [], []
    for number, strength in enumerate(STRENGTHS):
        tell(number, f"running the model at strength {strength:+g}")
        if strength == 0:
            moved.append(original)
            random_top.append(np.zeros(len(top)))
            continue
        moved.append(edited_logits(subject, found, [strength], rows)[0])
        random_top.append(kl(edited_logits(subject, random, [strength], sets.top)[0], original[top], npeff.family))
    # The control's own ratio needs the baseline too, at the strength that is judged.
    judged = {sign: STRENGTHS.index(float(f"{sign}{JUDGED_AT}")) for sign in "+-"}
    random_baseline = {
        sign: kl(edited_logits(subject, random, [STRENGTHS[i]], sets.baseline)[0], original[baseline], npeff.family) for sign, i in judged.items()
    }
    distances = [kl(z, original, npeff.family) for z in moved]
    p = np.stack([probabilities(z[seen], npeff.family) for z in moved])
    return {
        "strengths": list(STRENGTHS),
        "judged_at": JUDGED_AT,
        "top": sets.top.tolist(),
        "baseline": sets.baseline.tolist(),
        "kl_top": [float(d[top].mean()) for d in distances],
        "kl_baseline": [float(d[baseline].mean()) for d in distances],
        "kl_random": [float(d.mean()) for d in random_top],
        "kl_ratio": {sign: kl_ratio(distances[i][top], distances[i][baseline]) for sign, i in judged.items()},
        "kl_ratio_random": {sign: kl_ratio(random_top[i], random_baseline[sign]) for sign, i in judged.items()},
        "flips_top": {sign: float((moved[i][top].argmax(1) != original[top].argmax(1)).mean()) for sign, i in judged.items()},
        "flips_baseline": {sign: float((moved[i][baseline].argmax(1) != original[baseline].argmax(1)).mean()) for sign, i in judged.items()},
        "shown": shown.tolist(),
        "probabilities": np.round(p, 5).tolist(),
    }
