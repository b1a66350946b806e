"""What a solver sees of the Fishers: their stacked factor rows A, through a handful of products.

Solvers are written on these products alone, so they need not know where the rows are: in memory or on disk (:class:`Stored`), given by their inner
products (:class:`Gram`), or shared out among processes (:mod:`npeff_nb.decomposition.shards`).  Directions (r, ·) are in whatever coordinates
the rows have: features for :class:`Stored`, weights Θ on the rows (H = ΘA) for :class:`Gram`.

Shapes: n examples, k factor rows each, N = n·k, d features, r directions.  What comes out is float64: losses are small differences of large sums.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

CONVERTED_UP_TO = 2**30
"""Bytes of float64 rows that are held; more is read in its own precision and by parts, so that no second copy of it is made."""
PART = 2**28
"""Bytes that are looked at together when rows are read by parts: enough for sums over parts to cost nothing beside the products."""

RIDGE = 1e-14
"""What the diagonal of a Gram matrix gets, as a share of its trace.  Weights on rows that depend on each other may add up to nothing; along these,
where a Gram matrix has only its rounding, a line search would go anywhere."""


class Rows(ABC):
    """The rows of unit-norm Fishers F̂_i = A_iᵀA_i, i < n.

    Attributes
    ----------
    n, k : examples here, and rows of each (zero rows where one has fewer).
    device : where products are computed.
    weights : (n,) how much each example counts in sums; one by default.
    """

    n: int
    k: int
    device: torch.device
    weights: Tensor

    @abstractmethod
    def project(self, H: Tensor) -> Tensor:
        """P = A Hᵀ, (n, k, r): every row along every direction."""

    @abstractmethod
    def gather(self, V: Tensor) -> Tensor:
        """VᵀA, (r, ·): directions that are sums of rows with weights V (n, k, r)."""

    @abstractmethod
    def inner(self, H: Tensor, D: Tensor, Q: Tensor) -> Tensor:
        """H Dᵀ as vectors of parameter space, (r, s), with Q = ``project(D)``."""

    @abstractmethod
    def example(self, at: int) -> Tensor:
        """The rows of one example as directions, (k, ·)."""

    @abstractmethod
    def _energies(self) -> Tensor: ...

    @cached_property
    def energies(self) -> Tensor:
        """(n,) ‖F̂_i‖²_F by the k × k Grams."""
        return self._energies()

    def pick(self, numbers: np.ndarray) -> Tensor:
        """Single rows as directions, (m, ·), by their numbers in the stack (i·k + y)."""
        return torch.stack([self.example(int(at) // self.k)[int(at) % self.k] for at in numbers])

    def leading(self, at: int) -> Tensor:
        """(1, ·) the unit direction that carries most of one example's Fisher."""
        own = self.example(at)
        return leading(own, self.inner(own, own, self.project(own)))

    def overlap(self, at: int) -> Tensor:
        """(n,) ⟨F̂_i, F̂_at⟩ of every example with one."""
        return self.project(self.example(at)).square().sum((1, 2))

    # Processes that share the work overrule what follows (:mod:`npeff_nb.decomposition.shards`); alone, everything is here.

    @property
    def n_all(self) -> int:
        """Examples in all."""
        return self.n

    def whole(self, H: Tensor) -> Tensor:
        """Directions with all their coordinates, (r, d), from those here."""
        return H

    def part(self, H: Tensor) -> Tensor:
        """Of directions with all their coordinates, (r, d), those here."""
        return H

    def share(self, x: Tensor) -> Tensor:
        """Of numbers for all examples, (n_all, ·), those of the examples here."""
        return x

    # Sums over all examples.

    def total(self, x: Tensor) -> Tensor:
        """``x``, a sum over the examples here, summed over all."""
        return x

    def moment(self, W: Tensor) -> Tensor:
        """Σ_i ω_i W_iᵀW_i, (r, r)."""
        return self.total(W.T @ (self.weights[:, None] * W))

    def draw(self, mass: Tensor, rng: np.random.Generator) -> int:
        """An example drawn with probability proportional to ``mass`` (n,); any when all mass is zero."""
        mass_ = mass.cpu().numpy()
        return int(rng.choice(self.n, p=mass_ / mass_.sum())) if mass_.sum() > 0 else int(rng.integers(self.n))

    def largest(self, values: Tensor, count: int) -> list[tuple[int, float]]:
        """The ``count`` examples with the largest of ``values`` (n,), falling."""
        found = values.topk(min(count, len(values)))
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


