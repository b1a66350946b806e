"""D-NPEFF against its loss written out, SciPy's non-negative least squares, and the paper's iteration step by step."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tiny
from scipy.optimize import linear_sum_assignment, nnls
from scipy.sparse import csr_array, issparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

import npeff_nb as nb
from npeff_nb import DNPEFF
from npeff_nb.decomposition import diagonal
from npeff_nb.explain.describe import component_table
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.sparse import SparseDiagonals

KINDS = ("random", "duplicates", "all equal", "zero examples", "zero columns", "low rank", "one column", "wide range", "disjoint", "few entries")
SHAPES = [(14, 9, 3), (14, 9, 1), (14, 9, 6), (6, 40, 6), (40, 5, 9), (1, 5, 1)]
"""n, m, r: also one component, as many as examples, more than columns, more examples than columns and fewer, and a single example."""
PROBLEMS = [(kind, *shape, seed) for seed, kind in enumerate(KINDS) for shape in SHAPES]


def unit(X: np.ndarray) -> np.ndarray:
    """Unit-norm examples; a zero one stays zero."""
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


def problem(kind: str, seed: int, n: int = 14, m: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.gamma(0.5, 1, (n, m))
    if kind == "duplicates":
        X[n // 2 :] = X[: n - n // 2]
    elif kind == "all equal":
        X[:] = X[0]
    elif kind == "zero examples":
        X[1::3] = 0
    elif kind == "zero columns":
        X[:, ::2] = 0
    elif kind == "low rank":
        X = rng.gamma(0.5, 1, (n, 2)) @ rng.gamma(0.5, 1, (2, m))
    elif kind == "one column":
        X[:, 1:] = 0
    elif kind == "wide range":
        X *= np.logspace(0, -9, m)
    elif kind == "disjoint":
        X = np.zeros((n, m))
        X[np.arange(n), np.arange(n) % m] = 1
    elif kind == "few entries":
        X[:, 1:] *= rng.random((n, m - 1)) < 0.3
    return unit(X)


def random_point(n: int, m: int, r: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.gamma(0.5, 1, (n, r)), rng.gamma(0.5, 1, (r, m))


def squared_error(X: np.ndarray, W: np.ndarray, H: np.ndarray) -> float:
    """The definition, ‖X − WH‖²."""
    return float(np.square(X - W @ H).sum())


def columns(X: np.ndarray) -> csr_array:
    return csr_array(csr_array(X).T)


def solve(X: np.ndarray, r: int, seed: int = 0, **settings) -> diagonal.Solution:
    return diagonal.hals(X.T, diagonal.start(X.T, r, np.random.default_rng(seed)), float(np.square(X).sum()), **settings)


def residual(W: np.ndarray, X: np.ndarray, H: np.ndarray) -> float:
    """Of the optimality conditions of W, largest over all entries."""
    return float(np.abs(np.minimum(W, W @ (H @ H.T) - X @ H.T)).max())


def planted(seed: int, n: int = 200, p: int = 60, r: int = 6, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Diagonals (n, p) of examples that use one to three of r components over a few parameters each, and noise of ``noise`` times their norm."""
    rng = np.random.default_rng(seed)
    H = unit(rng.gamma(1, 1, (r, p)) * (rng.random((r, p)) < 0.3) + 1e-3)
    W = rng.uniform(0.3, 1, (n, r)) * (rng.random((n, r)) < 0.3)
    W[np.arange(n), rng.integers(r, size=n)] += 0.5
    X, away = W @ H, np.abs(rng.standard_normal((n, p)))
    return X + noise * away * np.linalg.norm(X, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True), H


