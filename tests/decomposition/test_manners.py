"""The estimator among others: what scikit-learn expects of one, that all it says agrees, that it comes back from disk whole."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn.base
import tiny
import torch
import twins
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from test_npeff import pefs_of, planted
from tqdm import tqdm

import npeff_nb as nb
from npeff_nb import NPEFF
from npeff_nb._files import MANIFEST, VERSION
from npeff_nb.decomposition import factorisation, fitting
from npeff_nb.decomposition import plan as plans

EXACT = 2e-6
"""Coefficients are exact to 1e-6 in their optimality conditions; the components here are far enough apart to make no more than twice that of it."""


@pytest.fixture(scope="module")
def rows():
    return planted(0, n=60, r=4, d=12)[0]


@pytest.fixture(scope="module")
def fitted(rows):
    return NPEFF(4, n_init=2, random_state=0).fit(rows)


@pytest.fixture
def table():
    """One row an example, in a table whose index is not 0, 1, 2, ..."""
    A = planted(1, n=30, r=3, d=5)[0][:, 0]
    return pd.DataFrame(A, columns=list("abcde"), index=[f"row {i}" for i in range(30)])


def assert_consistent(npeff: NPEFF, A: np.ndarray, weights: np.ndarray | None = None, atol: float = 1e-9) -> None:
    """Everything that a fit on rows ``A`` (n, k, d) says of itself, against dense matrices; ``atol`` on shares of the energy."""
    n, r = len(A), npeff.n_components
    norms = np.array([twins.frobenius(a) for a in A])
    ω = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    unit = A.astype(np.float64) / np.sqrt(np.where(norms > 0, norms, 1))[:, None, None]
    W, H, P = npeff.coefficients_, npeff.components_, npeff.projections_
    assert W.shape == (n, r) and H.shape == (r, A.shape[2]) and P.shape == (n, A.shape[1], r)
    assert (W >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(H, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(P, unit @ H.T, atol=atol)
    of_each = np.array([twins.dense_loss(unit[i : i + 1], W[i : i + 1], H) for i in range(n)])
    total = ω[norms > 0].sum()
    assert npeff.reconstruction_err_ == pytest.approx(ω @ of_each, abs=atol * total)
    assert npeff.explained_variance_ == pytest.approx(1 - ω @ of_each / total, abs=atol)
    assert 0 <= npeff.explained_variance_ <= 1
    assert npeff.component_shares_.sum() == pytest.approx(npeff.explained_variance_, abs=atol)
    assert (np.diff(npeff.component_shares_) <= 0).all()
    np.testing.assert_allclose(npeff.example_explained_, np.where(norms > 0, 1 - of_each, 0), atol=atol)
    assert npeff.losses_[-1] == npeff.reconstruction_err_
    assert npeff.n_iter_ >= 1 and len(npeff.losses_) > npeff.n_iter_
    assert isinstance(npeff.converged_, bool)
    assert npeff.restart_losses_ and np.isfinite(npeff.restart_losses_).all()
    assert npeff.dead_components_.tolist() == [j for j in range(r) if not W[:, j].any()]


# ------------------------------------------------------------------------------------------------------------------ scikit-learn's checks

MEANT = {
    "check_dont_overwrite_parameters": "what came with the Fishers has the Fishers' own names, without an underscore: examples, parameters, ...",
}
"""Checks that fail, and why that is so on purpose."""


def test_scikit_learn_s_checks_fail_only_where_it_is_meant():
    # One component iterated to its end has one optimum, so that even weights and repetitions, which start elsewhere, agree to 1e-7.
    settings = NPEFF(1, n_init=2, tol=1e-14, max_iter=1000)
    found = check_estimator(settings, expected_failed_checks=MEANT, on_skip=None, on_fail=None)
    assert len(found) > 40
    assert {check["check_name"]: str(check["exception"]) for check in found if check["status"] == "failed"} == {}
    assert {check["check_name"] for check in found if check["status"] == "xfail"} == set(MEANT)


def test_tags_say_what_is_so():
    tags = sklearn.utils.get_tags(NPEFF())
    assert not tags.non_deterministic
    assert tags.requires_fit
    assert tags.input_tags.two_d_array and tags.input_tags.three_d_array
    assert not tags.input_tags.sparse and not tags.input_tags.allow_nan
    assert tags.transformer_tags.preserves_dtype == ["float64"]


def test_a_table_s_columns_are_remembered(table):
    npeff = NPEFF(2, n_init=1, random_state=0).fit(table)
    assert npeff.feature_names_in_.tolist() == list("abcde")
    assert npeff.n_features_in_ == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npeff.transform(table)
    for other in (table.rename(columns={"a": "z"}), table[list("edcba")]):
        for ask in (npeff.transform, npeff.score):
            with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
                ask(other)
    with pytest.warns(UserWarning, match="X does not have valid feature names, but NPEFF was fitted with feature names"):
        npeff.transform(table.to_numpy())
    assert not hasattr(npeff.fit(table.to_numpy()[:, None]), "feature_names_in_")  # rows have none
    with pytest.warns(UserWarning, match="X has feature names, but NPEFF was fitted without feature names"):
        npeff.transform(table)


@pytest.mark.parametrize("kind", ["table", "rows", "PEFs", "list"])
def test_coefficients_come_as_a_table_when_asked_for(kind, table):
    A = table.to_numpy()[:, None]
    X = {"table": table, "rows": A, "PEFs": pefs_of(A), "list": [*A]}[kind]
    npeff = NPEFF(2, n_init=1, random_state=0).fit(X)
    assert npeff.get_feature_names_out().tolist() == ["npeff0", "npeff1"]
    plain = npeff.transform(X)
    for W in (npeff.set_output(transform="pandas").transform(X), npeff.fit_transform(X)):
        assert isinstance(W, pd.DataFrame)
        assert W.columns.tolist() == ["npeff0", "npeff1"]
        assert W.index.tolist() == (table.index.tolist() if kind == "table" else [*range(30)])
        np.testing.assert_allclose(W, plain, atol=EXACT)
    assert isinstance(npeff.coefficients_, np.ndarray)
    assert npeff.score(X) == pytest.approx(npeff.explained_variance_, abs=1e-6)
    np.testing.assert_array_equal(npeff.inverse_transform(W), npeff.inverse_transform(W.to_numpy()))


def test_fit_leaves_settings_as_they_are_and_clone_takes_them_over(rows):
    init, options = np.eye(3, 12), {"batch": 16}
    settings = {"init": init, "solver": "minibatch", "solver_options": options, "tol": 1e-3, "max_iter": 5, "random_state": np.random.RandomState(0)}
    npeff = NPEFF(3, **settings)
    before = copy.deepcopy({"init": init, "options": options})
    npeff.fit(rows)
    assert all(npeff.get_params()[name] is value for name, value in settings.items())
    np.testing.assert_array_equal(init, before["init"])
    assert options == before["options"]
    again = clone(npeff)
    assert not hasattr(again, "components_")
    np.testing.assert_array_equal(again.init, init)
    assert again.init is not init
    assert repr(again).startswith("NPEFF(") and "NPEFF" in again._repr_html_()
    again.fit(rows)


def test_an_estimator_may_be_fitted_again(rows, fitted):
    one = NPEFF(4, n_init=2, random_state=0).fit(pefs_of(rows))
    one.labels[0] = "mine"
    assert one.fit(rows) is one
    assert one.examples is None and one.labels == {} and one.choices == {}
    np.testing.assert_array_equal(one.components_, fitted.components_)


def test_a_pickle_has_all_but_the_model(rows, fitted, npeff):
    """Pickles are what joblib sends to other processes.  (This project itself writes and reads none.)"""
    for before in (fitted, npeff, NPEFF(2)):
        back = pickle.loads(pickle.dumps(before))
        assert back.get_params() == before.get_params()
        assert back.subject is None
        assert vars(back).keys() == vars(before).keys() - {"subject"}
    assert npeff.subject is not None  # it was only left out
    back = pickle.loads(pickle.dumps(npeff))
    np.testing.assert_array_equal(back.transform(npeff.projections_ @ npeff.components_), npeff.transform(npeff.projections_ @ npeff.components_))
    pd.testing.assert_frame_equal(back.example_table(), npeff.example_table())
    assert b"tensor" not in pickle.dumps(npeff)
    assert copy.deepcopy(npeff).subject is None
    with pytest.raises(ValueError, match=r"no model at hand: call npeff.attach\(model, tokenizer\)"):
        back.direction(0)
    assert back.attach(tiny.bert(), tiny.tokenizer()).direction(0)


def test_a_copy_shares_the_model(npeff):
    other = copy.copy(npeff)
    assert other.subject is npeff.subject and other.components_ is npeff.components_
    other.labels = {0: "other"}
    assert npeff.labels == {}


def test_the_number_of_components_is_found_by_cross_validation():
    """Five directions without noise: more of them explain no more of what is held out, fewer explain less."""
    A, _ = planted(3, n=60, r=5, d=10, noise=0.0)
    search = GridSearchCV(NPEFF(n_init=2, random_state=0), {"n_components": [2, 3, 4, 5]}, cv=3).fit(A)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"n_components": 5}
    assert (np.diff(scores) > 0).all() and scores[-1] > 0.99
    np.testing.assert_array_equal(search.transform(A), search.best_estimator_.transform(A))
    assert search.score(A) == search.best_estimator_.score(A)


def test_it_stands_in_a_pipeline(table):
    weights = np.arange(30) % 3
    line = make_pipeline(FunctionTransformer(np.asarray), NPEFF(2, n_init=1, random_state=0))
    W = line.fit_transform(table, npeff__sample_weight=weights)
    alone = NPEFF(2, n_init=1, random_state=0).fit(table.to_numpy(), sample_weight=weights)
    np.testing.assert_array_equal(W, alone.coefficients_)
    np.testing.assert_array_equal(line.transform(table), alone.transform(table.to_numpy()))
    assert line.score(table) == alone.score(table.to_numpy())
    assert line[-1:].get_feature_names_out().tolist() == ["npeff0", "npeff1"]


# --------------------------------------------------------------------------------------------------------------------- what it says agrees


@pytest.mark.parametrize("kind", ["rows", "PEFs", "float32", "one row"])
def test_the_examples_fitted_on_are_like_any_others(kind, rows):
    X = {"rows": rows, "PEFs": pefs_of(rows), "float32": rows.astype(np.float32), "one row": rows[:, 0]}[kind]
    npeff = NPEFF(4, n_init=1, random_state=0).fit(X)
    np.testing.assert_allclose(npeff.transform(X), npeff.coefficients_, atol=EXACT)
    assert npeff.score(X) == pytest.approx(npeff.explained_variance_, abs=1e-6)
    A = X.factors if kind == "PEFs" else X.reshape(60, -1, 12)
    assert_consistent(npeff, A, atol=1e-9 if A.dtype == np.float64 else 1e-6)


def test_the_score_of_held_out_examples_is_their_explained_share(fitted):
    A = planted(0, n=20, r=4, d=12, noise=1.0)[0]
    A[3] = 0  # nothing to explain: it does not count
    unit = A / np.sqrt([twins.frobenius(a) or 1.0 for a in A])[:, None, None]
    W = fitted.transform(A)
    assert not W[3].any()
    left = np.array([twins.dense_loss(unit[i : i + 1], W[i : i + 1], fitted.components_) for i in range(20)])
    assert fitted.score(A) == pytest.approx(1 - np.delete(left, 3).mean(), abs=1e-9)
    weights = np.where(np.arange(20) == 3, 0, np.arange(20))
    assert fitted.score(A, sample_weight=np.arange(20)) == pytest.approx(1 - np.average(left, weights=weights), abs=1e-9)
    assert fitted.score(np.zeros((2, 12))) == 0.0


def test_a_weight_is_a_repetition(rows):
    counts = np.random.default_rng(0).integers(0, 4, 60)
    start = NPEFF(4, n_init=1, random_state=0).fit(rows).components_
    settings = {"init": start, "tol": 1e-13, "max_iter": 3000}
    weighted, repeated = NPEFF(4, **settings).fit(rows, sample_weight=counts), NPEFF(4, **settings).fit(rows.repeat(counts, axis=0))
    # The same sums in another order, iterated to a relative gradient of about 1e-6.
    np.testing.assert_allclose(weighted.components_, repeated.components_, atol=1e-5)
    np.testing.assert_allclose(weighted.coefficients_.repeat(counts, axis=0), repeated.coefficients_, atol=1e-5)
    assert weighted.reconstruction_err_ == pytest.approx(repeated.reconstruction_err_, rel=1e-9)
    assert weighted.explained_variance_ == pytest.approx(repeated.explained_variance_, rel=1e-9)
    np.testing.assert_allclose(weighted.component_shares_, repeated.component_shares_, atol=1e-6)
    assert weighted.score(rows, sample_weight=counts) == pytest.approx(weighted.explained_variance_, abs=1e-6)
    assert_consistent(weighted, rows, counts)


@pytest.mark.parametrize("settings", [{"reduction": "none"}, {"reduction": "gram"}, {"reduction": 0.9}, {"solver": "minibatch"}])
def test_examples_of_weight_zero_are_left_out(settings, rows):
    """They say nothing of the components, which are then theirs too."""
    kept = np.arange(60) % 3 > 0
    strange = np.where(kept[:, None, None], rows, np.random.default_rng(1).standard_normal(rows.shape))
    weighted = NPEFF(4, n_init=3, random_state=0, **settings).fit(strange, sample_weight=kept)
    without = NPEFF(4, n_init=3, random_state=0, **settings).fit(rows[kept])
    # Starts and batches are drawn from other numbers: as good a fit, not the same one.
    assert weighted.explained_variance_ == pytest.approx(without.explained_variance_, abs=0.01)
    assert weighted.explained_variance_ == pytest.approx(weighted.score(rows[kept]), abs=1e-6)
    np.testing.assert_allclose(weighted.coefficients_, weighted.transform(strange), atol=EXACT)


def test_weights_of_one_are_none(rows, fitted):
    one = NPEFF(4, n_init=2, random_state=0).fit(rows, sample_weight=pd.Series(np.ones(60), index=range(7, 67)))
    np.testing.assert_array_equal(one.components_, fitted.components_)


@pytest.mark.parametrize("r", [3, 6, 8])
def test_components_beyond_what_is_there_are_dead(r):
    """Three orthogonal directions, each the whole Fisher of its examples: a fourth finds nothing to explain."""
    A = np.eye(3, 8)[np.arange(24) % 3][:, None] * np.linspace(1, 2, 24)[:, None, None]
    npeff = NPEFF(r, init=np.eye(8)[:r]).fit(A)
    assert len(npeff.dead_components_) == r - 3
    assert npeff.explained_variance_ == pytest.approx(1, abs=1e-9)
    np.testing.assert_array_equal(npeff.component_shares_[npeff.dead_components_], 0)
    assert all(len(npeff.top_examples(k)) == 0 for k in npeff.dead_components_)
    assert_consistent(npeff, A)


@pytest.mark.parametrize(
    ("n", "k", "d", "r", "reduction"), [(10, 3, 1, 9, "gram"), (8, 1, 1, 7, "gram"), (12, 1, 6, 9, "none"), (14, 1, 5, 8, "none")]
)
def test_more_components_than_dimensions_are_still_of_unit_norm(n, k, d, r, reduction):
    """Rows that are alike get weights that cancel, and long steps magnify rounding: what is reported is counted from the components themselves."""
    for seed in range(5):
        A = np.random.default_rng(seed).integers(-3, 4, (n, k, d))
        A[:, 0, 0] += A[:, 0, 0] == 0
        assert_consistent(NPEFF(r, n_init=1, reduction=reduction, max_iter=40, random_state=seed).fit(A), A)


def test_every_example_has_its_line():
    A, _ = planted(2, n=12, r=3, d=8)
    A[5] = 0
    npeff = NPEFF(3, n_init=1, random_state=0).fit(A)
    lines = npeff.example_table()
    assert lines.columns.tolist() == ["component", "coefficient", "components", "explained", "unexplained"]
    assert lines.index.tolist() == [*range(12)]
    assert lines["component"].isna().tolist() == [i == 5 for i in range(12)]
    for i, line in lines.iterrows():
        w = npeff.coefficients_[i]
        assert line["coefficient"] == w.max() and line["components"] == (w > 0).sum()
        assert i == 5 or line["component"] == w.argmax()
        assert line["explained"] == npeff.example_explained_[i] and line["unexplained"] == 1 - line["explained"]
    assert tuple(lines.loc[5, ["coefficient", "components", "explained", "unexplained"]]) == (0, 0, 0, 1)


def test_a_caller_s_column_keeps_its_name_and_values():
    pefs = pefs_of(planted(2, n=6, r=3, d=8)[0])
    pefs.examples = pd.DataFrame({"text": list("abcdef"), "component": list("uvwxyz"), 7: range(6)})
    npeff = NPEFF(2, n_init=1, random_state=0).fit(pefs)
    lines = npeff.example_table()
    assert lines.columns.tolist() == ["text", "component", 7, "coefficient", "components", "explained", "unexplained"]
    assert lines["component"].tolist() == list("uvwxyz")
    assert npeff.examples.columns.tolist() == ["text", "component", 7]  # only the answer has more


@pytest.mark.parametrize(
    "settings", [{"reduction": "none"}, {"reduction": "gram"}, {"reduction": 0.8}, {"solver": "minibatch", "solver_options": {"batch": 16}}], ids=str
)
def test_equal_seeds_give_equal_results_however_it_is_done(settings, rows):
    one, two = (NPEFF(4, n_init=2, random_state=3, max_iter=30, **settings).fit(rows) for _ in range(2))
    for name in ("components_", "coefficients_", "projections_", "losses_", "restart_losses_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert_consistent(one, rows)


def test_reductions_change_the_way_and_not_the_result(rows):
    """All four end over the rows themselves: from one start, iterated to the end, one minimum."""
    whole = NPEFF(4, n_init=4, random_state=0, tol=1e-10, max_iter=3000).fit(rows).explained_variance_
    for reduction in ("none", "gram", 0.9, 1.0):
        npeff = NPEFF(4, n_init=4, random_state=0, tol=1e-10, max_iter=3000, reduction=reduction).fit(rows)
        assert npeff.explained_variance_ == pytest.approx(whole, abs=1e-4)


def test_a_start_that_is_given_is_gone_on_from(rows, fitted):
    cold = NPEFF(4, n_init=1, random_state=0).fit(rows)
    warm = NPEFF(4, init=cold.components_).fit(rows)
    assert warm.n_iter_ < cold.n_iter_
    assert warm.losses_[-1] <= warm.losses_[0]
    assert warm.losses_[-1] <= cold.losses_[-1] * (1 + 1e-9)
    assert len(warm.restart_losses_) == 1
    again = NPEFF(4, init=cold.components_.tolist()).fit(rows)
    np.testing.assert_array_equal(again.components_, warm.components_)
    assert NPEFF(4, init=cold.components_, solver="minibatch", random_state=0).fit(rows).explained_variance_ >= cold.explained_variance_ - 1e-3


def test_random_states_of_all_kinds(rows):
    def components(state) -> np.ndarray:
        return NPEFF(3, n_init=1, max_iter=3, random_state=state).fit(rows).components_

    np.testing.assert_array_equal(components(5), components(np.int64(5)))
    np.testing.assert_array_equal(components(np.random.RandomState(5)), components(np.random.RandomState(5)))
    np.testing.assert_array_equal(components(np.random.default_rng(5)), components(5))
    for moving in (np.random.RandomState(5), np.random.default_rng(5)):  # drawn from: the next fit starts elsewhere
        assert not np.array_equal(components(moving), components(moving))
    assert not np.array_equal(components(None), components(None))
    for state, error in ((-1, ValueError), ("five", TypeError)):
        with pytest.raises(error):
            components(state)


def test_the_plan_is_the_one_that_was_followed(rows):
    npeff = NPEFF(3, n_init=1, max_iter=2, reduction="gram")
    said = npeff.plan(rows)
    assert not hasattr(npeff, "components_")
    assert npeff.fit(rows).plan_ == said
    assert said.form == "gram" and str(said).startswith("over the 180 × 180 inner products of the rows; at most ")
    assert npeff.plan(pefs_of(rows)) == npeff.plan([*rows]) == npeff.plan(torch.from_numpy(rows)) == said
    assert NPEFF(3, reduction=0.5).plan(rows).form == "basis"
    assert NPEFF(3, solver="minibatch", solver_options={"batch": 7}).plan(rows).size == 7
    assert NPEFF(3, init=np.eye(3, 12), reduction="gram").plan(rows).form == "rows"  # a start is in features
    with pytest.raises(ValueError, match="n_components=0"):
        NPEFF(0).plan(rows)


def test_verbose_tells_the_plan_and_closes_its_bar(rows, capsys, monkeypatch):
    NPEFF(3, n_init=2, max_iter=3, random_state=0).fit(rows)
    assert capsys.readouterr() == ("", "")
    NPEFF(3, n_init=2, max_iter=3, random_state=0, verbose=True).fit(rows)
    said = capsys.readouterr()
    assert said.out.startswith("NPEFF: over the rows as they are, 180 × 12; at most ")
    assert "start 2 of 2" in said.err and "explained=0." in said.err
    assert not tqdm._instances
    monkeypatch.setattr(fitting, "hals", interrupted)
    with pytest.raises(KeyboardInterrupt):
        NPEFF(3, verbose=True).fit(rows)
    assert not tqdm._instances


def test_more_than_the_machine_has_is_refused_before_it_is_tried(rows, monkeypatch):
    monkeypatch.setattr(plans, "physical_memory", lambda: 2**10)
    npeff = NPEFF(3, n_init=1)
    words = (
        r"this fit needs about 0\.0 GB and the machine has 0\.0 GB \(over the rows as they are, 180 × 12\); take fewer examples or components, or "
        r"solver='minibatch' and transform\(\) in parts"
    )
    with pytest.raises(MemoryError, match=words):
        npeff.fit(rows)
    assert not hasattr(npeff, "components_")
    monkeypatch.setattr(plans, "physical_memory", lambda: None)  # a machine that does not say
    npeff.fit(rows)


# ------------------------------------------------------------------------------------------------------------------- solvers and Ctrl-C

SOLVERS = {
    "hals": {},
    "minibatch": {"solver_options": {"batch": 20}},
    "multiplicative": {"solver_options": {"iterations": 300, "h_only": 30, "learning_rate": np.float64(0.02)}},
    "stiefel": {"solver_options": {"iterations": 300, "h_only": 30, "learning_rate": 0.005}},
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_what_is_planted_and_says_how(solver, tmp_path):
    """Orthogonal directions, so that the solver that keeps its components orthonormal can find them too."""
    rng = np.random.default_rng(0)
    H = np.linalg.qr(rng.standard_normal((10, 4)))[0].T
    A = np.sqrt(rng.uniform(0.3, 1, (60, 1, 1))) * H[np.arange(60) % 4][:, None] + 0.02 * rng.standard_normal((60, 1, 10))
    A = np.concatenate([A, np.zeros_like(A)], 1)
    npeff = NPEFF(4, solver=solver, n_init=3, random_state=0, **SOLVERS[solver]).fit(A)
    assert_consistent(npeff, A)
    assert npeff.explained_variance_ > 0.9
    assert (np.abs(npeff.components_ @ H.T).max(0) > 0.95).all()
    assert len(npeff.restart_losses_) == 3
    # With coefficients that are exact for its components, no solver ends above what it reported itself.
    assert npeff.losses_[-1] <= min(npeff.restart_losses_) * (1 + 1e-9) or solver == "minibatch"
    assert npeff.losses_[-1] <= npeff.losses_[0] * (1 + 1e-9)  # mini-batches begin with the best fit of a sample: here, of all
    if solver in {"multiplicative", "stiefel"}:
        assert npeff.n_iter_ == 330 and len(npeff.losses_) == 332 and npeff.converged_ is False
    else:
        assert npeff.n_iter_ <= len(npeff.losses_) - 1
    np.testing.assert_allclose(npeff.transform(A), npeff.coefficients_, atol=EXACT)
    assert npeff.example_table()["component"].nunique() == 4
    back = nb.load(npeff.save(tmp_path / "x.npeff"))
    assert back.get_params() == npeff.get_params()
    assert back.losses_ == npeff.losses_


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["at an iteration", "at the end", "in its last step"])
def test_what_is_interrupted_leaves_the_fitted_one_as_it_was(where, table, monkeypatch):
    npeff = NPEFF(2, n_init=1, random_state=0).fit(table)
    npeff.labels[0] = "mine"
    before = dict(vars(npeff))
    if where == "at an iteration":
        monkeypatch.setattr(factorisation._Teller, "_tell", interrupted)
    elif where == "at the end":
        monkeypatch.setattr(NPEFF, "_finish", interrupted)
    else:
        monkeypatch.setattr(NPEFF, "_adopt", interrupted)
    for X in (table.to_numpy()[:, None, :4], table.rename(columns=str.upper), pefs_of(table.to_numpy()[:, None])):
        with pytest.raises(KeyboardInterrupt):
            npeff.fit(X)
        assert vars(npeff).keys() == before.keys()
        assert all(vars(npeff)[name] is value for name, value in before.items())
    unfitted = NPEFF(2, n_init=1)
    with pytest.raises(KeyboardInterrupt):
        unfitted.fit(table)
    assert vars(unfitted).keys() == vars(NPEFF()).keys()


def test_a_fit_that_is_refused_leaves_the_fitted_one_as_it_was(table):
    npeff = NPEFF(2, n_init=1, random_state=0).fit(table)
    before = dict(vars(npeff))
    for X in (np.zeros((3, 7)), np.full((3, 7), np.nan), np.ones((1, 7))):
        with pytest.raises(ValueError):
            npeff.fit(X)
    assert all(vars(npeff)[name] is value for name, value in before.items())


# -------------------------------------------------------------------------------------------------------------------------------- files


def plain(value):
    """Whatever an attribute or a method gives, as something that can be compared by its text."""
    if isinstance(value, NPEFF):
        return {name: plain(v) for name, v in vars(value).items() if name.endswith("_") and name != "plan_"}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if torch.is_tensor(value):
        value = value.numpy()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype == object else (value.shape, value.dtype.name, value.tobytes())
    if isinstance(value, pd.DataFrame):
        return value.to_csv(float_format="%.12g")  # tables keep fifteen decimals
    return repr(value)


def asks(shared, folder):
    """A question for every public name, after which the estimator is as it was."""
    model, tokenizer, A = tiny.bert(), tiny.tokenizer(), np.asarray(shared.factors)
    own = {name: (lambda n, name=name: getattr(n, name)) for name in sorted(nb.NPEFF().get_params())}
    own |= {
        name: (lambda n, name=name: getattr(n, name))
        for name in (
            "coefficients_", "components_", "projections_", "reconstruction_err_", "explained_variance_", "component_shares_", "example_explained_",
            "n_iter_", "losses_", "converged_", "restart_losses_", "n_features_in_", "dead_components_", "examples", "parameters", "logits", "norms",
            "classes", "choices", "facts", "labels", "notes", "stars", "profiles", "family",
        )
    }  # fmt: skip
    return own | {
        "feature_map": lambda n: n.feature_map.id,
        "subject": lambda n: n.subject is None,
        "plan_": lambda n: n.plan_ is None,
        "plan": lambda n: n.plan(shared),
        "fit": lambda n: clone(n).fit(A),
        "fit_transform": lambda n: clone(n).fit_transform(shared),
        "transform": lambda n: (n.transform(shared), n.transform(A), copy.copy(n).set_output(transform="pandas").transform(A)),
        "score": lambda n: n.score(shared),
        "inverse_transform": lambda n: n.inverse_transform(n.coefficients_),
        "example_table": lambda n: n.example_table(),
        "component_table": lambda n: n.component_table(),
        "check_component": lambda n: n.check_component(1),
        "top_examples": lambda n: [n.top_examples(k) for k in range(3)],
        "row_weights": lambda n: [n.row_weights(k) for k in range(3)],
        "get_feature_names_out": lambda n: n.get_feature_names_out(),
        "attach": lambda n: copy.copy(n).attach(model, tokenizer).subject.logits(np.arange(8)),
        "direction": lambda n: copy.copy(n).attach(model, tokenizer).direction(0),
        "profile": lambda n: fresh(n).attach(model, tokenizer).profile(1, progress=False).profiles,
        "perturb": lambda n: edited(copy.copy(n).attach(model, tokenizer)),
        "sweep": lambda n: copy.copy(n).attach(model, tokenizer).sweep([0], [0.3], progress=False),
        "trace": lambda n: copy.copy(n).attach(model, tokenizer).trace(0, 2).table,
        "applied_to": lambda n: n.applied_to(shared[:5]),
        "expand": lambda n: n.expand(shared, 1),
        "merge": lambda n: n.merge([0, 1], shared),
        "split": lambda n: n.split(0, shared),
        "save": lambda n: sorted(p.name for p in n.save(folder / "again.npeff").iterdir()),
        "load": lambda n: type(n).load(folder / "again.npeff"),
    }  # fmt: skip


def edited(npeff: NPEFF) -> np.ndarray:
    with npeff.perturb(0, -0.3):
        return npeff.subject.logits(np.arange(8)).numpy()


def fresh(npeff: NPEFF) -> NPEFF:
    other = copy.copy(npeff)
    other.profiles = {}
    return other


def test_all_that_is_public_is_asked_of_what_comes_back(shared, tmp_path):
    npeff = NPEFF(3, n_init=1, random_state=0).fit(shared)
    npeff.labels[2] = "the third"
    npeff.profile(0, progress=False)
    questions = asks(shared, tmp_path)
    classes = [c for c in NPEFF.__mro__ if c.__module__.startswith("npeff_nb")]
    public = {name for c in (npeff, *classes) for name in vars(c) if not name.startswith("_")} | {"get_feature_names_out"}
    public -= {name for name in public if name.startswith("set_")}  # scikit-learn's, for metadata routing
    assert public == set(questions), public ^ set(questions)
    back = nb.load(npeff.save(tmp_path / "x.npeff"))
    assert type(back) is NPEFF
    assert vars(back).keys() == vars(npeff).keys() - {"plan_"}
    npeff.subject, npeff.plan_ = None, None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated")  # torch's own, when it first loads its forward mode
        for name, ask in questions.items():
            assert plain(ask(back)) == plain(ask(npeff)), name


def test_a_table_s_names_come_back(table, tmp_path):
    back = nb.load(NPEFF(2, n_init=1, random_state=0).fit(table).save(tmp_path / "x.npeff"))
    assert back.feature_names_in_.tolist() == list("abcde")
    with pytest.raises(ValueError, match="The feature names should match"):
        back.transform(table.rename(columns={"a": "z"}))
    W = back.set_output(transform="pandas").transform(table)
    assert W.index.tolist() == table.index.tolist()


def test_settings_come_back_where_they_can_be_used_again(rows, tmp_path):
    init = np.eye(3, 12, dtype=np.float32)
    settings = {
        "n_components": np.int64(3), "init": init, "reduction": np.float32(0.5), "tol": np.float64(1e-3), "max_iter": 7, "verbose": np.bool_(False),
    }  # fmt: skip
    back = nb.load(NPEFF(**settings, device=torch.device("cpu"), random_state=np.random.RandomState(0)).fit(rows).save(tmp_path / "x.npeff"))
    found = back.get_params()
    np.testing.assert_array_equal(found.pop("init"), init)
    expected = NPEFF().get_params() | settings
    del expected["init"]
    assert found == expected
    assert back.device is None and back.random_state is None  # of that run alone
    clone(back).fit(rows)
    options = {"learning_rate": np.float64(0.01), "iterations": np.int64(3), "h_only": 2}
    back = nb.load(NPEFF(2, solver="multiplicative", solver_options=options, device="cpu", n_init=1).fit(rows).save(tmp_path / "y.npeff"))
    assert back.solver_options == options and back.device == "cpu"
    generator = NPEFF(2, n_init=1, max_iter=2, random_state=np.random.default_rng(0)).fit(rows)
    assert nb.load(generator.save(tmp_path / "z.npeff")).random_state is None


def change(folder, **facts) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["facts"] |= facts
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_folders_from_before_these_settings_open(npeff, tmp_path):
    path = npeff.save(tmp_path / "old.npeff")
    old = {"n_components": 4, "solver": "hals", "n_init": 1, "tol": 1e-5, "max_iter": 500, "random_state": 0}
    change(path, settings=old)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["version"] == VERSION == 2
    del manifest["facts"]["feature_names"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    back = nb.load(path)
    assert back.get_params() == NPEFF().get_params() | old
    np.testing.assert_array_equal(back.components_, npeff.components_)
    pd.testing.assert_frame_equal(back.example_table(), npeff.example_table())


@pytest.mark.parametrize("name", ["arrays.safetensors", "examples.json", "parameters.json"])
def test_a_file_cut_short_or_changed_anywhere_is_named(name, npeff, tmp_path):
    path = npeff.save(tmp_path / "x.npeff")
    whole = (path / name).read_bytes()
    ends = (0, 1, 8, 9, len(whole) // 2, len(whole) - 1)
    changed = (bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in ends[:-1])
    for content in (*(whole[:end] for end in ends), *changed, whole + b" "):
        (path / name).write_bytes(content)
        for read in (nb.load, NPEFF.load):
            with pytest.raises(ValueError, match=rf"{name} is missing or was changed since it was written: the folder is damaged, make it again"):
                read(path)
    (path / name).write_bytes(whole)
    nb.load(path)


def test_a_manifest_cut_short_is_none(npeff, tmp_path):
    path = npeff.save(tmp_path / "x.npeff")
    whole = (path / MANIFEST).read_bytes()
    for end in (0, 1, 20, len(whole) // 2, len(whole.rstrip()) - 1):
        (path / MANIFEST).write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"x\.npeff is not a folder saved by npeff_nb: it has no readable manifest\.json"):
            nb.load(path)


@pytest.mark.parametrize("key", ["settings", "losses", "n_iter", "labels", "classes", "feature_map"])
def test_a_manifest_that_lacks_something_says_what(key, npeff, tmp_path):
    path = npeff.save(tmp_path / "x.npeff")
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["facts"][key]
    (path / MANIFEST).write_text(json.dumps(manifest))
    words = rf"x\.npeff does not fit this npeff_nb \('{key}'\): it was changed since it was written, or a later one wrote it"
    with pytest.raises(ValueError, match=words):
        nb.load(path)


def test_a_setting_that_is_not_known_says_which(npeff, tmp_path):
    path = npeff.save(tmp_path / "x.npeff")
    change(path, settings=npeff.get_params() | {"quality": "high"})
    with pytest.raises(ValueError, match=r"does not fit this npeff_nb \(.*'quality'\): .* or a later one wrote it"):
        nb.load(path)


def test_another_version_and_another_kind_are_told(shared, npeff, tmp_path):
    path = npeff.save(tmp_path / "x.npeff")
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"version": VERSION + 1}))
    with pytest.raises(ValueError, match=rf"x\.npeff has version {VERSION + 1}, this npeff_nb reads up to {VERSION}: update it"):
        nb.load(path)
    with pytest.raises(ValueError, match=r"x\.pefs holds per-example Fishers, not NPEFF decomposition"):
        NPEFF.load(shared.save(tmp_path / "x.pefs"))
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        NPEFF.load(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match=r"x\.pefs already exists and is no saved NPEFF decomposition: it is left alone"):
        npeff.save(tmp_path / "x.pefs")


def test_a_device_that_this_machine_lacks_is_said_so(rows, tmp_path):
    """A setting may have been saved on a machine with another processor."""
    path = NPEFF(2, n_init=1, random_state=0, device="cpu").fit(rows).save(tmp_path / "x.npeff")
    change(path, settings={"n_components": 2, "device": "abacus"})
    back = nb.load(path)
    with pytest.raises(ValueError, match=r"device='abacus' cannot be used here \(.+\); device=None is the processor"):
        back.transform(rows)
    back.set_params(device=None).transform(rows)


# ----------------------------------------------------------------------------------------------------------------------- inputs at random


def laid_out(A: np.ndarray, how: str, folder) -> np.ndarray:
    """The same numbers, otherwise in memory."""
    if how == "Fortran":
        return np.asfortranarray(A)
    if how == "strided":
        wide = np.zeros((*A.shape[:-1], 2 * A.shape[-1]), A.dtype)
        wide[..., ::2] = A
        return wide[..., ::2]
    if how == "backwards":
        return np.ascontiguousarray(A[::-1])[::-1]
    if how == "read-only":
        A = A.copy()
        A.flags.writeable = False
        return A
    if how == "mapped":
        np.save(folder / "A.npy", A)
        return np.load(folder / "A.npy", mmap_mode="r")
    return A.astype(A.dtype.newbyteorder())


@pytest.mark.parametrize("seed", range(60))
def test_whatever_comes_in_what_goes_out_fits_together(seed, tmp_path):
    rng = np.random.default_rng(seed)
    n, k, d = int(rng.integers(1, 15)), int(rng.integers(1, 4)), int(rng.integers(1, 9))
    A = rng.standard_normal((n, k, d))
    dtype = [np.float64, np.float32, np.float16, np.int64, np.int8, bool][rng.integers(6)]
    A = A > 0 if dtype is bool else (A * (3 if np.dtype(dtype).kind == "i" else 1)).astype(dtype)
    if rng.random() < 0.3:
        A[rng.integers(n)] = 0
    if dtype in (np.float32, np.float64):
        A = A * np.array(10.0 ** rng.integers(-12, 12), dtype)
    if rng.random() < 0.3:
        A[:, 1:] = 0
    if not A.any():
        A[0, 0, 0] = 1
    X = A[:, 0] if k == 1 and rng.random() < 0.5 else A
    r = int(rng.integers(1, (np.abs(A).max(2) > 0).sum() + 1))
    reduction = ["auto", "none", "gram", 0.7][rng.integers(4)]
    weights = rng.integers(0, 3, n) if rng.random() < 0.3 else None
    if weights is not None:
        weights[np.abs(A).max((1, 2)).argmax()] = 1
    npeff = NPEFF(r, n_init=1, reduction=reduction, max_iter=40, random_state=seed)
    how = ["Fortran", "strided", "backwards", "read-only", "mapped", "byte order"][rng.integers(6)]
    other, before = laid_out(X, how, tmp_path), X.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npeff.fit(X, sample_weight=weights)
        again = clone(npeff).fit(other, sample_weight=weights)
        W = npeff.transform(X)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(other, before)
    small = A.dtype in (np.float32, np.float16)
    assert_consistent(npeff, A.astype(np.float64), weights, atol=1e-5 if small else 1e-9)
    # Sums in another order may lead to another minimum, but to no other consistency; most often they lead to the same.
    assert_consistent(again, A.astype(np.float64), weights, atol=1e-5 if small else 1e-9)
    # Alike components may share a Fisher in many ways, and what they add up to is exact to 1e-6 of its energy: to 1.4e-3 (√2e-6) of itself.
    G = (npeff.components_ @ npeff.components_.T) ** 2
    np.testing.assert_allclose(W @ G, npeff.coefficients_ @ G, atol=3e-3)
    assert npeff.score(X, sample_weight=weights) == pytest.approx(npeff.explained_variance_, abs=2e-6)
    np.testing.assert_allclose(npeff.transform(other) @ G, W @ G, atol=3e-3)
