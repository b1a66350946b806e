"""The container: choosing examples, keeping them on disk, the cache."""

from __future__ import annotations

import json
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch import nn

import npeff_nb as nb
from npeff_nb import _files
from npeff_nb.fisher import pefs as pefs_module
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import LabelWords, NextToken, Sampled
from npeff_nb.fisher.pefs import PEFs


def assert_arrays_equal(one: np.ndarray | None, two: np.ndarray | None) -> None:
    assert (one is None) == (two is None)
    if one is not None:
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def assert_equal(a: PEFs, b: PEFs) -> None:
    """Everything that is kept, but for the model."""
    for name in ("factors", "norms", "logits", "traces", "diagonal"):
        assert_arrays_equal(getattr(a, name), getattr(b, name))
    assert a.choices.keys() == b.choices.keys()
    for name, value in a.choices.items():
        assert_arrays_equal(value, b.choices[name])
    for name in ("sparse", "diagonals"):
        one, two = getattr(a, name), getattr(b, name)
        assert (one is None) == (two is None)
        if one is not None:
            assert one.size == two.size
            assert one.arrays().keys() == two.arrays().keys()
            for key, value in one.arrays().items():
                assert_arrays_equal(value, two.arrays()[key])
    pd.testing.assert_frame_equal(a.examples, b.examples)
    pd.testing.assert_frame_equal(a.parameters, b.parameters)
    assert (a.columns is None) == (b.columns is None)
    if a.columns is not None:
        pd.testing.assert_frame_equal(a.columns, b.columns, check_exact=False, rtol=1e-14, atol=1e-15)  # fifteen decimals are kept
    assert a.classes == b.classes
    assert a.facts == b.facts
    assert a.feature_map.id == b.feature_map.id


MASK = np.zeros(24, dtype=bool)
MASK[[2, 5, 11]] = True


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (MASK, [2, 5, 11]),
        (MASK.tolist(), [2, 5, 11]),
        (pd.Series(MASK), [2, 5, 11]),
        (slice(3, 9, 2), [3, 5, 7]),
        ([4, 1], [4, 1]),
        (np.array([-1, 0]), [23, 0]),
    ],
    ids=["mask", "list of bool", "series", "slice", "positions", "from the end"],
)
def test_choosing_examples(rows, expected, shared):
    some = shared[rows]
    assert len(some) == len(expected)
    np.testing.assert_array_equal(some.factors, shared.factors[expected])
    np.testing.assert_array_equal(some.norms, shared.norms[expected])
    np.testing.assert_array_equal(some.logits, shared.logits[expected])
    assert some.examples["text"].tolist() == shared.examples["text"].iloc[expected].tolist()
    assert some.examples.index.tolist() == list(range(len(expected)))


def test_a_part_still_runs_its_own_examples(shared):
    some = shared[[20, 3, 8]]
    # Other batches, other padding: float32.
    np.testing.assert_allclose(some.subject.logits(np.arange(3)).numpy(), shared.logits[[20, 3, 8]], atol=1e-5)
    np.testing.assert_allclose(some.subject.logits(np.array([2, 0])).numpy(), shared.logits[[8, 20]], atol=1e-5)
    assert nb.NPEFF(1, n_init=1, random_state=0).fit(some).direction(0)


def test_a_part_of_ready_inputs_runs_too():
    model, inputs = tiny.seeded(tiny.CalledTwice), torch.randn(6, 6)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, features="dense", progress=False)
    np.testing.assert_allclose(pefs[[4, 1]].subject.logits(np.arange(2)).numpy(), pefs.logits[[4, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.ones(5, dtype=bool), r"the mask has shape \(5,\); expected \(24,\), one value an example"),
        (np.ones((24, 2), dtype=bool), r"the mask has shape \(24, 2\)"),
        (3, r"asks for one example; ask for a list of positions, a slice or a mask"),
        ([24], "24"),
    ],
)
def test_wrong_choices(rows, words, shared):
    with pytest.raises(IndexError, match=words):
        shared[rows]


def test_an_empty_choice_is_empty(shared):
    assert len(shared[[]]) == 0
    assert len(shared[np.zeros(24, dtype=bool)]) == 0


def test_an_example_asked_for_twice_is_refused(shared):
    with pytest.raises(ValueError, match="an example was asked for twice in one call"):
        shared.subject.logits(np.array([1, 1]))


