"""The portrait of one component: where it lives, which tokens it hears, what happens when it is turned.

A profile is plain data (lists, numbers, strings), so that it is saved with the decomposition, travels in a bundle and needs no torch to be shown.  It
is made in stages, and what is known after each can be shown while the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from npeff_nb._progress import Bar, Progress
from npeff_nb.directions.lift import Direction, direction, random_direction, subject_of
from npeff_nb.directions.perturb import EditSets, edit_sets, edited_logits, kl, kl_ratio
from npeff_nb.directions.preview import response, trust
from npeff_nb.explain.describe import SHOWN
from npeff_nb.explain.packed import pack
from npeff_nb.explain.tokens import token_shares, words_of_example
from npeff_nb.fisher.batches import TextBatches
from npeff_nb.fisher.predictions import decided, probabilities

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

N_TOP, N_BASELINE = 32, 96
"""Sizes of the sets on which an edit is judged."""
STRENGTHS = (-1.0, -0.6, -0.3, -0.15, -0.05, 0.0, 0.05, 0.15, 0.3, 0.6, 1.0)
"""Grid of strengths (L2) on which the model is really run; a first-order preview ends to hold somewhere about the innermost."""
FIRST = (0.0, -0.3, 0.3, -0.15, 0.15, -0.05, 0.05)
"""Those that are run first: where most components act, so that a slider soon has the truth on both sides of it."""
INNERMOST = 0.05
"""How far a preview holds is known once the model was run here: from runs further out it would be read off far too long a line."""
JUDGED_AT = 0.3
"""Strength at which the KL ratio of a component is reported."""
RANDOM_SEED = 0
KEPT_NUMBERS = 16384
"""Logits (examples times classes) up to which they are kept in the profile at every strength; beyond it the shown examples' probabilities are."""


