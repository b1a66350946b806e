"""Whatever people hand over becomes rows of unit-norm Fishers, or an error that says what came in and what is allowed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import twins
from problems import in_parts, problem, unit

from npeff_nb import PEFs
from npeff_nb.decomposition.given import as_rows, given
from npeff_nb.fisher.features import FeatureMap


def rows_of(found) -> np.ndarray:
    """(n, k, d), every example as a solver sees it."""
    return np.stack([found.rows.example(i).numpy() for i in range(found.rows.n)])


def raw(seed: int = 0, n: int = 6, k: int = 2, d: int = 4) -> np.ndarray:
    """Rows of many lengths."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, k, d)) * np.logspace(-3, 3, n)[:, None, None]


def pefs_of(A: np.ndarray, norms: np.ndarray) -> PEFs:
    n, k, d = A.shape
    table = pd.DataFrame({"name": ["w"], "kind": ["weight"], "layer": pd.array([0], dtype="Int64"), "shape": [(1, d)], "numel": [d], "energy": [1.0]})
    classes = [str(c) for c in range(k + 1)]
    examples = pd.DataFrame({"text": [f"example {i}" for i in range(n)]})
    return PEFs(A.astype(np.float32), norms, np.zeros((n, k + 1), np.float32), examples, table, classes, FeatureMap("dense", ["w"], [(1, d)]))


SINGLE = 1e-6
"""Relative, of norms whose squares were summed in float32."""
GIVEN = {
    "rows": lambda A: A,
    "rows float32": lambda A: A.astype(np.float32),
    "nested lists": lambda A: A.tolist(),
    "list of arrays": lambda A: list(A),
    "list of tensors": lambda A: [torch.from_numpy(a).requires_grad_() for a in A],
    "tuple": lambda A: tuple(A),
    "tensor": lambda A: torch.from_numpy(A),
    "tensor with its graph": lambda A: torch.from_numpy(A).requires_grad_(),
    "not contiguous": lambda A: np.asfortranarray(A),
    "reversed twice": lambda A: A[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "of the other byte order": lambda A: A.astype(">f8"),
    "longer numbers": lambda A: A.astype(np.longdouble),
    "objects": lambda A: A.astype(object),
    "not to be written to": lambda A: np.frombuffer(A.tobytes()).reshape(A.shape),
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_holds_the_rows(name):
    A = raw()
    before = A.copy()
    found = given(GIVEN[name](A))
    # Scales are roots of norms.
    np.testing.assert_allclose(rows_of(found), unit(A), rtol=SINGLE if "float32" in name else 1e-12, atol=1e-12)
    np.testing.assert_array_equal(A, before)
    assert (found.total, found.carried, found.pefs) == (6.0, 12, None)
    assert found.present.all()
    np.testing.assert_allclose(found.scales, 1 / np.sqrt([twins.frobenius(a) for a in A]), rtol=1e-6 if "float32" in name else 1e-12)
    np.testing.assert_allclose(found.rows.energies, 1, rtol=1e-12)
    np.testing.assert_array_equal(found.rows.weights, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, np.float16, np.int8, np.int64, np.uint8, bool])
def test_numbers_of_every_kind(dtype):
    """They are the numbers they are: no square of them overflows or loses digits."""
    A = np.array([[[1, 0, 1, 1]], [[100, 0, 0, 0]], [[0, 0, 3, 4]]], dtype=np.float64)
    if isinstance(dtype, torch.dtype):
        X = torch.from_numpy(A).to(dtype)
    else:
        X = A.astype(dtype)
        A = X.astype(np.float64)
    np.testing.assert_allclose(rows_of(given(X)), unit(A), rtol=1e-6)


def test_one_row_an_example():
    A = raw(k=1)
    for X in (A[:, 0], A[:, 0].tolist(), torch.from_numpy(A[:, 0]), pd.DataFrame(A[:, 0])):
        np.testing.assert_allclose(rows_of(given(X)), unit(A), rtol=1e-12)


def test_lists_of_different_rank():
    A = raw(n=4, k=3)
    lengths = [3, 1, 0, 2]
    expected = A.copy()
    for a, k in zip(expected, lengths, strict=True):
        a[k:] = 0
    pieces = [a[:k] for a, k in zip(A, lengths, strict=True)]
    for X in (pieces, tuple(pieces), [torch.from_numpy(x) for x in pieces], [x.astype(np.float32) if i % 2 else x for i, x in enumerate(pieces)]):
        found = given(X)
        np.testing.assert_allclose(rows_of(found), unit(expected), rtol=1e-6, atol=1e-12)
        assert (found.total, found.carried) == (3.0, 6)
        np.testing.assert_array_equal(found.present, [True, True, False, True])
    integers = given([np.array([[3, 4]]), np.array([[1, 0], [0, 1]])])
    np.testing.assert_allclose(rows_of(integers)[0], [[0.6, 0.8], [0, 0]])


def test_rows_are_kept_in_their_own_precision_and_never_copied_for_nothing():
    A = raw().astype(np.float32)
    assert as_rows(A) is A
    assert as_rows(raw()).dtype == np.float64
    assert as_rows(A.astype(np.float16)).dtype == np.float64
    assert np.shares_memory(as_rows(A[:, 0]), A)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (np.float64, 1e-300),
        (np.float64, 1e-200),
        (np.float64, 1e150),
        (np.float64, 1e300),
        (np.float32, 1e-30),
        (np.float32, 1e-12),
        (np.float32, 1e30),
    ],
)
def test_small_and_large_numbers(dtype, size, held, monkeypatch):
    """A few examples of that size among ordinary ones: norms are made of fourth powers, which these numbers do not have."""
    A = problem("random", 0, n=9)
    X = A.copy()
    X[2:5] *= size
    X = X.astype(dtype)
    if not held:
        in_parts(monkeypatch, 2, X)
    found = given(X)
    atol = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(rows_of(found), A, atol=atol)
    np.testing.assert_allclose(found.rows.energies, 1, atol=1e-12)
    np.testing.assert_allclose(found.rows.project(torch.eye(7, dtype=torch.float64)), A, atol=atol)
    assert (found.total, found.carried) == (9.0, 18)