def alike(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean cosine of components, matched one to one."""
    cosines = unit(np.asarray(found, dtype=float)) @ unit(expected).T
    return float(cosines[linear_sum_assignment(-cosines)].mean())


def kept_entries(X: np.ndarray, k: int) -> SparseDiagonals:
    """The k largest entries of each example, with the norm of the whole."""
    indices = np.argsort(-X, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(X, indices, 1).astype(np.float32)
    return SparseDiagonals(values, indices, np.linalg.norm(X, axis=1), X.shape[1])


# ------------------------------------------------------------------------------------------------------------------------ pure functions


@pytest.mark.parametrize("form", ["array", "CSR", "sparse components"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_definition(kind, form):
    X = problem(kind, 1)
    W, H = random_point(14, 9, 4, 2)
    B, G = diagonal.products(columns(X) if form == "CSR" else X.T, csr_array(H) if form == "sparse components" else H)
    np.testing.assert_allclose(B, H @ X.T, atol=1e-12)
    np.testing.assert_allclose(G, H @ H.T, atol=1e-12)
    total = float(np.square(X).sum())
    assert diagonal.loss(B, G, W.T, total) == pytest.approx(squared_error(X, W, H), rel=1e-12)  # float64, the same sums


@pytest.mark.parametrize("seed", range(4))
def test_descent_ends_at_non_negative_least_squares(seed):
    """For W example by example, and for H column by column, against SciPy's active sets."""
    X = problem("random", seed, 20, 15)
    W, H = random_point(20, 15, 4, seed)
    found = np.zeros((4, 20))
    diagonal.descend(found, H @ X.T, H @ H.T, 500)
    np.testing.assert_allclose(found.T, [nnls(H.T, x)[0] for x in X], atol=1e-9)
    found = np.zeros((4, 15))
    diagonal.descend(found, W.T @ X, W.T @ W, 500)
    np.testing.assert_allclose(found.T, [nnls(W, x)[0] for x in X.T], atol=1e-9)


def test_a_sweep_is_exact_coordinate_descent():
    X = problem("random", 3)
    W, H = random_point(14, 9, 4, 4)
    expected = H.copy()
    for j in range(4):
        rest = X - W @ expected + np.outer(W[:, j], expected[j])
        expected[j] = np.maximum(0, W[:, j] @ rest / (W[:, j] @ W[:, j]))
    diagonal.descend(H, W.T @ X, W.T @ W, 1)
    np.testing.assert_allclose(H, expected, atol=1e-12)


def test_descent_leaves_a_component_without_coefficients_where_it_is():
    X = problem("random", 3)
    W, H = random_point(14, 9, 3, 4)
    W[:, 1] = 0
    before = H[1].copy()
    diagonal.descend(H, W.T @ X, W.T @ W)
    np.testing.assert_array_equal(H[1], before)


@pytest.mark.parametrize("kind", ["random", "zero examples", "low rank", "few entries"])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_coefficients_are_non_negative_least_squares(kind, r):
    X = problem(kind, 5)
    H = unit(random_point(14, 9, r, 6)[1])
    W = diagonal.fit_coefficients(H @ X.T, H @ H.T)
    assert residual(W, X, H) <= diagonal.KKT
    # A residual of 1e-6 over the smallest eigenvalue of these HHᵀ, 0.01.
    np.testing.assert_allclose(W, [nnls(H.T, x)[0] for x in X], atol=1e-4)


@pytest.mark.parametrize("how", ["parallel", "equal", "low rank", "more than columns"])
def test_coefficients_of_components_that_are_hardly_apart(how, monkeypatch):
    """Coordinate descent creeps here, and the split between components may be free: the residual is not."""
    rng = np.random.default_rng(0)
    X = problem("random", 5, 30, 12)
    H = {
        "parallel": 1 + 1e-4 * rng.random((8, 12)),
        "equal": rng.gamma(0.5, 1, (8, 12))[[0, 1, 1, 2, 2, 2, 3, 4]],
        "low rank": rng.random((8, 2)) @ rng.random((2, 12)),
        "more than columns": rng.gamma(0.5, 1, (40, 12)),
    }[how]
    H = unit(H)
    asked = []
    monkeypatch.setattr(diagonal, "nnls", lambda *args, **settings: asked.append(1) or nnls(*args, **settings))
    W = diagonal.fit_coefficients(H @ X.T, H @ H.T)
    assert (W >= 0).all()
    assert residual(W, X, H) <= diagonal.KKT
    for x, w in zip(X, W, strict=True):
        assert np.linalg.norm(x - w @ H) == pytest.approx(nnls(H.T, x)[1], abs=1e-6)
    assert bool(asked) == (how != "equal")  # both ways are taken by these cases


def test_each_example_ends_by_itself(monkeypatch):
    """What is asked for together does not matter, nor does the size of the batches."""
    X, H = problem("random", 1, 50, 9), unit(random_point(1, 9, 6, 1)[1])
    together = diagonal.fit_coefficients(H @ X.T, H @ H.T)
    alone = np.concatenate([diagonal.fit_coefficients(H @ X[i : i + 1].T, H @ H.T) for i in range(50)])
    np.testing.assert_allclose(together, alone, atol=1e-12)
    monkeypatch.setattr(diagonal, "SLAB", 7)
    np.testing.assert_allclose(diagonal.fit_coefficients(H @ X.T, H @ H.T), together, atol=1e-12)


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: f"{case[0]} n{case[1]} m{case[2]} r{case[3]}")
def test_the_loss_never_rises_and_is_the_one_reported(case):
    kind, n, m, r, seed = case
    X = problem(kind, seed, n, m)
    seen = []
    found = solve(X, r, seed, max_iter=60, tol=0, on_iteration=lambda i, now: seen.append((i, now)))
    losses = np.array(found.losses)
    assert np.isfinite(losses).all()
    # The loss is a difference of sums of the size of the total: 1e-12 of it is rounding.
    noise = 1e-12 * np.square(X).sum()
    assert (np.diff(losses) <= noise).all(), losses
    assert losses[-1] == pytest.approx(squared_error(X, found.W, found.H), abs=10 * noise)
    assert seen == list(enumerate(found.losses[1:-1], 1))
    assert (found.W >= 0).all() and (found.H >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found.H, axis=1), 1, atol=1e-12)
    assert residual(found.W, X, found.H) <= diagonal.KKT


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_the_loss_falls_but_for_rounding_and_ends_where_it_does_in_float64(kind):
    X = problem(kind, 2, 30, 20)
    Wt = diagonal.start(X.T, 4, np.random.default_rng(0))
    total = float(np.square(X).sum())
    single = diagonal.hals(X.T.astype(np.float32), Wt, total, tol=1e-7, max_iter=500)
    assert single.H.dtype == np.float32 and single.W.dtype == np.float64
    # Sums of 20 products in float32, each of them off by up to 6e-8.
    assert (np.diff(single.losses) <= 1e-6 * total).all()
    assert single.losses[-1] == pytest.approx(squared_error(X, single.W, single.H.astype(float)), abs=1e-6 * total)
    double = diagonal.hals(X.T, Wt, total, tol=1e-7, max_iter=500)
    assert single.losses[-1] == pytest.approx(double.losses[-1], rel=0.01, abs=1e-5 * total)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one column"])
