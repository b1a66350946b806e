"""Extraction against the definition F = Σ_y p_y ∇log p_y ∇log p_yᵀ, by autograd alone in float64, one example at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from torch import nn

from npeff_nb.fisher.completeness import LOOKS
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import SequenceClasses

# Rows are made in float32 (6e-8 a rounding) through about 20 layers' worth of sums; a Fisher is quadratic in them.  A wrong term is off by
# far more: the smallest part of these models, one bias, holds 1e-4 of the energy.
FLOAT32 = 1e-5


def assert_fishers(pefs, model, logits_of, single, names=None) -> None:
    """Every Fisher and its norm against brute force; ``single(i)`` is example i alone, unpadded."""
    names = list(pefs.parameters["name"]) if names is None else names
    for i in range(len(pefs)):
        expected = twins.fisher_rows(model, logits_of, single(i), names)
        assert twins.relative_distance(pefs.factors[i], expected) < FLOAT32, f"example {i}"
        assert pefs.norms[i] == pytest.approx(twins.frobenius(expected), rel=FLOAT32), f"example {i}"


def alone(tokenizer, texts):
    return lambda i: dict(tokenizer([texts[i]], return_tensors="pt"))


@pytest.mark.parametrize(("classes", "attention"), [(2, "eager"), (3, "eager"), (6, "eager"), (3, "sdpa")])
def test_bert_all_parameters_padded_batches(classes, attention, tokenizer):
    model = tiny.bert(classes, attention=attention)
    pefs = extract_fishers(model, tokenizer, tiny.TEXTS, features="dense", parameters="all", batch_size=4, progress=False)
    assert pefs.factors.shape == (len(tiny.TEXTS), classes - 1, sum(p.numel() for p in model.parameters()))
    assert_fishers(pefs, model, SequenceClasses().logits, alone(tokenizer, tiny.TEXTS))


def test_bert_text_pairs_use_both_token_types(tokenizer):
    model = tiny.bert()
    pairs = pd.DataFrame({"text": tiny.TEXTS[:4], "text_pair": tiny.TEXTS[4:]})
    pefs = extract_fishers(model, tokenizer, pairs, features="dense", parameters="all", batch_size=3, progress=False)

    def single(i):
        return dict(tokenizer([tiny.TEXTS[i]], [tiny.TEXTS[4 + i]], return_tensors="pt"))

    assert single(0)["token_type_ids"].any()
    assert_fishers(pefs, model, SequenceClasses().logits, single)


def test_gpt2_all_parameters_padded_batches(tokenizer):
    model = tiny.gpt2()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # GPT-2 would look token types up among its words
    pefs = extract_fishers(model, tokenizer, tiny.TEXTS, features="dense", parameters="all", batch_size=4, progress=False)
    assert_fishers(pefs, model, SequenceClasses().logits, alone(tokenizer, tiny.TEXTS))


def test_eager_and_sdpa_attention_agree(tokenizer):
    by_kind = [extract_fishers(tiny.bert(attention=kind), tokenizer, tiny.TEXTS, features="dense", progress=False) for kind in ("eager", "sdpa")]
    for i in range(len(tiny.TEXTS)):
        assert twins.relative_distance(by_kind[0].factors[i], by_kind[1].factors[i]) < FLOAT32


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


class PadsItsTable(nn.Module):
    """A looked-up table with a padding row, which autograd gives no gradient."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(6, 4, padding_idx=1), nn.Linear(4, 3)

    def forward(self, ids):
        return self.out(torch.tanh(self.table(ids)).sum(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.5, 2, 5))

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.first(x))))


