"""The estimator: what is planted is found, what is reported is so, what is asked wrongly is refused, what is saved comes back."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import npeff_nb as nb
from npeff_nb import NPEFF, PEFs
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.features import FeatureMap


def planted(seed: int, n: int = 300, r: int = 8, d: int = 40, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 3, d) of examples that use one to three of r unit directions, with Gaussian noise of ``noise`` times the rows' length."""
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((r, d))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    A = np.zeros((n, 3, d))
    for i in range(n):
        used = rng.choice(r, rng.integers(1, 4), replace=False)
        A[i, : len(used)] = np.sqrt(rng.uniform(0.3, 1, len(used)))[:, None] * H[used]
    away = rng.standard_normal(A.shape)
    return A + noise * away * (np.linalg.norm(A, axis=(1, 2)) / np.linalg.norm(away, axis=(1, 2)))[:, None, None], H


def pefs_of(A: np.ndarray, norms: np.ndarray | None = None) -> PEFs:
    """PEFs around given rows, without a model."""
    n, k, d = A.shape
    norms = np.array([twins.frobenius(a) for a in A]) if norms is None else norms
    parameters = pd.DataFrame(
        {"name": ["w"], "kind": ["weight"], "layer": pd.array([0], dtype="Int64"), "shape": [(1, d)], "numel": [d], "energy": [1.0]}
    )
    examples = pd.DataFrame({"text": [f"example {i}" for i in range(n)]})
    return PEFs(
        A.astype(np.float32),
        norms,
        np.zeros((n, k + 1), np.float32),
        examples,
        parameters,
        [str(c) for c in range(k + 1)],
        FeatureMap("dense", ["w"], [(1, d)]),
    )


@pytest.fixture(scope="module")
def rows():
    return planted(0, n=40, r=3, d=10)[0]


@pytest.fixture(scope="module")
def fitted(rows):
    """Iterated to its end, so that identities of a stationary point hold closely."""
    return NPEFF(3, n_init=2, tol=1e-13, max_iter=3000, random_state=0).fit(rows)


@pytest.mark.parametrize("seed", range(5))
def test_planted_components_are_found(seed):
    A, H = planted(seed)
    found = NPEFF(8, random_state=seed).fit(A).components_
    cosines = np.abs(found @ H.T)
    ours, theirs = linear_sum_assignment(-cosines)
    assert cosines[ours, theirs].mean() >= 0.95


def test_equal_seeds_give_equal_results(rows):
    one, two = (NPEFF(3, n_init=2, random_state=7).fit(rows) for _ in range(2))
    np.testing.assert_array_equal(one.components_, two.components_)
    np.testing.assert_array_equal(one.coefficients_, two.coefficients_)
    assert one.restart_losses_ == two.restart_losses_
    assert NPEFF(3, n_init=2, random_state=8).fit(rows).restart_losses_ != one.restart_losses_


def test_the_best_start_is_kept(rows):
    npeff = NPEFF(3, n_init=5, random_state=0).fit(rows)
    assert len(npeff.restart_losses_) == 5
    assert npeff.reconstruction_err_ == npeff.losses_[-1]
    # The loss is counted again from the components alone, with coefficients that are exact to 1e-6: its square is left of the loss.
    assert npeff.reconstruction_err_ == pytest.approx(min(npeff.restart_losses_), rel=1e-9)
    assert npeff.n_iter_ == len(npeff.losses_) - 2


def test_what_is_reported_is_so(fitted, rows):
    unit = rows / np.sqrt([twins.frobenius(a) for a in rows])[:, None, None]
    expected = twins.dense_loss(unit, fitted.coefficients_, fitted.components_)
    assert fitted.reconstruction_err_ == pytest.approx(expected, rel=1e-9)
    assert fitted.explained_variance_ == pytest.approx(1 - expected / len(rows), rel=1e-9)
    assert fitted.component_shares_.sum() == pytest.approx(fitted.explained_variance_, rel=1e-9)
    np.testing.assert_allclose(fitted.projections_, unit @ fitted.components_.T, atol=1e-12)
    rebuilt = (twins.fisher(a) - (fitted.components_.T * w) @ fitted.components_ for a, w in zip(unit, fitted.coefficients_, strict=True))
    np.testing.assert_allclose(fitted.example_explained_, [1 - np.linalg.norm(x) ** 2 for x in rebuilt], atol=1e-9)