def test_a_sparse_array_gives_what_a_dense_one_does(kind):
    X = problem(kind, 3, 30, 20)
    Wt = diagonal.start(X.T, 4, np.random.default_rng(1))
    np.testing.assert_allclose(diagonal.start(columns(X), 4, np.random.default_rng(1)), Wt, atol=1e-10)
    # No longer: where several solutions are as good, rounding chooses in the end.
    one, two = (diagonal.hals(Xt, Wt, 30.0, tol=0, max_iter=20) for Xt in (X.T, columns(X)))
    np.testing.assert_allclose(one.losses, two.losses, atol=1e-10)
    np.testing.assert_allclose(one.W @ one.H, two.W @ two.H, atol=1e-10)


@pytest.mark.parametrize("form", [np.transpose, columns], ids=["array", "CSR"])
def test_slabs_do_not_matter(form, monkeypatch):
    X = problem("few entries", 0, 20, 23)
    Wt = diagonal.start(form(X), 4, np.random.default_rng(1))
    whole = diagonal.hals(form(X), Wt, 20.0, tol=0, max_iter=30)
    monkeypatch.setattr(diagonal, "SLAB", 3)
    np.testing.assert_allclose(diagonal.start(form(X), 4, np.random.default_rng(1)), Wt, atol=1e-10)
    slabs = diagonal.hals(form(X), Wt, 20.0, tol=0, max_iter=30)
    np.testing.assert_allclose(slabs.losses, whole.losses, atol=1e-10)
    np.testing.assert_allclose(slabs.H, whole.H, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_end_is_stationary(seed):
    """In H too: zero gradient where H > 0, not negative elsewhere; of unit-norm examples and components, entries are of the order of 1."""
    X = problem("random", seed, 20, 12)
    found = solve(X, 3, seed, tol=0, max_iter=5000)
    slope = found.W.T @ (found.W @ found.H - X)
    assert np.abs(np.minimum(found.H, slope)).max() < 1e-5


def test_dead_components_find_users():
    """A component that starts without coefficients must not stay so while anything is left to explain."""
    X = problem("disjoint", 0, 12, 4)
    Wt = np.zeros((4, 12))
    Wt[0] = 1
    found = diagonal.hals(X.T, Wt, 12.0)
    assert (found.W.sum(0) > 0).all()
    assert found.losses[-1] < 1e-9


def test_components_beyond_what_is_there_are_examples_and_explain_nothing_more():
    X = problem("disjoint", 0, 12, 3)
    found = solve(X, 6)
    assert found.losses[-1] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found.H, axis=1), 1, atol=1e-12)
    assert {tuple(np.round(h, 6)) for h in found.H} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_tolerance_and_iterations_are_honoured():
    X = problem("random", 0, 40, 30)
    few = solve(X, 5, max_iter=3, tol=0)
    assert len(few.losses) == 3 + 2  # the start, three iterations, the last fit of W
    assert not few.converged
    losses = solve(X, 5, tol=1e-3, max_iter=500).losses
    falls = -np.diff(losses[:-1]) / losses[1:-1]
    assert falls[-1] <= 1e-3 and (falls[:-1] > 1e-3).all()


def test_starts_are_unlike_examples():
    X = problem("disjoint", 0, 14, 7)
    for form in (X.T, columns(X)):
        H = diagonal.kmeans_pp(form, 7, np.random.default_rng(0))
        # Every draw takes away the two examples that are alike: all seven come, none twice.
        np.testing.assert_allclose(H @ H.T, np.eye(7), atol=1e-12)


def test_starts_never_take_a_zero_example():
    X = problem("zero examples", 0)
    for seed in range(10):
        assert diagonal.kmeans_pp(X.T, 12, np.random.default_rng(seed)).any(1).all()  # 9 examples are not zero: some come twice


@pytest.mark.parametrize("form", [np.transpose, columns], ids=["array", "CSR"])
def test_a_few_columns_are_enough_to_begin_with(form):
    """Of 1 000 columns the start looks at 192; one pass over all of them then leaves little more than the iterations to the end do."""
    X = unit(planted(0, n=150, p=1000, r=6)[0])
    Wt = diagonal.start(form(X), 6, np.random.default_rng(0))
    found = diagonal.hals(form(X), Wt, 150.0, tol=1e-8, max_iter=300)
    assert found.losses[0] < 1.05 * found.losses[-1]
    np.testing.assert_array_equal(Wt, diagonal.start(form(X), 6, np.random.default_rng(0)))
    assert (Wt != diagonal.start(form(X), 6, np.random.default_rng(1))).any()


