"""One fit by several processes: each has some of the examples, or some of the features, of the same Fishers.

Both forms are rows like any other, so that a solver runs in every process as it would alone; all processes must run the same one, with the same
arguments.  What is sent in an iteration of :func:`~npeff_nb.decomposition.hals.hals`, in numbers of eight bytes:

* :class:`RowShards`, other examples of the same features: H is whole everywhere, W belongs to the examples here.  Sums over examples are added up:
  (ΩW⊙P)ᵀA with r·d, WᵀΩW with r².  H Dᵀ is handed round, three times r².
* :class:`ColumnShards`, other features of the same examples: W is whole everywhere, H has the features here.  Sums over features are added up:
  ADᵀ with n·k·r, H Dᵀ three times with r².  WᵀΩW is handed round, r².

Processes that decide differently would wait for each other.  So decisions are made from equal bytes: what is added up comes back the same to all
(gloo and NCCL form each sum once), and what each could have rounded or drawn for itself is handed round by the first.  Left to each is algebra on
equal r × r matrices, which gives equal bytes on machines of one kind that use equally many threads.

A process that fails leaves the others waiting.  They raise a RuntimeError when its connection closes (gloo), or when the time of the process group is
up: half an hour (gloo) or ten minutes (NCCL) unless ``torch.distributed.init_process_group`` was given another ``timeout``.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.given import Given
from npeff_nb.decomposition.rows import Rows, Stored
from npeff_nb.fisher.workers import Workers


class _Shards(Rows):
    """What both forms share.

    Attributes
    ----------
    n, weights : of the examples here.
    d : features in all.
    here : which of them are here.
    """

    d: int
    here: slice

    def __init__(self, rows: Stored) -> None:
        self.rows, self.n, self.k, self.device, self.weights = rows, rows.n, rows.k, rows.device, rows.weights
        self.shapes = _told([rows.n, rows.k, rows.d], rows.device)
        for rank, shape in enumerate(self.shapes):
            if 0 in shape:
                what = _shape(shape)
                raise ValueError(f"process {rank} of {len(self.shapes)} has {what}: give each some of them, or start fewer processes")

    def everyone(self, x: Tensor) -> Tensor:
        """Numbers of all examples, (n_all, ·), from those of the examples here."""
        return x

    def share(self, x: Tensor) -> Tensor:
        """Of the first process's numbers: each may have drawn others."""
        return _from(0, x.clone())

    def part(self, H: Tensor) -> Tensor:
        """Of the first process's directions: each may have drawn others."""
        return _from(0, H.clone())

    def draw(self, mass: Tensor, rng: np.random.Generator) -> int:
        """The example that one process would draw from the mass of all; ``rng`` moves on in every process, the first one's draw counts."""
        mass_ = self.everyone(mass).cpu().numpy()
        drawn = rng.choice(len(mass_), p=mass_ / mass_.sum()) if mass_.sum() > 0 else rng.integers(len(mass_))
        return int(_from(0, torch.tensor(drawn, device=self.device)))

    def largest(self, values: Tensor, count: int) -> list[tuple[int, float]]:
        """The same in every process, out of all examples."""
        found = super().largest(self.everyone(values), count)
        same = _from(0, torch.tensor(found, dtype=torch.float64, device=self.device))
        return [(int(at), value) for at, value in same.tolist()]


