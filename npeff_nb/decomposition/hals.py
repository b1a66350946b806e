"""The default solver: exact coordinate descent on coefficients, exact line search on components."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from npeff_nb.decomposition.coefficients import fit_coefficients, sweep
from npeff_nb.decomposition.objective import Solution, line_minimum, loss_of_energies, stationary
from npeff_nb.decomposition.rows import Rows

DEAD = 1e-12
"""A component whose coefficients sum to less than this share of all is dead."""
SHRUNK = 0.1
"""Projections follow their components, P + tQ, until one has shrunk by so much: the rounding in them grows as it shrinks."""


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
    on_iteration : called with (iteration, loss), first with the start's.
    """
    H, P, S, _ = _unit(rows, H, rows.project(H) if P is None else P, frozen)
    shrunk = torch.ones(len(H), dtype=H.dtype, device=H.device)
    B, G = P.square().sum(1), S.square()
    W = sweep(torch.zeros_like(B) if W is None else W.clone(), B, G, 10)
    V = rows.moment(W)
    now = loss_of_energies(rows, W, B, V, G, total)
    losses, converged = [now], False
    if on_iteration is not None:
        on_iteration(0, now)
    for iteration in range(max_iter):
        dead = _dead(rows, W)
        if bool(dead[frozen:].any()):
            H, P, S, W = _revived(rows, W, H, P, S, dead, frozen)
            V, dead = rows.moment(W), _dead(rows, W)
        D = stationary(rows, W, V, P, S) - H if not frozen else _towards(rows, W, V, H, P, S, frozen)
        # A component without users has no target: it waits where it is until there is something for it.
        D[dead] = 0
        Q = rows.project(D)
        C, E = rows.inner(H, D, Q), rows.inner(D, D, Q)
        t = line_minimum(rows, W, V, P, Q, S, C + C.T, E)
        new_H, new_P, new_S, norms = _unit(rows, torch.add(H, D, alpha=t), torch.add(P, Q, alpha=t), frozen)
        shrunk = (shrunk * norms).clamp_max(1)
        if float(shrunk.min()) < SHRUNK:
            new_P = rows.project(new_H)
            new_S, shrunk = rows.inner(new_H, new_H, new_P), torch.ones_like(shrunk)
        # Unit components keep their coefficients' meaning: W_j h_jh_jᵀ is the same as before the step.
        new_B, new_G = new_P.square().sum(1), new_S.square()
        new_W = sweep(W * norms.square(), new_B, new_G)
        new_V = rows.moment(new_W)
        before, after = now, loss_of_energies(rows, new_W, new_B, new_V, new_G, total)
        if after <= before:
            H, P, S, W, V, now = new_H, new_P, new_S, new_W, new_V, after
            losses.append(now)
        if on_iteration is not None:
            on_iteration(iteration + 1, now)
        if before - now <= tol * max(abs(now), 1e-12 * total):
            converged = True
            break
    B, G = P.square().sum(1), S.square()
    exact = fit_coefficients(B, G)
    final = loss_of_energies(rows, exact, B, rows.moment(exact), G, total)
    if final <= now:
        W, now = exact, final
    return Solution(W, H, [*losses, now], converged, P)


def _towards(rows: Rows, W: Tensor, V: Tensor, H: Tensor, P: Tensor, S: Tensor, frozen: int) -> Tensor:
    """The direction for the components that move, given the ones that do not: M_ff H_f = T_f − M_fz H_z."""
    M = V * S
    summed = rows.gather((rows.weights[:, None] * W)[:, None] * P)[frozen:] - M[frozen:, :frozen] @ H[:frozen]
    D = torch.zeros_like(H)
    D[frozen:] = torch.linalg.pinv(M[frozen:, frozen:], hermitian=True, rtol=1e-12) @ summed - H[frozen:]
    return D


def _dead(rows: Rows, W: Tensor) -> Tensor:
    """(r,) which components no example uses; examples that do not count use nothing."""
    use = rows.total(rows.weights @ W)
    return use <= DEAD * use.sum()


def _unit(rows: Rows, H: Tensor, P: Tensor, frozen: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit directions, their projections and inner products, and former norms: S keeps a diagonal of ones and no direction drowns another."""
    S = rows.inner(H, H, P)
    norms = S.diagonal().clamp_min(torch.finfo(S.dtype).tiny).sqrt()
    norms[:frozen] = 1  # but for rounding they are: dividing by it would change their last bits
    return H / norms[:, None], P / norms, S / (norms[:, None] * norms), norms


def _revived(
    rows: Rows, W: Tensor, H: Tensor, P: Tensor, S: Tensor, dead: Tensor, frozen: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Components without users get what is left of the examples that are explained worst; the loss stays as it is (W_j = 0)."""
    free = [j for j in dead.nonzero().flatten().tolist() if j >= frozen]
    residual = rows.energies - 2 * (W * P.square().sum(1)).sum(1) + ((W @ S.square()) * W).sum(1)
    old, H, W = H, H.clone(), W.clone()
    for j, (at, left) in zip(free, rows.largest(torch.where(rows.weights > 0, residual, 0.0), len(free)), strict=False):
        if left <= 1e-9:
            break
        W[:, j] = 0
        H[j] = _left(rows, at, old, P, S)
    H, P, S, _ = _unit(rows, H, rows.project(H), frozen)
    # One exact pass, so that a revived component has users before H moves.
    return H, P, S, sweep(W, P.square().sum(1), S.square(), 1)


def _left(rows: Rows, at: int, H: Tensor, P: Tensor, S: Tensor) -> Tensor:
    """The direction (·,) among sums of its rows along which most of an example's Fisher is unexplained; its leading one may be a component."""
    own = rows.example(at)
    values, vectors = torch.linalg.eigh(rows.inner(own, own, rows.project(own)))
    real = values > 1e-12 * values[-1]
    values, basis = values[real], vectors[:, real].T / values[real].sqrt()[:, None]  # orthonormal directions, as weights on its rows
    along = rows.inner(own, H, P)
    W = sweep(torch.zeros_like(along[:1]), along.square().sum(0, keepdim=True), S.square(), 10)
    along = basis @ along
    residual = values.diag() - (W * along) @ along.T
    return torch.linalg.eigh(residual).eigenvectors[:, -1] @ basis @ own