def test_probabilities_and_predictions(shared):
    expected = torch.softmax(torch.from_numpy(shared.logits).double(), 1).numpy()
    np.testing.assert_allclose(shared.probabilities, expected, atol=1e-15)
    assert shared.predictions.tolist() == [shared.classes[c] for c in expected.argmax(1)]


def test_repr_says_what_it_holds(shared):
    assert repr(shared).startswith("PEFs(24 examples, 2 factor rows, ")
    assert "(dense)" in repr(shared)


def test_saved_and_loaded(shared, tmp_path):
    path = shared.save(tmp_path / "some.pefs")
    back = nb.load(path)
    assert_equal(back, shared)
    assert back.subject is None


def test_saved_and_loaded_with_a_basis(bert, tokenizer, tmp_path):
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="sketch", parameters="all", progress=False)
    back = nb.load(pefs.save(tmp_path / "some.pefs"))
    assert_equal(back, pefs)
    np.testing.assert_array_equal(back.feature_map.basis, pefs.feature_map.basis)
    again = extract_fishers(bert, tokenizer, tiny.TEXTS, like=back, progress=False)  # a loaded map gives the same coordinates
    assert again.feature_map.id == pefs.feature_map.id
    np.testing.assert_allclose(again.factors, pefs.factors, atol=1e-5 * np.abs(pefs.factors).max())


def test_saved_and_loaded_without_a_table(tmp_path):
    """``inputs=`` without ``examples`` leaves a table without columns."""
    pefs = extract_fishers(tiny.seeded(tiny.CalledTwice), logits=tiny.plain_logits, inputs=torch.randn(5, 6), progress=False)
    back = nb.load(pefs.save(tmp_path / "some.pefs"))
    assert len(back.examples) == 5
    assert len(back[[1, 2]].examples) == 2


def test_the_cache_gives_equal_arrays_and_runs_no_more_than_one_example(bert, tokenizer, tmp_path):
    """One forward of the shortest text says how many classes there are, which is part of what is looked for."""
    first = extract_fishers(bert, tokenizer, tiny.table(6), cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 1
    seen = []
    bert.register_forward_hook(lambda module, args, named, out: seen.append(len(out.logits)), with_kwargs=True)
    again = extract_fishers(bert, tokenizer, tiny.table(6), cache=tmp_path, progress=False)
    assert seen == [1]
    assert_equal(again, first)
    assert isinstance(again.factors, np.memmap)
    assert again.subject is not None
    assert again.subject.model is bert


OTHER = {
    "examples": lambda bert: {"examples": tiny.table(7)},
    "a label": lambda bert: {"examples": tiny.table(6).assign(label=1)},
    "parameters": lambda bert: {"parameters": "MLP in"},
    "features": lambda bert: {"features": "sketch"},
    "model": lambda bert: {"model": tiny.bert(seed=1)},
    "tokenizer": lambda bert: {"tokenizer": tiny.tokenizer(model_max_length=4)},
    "logits": lambda bert: {"logits": lambda model, batch: model(**batch).logits[:, :2]},
}


@pytest.mark.filterwarnings("ignore:.*texts are longer than:UserWarning")
@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_the_cache_is_not_asked_for_something_else(change, bert, tokenizer, tmp_path):
    """Whatever changes the Fishers must miss: a stale hit would be a wrong result without a word."""
    settings = {"model": bert, "tokenizer": tokenizer, "examples": tiny.table(6), "cache": tmp_path, "progress": False}
    extract_fishers(**settings)
    extract_fishers(**settings | change(bert))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_knows_ready_inputs(tmp_path):
    model, inputs = tiny.seeded(tiny.CalledTwice), torch.randn(5, 6)
    for some in (inputs, inputs + 1, {"x": inputs}):
        logits = (lambda m, b: m(b["x"])) if isinstance(some, dict) else tiny.plain_logits
        extract_fishers(model, logits=logits, inputs=some, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) >= 2


def test_a_damaged_cache_says_so_instead_of_being_used(bert, tokenizer, tmp_path):
    extract_fishers(bert, tokenizer, tiny.TEXTS, cache=tmp_path, progress=False)
    (kept,) = tmp_path.iterdir()
    arrays = kept / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4] + b"1234")
    with pytest.raises(ValueError, match=r"arrays.safetensors is missing or was changed since it was written: the folder is damaged, make it again"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, cache=tmp_path, progress=False)


