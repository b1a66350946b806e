"""Where a gradient is kept: the map from a factor row over p parameters to d features.

Only inner products of rows matter to the decomposition, so a row may be kept in any coordinates that preserve them.

``dense``
    the row itself, d = p; exact, for small parameter sets.
``sketch``
    every matrix seen through two Gaussian maps, U g Vᵀ with E[UᵀU] = E[VᵀV] = I, made while the gradient is still two thin factors, so its cost
    hardly depends on p.  Inner products are unbiased; they are not exact.  A principal-component step then keeps the directions that the
    rows really use: d orthonormal directions, found on a first part of the examples, with the share of energy they carry measured on all of them.
``reduced``
    orthonormal directions in parameter space itself, spanned by the rows of some examples (:mod:`npeff_nb.fisher.landmarks`): a projection, so every
    inner product is exact up to what the two rows have outside the span, |⟨a, b⟩ − ⟨z_a, z_b⟩| ≤ ‖a − z_a‖ ‖b − z_b‖, which is known.
``gram``
    the same with the rows of *all* examples and every direction they span: exact inner products, no gradient kept.
``topk``
    the K largest entries of each example's factor, as the paper keeps them (:mod:`npeff_nb.fisher.sparse`), in coordinates with exactly the same
    inner products.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb import _files

if TYPE_CHECKING:  # a saved map is read and compared on machines without torch
    from torch import Tensor

    from npeff_nb.fisher.layers import Use

SKETCH_FEATURES = 20_736
"""Width of a sketch before the principal components: 24 × 24 for each of a 6-layer transformer's 36 matrices.

On the demo inner products of rows are then off by 0.023 of the rows' lengths (root mean square); 32 × 32 gives 0.021 and 16 × 16
gives 0.031, where the cosines themselves are 0.11 (:meth:`npeff_nb.PEFs.inner_product_report`)."""
KEPT_FEATURES = 512
"""At most this many principal directions are kept ..."""
KEPT_ENERGY = 0.999
"""... and no more than carry this share of the energy of the unit-norm Fishers' factors."""
LANDMARK_ROWS = 1024
"""Rows that span the directions of ``reduced``, unless ``budget`` says otherwise."""
DENSE_LIMIT = 20_000
"""``auto`` keeps rows whole up to this many parameters: no sketch is smaller or more exact."""
REDUCED_UP_TO = 1.0
"""``auto`` takes the certified reduction where it is predicted to cost at most this many times the passes through the model."""
HELD_GB = 1.0
"""... and its landmarks' gradients to hold at most this much."""
GRAM_ROWS = 30_000
"""Factor rows at most whose Gram matrix is taken whole (7 GB in float64)."""

CHOICES = ("auto", "dense", "reduced", "sketch", "topk", "gram")


@dataclass(frozen=True)
class Size:
    """How large an extraction is, for predicting what it costs: n examples of k rows and ``positions`` tokens on average."""

    n: int
    k: int
    positions: float