def test_components_are_unit_coefficients_not_negative_shares_falling(fitted):
    np.testing.assert_allclose(np.linalg.norm(fitted.components_, axis=1), 1, atol=1e-12)
    assert (fitted.coefficients_ >= 0).all()
    assert (np.diff(fitted.component_shares_) <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_signs_strengthen_the_predicted_class_of_the_users(seed):
    """Row 1 of a Fisher is the predicted class upwards: weighted by use, it points along the component.  These rows favour neither sign."""
    npeff = NPEFF(5, n_init=1, random_state=seed).fit(np.random.default_rng(seed).standard_normal((40, 2, 10)))
    assert ((npeff.coefficients_ * npeff.projections_[:, 0]).sum(0) > 0).all()


def test_signs_do_not_depend_on_the_rows_that_follow(rows):
    flipped = rows * np.array([1, -1, -1])[:, None]  # the same Fishers
    one, two = (NPEFF(3, n_init=1, random_state=0).fit(A) for A in (rows, flipped))
    np.testing.assert_allclose(one.components_, two.components_, atol=1e-6)
    np.testing.assert_allclose(NPEFF(3, n_init=1, random_state=0).fit(-rows).components_, -one.components_, atol=1e-6)


def test_rows_and_their_weights_make_the_component(fitted, rows):
    unit = rows / np.sqrt([twins.frobenius(a) for a in rows])[:, None, None]
    for k in range(3):
        made = np.einsum("ny,nyd->d", fitted.row_weights(k), unit)
        # Exact where the gradient is zero; the fit ends with a relative gradient of about 1e-6.
        np.testing.assert_allclose(made, fitted.components_[k], atol=1e-4)


def test_transform_gives_the_training_coefficients_again(fitted, rows):
    np.testing.assert_allclose(fitted.transform(rows), fitted.coefficients_, atol=1e-5)
    np.testing.assert_allclose(fitted.transform(rows[:5]), fitted.coefficients_[:5], atol=1e-5)


def test_transform_does_not_see_the_scale_of_an_example(fitted, rows):
    np.testing.assert_allclose(fitted.transform(rows * np.linspace(0.1, 50, len(rows))[:, None, None]), fitted.transform(rows), atol=1e-5)


def test_inverse_transform_and_back(fitted):
    W = np.random.default_rng(0).uniform(0, 1, (6, 3))
    back = fitted.inverse_transform(W)
    assert back.shape == (6, 3, 10)
    for a, w in zip(back, W, strict=True):
        np.testing.assert_allclose(twins.fisher(a), (fitted.components_.T * w) @ fitted.components_, atol=1e-12)
    again = fitted.transform(back)
    norms = np.array([twins.frobenius(a) for a in back])  # transform works on unit-norm Fishers
    np.testing.assert_allclose(again * norms[:, None], W, atol=1e-5)


@pytest.mark.parametrize("W", [np.ones((2, 4)), np.ones(3), np.array([[0.1, -0.1, 0.2]]), np.full((2, 3), np.nan)])
def test_inverse_transform_refuses_what_is_no_coefficients(W, fitted):
    with pytest.raises(ValueError, match=r"expected \(n, 3\) without negative values"):
        fitted.inverse_transform(W)


def test_one_row_an_example_may_be_two_dimensional(rows):
    flat = NPEFF(2, n_init=1, random_state=0).fit(rows[:, 0])
    np.testing.assert_array_equal(flat.components_, NPEFF(2, n_init=1, random_state=0).fit(rows[:, :1]).components_)
    assert flat.coefficients_.shape == (40, 2)


def test_fit_transform_is_fit_s_coefficients(rows):
    npeff = NPEFF(2, n_init=1, random_state=0)
    np.testing.assert_array_equal(npeff.fit_transform(rows), npeff.coefficients_)


def test_explained_variance_of_pefs_refers_to_the_full_fishers(rows):
    """A zero Fisher counts for nothing, every other for one; energy outside the kept features counts as unexplained."""
    A = rows.copy()
    A[7] = 0
    full = np.array([twins.frobenius(a) for a in A])
    kept = A[:, :, :6].astype(np.float32)  # what is left of the features
    npeff = NPEFF(3, n_init=1, random_state=0).fit(pefs_of(kept, full))
    scale = np.sqrt(np.where(full > 0, full, 1))[:, None, None]
    total = 39.0
    inside = twins.dense_loss(kept / scale, npeff.coefficients_, npeff.components_)
    missed = total - sum(twins.frobenius(a) ** 2 for a in kept / scale)
    assert missed > 1
    assert npeff.reconstruction_err_ == pytest.approx(inside + missed, rel=1e-6)  # float32 rows
    assert npeff.explained_variance_ == pytest.approx(1 - (inside + missed) / total, rel=1e-6)
    assert not npeff.coefficients_[7].any()


@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("r", [1, 3, 9])
def test_explained_variance_lies_between_zero_and_one(noise, r):
    A, _ = planted(1, n=30, r=3, d=10, noise=noise)
    for X in (A, pefs_of(A)):
        npeff = NPEFF(r, n_init=1, tol=1e-10, random_state=0).fit(X)
        assert 0 <= npeff.explained_variance_ <= 1
        assert npeff.reconstruction_err_ >= 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_components": 0}, "n_components=0: it must be a whole number from 1 up"),
        ({"n_components": True}, "n_components=True: it must be a whole number"),
        ({"n_components": 2.0}, "n_components=2.0: it must be a whole number"),
        (
            {"n_components": 121},
            r"n_components=121 is more than these Fishers can carry: 40 examples have \d+ non-zero factor rows; choose n_components from 1 to",
        ),
        ({"n_init": 0}, "n_init=0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"n_components": "two"}, "n_components='two': it must be a whole number"),
        ({"max_iter": None}, "max_iter=None: it must be a whole number"),
        ({"tol": -1e-3}, "tol=-0.001: it must be a finite number that is not negative"),
        ({"tol": float("nan")}, "tol=nan: it must be a finite number"),
        ({"tol": float("inf")}, "tol=inf: it must be a finite number"),
        ({"tol": "small"}, "tol='small': it must be a finite number"),
        ({"solver": "newton"}, "solver='newton' is not known; choose one of 'hals', 'multiplicative', 'stiefel', 'minibatch'"),
        ({"solver": ["hals"]}, r"solver=\['hals'\] is not known"),
        ({"solver_options": {"batch": 8}}, "solver_options has 'batch', which solver='hals' does not know; it takes none"),
        (
            {"solver": "minibatch", "solver_options": {"size": 8}},
            r"solver_options has 'size', which solver='minibatch' does not know; it takes batch=1024",
        ),
        ({"solver": "stiefel", "solver_options": {"tol": 0, "W": 1}}, "solver_options has 'W', 'tol', which solver='stiefel' does not know"),
        ({"solver_options": "batch"}, "solver_options='batch': give a dict of keyword arguments, or None"),
        ({"reduction": "basis"}, "reduction='basis': choose 'auto', 'none', 'gram', or a share of energy above 0, at most 1"),
        ({"reduction": 0.0}, r"reduction=0\.0: choose"),
        ({"reduction": 1.5}, r"reduction=1\.5: choose"),
        ({"reduction": None}, "reduction=None: choose"),
        ({"reduction": True}, "reduction=True: choose"),
        ({"init": "random"}, r"init='random': choose 'k-means\+\+', or give components \(n_components, d\)"),
        ({"init": np.ones((2, 4))}, r"init has shape \(2, 4\); expected finite components \(2, 10\)"),
        ({"init": np.ones((3, 10))}, r"init has shape \(3, 10\); expected finite components \(2, 10\)"),
        ({"init": np.full((2, 10), np.nan)}, "expected finite components"),
        ({"init": None}, r"init has shape \(\)"),
        ({"init": np.ones((2, 10)), "solver": "stiefel"}, r"solver='stiefel' draws its own start: leave init='k-means\+\+'"),
        ({"init": np.ones((2, 10)), "solver": "multiplicative"}, "solver='multiplicative' draws its own start"),
        ({"shards": "both"}, "shards='both': choose None, 'rows' or 'columns'"),
        ({"shards": "rows", "solver": "minibatch"}, "solver='minibatch' works in one process: give shards=None, or another solver"),
        ({"device": "abacus"}, r"device='abacus' cannot be used here \(.+\); device=None is the processor"),
        ({"solver": "stiefel", "n_components": 11}, "r=11 orthonormal components in d=10 features: choose r from 1 to 10"),
    ],
)
def test_settings_are_checked_at_fit(settings, words, rows):
    with pytest.raises(ValueError, match=words):
        NPEFF(**{"n_components": 2} | settings).fit(rows)