@pytest.mark.parametrize("kind", ["random", "zero examples", "few entries", "low rank"])
def test_the_paper_s_solver_to_the_letter(kind):
    """W ← W∘XHᵀ/(WHHᵀ + ε), then H ← H∘WᵀX/(WᵀWH + ε), from U(0, 1], written out."""
    X = problem(kind, 4)
    total = float(np.square(X).sum())
    found = diagonal.multiplicative(X.T, 3, total, np.random.default_rng(7), tol=0, max_iter=25)
    rng = np.random.default_rng(7)
    W, H = (1 - rng.random((3, 14))).T, 1 - rng.random((3, 9))
    expected = [squared_error(X, W, H)]
    for _ in range(25):
        W = W * (X @ H.T) / (W @ (H @ H.T) + 1e-8)
        H = H * (W.T @ X) / ((W.T @ W) @ H + 1e-8)
        expected.append(squared_error(X, W, H))
    np.testing.assert_allclose(found.losses[:-1], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.H, unit(H), atol=1e-9)
    assert found.losses[-1] == pytest.approx(squared_error(X, found.W, unit(H)), abs=1e-9)
    # Zeros stay zeros and the ε keeps it from the last digits: 1e-7 of the total.
    assert (np.diff(found.losses) <= 1e-7 * total).all()


# ------------------------------------------------------------------------------------------------------------------------ the estimator


@pytest.fixture(scope="module")
def diagonals():
    return planted(0)[0]


@pytest.fixture(scope="module")
def fitted(diagonals):
    return DNPEFF(6, random_state=0).fit(diagonals)


@pytest.fixture(scope="module")
def pefs():
    """Of a tiny BERT, with the 200 largest of the 3 840 entries of each diagonal."""
    return extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(), features="sketch", diagonal=200, progress=False)


def assert_consistent(found: DNPEFF, X: np.ndarray, total: int, atol: float) -> None:
    """All that a fit says of itself, for unit-norm examples ``X`` (n, p) as far as they were kept, of which ``total`` are not zero."""
    W, r = found.coefficients_, found.coefficients_.shape[1]
    H = np.zeros((r, X.shape[1]))
    H[:, found.kept_columns_] = found.components_.toarray() if issparse(found.components_) else found.components_
    assert W.dtype == np.float64 and (W >= 0).all() and (H >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(H, axis=1), 1, atol=max(1e-12, atol))
    left = 1 - (np.square(X).sum(1) - np.square(X - W @ H).sum(1))  # what was not kept counts as unexplained
    left[~X.any(1)] = 0
    assert found.reconstruction_err_ == pytest.approx(left.sum(), abs=atol * total)
    assert found.explained_variance_ == pytest.approx(1 - left.sum() / total, abs=atol)
    assert found.component_shares_.sum() == pytest.approx(found.explained_variance_, abs=atol)
    assert (np.diff(found.component_shares_) <= 1e-12).all()
    np.testing.assert_allclose(found.example_explained_, np.where(X.any(1), 1 - left, 0), atol=10 * atol)
    assert residual(W, X, H) <= diagonal.KKT + atol
    assert found.n_features_in_ == found.n_parameters_ == X.shape[1]
    assert (np.diff(found.kept_columns_) > 0).all()


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_planted_components_are_found(seed, noise):
    X, H = planted(seed, noise=noise)
    assert alike(DNPEFF(6, random_state=seed).fit(X).components_, H) >= 0.98


def test_planted_components_are_found_in_the_largest_entries():
    X, H = planted(1, p=400)
    found = DNPEFF(6, random_state=0).fit(kept_entries(X, 80))
    assert alike(found.components_, H[:, found.kept_columns_]) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_is_so(kind):
    X = problem(kind, 8, 25, 11) * np.random.default_rng(0).uniform(1e-6, 1e3, (25, 1))
    found = DNPEFF(4, random_state=0).fit(X)
    assert_consistent(found, unit(X), int(X.any(1).sum()), 1e-10)
    assert found.losses_[-1] == pytest.approx(found.reconstruction_err_, abs=1e-9)
    assert found.kept_columns_.tolist() == np.flatnonzero(X.any(0)).tolist()
    assert found.n_iter_ == len(found.losses_) - 2 and isinstance(found.converged_, bool)


def test_entries_that_were_not_kept_count_as_unexplained():
    """... which is no less than what the true diagonals leave unexplained: neither what is missing nor what is said of it is negative."""
    X = planted(0)[0]
    X[7] = 0
    given = kept_entries(X, 20)
    found = DNPEFF(6, random_state=0).fit(given)
    assert found.components_.dtype == np.float32
    kept = given.matrix().toarray() / np.where(given.norms > 0, given.norms, 1)[:, None]
    assert_consistent(found, kept, 199, 1e-6)
    truth = np.square(unit(X) - found.inverse_transform(found.coefficients_).toarray()).sum()
    assert 0 < truth < found.reconstruction_err_
    assert not found.coefficients_[7].any() and found.example_explained_[7] == 0


@pytest.mark.parametrize(("n", "p"), [(10, 200), (200, 10), (12, 12), (3, 1)])
def test_more_examples_than_parameters_or_fewer(n, p):
    X = np.random.default_rng(0).gamma(0.5, 1, (n, p)) + 1e-3
    assert_consistent(DNPEFF(3, random_state=0).fit(X), unit(X), n, 1e-10)