MODULES = {
    "convolutions": (tiny.ConvNet, numbers(7, 2, 9, 11)),
    "two modules, one weight": (tiny.TwoLinearsOneWeight, numbers(7, 6)),
    "two modules, one weight, with positions": (tiny.TwoLinearsOneWeight, numbers(7, 4, 6)),
    "embedding tied to linear": (tiny.EmbeddingIsAlsoLinear, torch.tensor([[1, 2, 2], [0, 6, 3], [4, 4, 4], [5, 0, 1]])),
    "one module called twice": (tiny.CalledTwice, numbers(7, 6)),
    "outputs overwritten in place": (tiny.InPlace, numbers(7, 6)),
    "padding row of a table": (PadsItsTable, torch.tensor([[1, 2, 2], [0, 1, 3], [4, 4, 1], [1, 1, 1]])),
    "layer norm": (Normed, numbers(7, 6)),
    "layer norm over positions": (Normed, numbers(7, 4, 6)),
}


@pytest.mark.parametrize(("make", "inputs"), MODULES.values(), ids=MODULES.keys())
def test_any_module_through_inputs_and_logits(make, inputs):
    model = tiny.seeded(make)

    def logits(model, batch):
        z = model(batch)
        return z if z.ndim == 2 else z.mean(1)

    pefs = extract_fishers(model, logits=logits, inputs=inputs, parameters="all", features="dense", batch_size=3, progress=False)
    assert_fishers(pefs, model, logits, lambda i: inputs[i : i + 1])


def test_inputs_may_be_a_dictionary(tokenizer, bert):
    """The same encoded texts as through the tokenizer: the same Fishers."""
    encoded = dict(tokenizer(tiny.TEXTS, padding=True, return_tensors="pt"))
    given = extract_fishers(bert, inputs=encoded, features="dense", progress=False)
    read = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", batch_size=8, progress=False)
    assert len(given.examples) == len(given) == 8
    for i in range(8):
        assert twins.relative_distance(given.factors[i], read.factors[i]) < FLOAT32


def test_a_function_of_the_model_s_own_output_replaces_the_classifier_s(tokenizer, bert):
    """A yes/no question about the model, made from its three classes."""

    def yes_or_no(model, batch):
        z = model(**batch).logits
        return torch.stack([z[:, 0], torch.logsumexp(z[:, 1:], 1)], 1)

    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", logits=yes_or_no, progress=False)
    assert pefs.factors.shape[1] == 1
    assert_fishers(pefs, bert, yes_or_no, alone(tokenizer, tiny.TEXTS))


@pytest.mark.parametrize("choice", ["*layer.0*", "MLP out", ["classifier.weight"]])
def test_norms_are_those_of_the_parameters_that_take_part(choice, tokenizer, bert):
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", parameters=choice, progress=False)
    assert_fishers(pefs, bert, SequenceClasses().logits, alone(tokenizer, tiny.TEXTS))


def test_norms_are_exact_whatever_is_kept(tokenizer, bert, monkeypatch):
    from npeff_nb.fisher import features

    monkeypatch.setattr(features, "SKETCH_FEATURES", 14 * 4)  # a sketch so narrow that its own inner products would be far off
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="sketch", progress=False)
    for i in range(len(pefs)):
        expected = twins.fisher_rows(bert, SequenceClasses().logits, alone(tokenizer, tiny.TEXTS)(i), list(pefs.parameters["name"]))
        assert pefs.norms[i] == pytest.approx(twins.frobenius(expected), rel=FLOAT32)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_one_backward_per_row_and_batch(classes, tokenizer, monkeypatch):
    """c classes cost c − 1 backward passes a batch, a binary task exactly one; what a run costs once does not grow with it."""
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    counted = {}
    for batches in (2, 4):
        calls.clear()
        extract_fishers(tiny.bert(classes), tokenizer, tiny.TEXTS, features="dense", batch_size=8 // batches, progress=False)
        counted[batches] = len(calls)
    assert counted[4] - counted[2] == (classes - 1) * 2
    assert counted[2] - (classes - 1) * 2 <= 2 * LOOKS  # a check before the loop, at most


def test_results_stand_in_the_order_of_the_examples(tokenizer, bert):
    """Batches are made by length; results are not."""
    some = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", batch_size=2, progress=False)
    for i, text in enumerate(tiny.TEXTS):
        with torch.no_grad():
            z = bert(**tokenizer([text], return_tensors="pt")).logits[0]
        np.testing.assert_allclose(some.logits[i], z.numpy(), atol=1e-5)  # float32, other padding
    assert some.examples["text"].tolist() == tiny.TEXTS


def test_energy_is_each_parameter_s_mean_share_of_the_trace(tokenizer, bert):
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", parameters="all", progress=False)
    assert pefs.parameters["energy"].sum() == pytest.approx(1, abs=1e-12)
    squared = (pefs.factors.astype(np.float64) ** 2).sum(1)
    squared /= squared.sum(1, keepdims=True)
    at = np.cumsum([0, *pefs.parameters["numel"]])
    expected = [squared[:, a:b].sum(1).mean() for a, b in pairwise(at)]
    np.testing.assert_allclose(pefs.parameters["energy"], expected, rtol=1e-4, atol=1e-8)  # float32 sums


def test_a_parameter_that_the_forward_pass_skips_is_reported(bert, tokenizer):
    bert.bert.encoder.layer[1].forward = lambda hidden, *a, **k: hidden
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS[:2], features="dense", progress=False)
    assert len(pefs.facts["unused_parameters"]) == 6
    assert all("layer.1." in name for name in pefs.facts["unused_parameters"])
    assert pefs.parameters.loc[pefs.parameters["name"].isin(pefs.facts["unused_parameters"]), "energy"].eq(0).all()


