"""The paper's code with orthonormal components: gradient descent along the Stiefel manifold H Hᵀ = I.

Coefficients move as in :mod:`npeff_nb.decomposition.multiplicative`; H moves by the Cayley transform (Wen and Yin 2013), which keeps its rows
orthonormal whatever the rate.  With Z = Hᵀ and the Euclidean gradient ∇ (r, d), the step is Z ← (I + η/2 B)⁻¹ (I − η/2 B) Z, B = ∇ᵀZᵀ − Z∇.
B has rank 2r, so that a 2r × 2r system says it all:

    (I + η/2 M) [Y₁; Y₂] = [S; −∇Hᵀ],    M = [[H∇ᵀ, S], [−∇∇ᵀ, −∇Hᵀ]],    H ← H − η (Y₁ᵀ∇ + Y₂ᵀH).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.multiplicative import alternate, checked_start, directions, features, gradient
from npeff_nb.decomposition.objective import Solution
from npeff_nb.decomposition.rows import Rows
from npeff_nb.decomposition.starts import uniform_coefficients

ORTHONORMAL = 1e-5
"""Largest entry of H Hᵀ − I that is taken for orthonormal: rounding leaves 1e-14 or so."""


def stiefel(
    rows: Rows,
    r: int,
    total: float,
    rng: np.random.Generator,
    *,
    iterations: int = 1000,
    h_only: int = 100,
    learning_rate: float = 1e-3,
    h_only_learning_rate: float | None = None,
    mu_eps: float = 1e-9,
    start: tuple[Tensor, Tensor] | None = None,
    tol: float = 0.0,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Solution:
    """Orthonormal components, from W uniform in (0, 2/r] and a random orthonormal H; settings as in
    :func:`~npeff_nb.decomposition.multiplicative.multiplicative`.

    Orthonormal components may be better off outside the span of the rows; on ``Gram`` rows they stay in it.

    Raises
    ------
    ValueError
        When there are fewer features than components, when a setting or the start is not one, or the start's H is not orthonormal.
    FloatingPointError
        When a step has no solution, or rounding has cost orthonormality: the rate is far too large.
    """
    W, H = checked_start(rows, r, start) if start is not None else orthonormal_start(rows, r, rng)
    if start is not None and (error := _off(rows.inner(H, H, rows.project(H)))) > ORTHONORMAL:
        raise ValueError(f"start: H Hᵀ is {error:.1g} off the identity; orthonormal rows are needed (at most {ORTHONORMAL:g})")

    def turn(W: Tensor, V: Tensor, H: Tensor, P: Tensor, S: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        return cayley(rows, H, S, gradient(rows, W, V, H, P, S), rate)

    W, H, P, _, losses, converged = alternate(
        rows, W, H, total, turn, iterations=iterations, h_only=h_only, learning_rate=learning_rate,
        h_only_learning_rate=h_only_learning_rate, mu_eps=mu_eps, tol=tol, on_iteration=on_iteration,
    )  # fmt: skip
    return Solution(W, H, losses, converged, P)


def orthonormal_start(rows: Rows, r: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """W (n, r) uniform in (0, 2/r] and H (r, d), the Q of a Gaussian matrix."""
    d = features(rows)
    if not 1 <= r <= d:
        raise ValueError(f"r={r} orthonormal components in d={d} features: choose r from 1 to {d}")
    H = directions(rows, np.linalg.qr(rng.normal(size=(d, r)))[0].T.copy())
    return 2 / r * uniform_coefficients(rows, r, rng), H


def cayley(rows: Rows, H: Tensor, S: Tensor, D: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """H after the step against the gradient ``D`` (r, ·), its projections and its inner products."""
    Q = rows.project(D)
    HD, DD = rows.inner(H, D, Q), rows.inner(D, D, Q)
    M = torch.cat([torch.cat([HD, S], 1), torch.cat([-DD, -HD.T], 1)])
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    Y, info = torch.linalg.solve_ex(eye + rate / 2 * M, torch.cat([S, -HD.T]))
    Y1, Y2 = Y.chunk(2)
    H = H - rate * (Y1.T @ D + Y2.T @ H)
    # P − η (Q Y₁ + P Y₂) is the same in exact arithmetic; what rounding puts between it and H grows exponentially with the iterations.
    P = rows.project(H)
    S = rows.inner(H, H, P)
    error = _off(S)
    if info or not error <= ORTHONORMAL:
        what = "has no solution" if info else f"leaves H Hᵀ {error:.1g} off the identity"
        raise FloatingPointError(f"the Cayley step {what}: lower learning_rate (now {rate:g})")
    return H, P, S


def _off(S: Tensor) -> float:
    return float((S - torch.eye(len(S), dtype=S.dtype, device=S.device)).abs().max())