def test_a_cache_entry_of_another_kind_is_refused(bert, tokenizer, npeff, tmp_path):
    extract_fishers(bert, tokenizer, tiny.TEXTS, cache=tmp_path / "cache", progress=False)
    (kept,) = (tmp_path / "cache").iterdir()
    other = npeff.save(tmp_path / "other")
    kept.rename(tmp_path / "aside")
    other.rename(kept)
    with pytest.raises(ValueError, match="holds NPEFF decomposition, not per-example Fishers"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, cache=tmp_path / "cache", progress=False)


# ------------------------------------------------------------------------------------------------------------------------ the table


TOKENS = {"output": None, "parameters": "*h.1*", "features": "dense", "progress": False}


def of_language_model(examples=tiny.TEXTS, **settings) -> PEFs:
    """Next tokens, 27 of them."""
    return extract_fishers(tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), examples, **TOKENS | settings)


def test_what_is_known_of_each_example(shared):
    found = shared.to_frame()
    assert found.columns.tolist() == ["text", "label", "fine_label", "prediction", "probability", "correct", "norm", "trace", "kept"]
    assert len(found) == 24
    assert found["prediction"].tolist() == shared.predictions.tolist()
    np.testing.assert_array_equal(found["probability"], shared.probabilities.max(1))
    gold = [shared.classes[label] for label in shared.examples["label"]]
    assert found["correct"].tolist() == [p == g for p, g in zip(shared.predictions, gold, strict=True)]
    np.testing.assert_array_equal(found["norm"], shared.norms)
    np.testing.assert_allclose(found["trace"], (shared.factors.astype(float) ** 2).sum((1, 2)), rtol=1e-5)  # float32 rows
    np.testing.assert_allclose(found["kept"], 1, rtol=1e-5)
    assert shared.examples.columns.tolist() == ["text", "label", "fine_label"]  # it stays the caller's


def test_a_caller_s_column_keeps_its_name_and_values(bert, tokenizer):
    mine = pd.DataFrame({"text": tiny.TEXTS[:3], "norm": ["a", "b", "c"], "prediction": 7})
    found = extract_fishers(bert, tokenizer, mine, features="dense", progress=False).to_frame()
    assert found["norm"].tolist() == ["a", "b", "c"]
    assert found["prediction"].tolist() == [7] * 3
    assert {"probability", "trace", "kept"} <= set(found.columns)
    assert "correct" not in found.columns


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"classes": "all"}, []),
        ({"classes": 3}, ["retained_trace"]),
        ({"classes": 0.05}, ["retained_trace"]),
        ({"classes": Sampled(4)}, ["sampling_error"]),
        ({"classes": "all", "rank": 2}, ["retained_rows"]),
        ({"classes": 5, "rank": 0.5}, ["retained_trace", "retained_rows"]),
        ({"fisher": "predicted"}, []),
    ],
)
def test_columns_that_say_something_are_there_and_others_are_not(settings, more):
    found = of_language_model(**settings).to_frame()
    assert found.columns.tolist() == ["text", "prediction", "probability", "norm", "trace", "kept", *more]
    assert found[["norm", "trace", "kept", *more]].notna().all().all()
    assert all(((found[name] > 0) & (found[name] <= 1 + 1e-9)).all() for name in more if name != "sampling_error")


@pytest.mark.parametrize("classes", ["all", 3, 0.2, Sampled(4)])
def test_the_probability_is_that_of_the_prediction(classes):
    """Also where most of it lies in *anything else*."""
    model, tokenizer = tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False)
    with torch.no_grad():  # so little to choose between that the rest outweighs every single token
        model.transformer.ln_f.weight.mul_(0.2)
    found = extract_fishers(model, tokenizer, tiny.TEXTS, **TOKENS | {"classes": classes}).to_frame()
    for row, text in enumerate(tiny.TEXTS):
        with torch.no_grad():
            p = torch.softmax(model(input_ids=torch.tensor([tokenizer(text)["input_ids"][:-1]])).logits[0, -1].double(), 0)
        assert found["prediction"][row] == tokenizer.decode([int(p.argmax())])
        assert found["probability"][row] == pytest.approx(float(p.max()), abs=1e-6)
        assert p.max() < 0.2