@pytest.mark.parametrize("kind", ["float32", "csr_array", "csr_matrix", "csc_matrix", "coo, entries in two parts", "table", "list"])
def test_kinds_of_input_give_the_same(kind, diagonals, fitted):
    twice = scipy.sparse.coo_array(diagonals)
    twice = scipy.sparse.coo_array((np.tile(twice.data / 2, 2), tuple(np.tile(at, 2) for at in twice.coords)), shape=diagonals.shape)
    X = {
        "float32": diagonals.astype(np.float32),
        "csr_array": csr_array(diagonals),
        "csr_matrix": scipy.sparse.csr_matrix(diagonals),
        "csc_matrix": scipy.sparse.csc_matrix(diagonals),
        "coo, entries in two parts": twice,
        "table": pd.DataFrame(diagonals, columns=[f"p{i}" for i in range(60)]),
        "list": diagonals.tolist(),
    }[kind]
    before = copy.deepcopy(X)
    found = DNPEFF(6, random_state=0).fit(X)
    # In float32 the iterations end at another point of a flat valley.
    np.testing.assert_allclose(found.components_, fitted.components_, atol=1e-2 if kind == "float32" else 1e-10)
    np.testing.assert_allclose(found.transform(X), fitted.coefficients_, atol=2e-2 if kind == "float32" else 1e-6)
    assert found.reconstruction_err_ == pytest.approx(fitted.reconstruction_err_, rel=1e-3)
    assert found.components_.dtype == (np.float32 if kind == "float32" else np.float64)
    assert (before != X).sum() == 0 if issparse(X) else np.array_equal(before, X)


def test_equal_seeds_give_equal_results(diagonals):
    one, two = (DNPEFF(5, random_state=7).fit(diagonals) for _ in range(2))
    np.testing.assert_array_equal(one.components_, two.components_)
    np.testing.assert_array_equal(one.coefficients_, two.coefficients_)
    assert one.restart_losses_ == two.restart_losses_
    assert DNPEFF(5, random_state=8).fit(diagonals).restart_losses_ != one.restart_losses_


def test_the_best_start_is_kept(diagonals):
    found = DNPEFF(5, n_init=4, random_state=0).fit(diagonals)
    assert len(found.restart_losses_) == 4
    assert found.losses_[-1] == min(found.restart_losses_) == pytest.approx(found.reconstruction_err_, rel=1e-9)


def test_the_paper_s_solver_can_be_chosen(diagonals, fitted):
    found = DNPEFF(6, solver="multiplicative", n_init=1, tol=0, max_iter=300, random_state=0).fit(diagonals)
    assert found.n_iter_ == 300 and not found.converged_
    assert_consistent(found, unit(diagonals), 200, 1e-10)
    assert fitted.n_iter_ < 300
    assert found.reconstruction_err_ > fitted.reconstruction_err_


@pytest.mark.parametrize("kind", ["array", "CSR", "kept entries"])
def test_the_examples_fitted_on_are_like_any_others(kind, diagonals):
    X = {"array": diagonals, "CSR": csr_array(diagonals), "kept entries": kept_entries(diagonals, 20)}[kind]
    found = DNPEFF(6, n_init=1, random_state=0)
    np.testing.assert_array_equal(found.fit_transform(X), found.coefficients_)
    # Done again in other slabs: the same numbers but for the order of sums.
    np.testing.assert_allclose(found.transform(X), found.coefficients_, atol=2e-6)
    assert found.score(X) == pytest.approx(found.explained_variance_, abs=1e-6)


def test_transform_is_non_negative_least_squares_of_unit_norm_diagonals(fitted, monkeypatch):
    X = planted(5, n=30)[0]
    X[4] = 0
    expected = np.array([nnls(fitted.components_.T, x)[0] for x in unit(X)])
    np.testing.assert_allclose(fitted.transform(X), expected, atol=1e-5)
    np.testing.assert_allclose(fitted.transform(csr_array(X)), expected, atol=1e-5)
    np.testing.assert_allclose(fitted.transform(X * np.logspace(-9, 9, 30)[:, None]), expected, atol=1e-5)
    left = np.square(unit(X) - expected @ fitted.components_).sum(1)
    assert fitted.score(X) == pytest.approx(1 - np.delete(left, 4).mean(), abs=1e-9)
    assert fitted.score(np.zeros((2, 60))) == 0.0
    monkeypatch.setattr(diagonal, "_BLOCK", 100)  # examples one at a time
    np.testing.assert_allclose(fitted.transform(X), expected, atol=1e-5)


def test_columns_that_no_example_used_count_as_unexplained():
    X = planted(0, p=30)[0]
    X[:, [3, 17]] = 0
    found = DNPEFF(4, n_init=1, random_state=0).fit(X)
    assert found.components_.shape == (4, 28) and found.n_parameters_ == 30
    new = planted(1, n=9, p=30)[0]
    for given in (new, csr_array(new)):
        W = found.transform(given)
        np.testing.assert_allclose(W, [nnls(found.components_.T, x)[0] for x in np.delete(unit(new), [3, 17], 1)], atol=1e-5)
        whole = found.inverse_transform(W)
        assert whole.shape == (9, 30) and not whole[:, [3, 17]].any()
        assert found.score(given) == pytest.approx(1 - np.square(unit(new) - whole).sum() / 9, abs=1e-9)


@pytest.mark.parametrize("kind", ["array", "CSR"])
def test_inverse_transform_and_back(kind, diagonals):
    X = diagonals.copy()
    X[:, 5] = 0
    found = DNPEFF(4, n_init=1, random_state=0).fit(X if kind == "array" else csr_array(X))
    W = np.random.default_rng(0).uniform(0, 1, (7, 4))
    back = found.inverse_transform(W)
    assert issparse(back) == (kind == "CSR") and back.shape == (7, 60)
    lengths = np.linalg.norm(W @ found.components_, axis=1, keepdims=True)  # transform works on unit-norm diagonals
    np.testing.assert_allclose(found.transform(back) * lengths, W, atol=1e-4)
    for wrong in (np.ones((2, 5)), np.ones(4), np.array([[0.1, -0.1, 0.2, 0.3]]), np.full((1, 4), np.nan)):
        with pytest.raises(ValueError, match=r"expected \(n, 4\) without negative values"):
            found.inverse_transform(wrong)


