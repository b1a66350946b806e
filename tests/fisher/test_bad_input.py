"""What is refused, and in which words: what came in, what is allowed, what to do."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch import nn

from npeff_nb.fisher.batches import examples_table, longest_input
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import texts_as_batches


@pytest.mark.parametrize(
    ("examples", "error", "words"),
    [
        (pd.DataFrame({"text": []}), ValueError, "examples is empty"),
        ([], ValueError, "examples is empty"),
        (pd.DataFrame({"question": ["a"], "y": [1]}), ValueError, "no column 'text'; its columns are 'question', 'y': rename"),
        (pd.DataFrame(), ValueError, "its columns are none"),
        (["a", None], ValueError, "row 1 of 'text' is (None|nan), not a string: drop or fill these rows first"),
        (["a", 3, 4.5], ValueError, r"row 1 of 'text' is 3, not a string \(2 rows like it\)"),
        (pd.DataFrame({"text": ["a", np.nan]}), ValueError, "row 1 of 'text' is nan, not a string"),
        (pd.DataFrame({"text": ["a"], "text_pair": [None]}), ValueError, "row 0 of 'text_pair' is None"),
        ("what is it", TypeError, "examples is one string; give a list of texts"),
        (7, TypeError, "examples is a int; give a list of texts"),
    ],
)
def test_examples_that_are_none(examples, error, words, bert, tokenizer):
    with pytest.raises(error, match=words):
        extract_fishers(bert, tokenizer, examples, progress=False)


class LikeADataset:
    def to_pandas(self):
        return pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}, index=[5, 9])


def test_a_dataset_is_taken_as_a_table_with_a_fresh_index():
    table = examples_table(LikeADataset())
    assert table.index.tolist() == [0, 1]
    assert table.columns.tolist() == ["text", "label"]


def test_the_caller_s_table_is_not_changed(bert, tokenizer):
    mine = pd.DataFrame({"text": tiny.TEXTS[:2]}, index=[7, 3])
    extract_fishers(bert, tokenizer, mine, progress=False)
    assert mine.index.tolist() == [7, 3]
    assert mine.columns.tolist() == ["text"]


@pytest.mark.parametrize(("given", "words"), [({"examples": ["a"]}, "needs tokenizer="), ({"tokenizer": tiny.tokenizer()}, "needs examples=")])
def test_missing_arguments_are_named(given, words, bert):
    with pytest.raises(TypeError, match=words):
        extract_fishers(bert, **given)


def test_unknown_features(bert, tokenizer):
    with pytest.raises(ValueError, match="features='everything' is not known; choose one of 'auto', 'dense', 'reduced', 'sketch', 'topk', 'gram'"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, features="everything")


def test_a_regression_head_has_no_distribution(tokenizer):
    with pytest.raises(ValueError, match=r"BertForSequenceClassification is a regression head \(1 number, no class\): a Fisher needs a distribution"):
        extract_fishers(tiny.bert(1), tokenizer, tiny.TEXTS, progress=False)


def test_one_class_is_no_distribution_either():
    with pytest.raises(ValueError, match=r"the model has 1 class: a Fisher needs a distribution over at least 2"):
        extract_fishers(nn.Linear(3, 1).eval(), logits=tiny.plain_logits, inputs=torch.randn(4, 3), progress=False)


def test_logits_that_are_not_finite_are_counted(bert, tokenizer):
    def poisoned(model, batch):
        z = model(**batch).logits
        return torch.where(batch["input_ids"].eq(tokenizer.convert_tokens_to_ids("where")).any(1, keepdim=True), torch.nan, z)

    with pytest.raises(ValueError, match=r"logits that are not finite for 1 of 8 examples in one batch, the first being row 3: check the input"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, logits=poisoned, batch_size=8, progress=False)


class RootAtZero(nn.Module):
    """√|x| at zero: the value is fine, its slope is not."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(self.inner(x).abs().sqrt())


def test_gradients_that_are_not_finite_are_counted():
    inputs = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.5, 1.0]])
    model = tiny.seeded(RootAtZero)
    assert torch.isfinite(model(inputs)).all()
    with pytest.raises(ValueError, match="gradients are not finite for 1 of 3 examples in one batch, the first being row 1, although its logits are"):
        extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, progress=False)


def test_over_long_texts_are_cut_and_counted(bert):
    tokenizer = tiny.tokenizer(model_max_length=6)
    with pytest.warns(UserWarning, match="5 of 8 texts are longer than the 6 tokens that the model takes and are cut"):
        pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, progress=False)
    assert pefs.subject.batches.lengths.max() == 6 and pefs.facts["texts_cut"] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        extract_fishers(bert, tokenizer, tiny.TEXTS[4:5], progress=False)


