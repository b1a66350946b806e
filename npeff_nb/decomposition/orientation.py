"""Which way is up?  A Fisher does not know the sign of a direction; the predictions do.

To second order a step ±s along h changes a prediction alike, KL ≈ ½ s² κ₂.  The third order tells the two apart: for δ = ∂z/∂s along h and
p = softmax(z),

    KL(perturbed ‖ original) = ½ s² κ₂ + ⅓ s³ κ₃ + …,      κ_m = Σ_y p_y (δ_y − Σ_l p_l δ_l)^m.

A confident prediction is skewed: the side on which an unlikely class rises changes it by far the most.  Both cumulants come from what the
factorisation has already, since p ∘ (δ − Σ p δ) = (diag p − p pᵀ) δ = Σ_k row_k ⟨a_k, h⟩ (:mod:`npeff_nb.fisher.factors`).  Independent labels add
up, κ₂ = Σ_l p_l (1 − p_l) δ_l² and κ₃ = Σ_l p_l (1 − p_l)(1 − 2 p_l) δ_l³.  A single gradient (an empirical
Fisher) needs none of this: + is the side on which its label becomes likelier.
"""

from __future__ import annotations

import numpy as np
import torch

from npeff_nb.fisher.factors import Recipe

NUMBERS_AT_ONCE = 2**23
"""Cotangents held at once are (examples, c − 1, c): thousands of classes would fill the memory."""


def orientation(
    coefficients: np.ndarray,
    projections: np.ndarray,
    logits: np.ndarray,
    norms: np.ndarray,
    recipe: Recipe | None = None,
    choices: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Scores (r,), a sum over the examples: where positive, the sign has to be turned for a step along −h to change the predictions of a
    component's users more than one along +h.

    Parameters
    ----------
    coefficients : (n, r), how much each example counts.
    projections : (n, k, r), unit-norm factor rows along the components.
    logits : (n, c), of the prediction that was decomposed.
    norms : (n,), Frobenius norms of the Fishers.
    recipe, choices : how the rows were made (:class:`npeff_nb.fisher.factors.Recipe`).
    """
    recipe, choices = recipe or Recipe(), choices or {}
    if recipe.fisher != "true":
        return -(coefficients * projections[:, 0]).sum(0)
    n, c = logits.shape
    score = np.zeros(coefficients.shape[1])
    size = max(1, NUMBERS_AT_ONCE // (c * max(c - 1, 1)))
    for at in range(0, n, size):
        part = slice(at, at + size)
        z = torch.from_numpy(logits[part])
        rows = recipe.coarse_cotangents(z.double()).numpy()
        along = projections[part] * np.sqrt(norms[part])[:, None, None]
        if "mixing" in choices:  # rows were turned: back onto the ones that are known by their classes
            along = np.einsum("nqk,nqr->nkr", choices["mixing"][part], along)
        weighted = np.einsum("nkc,nkr->ncr", rows, along[:, : rows.shape[1]])  # p (δ − Σ p δ)
        if recipe.family == "bernoulli":
            p = torch.sigmoid(z.double()).numpy()[:, :, None]
            delta = np.divide(weighted, p * (1 - p), out=np.zeros_like(weighted), where=p * (1 - p) > 0)
            second, third = (weighted * delta).sum(1), (weighted * (1 - 2 * p) * delta**2).sum(1)
        else:
            p = torch.softmax(z.double(), -1).numpy()[:, :, None]
            centred = np.divide(weighted, p, out=np.zeros_like(weighted), where=p > 0)
            second, third = (weighted * centred).sum(1), (weighted * centred**2).sum(1)
        # Skewness, not the cumulant itself: otherwise the least certain examples would decide alone.
        skewness = np.divide(third, second**1.5, out=np.zeros_like(third), where=second > 0)
        score += (coefficients[part] * skewness).sum(0)
    return score
