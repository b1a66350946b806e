"""What makes a result believable: the number that was planted is suggested, chance explains little, what is there comes back, copies are told."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from sklearn.exceptions import NotFittedError

import npeff_nb as nb
from npeff_nb._progress import Cancelled
from npeff_nb.decomposition import components_count
from npeff_nb.decomposition.components_count import standard_error, suggest
from npeff_nb.decomposition.given import given
from npeff_nb.decomposition.held_out import explained, splits
from npeff_nb.decomposition.matching import correlations, pairs
from npeff_nb.decomposition.null import _cloud, _shrunk
from npeff_nb.fisher.features import FeatureMap

QUICK = {"tol": 1e-3, "progress": False}
"""The last digits of a loss decide nothing here."""


def planted(seed: int, factors: int = 1, n: int = 240, r: int = 8, d: int = 24, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, factors, d) of examples that each use so many of r unit directions, with noise of ``noise`` times the rows' length."""
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((r, d))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    A = np.stack([np.sqrt(rng.uniform(0.3, 1, factors))[:, None] * H[rng.choice(r, factors, replace=False)] for _ in range(n)])
    away = rng.standard_normal(A.shape)
    return A + noise * away * (np.linalg.norm(A, axis=(1, 2)) / np.linalg.norm(away, axis=(1, 2)))[:, None, None], H


def isotropic(seed: int, n: int = 240, k: int = 2, d: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k, d))


def pefs_of(A: np.ndarray, texts: list[str] | None = None) -> nb.PEFs:
    """PEFs around given rows, of which the features missed a part; without a model."""
    n, k, d = A.shape
    parameters = pd.DataFrame(
        {"name": ["w"], "kind": ["weight"], "layer": pd.array([0], dtype="Int64"), "shape": [(1, d)], "numel": [d], "energy": [1.0]}
    )
    examples = pd.DataFrame({"text": texts or [f"example {i}" for i in range(n)], "writer": [f"writer {i % 7}" for i in range(n)]})
    logits = np.random.default_rng(0).standard_normal((n, k + 1)).astype(np.float32)
    norms = 1.2 * np.array([twins.frobenius(a) for a in A])
    names = [str(c) for c in range(k + 1)]
    return nb.PEFs(A.astype(np.float32), norms, logits, examples, parameters, names, FeatureMap("dense", ["w"], [(1, d)]), {"model": "none"})


def grams(A: np.ndarray) -> np.ndarray:
    A = np.asarray(A, dtype=np.float64)
    return A @ A.transpose(0, 2, 1)


def unit(A: np.ndarray) -> np.ndarray:
    return A / np.sqrt([twins.frobenius(a) for a in A])[:, None, None]


# -------------------------------------------------------------------------------------------------------------------- chance


@pytest.mark.parametrize("keep", ["average", "spectra"])
@pytest.mark.parametrize("kind", ["plain", "more rows than features", "more features than rows", "one axis", "zeros", "one row", "wide range"])
def test_null_keeps_every_gram(kind, keep):
    rng = np.random.default_rng(0)
    A = {
        "plain": rng.standard_normal((40, 3, 8)),
        "more rows than features": rng.standard_normal((40, 6, 4)),
        "more features than rows": rng.standard_normal((5, 2, 50)),
        "one axis": rng.standard_normal((40, 2, 1)) * rng.standard_normal(8),
        "zeros": rng.standard_normal((400, 5, 8)) * np.where(rng.random((400, 5, 1)) < 0.5, 0, rng.random((400, 5, 1)) ** 4),
        "one row": rng.standard_normal((40, 1, 8)),
        "wide range": rng.standard_normal((40, 3, 8)) * np.logspace(0, -8, 8) * np.logspace(-30, 30, 40)[:, None, None],
    }[kind]
    null = nb.null_fishers(A, keep=keep, random_state=0)
    size = np.abs(grams(A)).max((1, 2))
    # float64 throughout: what is left is the rounding of two products.
    assert (np.abs(grams(null) - grams(A)).max((1, 2)) <= 1e-12 * size).all()
    np.testing.assert_array_equal(null.any(2), A.any(2))