def test_the_probability_of_several_labels_is_that_of_all_of_them(tokenizer):
    model = tiny.bert_for("SequenceClassification", num_labels=4, problem_type="multi_label_classification")
    pefs = extract_fishers(model, tokenizer, tiny.TEXTS, features="dense", progress=False)
    p = 1 / (1 + np.exp(-pefs.logits.astype(float)))
    expected = [" + ".join(f"LABEL_{i}" for i in np.flatnonzero(row > 0.5)) or "none" for row in p]
    found = pefs.to_frame()
    assert found["prediction"].tolist() == expected
    assert len(set(expected)) > 2
    np.testing.assert_allclose(found["probability"], np.maximum(p, 1 - p).prod(1), rtol=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0, 1, 2, 3], ["guess 1", "anything else"] * 4], ids=["numbers", "names"])
def test_labels_are_not_taken_for_guesses(labels):
    """*guess 1* is another token in every example: a column of small numbers does not speak of these classes."""
    found = of_language_model(pd.DataFrame({"text": tiny.TEXTS, "label": labels}), classes=3).to_frame()
    assert "correct" not in found.columns


def test_masked_examples_say_so():
    model, inputs = tiny.seeded(tiny.CalledTwice), torch.randn(5, 6)
    inputs[3, 2] = torch.nan
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, features="dense", on_nan="mask", progress=False)
    found = pefs.to_frame()
    assert found["masked"].tolist() == [False, False, False, True, False]
    assert found["norm"][3] == found["trace"][3] == 0
    assert not pefs.factors[3].any()
    assert pefs.factors[[0, 1, 2, 4]].any(2).all()


# ------------------------------------------------------------------------------------------------------------------------ choosing by a condition


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("label == 1", lambda t: t["label"] == 1),
        ("correct == False and norm > 0.1", lambda t: ~t["correct"] & (t["norm"] > 0.1)),
        ("probability < 0.6 or fine_label == 'f2'", lambda t: (t["probability"] < 0.6) | (t["fine_label"] == "f2")),
        ("text.str.contains('king')", lambda t: t["text"].str.contains("king")),
        ("prediction == 'LABEL_0'", lambda t: t["prediction"] == "LABEL_0"),
        ("norm < 0", lambda t: t["norm"] < 0),
    ],
)
def test_choosing_by_a_condition(condition, holds, shared):
    kept = np.flatnonzero(holds(shared.to_frame()))
    some = shared.filter(condition)
    assert some.examples["text"].tolist() == shared.examples["text"].iloc[kept].tolist()
    np.testing.assert_array_equal(some.factors, shared.factors[kept])
    pd.testing.assert_frame_equal(some.to_frame(), shared.to_frame().iloc[kept].reset_index(drop=True), check_dtype=False)
    if len(kept):
        np.testing.assert_allclose(some.subject.logits(np.arange(len(kept))).numpy(), shared.logits[kept], atol=1e-5)  # float32, other batches


@pytest.mark.parametrize("condition", ["wrong > 1", "norm >", "norm", "norm > 'a'", "", "label = 1", "norm + 1"])
def test_a_condition_that_is_none(condition, shared):
    with pytest.raises(
        ValueError, match=r"is no condition on these examples \(.*\); their columns are text, label, fine_label, prediction, probability"
    ):
        shared.filter(condition)
    assert "label" in shared.examples.columns


# ------------------------------------------------------------------------------------------------------------------------ joining


JOINED = {
    "dense": {"features": "dense"},
    "sketch": {"features": "sketch"},
    "reduced": {"features": "reduced"},
    "few classes": {"features": "dense", "classes": 2},
    "diagonal": {"features": "dense", "diagonal": True},
    "rank": {"features": "dense", "rank": 1},
    "predicted": {"features": "dense", "fisher": "predicted"},
}


