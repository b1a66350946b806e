"""Fishers by their largest entries: what is kept lies where it says, and dense coordinates of it change no inner product."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from npeff_nb.fisher import sparse
from npeff_nb.fisher.sparse import SparseDiagonals, SparseRows, exact_coordinates

N, RANK, SIZE, KEPT = 5, 3, 40, 12


def largest(dense: np.ndarray, kept: int) -> SparseRows:
    """The slow way: example by example, entry by entry."""
    n, rank, size = dense.shape
    values, columns, offsets = [], [], []
    for rows in dense:
        chosen = sorted(range(rank * size), key=lambda flat: -abs(rows.flat[flat]))[:kept]
        chosen.sort()
        values.append([rows.flat[flat] for flat in chosen])
        columns.append([flat % size for flat in chosen])
        offsets.append([sum(flat // size < y for flat in chosen) for y in range(rank + 1)])
    return SparseRows(
        np.array(values, dtype=np.float32).reshape(n, kept),
        np.array(columns, dtype=np.int64).reshape(n, kept),
        np.array(offsets, dtype=np.int32),
        size,
    )


@pytest.fixture
def dense():
    """Factor rows of very different length; the last row of the first example is too short to keep anything."""
    rows = np.random.default_rng(0).normal(size=(N, RANK, SIZE)).astype(np.float32) * np.array([1, 0.7, 0.4], dtype=np.float32)[:, None]
    rows[0, 2] = 1e-6
    return rows


@pytest.fixture
def rows(dense):
    return largest(dense, KEPT)


@pytest.fixture
def diagonals():
    dense = np.random.default_rng(1).normal(size=(N, SIZE)) ** 2
    indices = np.argsort(-dense, axis=1)[:, :KEPT]
    return SparseDiagonals(np.take_along_axis(dense, indices, 1).astype(np.float32), indices, np.linalg.norm(dense, axis=1), SIZE)


# Rows


def test_the_matrix_has_every_entry_in_its_place(dense, rows):
    assert np.diff(rows.offsets[0])[2] == 0, "the case of an empty row is meant to be among these"
    matrix = rows.matrix()
    assert isinstance(matrix, csr_array) and matrix.shape == (N * RANK, SIZE) and matrix.dtype == np.float32 and matrix.has_canonical_format
    for found, expected in zip(matrix.toarray().reshape(N, RANK, SIZE), dense, strict=True):
        smallest = np.sort(np.abs(expected).ravel())[-KEPT]
        np.testing.assert_array_equal(found, np.where(np.abs(expected) >= smallest, expected, 0))


def test_the_matrix_is_no_second_copy_of_the_values(rows):
    assert np.shares_memory(rows.matrix().data, rows.values)


@pytest.mark.parametrize("where", [np.array([3, 0, 3]), np.array([True, False, False, True, False]), np.array([], dtype=int)])
def test_some_of_the_rows(where, rows):
    some = rows.take(where)
    assert len(some) == len(np.arange(N)[where]) and some.rank == RANK and some.size == SIZE
    np.testing.assert_array_equal(some.matrix().toarray().reshape(-1, RANK, SIZE), rows.matrix().toarray().reshape(N, RANK, SIZE)[where])


def test_rows_come_back_from_their_arrays(rows):
    arrays = rows.arrays()
    assert {name: (array.dtype.str[1:], array.shape) for name, array in arrays.items()} == {
        "values": ("f4", (N, KEPT)),
        "columns": ("i8", (N, KEPT)),
        "offsets": ("i4", (N, RANK + 1)),
    }
    again = SparseRows.from_arrays(arrays, SIZE)
    np.testing.assert_array_equal(again.matrix().toarray(), rows.matrix().toarray())


def test_they_say_what_they_are(rows, diagonals):
    assert repr(rows) == "SparseRows(5 examples, 3 factor rows, 12 of 120 entries each)"
    assert repr(diagonals) == "SparseDiagonals(5 examples, 12 of 40 entries each)"


def test_entries_in_any_order_are_sorted_within_their_row(rows):
    values, columns = rows.values.copy(), rows.columns.copy()
    rng = np.random.default_rng(2)
    for i in (1, 4):
        for start, stop in zip(rows.offsets[i, :-1], rows.offsets[i, 1:], strict=True):
            mixed = start + rng.permutation(stop - start)
            values[i, start:stop], columns[i, start:stop] = values[i, mixed], columns[i, mixed]
    before = columns.copy()
    found = SparseRows.from_unsorted(values, columns, rows.offsets, SIZE)
    np.testing.assert_array_equal(found.columns, rows.columns)
    np.testing.assert_array_equal(found.values, rows.values)
    np.testing.assert_array_equal(columns, before, "the caller's array was changed")
    assert (before != rows.columns).any(), "nothing was out of order"


def test_rows_in_order_are_not_copied(rows):
    assert SparseRows.from_unsorted(rows.values, rows.columns, rows.offsets, SIZE).values is rows.values


def changed(thing, **arrays):
    return type(thing)(**{name: getattr(thing, name) for name in thing.__dataclass_fields__} | arrays)


def put(array, at, value):
    array = array.copy()
    array[at] = value
    return array


BAD_ROWS = {
    "a list": (lambda r: {"values": r.values.tolist()}, "values have type list; expected a NumPy array of float32: convert them with astype"),
    "float64": (lambda r: {"values": r.values.astype(float)}, "values have dtype float64; expected a NumPy array of float32"),
    "one example without its axis": (lambda r: {"values": r.values[0]}, r"values have shape \(12,\); expected two dimensions, examples first"),
    "not finite": (lambda r: {"values": put(r.values, (2, 0), np.nan)}, "values of example 2 hold NaN or infinity; .* leave it out"),
    "columns as floats": (lambda r: {"columns": r.columns.astype(float)}, "columns have dtype float64; expected a NumPy array of integer"),
    "columns of other values": (lambda r: {"columns": r.columns[:, 1:]}, r"columns have shape \(5, 11\); expected \(5, 12\)"),
    "a column too far": (lambda r: {"columns": put(r.columns, (3, 11), 40)}, "columns of example 3 hold 40; 40 parameters allow 0 to 39"),
    "a column below zero": (lambda r: {"columns": put(r.columns, (3, 0), -1)}, "columns of example 3 hold -1; 40 parameters allow 0 to 39"),
    "a column twice": (
        lambda r: {"columns": put(r.columns, (1, 1), r.columns[1, 0])},
        "columns of example 1 do not rise within a factor row: .* each par",
    ),
    "wide offsets": (lambda r: {"offsets": r.offsets.astype(np.int64)}, "offsets have dtype int64; expected a NumPy array of int32"),
    "offsets of fewer examples": (lambda r: {"offsets": r.offsets[1:]}, r"offsets have shape \(4, 4\); expected \(5, k \+ 1\)"),
    "no factor row": (lambda r: {"offsets": r.offsets[:, :1]}, r"offsets have shape \(5, 1\); expected \(5, k \+ 1\) for k ≥ 1"),
    "offsets that start late": (
        lambda r: {"offsets": put(r.offsets, (4, 0), 1)},
        r"offsets of example 4 are \[ ?1 .* start with 0, never fall and end with K",
    ),
    "offsets that end early": (
        lambda r: {"offsets": put(r.offsets, (4, 3), 11)},
        "offsets of example 4 are .*; expected cumulative .* end with K = 12",
    ),
    "offsets that fall": (lambda r: {"offsets": put(r.offsets, (4, 2), 0)}, "offsets of example 4 are .* never fall"),
    "no parameters": (lambda r: {"size": 0}, "size=0 is not a number of parameters; expected a whole number from 1 on"),
    "half a parameter": (lambda r: {"size": 40.5}, "size=40.5 is not a number of parameters"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_rows_that_contradict_themselves_are_refused(what, rows):
    change, words = BAD_ROWS[what]
    with pytest.raises(ValueError, match=words):
        changed(rows, **change(rows))


def test_a_column_may_fall_only_where_a_row_begins():
    """The boundary decides: the same columns are right with two factor rows and wrong with one."""
    values, columns = np.ones((1, 4), dtype=np.float32), np.array([[3, 7, 1, 7]])
    SparseRows(values, columns, np.array([[0, 2, 4]], dtype=np.int32), 8)
    for offsets in ([[0, 4]], [[0, 1, 4]], [[0, 0, 4]], [[0, 4, 4]]):
        with pytest.raises(ValueError, match="columns of example 0 do not rise within a factor row: 7 at entry 1, then 1"):
            SparseRows(values, columns, np.array(offsets, dtype=np.int32), 8)


def test_one_entry_and_none():
    one = SparseRows(np.array([[2.0]], dtype=np.float32), np.array([[1]]), np.array([[0, 0, 1]], dtype=np.int32), 3)
    np.testing.assert_array_equal(one.matrix().toarray(), [[0, 0, 0], [0, 2, 0]])
    none = SparseRows(np.zeros((2, 0), dtype=np.float32), np.zeros((2, 0), dtype=np.int32), np.zeros((2, 3), dtype=np.int32), 3)
    assert none.matrix().shape == (4, 3) and none.matrix().nnz == 0


def test_more_parameters_than_four_bytes_can_number():
    p = 2**31 + 5
    rows = SparseRows(np.ones((1, 1), dtype=np.float32), np.array([[p - 1]]), np.array([[0, 1]], dtype=np.int32), p)
    assert rows.matrix().shape == (1, p) and rows.matrix().indices.tolist() == [p - 1]


# Diagonals


def test_the_matrix_of_diagonals_leaves_them_in_their_order(diagonals):
    before = diagonals.indices.copy(), diagonals.values.copy()
    matrix = diagonals.matrix()
    assert isinstance(matrix, csr_array) and matrix.shape == (N, SIZE) and matrix.has_canonical_format
    for i in range(N):
        expected = np.zeros(SIZE, dtype=np.float32)
        for value, index in zip(diagonals.values[i], diagonals.indices[i], strict=True):
            expected[index] = value
        np.testing.assert_array_equal(matrix.toarray()[i], expected)
    matrix.data *= 2
    np.testing.assert_array_equal(diagonals.indices, before[0])
    np.testing.assert_array_equal(diagonals.values, before[1])


def test_some_of_the_diagonals_and_back_from_arrays(diagonals):
    where = np.array([4, 1])
    some = SparseDiagonals.from_arrays(diagonals.take(where).arrays(), SIZE)
    assert len(some) == 2
    np.testing.assert_array_equal(some.matrix().toarray(), diagonals.matrix().toarray()[where])
    np.testing.assert_array_equal(some.norms, diagonals.norms[where])


BAD_DIAGONALS = {
    "float64": (lambda d: {"values": d.values.astype(float)}, "values have dtype float64; expected a NumPy array of float32"),
    "below zero": (lambda d: {"values": -d.values[:, ::-1]}, "values go down to -.*; a diagonal Fisher sums squares, so expected none below 0"),
    "ascending": (
        lambda d: {"values": put(d.values, (3, 5), 99)},
        "values of example 3 are not in descending order: sort values and indices together",
    ),
    "an index twice": (lambda d: {"indices": put(d.indices, (2, 0), d.indices[2, 7])}, "indices of example 2 name a parameter twice"),
    "an index too far": (lambda d: {"indices": put(d.indices, (2, 0), 40)}, "indices of example 2 hold 40; 40 parameters allow 0 to 39"),
    "norms as float32": (lambda d: {"norms": d.norms.astype(np.float32)}, "norms have dtype float32; expected a NumPy array of float64"),
    "too few norms": (lambda d: {"norms": d.norms[1:]}, r"norms have shape \(4,\); expected \(5,\)"),
    "a norm below zero": (
        lambda d: {"norms": -d.norms},
        "norms hold a number that is negative or not finite; expected the L2 norm of each whole diagonal",
    ),
}


@pytest.mark.parametrize("what", BAD_DIAGONALS)
def test_diagonals_that_contradict_themselves_are_refused(what, diagonals):
    change, words = BAD_DIAGONALS[what]
    with pytest.raises(ValueError, match=words):
        changed(diagonals, **change(diagonals))


# Dense coordinates


def gram_error(matrix: csr_array) -> float:
    """Largest |⟨c, c'⟩ − ⟨a, a'⟩| over |a| |a'|, both sides in float64."""
    found, expected = exact_coordinates(matrix).astype(np.float64), matrix.toarray().astype(np.float64)
    lengths = np.linalg.norm(expected, axis=1)
    scale = np.outer(lengths, lengths)
    error = np.abs(found @ found.T - expected @ expected.T)
    assert (error[scale == 0] == 0).all()
    return float((error[scale > 0] / scale[scale > 0]).max())