def profile(
    npeff: Factorisation,
    k: int,
    progress: Progress | None = None,
    *,
    on_part: Callable[[dict[str, Any]], None] | None = None,
    lift: Callable[[int], Direction] | None = None,
) -> dict[str, Any]:
    """Everything a picture of component ``k`` needs; computed once and kept in ``npeff.profiles``, whole or not at all.

    Parameters
    ----------
    progress : called as (done, total, what comes next); may raise :class:`~npeff_nb._progress.Cancelled`.  The model is nobody's meanwhile.
    on_part : called after every stage with the profile as far as it is known: ``tokens`` is None before they are split, ``edit`` before the preview;
        then its grid of strengths grows.
    lift : gives the component's direction, for who keeps directions.

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
    sets, shown = judged(npeff, k)
    found = direction(npeff, k) if lift is None else lift(k)
    result: dict[str, Any] = {
        "component": k,
        "direction": {"cosine": found.cosine, "examples": found.examples},
        "energy": [{"name": name, "share": float(value.double().square().sum())} for name, value in found.items()],
        "tokens": None,
        "edit": None,
    }

    def know(**more: Any) -> None:
        result.update(more)
        if on_part is not None:
            on_part(dict(result))

    know()
    tell(1, steps, "splitting coefficients over tokens")
    if isinstance(subject.batches, TextBatches):
        know(tokens=_tokens(npeff, found, shown))
    tell(2, steps, "first-order response to the edit")
    edit = _Edit(npeff, found, sets, shown)
    know(edit=edit.told())
    for number, strength in enumerate((*FIRST, *(s for s in STRENGTHS if s not in FIRST))):
        tell(3 + number, steps, f"running the model at strength {strength:+g}" if strength else "running the model as it is")
        edit.run(strength)
        know(edit=edit.told())
    tell(steps, steps, "done")
    npeff.profiles[k] = result
    return result


def judged(npeff: Factorisation, k: int) -> tuple[EditSets, np.ndarray]:
    """The examples on which an edit along component ``k`` is judged, and those that are shown; of its profile, where it has one.

    Raises
    ------
    ValueError
        When no example uses the component, or there is nothing to compare with.
    """
    edit = (npeff.profiles.get(k) or {}).get("edit")
    if edit is not None:
        return EditSets(np.asarray(edit["top"], dtype=int), np.asarray(edit["baseline"], dtype=int)), np.asarray(edit["shown"], dtype=int)
    if not len(npeff.top_examples(k, 1)):
        raise ValueError(f"component {k} is used by no example, so it has no direction and no profile")
    if len(npeff.coefficients_) < 2:
        raise ValueError("this decomposition has 1 example: an edit is judged against other examples, so a profile needs at least 2")
    return edit_sets(npeff.coefficients_[:, k], N_TOP, N_BASELINE, seed=k, eligible=npeff.norms > 0), npeff.top_examples(k, SHOWN)


def in_order(sets: EditSets, shown: np.ndarray) -> np.ndarray:
    """All these examples once: the top set, then the baseline, then what is shown besides."""
    both = np.concatenate([sets.top, sets.baseline])
    return np.concatenate([both, np.setdiff1d(shown, both)]).astype(int)


def profile_all(npeff: Factorisation, components: Iterable[int] | None = None, progress: bool = True) -> None:
    """Profiles of several components (all by default), with a progress bar; those already there are kept."""
    chosen = range(len(npeff.components_)) if components is None else [npeff.check_component(k) for k in components]
    used = [k for k in chosen if len(npeff.top_examples(k, 1))]
    with Bar(progress, len(used), "Components", "component") as bar:
        for k in used:
            profile(npeff, k)
            bar.add(1)


def _tokens(npeff: Factorisation, found: Direction, rows: np.ndarray) -> dict[str, Any]:
    subject = subject_of(npeff)
    out = {}
    for row, (shares, rest) in token_shares(subject, found, rows).items():
        spoken, asides = words_of_example(subject, row, shares, rest)
        out[str(row)] = {"words": spoken, "asides": asides}
    return out


class _Edit:
    """The component as an edit: its first-order response, and the model really run at the strengths so far."""

    def __init__(self, npeff: Factorisation, found: Direction, sets: EditSets, shown: np.ndarray) -> None:
        self.npeff, self.found, self.sets, self.shown = npeff, found, sets, shown
        self.subject, self.random = subject_of(npeff), random_direction(found, RANDOM_SEED)
        self.rows = in_order(sets, shown)
        self.top, self.baseline = slice(0, len(sets.top)), slice(len(sets.top), len(sets.top) + len(sets.baseline))
        self.z, self.dz = response(npeff, found, self.rows)
        self.moved: dict[float, np.ndarray] = {}
        self.kl_random: dict[float, np.ndarray] = {}  # of the top set; where edits are judged, of the baseline too

    def run(self, strength: float) -> None:
        """The model at one more strength; at 0 first, in the same batches: what is measured is the edit, not a difference of paddings."""
        if strength == 0:
            self.moved[0.0] = self.subject.logits(self.rows).numpy()
            self.kl_random[0.0] = np.zeros(len(self.sets.top))
            return
        found = edited_logits(self.subject, self.found, [strength], self.rows)[0]
        if not np.isfinite(found).all():
            return  # moved out of the range of the model's numbers: nothing can be drawn there
        self.moved[strength] = found
        # The control's own ratio needs the baseline too, at the strength that is judged.
        judged = np.arange(self.baseline.stop if abs(strength) == JUDGED_AT else self.top.stop)
        moved = edited_logits(self.subject, self.random, [strength], self.rows[judged])[0]
        self.kl_random[strength] = kl(moved, self.moved[0.0][judged], self.npeff.family)

    def told(self) -> dict[str, Any]:
        """As plain data."""
        family, grid = self.npeff.family, sorted(self.moved)
        small = self.z.size <= KEPT_NUMBERS and bool(np.isfinite(self.dz).all())
        distances = [kl(self.moved[s], self.moved[0.0], family) for s in grid]

        def at(figure: Callable[[float], float | None]) -> dict[str, float | None]:
            """A figure of each sign's judged strength, None as long as it was not run."""
            return {sign: figure(s) if (s := float(f"{sign}{JUDGED_AT}")) in self.moved else None for sign in "+-"}

        def ratio(s: float) -> float | None:
            return kl_ratio(distances[grid.index(s)][self.top], distances[grid.index(s)][self.baseline])

        def flips(s: float, some: slice) -> float:
            return float(changed(self.npeff, self.moved[s][some], self.moved[0.0][some]).mean())

        places = {int(row): at for at, row in enumerate(self.rows)}
        seen = [places[int(row)] for row in self.shown]
        return {
            "strengths": grid,
            "judged_at": JUDGED_AT,
            "top": self.sets.top.tolist(),
            "baseline": self.sets.baseline.tolist(),
            "kl_top": [float(d[self.top].mean()) for d in distances],
            "kl_baseline": [float(d[self.baseline].mean()) for d in distances],
            "kl_random": [float(self.kl_random[s][self.top].mean()) for s in grid],
            "kl_ratio": at(ratio),
            "kl_ratio_random": at(lambda s: kl_ratio(self.kl_random[s][self.top], self.kl_random[s][self.baseline])),
            "flips_top": at(lambda s: flips(s, self.top)),
            "flips_baseline": at(lambda s: flips(s, self.baseline)),
            "shown": self.shown.tolist(),
            "logits": pack(np.stack([self.moved[s] for s in grid], 1)) if small and grid else None,
            "probabilities": None if small else [np.round(probabilities(self.moved[s][seen], family), 5).tolist() for s in grid],
            "preview": {"logits": pack(self.z), "derivative": pack(self.dz), "trusted": self._trusted()} if small else None,
            "along": {},
        }

    def _trusted(self) -> list[float] | None:
        """Strengths between which the preview holds; the last that was run, where it holds on to the end."""
        if not {-INNERMOST, INNERMOST} <= set(self.moved):
            return None
        grid = [s for s in sorted(self.moved) if s]
        found = trust(self.z, self.dz, grid, np.stack([self.moved[s] for s in grid]), self.npeff.family)
        return [float(np.clip(one, grid[0], grid[-1])) for one in found]


def changed(npeff: Factorisation, moved: np.ndarray, original: np.ndarray) -> np.ndarray:
    """(m,) whether another prediction is made, from logits (m, c)."""
    other = decided(npeff, moved) != decided(npeff, original)
    return other if other.ndim == 1 else other.any(1)
