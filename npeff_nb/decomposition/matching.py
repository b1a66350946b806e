"""Which component of one decomposition is which of another.

A component is a term W_·j ⊗ h_jh_jᵀ: a direction, and the examples that use it.  Two terms are the same when both agree, so a pair's *agreement* is

    |cos(h_a, h_b)| · max(0, corr(W_a, W_b)),

as in the congruence of Tucker (1951) and the factor match score of tensor decompositions (Acar, Dunlavy and Kolda 2011), which multiply the cosines
of all modes.  The sign of a direction is a convention, hence |cos|; coefficients are never negative, so any two have a positive cosine and
correlation is what tells more than chance.  Matched is by the product: directions that nearly coincide are told apart by who uses them, components
with the same users by where they point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

TIE = 1e-6
"""How much directions alone count: it decides only where coefficients agree in nothing, as for components without users."""


def match(a: Factorisation, b: Factorisation, X: Any = None) -> pd.DataFrame:
    """Pairs components of two decompositions one to one, so that their agreement is as large as it can be in sum (Hungarian method).

    Parameters
    ----------
    a, b : fitted, over the same features.  With other numbers of components, some of the one that has more stay alone and are left out.
    X : Fishers whose coefficients are compared, as :meth:`NPEFF.transform <npeff_nb.NPEFF.transform>` gives them; by default both were fitted on
        the same examples.

    Returns
    -------
    DataFrame, one row a pair, by ``a``: component ``a`` and ``b``; ``direction``, |cos| of the two; ``coefficients``, correlation over the examples,
    0 where it is negative or none; ``agreement``, the product; ``same_sign``, whether their directions point to the same side.

    Raises
    ------
    ValueError
        Decompositions in other coordinates, or of other examples without ``X``.
    """
    check_is_fitted(a, "components_")
    check_is_fitted(b, "components_")
    if a.feature_map is not None and b.feature_map is not None and a.feature_map.id != b.feature_map.id:
        raise ValueError("a and b have other coordinates, so their directions cannot be compared; extract both with nb.extract_fishers(..., like=)")
    if a.components_.shape[1] != b.components_.shape[1]:
        raise ValueError(
            f"a has {a.components_.shape[1]} features, b {b.components_.shape[1]}: only directions over the same features can be compared"
        )
    if X is not None:
        return pairs(a.components_, a.transform(X), b.components_, b.transform(X))
    if len(a.coefficients_) != len(b.coefficients_) or not same_examples(a, b):
        raise ValueError(
            f"a was fitted on {len(a.coefficients_)} examples and b on {len(b.coefficients_)} others: give X, the Fishers on which to compare them"
        )
    return pairs(a.components_, a.coefficients_, b.components_, b.coefficients_)


def pairs(Ha: np.ndarray, Wa: np.ndarray, Hb: np.ndarray, Wb: np.ndarray) -> pd.DataFrame:
    """:func:`match` for unit-norm components (r, d) and coefficients (n, r) of the same examples."""
    cosines, together = Ha @ Hb.T, np.maximum(correlations(Wa, Wb), 0)
    directions = np.minimum(np.abs(cosines), 1)
    one, other = linear_sum_assignment(directions * together + TIE * directions, maximize=True)
    return pd.DataFrame({
        "a": one, "b": other, "direction": directions[one, other], "coefficients": together[one, other],
        "agreement": directions[one, other] * together[one, other], "same_sign": cosines[one, other] >= 0,
    })  # fmt: skip


def correlations(Wa: np.ndarray, Wb: np.ndarray) -> np.ndarray:
    """Correlation of coefficients (n, r) and (n, s) over the examples, (r, s) in [−1, 1]; 0 with what is the same for all examples."""
    return np.clip(_standard(Wa).T @ _standard(Wb), -1, 1)


def _standard(W: np.ndarray) -> np.ndarray:
    """Columns centred, with unit norm; zero where nothing varies but by rounding."""
    centred = W - W.mean(0)
    norms = np.linalg.norm(centred, axis=0)
    return np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 1e-12 * np.linalg.norm(W, axis=0))


def same_examples(a: Factorisation, b: Factorisation) -> bool:
    """Whether both were fitted on the same table, as far as can be told."""
    return a.examples is None or b.examples is None or a.examples.equals(b.examples)