@pytest.mark.parametrize("shape", [(30, 400), (60, 20), (1, 50), (64, 64)])
@pytest.mark.parametrize("seed", [0, 1])
def test_coordinates_have_the_same_inner_products(shape, seed):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=shape).astype(np.float32) * (rng.random(shape) < 0.3)
    matrix = csr_array(dense)
    found = exact_coordinates(matrix)
    assert found.dtype == np.float32 and found.shape == (shape[0], np.linalg.matrix_rank(dense))
    assert gram_error(matrix) < 5e-7  # float32 keeps 6e-8 of each coordinate


def test_short_rows_keep_their_inner_products_too():
    """Examples that the model is sure of have rows shorter by orders of magnitude; a cut relative to the longest would lose them."""
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(40, 300)).astype(np.float32) * np.logspace(-9, 3, 40, dtype=np.float32)[:, None]
    assert gram_error(csr_array(dense)) < 5e-7


def test_rows_that_repeat_or_vanish_need_fewer_coordinates(rows):
    once = rows.take(np.array([0, 1])).matrix()  # one of its six rows is empty
    repeated = rows.take(np.array([0, 1, 0, 1, 1])).matrix()
    assert exact_coordinates(once).shape == (6, 5)
    assert exact_coordinates(repeated).shape == (15, 5)
    assert gram_error(repeated) < 5e-7
    assert not exact_coordinates(repeated)[2].any()
    assert exact_coordinates(csr_array((4, 9))).shape == (4, 0)
    assert exact_coordinates(csr_array((0, 9))).shape == (0, 0)