class RowShards(_Shards):
    """Other examples in every process.

    Numbers of examples, in :meth:`draw`, :meth:`largest`, :meth:`example` and what comes of it, count through all processes, by rank.

    Parameters
    ----------
    rows : the examples here, at least one, each with as many factor rows and features as in the other processes.

    Raises
    ------
    ValueError
        In every process, when one has no examples, or another number of factor rows or features.
    """

    def __init__(self, rows: Stored) -> None:
        super().__init__(rows)
        for rank, shape in enumerate(self.shapes):
            if shape[1:] != self.shapes[0][1:]:
                raise ValueError(
                    f"process {rank} has {_shape(shape)}, process 0 has {_shape(self.shapes[0])}: when the examples are shared out, all need the "
                    "same features in the same order and as many factor rows (zero rows fill up)"
                )
        ends = np.cumsum([n for n, _, _ in self.shapes]).tolist()
        self.starts, self.d = [0, *ends[:-1]], rows.d
        self.here = slice(self.starts[Workers.here().rank], ends[Workers.here().rank])

    @property
    def n_all(self) -> int:
        """Examples of all processes."""
        return sum(n for n, _, _ in self.shapes)

    def project(self, H: Tensor) -> Tensor:
        """A Hᵀ of the examples here."""
        return self.rows.project(H)

    def gather(self, V: Tensor) -> Tensor:
        """VᵀA over all examples: r·d numbers are added up."""
        return _summed(self.rows.gather(V))

    def inner(self, H: Tensor, D: Tensor, Q: Tensor) -> Tensor:
        """H Dᵀ as the first process has it."""
        return _from(0, self.rows.inner(H, D, Q))

    def example(self, at: int) -> Tensor:
        """The rows of an example of any process, from the one that has it."""
        owner = int(np.searchsorted(self.starts, at, side="right")) - 1
        mine = self.here.start <= at < self.here.stop
        rows = self.rows.example(at - self.here.start) if mine else torch.empty(self.k, self.d, dtype=torch.float64, device=self.device)
        return _from(owner, rows)

    def _energies(self) -> Tensor:
        return self.rows.energies

    def total(self, x: Tensor) -> Tensor:
        """Added up over the processes."""
        return _summed(x.clone(memory_format=torch.contiguous_format))

    def whole(self, H: Tensor) -> Tensor:
        """As the first process has them: the others may have rounded otherwise."""
        return _from(0, H.clone())

    def everyone(self, x: Tensor) -> Tensor:
        """Those of all processes, by rank."""
        return _placed(x, self.here, self.n_all, 0)

    def share(self, x: Tensor) -> Tensor:
        """The first process's, cut to the examples here."""
        return super().share(x)[self.here]


class ColumnShards(_Shards):
    """Other features of the same examples in every process.

    Parameters
    ----------
    rows : the features here, at least one, scaled by the norms of the whole Fishers (:func:`shared` sees to it).

    Raises
    ------
    ValueError
        In every process, when one has no features, or other examples: another number of them, of factor rows, or other weights.
    """

    def __init__(self, rows: Stored) -> None:
        super().__init__(rows)
        for rank, shape in enumerate(self.shapes):
            if shape[:2] != self.shapes[0][:2]:
                raise ValueError(
                    f"process {rank} has {_shape(shape)}, process 0 has {_shape(self.shapes[0])}: when the features are shared out, all need the "
                    "same examples in the same order, with as many factor rows"
                )
        _check_same(rows.weights, "weights of the examples")
        ends = np.cumsum([d for _, _, d in self.shapes]).tolist()
        self.d = ends[-1]
        self.here = slice(ends[Workers.here().rank] - rows.d, ends[Workers.here().rank])

    def project(self, H: Tensor) -> Tensor:
        """A Hᵀ over all features: n·k·r numbers are added up."""
        return _summed(self.rows.project(H))

    def gather(self, V: Tensor) -> Tensor:
        """VᵀA, the features here."""
        return self.rows.gather(V)

    def inner(self, H: Tensor, D: Tensor, Q: Tensor) -> Tensor:
        """H Dᵀ over all features."""
        return _summed(self.rows.inner(H, D, Q))

    def example(self, at: int) -> Tensor:
        """The rows of an example, the features here."""
        return self.rows.example(at)

    def _energies(self) -> Tensor:
        return _summed(_grams(self.rows)).square().sum((1, 2))

    def total(self, x: Tensor) -> Tensor:
        """``x`` is a sum over all examples already; the first process's counts."""
        return _from(0, x.clone(memory_format=torch.contiguous_format))

    def whole(self, H: Tensor) -> Tensor:
        """The features of all processes, by rank."""
        return _placed(H, self.here, self.d, 1)

    def part(self, H: Tensor) -> Tensor:
        """The first process's, cut to the features here."""
        return super().part(H)[:, self.here]


