"""Places of components on the map, and the search."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from npeff_nb.widgets import search
from npeff_nb.widgets.bundle import Bundle
from npeff_nb.widgets.places import places

CASES = Path(__file__).parent.parent.parent / "widgets" / "test" / "search_cases.json"


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def families(n_families, size, d=60, noise=0.4, seed=0):
    """Directions in families: members of one are near each other up to sign, families nearly at right angles."""
    rng = np.random.default_rng(seed)
    middle = np.repeat(unit(rng.normal(size=(n_families, d))), size, 0)
    return unit(middle + noise * unit(rng.normal(size=middle.shape))) * rng.choice([-1, 1], (len(middle), 1))


@pytest.mark.parametrize(("n_families", "size"), [(3, 2), (4, 8), (20, 8)])
def test_families_stand_together_on_the_map(n_families, size):
    found = np.array(places(families(n_families, size), np.ones(n_families * size)))
    assert found.shape == (n_families * size, 2) and found.min() >= 0 and found.max() <= 1
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(1) // size
    # A few of many may stand at the border of another family: the plane is too small for all right angles.
    assert (nearest == np.repeat(np.arange(n_families), size)).mean() >= 0.95


def test_places_are_the_same_again_and_do_not_depend_on_signs():
    H, shares = families(4, 5), np.linspace(1, 0, 20)
    first = places(H, shares)
    assert first == places(H, shares)
    assert first == places(H * np.resize([1.0, -1.0], (20, 1)), shares)


def test_the_wide_way_lies_flat():
    x = np.array(places(families(5, 4), np.ones(20)))
    assert np.ptp(x[:, 0]) == pytest.approx(1, abs=1e-3)
    assert np.ptp(x[:, 1]) <= 1


@pytest.mark.parametrize("r", [1, 2])
def test_one_or_two_components_have_no_map(r):
    assert places(np.eye(4)[:r], np.ones(r)) is None


@pytest.mark.parametrize("r", [3, 9, 10, 30])
def test_equal_and_opposite_directions_share_their_place(r):
    H = unit(np.random.default_rng(1).normal(size=(r, 40)))
    H[1] = -H[0]
    found = np.array(places(H, np.ones(r)))
    assert np.linalg.norm(found[0] - found[1]) < 0.02
    assert np.isfinite(found).all()


@pytest.mark.parametrize("r", [3, 20])
def test_only_one_direction_at_all_is_one_place(r):
    assert np.ptp(np.array(places(np.tile(np.eye(5)[0], (r, 1)), np.zeros(r))), axis=0).max() == 0


# ---------------------------------------------------------------------------------------------------------------------------- search


def cases():
    return json.loads(CASES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", cases()["cases"], ids=lambda case: repr(case["query"]))
def test_search_answers_as_the_page_does(case):
    of = search.folded([search.Entry(**entry) for entry in cases()["entries"]])
    assert search.matches(of, case["query"]) == list(zip(case["components"], case["why"], strict=True))


def test_a_long_query_and_a_long_text_are_cut():
    of = search.folded([search.Entry("label", [], ["x" * search.SEARCHED])])
    assert search.matches(of, "x" * 10**6) == [(0, "1 of 1 top examples: " + "x" * (search.LONGEST_QUERY + search.AROUND) + "…")]


@pytest.fixture
def desk(npeff):
    return SimpleNamespace(npeff=npeff, bundle=Bundle(npeff))


def test_components_are_found_by_what_their_top_examples_say(desk, npeff):
    row = int(npeff.top_examples(2, 1)[0])
    desk.bundle.texts = npeff.examples["text"].to_numpy(dtype=object)
    desk.bundle.texts[row] = "Needle here"
    found = search.find(desk, {"query": "here NEEDLE"}, None)
    assert sorted(found["components"]) == [k for k in range(4) if row in npeff.top_examples(k)]
    assert 2 in found["components"]
    assert len(found["why"]) == len(found["components"])
    assert search.find(desk, {"query": "no such word"}, None) == {"components": [], "why": []}
    assert search.find(desk, {}, None) == {"components": [], "why": []}


def test_default_labels_come_before_examples(desk):
    word = desk.bundle.default_labels[0].split()[0]
    found = search.find(desk, {"query": word}, None)
    named = [k for k, label in enumerate(desk.bundle.default_labels) if word in label.split()]
    assert sorted(found["components"][: len(named)]) == named


def test_texts_over_the_limit_are_not_searched(desk):
    desk.bundle.texts = np.array(["a" * 5000 + "needle"] * len(desk.bundle.texts), dtype=object)
    assert search.find(desk, {"query": "needle"}, None)["components"] == []
