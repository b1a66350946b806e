"""Components from a few examples at a time, for more examples than a full pass an iteration could serve.

A batch gives its coefficients W (exact, for the components as they are), V = WᵀΩW and T = (ΩW⊙P)ᵀA.  Running means of V and T stand for all examples,
so that the direction of :mod:`npeff_nb.decomposition.hals`, D = (V∘S)⁻¹T − H, gets less noisy as batches go by.  The step is the minimum of the same
quartic, its coefficients from the running means: ⟨T, D⟩ is the term that needs every row, and only ⟨W, (ADᵀ)²⟩ is the batch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.coefficients import sweep
from npeff_nb.decomposition.objective import Solution
from npeff_nb.decomposition.rows import Stored

BATCH = 1024
"""Examples a batch."""
MEMORY = 0.7
"""Weight that the running means give to what they were one pass through the data ago, as scikit-learn's mini-batch NMF."""
CHECKED_EVERY = 20
"""Batches between two looks at the examples that decide when to stop."""
CHECKED = 4096
"""Examples that decide when to stop, drawn once: the same ones each time, so that differences of their losses have little noise."""
STILL = 3
"""Looks in a row that see nothing fall."""
SWEEPS = 20


def minibatch(
    rows: Stored,
    H: Tensor,
    rng: np.random.Generator,
    *,
    tol: float = 1e-5,
    max_iter: int = 500,
    batch: int = BATCH,
    memory: float = MEMORY,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Solution:
    """Components by mini-batches; their coefficients (n, r) are left to the caller and not part of the solution (an empty W).

    A fixed sample of examples is looked at every :data:`CHECKED_EVERY` batches.  The fit ends when its mean loss falls :data:`STILL` times in a
    row by no more than ``tol`` of it, or than the standard error of the fall: what further batches gain can then not be told from noise.  The
    components with the lowest loss so far are kept.

    Parameters
    ----------
    rows, H : as for :func:`~npeff_nb.decomposition.hals.hals`.
    max_iter : passes through the data at most.
    on_iteration : called with (batches, loss) at each look; losses are of the sample, scaled to all examples.
    """
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1:
        raise ValueError(f"batch={batch!r}: it must be a whole number of examples from 1 up")
    if not 0 <= memory < 1:
        raise ValueError(f"memory={memory!r}: it must be at least 0 and below 1")
    n = rows.n
    batch = min(batch, n)
    kept = memory ** (batch / n)
    H = H / H.norm(dim=1, keepdim=True).clamp_min(torch.finfo(H.dtype).tiny)
    V, T = torch.zeros(len(H), len(H), dtype=H.dtype, device=H.device), torch.zeros_like(H)
    counting = rows.weights.nonzero().flatten().cpu().numpy()
    checked = rows.take(np.sort(rng.choice(counting, min(len(counting), CHECKED), replace=False)))
    scale = float(rows.weights.sum() / checked.weights.sum())
    best, of_each = H, _losses(checked, H)
    losses, still, seen, converged = [float(of_each.sum()) * scale], 0, 0, False
    order = rng.permutation(n)
    last = max_iter * -(-n // batch)
    for count in range(1, last + 1):
        if seen + batch > n:
            order, seen = rng.permutation(n), 0
        # Sorted: neighbours on disk are read together.
        some = rows.take(np.sort(order[seen : seen + batch]))
        seen += batch
        P, S = some.project(H), H @ H.T
        B = P.square().sum(1)
        W = sweep(torch.zeros_like(B), B, S.square(), SWEEPS)
        weighted = some.weights[:, None] * W
        moment = some.moment(W)
        pace = max(1 / count, 1 - kept)
        V = V + pace * (moment / batch - V)
        T = T + pace * (some.gather(weighted[:, None] * P) / batch - T)
        D = torch.linalg.pinv(V * S, hermitian=True, rtol=1e-12) @ T - H
        used = V.diagonal() > 1e-12 * V.diagonal().max()  # with less, the inverse above has no target for it
        D[~used] = 0
        t = _step(V, T, S, H, D, float((weighted * some.project(D).square().sum(1)).sum()) / batch)
        H = H + t * D
        norms = H.norm(dim=1).clamp_min(torch.finfo(H.dtype).tiny)
        # Unit components; W_j h_jh_jᵀ keeps its meaning, and with it V and T_j = Σ W_ij F̂_i h_j.
        H, V, T = H / norms[:, None], V * norms[:, None].square() * norms.square(), T * norms[:, None]
        if not used.all() and count % CHECKED_EVERY == 1:
            H = _revive(some, W, P, H, ~used)
        if count % CHECKED_EVERY == 0 or count == last:
            now = _losses(checked, H)
            fall = of_each - now
            noise = float(fall.std()) * len(fall) ** 0.5 if len(fall) < len(counting) else 0.0
            still = still + 1 if float(fall.sum()) <= max(tol * losses[-1] / scale, noise) else 0
            if float(fall.sum()) > 0:
                best, of_each = H, now
                losses.append(float(now.sum()) * scale)
            if on_iteration is not None:
                on_iteration(count, losses[-1])
            if still == STILL:
                converged = True
                break
    return Solution(torch.zeros(0, len(H), dtype=H.dtype), best, losses, converged)


def _step(V: Tensor, T: Tensor, S: Tensor, H: Tensor, D: Tensor, own: float) -> float:
    """Minimum in [0, 1] of the mean loss along H + tD: the quartic of :func:`~npeff_nb.decomposition.objective.line_minimum` from running means."""
    C = H @ D.T
    C, E = C + C.T, D @ D.T
    value = np.polynomial.Polynomial([
        0.0,
        float(-4 * (T * D).sum() + 2 * (V * S * C).sum()),
        -2 * own + float((V * (C.square() + 2 * S * E)).sum()),
        float(2 * (V * C * E).sum()),
        float((V * E.square()).sum()),
    ])  # fmt: skip
    roots = value.deriv().trim().roots() if value.deriv().trim().degree() > 0 else np.array([])
    # A batch says little of far away: no step goes beyond the point that the direction aims at.
    candidates = [0.0, 1.0, *(float(root.real) for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1)]
    return min(candidates, key=lambda t: float(value(t)))


def _losses(checked: Stored, H: Tensor) -> Tensor:
    """(m,) ω_i‖F̂_i − Σ_j W_ij h_jh_jᵀ‖² of single examples."""
    B, G = checked.project(H).square().sum(1), (H @ H.T).square()
    W = sweep(torch.zeros_like(B), B, G, SWEEPS)
    return checked.weights * (checked.energies - (W * (2 * B - W @ G)).sum(1))


def _revive(some: Stored, W: Tensor, P: Tensor, H: Tensor, dead: Tensor) -> Tensor:
    """A component without users takes the leading direction of an example of the batch that is explained badly."""
    residual = some.energies - 2 * (W * P.square().sum(1)).sum(1) + ((W @ (H @ H.T).square()) * W).sum(1)
    H = H.clone()
    residual = torch.where(some.weights > 0, residual, 0.0)
    for j, (at, _) in zip(dead.nonzero().flatten().tolist(), some.largest(residual, int(dead.sum())), strict=False):
        H[j] = some.leading(at)[0]
    return H