@pytest.mark.parametrize("settings", JOINED.values(), ids=JOINED.keys())
def test_parts_joined_are_one_extraction(settings, bert, tokenizer):
    table = tiny.table(14)
    first = extract_fishers(bert, tokenizer, table[:6], batch_size=4, progress=False, **settings)
    more = {"diagonal": settings.get("diagonal", False), "fisher": settings.get("fisher", "true")}
    second = extract_fishers(bert, tokenizer, table[6:], like=first, batch_size=4, progress=False, **more)
    whole = extract_fishers(bert, tokenizer, table, like=first, batch_size=4, progress=False, **more)
    joined = PEFs.concatenate([first, second])
    close = {"rtol": 1e-4, "atol": 1e-5 * np.abs(whole.factors).max()}  # float32, other batches
    np.testing.assert_allclose(joined.factors, whole.factors, **close)
    for name in ("norms", "logits", "traces"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(joined.examples, whole.examples)
    pd.testing.assert_frame_equal(joined.parameters, whole.parameters, check_exact=False, rtol=1e-4)
    pd.testing.assert_frame_equal(joined.to_frame(), whole.to_frame(), check_exact=False, rtol=1e-4, atol=1e-5)
    assert joined.choices.keys() == whole.choices.keys()
    assert joined.feature_map.id == whole.feature_map.id
    assert joined.facts.get("outcome_names") == whole.facts.get("outcome_names")
    # The second part has less of its energy in directions that were found on the first; a sketch's energy is itself an estimate.
    assert joined.facts["energy_kept"] == pytest.approx(whole.facts["energy_kept"], rel=5e-3)
    if "inner_product_bound" in whole.facts:
        # What is said of all pairs must hold for all of them.
        assert joined.facts["inner_product_bound"] >= whole.facts["inner_product_bound"] - 1e-6
    if settings.get("diagonal"):
        np.testing.assert_allclose(joined.diagonal, whole.diagonal, rtol=1e-3, atol=1e-9)
    assert joined.subject is None
    # One component of each is the same.
    one, two = (nb.NPEFF(1, n_init=1, random_state=0).fit(p).components_[0] for p in (joined, whole))
    assert abs(one @ two) > 1 - 1e-3


@pytest.mark.parametrize("settings", [{"features": "topk", "budget": 40}, {"features": "dense", "diagonal": 5}], ids=["sparse", "diagonals"])
def test_a_whole_that_was_cut_is_joined_again(settings, bert, tokenizer):
    whole = extract_fishers(bert, tokenizer, tiny.table(9), progress=False, **settings)
    joined = PEFs.concatenate([whole[:4], whole[4:]])
    joined.facts = whole.facts
    joined.parameters = joined.parameters.assign(energy=whole.parameters["energy"])
    assert_equal(joined, whole)


def test_masked_examples_of_one_part_only():
    model = tiny.seeded(tiny.CalledTwice)
    inputs = torch.randn(6, 6)
    inputs[4, 0] = torch.inf
    settings = {"logits": tiny.plain_logits, "on_nan": "mask", "progress": False}
    first = extract_fishers(model, inputs=inputs[:3], features="dense", **settings)
    second = extract_fishers(model, inputs=inputs[3:], like=first, **settings)
    masked = PEFs.concatenate([first, second]).to_frame()["masked"]
    assert masked.tolist() == [False, False, False, False, True, False]
    assert masked.dtype == bool


def test_texts_that_were_cut_are_counted_together(bert):
    tokenizer = tiny.tokenizer(model_max_length=6)
    with pytest.warns(UserWarning, match="texts are longer"):
        first = extract_fishers(bert, tokenizer, tiny.TEXTS[:4], features="dense", progress=False)
        second = extract_fishers(bert, tokenizer, tiny.TEXTS[4:], like=first, progress=False)
    assert PEFs.concatenate([first, second]).facts["texts_cut"] == 5


def test_nothing_to_join_and_one_alone(shared):
    with pytest.raises(ValueError, match="nothing to concatenate: give at least one PEFs"):
        PEFs.concatenate([])
    assert_equal(PEFs.concatenate([shared]), shared)


def test_parts_with_other_coordinates_are_not_joined(shared, bert, tokenizer):
    other = extract_fishers(bert, tokenizer, tiny.TEXTS, features="sketch", progress=False)
    with pytest.raises(ValueError, match=r"part 1 has other coordinates than part 0: extract it with nb.extract_fishers\(..., like=parts\[0\]\)"):
        PEFs.concatenate([shared, other])
    fewer = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", parameters="MLP in", progress=False)
    with pytest.raises(ValueError, match="part 2 has other coordinates"):
        PEFs.concatenate([shared, shared[:2], fewer])


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (lambda: tiny.bert(), {"fisher": "predicted"}),
        (lambda: tiny.bert(), {"classes": 1}),
        (lambda: tiny.bert(2), {}),
        (lambda: tiny.bert(id2label={0: "a", 1: "b", 2: "c"}), {}),
    ],
    ids=["another Fisher", "fewer classes", "another head", "other names"],
)
def test_parts_that_predict_something_else_are_not_joined(model, settings, shared, tokenizer):
    """Over the same parameters in the same coordinates."""
    other = extract_fishers(model(), tokenizer, tiny.TEXTS, features="dense", progress=False, **settings)
    assert other.feature_map.id == shared.feature_map.id
    with pytest.raises(ValueError, match=r"part 1 predicts \d classes in \d rows, part 0 3 in 2: extract it with the same output= and classes="):
        PEFs.concatenate([shared, other])


