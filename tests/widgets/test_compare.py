"""Two decompositions side by side: what is matched, what is said of it, and what the page may ask."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import traitlets

import npeff_nb as nb
from npeff_nb import NPEFF
from npeff_nb.decomposition.matching import correlations

N, D = 80, 24


def rows(r=4, n=N, d=D, seed=0):
    """Rank-1 Fishers of ``r`` planted components with little noise, (n, d)."""
    rng = np.random.default_rng(seed)
    H = np.linalg.qr(rng.normal(size=(d, r)))[0].T
    which = np.arange(n) % r
    return H[which] * rng.uniform(0.5, 1, (n, 1)) + 0.02 * rng.normal(size=(n, d))


def fitted(A, r=4, seed=0):
    npeff = NPEFF(r, n_init=2, random_state=seed).fit(A)
    npeff.examples = pd.DataFrame({"text": [f"text {i}" for i in range(len(A))], "label": [f"class {i % 4}" for i in range(len(A))]})
    return npeff


@pytest.fixture(scope="module")
def a():
    return fitted(rows())


@pytest.fixture(scope="module")
def b():
    return fitted(rows(), seed=3)


@pytest.fixture(scope="module")
def larger():
    return fitted(rows(), r=6, seed=1)


@pytest.fixture
def both(a, larger):
    made = nb.compare(a, larger)
    yield made
    made.close()


def asked(comparison, **question):
    said = []
    comparison.send = lambda message, buffers=None: said.append(message)
    comparison._on_message(comparison, {"id": "q", **question}, [])
    assert len(said) == 1
    return said[0]


def test_two_seeds_of_planted_components_agree(a, b):
    made = nb.compare(a, b)
    table = made.table
    assert (table["agreement"] > 0.95).all() and len(table) == 4
    matched = nb.match(a, b).set_index("a")
    assert dict(zip(table["a"], table["b"], strict=True)) == matched["b"].to_dict()
    assert table["agreement"].is_monotonic_decreasing
    first, second, third = made.data["headline"].split(" · ")[0], *made.data["headline"].split(" · ")[1].split(", ")
    assert first == f"median agreement {table['agreement'].median():.2f} over 4 pairs"
    assert (second, third) == ("4 of them at least 0.8", "with 100 % of what a explains")


def test_what_has_no_partner_is_listed(both, larger):
    alone = both.table[both.table["a"].isna()]
    assert len(alone) == 2 and alone["agreement"].isna().all()
    assert both.data["alone"] == {"a": [], "b": alone["b"].tolist()}
    assert "2 of b without a partner" in both.data["headline"]
    assert both.table["b name"].notna().all() and both.table["b"].sort_values().tolist() == list(range(6))


def test_matrix_holds_the_agreement_of_any_two(both, a, larger):
    matrix = np.frombuffer(both.matrix, np.uint8).reshape(4, 6)
    expected = np.abs(a.components_ @ larger.components_.T) * np.maximum(correlations(a.coefficients_, larger.coefficients_), 0)
    np.testing.assert_allclose(matrix / 255, expected, atol=0.5 / 255 + 1e-9)
    pair = both.data["pairs"][0]
    assert matrix[pair["a"], pair["b"]] / 255 == pytest.approx(pair["agreement"], abs=0.003)


def test_begins_with_the_pair_that_agrees_most(both):
    assert (both.a_component, both.b_component) == tuple(both.table[["a", "b"]].iloc[0])


def test_state_can_be_set_read_and_replayed(a, larger):
    made = nb.compare(a, larger, a_component=2, b_component=5, sort="-share", theme="dark")
    assert made.state == {"a_component": 2, "b_component": 5, "sort": "-share", "theme": "dark"}
    assert nb.compare(a, larger, **made.state).state == made.state


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("a_component", 5, r"component 5 does not exist: this decomposition has 4 \(0 to 3\)"),
        ("b_component", 6, r"component 6 does not exist: this decomposition has 6 \(0 to 5\)"),
        ("sort", "size", r"sort='size': pairs are sorted by agreement, direction, coefficients, share, a, b, with - before it when falling"),
    ],
)
def test_values_that_do_not_exist_are_refused(both, name, value, words):
    with pytest.raises(ValueError, match=words):
        setattr(both, name, value)


def test_arguments_that_do_not_exist_are_refused(a, b):
    with pytest.raises(TypeError, match=r"compare\(\) has no argument 'component'; it takes X, a_component, b_component, sort, theme"):
        nb.compare(a, b, component=1)
    with pytest.raises(TypeError, match="takes two fitted NPEFFs, not a dict"):
        nb.compare(a, {})
    with pytest.raises(traitlets.TraitError, match="theme"):
        nb.compare(a, b, theme="blue")


def test_other_coordinates_are_compared_by_coefficients_and_it_is_said(a):
    other = fitted(rows(d=30), seed=1)  # the same users of other directions
    made = nb.compare(a, other)
    assert made.data["trouble"] == f"a has {D} features, b 30: only directions over the same features can be compared"
    assert made.table["direction"].isna().all() and made.table["same_sign"].isna().all()
    assert (made.table["agreement"] > 0.8).all(), "components are used by the same examples"
    assert (made.table["agreement"] == made.table["coefficients"]).all()
    assert all(pair["direction"] is None for pair in made.data["pairs"])
    json.dumps(made.data, allow_nan=False)


@pytest.mark.parametrize(("d", "words"), [(D, "on 80 examples and b on 60 others: give X"), (30, "only directions over the same features")])
def test_neither_features_nor_examples_in_common_is_an_error(a, d, words):
    with pytest.raises(ValueError, match=words):
        nb.compare(a, fitted(rows(n=60, d=d)))
    other = fitted(rows(d=d))
    other.examples = pd.DataFrame({"text": ["something else"] * N})
    with pytest.raises(ValueError, match=words.replace("60", "80")):
        nb.compare(a, other)


def test_examples_given_take_the_place_of_those_fitted_on(a, b):
    X = rows(n=40, seed=0)
    made = nb.compare(a, fitted(rows(n=60)), X)
    assert (made.table["agreement"] > 0.9).all()
    answer = asked(made, ask="top", side="a", component=0)["answer"]
    assert all(row["row"] < 40 and row["text"] == f"example {row['row']}" and row["prediction"] is None for row in answer)
    w = a.transform(X)[:, 0]
    assert [row["row"] for row in answer] == np.argsort(-w, kind="stable")[: len(answer)].tolist()


def test_top_examples_are_answered(both, larger):
    answer = asked(both, ask="top", side="b", component=4)["answer"]
    top = larger.top_examples(4)
    assert [row["row"] for row in answer] == top.tolist()
    assert answer[0] == {
        "row": int(top[0]), "coefficient": pytest.approx(larger.coefficients_[top[0], 4], abs=1e-5), "text": f"text {top[0]}", "gold": None,
        "prediction": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"ask": "top", "side": "b", "component": 6}, "component 6 does not exist"),
        ({"ask": "top", "side": "c", "component": 0}, "which this version does not know"),
        ({"ask": "top", "side": "a"}, "component"),
        ({"ask": "dance"}, "the page asked for 'dance', which this version does not know"),
    ],
)
def test_wrong_questions_are_answered_with_an_error(both, question, words):
    assert words in asked(both, **question)["error"]


def test_messages_that_are_no_questions_are_left_alone(both):
    for message in (None, "x", {}, {"id": 3}, {"id": "q", "ask": "cancel"}):
        both._on_message(both, message, [])


def test_names_that_a_person_gave_are_used(a, b):
    a.labels = {1: "mine"}
    try:
        made = nb.compare(a, b)
        assert made.data["sides"]["a"]["components"][1]["label"] == "mine"
        assert "mine" in made.table["a name"].tolist()
    finally:
        a.labels = {}


def test_fallback_is_a_table_without_markup_from_data(a, b):
    a.labels = {0: "<script>alert(1)</script>"}
    try:
        text = nb.compare(a, b)._fallback()
    finally:
        a.labels = {}
    assert "<script" not in text and "&lt;script&gt;" in text
    assert text.count("<tr>") == 5


def test_page_is_whole_and_inert(tmp_path):
    hostile = fitted(rows())
    hostile.examples["text"] = "</script><script>alert(1)</script>"
    hostile.labels = {0: "<!--<script>alert(2)"}
    made = nb.compare(hostile, hostile, a_component=1)
    text = made.to_html(tmp_path / "comparison.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="npeff-data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["data"] == made.data and data["state"] == made.state
    assert data["tops"]["a"][0][0]["text"] == "</script><script>alert(1)</script>"
    assert "<script>alert" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.html"]


def test_one_component_against_many(a):
    single = fitted(rows(), r=1)
    made = nb.compare(single, a)
    assert len(made.data["pairs"]) == 1 and len(made.data["alone"]["b"]) == 3
    assert "over 1 pair ·" in made.data["headline"]
    assert repr(made).startswith("Compare(median agreement")