def test_settings_are_stored_untouched_and_cloned():
    npeff = NPEFF(5, n_init=2, tol=1e-3, max_iter=9, random_state=3)
    assert npeff.get_params() == {
        "n_components": 5, "solver": "hals", "solver_options": None, "init": "k-means++", "n_init": 2, "reduction": "auto", "tol": 1e-3,
        "max_iter": 9, "device": None, "shards": None, "verbose": False, "random_state": 3,
    }  # fmt: skip
    assert clone(npeff).get_params() == npeff.get_params()
    assert npeff.set_params(n_components=0).n_components == 0  # sklearn: checked when it is used


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.full((3, 4), np.nan), "the factor rows of example 0 are not finite"),
        (np.where(np.arange(12).reshape(3, 4) == 7, np.inf, 1.0), r"example 1 are not finite \(NaN or infinity\): drop such examples first"),
        (np.zeros((3, 4)), "all Fishers are zero: there is nothing to decompose"),
        (np.zeros((2, 3, 4)), "all Fishers are zero"),
        # One and two dimensions are scikit-learn's, and so are the words.
        (np.ones(4), "Expected 2D array, got 1D array instead"),
        (np.float64(3), "Expected 2D array, got scalar array instead"),
        (np.ones((0, 4)), r"Found array with 0 sample\(s\) \(shape=\(0, 4\)\) while a minimum of 1 is required by NPEFF"),
        (np.ones((4, 0)), r"Found array with 0 feature\(s\)"),
        (np.ones((3, 4)) * 1j, "Complex data not supported"),
        (["who", "what"], "could not convert string to float: 'who'"),
        (np.array([["a", "b"]]), "could not convert string to float"),
        (
            np.ones((2, 3, 4, 5)),
            r"X has shape \(2, 3, 4, 5\); expected PEFs, factor rows \(n, k, d\), a list of rows \(k_i, d\), or one row an example \(n, d\), none of",
        ),
        (np.ones((2, 0, 4)), r"X has shape \(2, 0, 4\); .*none of them empty"),
        (np.ones((0, 2, 4)), r"X has shape \(0, 2, 4\)"),
        (np.ones((3, 2, 4)) * 1j, "X has complex numbers; factor rows are real"),
        (np.array([[["a", "b"]]]), "could not convert string to float"),
        ([np.ones((2, 3)), np.ones((1, 4))], "X is a list of rows with 3, 4 features; all must have the same"),
        ([np.ones((2, 3)), np.ones(3)], r"X is a list with the shapes \(2, 3\), \(3,\); expected PEFs"),
    ],
)
def test_arrays_that_are_no_fishers(X, words):
    with pytest.raises(ValueError, match=words):
        NPEFF(1, n_init=1).fit(X)