def test_scaled_parts_are_not_joined_to_plain_ones(shared, bert, tokenizer):
    """Their rows mean other numbers, in coordinates of the same names."""
    other = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", scale={"MLP": 3.0}, progress=False)
    with pytest.raises(ValueError, match="part 1"):
        PEFs.concatenate([shared, other])


# ------------------------------------------------------------------------------------------------------------------------ files


SAVED = {
    "sketch": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="sketch", progress=False),
    "reduced": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="reduced", budget=6, progress=False),
    "gram": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="gram", progress=False),
    "sparse": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="topk", budget=50, progress=False),
    "diagonal": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="dense", diagonal=True, progress=False),
    "diagonals": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="dense", diagonal=7, progress=False),
    "scale": lambda: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, features="dense", scale={"MLP": 0.1}, progress=False),
    "guesses": lambda: of_language_model(classes=3),
    "guesses by probability": lambda: of_language_model(classes=0.05),
    "drawn": lambda: of_language_model(classes=Sampled(3, seed=4)),
    "turned rows": lambda: of_language_model(classes="all", rank=3),
    "empirical": lambda: of_language_model(tiny.table(6).assign(label="king"), fisher="empirical"),
    "every position": lambda: of_language_model(output=NextToken("every"), classes=2),
    "label words": lambda: of_language_model(output=LabelWords({"a": "king", "b": "the city"}, "{text} is")),
    "words of a text": lambda: extract_fishers(
        tiny.bert_for("TokenClassification"), tiny.tokenizer(), tiny.TEXTS[:3], features="dense", parameters="MLP", progress=False
    ),
    "several labels": lambda: extract_fishers(
        tiny.bert_for("SequenceClassification", num_labels=4, problem_type="multi_label_classification"), tiny.tokenizer(),
        pd.DataFrame({"text": tiny.TEXTS[:3], "label": [[0, 2], [], [1]]}), features="dense", classes=2, progress=False,
    ),
    "masked": lambda: extract_fishers(
        tiny.seeded(tiny.CalledTwice), logits=tiny.plain_logits, inputs=torch.tensor([[1.0] * 6, [torch.nan] * 6]), features="dense", on_nan="mask",
        progress=False,
    ),
    "a number without an axis": lambda: extract_fishers(
        tiny.seeded(tiny.HandMade), logits=tiny.plain_logits, inputs=torch.ones(3, 4, 5), features="dense", parameters="all", progress=False
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:no formula for:UserWarning")
@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED.keys())
def test_every_field_comes_back(make, tmp_path):
    made = make()
    made.facts = json.loads(json.dumps(made.facts))  # as plain data: tuples become lists
    back = nb.load(made.save(tmp_path / "x.pefs"))
    assert_equal(back, made)
    assert back.subject is None
    pd.testing.assert_frame_equal(back.to_frame(), made.to_frame(), check_exact=False, rtol=1e-14, atol=1e-15)
    # And again, from the mapped file onto itself.
    assert_equal(nb.load(back.save(tmp_path / "x.pefs")), made)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pefs"]


