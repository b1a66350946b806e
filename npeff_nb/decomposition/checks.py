"""What to know of a decomposition before believing it, in one call: do its components come back, and what would chance explain?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npeff_nb.decomposition.null import explained_by_chance
from npeff_nb.decomposition.redundancy import redundancy
from npeff_nb.decomposition.stability import stability

if TYPE_CHECKING:
    from npeff_nb._progress import Progress
    from npeff_nb.decomposition.factorisation import Factorisation

SURE = 0.8
"""A component that comes back with at least this agreement is counted as one that does."""


def checks(npeff: Factorisation, X: Any, *, seeds: int = 5, random_state: int = 0, progress: bool | Progress = True) -> dict[str, Any]:
    """Plain numbers: stability over seeds, what as many components explain of Fishers with random directions
    (:func:`~npeff_nb.decomposition.null.null_fishers`), near-duplicates, components without users.
    """
    found = stability(X, npeff, seeds=seeds, random_state=random_state, progress=progress)
    chance = explained_by_chance(X, len(npeff.components_), random_state=random_state, progress=progress)
    return {
        "stability": {
            "seeds": seeds,
            "median": found.median,
            "components_that_come_back": int((found.table["stability"] >= SURE).sum()),
            "of_each": found.table["stability"].round(4).tolist(),
        },
        "explained_by_chance": float(chance["training"].mean()),
        "near_duplicates": redundancy(npeff)[["a", "b"]].to_numpy().tolist(),
        "dead_components": npeff.dead_components_.tolist(),
    }