class UsedWithoutItsModule(nn.Module):
    """A table looked up by its module and read out by a function, as many small language models write their tied head."""

    def __init__(self):
        super().__init__()
        self.table, self.middle = nn.Embedding(7, 5), nn.Linear(5, 5)

    def forward(self, ids):
        return nn.functional.linear(torch.tanh(self.middle(self.table(ids))), self.table.weight).mean(1)


def test_a_parameter_used_outside_its_module_is_never_silently_wrong():
    """Hooks cannot see this use: right Fishers or an error are both fine, wrong Fishers are not."""
    model, inputs = tiny.seeded(UsedWithoutItsModule), torch.tensor([[1, 2, 2], [0, 6, 3], [4, 4, 4], [5, 0, 1]])
    try:
        pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", features="dense", progress=False)
    except (ValueError, NotImplementedError) as error:
        assert "table.weight" in str(error)
    else:
        assert_fishers(pefs, model, tiny.plain_logits, lambda i: inputs[i : i + 1])


class OverwritesAnInput(nn.Module):
    """What a layer was given is another number afterwards: autograd itself refuses to train this."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x)
        y = self.second(h)
        h.mul_(3)
        return self.out(torch.tanh(y) + h)


def test_an_input_that_is_overwritten_is_never_silently_wrong():
    model, inputs = tiny.seeded(OverwritesAnInput), numbers(4, 6)
    with pytest.raises((ValueError, NotImplementedError, RuntimeError), match=r"in.?place"):
        extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, features="dense", progress=False)


class CalledByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(input=torch.tanh(self.first(input=x)))


def test_a_layer_may_be_called_by_keyword():
    model, inputs = tiny.seeded(CalledByKeyword), numbers(4, 6)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", features="dense", progress=False)
    assert_fishers(pefs, model, tiny.plain_logits, lambda i: inputs[i : i + 1])


def test_a_frozen_model_and_a_caller_s_no_grad_change_nothing(tokenizer, bert):
    expected = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", progress=False)
    bert.requires_grad_(False)
    with torch.no_grad():
        found = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", progress=False)
    np.testing.assert_array_equal(found.factors, expected.factors)


def test_what_was_done_is_written_down(tokenizer, bert):
    pefs = extract_fishers(bert, tokenizer, tiny.table(6), features="dense", progress=False)
    assert pefs.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert pefs.facts["energy_kept"] == pytest.approx(1)
    assert pefs.facts["unused_parameters"] == []
    assert set(pefs.facts["versions"]) == {"npeff-nb", "torch", "transformers"}
    assert pefs.examples.columns.tolist() == ["text", "label", "fine_label"]