def test_infinite_rows_of_pefs_name_the_example(rows):
    bad = np.where(np.arange(40)[:, None, None] == 7, np.inf, rows)
    with pytest.raises(ValueError, match=r"the factor rows of example 7 are not finite"):
        NPEFF(1, n_init=1).fit(pefs_of(bad, np.ones(40)))


def test_fishers_without_examples_are_refused(rows):
    with pytest.raises(ValueError, match=r"X has shape \(0, 3, 10\); .*none of them empty"):
        NPEFF(1, n_init=1).fit(pefs_of(rows)[[]])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(39), r"sample_weight has shape \(39,\); expected one number for each of the 40 examples"),
        (np.ones((40, 1)), r"sample_weight has shape \(40, 1\)"),
        (2.0, r"sample_weight has shape \(\)"),
        (np.where(np.arange(40) == 3, -1.0, 1.0), "sample_weight must be finite, not negative, and not zero throughout"),
        (np.zeros(40), "not zero throughout"),
        (np.full(40, np.nan), "must be finite"),
        (["one"] * 40, "could not convert string to float"),
    ],
)
def test_weights_that_are_none(weights, words, rows):
    with pytest.raises(ValueError, match=words):
        NPEFF(2, n_init=1).fit(rows, sample_weight=weights)


def test_weights_that_leave_nothing(rows):
    A = rows.copy()
    A[:5] = 0
    with pytest.raises(ValueError, match="sample_weight is zero for all Fishers that are not: there is nothing to decompose"):
        NPEFF(2, n_init=1).fit(A, sample_weight=np.arange(40) < 5)


