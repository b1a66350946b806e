"""Where a gradient is kept: the map from a factor row over p parameters to d features.

Only inner products of rows matter to the decomposition, so a row may be kept in any coordinates that preserve them.

``dense``
    the row itself, d = p; exact, for small parameter sets.
``sketch``
    every matrix seen through two Gaussian maps, U g Vᵀ with E[UᵀU] = E[VᵀV] = I, made while the gradient is still two thin factors, so its cost
    hardly depends on p.  Inner products are unbiased; they are not exact.  A principal-component step then keeps the directions that the
    rows really use: d orthonormal directions, found on a first part of the examples, with the share of energy they carry measured on all of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # a saved map is read and compared on machines without torch
    from torch import Tensor

    from npeff_nb.fisher.gradients import Outer

SKETCH_FEATURES = 36_864
"""Width of a sketch before the principal components: 32 × 32 for each of a 6-layer transformer's 36 matrices."""
KEPT_FEATURES = 512
"""At most this many principal directions are kept ..."""
KEPT_ENERGY = 0.999
"""... and no more than carry this share of the energy of the unit-norm Fishers' factors."""
DENSE_LIMIT = 20_000
"""``auto`` keeps rows whole up to this many parameters: no sketch is smaller or more exact."""

CHOICES = ("auto", "dense", "sketch")


@dataclass
class FeatureMap:
    """How factor rows became features: enough to give new examples the same coordinates.

    Attributes
    ----------
    kind : ``"dense"`` or ``"sketch"``.
    names, shapes : the parameters, in the order of the features, each seen as a matrix (out, in).
    seed : of the Gaussian maps (sketch).
    side : the maps have at most this many rows (sketch).
    basis : (D, d) float32 with orthonormal columns, or None before it is known and for dense features.
    """

    kind: str
    names: list[str]
    shapes: list[tuple[int, int]]
    seed: int = 0
    side: int = 0
    basis: np.ndarray | None = None
    _maps: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def choose(cls, features: str, parameters: pd.DataFrame, seed: int = 0) -> FeatureMap:
        """The map that ``features=`` asks for over these parameters (rows of :func:`~npeff_nb.fisher.parameters.choose_parameters`)."""
        if features not in CHOICES:
            raise ValueError(f"features={features!r} is not known; choose one of {', '.join(map(repr, CHOICES))}")
        shapes = [_as_matrix(shape) for shape in parameters["shape"]]
        total = int(parameters["numel"].sum())
        if features == "dense" or (features == "auto" and total <= DENSE_LIMIT):
            return cls("dense", list(parameters["name"]), shapes)
        # The largest common side whose sketch stays within the width; thin matrices need less and leave room for the others.
        side = max(s for s in range(1, 129) if s == 1 or sum(min(s, o) * min(s, i) for o, i in shapes) <= SKETCH_FEATURES)
        return cls("sketch", list(parameters["name"]), shapes, seed=seed, side=side)

    @property
    def id(self) -> str:
        """Equal for equal coordinates: what :meth:`~npeff_nb.NPEFF.transform` asks for before it mixes two sets of Fishers."""
        digest = hashlib.sha256(repr((self.kind, self.names, self.shapes, self.seed, self.side)).encode())
        if self.basis is not None:
            digest.update(np.ascontiguousarray(self.basis).tobytes())
        return digest.hexdigest()[:16]

    @property
    def width(self) -> int:
        """Features of one row as they leave :meth:`rows`, before the basis."""
        return sum(min(o, self.side) * min(i, self.side) if self.kind == "sketch" else o * i for o, i in self.shapes)

    def rows(self, name: str, uses: list[Outer]) -> Tensor:
        """Features of one parameter's gradients, (n, K, width of this parameter), before the basis."""
        u, v = self._sides(name, uses[0].right) if self.kind == "sketch" else (None, None)
        total = uses[0].projected(u, v)
        for use in uses[1:]:
            total = total + use.projected(u, v)
        return total.flatten(2)

    def slot(self, name: str) -> slice:
        """Which features belong to a parameter."""
        widths = [min(o, self.side) * min(i, self.side) if self.kind == "sketch" else o * i for o, i in self.shapes]
        at = self.names.index(name)
        return slice(sum(widths[:at]), sum(widths[: at + 1]))

    def _sides(self, name: str, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        key = (name, like.device, like.dtype)
        if key not in self._maps:
            out, inn = self.shapes[self.names.index(name)]
            self._maps[key] = tuple(
                None if width <= self.side else self._gaussian(f"{name}|{which}", width).to(like) for which, width in (("out", out), ("in", inn))
            )
        return self._maps[key]

    def _gaussian(self, key: str, width: int) -> Tensor:
        import torch

        # Seeded by name, drawn on the CPU: the same map in every process, on every device, whatever else takes part.
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}|{key}".encode()).digest()[:7], "big")
        draw = torch.randn(self.side, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (draw / self.side**0.5).float()


def principal_basis(rows: Tensor, limit: int = KEPT_FEATURES, energy: float = KEPT_ENERGY) -> Tensor:
    """Orthonormal directions (D, d) that carry ``energy`` of the rows (N, D), at most ``limit``; by the smaller of the two Grams."""
    import scipy.linalg
    import torch

    tall = rows.shape[0] > rows.shape[1]
    # By blocks of columns: a product of the whole with its own transpose would hold a second copy of it.
    blocks = rows.split(4096, dim=1)
    if tall:
        gram = (rows.T @ rows).double().numpy()
    else:
        gram = np.zeros((len(rows), len(rows)))
        for block in blocks:
            gram += (block @ block.T).numpy()
    total, size = float(np.trace(gram)), len(gram)
    if total == 0:  # nothing to carry: any one direction does
        return torch.eye(rows.shape[1], 1, dtype=rows.dtype)
    # Only as many vectors as may be kept: with thousands of rows that halves time and memory.
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=[max(0, size - limit), size - 1], overwrite_a=True, check_finite=False)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    share = np.cumsum(values) / total
    # 1e-7: below that, a float32 Gram's eigenvalues are rounding and their vectors would not be orthogonal.
    real = int((values > 1e-7 * values[0]).sum())
    d = max(1, min(real, int((share < energy).sum()) + 1))
    kept = torch.from_numpy(vectors[:, :d].copy())
    if tall:
        return kept.to(rows.dtype)
    on_rows = (kept / torch.from_numpy(values[:d].copy()).clamp_min(np.finfo(float).tiny).sqrt()).to(rows.dtype)
    basis = torch.cat([block.T @ on_rows for block in blocks])
    # One more orthonormalisation: dividing by small eigenvalues magnified the Gram's rounding. By its own Gram, since a QR of (D, d) in
    # float64 would be the largest thing in memory.
    factor = torch.linalg.cholesky((basis.T @ basis).double())
    return torch.linalg.solve_triangular(factor.to(rows.dtype), basis.T, upper=False).T.contiguous()


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """How the rules of :mod:`npeff_nb.fisher.gradients` see a parameter: (out, everything else); a vector is (out, 1)."""
    return (shape[0], int(np.prod(shape[1:], dtype=int)))
