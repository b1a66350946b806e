"""What is minimised, and what a solver hands back.

The problem (Matena and Raffel 2023, section 3), for unit-norm Fishers F̂_i = A_iᵀA_i with A_i (k, d) and weights ω_i (one by default):

    L(W, H) = Σ_i ω_i ‖F̂_i − Σ_j W_ij h_j h_jᵀ‖²_F,      W ≥ 0 (n, r),  H (r, d) of any sign.

Everything goes through P = A Hᵀ (n, k, r), B_ij = Σ_k P²_ikj = h_jᵀF̂_i h_j and S = H Hᵀ:

    L = Σ_i ω_i‖F̂_i‖² − 2 Σ_i ω_i ⟨W_i, B_i⟩ + ⟨WᵀΩW, S∘S⟩.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.rows import Rows


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes
    ----------
    W : coefficients (n, r).
    H : unit-norm components (r, ·), in the rows' coordinates.
    losses : after every iteration; the first is the start's.
    converged : whether the tolerance ended it.
    P : projections of the rows on H (n, k, r), where the solver has them.
    """

    W: Tensor
    H: Tensor
    losses: list[float]
    converged: bool
    P: Tensor | None = None


def total_energy(rows: Rows) -> float:
    """Σ_i ω_i ‖F̂_i‖²_F of what the rows carry."""
    return float(rows.total((rows.weights * rows.energies).sum()))


def loss(rows: Rows, W: Tensor, H: Tensor, total: float) -> float:
    """L(W, H); ``total`` is Σ_i ω_i‖F̂_i‖², the squared norm of everything there is to explain: more than the rows carry when features were cut."""
    P = rows.project(H)
    return loss_of_products(rows, W, P, rows.inner(H, H, P), total)


def loss_of_products(rows: Rows, W: Tensor, P: Tensor, S: Tensor, total: float) -> float:
    """:func:`loss` with P = A Hᵀ and S = H Hᵀ at hand."""
    return loss_of_energies(rows, W, P.square().sum(1), rows.moment(W), S.square(), total)


def loss_of_energies(rows: Rows, W: Tensor, B: Tensor, V: Tensor, G: Tensor, total: float) -> float:
    """:func:`loss` with B, V = WᵀΩW and G = S∘S at hand."""
    return float(total - 2 * rows.total((rows.weights * (W * B).sum(1)).sum()) + (V * G).sum())


def line_minimum(rows: Rows, W: Tensor, V: Tensor, P: Tensor, Q: Tensor, S: Tensor, C: Tensor, E: Tensor) -> float:
    """The t that minimises L(W, H + tD): smallest value of a quartic over the real roots of its derivative, and zero.

    V = WᵀΩW; P, Q: projections of H and D; S = H Hᵀ, C = H Dᵀ + D Hᵀ, E = D Dᵀ.
    """
    weighted = (rows.weights[:, None] * W).flatten()
    sums = rows.total(torch.stack([torch.dot(weighted, (P * Q).sum(1).flatten()), torch.dot(weighted, Q.square().sum(1).flatten())])).tolist()
    quartic = [
        0.0,
        -4 * sums[0] + float(2 * (V * S * C).sum()),
        -2 * sums[1] + float((V * (C.square() + 2 * S * E)).sum()),
        float(2 * (V * C * E).sum()),
        float((V * E.square()).sum()),
    ]
    value = np.polynomial.Polynomial(quartic)
    slope = value.deriv().trim()
    roots = slope.roots() if slope.degree() > 0 else np.array([])
    candidates = [0.0, *(float(root.real) for root in roots if abs(root.imag) <= 1e-9 * (1 + abs(root.real)))]
    return min(candidates, key=lambda t: float(value(t)))


def stationary(rows: Rows, W: Tensor, V: Tensor, P: Tensor, S: Tensor) -> Tensor:
    """The directions at which the gradient vanishes with one of the two tied factors held still: (V∘S)⁻¹ (ΩW⊙P)ᵀA, (r, ·), with V = WᵀΩW."""
    summed = rows.gather((rows.weights[:, None] * W)[:, None] * P)
    return torch.linalg.pinv(V * S, hermitian=True, rtol=1e-12) @ summed