def test_factors_are_mapped_and_never_copied_on_load(shared, tmp_path):
    """33 MB on disk; what is read into memory on the way is what is looked at."""
    big = shared[np.zeros(0, int)]
    big.factors = np.zeros((2100, 2, 2000), np.float32)
    big.factors[7, 1, 3] = 5
    big.norms, big.traces, big.logits = np.ones(2100), np.ones(2100), np.zeros((2100, 3), np.float32)
    big.examples, big.columns = pd.DataFrame({"text": ["a"] * 2100}), None
    tracemalloc.start()
    path = big.save(tmp_path / "big.pefs")
    _, peak_saved = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    back = nb.load(path)
    _, peak_loaded = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_saved < big.factors.nbytes / 4
    assert peak_loaded < big.factors.nbytes / 4
    assert isinstance(back.factors, np.memmap)
    assert not back.factors.flags.writeable
    assert str(back.factors.filename) == str(path / "factors.array.safetensors")
    assert (back.factors[7, 1, 3], back.factors.sum()) == (5, 5)
    assert np.shares_memory(back.factors, back.factors[3:9])
    # It is a file like any other of its kind.
    from safetensors.numpy import load_file

    (only,) = load_file(path / "factors.array.safetensors").values()
    assert only.shape == (2100, 2, 2000)


def test_mapped_factors_are_fitted_like_those_in_memory(shared, tmp_path):
    back = nb.load(shared.save(tmp_path / "x.pefs"))
    one, two = (nb.NPEFF(2, n_init=1, random_state=0).fit(p) for p in (shared, back))
    np.testing.assert_array_equal(one.components_, two.components_)
    assert_equal(back[[3, 1]], shared[[3, 1]])


def first_version(shared: PEFs, path):
    """As it was written before large arrays had files of their own, and before anything but a classifier was asked."""
    new = ("fingerprints", "tokenizer", "output", "recipe", "features_why", "diagonal", "on_nan", "inner_product_bound")
    facts = {key: value for key, value in shared.facts.items() if key not in new}
    plain = {key: value for key, value in shared.feature_map.to_json().items() if key in {"kind", "names", "shapes", "seed", "side"}}
    tables = {"examples": shared.examples, "parameters": pefs_module.parameters_to_json(shared.parameters.drop(columns="scale"))}
    arrays = {"factors": shared.factors, "norms": shared.norms, "logits": shared.logits}
    _files.write_folder(path, pefs_module.KIND, arrays, tables, facts | {"classes": shared.classes, "feature_map": plain})
    manifest = json.loads((path / _files.MANIFEST).read_text())
    (path / _files.MANIFEST).write_text(json.dumps(manifest | {"version": 1}))
    return path


def test_a_folder_of_the_first_version_still_opens(shared, tmp_path):
    back = nb.load(first_version(shared, tmp_path / "old.pefs"))
    assert back.family == "categorical"
    assert back.to_frame().columns.tolist() == ["text", "label", "fine_label", "prediction", "probability", "correct", "norm"]
    np.testing.assert_array_equal(back.factors, shared.factors)
    assert_equal(nb.load(back.save(tmp_path / "new.pefs")), back)


def test_a_folder_of_the_first_version_is_of_use(shared, tmp_path):
    """Nothing was scaled then."""
    back = nb.load(first_version(shared, tmp_path / "old.pefs"))
    assert (back.parameters["scale"] == 1).all()
    back.attach(tiny.bert(), tiny.tokenizer())
    one, two = (nb.NPEFF(2, n_init=1, random_state=0).fit(p).direction(0) for p in (shared, back))
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    more = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, like=back, progress=False)
    assert nb.NPEFF(2, n_init=1, random_state=0).fit(back).transform(more).shape == (8, 2)


# ------------------------------------------------------------------------------------------------------------------------ the model behind it


@pytest.fixture
def loaded(shared, tmp_path):
    return nb.load(shared.save(tmp_path / "x.pefs"))


