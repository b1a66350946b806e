"""What top examples have in common: against slow twins that look at every example, and scipy's own intervals."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from npeff_nb.explain import describe
from npeff_nb.explain.enriched import BANDS, Coded, Corpus, alike, band_rows, bands, enriched, folded, sample, wilson, words_of

W = np.where(np.random.default_rng(0).random((200, 3)) < 0.4, np.random.default_rng(1).random((200, 3)), 0.0)


# ------------------------------------------------------------------------------------------------------------------ bands


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_bands_are_quarters_of_the_largest_and_zero_and_hold_every_example_once(kind):
    w = W[:, 0].astype(kind)
    found = bands(w)
    assert len(found) == BANDS + 1
    assert (found[0].high, found[-1].low, found[-1].high) == (w.max(), 0, 0)
    for at, band in enumerate(found[:-1]):
        rows = [i for i, value in enumerate(w) if band.low < value <= band.high]
        assert band_rows(w, at).tolist() == rows
        assert (band.examples, band.share) == (len(rows), len(rows) / 200)
        assert band.low == found[at + 1].high
    assert band_rows(w, BANDS).tolist() == [i for i, value in enumerate(w) if value == 0]
    assert sum(band.examples for band in found) == 200


def test_a_component_without_users_has_zero_alone():
    assert [asdict(band) for band in bands(np.zeros(7))] == [{"low": 0.0, "high": 0.0, "examples": 7, "share": 1.0}]
    with pytest.raises(ValueError, match=r"band 1 does not exist: this component has 1 \(0 to 0\)"):
        band_rows(np.zeros(7), 1)


@pytest.mark.parametrize("band", [-1, BANDS + 1])
def test_a_band_that_does_not_exist_is_refused(band):
    with pytest.raises(ValueError, match=rf"band {band} does not exist: this component has 5 \(0 to 4\)"):
        sample(W[:, 0], band)


def test_samples_are_always_the_same_without_replacement_and_by_falling_coefficient():
    w = W[:, 1]
    for at, band in enumerate(bands(w)):
        rows = sample(w, at, 6, seed=1)
        assert len(set(rows.tolist())) == min(6, band.examples)
        assert set(rows) <= set(band_rows(w, at))
        assert (np.diff(w[rows]) <= 0).all()
        assert (sample(w, at, 6, seed=1) == rows).all()
    assert sample(w, BANDS, 6, seed=1).tolist() != sample(w, BANDS, 6, seed=2).tolist()


def test_every_example_of_a_band_can_be_drawn():
    w = W[:, 1]
    drawn = {int(row) for seed in range(200) for row in sample(w, 0, 2, seed)}
    assert drawn == set(band_rows(w, 0).tolist())


# ------------------------------------------------------------------------------------------------------------------ words

TEXTS = [
    "How many kings are there?", "how many CITIES are there", "How many years, the king's", "What is a king?", "Who is the king", "What of it",
    "Wie viele Straßen hat İstanbul?", "", "what is a king", "?!",
]  # fmt: skip


def test_words_are_counted_once_a_text_and_ascii_is_no_other_way():
    assert words_of("The KING's the_king 3rd") == ["the", "king's", "the", "king", "3rd"]
    assert words_of("STRASSE") == words_of("Straße")
    for text in TEXTS:
        assert words_of(text) == words_of(f"{text} é")[:-1]
    corpus = Corpus(TEXTS)
    for word in {word for text in TEXTS for word in words_of(text)}:
        assert corpus.everywhere[word] == sum(word in words_of(text) for text in TEXTS)


def test_distinguishing_words_and_labels_come_from_the_corpus_too(npeff):
    corpus = Corpus(TEXTS)
    top = np.array([0, 1, 2])
    assert corpus.distinguishing(top) == describe.distinguishing_words(TEXTS, top) == ["how", "many", "are"]
    for k in range(4):
        of_all = Corpus(npeff.examples["text"].tolist())
        assert describe.default_label(npeff, k, of_all, npeff.top_examples(k, 20), ["label"]) == describe.default_label(npeff, k)


def test_duplicates_are_folded_into_the_first_that_is_like_them():
    long = "a b c d e f g h i j k l m n"
    texts = [
        "What is a king?", "what is a KING", "who is a king", long, f"{long} o", f"{long} o p q", "?!", " ?! ", "!?", "king a is what",
        "日本 ？", "日本",
    ]  # fmt: skip
    assert folded(texts, np.arange(len(texts))) == {0: [1, 9], 2: [], 3: [4], 5: [], 6: [7], 8: [], 10: [11]}
    # Positions are those in `top`, whatever the rows are.
    assert folded(texts, np.array([4, 1, 3, 0])) == {0: [2], 1: [3]}
    assert folded(texts, np.array([], dtype=int)) == {}


def test_what_folds_is_at_most_as_different_as_is_stated():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(60)]
    kept = folded(texts, np.arange(60))
    assert sorted([*kept, *(i for like in kept.values() for i in like)]) == list(range(60))
    for first, like in kept.items():
        for other in [*kept, *like]:
            a, b = set(texts[first].split()), set(texts[other].split())
            assert (len(a & b) >= 0.85 * len(a | b)) == (other in like or other == first)


# ------------------------------------------------------------------------------------------------------------------ what is commoner here


def test_wilson_is_scipy_s():
    for of in (1, 7, 20, 400):
        low, high = wilson(np.arange(of + 1.0), of)
        for count in range(of + 1):
            expected = binomtest(count, of).proportion_ci(method="wilson")
            # One closed formula in two orders of operations.
            assert (low[count], high[count]) == pytest.approx((expected.low, expected.high), abs=1e-14)


def test_enriched_words_and_labels_are_those_whose_share_lies_below_the_interval():
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(300)]
    top = np.arange(25)
    texts[:25] = [f"zz {text}" if i % 2 else f"zz yy {text}" for i, text in enumerate(texts[:25])]
    label = np.array(["x"] * 20 + [None] * 3 + ["y"] * 277, dtype=object)
    found = dict(enriched(Corpus(texts), {"label": Coded.of(label), "plain": Coded.of(np.zeros(300))}, top))
    for column, values in found.items():
        has = [set(words_of(text)) for text in texts] if column == "word" else [{value} for value in label]
        expected = {}
        for name in set().union(*(has[i] for i in top)) - {None}:
            count, share = sum(name in has[i] for i in top), sum(name in of_one for of_one in has) / 300
            interval = binomtest(count, 25).proportion_ci(method="wilson")
            if count >= 3 and interval.low > share:
                expected[name] = (count, 25, interval.low, interval.high, share)
        assert {one.name for one in values} == set(expected)
        for one in values:
            assert (one.count, one.of, one.low, one.high, one.everywhere) == pytest.approx(expected[one.name])
        gaps = [one.low - one.everywhere for one in values]
        assert gaps == sorted(gaps, reverse=True)
    assert list(found) == ["word", "label"]
    assert [one.name for one in found["word"]][:2] == ["zz", "yy"]
    assert [one.name for one in found["label"]] == ["x"]


def test_nothing_is_enriched_among_no_examples_or_all():
    assert enriched(Corpus(TEXTS), {"label": Coded.of(["a"] * 10)}, np.array([], dtype=int)) == []
    assert enriched(Corpus(TEXTS), {"label": Coded.of(list("aabbaabbab"))}, np.arange(10)) == []
    assert enriched(None, {}, np.arange(3)) == []


def test_coded_columns_know_what_is_missing():
    coded = Coded.of(["b", None, "a", "b", np.nan])
    assert coded.codes.tolist() == [0, -1, 1, 0, -1]
    assert coded.counts.tolist() == [2, 1]
    assert {code: rows.tolist() for code, rows in coded.members.items()} == {-1: [1, 4], 0: [0, 3], 1: [2]}
    assert Coded.of(coded) is coded
    assert Coded.of(pd.Series([3, 3, 1])).names == [3, 1]


def test_purity_takes_coded_columns(npeff):
    top = npeff.top_examples(0, 12)
    label, fine = (npeff.examples[column].to_numpy(dtype=object) for column in ("label", "fine_label"))
    assert describe.purity(Coded.of(fine), top, Coded.of(label)) == describe.purity(fine, top, label)


def test_purity_draws_as_one_by_one_draws_do():
    """The old way, a choice of examples in every group for every draw: the same distribution."""
    rng = np.random.default_rng(5)
    given, values = rng.integers(0, 3, 90), rng.integers(0, 5, 90).astype(object)
    values[rng.random(90) < 0.2] = None
    top = rng.choice(90, 12, replace=False)
    drawn = []
    for _ in range(4000):
        some = np.concatenate([rng.choice(np.flatnonzero(given == g), (given[top] == g).sum(), replace=False) for g in np.unique(given[top])])
        drawn.append(pd.Series(values[some]).value_counts().max() / 12)
    found = describe.purity(values, top, given)
    # Means of 400 and of 4000 draws: five standard errors of the coarser.
    assert abs(found.expected - np.mean(drawn)) < 5 * np.std(drawn) / describe.DRAWS**0.5


# ------------------------------------------------------------------------------------------------------------------ what is alike


def test_alike_examples_are_those_with_the_largest_cosines():
    w = np.array([0.5, 0.0, 0.2])
    rows, cosines = alike(W, w, 7)
    every = np.array([0.0 if not of_one.any() else of_one @ w / np.linalg.norm(of_one) / np.linalg.norm(w) for of_one in W])
    np.testing.assert_allclose(cosines, np.sort(every)[::-1][:7], rtol=1e-12)
    np.testing.assert_allclose(every[rows], cosines, rtol=1e-12)
    everyone, _ = alike(W, w, 1000)
    assert set(everyone) == set(np.flatnonzero(every))


def test_nothing_is_like_a_text_that_uses_no_component():
    rows, cosines = alike(W, np.zeros(3), 5)
    assert (len(rows), len(cosines)) == (0, 0)
    rows, cosines = alike(W, W[np.flatnonzero(W.any(1))[0]], 1)
    assert cosines[0] == pytest.approx(1)
