"""Few coordinates instead of many, in which a fit runs fast: a random sketch, or a basis of the rows' space with a bound on what it can cost.

**Sketch.**  Features are dealt into buckets and added up with random signs (CountSketch: Charikar, Chen and Farach-Colton 2002), which reads the rows
once and keeps their inner products right on average; the sketch's own principal directions are the coordinates.  Coefficients that suit them suit
the rows, and with coefficients the components over the rows are one exact step away.

**Basis.**  In orthonormal directions Q (q, d) the rows are Z = AQᵀ.  For components in the span of Q the loss is the one over Z plus what A has
outside; for any others it is at least the one over Z, since projections contract.  So

    min L_Z ≤ min L ≤ min L_Z + (Σ_i ω_i‖F̂_i‖² − Σ_i ω_i‖Z_iᵀZ_i‖²),

with L_Z over the energy of Z alone.  Either way a fit in few coordinates is a start: the fit over A goes on from it, so that nothing of the
reduction is left in the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.objective import total_energy
from npeff_nb.decomposition.rows import Stored

BUCKETS = 512
"""Numbers that a row becomes in a sketch: two unit vectors' inner product is off by their inverse root, 0.04."""
BUCKETS_OF_EACH = 4
"""And at least so many for each coordinate."""
ROWS_AT_ONCE = 16
"""On a CPU: rows with signs on them stay in the cache until they are added up."""
PASSES = 1
"""Power iterations of the range finder: each is two more products with the rows, and sharpens the leading directions."""


@dataclass(frozen=True)
class Reduced:
    """Rows in a basis.

    Attributes
    ----------
    rows : the coordinates (n, k, q) as rows.
    basis : (q, d), orthonormal.
    kept : share of Σ_i ω_i‖F̂_i‖² that lies within the basis.
    gap : the rest of it, Σ_i ω_i (‖F̂_i‖² − ‖Z_iᵀZ_i‖²): by so much at most the best loss over the basis exceeds the best loss.
    """

    rows: Stored
    basis: Tensor
    kept: float
    gap: float


def sketched(rows: Stored, size: int, rng: np.random.Generator) -> Stored:
    """The rows in the leading ``size`` principal directions of their sketch, (n, k, size)."""
    buckets = buckets_for(rows.d, size)
    signs = torch.from_numpy(rng.integers(0, 2, rows.d, dtype=np.int8)).to(rows.device, rows.computed).mul_(2).sub_(1)
    found = torch.empty(rows.n, rows.k, buckets, dtype=torch.float64, device=rows.device)
    for part, A in rows.parts():
        found[part] = _dealt(A.flatten(0, 1), signs, buckets).view(-1, rows.k, buckets)
    found *= rows.scales[:, None, None]
    flat = found.flatten(0, 1)
    weights = rows.weights.repeat_interleave(rows.k)
    directions = torch.linalg.eigh((weights[:, None] * flat).T @ flat).eigenvectors[:, -size:]
    return Stored((flat @ directions).view(rows.n, rows.k, -1), weights=rows.weights, device=rows.device)


def buckets_for(d: int, size: int) -> int:
    """How many buckets a sketch has from which ``size`` directions of d features are wanted."""
    return min(d, max(BUCKETS, BUCKETS_OF_EACH * size))


def _dealt(A: Tensor, signs: Tensor, buckets: int) -> Tensor:
    """(N, buckets): feature j goes with its sign to bucket j mod ``buckets``, so that neighbours, who may be large together, part."""
    N, d = A.shape
    whole = d // buckets * buckets
    found = torch.empty(N, buckets, dtype=A.dtype, device=A.device)
    step = ROWS_AT_ONCE if A.is_cpu else N
    for at in range(0, N, step):
        signed = A[at : at + step] * signs
        torch.sum(signed[:, :whole].unflatten(1, (-1, buckets)), 1, out=found[at : at + step])
        found[at : at + step, : d - whole] += signed[:, whole:]
    return found


def reduce(rows: Stored, size: int, rng: np.random.Generator, energy: float | None = None) -> Reduced:
    """A randomised range finder (Halko, Martinsson and Tropp 2011): Gaussian sums of rows, then power iterations.

    Parameters
    ----------
    size : directions q; no more than there are rows or features.
    energy : with a share in (0, 1], ``size`` is doubled until ``kept`` reaches it, and then cut to the directions that are needed.
    """
    everything = min(rows.n * rows.k, rows.d)
    total = total_energy(rows)
    while True:
        size = min(size, everything)
        found = _range(rows, size, rng, total)
        if energy is None or found.kept >= energy or size == everything or len(found.basis) < size:
            return found if energy is None else _cut(rows, found, energy, total)
        size *= 2


def _range(rows: Stored, size: int, rng: np.random.Generator, total: float) -> Reduced:
    weights = rows.weights[:, None, None]
    drawn = torch.from_numpy(rng.standard_normal((rows.n, rows.k, size))).to(rows.device)
    basis = _orthonormal(rows.gather(drawn.mul_(weights.sqrt())))
    del drawn
    for _ in range(PASSES):
        basis = _orthonormal(rows.gather(rows.project(basis).mul_(weights)))
    return _reduced(rows, basis, total)


def _reduced(rows: Stored, basis: Tensor, total: float) -> Reduced:
    inside = Stored(rows.project(basis), weights=rows.weights, device=rows.device)
    carried = total_energy(inside)
    return Reduced(inside, basis, carried / total if total else 1.0, max(0.0, total - carried))


def _orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis of directions (q, d), by their Gram: what is lost to its rounding (1e-7) the next product brings back."""
    values, vectors = torch.linalg.eigh(directions @ directions.T)
    real = values > 1e-14 * values[-1]
    basis = (vectors[:, real] / values[real].sqrt()).T @ directions
    # Once more: dividing by small eigenvalues magnified the rounding.
    factor = torch.linalg.cholesky(basis @ basis.T)
    return torch.linalg.solve_triangular(factor, basis, upper=False)


def _cut(rows: Stored, found: Reduced, energy: float, total: float) -> Reduced:
    Z = found.rows.rows.flatten(0, 1)
    weights = rows.weights.repeat_interleave(rows.k)
    vectors = torch.linalg.eigh(Z.T @ (weights[:, None] * Z)).eigenvectors.flip(1).T  # leading directions first
    low, high = 1, len(vectors)
    while low < high:  # the fewest that keep enough: what is kept only grows with their number
        middle = (low + high) // 2
        low, high = (low, middle) if _reduced(found.rows, vectors[:middle], total).kept >= energy else (middle + 1, high)
    return _reduced(rows, vectors[:low] @ found.basis, total)
