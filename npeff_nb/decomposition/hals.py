"""The default solver: exact coordinate descent on coefficients, exact line search on components."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from npeff_nb.decomposition.coefficients import fit_coefficients, sweep
from npeff_nb.decomposition.objective import Solution, line_minimum, loss_of_products, stationary
from npeff_nb.decomposition.rows import Rows

DEAD = 1e-12
"""A component whose coefficients sum to less than this share of all is dead."""


def hals(
    rows: Rows,
    H: Tensor,
    total: float,
    *,
    tol: float = 1e-5,
    max_iter: int = 500,
    frozen: int = 0,
    W: Tensor | None = None,
    P: Tensor | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Solution:
    """HALS for W, then H along a preconditioned direction to the exact minimum on that line.

    With M = WᵀΩW∘S the stationary H solves M H = (ΩW⊙P)ᵀA; D = M⁻¹(ΩW⊙P)ᵀA − H points at it with one of the two tied factors held still.
    Along H + tD the loss is a quartic in t whose coefficients need only P and A Dᵀ, so its minimiser is exact and no rate is chosen.
    t = 0 is among the candidates, and an iteration that rounding would make worse is not taken: the loss never rises.

    Parameters
    ----------
    rows : of unit-norm Fishers.
    H : (r, ·) start.
    total : Σ_i ω_i‖F̂_i‖² of what is to be explained; at least :func:`~npeff_nb.decomposition.objective.total_energy` of ``rows``.
    tol : ends when an iteration lowers the loss by less than this share of it.
    frozen : the first so many directions, of unit norm, stay as they are to the bit; their coefficients do not.
    W : (n, r) coefficients to start from; by default what a few sweeps from zero give.
    P : (n, k, r) projections on the start, where they are known.
    on_iteration : called with (iteration, loss).
    """
    H, P, S = _unit(rows, H, rows.project(H) if P is None else P, frozen)
    W = sweep(torch.zeros_like(P[:, 0]) if W is None else W.clone(), P.square().sum(1), S.square(), 10)
    now = loss_of_products(rows, W, P, S, total)
    losses, converged = [now], False
    for iteration in range(max_iter):
        H, P, S, W = _revive(rows, W, H, P, S, frozen)
        D = stationary(rows, W, P, S) - H if not frozen else _towards(rows, W, H, P, S, frozen)
        # A component without users has no target: it waits for _revive where it is.
        D[_use(rows, W) == 0] = 0
        Q = rows.project(D)
        C, E = rows.inner(H, D, Q), rows.inner(D, D, Q)
        t = line_minimum(rows, W, P, Q, S, C + C.T, E)
        new_H, new_P, new_S = _unit(rows, H + t * D, P + t * Q, frozen)
        # Unit components keep their coefficients' meaning: W_j h_jh_jᵀ is the same as before the step.
        new_W = sweep(W * (S + t * (C + C.T) + t * t * E).diagonal(), new_P.square().sum(1), new_S.square())
        before, after = now, loss_of_products(rows, new_W, new_P, new_S, total)
        if after <= before:
            H, P, S, W, now = new_H, new_P, new_S, new_W, after
            losses.append(now)
        if on_iteration is not None:
            on_iteration(iteration + 1, now)
        if before - now <= tol * max(abs(now), 1e-12 * total):
            converged = True
            break
    exact = fit_coefficients(P.square().sum(1), S.square())
    final = loss_of_products(rows, exact, P, S, total)
    if final <= now:
        W, now = exact, final
    return Solution(W, H, [*losses, now], converged, P)


def _towards(rows: Rows, W: Tensor, H: Tensor, P: Tensor, S: Tensor, frozen: int) -> Tensor:
    """The direction for the components that move, given the ones that do not: M_ff H_f = T_f − M_fz H_z."""
    M = rows.moment(W) * S
    summed = rows.gather((rows.weights[:, None] * W)[:, None] * P)[frozen:] - M[frozen:, :frozen] @ H[:frozen]
    D = torch.zeros_like(H)
    D[frozen:] = torch.linalg.pinv(M[frozen:, frozen:], hermitian=True, rtol=1e-12) @ summed - H[frozen:]
    return D


def _use(rows: Rows, W: Tensor) -> Tensor:
    """Σ_i ω_i W_i, (r,): examples that do not count use nothing."""
    return rows.total(rows.weights @ W)


def _unit(rows: Rows, H: Tensor, P: Tensor, frozen: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit directions, their projections and inner products: S keeps a diagonal of ones and no direction drowns another."""
    S = rows.inner(H, H, P)
    norms = S.diagonal().clamp_min(torch.finfo(S.dtype).tiny).sqrt()
    norms[:frozen] = 1  # but for rounding they are: dividing by it would change their last bits
    return H / norms[:, None], P / norms, S / (norms[:, None] * norms)


def _revive(rows: Rows, W: Tensor, H: Tensor, P: Tensor, S: Tensor, frozen: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gives a component without users the leading direction of the example that is explained worst; the loss stays as it is (W_j = 0)."""
    sums = _use(rows, W)
    dead = [j for j in (sums <= DEAD * sums.sum()).nonzero().flatten().tolist() if j >= frozen]
    if not dead:
        return H, P, S, W
    residual = rows.energies - 2 * (W * P.square().sum(1)).sum(1) + ((W @ S.square()) * W).sum(1)
    H, W = H.clone(), W.clone()
    for j, (at, left) in zip(dead, rows.largest(torch.where(rows.weights > 0, residual, 0.0), len(dead)), strict=False):
        if left <= 1e-9:
            break
        W[:, j] = 0
        H[j] = rows.leading(at)[0]
    H, P, S = _unit(rows, H, rows.project(H), frozen)
    # One exact pass, so that a revived component has users before H moves.
    return H, P, S, sweep(W, P.square().sum(1), S.square(), 1)
