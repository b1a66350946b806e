"""Few coordinates instead of many: a basis of the rows' space in which a fit runs fast, and how much it can cost at most.

In orthonormal directions Q (q, d) the rows are Z = AQᵀ.  For components in the span of Q the loss is the one over Z plus what A has outside; for
any others it is at least the one over Z, since projections contract.  So

    min L_Z ≤ min L ≤ min L_Z + (Σ_i ω_i‖F̂_i‖² − Σ_i ω_i‖Z_iᵀZ_i‖²),

with L_Z over the energy of Z alone.  A fit in Z is a start: the fit over A goes on from it, so that nothing of the reduction is left in the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.objective import total_energy
from npeff_nb.decomposition.rows import Stored

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
