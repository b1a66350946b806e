"""Per-example Fishers by their largest entries: the exact-by-parameter alternative to the coordinates of :mod:`~npeff_nb.fisher.features`.

What is kept keeps its address among the p parameters, so it can be read, pruned and handed to other tools; what is not among the K largest entries
of an example is lost.  NumPy and SciPy only: such Fishers also open on machines without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array

LARGEST_GRAM = 20_000
"""Rows whose Gram matrix :func:`exact_coordinates` still factors: 3.2 GB in float64, and about three times that with its eigenvectors."""
RANK_CUT = 1e-10
"""Eigenvalues below this share of the largest are rounding: float64 leaves about 1e-13 of it at this size."""

_GRAM_BLOCK = 1024
"""Rows of a Gram matrix made at a time: a sparse product takes twice the memory of its dense result before it is one."""


@dataclass(frozen=True, eq=False)
class SparseRows:
    """The K entries of largest |value| of each example's factor A_i, chosen over all its k rows together.

    One budget an example, as in the reference implementation: rows of likely classes keep more, a row may keep nothing.

    Attributes
    ----------
    values : (n, K) float32, row after row.
    columns : (n, K) integer, the parameter of each value, 0 to size − 1, ascending within each factor row.
    offsets : (n, k + 1) int32; factor row y of example i owns the entries ``offsets[i, y]:offsets[i, y + 1]``; starts with 0, ends with K.
    size : p, the length of a whole row.

    Raises
    ------
    ValueError
        When the arrays do not say that.
    """

    values: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray
    size: int

    def __post_init__(self) -> None:
        _check_entries(self.values, "columns", self.columns, self.size)
        _check_offsets(self.offsets, *self.values.shape)
        disorder = np.argwhere(~_rising(self.columns, self.offsets))
        if len(disorder):
            i, at = disorder[0]
            raise ValueError(
                f"columns of example {i} do not rise within a factor row: {self.columns[i, at]} at entry {at}, then {self.columns[i, at + 1]}; "
                "expected each parameter once and in ascending order: SparseRows.from_unsorted sorts them"
            )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        n, kept = self.values.shape
        return f"SparseRows({n} examples, {self.rank} factor row{'s' * (self.rank != 1)}, {kept:,} of {self.rank * self.size:,} entries each)"

    @property
    def rank(self) -> int:
        """k, the factor rows of an example."""
        return self.offsets.shape[1] - 1

    def take(self, where: np.ndarray) -> SparseRows:
        """Some of the examples: positions or a mask."""
        return SparseRows(self.values[where], self.columns[where], self.offsets[where], self.size)

    @staticmethod
    def joined(parts: Sequence[SparseRows]) -> SparseRows:
        """Several sets of examples, one after the other."""
        values, columns, offsets = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "columns", "offsets"))
        return SparseRows(values, columns, offsets, parts[0].size)

    def matrix(self) -> csr_array:
        """All factor rows as one (n·k, p) matrix; row y of example i is i·k + y.  It shares the memory of ``values``: change neither."""
        n, kept = self.values.shape
        starts = np.arange(n)[:, None] * kept + self.offsets[:, :-1]
        return _csr(self.values, self.columns, np.append(starts.ravel(), n * kept), (n * self.rank, self.size))

    def arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`from_arrays` takes back."""
        return {"values": self.values, "columns": self.columns, "offsets": self.offsets}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], size: int) -> SparseRows:
        """The other way round."""
        return cls(arrays["values"], arrays["columns"], arrays["offsets"], size)

    @classmethod
    def from_unsorted(cls, values: np.ndarray, columns: np.ndarray, offsets: np.ndarray, size: int) -> SparseRows:
        """The same from entries that lie in any order within their factor row; arrays that are in order already are not copied."""
        _check_entries(values, "columns", columns, size)
        _check_offsets(offsets, *values.shape)
        unsorted = np.flatnonzero(~_rising(columns, offsets).all(axis=1))
        if len(unsorted):
            values, columns = values.copy(), columns.copy()
        for i in unsorted:
            rows = np.repeat(np.arange(offsets.shape[1] - 1), np.diff(offsets[i]))
            order = np.lexsort((columns[i], rows))
            values[i], columns[i] = values[i, order], columns[i, order]
        return cls(values, columns, offsets, size)


