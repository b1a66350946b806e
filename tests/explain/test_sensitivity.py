"""Sensitivities to the input embeddings against finite differences of the Fisher's energy, all in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import readers
import tiny
import torch
import twins
from torch import nn

from npeff_nb.explain.sensitivity import input_sensitivity
from npeff_nb.explain.tokens import words
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import LabelWords, Sampled
from npeff_nb.fisher.subject import Subject

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*examples go one by one:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # of its own forward mode
]

STEP = 1e-4
"""Of a central difference: its own error is about STEP² = 1e-8, rounding 1e-16/STEP = 1e-12."""
DIFFERENCES = {"rtol": 1e-5, "atol": 1e-6}
WIDTH = 4
"""Of embeddings where every dimension is stepped along."""
WIDE_STEP, WIDE_DIFFERENCES = 1e-2, {"rtol": 2e-3, "atol": 1e-3}
"""For Llama and T5, which norm in float32 whatever they are given: rounding is 1e-7/WIDE_STEP = 1e-5 and the difference's own error 1e-4, both times
slopes of the order of 10."""


def log_energy(
    subject: Subject, direction: dict[str, torch.Tensor], row: int, change: Callable[[torch.Tensor], torch.Tensor], logits: Callable | None = None
) -> float:
    """log gᵀF g of one example, from the gradients of every class's log-probability, with the text's embeddings (copies, T, width) changed."""
    model = readers.double_of(subject)
    ids = subject.batches.batch(np.array([row]))["input_ids"]
    table = model.get_input_embeddings()

    def hook(module, looked_up, embedded):
        return change(embedded) if looked_up[0].numel() == ids.numel() and torch.equal(looked_up[0].flatten(), ids.flatten()) else None

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight]
    z = (logits or readers.decomposed_logits)(subject, model, row)
    for handle in handles:
        handle.remove()
    chosen = [dict(model.named_parameters())[name] for name in direction]
    g = torch.cat([value.double().flatten() for value in direction.values()])
    if subject.recipe.family == "bernoulli":
        p = torch.sigmoid(z.detach())
        return float(torch.stack([w * (twins.flat_gradients(v, chosen) @ g) ** 2 for w, v in zip(p * (1 - p), z, strict=True)]).sum().log())
    log_p = torch.log_softmax(z, -1)
    return float(torch.stack([v.detach().exp() * (twins.flat_gradients(v, chosen) @ g) ** 2 for v in log_p]).sum().log())


def difference(value: Callable[[float], float], step: float = STEP) -> float:
    return (value(step) - value(-step)) / (2 * step)


def scaled_differences(
    subject: Subject, direction: dict[str, torch.Tensor], row: int, logits: Callable | None = None, step: float = STEP
) -> tuple[np.ndarray, float]:
    """What input_sensitivity gives, signed: each position's embedding made a little longer and shorter."""
    own = len(subject.batches.encoded["input_ids"][row])
    width = subject.batches.batch(np.array([row]))["input_ids"].shape[-1]

    def at(where: slice) -> float:
        def value(step: float) -> float:
            def change(embedded: torch.Tensor) -> torch.Tensor:
                more = torch.zeros(width, 1, dtype=torch.float64)
                more[where] = step
                return embedded + more * embedded.detach()  # the parameters are held, the table among them

            return log_energy(subject, direction, row, change, logits)

        return difference(value, step)

    return np.array([at(slice(t, t + 1)) for t in range(own)]), at(slice(own, None)) if width > own else 0.0


@pytest.mark.parametrize("name", readers.READERS)
def test_signed_sensitivities_are_the_differences(name):
    pefs = readers.fishers(name, double=True, texts=["who is a king", "when"])
    direction = readers.random_direction(pefs.subject, list(pefs.parameters["name"]))
    before = twins.state(pefs.subject.model)
    found = input_sensitivity(pefs.subject, direction, np.array([1, 0]))
    twins.assert_untouched(pefs.subject.model, before)
    assert sorted(found) == [0, 1]
    for row, (of_tokens, rest) in found.items():
        single = name.startswith(("Llama", "T5"))
        expected, behind = scaled_differences(pefs.subject, direction, row, step=WIDE_STEP if single else STEP)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose([*of_tokens, rest], [*expected, behind], **(WIDE_DIFFERENCES if single else DIFFERENCES))


