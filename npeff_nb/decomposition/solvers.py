"""Pure functions that factor per-example Fishers: no object, no file, no randomness but what is handed in.

The problem (Matena and Raffel 2023, section 3), for unit-norm Fishers F̂_i = A_iᵀA_i with A_i (k, d):

    L(W, H) = Σ_i ‖F̂_i − Σ_j W_ij h_j h_jᵀ‖²_F,      W ≥ 0 (n, r),  H (r, d) of any sign.

Everything goes through P = A Hᵀ (n, k, r), B_ij = Σ_k P²_ikj = h_jᵀF̂_i h_j and S = H Hᵀ:

    L = Σ_i‖F̂_i‖² − 2⟨W, B⟩ + ⟨WᵀW, S∘S⟩.

All arrays are float64: the loss is a small difference of large sums.  Shapes: n examples, k factor rows, d features, r components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SWEEPS = 2
"""Passes over the components in each half-step for W: a second one is nearly free beside the products with A."""
DEAD = 1e-12
"""A component whose coefficients sum to less than this share of all is dead."""


@dataclass(frozen=True)
class Solution:
    """Unit-norm components H (r, d), coefficients W (n, r) for them, the loss after every iteration (first entry: the start)."""

    W: Tensor
    H: Tensor
    losses: list[float]
    converged: bool


def loss(A: Tensor, W: Tensor, H: Tensor, total: float) -> float:
    """L(W, H) for rows ``A`` (n, k, d); ``total`` is Σ_i‖F̂_i‖², the squared norm of everything there is to explain."""
    return _loss(W, A @ H.T, H @ H.T, total)


def total_energy(A: Tensor) -> float:
    """Σ_i‖A_iᵀA_i‖²_F, by the k × k Grams."""
    return float((A @ A.transpose(1, 2)).square().sum())


def hals_coefficients(W: Tensor, B: Tensor, G: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Cyclic exact coordinate descent on min ‖·‖ over W ≥ 0 with H fixed: column j ← max(0, W_j + (B_j − W G_j)/G_jj), G = S∘S.

    Never raises the loss.  Changes ``W`` in place and returns it.
    """
    diagonal = G.diagonal().clamp_min(torch.finfo(G.dtype).tiny)
    for _ in range(sweeps):
        for j in range(W.shape[1]):
            W[:, j] = (W[:, j] + (B[:, j] - W @ G[:, j]) / diagonal[j]).clamp_min_(0)
    return W


def fit_coefficients(B: Tensor, G: Tensor, tol: float = 1e-6, max_sweeps: int = 2000) -> Tensor:
    """Non-negative least squares for given components, W (n, r): coordinate descent until the optimality conditions hold.

    The Karush–Kuhn–Tucker residual is max |min(W, W G − B)| over all entries, in units of a unit-norm Fisher; it ends at ``tol``.
    """
    W = torch.zeros_like(B)
    for _ in range(max_sweeps):
        hals_coefficients(W, B, G, 1)
        if float(torch.minimum(W, W @ G - B).abs().max()) <= tol:
            break
    return W


def kmeans_pp(A: Tensor, r: int, rng: np.random.Generator) -> Tensor:
    """A start H (r, d): leading directions of r examples that are far apart, drawn as in k-means++ with ‖F̂_i − F̂_j‖² as the distance."""
    n = len(A)
    norms = (A @ A.transpose(1, 2)).square().sum((1, 2))  # ‖F̂_i‖²
    nearest = norms.clone()  # distance to "no centre at all": zero Fishers are never drawn
    H = torch.empty(r, A.shape[-1], dtype=A.dtype, device=A.device)
    for j in range(r):
        weights = nearest.clamp_min(0).cpu().numpy()
        at = int(rng.choice(n, p=weights / weights.sum())) if weights.sum() > 0 else int(rng.integers(n))
        H[j] = torch.linalg.svd(A[at], full_matrices=False).Vh[0]
        cross = (A @ A[at].T).square().sum((1, 2))  # ⟨F̂_i, F̂_at⟩
        nearest = torch.minimum(nearest, norms - 2 * cross + norms[at])
        nearest[at] = 0
    return H