@dataclass(frozen=True, eq=False)
class SparseDiagonals:
    """The K largest entries of each example's diagonal Fisher d_i = Σ_y p_y (∇log p_y)² (a D-PEF).

    Attributes
    ----------
    values : (n, K) float32, not negative, in descending order.
    indices : (n, K) integer, the parameter of each value, 0 to size − 1, each at most once an example.
    norms : (n,) float64, ‖d_i‖₂ of the *whole* diagonal.
    size : p.

    Raises
    ------
    ValueError
        When the arrays do not say that.
    """

    values: np.ndarray
    indices: np.ndarray
    norms: np.ndarray
    size: int

    def __post_init__(self) -> None:
        _check_entries(self.values, "indices", self.indices, self.size)
        _check_array("norms", self.norms, np.float64, (len(self.values),))
        if not (np.isfinite(self.norms) & (self.norms >= 0)).all():
            raise ValueError("norms hold a number that is negative or not finite; expected the L2 norm of each whole diagonal")
        if (self.values < 0).any():
            raise ValueError(f"values go down to {self.values.min()}; a diagonal Fisher sums squares, so expected none below 0")
        climbing = (self.values[:, 1:] > self.values[:, :-1]).any(axis=1)
        if climbing.any():
            raise ValueError(f"values of example {climbing.argmax()} are not in descending order: sort values and indices together")
        ordered = np.sort(self.indices, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if repeated.any():
            raise ValueError(f"indices of example {repeated.argmax()} name a parameter twice; expected each at most once: add its values up")

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        n, kept = self.values.shape
        return f"SparseDiagonals({n} examples, {kept:,} of {self.size:,} entries each)"

    def take(self, where: np.ndarray) -> SparseDiagonals:
        """Some of the examples: positions or a mask."""
        return SparseDiagonals(self.values[where], self.indices[where], self.norms[where], self.size)

    @staticmethod
    def joined(parts: Sequence[SparseDiagonals]) -> SparseDiagonals:
        """Several sets of examples, one after the other."""
        values, indices, norms = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "indices", "norms"))
        return SparseDiagonals(values, indices, norms, parts[0].size)

    def matrix(self) -> csr_array:
        """(n, p), not normalised, columns ascending.  A copy, since they are not in the order that is kept here."""
        n, kept = self.values.shape
        order = np.argsort(self.indices, axis=1)
        values, indices = np.take_along_axis(self.values, order, 1), np.take_along_axis(self.indices, order, 1)
        return _csr(values, indices, np.arange(n + 1) * kept, (n, self.size))

    def arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`from_arrays` takes back."""
        return {"values": self.values, "indices": self.indices, "norms": self.norms}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], size: int) -> SparseDiagonals:
        """The other way round."""
        return cls(arrays["values"], arrays["indices"], arrays["norms"], size)


def exact_coordinates(matrix: csr_array) -> np.ndarray:
    """Dense coordinates C with C Cᵀ = M Mᵀ, all that a decomposition asks of its rows.

    With unit rows U = D⁻¹M, D their lengths, and U Uᵀ = V Λ Vᵀ:  C = D V Λ^½.  Lengths are taken out first because the rows of an example that the
    model is sure of are shorter by orders of magnitude: a cut relative to the longest would drop them whole.

    Parameters
    ----------
    matrix : (N, p) sparse rows, as from :meth:`SparseRows.matrix`.

    Returns
    -------
    (N, d) float32, d = rank ≤ N: the widest direction first, the largest entry of each eigenvector positive.

    Raises
    ------
    ValueError
        For more than 20 000 rows, or numbers that are not finite.
    """
    n_rows = matrix.shape[0]
    if n_rows > LARGEST_GRAM:
        raise ValueError(
            f"exact coordinates of {n_rows:,} factor rows need a Gram matrix of {8e-9 * n_rows**2:,.1f} GB and all its eigenvectors; allowed are "
            f'{LARGEST_GRAM:,} rows (examples times factor rows): take fewer examples or factor rows, or extract with features="sketch"'
        )
    units = csr_array(matrix, dtype=np.float64, copy=True)
    units.sum_duplicates()  # of the copy; two entries at one place would count as two places in the lengths
    if not np.isfinite(units.data).all():
        raise ValueError("the rows hold NaN or infinity; expected finite numbers: leave those examples out")
    lengths = np.sqrt(units.multiply(units).sum(axis=1))
    units.data /= np.repeat(lengths, np.diff(units.indptr)).clip(np.finfo(np.float64).tiny)
    if n_rows == 0:
        return np.zeros((0, 0), dtype=np.float32)
    energies, vectors = eigh(_gram(units), overwrite_a=True)
    kept = np.flatnonzero(energies > RANK_CUT * energies[-1])[::-1]
    vectors = vectors[:, kept]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(kept))]
    return np.ascontiguousarray(lengths[:, None] * vectors * (np.sqrt(energies[kept]) * np.sign(largest)), dtype=np.float32)


def _gram(rows: csr_array) -> np.ndarray:
    """R Rᵀ, (N, N)."""
    across = rows.T.tocsr()
    gram = np.empty((rows.shape[0], rows.shape[0]))
    for start in range(0, len(gram), _GRAM_BLOCK):
        gram[start : start + _GRAM_BLOCK] = (rows[start : start + _GRAM_BLOCK] @ across).toarray()
    return gram


def _csr(values: np.ndarray, columns: np.ndarray, starts: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Entries that lie row after row as a sparse matrix, without another copy of the values."""
    index = np.int32 if max(values.size, shape[1]) <= np.iinfo(np.int32).max else np.int64
    parts = (values.ravel(), columns.ravel().astype(index, copy=False), starts.astype(index, copy=False))
    return csr_array(parts, shape=shape)


