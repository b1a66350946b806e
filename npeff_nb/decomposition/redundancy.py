"""Components that nearly say the same: pairs whose directions almost coincide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from npeff_nb.decomposition.matching import correlations

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation


def redundancy(npeff: Factorisation, threshold: float = 0.9) -> pd.DataFrame:
    """Pairs of components whose directions have |cos| ≥ ``threshold``, closest first.

    Returns
    -------
    DataFrame with components ``a`` < ``b``; ``direction``, |cos| of the two; ``coefficients``, correlation over the examples: above zero they are
    used together and share one job between them, below zero examples use the one or the other; ``share``, what both have of the explained energy.
    A component that no example uses has no job to share and is left out (``npeff.dead_components_``).  No rows, and these columns, where there is
    no such pair.

    Raises
    ------
    ValueError
        A threshold that no |cos| can be compared with.
    """
    check_is_fitted(npeff, "components_")
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r}: |cos| of directions lies between 0 and 1; 0.9 is the default")
    alive = np.setdiff1d(np.arange(len(npeff.components_)), npeff.dead_components_)
    H, W, share = npeff.components_[alive], npeff.coefficients_[:, alive], npeff.component_shares_[alive]
    cosines = np.minimum(np.abs(H @ H.T), 1)
    a, b = np.triu_indices(len(alive), 1)
    # Rounding must not lose an exact copy at threshold 1.
    near = cosines[a, b] >= threshold - 1e-9
    a, b = a[near], b[near]
    explained = max(float(npeff.component_shares_.sum()), np.finfo(float).tiny)
    found = pd.DataFrame({
        "a": alive[a], "b": alive[b], "direction": cosines[a, b], "coefficients": correlations(W, W)[a, b],
        "share": (share[a] + share[b]) / explained,
    })  # fmt: skip
    return found.sort_values("direction", ascending=False, kind="stable", ignore_index=True)