def test_one_example_of_all_sizes():
    """Rows far below the example's largest are there, though they add nothing to its norm."""
    A = np.zeros((1, 3, 2))
    A[0, 0, 0], A[0, 1, 1] = 1e-200, 1e-220
    found = given(A)
    assert (found.carried, found.total) == (2, 1.0)
    np.testing.assert_allclose(rows_of(found)[0], [[1, 0], [0, 1e-20], [0, 0]], rtol=1e-12)


def test_numbers_below_the_smallest_normal_one_are_zeros():
    """They have lost their digits, and their inverse would be infinite."""
    A = np.stack([np.full((2, 3), 1e-310), np.eye(2, 3)])
    found = given(A)
    np.testing.assert_array_equal(found.present, [False, True])
    assert (found.total, found.carried) == (1.0, 2)
    assert np.isfinite(rows_of(found)).all()
    assert found.rows.energies.isfinite().all()


def test_zero_fishers_are_no_part_of_what_is_to_explain():
    A = raw()
    A[[1, 4]] = 0
    A[2, 1] = 0
    found = given(A)
    assert (found.total, found.carried) == (4.0, 7)
    np.testing.assert_array_equal(found.present, [True, False, True, True, False, True])
    np.testing.assert_array_equal(found.rows.energies[[1, 4]], 0)
    np.testing.assert_array_equal(found.scales[[1, 4]], 0)
    nothing = given(np.zeros((3, 2, 2)))
    assert (nothing.total, nothing.carried) == (0.0, 0)
    assert not nothing.present.any()


# ------------------------------------------------------------------------------------------------------------------- PEFs


def test_pefs_have_the_norms_of_their_whole_fishers():
    """Of which the features may have missed a part: rows carry the rest, and all of it is to be explained."""
    A = raw(n=5)
    own = np.array([twins.frobenius(a) for a in A.astype(np.float32)])
    norms = own * np.array([1.0, 2.0, 1.5, 1.0, 4.0])
    pefs = pefs_of(A, norms)
    found = given(pefs)
    assert found.pefs is pefs
    assert found.total == 5.0
    np.testing.assert_allclose(found.scales, 1 / np.sqrt(norms), rtol=1e-12)
    np.testing.assert_allclose(rows_of(found), A / np.sqrt(norms)[:, None, None], rtol=1e-6)
    np.testing.assert_allclose(found.rows.energies, (own / norms) ** 2, rtol=1e-6)