def test_transform_asks_for_the_same_features(fitted, rows):
    with pytest.raises(ValueError, match="X has 4 features, but NPEFF is expecting 10 features as input"):
        fitted.transform(rows[:, :, :4])
    with pytest.raises(ValueError, match="X has 4 features, but NPEFF is expecting 10 features as input"):
        fitted.score(rows[:, 0, :4])
    np.testing.assert_array_equal(fitted.transform(rows[:, :1]), fitted.transform(rows[:, 0]))  # any number of rows will do
    with pytest.raises(ValueError, match="example 2 are not finite"):
        fitted.transform(np.where(np.arange(40)[:, None, None] == 2, np.nan, rows))


def test_transform_asks_for_the_same_parameters(rows):
    """Named both ways round: what the Fishers lack, and what they have beside."""

    def over(*names: str) -> PEFs:
        pefs = pefs_of(rows)
        d = rows.shape[2] // len(names)
        pefs.parameters = pd.concat([pefs.parameters.assign(name=name, numel=d, shape=[(1, d)]) for name in names], ignore_index=True)
        pefs.feature_map = FeatureMap("dense", list(names), [(1, d)] * len(names))
        return pefs

    npeff = NPEFF(2, n_init=1, random_state=0).fit(over("a", "b"))
    for ask in (npeff.transform, npeff.score):
        with pytest.raises(ValueError, match=r"over 1 parameters and this NPEFF was fitted on 2; only one of them has a: extract them with nb\."):
            ask(over("b"))
    with pytest.raises(ValueError, match=r"over 5 parameters and this NPEFF was fitted on 2; only one of them has a, b, c and others: .*like=npeff"):
        npeff.transform(over("c", "d", "e", "f", "g"))


def test_fishers_of_another_model_are_transformed_with_a_warning_that_names_what_differs(npeff, tokenizer):
    later = tiny.bert()
    with torch.no_grad():
        later.bert.pooler.dense.weight[0, 0] += 1
    pefs = extract_fishers(later, tokenizer, tiny.TEXTS, features="dense", progress=False)
    words = r"^this is not the model that the Fishers fitted on were taken from: bert\.pooler\.dense\.weight has other values$"
    for ask in (npeff.transform, npeff.score):
        with pytest.warns(UserWarning, match=words) as said:
            ask(pefs)
        assert said[0].filename == __file__  # the line to look at is the caller's


def test_transform_asks_for_the_same_scales(npeff, bert, tokenizer):
    """Scaled gradients stand in coordinates of the same names, and mean other numbers."""
    scaled = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", scale={"MLP": 3.0}, progress=False)
    with pytest.raises(ValueError, match="other coordinates"):
        npeff.transform(scaled)
    assert npeff.transform(extract_fishers(bert, tokenizer, tiny.TEXTS, like=npeff, progress=False)).shape == (8, 4)