@pytest.mark.parametrize("keep", ["average", "spectra"])
def test_null_destroys_overlap(keep):
    """Examples of one component overlap fully; of the null, as directions drawn from the cloud do."""
    A, H = planted(0, n=600, noise=0.0)
    null = nb.null_fishers(A, keep=keep, random_state=0)
    used = np.abs(A[:, 0] @ H.T).argmax(1)
    same = (used[:, None] == used) & ~np.eye(len(A), dtype=bool)

    def overlap(rows):
        rows = rows[:, 0] / np.linalg.norm(rows[:, 0], axis=1, keepdims=True)
        return ((rows @ rows.T)[same] ** 2).mean()

    assert overlap(A) == pytest.approx(1)
    # The mean squared cosine of independent directions: 1/24 when uniform, Σ λ² of the average Fisher for the cloud.
    C = twins.fisher(unit(A)[:, 0]) / len(A)
    assert overlap(null) == pytest.approx(1 / 24 if keep == "spectra" else float((C**2).sum()), rel=0.05)


def test_average_null_keeps_the_average_fisher():
    """In expectation: with so many examples what is left is the error of a mean of 20 000 draws, and of the 2 048 that the cloud is found by."""
    A = np.random.default_rng(0).standard_normal((20_000, 2, 5)) @ np.diag([4.0, 2.0, 1.0, 0.5, 0.1]) * np.array([1, 0.3])[:, None]
    scales = np.sqrt(np.linalg.norm(grams(A), axis=(1, 2)))[:, None, None]
    average = np.einsum("nki,nkj->ij", A / scales, A / scales)

    def missed(keep):
        null = nb.null_fishers(A, keep=keep, random_state=1) / scales
        return np.linalg.norm(np.einsum("nki,nkj->ij", null, null) - average) / np.linalg.norm(average)

    assert missed("average") < 0.02
    assert missed("spectra") > 0.3


def test_cloud_is_shrunk_by_what_is_not_known():
    """Ledoit and Wolf's share with every matrix written out."""
    A = unit(isotropic(0, n=30, d=6) @ np.diag([3.0, 2, 1, 1, 1, 1]))
    fishers = np.array([twins.fisher(a) for a in A])
    energies = np.linalg.eigvalsh(fishers.mean(0))
    share = (np.linalg.norm(fishers - fishers.mean(0), axis=(1, 2)) ** 2).mean() / 30 / ((energies - energies.mean()) ** 2).sum()
    assert 0.01 < share < 0.9
    found = _shrunk(torch.from_numpy(energies), float((np.linalg.norm(fishers, axis=(1, 2)) ** 2).mean()), 30).numpy()
    np.testing.assert_allclose(found, (1 - share) * energies + share * energies.mean(), rtol=1e-12)
    assert np.ptp(_shrunk(torch.from_numpy(energies), 1.0, 1).numpy()) < 1e-12  # one example tells nothing of an average
    noise = given(isotropic(0, n=60)).rows
    energies = np.linalg.eigvalsh(np.einsum("nki,nkj->ij", *[noise.rows.numpy()] * 2))
    assert energies[-1] / energies[0] > 4
    variances = _cloud(noise, np.random.default_rng(0))[1].numpy()
    assert variances.max() / variances.min() < 2  # 60 examples draw the variances, give or take a fifth


def test_uniform_null_is_uniform():
    """Every direction of R_i has the distribution of a coordinate of a unit vector: E x² = 1/d, E x⁴ = 3/(d(d + 2))."""
    null = nb.null_fishers(np.tile(np.diag([3.0, 1.0])[:, [0, 1, 1, 1]] * [1, 1, 0, 0], (20_000, 1, 1)), keep="spectra", random_state=0)
    for row, length in enumerate((3.0, 1.0)):
        x = null[:, row] / length
        np.testing.assert_allclose((x**2).mean(0), 1 / 4, rtol=0.03)  # standard error 0.7 %
        np.testing.assert_allclose((x**4).mean(0), 3 / 24, rtol=0.06)  # standard error 1.3 %


