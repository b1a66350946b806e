"""D-NPEFF against non-negative least squares by scipy and the loss written out, in float64."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tiny
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import npeff_nb as nb
from npeff_nb.decomposition import diagonal
from npeff_nb.fisher.extract import extract_fishers

KINDS = ("random", "duplicates", "all equal", "zero examples", "zero columns", "low rank", "sparse", "wide range")
SHAPES = [(12, 9, 3), (12, 9, 1), (9, 30, 4), (30, 6, 5), (5, 8, 5), (30, 6, 9)]
"""n, m, r: more examples than columns and fewer, one component, as many as examples, more than columns."""
PROBLEMS = [(kind, *shape, seed) for seed, kind in enumerate(KINDS) for shape in SHAPES]


def problem(kind: str, seed: int, n: int = 12, m: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.random((n, m)) ** 2
    if kind == "duplicates":
        X[n // 2 :] = X[: n - n // 2]
    elif kind == "all equal":
        X[:] = X[0]
    elif kind == "zero examples":
        X[1 : n - 5 if n > 9 else 2 : 3] = 0
    elif kind == "zero columns":
        X[:, ::3] = 0
    elif kind == "low rank":
        X = rng.random((n, 2)) @ rng.random((2, m))
    elif kind == "sparse":
        X *= rng.random((n, m)) < 0.4
        X[:, 0] += 0.1
    elif kind == "wide range":
        X *= np.logspace(0, -6, m)
    return X


def unit(X: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


def planted(n: int = 200, m: int = 60, r: int = 5, seed: int = 0, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    H = unit(rng.random((r, m)) * (rng.random((r, m)) < 0.3))
    W = rng.random((n, r)) * (rng.random((n, r)) < 0.5) + 1e-3
    return (W @ H + noise * rng.random((n, m)) / np.sqrt(m)).clip(0), H


def rebuilt(npeff: nb.DNPEFF) -> np.ndarray:
    H = np.zeros((len(npeff.components_), npeff.n_parameters_))
    H[:, npeff.kept_columns_] = npeff.components_
    return npeff.coefficients_ @ H


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: "{} n{} m{} r{}".format(*case[:4]))
def test_the_loss_never_rises_and_is_the_one_reported(case):
    kind, n, m, r, seed = case
    X = problem(kind, seed, n, m)
    r = min(r, int((X > 0).any(1).sum()))
    npeff = nb.DNPEFF(r, n_init=1, tol=1e-9, random_state=seed).fit(X)
    there = int((X > 0).any(1).sum())
    # Losses are differences of sums of the number of examples in float64.
    assert (np.diff(npeff.losses_[:-1]) <= 1e-12 * there).all()
    assert npeff.losses_[-1] <= npeff.losses_[-2] + 1e-9 * there  # the last coefficients are optimal to 1e-6, of which the loss feels the square
    expected = ((unit(X) - rebuilt(npeff)) ** 2).sum()
    assert npeff.reconstruction_err_ == pytest.approx(expected, abs=1e-10 * there)
    assert npeff.explained_variance_ == pytest.approx(1 - expected / there, abs=1e-10)
    assert npeff.component_shares_.sum() == pytest.approx(npeff.explained_variance_, abs=1e-10)
    assert (np.diff(npeff.component_shares_) <= 1e-12).all()
    assert (npeff.components_ >= 0).all() and (npeff.coefficients_ >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(npeff.components_, axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_are_nonnegative_least_squares(kind):
    X = problem(kind, 3, 14, 9)
    npeff = nb.DNPEFF(3, random_state=0).fit(problem("random", 4, 20, 9))
    found = npeff.transform(X)
    for x, w in zip(unit(X), found, strict=True):
        expected = nnls(npeff.components_.T, x[npeff.kept_columns_])[0]
        np.testing.assert_allclose(w, expected, atol=1e-5)  # a residual of 1e-6, times the inverse of the components' Gram


def test_nearly_parallel_components_have_optimal_coefficients_too():
    rng = np.random.default_rng(0)
    H = rng.random((6, 20))
    H[3:] = H[:3] + 1e-5 * rng.random((3, 20))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    X = unit(rng.random((40, 20)))
    B, G = H @ X.T, H @ H.T
    W = diagonal.fit_coefficients(B, G)
    assert np.abs(np.minimum(W, W @ G - B.T)).max() <= 2e-6
    for x, w in zip(X, W, strict=True):
        assert np.sum((x - w @ H) ** 2) <= nnls(H.T, x)[1] ** 2 + 1e-5


def test_one_sweep_is_exact_in_every_coordinate():
    """Each coordinate at its minimum given the others as they are at its turn: by scipy, one variable at a time."""
    rng = np.random.default_rng(1)
    W, H, X = rng.random((8, 3)), rng.random((3, 7)), rng.random((8, 7))
    found = H.copy()
    diagonal.descend(found, W.T @ X, W.T @ W, 1)
    for j in range(3):
        for column in range(7):
            rest = X[:, column] - W @ H[:, column] + W[:, j] * H[j, column]
            H[j, column] = nnls(W[:, [j]], rest)[0][0]
    np.testing.assert_allclose(found, H, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_planted_components_are_found(seed):
    X, H = planted(seed=seed)
    npeff = nb.DNPEFF(5, n_init=4, tol=1e-7, max_iter=1000, random_state=seed).fit(X)
    found = np.zeros_like(H)
    found[:, npeff.kept_columns_] = npeff.components_
    cosines = H @ found.T
    assert cosines[linear_sum_assignment(-cosines)].min() > 0.95


@pytest.mark.parametrize("solver", diagonal.SOLVERS)
def test_sparse_rows_give_what_dense_ones_do(solver):
    X = problem("sparse", 6, 40, 30)
    dense = nb.DNPEFF(4, solver=solver, tol=0, max_iter=15, n_init=1, random_state=0).fit(X)
    sparse = nb.DNPEFF(4, solver=solver, tol=0, max_iter=15, n_init=1, random_state=0).fit(scipy.sparse.csr_array(X))
    np.testing.assert_allclose(sparse.components_, dense.components_, atol=1e-10)  # the same sums in another order
    np.testing.assert_allclose(sparse.coefficients_, dense.coefficients_, atol=1e-6)  # what the coefficients are exact to
    back = sparse.inverse_transform(sparse.coefficients_)
    assert scipy.sparse.issparse(back)
    np.testing.assert_allclose(back.toarray(), dense.inverse_transform(dense.coefficients_), atol=1e-6)


def test_the_paper_s_solver_takes_its_steps():
    """W first, then H, with 1e-8 in the denominators, from U(0, 1]; as many as asked when there is no tolerance."""
    X = unit(problem("random", 8, 10, 7))
    found = diagonal.multiplicative(X.T, 3, 10.0, np.random.default_rng(0), tol=0, max_iter=4)
    rng = np.random.default_rng(0)
    W, H = 1 - rng.random((3, 10)), 1 - rng.random((3, 7))
    losses = [((X - W.T @ H) ** 2).sum()]
    for _ in range(4):
        W *= (H @ X.T) / (H @ H.T @ W + 1e-8)
        H *= (W @ X) / (W @ W.T @ H + 1e-8)
        losses.append(((X - W.T @ H) ** 2).sum())
    np.testing.assert_allclose(found.losses[:5], losses, rtol=1e-9)
    np.testing.assert_allclose(found.H, H / np.linalg.norm(H, axis=1, keepdims=True), rtol=1e-9)
    assert not found.converged


def test_fewer_columns_than_are_in_use_by_slabs_are_the_same(monkeypatch):
    X, _ = planted()
    whole = nb.DNPEFF(4, n_init=1, random_state=0).fit(X)
    monkeypatch.setattr(diagonal, "SLAB", 7)
    np.testing.assert_allclose(nb.DNPEFF(4, n_init=1, random_state=0).fit(X).components_, whole.components_, atol=1e-8)


def test_diagonals_of_a_model_go_the_whole_way(tmp_path):
    model, tokenizer = tiny.bert(), tiny.tokenizer()
    fishers = extract_fishers(model, tokenizer, tiny.table(), features="dense", diagonal=200, progress=False)
    npeff = nb.DNPEFF(3, random_state=0).fit(fishers)
    assert 0 < npeff.explained_variance_ <= 1
    kept = fishers.diagonals.matrix().toarray() / fishers.diagonals.norms[:, None]
    # What was not kept counts as unexplained: norms are those of the whole diagonals.
    missing = 1 - (kept**2).sum(1)
    assert npeff.reconstruction_err_ == pytest.approx(((kept - rebuilt(npeff)) ** 2).sum() + missing.sum(), rel=1e-4)  # float32
    np.testing.assert_allclose(npeff.transform(fishers), npeff.coefficients_, atol=2e-6)
    assert npeff.score(fishers) == pytest.approx(npeff.explained_variance_, abs=1e-6)
    back = nb.load(npeff.save(tmp_path / "it"))
    for name in ("coefficients_", "components_", "kept_columns_", "component_shares_", "example_explained_"):
        np.testing.assert_array_equal(getattr(back, name), getattr(npeff, name))
    assert back.get_params() == npeff.get_params() and list(back.examples["text"]) == list(npeff.examples["text"])
    np.testing.assert_array_equal(back.transform(fishers), npeff.transform(fishers))
    assert len(back.fit(fishers).components_) == 3
    with pytest.raises(ValueError, match="these Fishers are over other parameters than the ones fitted on"):
        npeff.transform(extract_fishers(model, tokenizer, tiny.table(), parameters="attention", diagonal=50, progress=False))


def test_sparsified_components_are_fitted_again(tmp_path):
    X, _ = planted()
    npeff = nb.DNPEFF(5, random_state=0).fit(X)
    thin = npeff.sparsify(0.05, X)
    assert scipy.sparse.issparse(thin.components_) and thin is not npeff and not scipy.sparse.issparse(npeff.components_)
    H = thin.components_.toarray()
    expected = np.where(npeff.components_ < 0.05, 0, npeff.components_)
    np.testing.assert_allclose(H, unit(expected), atol=1e-12)
    for x, w in zip(unit(X)[:10], thin.coefficients_, strict=False):
        np.testing.assert_allclose(w, nnls(H.T, x[npeff.kept_columns_])[0], atol=1e-5)
    assert 0.9 * npeff.explained_variance_ < thin.explained_variance_ <= npeff.explained_variance_ + 1e-6
    back = nb.load(thin.save(tmp_path / "thin"))
    np.testing.assert_array_equal(back.components_.toarray(), H)
    np.testing.assert_array_equal(back.transform(X), thin.transform(X))


MEANT = {
    "check_dont_overwrite_parameters": "what came with the Fishers (examples, labels, ...) has the names it has on PEFs and NPEFF",
    "check_sparsify_coefficients": "sparsify(threshold, X) drops small entries and fits again; scikit-learn's of that name is for linear models",
}


@parametrize_with_checks([nb.DNPEFF(2, random_state=0)], expected_failed_checks=lambda _: MEANT)
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


def test_tables_and_names():
    X, _ = planted()
    npeff = nb.DNPEFF(3, random_state=0).set_output(transform="pandas")
    found = npeff.fit_transform(pd.DataFrame(X, columns=[f"p{i}" for i in range(X.shape[1])]))
    assert list(npeff.get_feature_names_out()) == ["npeff0", "npeff1", "npeff2"] and len(found) == len(X)
    assert clone(npeff).get_params() == npeff.get_params()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda X: nb.DNPEFF(3).fit(np.where(np.arange(len(X))[:, None] == 4, -X, X)), "Negative values in data: example 4 holds -"),
        (lambda X: nb.DNPEFF(3).fit(np.where(np.arange(len(X))[:, None] == 2, np.nan, X)), "NaN or infinity in data: example 2 holds nan"),
        (lambda X: nb.DNPEFF(3).fit(0 * X), "all diagonal Fishers are zero: there is nothing to decompose"),
        (lambda X: nb.DNPEFF(40).fit(X[:7]), "n_components=40 is more than these diagonal Fishers can carry: 7 of 7 examples are not zero; choose"),
        (lambda X: nb.DNPEFF(3, solver="other").fit(X), "solver='other' is not known; choose one of 'hals', 'multiplicative'"),
        (lambda X: nb.DNPEFF(3, tol=-1).fit(X), "tol=-1: it must not be negative"),
        (lambda X: nb.DNPEFF(0).fit(X), "n_components=0: it must be a whole number from 1 up"),
        (lambda X: nb.DNPEFF(3).fit(X).transform(X[:, :5]), "X has 5 features, but DNPEFF is expecting 60 features as input"),
        (lambda X: nb.DNPEFF(3).fit(X).inverse_transform(-np.ones((2, 3))), r"coefficients of shape \(2, 3\); expected \(n, 3\) without negative"),
    ],
)
def test_errors_say_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make(planted()[0])


def test_fishers_without_diagonals_say_how_to_have_them(shared):
    with pytest.raises(ValueError, match=r"no diagonal Fishers of single examples: extract them with nb.extract_fishers\(..., diagonal=K\)"):
        nb.DNPEFF(3).fit(shared)


def test_nothing_before_fit():
    for ask in (lambda it: it.transform(planted()[0]), lambda it: it.save("x"), lambda it: it.inverse_transform(np.ones((1, 2)))):
        with pytest.raises(NotFittedError):
            ask(nb.DNPEFF(2))
