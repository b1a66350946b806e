"""The container: choosing examples, keeping them on disk, the cache."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import npeff_nb as nb
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.pefs import PEFs


def assert_equal(a: PEFs, b: PEFs) -> None:
    for name in ("factors", "norms", "logits"):
        one, two = getattr(a, name), getattr(b, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    pd.testing.assert_frame_equal(a.examples, b.examples)
    pd.testing.assert_frame_equal(a.parameters, b.parameters)
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


def test_the_cache_gives_equal_arrays_and_does_not_run_the_model(bert, tokenizer, tmp_path, monkeypatch):
    first = extract_fishers(bert, tokenizer, tiny.table(6), cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(type(bert), "forward", lambda *a, **k: pytest.fail("the model was run"))
    again = extract_fishers(bert, tokenizer, tiny.table(6), cache=tmp_path, progress=False)
    assert_equal(again, first)
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