def test_the_model_s_own_limit_counts_where_the_tokenizer_knows_none(bert, tokenizer):
    assert longest_input(bert, tokenizer) == 32
    assert longest_input(bert, tiny.tokenizer(model_max_length=6)) == 6
    assert longest_input(nn.Linear(1, 1), tokenizer) is None
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 32 tokens"):
        extract_fishers(bert, tokenizer, ["what", "king " * 40], progress=False)


def test_a_text_without_tokens_is_named(bert):
    tokenizer = tiny.tokenizer()
    bare = tokenizer.backend_tokenizer
    bare.post_processor = type(bare.post_processor)(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    with pytest.raises(ValueError, match="row 1 gives no tokens at all"):
        extract_fishers(bert, tokenizer, ["what", ""], progress=False)


def test_layers_without_a_formula_are_named_in_one_warning():
    """That they are run again costs time, and nothing else (tests/fisher/test_architectures.py): the person may leave them out."""
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Conv1d(3, 3, 1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        extract_fishers(model, logits=tiny.plain_logits, inputs=torch.randn(9, 2, 2), parameters="all", batch_size=3, progress=False)
    assert [str(w.message) for w in said] == [
        "no formula for Conv1d (4 parameters, 0.weight first): these modules are run again for every example, slower and as exact"
    ]


def test_a_layer_that_is_left_out_is_not_warned_of():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=torch.randn(2, 2, 2), parameters=["2.weight"], progress=False)
    assert pefs.factors.shape == (2, 1, 6)


def test_logits_cut_off_from_the_graph_are_explained(bert, tokenizer):
    """The likeliest slip in a function for ``logits=``."""

    def detached(model, batch):
        with torch.no_grad():
            return model(**batch).logits

    with pytest.raises(ValueError, match=r"logits carry no gradient.*no_grad"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, logits=detached, progress=False)


def test_all_zero_fishers(bert, tokenizer):
    def certain(model, batch):
        return model(**batch).logits * 0 + torch.tensor([1000.0, 0.0, 0.0])

    with pytest.raises(ValueError, match="all 8 Fishers are zero: the predictions are certain to machine precision"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, logits=certain, progress=False)


def test_parameters_that_the_forward_pass_does_not_use():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(x)

    with pytest.raises(ValueError, match=r"none of the 1 chosen parameters, 'idle.weight' first, was used by the model's forward pass"):
        extract_fishers(Idle().eval(), logits=tiny.plain_logits, inputs=torch.randn(2, 3), parameters=["idle.weight"], progress=False)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2), (2, 3)])
def test_logits_of_another_shape_are_refused_by_their_shape(shape):
    model = nn.Linear(3, 2).eval()

    def wrong(model, batch):
        return torch.zeros(shape[0] if len(batch) > 1 else 1, *shape[1:]) + model(batch).sum()

    with pytest.raises(ValueError, match=r"logits have shape .* for \d+ examples; expected \(\d+, classes\)"):
        extract_fishers(model, logits=wrong, inputs=torch.randn(4, 3), progress=False)


def test_a_model_that_is_no_sequence_classifier_is_pointed_to_logits(tokenizer, bert):
    with pytest.raises(ValueError, match=r"BertModel gives logits of shape None; expected \(examples, classes\).*pass output= or logits="):
        extract_fishers(bert.bert, tokenizer, tiny.TEXTS, progress=False)


@pytest.mark.parametrize(
    ("inputs", "examples", "words"),
    [
        ({"a": torch.zeros(3), "b": torch.zeros(2)}, None, "the inputs differ in length"),
        (torch.zeros(3, 2), pd.DataFrame({"name": ["x"]}), "examples has 1 rows for 3 inputs"),
        (torch.zeros(0, 2), None, "inputs is empty"),
        (torch.zeros(3, 2), ["x"], "examples has 1 rows for 3 inputs"),
    ],
)
def test_inputs_that_do_not_fit(inputs, examples, words):
    with pytest.raises(ValueError, match=words):
        extract_fishers(nn.Linear(2, 2).eval(), logits=tiny.plain_logits, inputs=inputs, examples=examples, progress=False)


def test_batches_hold_every_row_once_longest_first(bert, tokenizer):
    batches = texts_as_batches(bert, tokenizer, pd.DataFrame({"text": tiny.TEXTS}), 3)
    rows = batches.batches()
    assert sorted(np.concatenate(rows)) == list(range(8))
    assert [len(b) for b in rows] == [3, 3, 2]
    assert (np.diff(batches.lengths[np.concatenate(rows)]) <= 0).all()
    assert sorted(np.concatenate(batches.batches(np.array([6, 1])))) == [1, 6]