class Stored(Rows):
    """Rows kept as numbers, in memory or mapped from disk.

    Parameters
    ----------
    rows : (n, k, d), of any floating type; an array mapped from disk is never read whole.
    scales : (n,) each example's rows are multiplied with these; ones by default.
    weights : (n,) how much each example counts; ones by default.
    device : where products are computed.  Rows beyond :data:`CONVERTED_UP_TO` go there part by part.
    energies : (n,) ‖F̂_i‖²_F of the scaled rows, where they are known already.
    """

    def __init__(
        self,
        rows: np.ndarray | Tensor,
        scales: np.ndarray | Tensor | None = None,
        weights: np.ndarray | Tensor | None = None,
        device: torch.device | str = "cpu",
        energies: np.ndarray | Tensor | None = None,
    ) -> None:
        self.rows = rows if torch.is_tensor(rows) else _as_tensor(rows)
        self.n, self.k, self.d = self.rows.shape
        self.device = torch.device(device)
        self._ones = ones = torch.ones(self.n, dtype=torch.float64, device=self.device)
        self.weights = ones if weights is None else torch.as_tensor(weights, dtype=torch.float64, device=self.device)
        self.scales = ones if scales is None else torch.as_tensor(scales, dtype=torch.float64, device=self.device)
        if 8 * self.rows.numel() <= CONVERTED_UP_TO:
            self.rows = self.rows.to(self.device, torch.float64, copy=True).mul_(self.scales[:, None, None])
            self.scales = ones
        if energies is not None:
            self.energies = torch.as_tensor(energies, dtype=torch.float64, device=self.device)

    def project(self, H: Tensor) -> Tensor:
        """A Hᵀ, part by part, (n, k, r)."""
        P = torch.empty(self.n, self.k, len(H), dtype=torch.float64, device=self.device)
        H = H.to(self.computed)
        for part, A in self.parts():
            P[part] = _product(A.flatten(0, 1), H).reshape(-1, self.k, len(H))
        return self._scaled(P)

    def gather(self, V: Tensor) -> Tensor:
        """VᵀA, part by part, (r, d)."""
        found = torch.zeros(self.d, V.shape[2], dtype=torch.float64, device=self.device)
        weights = self._scaled(V.to(torch.float64, copy=self.scales is not self._ones)).to(self.computed)
        for part, A in self.parts():
            found += _product(A.flatten(0, 1).T, weights[part].flatten(0, 1).T)
        return found.T.contiguous()

    def inner(self, H: Tensor, D: Tensor, Q: Tensor) -> Tensor:
        """H Dᵀ; the coordinates say all."""
        return H @ D.T

    def example(self, at: int) -> Tensor:
        """The rows themselves, (k, d)."""
        return self.rows[at].to(self.device, torch.float64) * self.scales[at]

    def take(self, which: np.ndarray | slice) -> Stored:
        """Some of the examples, in memory."""
        index = which if isinstance(which, slice) else torch.from_numpy(which)
        scales, weights = self.scales.cpu()[index].numpy(), self.weights.cpu()[index].numpy()
        return Stored(self.rows[index], scales, weights, self.device)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows (m, k, d) on the device, part by part, without their scales."""
        whole = self.rows.device == self.device and 8 * self.rows.numel() <= CONVERTED_UP_TO
        step = self.n if whole else max(1, PART // (self.rows.element_size() * self.k * self.d))
        for at in range(0, self.n, step):
            part = slice(at, at + step)
            yield part, self.rows[part].to(self.device, self.computed)

    def _scaled(self, x: Tensor) -> Tensor:
        """``x`` (n, ·, ·) times each example's scale, in place."""
        return x if self.scales is self._ones else x.mul_(self.scales[:, None, None])

    @property
    def computed(self) -> torch.dtype:
        """In which products are computed: that of the rows, at least float32."""
        return torch.promote_types(self.rows.dtype, torch.float32)

    def _energies(self) -> Tensor:
        found = torch.empty(self.n, dtype=torch.float64, device=self.device)
        for part, A in self.parts():
            # Scaled first: fourth powers of small or large numbers are none.
            A = A.double() * self.scales[part, None, None]
            found[part] = (A @ A.transpose(1, 2)).square().sum((1, 2))
        return found