@pytest.mark.parametrize("keep", ["average", "spectra"])
def test_null_is_what_was_given(keep):
    A = isotropic(0, n=20)
    pefs = pefs_of(A)
    null = nb.null_fishers(pefs, keep=keep, random_state=0)
    assert isinstance(null, nb.PEFs) and null.factors.dtype == np.float32 and null.subject is None
    assert null.facts["null"] == {"keeps": keep} and "null" not in pefs.facts
    for name in ("norms", "logits", "examples", "parameters", "classes", "feature_map"):
        assert getattr(null, name) is getattr(pefs, name)
    np.testing.assert_allclose(grams(null.factors), grams(pefs.factors), atol=1e-6 * np.abs(grams(A)).max())  # float32 rows
    assert nb.null_fishers(A[:, 0], keep=keep).shape == (20, 24)
    assert nb.null_fishers(A.astype(np.float32), keep=keep).dtype == np.float32
    assert torch.is_tensor(nb.null_fishers(torch.from_numpy(A), keep=keep))
    assert [rows.shape for rows in nb.null_fishers([A[0], A[1, :1]], keep=keep)] == [(2, 24), (1, 24)]


def test_null_takes_no_model(shared):
    with pytest.raises(ValueError, match=r"point where chance put them .* none can be attached"):
        nb.null_fishers(shared, random_state=0).attach(tiny.bert(), tiny.tokenizer())


def test_null_is_seeded():
    A = isotropic(0, n=20)
    np.testing.assert_array_equal(nb.null_fishers(A, random_state=3), nb.null_fishers(A, random_state=3))
    assert not np.array_equal(nb.null_fishers(A, random_state=3), nb.null_fishers(A, random_state=4))


