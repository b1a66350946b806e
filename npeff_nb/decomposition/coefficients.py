"""Coefficients for given components: non-negative least squares for every example on its own.

With B_ij = h_jᵀF̂_i h_j and G = S∘S, S = H Hᵀ, example i asks for

    min over w ≥ 0 of  f(w) = ½ wᵀG w − B_iᵀw,      ‖F̂_i − Σ_j w_j h_j h_jᵀ‖² = ‖F̂_i‖² + 2 f(w).

G has no negative entry and, for unit components, ones on its diagonal.  So v = w + ε·1 with ε = max_j (B_i − G w)_j / (G 1)_j is dual feasible
whatever w is, and f(w) + ½ vᵀG v bounds from above how far f(w) is from its minimum: the duality gap that ends the iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 2
"""Passes over the components in each half-step for W: a second one is nearly free beside the products with A."""
EXAMPLES_AT_ONCE = 2048
"""On a CPU: a block of coefficients stays in the cache for all its sweeps."""
DROPPED = 20
"""Components that an example may drop before coordinate descent looks at it again."""
SOLVED_AT_ONCE = 2**22
"""Entries of the r × r systems that are solved together: 32 MB."""
COMPONENTS_AT_ONCE = 32
"""Within a block of components single coordinates move; the block meets the others in one matrix product."""


def sweep(W: Tensor, B: Tensor, G: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Cyclic exact coordinate descent on f over W ≥ 0: column j ← max(0, W_j + (B_j − W G_j)/G_jj).

    Never raises the loss.  Changes ``W`` (n, r) in place and returns it.
    """
    r = W.shape[1]
    diagonal = G.diagonal().clamp_min(torch.finfo(G.dtype).tiny)
    scaled = (G / diagonal[:, None]).fill_diagonal_(0)
    blocks = [slice(first, min(r, first + COMPONENTS_AT_ONCE)) for first in range(0, r, COMPONENTS_AT_ONCE)]
    within = [scaled[block, block].clone().unbind() for block in blocks]
    for block in blocks:
        scaled[block, block] = 0
    step = EXAMPLES_AT_ONCE if W.device.type == "cpu" else max(1, len(W))
    for at in range(0, len(W), step):
        # Examples along the rows of memory: every step below then runs over contiguous numbers.
        w, b = W[at : at + step].T.contiguous(), (B[at : at + step] / diagonal).T.contiguous()
        for _ in range(sweeps):
            for block, of_each in zip(blocks, within, strict=True):
                own = w[block]
                left = b[block] if len(blocks) == 1 else torch.addmm(b[block], scaled[block], w, alpha=-1)
                for left_j, G_j, w_j in zip(left.unbind(), of_each, own.unbind(), strict=True):
                    torch.clamp_min(torch.addmv(left_j, own.T, G_j, alpha=-1), 0, out=w_j)
        W[at : at + step] = w.T
    return W


def optimality(W: Tensor, B: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """How far each example's coefficients are from optimal: (n,) residual of the Karush-Kuhn-Tucker conditions, max_j |min(w, G w − b)_j|, and (n,)
    an upper bound on f(w) − min f.
    """
    product = W @ G
    slack = product - B
    residual = torch.minimum(W, slack).abs().amax(1)
    ones = G.sum(0)
    lift = (-slack / ones.clamp_min(torch.finfo(G.dtype).tiny)).amax(1).clamp_min(0)
    # f(w) + ½ vᵀGv for v = w + lift·1, multiplied out.
    gap = (W * slack).sum(1) + lift * (product.sum(1) + 0.5 * lift * ones.sum())
    return residual, gap


def fit_coefficients(B: Tensor, G: Tensor, tol: float = 1e-6, max_sweeps: int = 5000) -> Tensor:
    """Exact coefficients W (n, r): coordinate descent, and where that is slow an active set, until :func:`optimality` is met.

    ``tol`` bounds the Karush-Kuhn-Tucker residual and the duality gap of every example, in units of a unit-norm Fisher.  Examples that are done
    take no part in further sweeps.
    """
    W = torch.zeros_like(B)
    open_ = torch.arange(len(B), device=B.device)
    done, each = 0, 5
    while len(open_) and done < max_sweeps:
        b, w = B[open_], W[open_]
        sweep(w, b, G, each)
        done += each
        if done >= 20:
            _solve_on_support(w, b, G)
        W[open_] = w
        residual, gap = optimality(w, b, G)
        open_ = open_[(residual > tol) | (gap > tol)]
        each = min(2 * each, 100)
    return W


def _solve_on_support(W: Tensor, B: Tensor, G: Tensor) -> None:
    """The inner loop of an active-set method (Lawson and Hanson 1974), for many examples together, in place.

    Coordinate descent finds the support soon and creeps to the values when components are alike.  So: go to the unconstrained minimum over the
    used components, or as far towards it as no coefficient falls below zero, and drop the one that became zero.  f falls along the whole way.
    """
    r = W.shape[1]
    eye = torch.eye(r, dtype=G.dtype, device=G.device)
    step = max(1, SOLVED_AT_ONCE // (r * r))
    for at in range(0, len(W), step):
        w, b = W[at : at + step], B[at : at + step]
        going = torch.arange(len(w), device=W.device)
        for _ in range(DROPPED):
            now = w[going]
            used = now > 0
            found, info = torch.linalg.solve_ex(torch.where(used[:, :, None] & used[:, None, :], G, eye), torch.where(used, b[going], 0.0))
            towards = torch.where(used, found, 0.0) - now
            # How far until the first coefficient is zero: the whole way (1) when none falls below.
            reach = torch.where(used & (found < 0), now / -towards, 1.0).amin(1, keepdim=True)
            moved = (now + reach * towards).clamp_min_(0)
            moved[used & (found < 0) & (now / -towards <= reach)] = 0
            # Equal components make a singular system: its answer may be anything.
            sound = (info == 0) & (_value(moved, b[going], G) <= _value(now, b[going], G))
            w[going[sound]] = moved[sound]
            going = going[sound & (reach[:, 0] < 1)]
            if not len(going):
                break


def _value(W: Tensor, B: Tensor, G: Tensor) -> Tensor:
    return (W * (0.5 * (W @ G) - B)).sum(1)
