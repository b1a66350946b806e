"""Decompositions that change: what is not asked about stays as it is to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from problems import planted
from scipy.optimize import nnls

from npeff_nb.npeff import NPEFF

R = 6


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return planted(200, 2, 20, R, seed=3, noise=0.2)[0]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return planted(200, 2, 20, R, seed=3, noise=0.2)[1]


@pytest.fixture(scope="module")
def whole(rows):
    return NPEFF(R, random_state=0).fit(rows)


def assert_exact_coefficients(npeff: NPEFF, rows: np.ndarray) -> None:
    """Non-negative least squares by scipy over d × d matrices, for a few examples."""
    basis = np.stack([np.outer(h, h).ravel() for h in npeff.components_], 1)
    for i in (0, 7, 50):
        fisher = rows[i].T @ rows[i]
        expected = nnls(basis, (fisher / np.linalg.norm(fisher)).ravel())[0]
        np.testing.assert_allclose(npeff.coefficients_[i], expected, atol=1e-5)  # the coefficients' own tolerance is 1e-6


def test_expansion_keeps_the_old_first_and_finds_what_is_missing(rows, truth):
    small = NPEFF(R - 2, random_state=0).fit(rows)
    small.labels = {0: "first", 3: "last"}
    before = small.components_.copy()
    large = small.expand(rows, 2)
    assert large is not small and (small.components_ == before).all() and len(small.components_) == R - 2
    assert (large.components_[: R - 2] == before).all(), "signs and order of the old ones stay, to the bit"
    assert large.n_components == R and large.labels == {0: "first", 3: "last"}
    assert large.explained_variance_ > small.explained_variance_ + 0.05
    assert np.abs(large.components_ @ truth.T).max(0).min() > 0.98
    assert large.component_shares_[R - 2] >= large.component_shares_[R - 1], "new ones by what they explain"
    assert_exact_coefficients(large, rows)
    assert large.reconstruction_err_ == pytest.approx(len(rows) * (1 - large.explained_variance_), rel=1e-9)


def test_expansion_for_other_fishers_has_their_coefficients(rows, whole):
    other = planted(50, 2, 20, 3, seed=9)[0]
    larger = whole.expand(other, 3)
    assert larger.coefficients_.shape == (50, R + 3)
    assert larger.explained_variance_ > whole.score(other) + 0.1


def test_merging_makes_one_of_two_and_splitting_two_of_one(rows, truth, whole):
    named = NPEFF(R, init=whole.components_, random_state=0).fit(rows)
    named.labels = {0: "a", 1: "b", 2: "c", 4: "e"}
    merged = named.merge([3, 1], rows)
    assert merged.n_components == R - 1
    kept = [0, 2, 4, 5]
    assert (merged.components_[[0, 2, 3, 4]] == named.components_[kept]).all(), "the new one takes the lowest number, the rest moves up"
    assert merged.labels == {0: "a", 2: "c", 3: "e"}
    lost = named.explained_variance_ - merged.explained_variance_
    assert 0 < lost < named.component_shares_[[1, 3]].sum()
    assert_exact_coefficients(merged, rows)
    again = merged.split(1, rows)
    assert again.n_components == R
    assert (again.components_[[0, 2, 3, 4]] == merged.components_[[0, 2, 3, 4]]).all()
    assert again.explained_variance_ == pytest.approx(named.explained_variance_, abs=1e-3)  # both stop at a relative change of 1e-5 an iteration
    assert np.abs(again.components_ @ truth.T).max(0).min() > 0.98
    assert_exact_coefficients(again, rows)


def test_a_duplicate_merges_without_loss(rows, whole):
    twice = whole.expand(rows, 1)
    twice.components_[R] = twice.components_[2]
    merged = twice.merge([2, R], rows)
    # Fitted once more with the others as they are: never worse than what it came from.
    assert merged.explained_variance_ >= whole.explained_variance_ - 1e-9
    assert np.abs(merged.components_[2] @ whole.components_[2]) > 0.999


def test_components_applied_to_other_fishers(rows, whole):
    other = planted(40, 2, 20, R, seed=3, noise=0.5)[0]
    applied = whole.applied_to(other)
    assert (applied.components_ == whole.components_).all()
    np.testing.assert_allclose(applied.coefficients_, whole.transform(other), atol=1e-12)
    assert applied.explained_variance_ == pytest.approx(whole.score(other), rel=1e-9)
    assert len(applied.example_table()) == 40


def test_an_expanded_decomposition_is_saved_and_goes_on(rows, whole, tmp_path):
    import npeff_nb as nb

    larger = whole.expand(rows, 1)
    back = nb.load(larger.save(tmp_path / "it"))
    assert (back.components_ == larger.components_).all() and back.n_components == R + 1
    assert (back.expand(rows, 1).components_[: R + 1] == larger.components_).all()


def test_fishers_with_a_model_keep_it(shared, npeff):
    larger = npeff.expand(shared, 1)
    assert larger.examples is not None and larger.subject is npeff.subject
    assert (larger.components_[:4] == npeff.components_).all()
    assert len(larger.component_table()) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda npeff, rows: npeff.expand(rows, 0), "by=0: it must be a whole number from 1 up"),
        (lambda npeff, rows: npeff.expand(rows, True), "by=True: it must be a whole number"),
        (lambda npeff, rows: npeff.expand(rows[..., :5], 1), "X has 5 features, but NPEFF is expecting 20 features"),
        (lambda npeff, rows: npeff.merge([2], rows), "merging takes at least two different components"),
        (lambda npeff, rows: npeff.merge([2, 2], rows), "merging takes at least two different components"),
        (lambda npeff, rows: npeff.merge([2, 40], rows), r"component 40 does not exist: this decomposition has 6 \(0 to 5\)"),
        (lambda npeff, rows: npeff.split(40, rows), "component 40 does not exist"),
        (lambda npeff, rows: npeff.split(0, rows, into=1), "into=1: it must be a whole number from 2 up"),
        (lambda npeff, rows: npeff.split(0, rows[:1], into=3), "component 0 is used by . of these examples: it cannot become 3"),
    ],
)
def test_errors_say_what_is_allowed(change, words, rows, whole):
    with pytest.raises(ValueError, match=words):
        change(whole, rows)