@pytest.mark.parametrize("factors", [1, 2])
def test_chance_is_far_below_structure_and_about_the_truth_for_noise(factors):
    """A cloud of 8 wide axes has much in common by itself; a ball has nothing.  The components of noise are themselves the work of chance."""
    noise = isotropic(0, n=1000, k=factors)
    for A, keep, low, high in (
        (planted(0, factors)[0], "average", 0.2, 0.75), (planted(0, factors)[0], "spectra", 0.0, 0.15),
        (noise, "average", 0.8, 1.25), (noise, "spectra", 0.8, 1.25),
    ):  # fmt: skip
        real = nb.choose_n_components(A, [8], repeats=2, n_init=1, **QUICK).table.iloc[0]
        chance = nb.explained_by_chance(A, 8, keep=keep, draws=2, n_init=1, **QUICK)
        assert list(chance.columns) == ["draw", "training", "held_out"] and len(chance) == 2
        for column in ("training", "held_out"):
            assert low <= chance[column].mean() / real[column] <= high, (keep, column)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": "all"}, "keep='all' is not known; choose 'average' or 'spectra'"),
        ({"draws": 0}, "draws=0: it must be a whole number from 1 up"),
        ({"n_components": 0}, "n_components=0: it must be a whole number from 1 up"),
        ({"n_components": 500}, "500 components are more than the examples left to fit on can carry"),
        ({"held_out": 1.0}, "held_out=1.0: it must be a share of the examples above 0 and below 1"),
        ({"X": np.full((9, 2, 3), np.nan)}, "the factor rows of example 0 are not finite"),
    ],
)
def test_chance_refuses(settings, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        nb.explained_by_chance(**({"X": isotropic(0, n=20), "n_components": 2} | QUICK | settings))


# -------------------------------------------------------------------------------------------------------------------- number of components


@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_planted_number_is_suggested(seed, factors):
    found = nb.choose_n_components(planted(seed, factors)[0], (2, 4, 8, 16), random_state=seed, repeats=1, **QUICK)
    assert 6 <= found.suggested <= 12, found.table


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_number(seed):
    found = nb.choose_n_components(isotropic(seed), (2, 4, 8), random_state=seed, **QUICK)
    assert found.suggested == 2
    assert "no number of components explains held-out Fishers clearly better than chance" in found.why


@pytest.mark.parametrize(
    ("held_out", "chance", "suggested", "words"),
    [
        # 2, 4, 8, 16, 32, 64
        ([0.20, 0.40, 0.80, 0.82, 0.84, 0.86], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 8, "further ones add no more than they would by chance"),
        ([0.80, 0.81, 0.82, 0.83, 0.84, 0.85], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2, "80.0 %|further ones add no more"),
        ([0.20, 0.40, 0.80, 0.84, 0.88, 0.92], [0.01] * 6, 8, "here is the elbow: .* 4 components explain 40.0 %, 8 80.0 %"),
        ([0.10, 0.20, 0.30, 0.40, 0.50, 0.60], [0.01, 0.02, 0.03, 0.04, 0.05, 0.06], 64, "still rises at the last candidate and has no elbow"),
        ([0.06, 0.11, 0.17, 0.23, 0.28, 0.32], [0.03, 0.05, 0.06, 0.08, 0.10, 0.13], 64, "32 components explain 28.0 % .* 64 32.0 % .13.0 % by"),
        ([0.01, 0.02, 0.03, 0.05, 0.10, 0.40], [0.0] * 6, 64, "These Fishers name no number of their own: try more"),
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], [0.02, 0.03, 0.04, 0.05, 0.06, 0.07], 2, "no number of components explains held-out Fishers clearly"),
        ([0.0] * 6, [0.0] * 6, 2, "no number of components explains held-out Fishers clearly"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [np.nan, 0.001])
def test_rule(held_out, chance, suggested, words, error):
    found, why = suggest(np.array([2, 4, 8, 16, 32, 64]), np.array(held_out), np.array(chance), np.full(6, error))
    assert found == suggested
    assert re.search(words, why), why


def test_rule_with_one_candidate():
    one = np.array([5]), np.array([0.5]), np.array([0.1])
    words = "it is the only candidate, and explains 40.0 % more of held-out Fishers than it would by chance"
    assert suggest(*one, np.array([0.05])) == (5, words)
    assert "clearly better than chance (5: 50.0 %, 10.0 % by chance)" in suggest(*one, np.array([0.15]))[1]


def test_result_is_a_table_with_a_reason_and_a_figure():
    found = nb.choose_n_components(planted(0, n=80)[0], [8, 2, 4, 4], n_init=1, **QUICK)
    columns = ["n_components", "training", "held_out", "standard_error", "chance_training", "chance_held_out", "dead", "seconds"]
    assert list(found.table.columns) == columns and found.table["n_components"].tolist() == [2, 4, 8]
    assert found.table.drop(columns="seconds").map(np.isfinite).all(axis=None)
    assert repr(found) == f"ComponentsCount({found.suggested}: {found.why})" and "<table" in found._repr_html_()
    figure = found.figure()
    assert [trace.name for trace in figure.data] == ["examples fitted on", "held out", "held out, by chance"]
    np.testing.assert_allclose(figure.data[1].y, 100 * found.table["held_out"])
    assert figure.data[1].error_y.visible and not figure.data[2].error_y.visible
    assert figure.layout.annotations[0].x == np.log10(found.suggested)  # plotly's way on a log axis
    assert figure.layout.xaxis.title.text == "number of components" and figure.layout.xaxis.type == "log"


def test_choice_is_seeded():
    one, two, other = (nb.choose_n_components(planted(0, n=60)[0], (2, 4), repeats=1, random_state=s, **QUICK).table for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    assert (one["held_out"] != other["held_out"]).all()


def test_held_out_explained_variance_of_pefs_refers_to_the_full_fishers():
    """The features of these missed a part, ‖F‖ = 1.2 ‖AAᵀ‖: what is explained of an array falls by 1.2²."""
    A = planted(0, n=80)[0]
    of_pefs, of_rows = (nb.choose_n_components(X, [4], repeats=1, n_init=1, **QUICK).table for X in (pefs_of(A), A.astype(np.float32)))
    columns = ["training", "held_out"]  # of the same coefficients but for a factor, up to where iterations end
    np.testing.assert_allclose(of_pefs[columns] * 1.2**2, of_rows[columns], rtol=1e-2)


def test_a_fit_is_scored_on_both_sides_as_the_dense_loss_says():
    A = isotropic(0, n=50, d=6)
    found = explained(A[:40], A[40:], 3, 7, {"n_init": 1})
    npeff = nb.NPEFF(3, n_init=1, random_state=7).fit(A[:40])
    for share, rows in ((found.training, unit(A[:40])), (found.held_out, unit(A[40:]))):
        expected = 1 - twins.dense_loss(rows, npeff.transform(rows), npeff.components_) / len(rows)
        assert share == pytest.approx(expected, abs=1e-6)  # coefficients are exact to 1e-6
    assert found.training > found.held_out + 0.01


def test_standard_error_is_that_of_splits_that_overlap():
    values = np.array([[0.1, 0.5], [0.2, 0.5], [0.6, 0.5]])
    every = [(np.arange(8), np.arange(8, 10))] * 3
    expected = [np.sqrt((1 / 3 + 2 / 8) * np.mean([0.04, 0.01, 0.09]) * 3 / 2), 0]
    np.testing.assert_allclose(standard_error(values, every), expected, atol=1e-15)
    assert np.isnan(standard_error(values[:1], every[:1])).all()


def test_held_out_examples_are_not_those_that_plain_seeds_draw(monkeypatch):
    """With the same seed, extraction fits coordinates to the first examples of a permutation."""
    seen = []

    def recording(*arguments):
        seen.extend(splits(*arguments))
        return seen

    monkeypatch.setattr(components_count, "splits", recording)
    nb.choose_n_components(isotropic(0, n=100), [2], repeats=1, random_state=0, **QUICK)
    assert len(set(seen[0][1]) & set(np.random.default_rng(0).permutation(100)[:20])) < 12


def test_splits_hold_out_whole_groups():
    rng = np.random.default_rng(0)
    A = isotropic(0, n=60, k=1, d=3)
    copies = pefs_of(A, [f"text {i // 3}" for i in range(60)])
    cases = [
        (A, None, np.arange(60)), (copies, None, np.arange(60) // 3), (copies, "writer", np.arange(60) % 7),
        (A, [None if i < 10 else str(i // 10) for i in range(60)], np.arange(60) // 10),
    ]  # fmt: skip
    for X, groups, expected in cases:
        every = splits(X, 0.3, 4, groups, rng)
        assert len(every) == 4
        for training, out in every:
            assert not set(expected[training]) & set(expected[out])
            np.testing.assert_array_equal(np.sort(np.r_[training, out]), np.arange(60))
            assert abs(len(out) - 18) <= np.bincount(expected).max() / 2
        assert any(not np.array_equal(every[0][1], out) for _, out in every[1:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"candidates": ()}, "candidates is empty: give numbers of components to try"),
        ({"candidates": (2, 0)}, "candidates=0: it must be a whole number from 1 up"),
        ({"candidates": (2, 2.5)}, "candidates=2.5: it must be a whole number"),
        ({"candidates": (4, 33)}, "33 components are more than the examples left to fit on can carry: 16 of 20, with 32 non-zero"),
        ({"held_out": 0}, "held_out=0: it must be a share of the examples above 0 and below 1, such as 0.2"),
        ({"held_out": 1.5}, "held_out=1.5: it must be a share"),
        ({"held_out": float("nan")}, "held_out=nan: it must be a share"),
        ({"repeats": 0}, "repeats=0: it must be a whole number from 1 up"),
        ({"X": isotropic(0, n=1)}, "X has 1 examples in 1 group: at least two groups are needed"),
        ({"groups": np.zeros(20)}, "X has 20 examples in 1 group: at least two groups are needed"),
        ({"groups": np.zeros(3)}, r"groups has shape \(3,\); expected one value for each of the 20 examples"),
        ({"groups": "writer"}, "groups='writer' is no column of the examples; they have none, since X is an array"),
        ({"X": pefs_of(isotropic(0, n=20)), "groups": "author"}, "groups='author' is no column of the examples; they have text, writer"),
        ({"chance": "none"}, "keep='none' is not known; choose 'average' or 'spectra'"),
        ({"init": np.ones((2, 24))}, "init= gives components to start from: here fits begin anew"),
        ({"X": np.where(np.arange(20)[:, None, None] == 13, np.inf, isotropic(0, n=20))}, "example 13 are not finite"),
    ],
)  # fmt: skip
def test_choice_refuses(settings, words):
    with pytest.raises(ValueError, match=words):
        nb.choose_n_components(**({"X": isotropic(0, n=20), "candidates": (2, 4)} | QUICK | settings))


def test_unknown_settings_are_named():
    with pytest.raises(TypeError, match=r"folds: no such setting of these fits; they take .*max_iter"):
        nb.choose_n_components(isotropic(0, n=20), (2, 4), folds=5)
    with pytest.raises(TypeError, match=r"n_components: no such setting of these fits"):
        nb.stability(isotropic(0, n=20), nb.NPEFF(2).fit(isotropic(0, n=20)), n_components=3)


def test_default_candidates_are_those_that_fit():
    found = nb.choose_n_components(isotropic(0, n=12, k=1), repeats=1, n_init=1, **QUICK)
    assert found.table["n_components"].tolist() == [2, 4, 8]


@pytest.mark.parametrize("work", [lambda X, p: nb.choose_n_components(X, (2, 4), progress=p), lambda X, p: nb.stability(X, 2, seeds=3, progress=p)])
def test_progress_is_told_and_cancels(work):
    told = []

    def stop(done, total, what):
        told.append((done, total))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        work(isotropic(0, n=20), stop)
    total = told[0][1]
    assert told == [(0, total), (1, total), (2, total)] and total in (6, 3)


# -------------------------------------------------------------------------------------------------------------------- matching


def test_hungarian_is_the_best_of_all_permutations():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        Ha, Hb = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 5, 4)))
        Wa, Wb = rng.uniform(0, 1, (2, 12, 5))
        score = np.abs(Ha @ Hb.T) * np.maximum(np.corrcoef(Wa.T, Wb.T)[:5, 5:], 0)
        best = max(score[np.arange(5), list(order)].sum() for order in itertools.permutations(range(5)))
        found = pairs(Ha, Wa, Hb, Wb)
        assert found["agreement"].sum() == pytest.approx(best, abs=1e-5)  # directions alone count for 1e-6 each
        np.testing.assert_allclose(found["agreement"], score[found["a"], found["b"]], atol=1e-12)


def test_correlations_are_numpys():
    W, V = np.random.default_rng(0).uniform(0, 1, (2, 30, 4))
    np.testing.assert_allclose(correlations(W, V), np.corrcoef(W.T, V.T)[:4, 4:], atol=1e-12)
    W[:, 1], V[:, 2] = 0, 0.1
    assert not correlations(W, V)[1].any() and not correlations(W, V)[:, 2].any()


@pytest.fixture(scope="module")
def fitted():
    A = planted(0, 2, n=120)[0]
    return A, nb.NPEFF(8, n_init=2, random_state=0).fit(A)


def changed(npeff, order, signs=1.0):
    """The same decomposition with its components in another order, and turned round."""
    other = nb.NPEFF(**npeff.get_params())
    other.__dict__ |= vars(npeff)
    other.components_, other.coefficients_ = (npeff.components_.T * signs).T[order], npeff.coefficients_[:, order]
    other.component_shares_ = npeff.component_shares_[order]
    return other


def test_permuted_and_turned_copies_match_exactly(fitted):
    A, npeff = fitted
    rng = np.random.default_rng(0)
    order, signs = rng.permutation(8), rng.choice([-1.0, 1.0], 8)
    for X in (None, A):
        found = nb.match(npeff, changed(npeff, order, signs), X)
        assert list(found.columns) == ["a", "b", "direction", "coefficients", "agreement", "same_sign"]
        np.testing.assert_array_equal(order[found["b"]], found["a"])
        np.testing.assert_array_equal(found["same_sign"], signs > 0)
        np.testing.assert_allclose(found[["direction", "coefficients", "agreement"]], 1, atol=1e-6)


def test_components_without_users_match_by_direction(fitted):
    _, npeff = fitted
    dead = changed(npeff, np.arange(8))
    dead.coefficients_ = npeff.coefficients_ * (np.arange(8) < 4)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(8)
        found = nb.match(dead, changed(dead, order))
        np.testing.assert_array_equal(order[found["b"]], found["a"])
        np.testing.assert_array_equal(found["agreement"] == 0, found["a"] >= 4)


def test_matching_fewer_components_leaves_some_out(fitted):
    _, npeff = fitted
    for a, b in ((npeff, changed(npeff, [5, 2, 7])), (changed(npeff, [5, 2, 7]), npeff)):
        found = nb.match(a, b)
        assert len(found) == 3 and sorted(zip(found["a"], found["b"], strict=True)) in ([(2, 1), (5, 0), (7, 2)], [(0, 5), (1, 2), (2, 7)])


def test_matching_refuses_what_cannot_be_compared(fitted):
    A, npeff = fitted
    with pytest.raises(ValueError, match="a was fitted on 120 examples and b on 60 others: give X"):
        nb.match(npeff, nb.NPEFF(8, n_init=1).fit(A[:60]))
    with pytest.raises(ValueError, match="a has 24 features, b 20: only directions over the same features"):
        nb.match(npeff, nb.NPEFF(8, n_init=1).fit(A[:, :, :20]))
    with pytest.raises(NotFittedError):
        nb.match(npeff, nb.NPEFF(8))
    one, two = (nb.NPEFF(2, n_init=1, random_state=0).fit(pefs_of(A, texts)) for texts in (None, ["another"] * 120))
    with pytest.raises(ValueError, match="a was fitted on 120 examples and b on 120 others"):
        nb.match(one, two)
    two.feature_map = FeatureMap("dense", ["v"], [(1, 24)])
    with pytest.raises(ValueError, match="a and b have other coordinates"):
        nb.match(one, two)


# -------------------------------------------------------------------------------------------------------------------- stability


@pytest.mark.parametrize("factors", [1, 2])
def test_planted_components_are_stable_and_noise_is_not(factors):
    A = planted(0, factors)[0]
    found = nb.stability(A, 8, seeds=3, bootstraps=1, n_init=4, **QUICK)
    assert found.median >= 0.9
    assert nb.stability(isotropic(0, k=factors), 8, seeds=3, bootstraps=1, n_init=4, **QUICK).median < 0.6


def test_stability_of_a_fitted_decomposition(fitted):
    A, npeff = fitted
    found = nb.stability(A, npeff, seeds=2, bootstraps=1, **QUICK)
    assert found.reference is npeff
    assert list(found.table.columns) == ["component", "stability", "lowest", "direction", "coefficients", "share", "dead"]
    assert found.table.index.equals(pd.RangeIndex(8)) and found.table.index.name is None
    assert list(found.pairs.columns) == ["run", "kind", "component", "matched", "direction", "coefficients", "agreement"]
    assert found.pairs["kind"].tolist() == ["seed"] * 16 + ["bootstrap"] * 8
    assert found.pairs[["direction", "coefficients", "agreement"]].map(lambda x: 0 <= x <= 1).all(axis=None)
    for k, row in enumerate(found.table.itertuples()):
        of_k = found.pairs[found.pairs["component"] == k]
        assert (row.component, row.stability, row.lowest) == (k, pytest.approx(of_k["agreement"].mean()), of_k["agreement"].min())
        assert (row.direction, row.coefficients) == (pytest.approx(of_k["direction"].mean()), pytest.approx(of_k["coefficients"].mean()))
    assert found.table["share"].sum() == pytest.approx(1) and not found.table["dead"].any()
    assert found.median == found.table["stability"].median()
    assert repr(found) == f"Stability(median {found.median:.2f} over 8 components and 3 runs)" and "<table" in found._repr_html_()
    figure = found.figure()
    assert [trace.name for trace in figure.data] == ["mean", "another seed", "other examples"]
    np.testing.assert_array_equal(figure.data[1].y, found.pairs["agreement"][:16])


def test_stability_pairs_are_those_of_runs_matched_by_hand(fitted):
    """Runs have the settings of the decomposition, seeds of their own, and coefficients of all examples."""
    A, npeff = fitted
    found = nb.stability(A, npeff, seeds=1, bootstraps=1, random_state=5, **QUICK)
    rng = np.random.default_rng(5).spawn(1)[0]
    drawn = rng.integers(120, size=120)
    seeds = [int(rng.integers(2**31)) for _ in range(2)]
    settings = npeff.get_params() | {"tol": 1e-3}
    again = nb.NPEFF(**settings | {"random_state": seeds[0]}).fit(A)
    resampled = nb.NPEFF(**settings | {"random_state": seeds[1]}).fit(A, sample_weight=np.bincount(drawn, minlength=120))
    for run, other in enumerate((again, resampled)):
        ours = found.pairs[found.pairs["run"] == run].drop(columns=["run", "kind"]).reset_index(drop=True)
        theirs = nb.match(npeff, other, A).drop(columns="same_sign").rename(columns={"a": "component", "b": "matched"})
        # Coefficients of transform and of the fit are exact to 1e-6 each.
        pd.testing.assert_frame_equal(ours, theirs, atol=1e-4, check_dtype=False)


def test_stability_without_a_decomposition_takes_the_best_run(fitted):
    A, _ = fitted
    found = nb.stability(A, 4, seeds=3, n_init=1, **QUICK)
    assert set(found.pairs["run"]) < {0, 1, 2} and found.pairs["run"].nunique() == 2
    again = nb.stability(A, 4, seeds=3, n_init=1, **QUICK)
    pd.testing.assert_frame_equal(found.pairs, again.pairs)
    rng = np.random.default_rng(0).spawn(1)[0]
    losses = [nb.NPEFF(4, n_init=1, tol=1e-3, random_state=int(rng.integers(2**31))).fit(A).reconstruction_err_ for _ in range(3)]
    assert found.reference.reconstruction_err_ == min(losses)
    assert set(found.pairs["run"]) == {0, 1, 2} - {int(np.argmin(losses))}


def test_dead_components_are_not_stable():
    A = np.pad(planted(0, n=60)[0], ((0, 0), (0, 0), (0, 1)))
    npeff = nb.NPEFF(3, n_init=1, random_state=0).fit(A)
    npeff.components_[1] = np.eye(25)[24]  # where no Fisher is
    found = nb.stability(A, npeff, seeds=2, **QUICK).table
    assert found["dead"].tolist() == [False, True, False]
    assert (found["stability"] > 0).tolist() == [True, False, True]


def test_stability_of_pefs():
    pefs = pefs_of(planted(0, n=60)[0])
    assert nb.stability(pefs, nb.NPEFF(4, n_init=1, random_state=0).fit(pefs), seeds=1, **QUICK).median > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"npeff": 0}, "n_components=0: it must be a whole number from 1 up"),
        ({"npeff": "8"}, "n_components='8': it must be a whole number"),
        ({"seeds": -1}, "seeds=-1: it must be a whole number from 0 up"),
        ({"seeds": 1}, "seeds=1 and bootstraps=0 leave nothing to compare: one run over a seed is the reference"),
        ({"seeds": 0, "bootstraps": 3}, "seeds=0 and bootstraps=3 leave nothing to compare"),
        ({"init": np.ones((2, 24))}, "init= gives components to start from"),
        ({"npeff": 41}, "n_components=41 is more than these Fishers can carry"),
    ],
)
def test_stability_refuses(settings, words):
    with pytest.raises(ValueError, match=words):
        nb.stability(**({"X": isotropic(0, n=20), "npeff": 2} | QUICK | settings))