@dataclass
class FeatureMap:
    """How factor rows became features: enough to give new examples the same coordinates.

    Attributes
    ----------
    kind : one of :data:`CHOICES` but ``"auto"``.
    names, shapes : the parameters, in the order of the features, each seen as a matrix (out, in).
    seed : of the Gaussian maps (sketch) or of the choice of landmarks (reduced).
    side : the maps have at most this many rows (sketch).
    rows : landmark rows (reduced, gram) or entries kept an example (topk).
    why : how ``auto`` came to it, in words.
    scales : factors on the gradients of each parameter; none where all are 1.
    basis : (D, d) float32 with orthonormal columns (sketch), or the mix of inner products with landmark rows, (L, d) float64; None before it is known
        and for dense features.
    landmarks : what the landmark examples were, for making new inner products with them: arrays by name (:mod:`npeff_nb.fisher.landmarks`).
    """

    kind: str
    names: list[str]
    shapes: list[tuple[int, int]]
    seed: int = 0
    side: int = 0
    rows: int = 0
    why: str = ""
    scales: list[float] = field(default_factory=list)
    basis: np.ndarray | None = None
    landmarks: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _maps: dict = field(init=False, default_factory=dict, repr=False, compare=False)
    _slots: dict[str, slice] = field(init=False, default_factory=dict, repr=False, compare=False)

    @classmethod
    def choose(cls, features: str, parameters: pd.DataFrame, seed: int = 0, size: Size | None = None, budget: int | None = None) -> FeatureMap:
        """The map that ``features=`` asks for over these parameters (rows of :func:`~npeff_nb.fisher.parameters.choose_parameters`).

        ``budget`` is the width of the sketch before its principal components, the number of landmark rows (reduced), or entries an example (topk).
        """
        if features not in CHOICES:
            raise ValueError(f"features={features!r} is not known; choose one of {', '.join(map(repr, CHOICES))}")
        if budget is not None and budget < 1:
            raise ValueError(f"budget={budget}: it must be at least 1")
        names, shapes = list(parameters["name"]), [_as_matrix(shape) for shape in parameters["shape"]]
        scaled = "scale" in parameters.columns and (parameters["scale"] != 1).any()
        scales = list(map(float, parameters["scale"])) if scaled else []
        total = int(parameters["numel"].sum())
        size = size or Size(1, 1, 1)
        why = "as asked"
        if features == "auto":
            features, why = _cheapest(shapes, size, budget)
        if features in {"dense", "topk"}:
            return cls(features, names, shapes, rows=min(budget or 65_536, total * size.k) if features == "topk" else 0, why=why,
                       scales=scales)  # fmt: skip
        if features in {"reduced", "gram"}:
            every = size.n * size.k
            if features == "gram" and every > GRAM_ROWS:
                raise ValueError(
                    f"features='gram' takes all inner products of {every:,} factor rows; it is made for up to {GRAM_ROWS:,}: "
                    "use 'reduced' or 'sketch', or fewer examples"
                )
            wanted = every if features == "gram" else min(every, budget or LANDMARK_ROWS)
            return cls(features, names, shapes, seed=seed, rows=wanted, why=why, scales=scales)
        width = budget or SKETCH_FEATURES
        # The largest common side whose sketch stays within the width; thin matrices need less and leave room for the others.
        side = max(s for s in range(1, 257) if s == 1 or sum(min(s, o) * min(s, i) for o, i in shapes) <= width)
        return cls("sketch", names, shapes, seed=seed, side=side, why=why, scales=scales)

    @property
    def id(self) -> str:
        """Equal for equal coordinates: what :meth:`~npeff_nb.NPEFF.transform` asks for before it mixes two sets of Fishers."""
        digest = hashlib.sha256(repr((self.kind, self.names, self.shapes, self.seed, self.side, self.rows, self.scales)).encode())
        if self.basis is not None:
            digest.update(np.ascontiguousarray(self.basis).tobytes())
        for key in sorted(self.landmarks):
            digest.update(np.ascontiguousarray(self.landmarks[key]).tobytes())
        return digest.hexdigest()[:16]

    @property
    def width(self) -> int:
        """Features of one row as they leave :meth:`of_parameter`, before the basis."""
        return sum(self._widths())

    def of_parameter(self, name: str, uses: list[Use]) -> Tensor:
        """Features of one parameter's gradients, (n, K, width of this parameter), before the basis; dense or sketched."""
        u, v = self._sides(name, uses[0]) if self.kind == "sketch" else (None, None)
        total = uses[0].projected(u, v)
        for use in uses[1:]:
            total = total + use.projected(u, v)
        return total.flatten(2)

    def slot(self, name: str) -> slice:
        """Which features belong to a parameter."""
        if not self._slots:  # asked for every parameter of every batch
            ends = np.cumsum([0, *self._widths()]).tolist()
            self._slots.update({own: slice(*pair) for own, pair in zip(self.names, pairwise(ends), strict=True)})
        return self._slots[name]

    def _widths(self) -> list[int]:
        """Features of each parameter, before the basis."""
        return [min(o, self.side) * min(i, self.side) if self.kind == "sketch" else o * i for o, i in self.shapes]

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        plain = {"kind": self.kind, "names": self.names, "shapes": [list(s) for s in self.shapes]}
        return plain | {"seed": self.seed, "side": self.side, "rows": self.rows, "why": self.why, "scales": self.scales}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by names of their own."""
        return ({} if self.basis is None else {"basis": self.basis}) | _files.named("landmarks", self.landmarks)

    @classmethod
    def from_json(cls, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> FeatureMap:
        """From what :meth:`to_json` and :meth:`arrays` gave."""
        shapes = {"shapes": [tuple(s) for s in facts["shapes"]]}
        return cls(**facts | shapes, basis=arrays.get("basis"), landmarks=_files.under("landmarks", arrays))

    def _sides(self, name: str, use: Use) -> tuple[Tensor | None, Tensor | None]:
        like = use.right if hasattr(use, "right") else use.gradient
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


def _cheapest(shapes: list[tuple[int, int]], size: Size, budget: int | None) -> tuple[str, str]:
    """What ``auto`` picks for these matrices, and why, by predicted floating-point operations and memory."""
    total = sum(o * i for o, i in shapes)
    if total <= DENSE_LIMIT:
        return "dense", f"dense: {total:,} parameters are kept whole up to {DENSE_LIMIT:,}"
    rows, t = size.n * size.k, size.positions
    landmarks = min(rows, budget or LANDMARK_ROWS)
    together = size.k * max(1.0, min(64.0, 512 / t))  # rows of a batch
    passes = rows / size.k * t * (1 + size.k)
    # A row is written out and multiplied with every landmark row; these are written out once a batch.
    reduced = rows * (t + landmarks + landmarks * t / together)
    ratio = reduced / passes
    thin = sum(min(t * (i + size.k * o), size.k * o * i) for o, i in shapes)
    held = 4 * thin * landmarks / size.k / 2**30
    said = f"the certified reduction would cost about {ratio:.2g} times the passes through the model and hold {held:.2g} GB"
    return ("reduced", f"reduced: {said}") if ratio <= REDUCED_UP_TO and held <= HELD_GB else ("sketch", f"sketch: {said}")


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
    return (shape[0], int(np.prod(shape[1:], dtype=int))) if shape else (1, 1)