# --------------------------------------------------------------------------------------------------------------------------- sparsified


@pytest.mark.parametrize("kind", ["array", "CSR", "kept entries"])
def test_sparsified_components_keep_their_large_entries_and_are_fitted_again(kind, diagonals):
    X = {"array": diagonals, "CSR": csr_array(diagonals), "kept entries": kept_entries(diagonals, 20)}[kind]
    dense = {"kept entries": lambda: X.matrix().toarray() / X.norms[:, None]}.get(kind, lambda: unit(diagonals))()
    found = DNPEFF(6, n_init=1, random_state=0).fit(X)
    found.labels[2] = "mine"
    before = found.components_.copy()
    few = found.sparsify(0.1, X)
    H = few.components_
    assert isinstance(H, csr_array) and 0 < H.nnz < 0.5 * before.size
    np.testing.assert_allclose(H.toarray(), unit(np.where(before >= 0.1, before, 0)), atol=1e-6)
    whole = dense[:, few.kept_columns_]
    np.testing.assert_allclose(few.coefficients_, [nnls(H.toarray().T.astype(float), x)[0] for x in whole], atol=1e-5)
    left = 1 - (np.square(whole).sum(1) - np.square(whole - few.coefficients_ @ H.toarray()).sum(1))
    assert few.explained_variance_ == pytest.approx(1 - left.mean(), abs=1e-6)
    assert few.explained_variance_ < found.explained_variance_
    np.testing.assert_allclose(few.transform(X), few.coefficients_, atol=2e-6)
    assert few.labels == {2: "mine"} and few.check_component(5) == 5
    # The one it was made from is as it was.
    np.testing.assert_array_equal(found.components_, before)
    again = few.sparsify(0.2, X)
    assert again.components_.nnz < H.nnz
    everything = found.sparsify(0, X)
    np.testing.assert_allclose(everything.components_.toarray(), before, atol=1e-6)
    np.testing.assert_allclose(everything.coefficients_, found.coefficients_, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.99, -0.1, float("nan")])
def test_a_component_is_not_sparsified_away(threshold, fitted, diagonals):
    k = int(fitted.components_.max(1).argmin())
    with pytest.raises(ValueError, match=f"threshold={threshold} would leave component {k} without entries, the largest of which is 0."):
        fitted.sparsify(threshold, diagonals)


# --------------------------------------------------------------------------------------------------------------------------------- PEFs


def test_pefs_bring_what_tables_are_made_of(pefs):
    found = DNPEFF(4, random_state=0).fit(pefs)
    assert found.n_parameters_ == pefs.parameters["numel"].sum() == 3840
    assert found.components_.shape == (4, len(found.kept_columns_))
    assert set(found.kept_columns_) == set(pefs.diagonals.indices[pefs.diagonals.values > 0])
    kept = pefs.diagonals.matrix().toarray() / pefs.diagonals.norms[:, None]
    assert_consistent(found, kept, 24, 1e-6)
    pd.testing.assert_frame_equal(found.examples, pefs.examples)
    assert found.classes == pefs.classes and found.family == "categorical" and found.subject is pefs.subject
    table = component_table(found)
    assert table["component"].tolist() == [0, 1, 2, 3]
    assert table["share"].sum() == pytest.approx(1)
    assert table["example"].tolist() == [pefs.examples["text"].iloc[found.top_examples(k)[0]] for k in range(4)]
    assert found.example_table()["explained"].tolist() == found.example_explained_.tolist()
    np.testing.assert_allclose(found.transform(pefs[:5]), found.coefficients_[:5], atol=2e-6)
    np.testing.assert_allclose(found.transform(pefs.diagonals), found.coefficients_, atol=2e-6)
    assert found.fit(kept).examples is None


def test_pefs_without_diagonals_say_how_to_get_them(shared):
    with pytest.raises(ValueError, match=r"no diagonal Fishers of single examples: extract them with nb.extract_fishers\(..., diagonal=K\)"):
        DNPEFF(2).fit(shared)


def test_other_parameters_are_refused(pefs, bert, tokenizer):
    found = DNPEFF(3, random_state=0).fit(pefs)
    settings = {"features": "sketch", "diagonal": 20, "progress": False}
    scaled = extract_fishers(bert, tokenizer, tiny.TEXTS, scale={"MLP": 3.0}, **settings)
    fewer = extract_fishers(bert, tokenizer, tiny.TEXTS, parameters=["*layer.0*"], **settings)
    for other in (scaled, fewer):
        with pytest.raises(ValueError, match="over other parameters than the ones fitted on; extract them with the same parameters and scale"):
            found.transform(other)
    with pytest.raises(ValueError, match=r"X has \d+ features, but DNPEFF is expecting \d+ features as input"):
        found.transform(fewer.diagonals)
    like = extract_fishers(bert, tokenizer, tiny.TEXTS, like=found, diagonal=200, progress=False)
    assert found.transform(like).shape == (8, 3)