def test_stability_refuses_other_fishers(fitted):
    A, npeff = fitted
    with pytest.raises(ValueError, match="X has 20 features, but NPEFF is expecting 24"):
        nb.stability(A[:, :, :20], npeff, **QUICK)
    with pytest.raises(ValueError, match="seeds=0 and bootstraps=0 leave nothing to compare: at least one run is needed"):
        nb.stability(A, npeff, seeds=0, **QUICK)


# -------------------------------------------------------------------------------------------------------------------- redundancy


def test_planted_duplicate_is_found(fitted):
    _, npeff = fitted
    columns = ["a", "b", "direction", "coefficients", "share"]
    assert nb.redundancy(npeff).empty and list(nb.redundancy(npeff).columns) == columns
    double = changed(npeff, [0, 1, 2, 3, 4, 5, 6, 7, 3])  # component 3 once more
    double.components_[8] *= -1
    found = nb.redundancy(double)
    assert list(found.columns) == columns and len(found) == 1
    row = found.iloc[0]
    assert (row["a"], row["b"]) == (3, 8) and row["direction"] == pytest.approx(1) and row["coefficients"] == pytest.approx(1)
    assert row["share"] == pytest.approx(2 * npeff.component_shares_[3] / double.component_shares_.sum())
    # Examples that use the one or the other: correlation below zero.
    first = np.arange(120) % 2 == 0
    double.coefficients_[:, 3] *= first
    double.coefficients_[:, 8] *= ~first
    assert nb.redundancy(double, 1).iloc[0]["coefficients"] < 0
    double.coefficients_[:, 8] = 0
    assert nb.redundancy(double).empty


def test_redundancy_is_by_falling_cosine(fitted):
    _, npeff = fitted
    found = nb.redundancy(npeff, 0)
    assert len(found) == 28 and (found["a"] < found["b"]).all() and (found["direction"].diff().dropna() <= 0).all()
    cosines = np.abs(npeff.components_ @ npeff.components_.T)
    np.testing.assert_allclose(found["direction"], cosines[found["a"], found["b"]])
    some = nb.redundancy(npeff, 0.3)
    pd.testing.assert_frame_equal(some, found[found["direction"] >= 0.3])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), True])
def test_redundancy_refuses(threshold, fitted):
    with pytest.raises(ValueError, match=r"threshold=.*: \|cos\| of directions lies between 0 and 1"):
        nb.redundancy(fitted[1], threshold)


def test_reading_a_result_needs_no_torch():
    code = "import sys, npeff_nb as nb; nb.match, nb.redundancy; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