def _rising(columns: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n, K − 1): whether the next entry lies further right, or in another factor row."""
    rising = columns[:, 1:] > columns[:, :-1]
    inner = offsets[:, 1:-1]
    example, row = np.nonzero((inner > 0) & (inner < columns.shape[1]))
    rising[example, inner[example, row] - 1] = True
    return rising


def _check_entries(values: np.ndarray, name: str, indices: np.ndarray, size: int) -> None:
    if not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"size={size!r} is not a number of parameters; expected a whole number from 1 on")
    _check_array("values", values, np.float32, None)
    _check_array(name, indices, np.integer, values.shape)
    if not np.isfinite(values).all():
        i = np.argwhere(~np.isfinite(values))[0, 0]
        raise ValueError(f"values of example {i} hold NaN or infinity; expected finite numbers: leave it out")
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        i, at = np.argwhere((indices < 0) | (indices >= size))[0]
        raise ValueError(f"{name} of example {i} hold {indices[i, at]}; {size:,} parameters allow 0 to {size - 1}: they belong to another model")


def _check_offsets(offsets: np.ndarray, n: int, kept: int) -> None:
    _check_array("offsets", offsets, np.int32, None)
    if len(offsets) != n or offsets.shape[1] < 2:
        raise ValueError(f"offsets have shape {offsets.shape}; expected ({n}, k + 1) for k ≥ 1 factor rows")
    wrong = (offsets[:, 0] != 0) | (offsets[:, -1] != kept) | (offsets[:, 1:] < offsets[:, :-1]).any(axis=1)
    if wrong.any():
        i = wrong.argmax()
        came = np.array2string(offsets[i], threshold=12)
        raise ValueError(f"offsets of example {i} are {came}; expected cumulative ones that start with 0, never fall and end with K = {kept}")


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...] | None) -> None:
    """Type and shape; without a shape, any table will do."""
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, dtype):
        came = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else f"type {type(array).__name__}"
        raise ValueError(f"{name} have {came}; expected a NumPy array of {dtype.__name__}: convert them with astype")
    if (array.ndim != 2) if shape is None else (array.shape != shape):
        raise ValueError(f"{name} have shape {array.shape}; expected {'two dimensions, examples first' if shape is None else shape}")