# -------------------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["array", "table", "CSR", "PEFs", "sparsified"])
def test_saved_and_loaded_again(kind, diagonals, pefs, tmp_path):
    X = {"PEFs": pefs, "CSR": csr_array(diagonals), "table": pd.DataFrame(diagonals, columns=[f"p{i}" for i in range(60)])}.get(kind, diagonals)
    found = DNPEFF(4, n_init=1, random_state=0).fit(X)
    if kind == "sparsified":
        found = found.sparsify(0.05, X)
    found.labels[1] = "mine"
    back = nb.load(found.save(tmp_path / "it.dnpeff"))
    assert type(back) is DNPEFF and back.get_params() == found.get_params()
    assert issparse(back.components_) == (kind == "sparsified")
    assert back.components_.dtype == found.components_.dtype
    for name, value in vars(found).items():
        if name == "components_" and kind == "sparsified":
            assert (value != back.components_).nnz == 0
        elif name in {"examples", "parameters"} and value is not None:
            pd.testing.assert_frame_equal(getattr(back, name), value, check_dtype=False)
        elif name not in {"subject", "feature_map", "facts"}:  # objects that their own tests compare
            np.testing.assert_equal(np.asarray(getattr(back, name)) if isinstance(value, np.ndarray) else getattr(back, name), value)
    np.testing.assert_array_equal(back.transform(X), found.transform(X))
    assert back.score(X) == found.score(X)
    if kind == "PEFs":
        assert back.feature_map.id == found.feature_map.id and back.facts["fingerprints"] == found.facts["fingerprints"]
        pd.testing.assert_frame_equal(component_table(back), component_table(found))
    back.save(tmp_path / "it.dnpeff")  # over the file it is mapped from
    np.testing.assert_array_equal(nb.load(tmp_path / "it.dnpeff").transform(X), found.transform(X))


def test_a_loaded_one_gets_its_model_again(pefs, tmp_path):
    found = DNPEFF(3, n_init=1, random_state=0).fit(pefs)
    back, model = nb.load(found.save(tmp_path / "it.dnpeff")), tiny.bert()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert back.attach(model, tiny.tokenizer()) is back
    assert back.subject.model is model
    np.testing.assert_allclose(back.subject.logits(np.arange(24)).numpy(), found.logits, atol=1e-6)  # float32
    assert copy.copy(back).subject is back.subject


def test_what_is_no_model_of_it_is_not_attached(pefs, fitted, tmp_path):
    back = nb.load(DNPEFF(3, n_init=1, random_state=0).fit(pefs).save(tmp_path / "it.dnpeff"))
    with pytest.warns(UserWarning, match=r"not the model that these Fishers were taken from: .* other values"):
        back.attach(tiny.bert(seed=1), tiny.tokenizer())
    back.subject = None
    with pytest.raises(ValueError, match=r"they are over 'bert\S+' of shape \(16, 16\), and the model has it with shape \(32, 32\)"):
        back.attach(tiny.bert(hidden_size=32), tiny.tokenizer())
    assert back.subject is None
    with pytest.raises(ValueError, match="fitted on an array: there are no examples and no model behind it"):
        fitted.attach(tiny.bert(), tiny.tokenizer())
    with pytest.raises(NotFittedError):
        DNPEFF(3).attach(tiny.bert(), tiny.tokenizer())


def test_other_folders_are_refused(npeff, tmp_path):
    with pytest.raises(ValueError, match="holds NPEFF decomposition, not D-NPEFF decomposition"):
        DNPEFF.load(npeff.save(tmp_path / "it.npeff"))