def hals(
    A: Tensor, H: Tensor, total: float, *, tol: float = 1e-5, max_iter: int = 500, on_iteration: Callable[[int, float], None] | None = None
) -> Solution:
    """The default solver: HALS on W, then H along a preconditioned direction to the exact minimum on that line.

    With M = WᵀW∘S the stationary H solves M H = (W⊙P)ᵀA; D = M⁻¹(W⊙P)ᵀA − H points at it with one of the two tied factors held still.
    Along H + tD the loss is a quartic in t whose coefficients need only P and A Dᵀ, so its minimiser is exact and no rate is chosen.
    t = 0 is among the candidates: the loss never rises.  Ends when an iteration lowers the loss by less than ``tol`` of it.

    Parameters
    ----------
    A : (n, k, d) rows of unit-norm Fishers.
    H : (r, d) start.
    total : Σ_i‖F̂_i‖² of what is to be explained; at least :func:`total_energy` of ``A``, more when features were cut.
    """
    n, k, d = A.shape
    flat = A.reshape(n * k, d)
    H = _unit(H.clone())
    P = A @ H.T
    W = torch.zeros(n, len(H), dtype=A.dtype, device=A.device)
    S = H @ H.T
    hals_coefficients(W, P.square().sum(1), S.square(), 10)
    now = _loss(W, P, S, total)
    losses, converged = [now], False
    for iteration in range(max_iter):
        H, P, S, W = _revive(A, W, H, P, S)
        M = (W.T @ W) * S
        target = torch.linalg.pinv(M, hermitian=True, rtol=1e-12) @ ((W[:, None] * P).reshape(n * k, -1).T @ flat)
        D = target - H
        # A component without users has no target: it waits for _revive where it is.
        D[W.sum(0) == 0] = 0
        Q = A @ D.T
        t = _line_minimum(W, P, Q, S, H, D)
        H, P = H + t * D, P + t * Q
        # Unit components: S keeps a diagonal of ones and no direction drowns another.
        norms = H.norm(dim=1).clamp_min(torch.finfo(H.dtype).tiny)
        H, P, W = H / norms[:, None], P / norms, W * norms.square()
        S = H @ H.T
        hals_coefficients(W, P.square().sum(1), S.square())
        before, now = now, _loss(W, P, S, total)
        losses.append(now)
        if on_iteration is not None:
            on_iteration(iteration + 1, now)
        if before - now <= tol * max(abs(now), 1e-12 * total):
            converged = True
            break
    hals_coefficients(W, P.square().sum(1), S.square(), 50)
    return Solution(W, H, [*losses, _loss(W, P, S, total)], converged)


def _loss(W: Tensor, P: Tensor, S: Tensor, total: float) -> float:
    return float(total - 2 * (W * P.square().sum(1)).sum() + ((W.T @ W) * S.square()).sum())


def _line_minimum(W: Tensor, P: Tensor, Q: Tensor, S: Tensor, H: Tensor, D: Tensor) -> float:
    """The t that minimises L(W, H + tD): smallest value of a quartic over the real roots of its derivative, and zero."""
    C = H @ D.T
    C = C + C.T
    E = D @ D.T
    V = W.T @ W
    quartic = [
        0.0,
        float(-4 * (W * (P * Q).sum(1)).sum() + 2 * (V * S * C).sum()),
        float(-2 * (W * Q.square().sum(1)).sum() + (V * (C.square() + 2 * S * E)).sum()),
        float(2 * (V * C * E).sum()),
        float((V * E.square()).sum()),
    ]
    slope = np.polynomial.Polynomial(quartic).deriv().trim()
    roots = slope.roots() if slope.degree() > 0 else np.array([])
    candidates = [0.0, *(float(root.real) for root in roots if abs(root.imag) <= 1e-9 * (1 + abs(root.real)))]
    value = np.polynomial.Polynomial(quartic)
    return min(candidates, key=lambda t: float(value(t)))


def _revive(A: Tensor, W: Tensor, H: Tensor, P: Tensor, S: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gives a component without users the leading direction of the example that is explained worst; the loss stays as it is (W_j = 0)."""
    sums = W.sum(0)
    dead = (sums <= DEAD * sums.sum()).nonzero().flatten().tolist()
    if not dead:
        return H, P, S, W
    norms = (A @ A.transpose(1, 2)).square().sum((1, 2))
    residual = norms - 2 * (W * P.square().sum(1)).sum(1) + ((W @ S.square()) * W).sum(1)
    worst = torch.argsort(residual, descending=True)
    H, W = H.clone(), W.clone()
    for j, at in zip(dead, worst.tolist(), strict=False):
        if residual[at] <= 1e-9:
            break
        W[:, j] = 0
        H[j] = torch.linalg.svd(A[at], full_matrices=False).Vh[0]
    P, S = A @ H.T, H @ H.T
    # One exact pass, so that a revived component has users before H moves.
    return H, P, S, hals_coefficients(W, P.square().sum(1), S.square(), 1)


def _unit(H: Tensor) -> Tensor:
    return H / H.norm(dim=1, keepdim=True).clamp_min(torch.finfo(H.dtype).tiny)