def test_a_gram_matrix_of_several_blocks(monkeypatch, rows):
    expected = exact_coordinates(rows.matrix())
    monkeypatch.setattr(sparse, "_GRAM_BLOCK", 4)
    np.testing.assert_array_equal(exact_coordinates(rows.matrix()), expected)


def test_coordinates_are_the_same_each_time_and_leave_the_rows_alone(rows):
    matrix = rows.matrix()
    before = matrix.copy()
    first = exact_coordinates(matrix)
    np.testing.assert_array_equal(exact_coordinates(matrix), first)
    assert (matrix != before).nnz == 0
    unit = first / np.linalg.norm(matrix.toarray(), axis=1).clip(1e-30)[:, None]
    assert (unit[np.abs(unit).argmax(0), np.arange(unit.shape[1])] > 0).all()
    assert (np.diff((unit**2).sum(0)) <= 1e-5).all(), "the widest direction is not first"


def test_too_many_rows_are_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.delattr(sparse, "_gram")
    words = r"of 20,001 factor rows need a Gram matrix of 3.2 GB .* allowed are 20,000 rows .* take fewer examples .*features=\"sketch\""
    with pytest.raises(ValueError, match=words):
        exact_coordinates(csr_array((20_001, 3), dtype=np.float32))


def test_rows_that_are_not_finite_have_no_coordinates():
    with pytest.raises(ValueError, match="the rows hold NaN or infinity; expected finite numbers: leave those examples out"):
        exact_coordinates(csr_array([[1.0, np.inf]]))


def test_sparse_fishers_open_without_torch():
    code = "import sys, npeff_nb.fisher.sparse; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