def test_pefs_that_the_features_missed_altogether_are_to_be_explained_too():
    A = raw(n=3)
    A[1] = 0
    found = given(pefs_of(A, np.array([twins.frobenius(A[0]), 7.0, 0.0])))
    np.testing.assert_array_equal(found.present, [True, True, False])
    assert found.total == 2.0
    assert found.carried == 4
    assert float(found.rows.energies[1]) == 0


def test_pefs_of_no_examples_are_refused():
    with pytest.raises(ValueError, match=r"X has shape \(0, 2, 4\); expected PEFs"):
        given(pefs_of(np.zeros((0, 2, 4)), np.zeros(0)))


# ------------------------------------------------------------------------------------------------------------------- weights


def test_weights_count_where_a_fisher_is_not_zero():
    A = raw()
    A[3] = 0
    for weights in ([1, 2, 0, 5, 0.5, 1], np.array([1, 2, 0, 5, 0.5, 1]), torch.tensor([1, 2, 0, 5, 0.5, 1])):
        found = given(A, weights)
        assert found.total == pytest.approx(1 + 2 + 0 + 0.5 + 1)
        np.testing.assert_allclose(found.rows.weights, [1, 2, 0, 5, 0.5, 1])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, 2], r"sample_weight has shape \(2,\); expected one number for each of the 6 examples"),
        (np.ones((6, 1)), r"sample_weight has shape \(6, 1\)"),
        (1.0, r"sample_weight has shape \(\)"),
        ([1, 1, 1, 1, 1, -1e-9], "finite, not negative, and not zero throughout"),
        ([1, 1, 1, 1, 1, np.nan], "finite, not negative"),
        ([1, 1, 1, 1, 1, np.inf], "finite, not negative"),
        (np.zeros(6), "not zero throughout"),
    ],
)
def test_weights_that_are_none_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        given(raw(), weights)


def test_weights_of_zero_fishers_alone_are_refused():
    A = raw()
    A[:3] = 0
    with pytest.raises(ValueError, match="sample_weight is zero for all Fishers that are not"):
        given(A, [1, 1, 1, 0, 0, 0])


# ------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("at", [0, 3, 8])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_example_that_is_not_finite_is_named(value, at, held, monkeypatch):
    """Also beyond the first part, and the first of several."""
    A = problem("random", 0, n=9)
    A[at, 1, 3] = value
    A[8, 0, 0] = np.nan
    if not held:
        in_parts(monkeypatch, 2, A)
    for X in (A, A.astype(np.float32), pefs_of(A, np.ones(9))):
        with pytest.raises(ValueError, match=rf"the factor rows of example {at} are not finite \(NaN or infinity\): drop such examples first"):
            given(X)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.float64(1), r"X has shape \(\); expected PEFs, factor rows \(n, k, d\), a list of rows"),
        (np.ones(3), r"X has shape \(3,\)"),
        (np.ones((2, 2, 2, 2)), r"X has shape \(2, 2, 2, 2\)"),
        (np.ones((0, 3)), r"X has shape \(0, 3\); .*none of them empty"),
        (np.ones((3, 0)), r"X has shape \(3, 0\)"),
        (np.ones((3, 0, 4)), r"X has shape \(3, 0, 4\)"),
        ([], r"X has shape \(0,\)"),
        ([np.ones((2, 3)), np.ones((1, 4))], "X is a list of rows with 3, 4 features; all must have the same"),
        ([np.ones((2, 3)), np.ones((2, 4))], "X is a list of rows with 3, 4 features"),
        ([np.ones((2, 3)), np.ones(3)], r"X is a list with the shapes \(2, 3\), \(3,\); expected PEFs"),
        ([[1.0, 2.0], [1.0]], r"X is a list with the shapes \(1,\), \(2,\)"),
        ([np.ones((0, 3)), np.ones((0, 3))], r"X has shape \(2, 0, 3\)"),
        (np.ones((2, 3)) * 1j, "X has complex numbers; factor rows are real"),
        ([np.ones((2, 3)), np.ones((1, 3)) * 1j], "X has complex numbers"),
        (torch.ones(2, 3, dtype=torch.complex64), "X has complex numbers"),
        ([["a", "b"], ["c", "d"]], "could not convert string to float: "),
    ],
    ids=str,
)
def test_what_is_no_rows_is_refused(X, words):
    with pytest.raises(ValueError, match=words):
        given(X)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device='nowhere' cannot be used here .*device=None is the processor"):
        given(raw(), device="nowhere")
    assert given(raw(), device="cpu").rows.device == torch.device("cpu")