def test_torch_is_not_needed():
    code = """
import sys, numpy as np, npeff_nb as nb
assert "sklearn" not in sys.modules
X = np.random.default_rng(0).random((20, 8))
nb.DNPEFF(3, random_state=0).fit(X).transform(X)
print("torch" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# ------------------------------------------------------------------------------------------------------------------------------ manners


MEANT = {
    "check_dont_overwrite_parameters": "what came with the Fishers has the Fishers' own names, without an underscore: examples, parameters, ...",
    "check_sparsify_coefficients": "of linear models, whose method of that name works in place; here it needs the examples to fit coefficients to",
}
"""Checks that fail, and why that is so on purpose."""


def test_scikit_learn_s_checks_fail_only_where_it_is_meant():
    found = check_estimator(DNPEFF(2), expected_failed_checks=MEANT, on_skip=None, on_fail=None)
    assert len(found) > 40
    assert {check["check_name"]: str(check["exception"]) for check in found if check["status"] == "failed"} == {}
    assert {check["check_name"] for check in found if check["status"] == "xfail"} == set(MEANT)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_components": 0}, "n_components=0: it must be a whole number from 1 up"),
        ({"n_components": True}, "n_components=True: it must be a whole number"),
        ({"n_components": 2.0}, "n_components=2.0: it must be a whole number"),
        (
            {"n_components": 201},
            "n_components=201 is more than these diagonal Fishers can carry: 200 of 200 examples are not zero; choose n_components from 1 to 200",
        ),
        ({"n_init": 0}, "n_init=0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": -1e-3}, "tol=-0.001: it must not be negative"),
        ({"tol": float("nan")}, "tol=nan"),
        ({"solver": "mu"}, "solver='mu' is not known; choose one of 'hals', 'multiplicative'"),
    ],
)
def test_settings_are_checked_at_fit(settings, words, diagonals):
    with pytest.raises(ValueError, match=words):
        DNPEFF(**{"n_components": 2} | settings).fit(diagonals)


def test_settings_are_stored_untouched_and_cloned():
    settings = {"n_components": 5, "solver": "multiplicative", "n_init": 3, "tol": 1e-3, "max_iter": 9, "random_state": 3}
    assert DNPEFF(**settings).get_params() == clone(DNPEFF(**settings)).get_params() == settings
    assert DNPEFF().set_params(n_components=0).n_components == 0  # sklearn: checked when it is used


BAD = np.where(np.arange(12).reshape(3, 4) == 7, -0.5, 1.0)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (BAD, r"Negative values in data: example 1 holds -0.5; a diagonal Fisher sums squares, so all entries must be ≥ 0"),
        (csr_array(np.where(BAD == 1, 0, BAD)), "example 1 holds -0.5"),
        (np.where(BAD < 0, np.nan, BAD), "NaN or infinity in data, or a number too large to square: example 1; drop such examples first"),
        (csr_array(np.where(BAD < 0, np.inf, BAD)), "NaN or infinity in data.*: example 1; drop"),
        (np.zeros((3, 4)), "all diagonal Fishers are zero: there is nothing to decompose"),
        (csr_array((3, 4)), "all diagonal Fishers are zero"),
        (np.eye(4) * [1, 0, 1, 0], "n_components=3 is more than these diagonal Fishers can carry: 2 of 4 examples are not zero; choose .* 1 to 2"),
        (np.full((3, 4), 1e200), "or a number too large to square: example 0; drop"),
        (np.ones(4), "Expected 2D array, got 1D array"),
        (np.ones((0, 4)), "Found array with 0 sample"),
    ],
)
def test_what_are_no_diagonals_is_refused_by_name(X, words):
    with pytest.raises(ValueError, match=words):
        DNPEFF(3, n_init=1).fit(X)


def test_transform_asks_for_the_same_features(fitted, diagonals):
    for X in (diagonals[:, :4], csr_array(diagonals[:, :4]), kept_entries(diagonals[:, :4], 2)):
        with pytest.raises(ValueError, match="X has 4 features, but DNPEFF is expecting 60 features as input"):
            fitted.transform(X)
    with pytest.raises(ValueError, match="Negative values in data: example 2"):
        fitted.transform(np.where(np.arange(200)[:, None] == 2, -1, diagonals))


@pytest.mark.parametrize(
    "ask", [lambda d: d.transform(np.ones((2, 3))), lambda d: d.score(np.ones((2, 3))), lambda d: d.inverse_transform(np.ones((2, 3))),
            lambda d: d.sparsify(0.1, np.ones((2, 3))), lambda d: d.check_component(0), lambda d: d.top_examples(0), lambda d: d.save("it"),
            lambda d: d.get_feature_names_out(), lambda d: d.example_table()]
)  # fmt: skip
def test_nothing_is_said_before_fit(ask):
    with pytest.raises(NotFittedError):
        ask(DNPEFF())


def test_a_fit_that_fails_leaves_the_estimator_as_it_was(diagonals, fitted):
    found = DNPEFF(6, random_state=0).fit(diagonals)
    with pytest.raises(ValueError, match="Negative values"):
        found.fit(-diagonals[:, :7])
    np.testing.assert_array_equal(found.transform(diagonals), fitted.transform(diagonals))


def test_components_by_number(fitted):
    with pytest.raises(ValueError, match=r"component 6 does not exist: this decomposition has 6 \(0 to 5\)."):
        fitted.top_examples(6)
    top = fitted.top_examples(1, 5)
    used = fitted.coefficients_[:, 1]
    assert len(top) == 5 and (np.diff(used[top]) <= 0).all() and used[top[0]] == used.max()


def test_coefficients_come_as_a_table_when_asked_for(diagonals, pefs):
    table = pd.DataFrame(diagonals, columns=[f"p{i}" for i in range(60)], index=[f"row {i}" for i in range(200)])
    for X, index in ((table, [*table.index]), (csr_array(diagonals), [*range(200)]), (pefs, [*range(24)])):
        found = DNPEFF(2, n_init=1, random_state=0).set_output(transform="pandas")
        for W in (found.fit_transform(X), found.transform(X)):
            assert isinstance(W, pd.DataFrame)
            assert W.columns.tolist() == ["npeff0", "npeff1"] == found.get_feature_names_out().tolist()
            assert W.index.tolist() == index
            np.testing.assert_allclose(W, found.coefficients_, atol=2e-6)
        assert isinstance(found.coefficients_, np.ndarray)
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        DNPEFF(2, n_init=1).fit(table).transform(table.rename(columns={"p0": "z"}))
    assert not hasattr(DNPEFF(2, n_init=1).fit(table).fit(pefs), "feature_names_in_")


def test_a_pickle_has_all_but_the_model(pefs):
    """Pickles are what joblib sends to other processes.  (This project itself writes and reads none.)"""
    found = DNPEFF(3, n_init=1, random_state=0).fit(pefs)
    back = pickle.loads(pickle.dumps(found))
    assert back.subject is None and found.subject is not None
    np.testing.assert_array_equal(back.transform(pefs), found.transform(pefs))