CALLS = {
    "transform": lambda n, path: n.transform(np.ones((2, 3))),
    "score": lambda n, path: n.score(np.ones((2, 3))),
    "example_table": lambda n, path: n.example_table(),
    "dead_components_": lambda n, path: n.dead_components_,
    "get_feature_names_out": lambda n, path: n.get_feature_names_out(),
    "expand": lambda n, path: n.expand(np.ones((2, 3)), 1),
    "merge": lambda n, path: n.merge([0, 1], np.ones((2, 3))),
    "split": lambda n, path: n.split(0, np.ones((2, 3))),
    "inverse_transform": lambda n, path: n.inverse_transform(np.ones((2, 3))),
    "check_component": lambda n, path: n.check_component(0),
    "top_examples": lambda n, path: n.top_examples(0),
    "row_weights": lambda n, path: n.row_weights(0),
    "component_table": lambda n, path: n.component_table(),
    "direction": lambda n, path: n.direction(0),
    "profile": lambda n, path: n.profile(),
    "attach": lambda n, path: n.attach(torch.nn.Linear(1, 1)),
    "save": lambda n, path: n.save(path / "x.npeff"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_nothing_is_to_be_had_before_fit(call, tmp_path):
    with pytest.raises(NotFittedError, match="not fitted"):
        call(NPEFF(2), tmp_path)


@pytest.mark.parametrize("k", [3, 40, -1, 1.5, True])
@pytest.mark.parametrize("ask", ["check_component", "top_examples", "row_weights", "direction", "profile"])
def test_components_that_do_not_exist_say_which_do(ask, k, fitted):
    if ask == "profile" and not isinstance(k, int):
        k = [k]
    asked = k[0] if isinstance(k, list) else k
    with pytest.raises(ValueError, match=rf"component {asked} does not exist: this decomposition has 3 \(0 to 2\)\."):
        getattr(fitted, ask)(k)


@pytest.mark.parametrize("k", ["one", None, float("nan")])
def test_what_is_no_number_gets_the_same_words(k, fitted):
    with pytest.raises(ValueError, match=r"component \w+ does not exist: this decomposition has 3 \(0 to 2\)\."):
        fitted.check_component(k)


def test_numpy_integers_are_component_numbers(fitted):
    assert fitted.check_component(np.int64(2)) == 2
    assert type(fitted.check_component(np.int64(2))) is int


def test_top_examples_fall_and_use_the_component(fitted):
    w = fitted.coefficients_[:, 1]
    top = fitted.top_examples(1, 5)
    assert w[top].tolist() == sorted(w, reverse=True)[:5]
    assert (w[fitted.top_examples(1, 1000)] > 0).all()


# ------------------------------------------------------------------------------------------------------------------------- files


def assert_equal(a: NPEFF, b: NPEFF) -> None:
    assert a.get_params() == b.get_params()
    for name in ("coefficients_", "components_", "projections_", "component_shares_", "example_explained_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in (
        "losses_",
        "n_iter_",
        "converged_",
        "restart_losses_",
        "reconstruction_err_",
        "explained_variance_",
        "n_features_in_",
        "labels",
        "profiles",
        "facts",
    ):
        assert getattr(a, name) == getattr(b, name), name
    pd.testing.assert_frame_equal(a.component_table(), b.component_table())
    for k in range(len(a.components_)):
        np.testing.assert_array_equal(a.top_examples(k), b.top_examples(k))
        np.testing.assert_array_equal(a.row_weights(k), b.row_weights(k))
    X = np.random.default_rng(0).standard_normal((4, a.projections_.shape[1], a.n_features_in_))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))
    np.testing.assert_array_equal(a.inverse_transform(a.coefficients_), b.inverse_transform(b.coefficients_))


def test_saved_and_loaded_without_examples(fitted, tmp_path):
    back = nb.load(fitted.save(tmp_path / "x.npeff"))
    assert_equal(back, fitted)
    assert back.examples is None


def test_saved_and_loaded_with_examples_labels_and_profiles(npeff, tmp_path):
    npeff.labels[1] = "questions about kings"
    npeff.profile(0, progress=False)
    back = nb.load(npeff.save(tmp_path / "x.npeff"))
    assert_equal(back, npeff)
    pd.testing.assert_frame_equal(back.examples, npeff.examples)
    pd.testing.assert_frame_equal(back.parameters, npeff.parameters)
    np.testing.assert_array_equal(back.logits, npeff.logits)
    np.testing.assert_array_equal(back.norms, npeff.norms)
    assert back.classes == npeff.classes
    assert back.feature_map.id == npeff.feature_map.id
    assert back.labels == {1: "questions about kings"}
    assert back.component_table()["name"].iloc[1] == "questions about kings"
    assert back.profiles.keys() == {0}


