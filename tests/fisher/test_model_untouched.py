"""The caller's model: as it was, bit for bit, after success, error and Ctrl-C."""

from __future__ import annotations

import pytest
import tiny
import torch
import twins
from torch import nn

from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import SequenceClasses
from npeff_nb.fisher.provenance import differences, fingerprint, fingerprints


@pytest.fixture
def particular(bert):
    """A model with a caller's own doings: some parameters frozen, a gradient waiting, a hook of theirs."""
    bert.classifier.bias.requires_grad_(False)
    bert.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    bert.bert.pooler.dense.weight.grad = torch.ones_like(bert.bert.pooler.dense.weight)
    bert.bert.pooler.register_forward_hook(lambda module, inputs, output: None)
    return bert


@pytest.mark.parametrize("parameters", ["default", "all"])
@pytest.mark.parametrize("features", ["dense", "sketch"])
def test_after_success(parameters, features, particular, tokenizer):
    before = twins.state(particular)
    extract_fishers(particular, tokenizer, tiny.TEXTS, features=features, parameters=parameters, progress=False)
    twins.assert_untouched(particular, before)


def failing_on_call(number: int, error: type[BaseException]):
    """``logits=`` that runs the model and then raises on its ``number``-th call.

    The first call counts classes and the next five look whether all uses of the parameters are seen; 7 is the first batch.
    """
    calls = []

    def logits(model, batch):
        z = SequenceClasses().logits(model, batch)
        calls.append(1)
        if len(calls) == number:
            raise error("stopped here")
        return z

    return logits


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", range(1, 9))
def test_after_an_error_or_an_interrupt(error, call, particular, tokenizer):
    before = twins.state(particular)
    with pytest.raises(error, match="stopped here"):
        extract_fishers(particular, tokenizer, tiny.TEXTS, batch_size=2, progress=False, logits=failing_on_call(call, error))
    twins.assert_untouched(particular, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [3, 5, 8])
def test_after_an_error_inside_the_forward_pass(call, error, particular, tokenizer):
    """In the middle of the network, with hooks on the layers before and behind."""
    calls = []

    def stop(module, inputs):
        calls.append(1)
        if len(calls) == call:
            raise error("stopped here")

    particular.bert.encoder.layer[1].register_forward_pre_hook(stop)
    before = twins.state(particular)
    with pytest.raises(error, match="stopped here"):
        extract_fishers(particular, tokenizer, tiny.TEXTS, batch_size=2, progress=False)
    twins.assert_untouched(particular, before)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_after_an_interrupt_in_a_backward_pass(call, particular, tokenizer, monkeypatch):
    calls, grad = [], torch.autograd.grad

    def stop(*arguments, **settings):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return grad(*arguments, **settings)

    monkeypatch.setattr(torch.autograd, "grad", stop)
    before = twins.state(particular)
    with pytest.raises(KeyboardInterrupt):
        extract_fishers(particular, tokenizer, tiny.TEXTS, batch_size=2, progress=False)
    twins.assert_untouched(particular, before)


class BuildsItsMaskOnFirstUse(nn.Module):
    """Keeps a buffer from its first forward pass, as lazily made masks and position tables do."""

    def __init__(self):
        super().__init__()
        self.inner, self.out, self.scale = nn.Linear(4, 4), nn.Linear(4, 3), None

    def forward(self, x):
        if self.scale is None:
            self.scale = torch.linspace(1, 2, 4)
        return self.out(torch.tanh(self.inner(x) * self.scale))


def test_what_a_model_keeps_from_our_forward_pass_still_trains():
    """A tensor made under ``inference_mode`` never takes part in autograd again: the model would be spoilt for its owner, and for us."""
    model, inputs = tiny.seeded(BuildsItsMaskOnFirstUse), torch.randn(3, 4)
    extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, features="dense", progress=False)
    model(inputs).sum().backward()
    assert model.inner.weight.grad is not None


def test_training_mode_is_refused_and_left_as_it_is(bert, tokenizer):
    bert.bert.encoder.layer[1].train()
    before = twins.state(bert)
    with pytest.raises(ValueError, match=r"\(BertForSequenceClassification\) is in training mode.*call model.eval\(\) first"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, progress=False)
    twins.assert_untouched(bert, before)


def test_fingerprint_tells_single_bits_apart(bert):
    before = fingerprints(bert)
    first = fingerprint(before)
    assert fingerprint(fingerprints(tiny.bert())) == first
    assert differences({"fingerprints": before}, bert) == []
    with torch.no_grad():
        value = bert.classifier.bias
        value[0] = torch.nextafter(value[0], torch.tensor(9.0))
    assert fingerprint(fingerprints(bert)) != first
    assert differences({"fingerprints": before}, bert) == ["classifier.bias has other values"]
