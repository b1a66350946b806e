"""HDF5 files of per-example Fishers as the reference implementation of NPEFF writes and reads them.

Three kinds of file, told apart by what they hold.

``LRM``
    every example's factor with the same number of rows; ``LVRM``: with rows only for likely classes; ``D``: the diagonal alone.

A way out to its CUDA programs, and a way in for Fishers made earlier.  Fishers over all of a model's parameters, by address, are
:class:`~npeff_nb.fisher.sparse.SparseRows` and :class:`~npeff_nb.fisher.sparse.SparseDiagonals` here.  Needs h5py, the extra ``interop``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from npeff_nb.fisher.pefs import PEFs
from npeff_nb.fisher.predictions import gold_labels
from npeff_nb.fisher.sparse import SparseDiagonals, SparseRows
from npeff_nb.interop import _hdf5

LARGEST_FACTOR = 2**31
"""Most entries of a whole factor: the reference numbers them row after row, y·p + j, in 4-byte integers as well."""

_DECOMPOSITION = ("data/W", "data/G", "data/H")


@dataclass(frozen=True, eq=False)
class ReferencePEFs:
    """What a file of the reference holds.

    Attributes
    ----------
    kind : ``"LRM"``, ``"LVRM"`` or ``"D"``.
    labels : (n,) int64, as the data set had them; −1 where it had none.
    logits : (n, c) float32.
    norms : (n,) float64 of the whole Fishers, as precise as the file's float32: ‖F_i‖_F, for ``"D"`` ‖d_i‖₂.
    rows : the factors (LRM, LVRM), not normalised.  Row y is class y in an LRM file, unless it was made of the most probable classes only; in an LVRM
        file it is the (y + 1)-th most probable class, whichever that is, and rows after an example's rank are empty.
    diagonals : the diagonals (D).
    ranks : (n,) int64, rows that each example has (LVRM).
    min_prob_class : the probability from which a class has a row (LVRM), None where the file does not say.
    """

    kind: Literal["LRM", "LVRM", "D"]
    labels: np.ndarray
    logits: np.ndarray
    norms: np.ndarray
    rows: SparseRows | None = None
    diagonals: SparseDiagonals | None = None
    ranks: np.ndarray | None = None
    min_prob_class: float | None = None

    def __len__(self) -> int:
        return len(self.labels)


def write_pefs(path: str | os.PathLike, pefs: PEFs) -> Path:
    """Writes extracted Fishers: the factors of ``features="topk"`` as an LRM file, else the diagonals of ``diagonal=K`` as a D file.

    Labels are the gold labels as class numbers where the examples have them, −1 elsewhere.

    Raises
    ------
    ValueError
        When the Fishers hold neither: the format keeps the largest entries over all parameters, which no other features are.
    """
    gold = gold_labels(pefs.examples, pefs.classes)
    number = {name: at for at, name in enumerate(pefs.classes)}
    labels = np.array([-1] * len(pefs) if gold is None else [number.get(name, -1) for name in gold], dtype=np.int32)
    if pefs.sparse is not None:
        return write_lrm(path, pefs.sparse, labels=labels, logits=pefs.logits, norms=pefs.norms)
    if pefs.diagonals is not None:
        return write_d(path, pefs.diagonals, labels=labels, logits=pefs.logits)
    raise ValueError(
        f"these Fishers were extracted with features={pefs.feature_map.kind!r}; the reference's files hold largest entries: "
        "extract with features='topk' (LRM) or diagonal=K (D)"
    )


def write_lrm(path: str | os.PathLike, rows: SparseRows, *, labels: Any, logits: Any, norms: Any) -> Path:
    """Writes factors that all have the same number of rows.  ``norms`` are ‖F_i‖_F of the whole Fishers: the reference divides by them.

    The reference has a row √p_y ∇log p_y for each class and calls their number ``n_classes``; its programs use AᵀA alone, so any factor of the same
    Fisher will do, as long as all files that meet have equally many rows.  The file is in memory once before it is on disk.

    Raises
    ------
    ValueError
        When the format has no room for them or the arrays do not belong together.
    """
    _check_limits(rows.size, rows.rank)
    arrays = _about(len(rows), labels, logits, "data/logits") | _factors(rows, norms) | {"data/col_offsets": rows.offsets}
    return _hdf5.write(path, arrays, {"data": {"n_classes": rows.rank, "n_parameters": int(rows.size)}})


def write_lvrm(path: str | os.PathLike, rows: SparseRows, ranks: Any, *, labels: Any, logits: Any, norms: Any, min_prob_class: float) -> Path:
    """Writes factors of which example i has ``ranks[i]`` rows, most probable class first; its other rows are empty and left out.

    ``min_prob_class`` is the probability from which a class got a row; it is recorded and changes nothing.

    Raises
    ------
    ValueError
        As for :func:`write_lrm`, or when a row after an example's rank holds something.
    """
    ranks = _numbers("ranks", ranks, np.int32, (len(rows),))
    if ranks.size and (ranks.min() < 1 or ranks.max() > rows.rank):
        raise ValueError(f"ranks go from {ranks.min()} to {ranks.max()}; these rows allow 1 to {rows.rank}")
    beyond = rows.offsets[np.arange(len(rows)), ranks] != rows.values.shape[1]
    if beyond.any():
        i = beyond.argmax()
        raise ValueError(f"example {i} has rank {ranks[i]} and entries in a row after that: raise its rank or leave those entries out")
    if not 0 <= min_prob_class <= 1:
        raise ValueError(f"min_prob_class={min_prob_class!r} is no probability; expected 0 to 1")
    _check_limits(rows.size, int(ranks.max(initial=1)))
    sizes = np.diff(rows.offsets)[np.arange(rows.rank) < ranks[:, None]]
    arrays = _about(len(rows), labels, logits, "data/logits") | _factors(rows, norms) | {"data/ranks": ranks, "data/col_sizes": sizes}
    return _hdf5.write(path, arrays, {"data": {"min_prob_class": float(min_prob_class), "n_parameters": int(rows.size)}})


def write_d(path: str | os.PathLike, diagonals: SparseDiagonals, *, labels: Any, logits: Any) -> Path:
    """Writes diagonals.

    Raises
    ------
    ValueError
        As for :func:`write_lrm`.
    """
    _check_limits(diagonals.size, 1)
    arrays = _about(len(diagonals), labels, logits, "data/predicted_logits") | {
        "data/dense_fisher_norms": _norms(diagonals.norms, len(diagonals)),
        "data/fisher/values": diagonals.values,
        "data/fisher/indices": diagonals.indices.astype(np.int32),
    }
    # Its C++ reader insists on 4 bytes here, although its own Python writes 8.
    return _hdf5.write(path, arrays, {"data/fisher": {"dense_fisher_size": np.int32(diagonals.size)}})


def read(path: str | os.PathLike, *, cumulative_offsets: bool = True, n_examples: int | None = None) -> ReferencePEFs:
    """Reads any of the three kinds.

    Parameters
    ----------
    path : the file.
    cumulative_offsets : False for LRM files of the early generation, whose ``col_offsets`` say how many entries each row has; the file does not tell.
    n_examples : only the first so many.  A file made for more examples than its data set had ends in some that were never filled in.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is no such file, is incomplete or contradicts itself; the message names the file and the place.
    """
    _hdf5.check_examples(n_examples)
    with _hdf5.opened(path) as file:
        return _Reader(file, n_examples).read(cumulative_offsets)


class _Reader:
    """One open file: every piece is checked for type and shape before it is read."""

    def __init__(self, file: Any, n: int | None) -> None:
        self.file, self.n = file, n

    def read(self, cumulative_offsets: bool) -> ReferencePEFs:
        if "data/fisher/values" in self.file:
            return self.diagonals()
        if "data/ranks" in self.file:
            return self.variable_rank()
        if "data/col_offsets" in self.file:
            return self.fixed_rank(cumulative_offsets)
        if found := [name for name in _DECOMPOSITION if name in self.file]:
            raise ValueError(f"it holds {' and '.join(found)}: a decomposition, not the Fishers that it was made of")
        raise ValueError(
            "it has neither data/fisher/values (D) nor data/ranks (LVRM) nor data/col_offsets (LRM): it is another program's, or an LVRM run "
            "was interrupted, whose file is lost since ranks are written last"
        )

    def diagonals(self) -> ReferencePEFs:
        values, indices, norms = self.entries("data/fisher/values", "data/fisher/indices", "data/dense_fisher_norms")
        kept = SparseDiagonals(values, indices, norms, _hdf5.count(self.file, "data/fisher", "dense_fisher_size"))
        return ReferencePEFs("D", *self.about(), norms, diagonals=kept)

    def fixed_rank(self, cumulative: bool) -> ReferencePEFs:
        values, columns, norms = self.entries("data/values", "data/row_indices", "data/pef_frobenius_norms")
        stored = self.examples("data/col_offsets", np.int64, 2)
        offsets = _offsets(stored, _hdf5.count(self.file, "data", "n_classes"), values.shape[1], cumulative)
        rows = SparseRows.from_unsorted(values, columns, offsets, _hdf5.count(self.file, "data", "n_parameters"))
        return ReferencePEFs("LRM", *self.about(), norms, rows)

    def variable_rank(self) -> ReferencePEFs:
        values, columns, norms = self.entries("data/values", "data/row_indices", "data/pef_frobenius_norms")
        ranks, sizes = self.examples("data/ranks", np.int64, 1), _hdf5.dataset(self.file, "data/col_sizes", np.int64, 1)
        total = int(_hdf5.dataset(self.file, "data/ranks", np.int64, 1).sum())  # of all examples, also those that are not asked for
        if len(sizes) != total:
            raise ValueError(f"data/col_sizes has {len(sizes)} entries; expected {total}, the sum of data/ranks: it is damaged, make it again")
        if (ranks < 1).any():
            i = ranks.argmin()
            raise ValueError(f"data/ranks says {ranks[i]} for example {i}; expected 1 factor row or more: min_prob_class was too high for it")
        padded = np.zeros((len(ranks), ranks.max(initial=1)), dtype=np.int64)
        padded[np.arange(padded.shape[1]) < ranks[:, None]] = sizes[: ranks.sum()]
        if (wrong := (padded < 0).any(axis=1) | (padded.sum(axis=1) != values.shape[1])).any():
            i = wrong.argmax()
            raise ValueError(f"data/col_sizes of example {i} are {padded[i, : ranks[i]]}; expected {values.shape[1]} entries in all: make it again")
        offsets = _cumulated(padded)
        rows = SparseRows.from_unsorted(values, columns, offsets, _hdf5.count(self.file, "data", "n_parameters"))
        probability = float(_hdf5.number(self.file, "data", "min_prob_class")) if "min_prob_class" in self.file["data"].attrs else None
        return ReferencePEFs("LVRM", *self.about(), norms, rows, ranks=ranks, min_prob_class=probability)

    def entries(self, values_at: str, indices_at: str, norms_at: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What was kept of each example, where it belongs, and the norm of the whole."""
        values = self.examples(values_at, np.float32, 2)
        indices = self.examples(indices_at, np.integer, 2)
        norms = self.examples(norms_at, np.float64, 1)
        if indices.shape != values.shape:
            raise ValueError(f"{indices_at} has shape {indices.shape}; expected {values.shape}, that of {values_at}: it is damaged, make it again")
        if not (np.isfinite(norms) & (norms >= 0)).all():
            raise ValueError(f"{norms_at} holds a number that is negative or not finite: make it again without that example")
        # Offsets and indices of examples that were never filled in are zeros too, and would be taken for damage.
        filled = np.flatnonzero((norms != 0) | values.any(axis=1) | indices.any(axis=1))
        n = filled[-1] + 1 if len(filled) else 0
        if n < len(norms):
            raise ValueError(
                f"the last {len(norms) - n} of {len(norms)} examples are all zeros: the run was interrupted, or the data set had fewer; "
                + (f"read the others with n_examples={n}" if n else "nothing is left to read")
            )
        return values, indices, norms

    def about(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and logits.  The reference has two names for the latter and uses both for D files."""
        logits = "data/predicted_logits" if "data/predicted_logits" in self.file else "data/logits"
        return self.examples("data/labels", np.int64, 1), self.examples(logits, np.float32, 2)

    def examples(self, name: str, dtype: type, ndim: int) -> np.ndarray:
        """A dataset that has one entry an example; the first one read says how many, unless the caller did."""
        found = _hdf5.dataset(self.file, name, dtype, ndim, slice(self.n))
        if self.n is None:
            self.n = len(found)
        if len(found) != self.n:
            raise ValueError(f"{name} has {len(found)} examples; expected {self.n}")
        return found


def _offsets(stored: np.ndarray, rank: int, kept: int, cumulative: bool) -> np.ndarray:
    """(n, rank + 1) int32, cumulative, from either generation of ``col_offsets``."""
    # Sizes may come behind a zero or alone: nobody wrote down which.
    sizes = stored[:, 1:] if stored.shape[1] == rank + 1 and not stored[:, 0].any() else stored
    are_sizes = sizes.shape[1] == rank and bool((sizes >= 0).all() and (sizes.sum(axis=1) == kept).all())
    if not cumulative:
        if not are_sizes:
            raise ValueError(f"data/col_offsets does not hold {rank} sizes that add up to {kept}: read it without cumulative_offsets=False")
        return _cumulated(sizes)
    if are_sizes and (stored[:, -1] != kept).any():
        raise ValueError("data/col_offsets holds the size of each factor row, as early files do: read it with cumulative_offsets=False")
    if stored.shape[1] != rank + 1:
        raise ValueError(
            f"data/col_offsets has {stored.shape[1]} columns; expected {rank + 1}, one more than n_classes: it is damaged, make it again"
        )
    if stored.size and (stored.min() < 0 or stored.max() > kept):
        raise ValueError(f"data/col_offsets goes from {stored.min()} to {stored.max()}; expected 0 to {kept}: it is damaged, make it again")
    return stored.astype(np.int32)


def _cumulated(sizes: np.ndarray) -> np.ndarray:
    return np.pad(np.cumsum(sizes, axis=1), ((0, 0), (1, 0))).astype(np.int32)


def _check_limits(size: int, rank: int) -> None:
    advice = "leave some out with parameters=, or keep the result in this project's own files"
    _hdf5.check_size(size, advice)
    if rank * size > LARGEST_FACTOR:
        raise ValueError(
            f"{rank} factor rows of {size:,} parameters do not fit: the reference numbers their {rank * size:,} entries in 4-byte integers, "
            f"so up to {LARGEST_FACTOR:,}; {advice}"
        )


def _about(n: int, labels: Any, logits: Any, logits_at: str) -> dict[str, np.ndarray]:
    """What is known of each example beside its Fisher, checked."""
    return {"data/labels": _numbers("labels", labels, np.int32, (n,)), logits_at: _numbers("logits", logits, np.float32, (n, None))}


def _factors(rows: SparseRows, norms: Any) -> dict[str, np.ndarray]:
    return {"data/values": rows.values, "data/row_indices": rows.columns.astype(np.int32), "data/pef_frobenius_norms": _norms(norms, len(rows))}


def _norms(norms: Any, n: int) -> np.ndarray:
    norms = _numbers("norms", norms, np.float32, (n,))
    if (norms < 0).any():
        raise ValueError(f"norms go down to {norms.min()}; expected Frobenius norms, none below 0")
    return norms


def _numbers(name: str, given: Any, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array as the file keeps it, refused where that would change what it says.  None in the shape allows any length."""
    array, whole = np.asarray(given), issubclass(dtype, np.integer)
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise ValueError(f"{name} are of type {array.dtype}; expected {'whole ' * whole}numbers")
    if array.ndim != len(shape) or any(b is not None and a != b for a, b in zip(array.shape, shape, strict=True)):
        expected = str(shape).replace("None", "classes")
        raise ValueError(f"{name} have shape {array.shape}; expected {expected}, one entry an example")
    limits = np.iinfo(np.int32) if whole else np.finfo(np.float32)
    # Written so that NaN is refused too.
    if not ((array >= limits.min) & (array <= limits.max)).all():
        raise ValueError(f"{name} hold a number that the format has no room for; expected {dtype.__name__}, {limits.min} to {limits.max}")
    return array.astype(dtype)