class Gram(Rows):
    """Rows known by their inner products alone, K = AAᵀ; directions are weights Θ (r, N) on them.

    Every minimiser lies in the span of the rows, so nothing is lost, and an iteration costs one product with K whatever the number of features.
    """

    def __init__(self, K: Tensor, k: int, weights: Tensor | None = None) -> None:
        self.K, self.k, self.n = K, k, len(K) // k
        self.device = K.device
        self.weights = torch.ones(self.n, dtype=K.dtype, device=K.device) if weights is None else weights

    @classmethod
    def of(cls, rows: Stored) -> Self:
        """The Gram matrix of stored rows, summed over slabs of features in float64."""
        N = rows.n * rows.k
        K = torch.zeros(N, N, dtype=torch.float64, device=rows.device)
        step = max(1, PART // (8 * N))
        for at in range(0, rows.d, step):
            slab = rows.rows[..., at : at + step].to(rows.device, torch.float64) * rows.scales[:, None, None]
            slab = slab.reshape(N, -1)
            K.addmm_(slab, slab.T)
        K.diagonal().add_(RIDGE * K.trace())
        return cls(K, rows.k, rows.weights)

    def project(self, H: Tensor) -> Tensor:
        """K Hᵀ, (n, k, r)."""
        return _product(self.K, H).reshape(self.n, self.k, len(H))

    def gather(self, V: Tensor) -> Tensor:
        """The weights themselves, (r, N)."""
        return V.flatten(0, 1).T

    def inner(self, H: Tensor, D: Tensor, Q: Tensor) -> Tensor:
        """Θ (K Φᵀ), where the second factor is Q."""
        return H @ Q.flatten(0, 1)

    def example(self, at: int) -> Tensor:
        """Weight one on each of its rows, (k, N)."""
        rows = torch.zeros(self.k, len(self.K), dtype=self.K.dtype, device=self.device)
        rows[range(self.k), range(at * self.k, (at + 1) * self.k)] = 1
        return rows

    def _energies(self) -> Tensor:
        blocks = self.K.view(self.n, self.k, self.n, self.k).diagonal(dim1=0, dim2=2)
        return blocks.square().sum((0, 1))


def _product(many: Tensor, few: Tensor) -> Tensor:
    """``many`` (N, d) times ``few`` (r, d) transposed, (N, r), the faster way round: on CPUs a factor of two or three either way."""
    return (few @ many.T).T if many.dtype == torch.float64 else many @ few.T


def leading(rows: Tensor, gram: Tensor) -> Tensor:
    """(1, ·) the unit direction that carries most of the Fisher of ``rows`` (k, ·), whose inner products are ``gram`` (k, k)."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors[:, -1:].T @ rows) / values[-1].clamp_min(torch.finfo(values.dtype).tiny).sqrt()


def _as_tensor(rows: np.ndarray) -> Tensor:
    if any(stride < 0 for stride in rows.strides):  # torch has none of these
        rows = rows.copy()
    with warnings.catch_warnings():  # torch warns of arrays that may not be written to: nothing here writes to them
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(rows)