def shared(found: Given, how: str) -> tuple[Rows, float, int]:
    """What every process was given, as the whole that it is: rows, Σ_i ω_i‖F̂_i‖², and factor rows that are not zero.

    Parameters
    ----------
    how : ``"rows"``, other examples in every process; ``"columns"``, other features, whose Fishers are put to unit norm as a whole here.

    Raises
    ------
    ValueError
        In every process, when the parts do not fit together.
    """
    if how == "rows":
        rows = RowShards(found.rows)
        total, carried = rows.total(torch.tensor([found.total, found.carried], dtype=torch.float64, device=rows.device)).tolist()
        return rows, total, int(carried)
    ColumnShards(found.rows)  # before anything is added up, that it can be
    scales = torch.as_tensor(found.scales, device=found.rows.device)
    if found.pefs is not None:
        _check_same(scales, "norms of the whole Fishers")
        present, factor = scales > 0, torch.ones_like(scales)
    else:
        # √‖F_i‖ of the part here, against its sum over all parts: both far from where a square overflows.
        heights = torch.where(scales > 0, 1 / scales, 0.0)
        whole = _summed(heights.clone())
        present, factor = whole > 0, torch.where(whole > 0, heights / whole, 0.0)
    grams = _summed(_grams(found.rows) * factor[:, None, None] ** 2)
    if found.pefs is None:
        factor = torch.where(present, factor / grams.square().sum((1, 2)).sqrt().sqrt(), 0.0)
    part = copy.copy(found.rows)  # not a second copy of the rows: only their scales are new
    part.scales, part.energies = part.scales * factor, part.energies * factor**4
    return ColumnShards(part), float(part.weights[present].sum()), int((grams.diagonal(dim1=1, dim2=2) > 0).sum())


def _grams(rows: Stored) -> Tensor:
    """A_iA_iᵀ, (n, k, k), over the features here."""
    found = torch.empty(rows.n, rows.k, rows.k, dtype=torch.float64, device=rows.device)
    for part, A in rows.parts():
        A = A.double() * rows.scales[part, None, None]
        found[part] = A @ A.transpose(1, 2)
    return found


# What processes say to each other; alone, nothing is said.


def _summed(x: Tensor) -> Tensor:
    """``x`` added up over the processes, in place: the same bytes in all."""
    if Workers.here().number > 1:
        torch.distributed.all_reduce(x)
    return x


def _from(rank: int, x: Tensor) -> Tensor:
    """``x`` as one process has it, in place."""
    if Workers.here().number > 1:
        torch.distributed.broadcast(x, rank)
    return x


def _placed(x: Tensor, here: slice, size: int, dim: int) -> Tensor:
    """The parts of all processes side by side: each puts its own among zeros, and the sum has them all."""
    found = x.new_zeros([*x.shape[:dim], size, *x.shape[dim + 1 :]])
    found.narrow(dim, here.start, here.stop - here.start).copy_(x)
    return _summed(found)


def _told(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Some whole numbers of every process, by rank."""
    here = Workers.here()
    found = torch.zeros(here.number, len(numbers), dtype=torch.int64, device=device)
    found[here.rank] = torch.tensor(numbers)
    return _summed(found).tolist()


def _check_same(x: Tensor, what: str) -> None:
    same = _told([int(torch.equal(x, _from(0, x.clone())))], x.device)
    if [0] in same:
        raise ValueError(f"process {same.index([0])} has other {what} than process 0: give all processes the same, in the same order")


def _shape(shape: list[int]) -> str:
    return f"{shape[0]} examples of {shape[1]} factor rows over {shape[2]} features"