def test_the_model_itself_is_attached_without_a_word(loaded, shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded.attach(tiny.bert(), tiny.tokenizer()) is loaded
    np.testing.assert_allclose(loaded.subject.logits(np.arange(24)).numpy(), shared.logits, atol=1e-5)


def changed(*names: str) -> nn.Module:
    model = tiny.bert()
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(1)
    return model


FOUR = tuple(f"bert.encoder.layer.0.attention.self.{part}.bias" for part in ("query", "key", "value"))
DIFFERENT = {
    "one": (lambda: changed("classifier.bias"), None, r"classifier\.bias has other values"),
    "two": (lambda: changed("classifier.bias", "classifier.weight"), None, r"classifier\.weight, classifier\.bias have other values"),
    "four": (lambda: changed(*FOUR, "classifier.bias"), None, r"query\.bias, .*key\.bias, .*value\.bias and 1 more have other values"),
    "another head": (lambda: tiny.bert(4), None, r"classifier\.weight, classifier\.bias have other values"),
    "another layer": (lambda: tiny.bert(num_hidden_layers=3), None, r"encoder\.layer\.2\.\S+, \S+, \S+ and 13 more are new; .* have other"),
    "another vocabulary": (
        lambda: tiny.bert(), lambda: tiny.tokenizer(mask=True), r"the tokenizer's vocabulary is another one \(\w+; it was \w+\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "tokenizer", "words"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_differs_is_named(model, tokenizer, words, loaded):
    with pytest.warns(UserWarning, match=rf"^this is not the model that these Fishers were taken from: .*{words}") as said:
        loaded.attach(model(), (tokenizer or tiny.tokenizer)())
    assert len(said) == 1
    assert said[0].filename == __file__  # where the person wrote it


class OneLess(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("steady", torch.ones(6))

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)) * self.steady)


def test_what_is_missing_or_new_is_named_where_it_takes_no_part(tmp_path):
    model, inputs = tiny.seeded(OneLess), torch.randn(5, 6)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters=["out.weight"], features="dense", progress=False)
    back = nb.load(pefs.save(tmp_path / "x.pefs"))
    other = nn.Sequential()
    other.first, other.out = nn.Linear(6, 6), model.out
    other.first.weight, other.first.bias = model.first.weight, model.first.bias
    other.more = nn.Linear(1, 1, bias=False)
    with pytest.warns(UserWarning, match=r"taken from: steady is missing; more\.weight is new$"):
        back.attach(other.eval(), logits=lambda m, b: m.out(torch.tanh(m.first(b))), inputs=inputs)
    with torch.no_grad():
        model.steady[0] = 2
    with pytest.warns(UserWarning, match=r"taken from: steady has other values$"):
        back.attach(model, logits=tiny.plain_logits, inputs=inputs)


def test_a_model_that_lacks_a_parameter_is_refused(loaded):
    said = r"this is not the model that the Fishers were taken from \(BertForSequenceClassification\)"
    with pytest.raises(ValueError, match=rf"{said}: they are over 'bert\.encoder\.layer\.1\.\S+' of shape .*the model does not have it"):
        loaded.attach(tiny.bert(num_hidden_layers=1), tiny.tokenizer())
    with pytest.raises(
        ValueError, match=r"'bert\.encoder\.layer\.0\.intermediate.dense\.weight' of shape \(24, 16\), and the model has it with shape \(32, 16\)"
    ):
        loaded.attach(tiny.bert(intermediate_size=32), tiny.tokenizer())
    assert loaded.subject is None


def test_attach_asks_for_what_it_needs(loaded, tmp_path):
    with pytest.raises(TypeError, match=r"attach needs the model's tokenizer \(or inputs= for a model without one\)"):
        loaded.attach(tiny.bert())
    with pytest.raises(ValueError, match="training mode"):
        loaded.attach(tiny.bert().train(), tiny.tokenizer())
    pefs = extract_fishers(tiny.seeded(OneLess), logits=tiny.plain_logits, inputs=torch.randn(5, 6), features="dense", progress=False)
    back = nb.load(pefs.save(tmp_path / "y.pefs"))
    with pytest.raises(ValueError, match="inputs has 4 examples, the Fishers 5"):
        back.attach(tiny.seeded(OneLess), logits=tiny.plain_logits, inputs=torch.randn(4, 6))


def test_a_tokenizer_that_gives_other_examples_is_refused(tmp_path):
    pefs = of_language_model(tiny.TEXTS[:3], output=NextToken("every"), classes=2)
    back = nb.load(pefs.save(tmp_path / "x.pefs"))
    with (
        pytest.raises(ValueError, match=r"with this tokenizer the texts give \d+ examples, not \d+: attach the tokenizer of the extraction"),
        pytest.warns(UserWarning, match="vocabulary is another one"),
    ):
        back.attach(tiny.gpt2_for("LMHeadModel"), tiny.bytes_tokenizer())