def test_saved_again_over_itself(npeff, tmp_path):
    npeff.save(tmp_path / "x.npeff")
    npeff.labels[0] = "new"
    npeff.save(tmp_path / "x.npeff")
    assert nb.load(tmp_path / "x.npeff").labels == {0: "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.npeff"]


def test_numpy_settings_are_saved(rows, tmp_path):
    """``for r in np.arange(...)`` gives numpy integers, which JSON does not know."""
    npeff = NPEFF(np.int64(2), n_init=np.int64(1), tol=np.float32(1e-3), random_state=np.int64(0)).fit(rows)
    assert nb.load(npeff.save(tmp_path / "x.npeff")).n_components == 2


def test_attached_to_its_model_a_loaded_one_lifts_the_same_direction(shared, npeff, tmp_path):
    back = nb.load(npeff.save(tmp_path / "x.npeff"))
    with pytest.raises(ValueError, match=r"no model at hand: call npeff.attach\(model, tokenizer\)"):
        back.direction(0)
    assert back.attach(tiny.bert(), tiny.tokenizer()) is back
    for name, value in npeff.direction(0).items():
        torch.testing.assert_close(back.direction(0)[name], value, rtol=0, atol=1e-6)


def test_attached_to_ready_inputs(tmp_path):
    model, inputs = tiny.seeded(tiny.CalledTwice), torch.randn(8, 6)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, examples=pd.DataFrame({"row": range(8)}), features="dense", progress=False)
    npeff = NPEFF(2, n_init=1, random_state=0).fit(pefs)
    back = nb.load(npeff.save(tmp_path / "x.npeff")).attach(model, logits=tiny.plain_logits, inputs=inputs)
    torch.testing.assert_close(back.direction(0)["again.weight"], npeff.direction(0)["again.weight"])


def test_the_model_itself_is_attached_without_a_word(npeff, tmp_path):
    back = nb.load(npeff.save(tmp_path / "x.npeff"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back.attach(tiny.bert(), tiny.tokenizer())


def test_another_model_is_attached_with_a_warning_that_names_what_differs(npeff, tmp_path):
    back, later = nb.load(npeff.save(tmp_path / "x.npeff")), tiny.bert()
    with torch.no_grad():
        later.bert.pooler.dense.weight[0, 0] += 1
    with pytest.warns(UserWarning, match=r"^this is not the model that these Fishers were taken from: bert\.pooler\.dense\.weight has other values$"):
        assert back.attach(later, tiny.tokenizer()) is back
    assert back.subject.model is later
    assert back.direction(0)


def test_a_model_that_cannot_be_asked_is_not_attached(npeff, tmp_path):
    back = nb.load(npeff.save(tmp_path / "x.npeff"))
    first = r"they are over 'bert\.encoder\.layer\.0\.attention\.self\.query\.weight' of shape \(16, 16\), and the model"
    with pytest.raises(ValueError, match=rf"this is not the model that the Fishers were taken from .*{first} does not have it"):
        back.attach(tiny.gpt2(), tiny.tokenizer())
    with pytest.raises(ValueError, match=rf"{first} has it with shape \(32, 32\)"):
        back.attach(tiny.bert(hidden_size=32), tiny.tokenizer())
    with pytest.raises(ValueError, match="training mode"):
        back.attach(tiny.bert().train(), tiny.tokenizer())
    with pytest.raises(TypeError, match="attach needs the model's tokenizer"):
        back.attach(tiny.bert())
    assert back.subject is None


def test_an_array_s_decomposition_has_no_model_to_attach(fitted):
    with pytest.raises(ValueError, match="fitted on an array: there are no examples and no model behind it"):
        fitted.attach(tiny.bert(), tiny.tokenizer())
    with pytest.raises(ValueError, match=r"it was fitted on an array; fit it on the result of nb.extract_fishers"):
        fitted.direction(0)