@pytest.mark.parametrize("name", ["BERT", "GPT-2, long words"])
def test_unsigned_sensitivities_are_the_gradients_lengths(name):
    if name == "BERT":
        model, tokenizer, output = readers.bert(hidden_size=WIDTH), tiny.tokenizer(), None
    else:
        model, tokenizer, output = tiny.gpt2_for("LMHeadModel", n_embd=WIDTH), tiny.tokenizer(types=False), LabelWords(["king", "a city"])
    pefs = extract_fishers(model.double(), tokenizer, ["who", "the king"], output=output, parameters="MLP", features="sketch", progress=False)
    direction = readers.random_direction(pefs.subject, list(pefs.parameters["name"]))
    of_tokens, rest = input_sensitivity(pefs.subject, direction, np.array([0]), signed=False)[0]
    own = len(pefs.subject.batches.encoded["input_ids"][0])
    batch = pefs.subject.batches.batch(np.array([0]))["input_ids"]
    copies, width = batch.numel() // batch.shape[-1], batch.shape[-1]

    def slope(where, dimension: int) -> float:
        def value(step: float) -> float:
            added = torch.zeros(copies, width, WIDTH, dtype=torch.float64)
            added[(*where, dimension)] = step
            return log_energy(pefs.subject, direction, 0, lambda embedded: embedded + added)

        return difference(value)

    # A prompt is one, however often it is read; class words are each their own.
    expected = [np.linalg.norm([slope((slice(None), t), j) for j in range(WIDTH)]) for t in range(own)]
    np.testing.assert_allclose(of_tokens, expected, **DIFFERENCES)
    behind = [slope((i, t), j) for i in range(copies) for t in range(own, width) for j in range(WIDTH)]
    assert bool(behind) == (name != "BERT")
    assert rest == pytest.approx(np.linalg.norm(behind) if behind else 0, rel=1e-5, abs=1e-6)


def test_neither_length_nor_sign_of_the_direction_matters_nor_the_batch(npeff):
    direction = npeff.direction(0)
    rows = np.array([4, 0, 7, 12])
    together = input_sensitivity(npeff.subject, direction, rows)
    longer = input_sensitivity(npeff.subject, {name: -3 * value for name, value in direction.items()}, rows)
    for row in rows:
        alone = input_sensitivity(npeff.subject, direction, np.array([row]))[row]
        scale = np.abs(alone[0]).max()
        # float32, through other sums where a batch is padded.
        np.testing.assert_allclose(together[row][0], alone[0], atol=1e-4 * scale)
        np.testing.assert_allclose(longer[row][0], alone[0], atol=1e-4 * scale)
        assert alone[1] == 0
        assert together[row][1] == pytest.approx(0, abs=1e-6)  # padding is not felt


def test_single_precision_is_near_double(npeff, tokenizer):
    double = extract_fishers(tiny.bert().double(), tokenizer, tiny.table(), features="dense", progress=False).subject
    direction, rows = npeff.direction(1), np.arange(6)
    exact = input_sensitivity(double, {name: value.double() for name, value in direction.items()}, rows)
    for row, (found, _) in input_sensitivity(npeff.subject, direction, rows).items():
        np.testing.assert_allclose(found, exact[row][0], atol=1e-3 * np.abs(exact[row][0]).max())


def test_it_goes_onto_the_words(npeff):
    found, _ = input_sensitivity(npeff.subject, npeff.direction(0), np.array([2]))[2]
    text = npeff.examples["text"][2]
    spoken, asides = words(npeff.subject.tokenizer, text, found)
    assert "".join((" " if w["space"] else "") + w["text"] for w in spoken) == text
    assert sum(w["share"] for w in spoken) + sum(a["share"] for a in asides) == pytest.approx(found.sum(), abs=1e-9)


@pytest.mark.parametrize("task", ["independent labels", "few outcomes kept", "drawn labels"])
def test_the_response_is_that_of_what_was_asked(task):
    """Of the coarse prediction where outcomes were put together; of the whole one where labels stand for it."""
    settings = {"problem_type": "multi_label_classification"} if task == "independent labels" else {}
    model = tiny.bert_for("SequenceClassification", num_labels=6, **settings).double()
    classes = {"few outcomes kept": 2, "drawn labels": Sampled(3)}.get(task, "auto")
    pefs = extract_fishers(model, tiny.tokenizer(), readers.TEXTS[:2], classes=classes, features="sketch", progress=False)
    direction = readers.random_direction(pefs.subject, list(pefs.parameters["name"]))

    def all_logits(subject, model, row):
        return subject.output.logits(model, subject.batches.batch(np.array([row])))[0]

    for row, (of_tokens, _) in input_sensitivity(pefs.subject, direction, np.arange(2)).items():
        expected, _ = scaled_differences(pefs.subject, direction, row, all_logits if task == "drawn labels" else None)
        np.testing.assert_allclose(of_tokens, expected, **DIFFERENCES)


