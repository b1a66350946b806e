"""Components in words: purity against chance worked out by hand, labels, words, the table."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import tiny

from npeff_nb import NPEFF
from npeff_nb.explain.describe import DRAWS, USED, component_table, default_label, distinguishing_words, label_columns, purity
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.predictions import gold_labels


def commonest(values: np.ndarray) -> float:
    return np.unique(values, return_counts=True)[1].max() / len(values)


def by_enumeration(values: np.ndarray, size: int) -> np.ndarray:
    """Purity of every set of ``size`` examples, each as likely as the other: draws without replacement."""
    return np.array([commonest(values[list(some)]) for some in combinations(range(len(values)), size)])


SMALL = np.array(["a", "a", "a", "a", "b", "b", "b", "c"], dtype=object)


def test_purity_by_chance_is_the_mean_over_all_sets():
    found = purity(SMALL, np.array([0, 1, 2, 4]))
    every = by_enumeration(SMALL, 4)
    assert (found.name, found.share) == ("a", 0.75)
    # 400 seeded draws: five standard errors of their mean, one failure in two million.
    assert abs(found.expected - every.mean()) < 5 * every.std() / DRAWS**0.5
    tail = (every >= 0.75).mean()
    assert abs(found.p_value - tail) < 5 * (tail * (1 - tail) / DRAWS) ** 0.5 + 1 / DRAWS


def test_purity_given_a_coarse_label_draws_within_it():
    """Top examples of one coarse class: chance is a draw of as many from that class alone."""
    coarse = np.array(["x", "x", "x", "x", "x", "y", "y", "y"], dtype=object)
    fine = np.array(["a", "a", "a", "b", "b", "c", "c", "d"], dtype=object)
    found = purity(fine, np.array([0, 1, 2]), coarse)
    every = by_enumeration(fine[:5], 3)
    assert found.share == 1
    assert abs(found.expected - every.mean()) < 5 * every.std() / DRAWS**0.5
    mixed = purity(fine, np.array([0, 1, 5]), coarse)
    both = np.array([commonest(np.r_[fine[list(x)], fine[[y]]]) for x in combinations(range(5), 2) for y in (5, 6, 7)])
    assert abs(mixed.expected - both.mean()) < 5 * both.std() / DRAWS**0.5


def test_what_the_coarse_label_explains_is_no_surprise():
    """A fine label that is the coarse one again is always pure: expected 1, nothing significant."""
    labels = np.repeat(["x", "y"], 10).astype(object)
    found = purity(labels, np.arange(5), labels)
    assert (found.share, found.expected, found.p_value) == (1, 1, 1)
    assert purity(labels, np.arange(10)).p_value < 0.01


def test_purity_is_seeded_and_survives_missing_labels():
    values = np.array(["a", None, "a", "b", np.nan, "b"], dtype=object)
    top = np.array([0, 1, 2])
    assert purity(values, top) == purity(values, top)
    assert (purity(values, top).name, purity(values, top).share) == ("a", 2 / 3)  # a missing label is no agreement


def test_label_columns_repeat_and_come_coarsest_first_label_before_all():
    n = 12
    examples = pd.DataFrame({
        "text": ["t"] * n, "split": ["train", "test"] * 6, "fine": [f"f{i % 4}" for i in range(n)], "two": [True, False] * 6,
        "label": [i % 3 for i in range(n)], "score": np.linspace(0, 1, n), "id": range(n), "one": ["same"] * n, "bag": [[1]] * n,
        "with gaps": ["a", None, "b"] * 4,
    })  # fmt: skip
    assert label_columns(examples) == ["label", "two", "with gaps", "fine"]


def test_a_table_without_labels_has_none():
    assert label_columns(pd.DataFrame({"text": ["a", "b"]})) == []


def test_distinguishing_words_are_frequent_here_and_rare_elsewhere_in_reading_order():
    texts = ["How many kings are there", "How many cities", "how MANY years, the king's", "What is a king", "Who is the king", "What of it"]
    assert distinguishing_words(texts, np.array([0, 1, 2]))[:2] == ["how", "many"]
    assert "the" not in distinguishing_words(texts, np.array([0, 1, 2]))


@pytest.mark.parametrize("texts", [["a b", "c d", "e f"], ["same words", "same words", "same words"]], ids=["nothing shared", "nothing special"])
def test_no_word_is_better_than_a_meaningless_one(texts):
    assert distinguishing_words(texts, np.array([0, 1])) == []


@pytest.fixture
def gold(npeff):
    def of(labels) -> np.ndarray | None:
        npeff.examples = npeff.examples.assign(label=labels)
        return gold_labels(npeff.examples, npeff.classes)

    return of


def test_gold_labels_from_numbers_and_names(gold, npeff):
    numbers = np.arange(24) % 3
    names = np.array([f"LABEL_{i}" for i in numbers], dtype=object)
    assert gold(numbers).tolist() == names.tolist()
    assert gold(names).tolist() == names.tolist()
    with_gap = names.copy()
    with_gap[4] = None
    assert pd.isna(gold(with_gap)[4])


@pytest.mark.parametrize(
    "labels", [np.arange(24), ["other"] * 24, np.linspace(0, 2, 24), [None] * 24], ids=["out of range", "other names", "floats", "all missing"]
)
def test_labels_that_do_not_speak_of_the_classes_are_no_gold(labels, gold):
    assert gold(labels) is None


def test_the_table_s_columns_and_what_they_say(npeff, shared):
    npeff.labels[2] = "mine"
    table = component_table(npeff)
    assert table.columns.tolist() == [
        "component", "name", "share", "examples", "prediction", "accuracy", "label", "label purity", "label expected", "label p",
        "fine_label", "fine_label purity", "fine_label expected", "fine_label p", "example",
    ]  # fmt: skip
    assert table["component"].tolist() == [0, 1, 2, 3]
    assert table["share"].sum() == pytest.approx(1)
    assert table["name"][2] == "mine"
    assert table["examples"].tolist() == (npeff.coefficients_ >= USED).sum(0).tolist()
    for k in range(4):
        top = npeff.top_examples(k, 20)
        assert table["example"][k] == shared.examples["text"][top[0]]
        gold = np.array([f"LABEL_{v}" for v in shared.examples["label"]])
        assert table["accuracy"][k] == pytest.approx((gold[top] == shared.predictions[top]).mean())
        assert table["fine_label purity"][k] == pytest.approx(commonest(shared.examples["fine_label"].to_numpy(dtype=object)[top]))


def test_accuracy_is_over_the_examples_whose_label_is_known(npeff, shared):
    known = shared.predictions.copy()
    known[::2] = None
    npeff.examples = npeff.examples.assign(label=known)
    assert (component_table(npeff)["accuracy"] == 1).all()


def test_profiled_components_bring_their_ratios(npeff):
    npeff.profile(1, progress=False)
    table = component_table(npeff)
    assert np.isnan(table["kl_ratio +"][0])
    assert table["kl_ratio −"][1] == pytest.approx(npeff.profiles[1]["edit"]["kl_ratio"]["-"])


def test_an_array_s_table_has_what_there_is():
    table = component_table(NPEFF(2, n_init=1, random_state=0).fit(np.random.default_rng(0).standard_normal((9, 5))))
    assert table.columns.tolist() == ["component", "name", "share", "examples"]
    assert table["name"].tolist() == ["component 0", "component 1"]


def test_names_without_words_come_from_labels_then_numbers(npeff):
    npeff.examples = pd.DataFrame({"label": ["x"] * 12 + ["y"] * 12})
    assert default_label(npeff, 0) in {"mostly x", "mostly y"}
    npeff.examples = pd.DataFrame({"id": range(24)})
    assert default_label(npeff, 0) == "component 0"


def test_a_component_without_users_is_told_so(npeff):
    npeff.coefficients_[:, 3] = 0
    table = component_table(npeff)
    assert table["name"][3] == "unused"
    assert table["examples"][3] == 0
    assert pd.isna(table["example"][3])


def test_a_table_of_inputs_without_texts(tokenizer, bert):
    encoded = dict(tokenizer(tiny.TEXTS, padding=True, return_tensors="pt"))
    examples = pd.DataFrame({"label": [0, 1] * 4})
    npeff = NPEFF(2, n_init=1, random_state=0).fit(extract_fishers(bert, inputs=encoded, examples=examples, features="dense", progress=False))
    assert component_table(npeff)["label"].isin(["0", "1"]).all()
