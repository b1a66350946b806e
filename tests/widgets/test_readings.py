"""Answers about single texts: examples that were decomposed have to come back as they were, and pictures of traces as the tables say."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from npeff_nb import NPEFF
from npeff_nb.directions.lift import random_direction
from npeff_nb.directions.trace import trace_direction
from npeff_nb.explain.sensitivity import input_sensitivity
from npeff_nb.explain.tokens import token_shares, words
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import NextToken, SequenceClasses
from npeff_nb.fisher.subject import Subject
from npeff_nb.widgets import readings
from npeff_nb.widgets.desk import Desk


class Told(list):
    """Remembers what was told, as a page would."""

    def __call__(self, done: int, total: int, what: str, partial: object = None) -> None:
        self.append((done, total, what, partial))


@pytest.fixture
def desk(npeff) -> Desk:
    return Desk(npeff)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(autouse=True)
def untouched(npeff) -> Iterator[None]:
    """Whatever is asked, the model is afterwards as it was, also in what it would train."""
    model = npeff.subject.model
    before = [(p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
    yield
    assert not model.training
    for p, (value, trains, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value) and p.requires_grad == trains and p.grad is grad


# ------------------------------------------------------------------------------------------------------------------ bands


def test_a_band_s_examples_lie_in_it_and_are_the_same_each_time(desk, npeff, told):
    w = npeff.coefficients_[:, 1]
    for number in range(5):
        rows = readings.band(desk, {"component": 1, "band": number}, told)
        low, high = (w.max() * (3 - number) / 4, w.max() * (4 - number) / 4) if number < 4 else (-1, 0)
        assert all(low < w[row["row"]] <= high for row in rows)
        assert rows == readings.band(desk, {"component": 1, "band": number}, told)
        assert all(row["text"] == npeff.examples["text"][row["row"]] for row in rows)
    json.dumps(rows)
    with pytest.raises(ValueError, match=r"band 5 does not exist"):
        readings.band(desk, {"component": 1, "band": 5}, told)


# ------------------------------------------------------------------------------------------------------------------ tokens


def asked(mode: str = "share", pieces: bool = False, rows: tuple = (3, 0, 3, 10**6, "x"), component: int = 0) -> dict:
    return {"component": component, "rows": list(rows), "mode": mode, "pieces": pieces}


def test_shares_are_the_exact_split_and_add_up_to_one(desk, npeff, told):
    found = readings.tokens(desk, asked(), told)["rows"]
    assert [one["row"] for one in found] == [3, 0]
    twin = token_shares(npeff.subject, npeff.direction(0), np.array([0, 3]))
    for one in found:
        spoken, _ = words(npeff.subject.tokenizer, npeff.examples["text"][one["row"]], twin[one["row"]][0])
        assert [token["text"] for token in one["tokens"]] == [word["text"] for word in spoken]
        # Rounded to five decimals; the batch is another one.
        assert [token["share"] for token in one["tokens"]] == pytest.approx([word["share"] for word in spoken], abs=2e-5)
        assert sum(part["share"] for part in [*one["tokens"], *one["aside"]]) == pytest.approx(1, abs=1e-3)
    assert told[0][:2] == (0, 2)


IN_PIECES = tiny.TEXTS.index("who played in the year ?")
"""A text with a word of two pieces."""


@pytest.fixture(scope="module")
def of_pieces() -> NPEFF:
    return NPEFF(2, n_init=1, random_state=0).fit(extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="dense", progress=False))


def test_raw_tokens_are_those_of_the_tokenizer_and_add_up_to_the_words(of_pieces, told):
    desk, npeff, row = Desk(of_pieces), of_pieces, IN_PIECES
    (one,) = readings.tokens(desk, asked(rows=(row,)), told)["rows"]
    (raw,) = readings.tokens(desk, asked(pieces=True, rows=(row,)), told)["rows"]
    ids = npeff.subject.batches.encoded["input_ids"][row]
    names = [name for name in npeff.subject.tokenizer.convert_ids_to_tokens(ids) if name not in tiny.SPECIAL]
    assert [token["text"] for token in raw["tokens"]] == names
    assert any(name.startswith("##") for name in names)
    assert raw["aside"] == one["aside"]
    assert sum(token["share"] for token in raw["tokens"]) == pytest.approx(sum(token["share"] for token in one["tokens"]), abs=1e-4)


@pytest.mark.parametrize("pieces", [False, True])
def test_a_word_is_as_sensitive_as_its_pieces_together_and_the_most_sensitive_is_one(of_pieces, told, pieces):
    desk, npeff, row = Desk(of_pieces), of_pieces, IN_PIECES
    (one,) = readings.tokens(desk, asked("sensitivity", pieces, (row,)), told)["rows"]
    norms, _ = input_sensitivity(npeff.subject, npeff.direction(0), np.array([row]), signed=False)[row]
    names = npeff.subject.tokenizer.convert_ids_to_tokens(npeff.subject.batches.encoded["input_ids"][row])
    grouped: list[list[float]] = []
    for name, norm in zip(names, norms, strict=True):
        if name.startswith("##") and not pieces:
            grouped[-1].append(norm)
        elif name not in tiny.SPECIAL:
            grouped.append([norm])
    special = [norm for name, norm in zip(names, norms, strict=True) if name in tiny.SPECIAL]
    lengths = [sum(norm**2 for norm in group) ** 0.5 for group in grouped]
    largest = max([*lengths, *special])
    assert [token["share"] for token in one["tokens"]] == pytest.approx([length / largest for length in lengths], abs=2e-5)
    assert max(part["share"] for part in [*one["tokens"], *one["aside"]]) == 1


def test_tokens_that_are_not_known_are_refused(desk, told):
    with pytest.raises(ValueError, match="tokens 'size' are not known; choose one of 'share', 'sensitivity'"):
        readings.tokens(desk, asked("size"), told)
    assert readings.tokens(desk, asked(rows=()), told) == {"rows": []}


# ------------------------------------------------------------------------------------------------------------------ one's own text


def test_a_text_that_was_decomposed_comes_back_as_it_was(desk, npeff, shared, told):
    row = int(np.argmax(npeff.coefficients_.max(1)))
    text = npeff.examples["text"][row]
    answer = readings.text(desk, {"text": text}, told)
    # The same text in another batch: float32 sums in another order.
    expected = np.zeros(4)
    for one in answer["coefficients"]:
        expected[one["component"]] = one["value"]
    np.testing.assert_allclose(expected, npeff.coefficients_[row], atol=1e-3)
    values = [one["value"] for one in answer["coefficients"]]
    assert values == sorted(values, reverse=True) and min(values) >= 0
    assert answer["unexplained"] == pytest.approx(1 - npeff.example_explained_[row], abs=1e-3)
    assert answer["prediction"] == shared.predictions[row]
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert answer["probability"] == max(answer["probabilities"])
    assert answer["neighbours"][0]["coefficient"] == pytest.approx(1, abs=1e-3)
    assert text in {one["text"] for one in answer["neighbours"]}
    strongest = answer["coefficients"][0]["component"]
    (twin,) = readings.tokens(desk, asked(rows=(row,), component=strongest), told)["rows"]
    of_text = answer["tokens"][str(strongest)]
    assert [token["text"] for token in of_text["tokens"]] == [token["text"] for token in twin["tokens"]]
    np.testing.assert_allclose([t["share"] for t in of_text["tokens"]], [t["share"] for t in twin["tokens"]], atol=2e-3)
    json.dumps(answer)


def test_what_needs_no_direction_is_told_before_the_words(desk, told):
    answer = readings.text(desk, {"text": "who is the king of the city"}, told)
    firsts = [partial for *_, partial in told if partial is not None]
    assert firsts[0] == answer | {"tokens": {}}
    assert [len(partial["tokens"]) for partial in firsts] == list(range(len(answer["tokens"])))
    assert [done for done, *_ in told] == list(range(len(told)))


@pytest.mark.parametrize("text", ["", "  \n", None, 3])
def test_no_text_is_told_so(desk, told, text):
    with pytest.raises(ValueError, match="there is no text yet: type one first"):
        readings.text(desk, {"text": text}, told)


def test_a_text_that_the_model_cannot_read_as_a_whole_is_refused(desk, npeff, told):
    longest = npeff.subject.model.config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"this text is longer than the {longest} tokens that the model reads: shorten it"):
        readings.text(desk, {"text": "king " * (longest + 1)}, told)


def test_without_a_model_it_says_what_to_do(npeff, told):
    alone = copy.copy(npeff)
    alone.subject = None
    for question in (readings.text, readings.tokens, readings.trace):
        with pytest.raises(ValueError, match="attach"):
            question(Desk(alone), {"component": 0, "rows": [0], "row": 0, "text": "x", "mode": "share", "pieces": False}, told)


@pytest.fixture(scope="module")
def of_pairs() -> NPEFF:
    table = pd.DataFrame({"text": tiny.TEXTS, "text_pair": tiny.TEXTS[::-1]})
    return NPEFF(2, n_init=1, random_state=0).fit(extract_fishers(tiny.bert(), tiny.tokenizer(), table, features="dense", progress=False))


def test_pairs_of_texts_are_typed_with_bars_between_them(of_pairs, told):
    desk = Desk(of_pairs)
    answer = readings.text(desk, {"text": f"{tiny.TEXTS[2]} ||| {tiny.TEXTS[-3]}"}, told)
    found = np.zeros(2)
    for one in answer["coefficients"]:
        found[one["component"]] = one["value"]
    np.testing.assert_allclose(found, of_pairs.coefficients_[2], atol=1e-3)
    picture = readings.trace(desk, {"component": 0, "row": -1, "text": f"{tiny.TEXTS[2]} ||| {tiny.TEXTS[-3]}"}, told)
    assert picture["tokens"].count("[SEP]") == 2
    for text in ("only one", "first |||", "||| second"):
        with pytest.raises(ValueError, match=r"the examples are pairs of texts: type both, with \|\|\| between them"):
            readings.text(desk, {"text": text}, told)


def test_bars_in_a_single_text_are_text(desk, told):
    assert readings.text(desk, {"text": "who ||| where"}, told)["text"] == "who ||| where"


def test_gold_fishers_have_none_for_a_text_of_one_s_own(told):
    table = tiny.table()
    npeff = NPEFF(2, n_init=1, random_state=0).fit(
        extract_fishers(tiny.bert(), tiny.tokenizer(), table, fisher="empirical", features="dense", progress=False)
    )
    with pytest.raises(ValueError, match=r"of the examples' own labels .* and a text of yours has none"):
        readings.text(Desk(npeff), {"text": "who is who"}, told)


def test_examples_that_are_no_texts_have_no_tokens(told):
    encoded = dict(tiny.tokenizer()(tiny.TEXTS, padding=True, return_tensors="pt"))
    npeff = NPEFF(2, n_init=1, random_state=0).fit(extract_fishers(tiny.bert(), inputs=encoded, features="dense", progress=False))
    for question in (readings.text, readings.tokens, readings.trace):
        with pytest.raises(ValueError, match="this decomposition's examples are no texts with a tokenizer"):
            question(Desk(npeff), {"component": 0, "rows": [0], "row": 0, "text": "x", "mode": "share", "pieces": False}, told)


# ------------------------------------------------------------------------------------------------------------------ a trace


def traced(model, output=None, tokenizer=None):
    output, tokenizer = output or SequenceClasses(), tokenizer or tiny.tokenizer()
    batches, _ = output.prepare(model, tokenizer, ["who played the king ?"], 1)
    return trace_direction(Subject(model, batches, output, Recipe(), tokenizer), random_direction(dict(model.named_parameters())), 0)


TRACES = {
    "BERT": lambda: traced(tiny.bert()),
    "GPT-2": lambda: traced(tiny.gpt2_for("LMHeadModel", vocab_size=300), NextToken(), tiny.llama_tokenizer()),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_picture_s_edges_are_the_table_s_heads_and_norms_together(name):
    found = TRACES[name]()
    picture = readings.as_picture(found)
    # The slow way: row by row into a dictionary.
    sums: dict[tuple, np.ndarray] = {}
    heights = {"attention": lambda layer: (2 * layer, 2 * layer + 1), "MLP": lambda layer: (2 * layer + 1, 2 * layer + 2)}
    top = 2 * found.n_layers
    for edge in found.table.to_dict("records"):
        part = edge["module"].removesuffix(" norm")
        layer = -1 if pd.isna(edge["layer"]) else int(edge["layer"])
        below, above = (-1, 0) if part == "embedding" else (top, top + 1) if part == "head" else heights[part](layer)
        source, target = (-1 if pd.isna(edge[end]) else int(edge[end]) for end in ("source", "target"))
        key = (edge["kind"], part, layer, (source, below), (target, above))
        sums[key] = sums.get(key, 0) + np.array([edge[c] for c in found.classes])
    strongest = np.abs(np.array(list(sums.values()))).max(0)
    shares = {key: np.abs(values) / strongest for key, values in sums.items()}
    sent = {(e["kind"], e["module"], e["layer"], tuple(e["from"]), tuple(e["to"])): e["values"] for e in picture["edges"]}
    assert len(sent) == len(picture["edges"]) <= readings.MOST_EDGES * len(found.classes)
    for key, values in sent.items():
        np.testing.assert_allclose(values, sums[key], rtol=1e-4, atol=1e-12)
    # With so few edges the limit on their number takes none away.
    assert set(sent) == {key for key, share in shares.items() if share.max() >= readings.WEAKEST}
    order = [shares[key].max() for key in sent]
    assert order == sorted(order, reverse=True)
    # What is introduced at all heights is the whole derivative.
    np.testing.assert_allclose(sum(np.array(one["values"]) for one in picture["introduced"]), found.derivative, rtol=1e-3, atol=1e-6)
    assert (picture["layers"], picture["tokens"], picture["classes"]) == (found.n_layers, found.tokens, found.classes)
    json.dumps(picture, allow_nan=False)


def test_of_very_many_edges_each_class_keeps_its_strongest(monkeypatch):
    found = TRACES["BERT"]()
    monkeypatch.setattr(readings, "MOST_EDGES", 5)
    few = readings.as_picture(found)["edges"]
    monkeypatch.setattr(readings, "MOST_EDGES", 10**6)
    many = readings.as_picture(found)["edges"]
    for at in range(len(found.classes)):
        best = sorted((abs(edge["values"][at]) for edge in many), reverse=True)[:5]
        assert sorted((abs(edge["values"][at]) for edge in few), reverse=True)[:5] == best


def test_an_example_and_its_own_text_have_the_same_trace(desk, npeff, told):
    row = int(npeff.top_examples(1, 1)[0])
    one = readings.trace(desk, {"component": 1, "row": row, "text": ""}, told)
    same = readings.trace(desk, {"component": 1, "row": -1, "text": npeff.examples["text"][row]}, told)
    assert one["component"] == same["component"] == 1
    assert one["tokens"] == same["tokens"]
    np.testing.assert_allclose(one["derivative"], same["derivative"], rtol=1e-3)
    twin = npeff.trace(1, row)
    np.testing.assert_allclose(one["derivative"], twin.derivative, rtol=1e-3)
    assert [what for *_, what, _ in told][:2] == ["finding the component's direction among the weights", "following the edit through the network"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"component": 9, "row": 0, "text": ""}, r"component 9 does not exist"),
        ({"component": 0, "row": 10**6, "text": ""}, r"example 1000000 does not exist"),
        ({"component": 0, "row": -1, "text": " "}, r"there is no text yet: type one first"),
    ],
)
def test_what_cannot_be_traced_is_told(desk, told, question, words):
    with pytest.raises(ValueError, match=words):
        readings.trace(desk, question, told)