@pytest.mark.parametrize("fisher", ["predicted", "empirical"])
@pytest.mark.parametrize("labels", [1, 3])
def test_the_gradient_of_one_label(labels, fisher):
    settings = {"problem_type": "multi_label_classification"} if labels > 1 else {}
    model = tiny.bert_for("SequenceClassification", num_labels=3, **settings).double()
    gold = [1, 0] if labels == 1 else [[0, 1, 1], [1, 0, 0]]
    examples = {"text": readers.TEXTS[:2], "label": gold}
    pefs = extract_fishers(model, tiny.tokenizer(), pd.DataFrame(examples), fisher=fisher, features="sketch", progress=False)
    subject, direction = pefs.subject, readers.random_direction(pefs.subject, list(pefs.parameters["name"]))
    names = list(direction)

    def value_of(row: int, t: int) -> Callable[[float], float]:
        def value(step: float) -> float:
            double = copy.deepcopy(model)

            def hook(module, looked_up, embedded):
                more = torch.zeros(embedded.shape[1], 1, dtype=torch.float64)
                more[t] = step
                return embedded + more * embedded.detach()

            double.get_input_embeddings().register_forward_hook(hook)
            z = double(**tiny.tokenizer()([readers.TEXTS[row]], return_tensors="pt")).logits[0]
            (a,) = twins.rows_of_logits(double, z, names, subject.recipe.family, fisher, gold[row])
            return float(np.log((a @ torch.cat([direction[name].flatten() for name in names]).numpy()) ** 2))

        return value

    for row, (of_tokens, _) in input_sensitivity(subject, direction, np.arange(2)).items():
        np.testing.assert_allclose(of_tokens, [difference(value_of(row, t)) for t in range(len(of_tokens))], **DIFFERENCES)


def test_an_example_without_response_gives_zeros(npeff):
    nothing = {name: torch.zeros_like(value) for name, value in npeff.direction(0).items()}
    for signed in (True, False):
        for found, rest in input_sensitivity(npeff.subject, nothing, np.array([0, 5]), signed=signed).values():
            assert not found.any()
            assert rest == 0


class Bag(nn.Module):
    """Counts words, and looks none up."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(tiny.N_TOKENS, 3)

    def forward(self, input_ids):
        return self.out(nn.functional.one_hot(input_ids, tiny.N_TOKENS).float().mean(1))


def test_what_cannot_be_done_is_said(npeff):
    direction, subject = npeff.direction(0), npeff.subject
    with pytest.raises(ValueError, match=r"over 'a' of shape \(2,\); the model has no such parameter"):
        input_sensitivity(subject, {"a": torch.ones(2)}, np.array([0]))
    with pytest.raises(ValueError, match=r"over 'bert.pooler.dense.weight' of shape \(2,\); the model has \(16, 16\)"):
        input_sensitivity(subject, {"bert.pooler.dense.weight": torch.ones(2)}, np.array([0]))
    with pytest.raises(ValueError, match="training mode"):
        input_sensitivity(subject.with_model(tiny.bert().train()), direction, np.array([0]))
    pefs = extract_fishers(
        Bag().eval(), tiny.tokenizer(), ["who", "the king"], logits=lambda model, batch: model(batch["input_ids"]), features="sketch", progress=False
    )
    with pytest.raises(ValueError, match=r"the model \(Bag\) looks its tokens up in no nn.Embedding"):
        input_sensitivity(pefs.subject, {"out.weight": torch.ones(3, tiny.N_TOKENS)}, np.array([0]))
    with pytest.raises(TypeError, match="only texts can be split over tokens"):
        ready = extract_fishers(tiny.seeded(tiny.CalledTwice), inputs=torch.randn(3, 6), logits=tiny.plain_logits, examples=None, progress=False)
        input_sensitivity(ready.subject, {"out.weight": torch.ones(3, 6)}, np.array([0]))


def test_an_error_on_the_way_leaves_no_hook(npeff, monkeypatch):
    subject = npeff.subject
    before, ask, calls = twins.state(subject.model), type(subject.output).logits, []

    def logits(self, model, batch):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stopped here")
        return ask(self, model, batch)

    monkeypatch.setattr(type(subject.output), "logits", logits)
    with pytest.raises(RuntimeError, match="stopped here"):
        input_sensitivity(subject, npeff.direction(0), np.array([0]))
    twins.assert_untouched(subject.model, before)
