"""Architectures × outputs × shapes of batches against the definition, by autograd alone in float64, one unpadded example at a time.

The reference asks the raw model by itself: it makes its own token ids, calls the model on one prompt, and picks the logits at the place where the
answer is due.  Nothing of the package's own reading of logits takes part.
"""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import tiny
import torch
import twins
from torch import nn

from npeff_nb.fisher import outputs
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.gradients import UnsupportedModule
from npeff_nb.fisher.outputs import LabelWords, MultiLabel, NextToken
from npeff_nb.fisher.parameters import choose_parameters, describe_parameters

# Rows are made in float32 (6e-8 a rounding) through some dozens of sums; a Fisher is quadratic in them.  What is measured is 1e-7 to 2e-6.  A wrong
# term is off by far more: the smallest parameter that any of these models has owns more than 1e-4 of the energy.
FLOAT32 = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of what it vectorises in its own way

TEXTS = tiny.TEXTS[:6]
PAIRS = pd.DataFrame({"text": TEXTS[:4], "text_pair": [TEXTS[3], TEXTS[0], TEXTS[5], TEXTS[2]]})
MASKED = ["what is [MASK] king ?", "[MASK]", "who played in the [MASK] of cities", "how many years is a [MASK]"]


@dataclass
class Case:
    """One model with n examples; ``ask(model, i)`` is example i's logits (c,) by the raw model in float64."""

    model: nn.Module
    arguments: dict[str, Any]
    n: int
    ask: Callable[[nn.Module, int], torch.Tensor]
    family: str = "categorical"
    fisher: str = "true"
    gold: list | None = None
    warns: str | None = None


def encoded(tokenizer: Any, *texts: str) -> dict[str, torch.Tensor]:
    return dict(tokenizer(*texts, return_tensors="pt"))


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """As a prompt: without whatever the tokenizer puts behind a text."""
    ids = tokenizer(text)["input_ids"]
    behind = {tokenizer.sep_token_id, tokenizer.eos_token_id}
    return ids[:-1] if ids[-1] in behind else ids


def continuation(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Tokens that come on top when the word is written behind the prompt, after one space."""
    before, after = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, f"{prompt} {word}")
    assert after[: len(before)] == before
    return after[len(before) :]


# -------------------------------------------------------------------------------------------------------------- by task


def classifier(model: nn.Module, tokenizer: Any, texts: Any = TEXTS, **more: Any) -> Case:
    frame = texts if isinstance(texts, pd.DataFrame) else pd.DataFrame({"text": texts})
    columns = [frame[c].tolist() for c in ("text", "text_pair") if c in frame]

    def ask(model, i):
        return model(**encoded(tokenizer, *(c[i] for c in columns))).logits[0]

    return Case(model, {"tokenizer": tokenizer, "examples": texts}, len(frame), ask, **more)


def ready(model: nn.Module, inputs: torch.Tensor, **more: Any) -> Case:
    return Case(
        model,
        {"inputs": inputs, "logits": tiny.plain_logits},
        len(inputs),
        lambda m, i: m(inputs[i : i + 1].to(next(m.parameters()).dtype))[0],
        **more,
    )


def multi_label(fisher: str = "true") -> Case:
    case = classifier(tiny.bert_for("SequenceClassification", num_labels=4, problem_type="multi_label_classification"), tiny.tokenizer())
    case.family, case.fisher = "bernoulli", fisher
    if fisher == "empirical":
        case.gold = [[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]]
        # As it is written in data sets: which labels hold, by name or number, or one value a label.
        said = [[1], ["LABEL_0", "LABEL_1", "LABEL_3"], [0, 0, 0, 0], "LABEL_2", 0, [0, 1, 1, 0]]
        case.arguments |= {"examples": pd.DataFrame({"text": TEXTS, "label": said})}
    return case


def gradient_of_label(fisher: str) -> Case:
    gold = [0, 2, 1, 1, 0, 2]
    case = classifier(tiny.bert_for("SequenceClassification"), tiny.tokenizer())
    case.arguments["examples"] = pd.DataFrame({"text": TEXTS, "label": gold})
    case.fisher, case.gold = fisher, gold
    return case


def token_classes() -> Case:
    tokenizer = tiny.tokenizer()
    asked = []  # (text, place of a word's first piece)
    for text in TEXTS[:4]:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        asked += [(text, at) for at, piece in enumerate(pieces) if not piece.startswith("##") and piece not in {"[CLS]", "[SEP]"}]
    model = tiny.bert_for("TokenClassification", num_labels=4)
    return Case(
        model, {"tokenizer": tokenizer, "examples": TEXTS[:4]}, len(asked), lambda m, j: m(**encoded(tokenizer, asked[j][0])).logits[0, asked[j][1]]
    )


def next_token(model: nn.Module, tokenizer: Any, texts: list[str] = TEXTS, output: Any = None, **more: Any) -> Case:
    def ask(model, i):
        return model(input_ids=torch.tensor([prompt_ids(tokenizer, texts[i])])).logits[0, -1]

    return Case(model, {"tokenizer": tokenizer, "examples": texts, "output": output, "classes": "all"}, len(texts), ask, **more)


def every_position(model: nn.Module, tokenizer: Any, texts: list[str]) -> Case:
    """The whole text in one pass: a causal model's position t does not know what comes after it."""
    asked = [(text, t) for text in texts for t in range(len(prompt_ids(tokenizer, text)))]

    def ask(model, j):
        return model(input_ids=torch.tensor([prompt_ids(tokenizer, asked[j][0])])).logits[0, asked[j][1]]

    return Case(model, {"tokenizer": tokenizer, "examples": texts, "output": NextToken("every"), "classes": "all"}, len(asked), ask)


def next_of_label(fisher: str) -> Case:
    """The token that a column names, or the likeliest, among all."""
    tokenizer, words = tiny.tokenizer(types=False), ["king", "year", "is", "king", "how", "city"]
    case = next_token(tiny.gpt2_for("LMHeadModel"), tokenizer, TEXTS)
    case.arguments["examples"] = pd.DataFrame({"text": TEXTS, "label": words})
    case.fisher, case.gold = fisher, [tokenizer.convert_tokens_to_ids(w) for w in words]
    return case


def label_words(model: nn.Module, tokenizer: Any, words: Any, template: str = "{text}", **more: Any) -> Case:
    said = list(words.values()) if isinstance(words, dict) else words

    def ask(model, i):
        prompt = template.format(text=TEXTS[i]).rstrip()
        ids, scores = prompt_ids(tokenizer, prompt), []
        for word in said:
            tokens = continuation(tokenizer, prompt, word.strip())
            log_p = torch.log_softmax(model(input_ids=torch.tensor([ids + tokens])).logits[0], -1)
            scores.append(sum(log_p[len(ids) - 1 + t, token] for t, token in enumerate(tokens)))
        return torch.stack(scores)

    return Case(model, {"tokenizer": tokenizer, "examples": TEXTS, "output": LabelWords(words, template)}, len(TEXTS), ask, **more)


def masked(words: list[str] | None, template: str | None = None) -> Case:
    tokenizer = tiny.tokenizer(mask=True)
    texts = MASKED if template is None else TEXTS
    prompts = MASKED if template is None else [template.format(text=text, mask="[MASK]") for text in TEXTS]
    ids = None if words is None else [tokenizer.convert_tokens_to_ids(word.strip()) for word in words]

    def ask(model, i):
        batch = encoded(tokenizer, prompts[i])
        z = model(**batch).logits[0, batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)]
        return z if ids is None else z[ids]

    output = None if words is None else LabelWords(words, template or "{text}")
    model = tiny.bert_for("MaskedLM", vocab_size=len(tokenizer))
    # The head's bias is read by its owner's owner.
    return Case(
        model,
        {"tokenizer": tokenizer, "examples": texts, "output": output, "classes": "all"},
        len(texts),
        ask,
        warns="no formula for BertLMPredictionHead",
    )


def answers(words: list[str] | None, template: str = "{text}") -> Case:
    """An encoder–decoder: the prompt is read whole, the answer begins after the start token."""
    tokenizer = tiny.t5_tokenizer()
    model = tiny.t5(vocab_size=len(tokenizer))
    texts = TEXTS[2:5] if words is None else TEXTS  # one row for each of 45 tokens

    def ask(model, i):
        ids = torch.tensor([tokenizer(template.format(text=texts[i]))["input_ids"]])
        if words is None:
            return model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        scores = []
        for word in words:
            tokens = tokenizer(word.strip(), add_special_tokens=False)["input_ids"]
            log_p = torch.log_softmax(model(input_ids=ids, decoder_input_ids=torch.tensor([[0, *tokens[:-1]]])).logits[0], -1)
            scores.append(sum(log_p[t, token] for t, token in enumerate(tokens)))
        return torch.stack(scores)

    output = None if words is None else LabelWords(words, template)
    arguments = {"tokenizer": tokenizer, "examples": texts, "output": output, "classes": "all"}
    # Its table of relative positions is read once for all examples.
    return Case(model, arguments, len(texts), ask, warns="used once for a whole batch: examples go one by one")


def own_function() -> Case:
    """A probability of the caller's own making, over a language model: these two words against everything else."""
    tokenizer = tiny.tokenizer(types=False)
    king, city = (tokenizer.convert_tokens_to_ids(word) for word in ("king", "city"))

    def three(z):
        rest = torch.cat([z[..., :king], z[..., king + 1 : city], z[..., city + 1 :]], -1) if king < city else z.new_full((*z.shape[:-1], 1), -1e4)
        return torch.stack([z[..., king], z[..., city], rest.logsumexp(-1)], -1)

    def logits(model, batch):
        ends = batch["attention_mask"].sum(1) - 2  # before [SEP]
        return three(model(**batch).logits[torch.arange(len(ends)), ends])

    def ask(model, i):
        return three(model(input_ids=torch.tensor([prompt_ids(tokenizer, TEXTS[i])])).logits[0, -1])

    return Case(tiny.gpt2_for("LMHeadModel"), {"tokenizer": tokenizer, "examples": TEXTS, "logits": logits}, len(TEXTS), ask)


def images() -> Case:
    draw = np.random.default_rng(0)
    pictures = [draw.standard_normal((3, 16, 16)).astype(np.float32) for _ in range(5)]

    def ask(model, i):
        return model(pixel_values=torch.from_numpy(pictures[i])[None].double() / 2).logits[0]

    # The first token and the positions are parameters of the embedding itself.
    return Case(tiny.vit(), {"tokenizer": tiny.ImageProcessor(), "examples": pictures}, 5, ask, warns="no formula for ViTEmbeddings")


def padded_on_the_left(case: Case, **arguments: Any) -> Case:
    """The same examples as ready tensors, as a tokenizer that pads on the left would give them: positions still begin at the first word."""
    tokenizer = case.arguments["tokenizer"]
    rows = [tokenizer(text) for text in case.arguments["examples"]]
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": tokenizer.pad_token_id}
    inputs = {key: torch.tensor([[fill.get(key, 0)] * (width - len(row[key])) + list(row[key]) for row in rows]) for key in rows[0]}
    assert 0 < (inputs["attention_mask"][:, 0] == 0).sum() < case.n
    case.arguments = {"inputs": inputs, **arguments}
    return case


def first_answer(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, decoder_input_ids=torch.zeros(len(batch["input_ids"]), 1, dtype=torch.long)).logits[:, 0]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


ONE_BY_ONE = "used once for a whole batch: examples go one by one"
LONG = ["king", "what city", "years ,"]
CASES: dict[str, Callable[[], Case]] = {
    # sequence classes
    "BERT": lambda: classifier(tiny.bert_for("SequenceClassification"), tiny.tokenizer()),
    "BERT, sdpa": lambda: classifier(tiny.bert_for("SequenceClassification", attn_implementation="sdpa"), tiny.tokenizer()),
    "BERT, two classes": lambda: classifier(tiny.bert_for("SequenceClassification", num_labels=2), tiny.tokenizer()),
    "BERT, pairs": lambda: classifier(tiny.bert_for("SequenceClassification"), tiny.tokenizer(), PAIRS),
    "DistilBERT": lambda: classifier(tiny.distilbert(), tiny.tokenizer(types=False)),
    "RoBERTa": lambda: classifier(tiny.roberta(), tiny.tokenizer(types=False)),
    "GPT-2": lambda: classifier(tiny.gpt2_for("ForSequenceClassification", pad_token_id=0), tiny.tokenizer(types=False)),
    "GPT-2 without a padding token": lambda: classifier(tiny.gpt2_for("ForSequenceClassification"), tiny.tokenizer(types=False)),
    "Llama": lambda: classifier(tiny.llama_for("SequenceClassification"), tiny.tokenizer(types=False)),
    # other families and other Fishers
    "multi-label": multi_label,
    "multi-label, empirical": lambda: multi_label("empirical"),
    "multi-label, predicted": lambda: multi_label("predicted"),
    "empirical": lambda: gradient_of_label("empirical"),
    "predicted": lambda: gradient_of_label("predicted"),
    # one example a word or a position
    "token classes": token_classes,
    "next token, GPT-2": lambda: next_token(tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False)),
    "next token, Llama": lambda: next_token(tiny.llama_for("CausalLM", tie_word_embeddings=True), tiny.tokenizer(types=False), output=NextToken()),
    "next token, empirical": lambda: next_of_label("empirical"),
    "next token, predicted": lambda: next_of_label("predicted"),
    "every next token, GPT-2": lambda: every_position(tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), TEXTS[1:3]),
    "every next token, Llama": lambda: every_position(tiny.llama_for("CausalLM"), tiny.tokenizer(types=False), TEXTS[1:3]),
    "masked token": lambda: masked(None),
    # words
    "words, GPT-2": lambda: label_words(tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), {"a": "king", "b": " city ", "c": "year"}),
    "words, GPT-2's tokens": lambda: label_words(
        tiny.gpt2_for("LMHeadModel", vocab_size=81), tiny.bytes_tokenizer(), ["king", "city"], "{text} The "
    ),
    "words, Llama's tokens": lambda: label_words(tiny.llama_for("CausalLM", vocab_size=45), tiny.llama_tokenizer(), ["king", "city"]),
    "long words, GPT-2": lambda: label_words(tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), LONG, "who : {text} is", warns=ONE_BY_ONE),
    "long words, GPT-2's tokens": lambda: label_words(
        tiny.gpt2_for("LMHeadModel", vocab_size=81), tiny.bytes_tokenizer(), LONG, "who : {text} is", warns=ONE_BY_ONE
    ),
    "long words, Llama": lambda: label_words(tiny.llama_for("CausalLM"), tiny.tokenizer(types=False), LONG, "who : {text} is"),
    "long words, Llama's tokens": lambda: label_words(tiny.llama_for("CausalLM", vocab_size=45), tiny.llama_tokenizer(), LONG),
    "words under a mask": lambda: masked(["king", " city", "year"]),
    "words under a mask in a template": lambda: masked(["king", "city"], "{text} is a {mask} , the king"),
    "words, T5": lambda: answers(["king", "city", "year"], "what : {text}"),
    "long words, T5": lambda: answers(LONG),
    "first token, T5": lambda: answers(None),
    # images, and functions of the caller's
    "images": images,
    "own function": own_function,
    # padding on the left in ready tensors (a model that reads its first token has none)
    "left padding, GPT-2": lambda: padded_on_the_left(CASES["GPT-2"]()),
    "left padding, Llama": lambda: padded_on_the_left(CASES["Llama"]()),
    "left padding, T5": lambda: padded_on_the_left(answers(None), logits=first_answer, classes="all"),
    # modules of any kind
    "groups and batch norm": lambda: ready(tiny.seeded(tiny.GroupedNet), numbers(5, 2, 7, 6), warns="no formula for .*BatchNorm2d"),
    "attention": lambda: ready(tiny.seeded(tiny.Attends), numbers(5, 4, 8), warns="no formula for MultiheadAttention"),
    "attention, examples second": lambda: ready(tiny.spread(tiny.Attends(batch_first=False)), numbers(5, 4, 8), warns=ONE_BY_ONE),
    "transformer": lambda: ready(tiny.spread(tiny.Encodes()), numbers(5, 4, 8), warns="no formula for MultiheadAttention"),
    "transformer, as many positions as examples": lambda: ready(tiny.spread(tiny.Encodes()), numbers(5, 5, 8), warns="no formula"),
    "transformer, examples second": lambda: ready(tiny.spread(tiny.Encodes(batch_first=False)), numbers(5, 5, 8), warns=ONE_BY_ONE),
    "hand-made layer": lambda: ready(tiny.seeded(tiny.HandMade), numbers(5, 4, 5), warns="no formula for .*OwnLayer"),
    "weights made of others": lambda: ready(tiny.seeded(tiny.Composed), numbers(5, 5), warns="no formula for "),
    "branches": lambda: ready(tiny.seeded(tiny.HasBranches), numbers(5, 5), warns="a Branches cannot be vectorised .*: one example at a time"),
    "examples second": lambda: ready(tiny.seeded(tiny.TimeMajor), numbers(5, 4, 5), warns=ONE_BY_ONE),
    "examples second, as many positions": lambda: ready(tiny.seeded(tiny.TimeMajor), numbers(5, 5, 5), warns=ONE_BY_ONE),
    "examples second, one position": lambda: ready(tiny.seeded(tiny.TimeMajor), numbers(5, 1, 5), warns=ONE_BY_ONE),
    "attention, examples second, one position": lambda: ready(tiny.spread(tiny.Attends(batch_first=False)), numbers(5, 1, 8), warns=ONE_BY_ONE),
    "recurrent, last output": lambda: ready(tiny.spread(tiny.Recurs(state=False)), numbers(5, 4, 5), warns="no formula for "),
    "recurrent, last state": lambda: ready(tiny.spread(tiny.Recurs()), numbers(5, 4, 5), warns="no formula for "),
    "recurrent, two layers, last state": lambda: ready(tiny.spread(tiny.Recurs(nn.LSTM, layers=2)), numbers(5, 4, 5), warns="no formula for "),
    "recurrent, examples second": lambda: ready(tiny.spread(tiny.Recurs(nn.RNN, batch_first=False)), numbers(5, 4, 5), warns="no formula for "),
}


@functools.cache
def made(name: str) -> Case:
    return CASES[name]()


@functools.cache
def expected(name: str, names: tuple[str, ...]) -> list[np.ndarray]:
    """Factor rows of every example by definition, (k, p) each."""
    case = made(name)
    model = twins.double(case.model)
    return [
        twins.rows_of_logits(model, case.ask(model, i), list(names), case.family, case.fisher, None if case.gold is None else case.gold[i])
        for i in range(case.n)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("name", CASES)
def test_every_fisher_is_that_of_the_definition(name, batch_size):
    case = made(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pefs = extract_fishers(
            case.model, **case.arguments, parameters="all", features="dense", fisher=case.fisher, batch_size=batch_size, progress=False
        )
    assert len(pefs) == case.n
    assert pefs.factors.dtype == np.float32
    assert pefs.factors.shape[2] == sum(p.numel() for p in case.model.parameters())
    names = tuple(pefs.parameters["name"])
    for i, rows in enumerate(expected(name, names)):
        assert twins.relative_distance(pefs.factors[i], rows) < FLOAT32, f"example {i}"
        assert pefs.norms[i] == pytest.approx(twins.frobenius(rows), rel=FLOAT32), f"example {i}"
        assert pefs.traces[i] == pytest.approx((rows**2).sum(), rel=FLOAT32), f"example {i}"
    if batch_size > 1:
        assert_said([str(warning.message) for warning in said], case.warns)


def assert_said(messages: list[str], words: str | None) -> None:
    """What costs more than usual is said once; where nothing does, nothing is said."""
    messages = [message for message in messages if not message.startswith("There is a performance drop")]  # torch's own, in its own words
    assert len(set(messages)) == len(messages)
    assert all("slower and as exact" in message for message in messages), messages
    if words is None:
        assert not messages
    else:
        assert any(re.search(words, message) for message in messages), messages


def test_rows_are_one_class_against_all_less_likely_ones():
    """Row k of an example belongs to its k-th likeliest class: the rows themselves, not only their Fisher."""
    case = made("BERT")
    pefs = extract_fishers(case.model, **case.arguments, parameters="all", features="dense", batch_size=3, progress=False)
    model = twins.double(case.model)
    chosen = list(model.parameters())
    for i in range(case.n):
        z = case.ask(model, i)
        jacobian = torch.stack([twins.flat_gradients(value, chosen) for value in z]).numpy()
        rows = twins.stick_breaking(z.detach().numpy()) @ jacobian
        assert np.linalg.norm(pefs.factors[i] - rows) < FLOAT32 * np.linalg.norm(rows)


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_experts_that_see_any_number_of_positions_are_never_silently_wrong(batch_size, seed):
    """Which rows of an expert belong to which example cannot be told from their number: right Fishers or an error are both fine."""
    case = ready(tiny.seeded(tiny.Routed), torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(seed)))
    try:
        pefs = extract_fishers(case.model, **case.arguments, parameters="all", features="dense", batch_size=batch_size, progress=False)
    except UnsupportedModule as error:
        assert batch_size > 1
        assert "batch_size=1" in str(error)
        return
    model = twins.double(case.model)
    for i in range(case.n):
        rows = twins.rows_of_logits(model, case.ask(model, i), list(pefs.parameters["name"]))
        assert twins.relative_distance(pefs.factors[i], rows) < FLOAT32, f"example {i}"


# -------------------------------------------------------------------------------------------------------------- what it costs, what it leaves


LOOKED = 10
"""Backward passes that a run takes once, to see on a few examples how parameters are used; they do not grow with it."""


@pytest.mark.parametrize(
    ("name", "rows"),
    [("BERT", 2), ("multi-label", 4), ("empirical", 1), ("predicted", 1), ("next token, GPT-2", 26), ("words, GPT-2", 2), ("long words, Llama", 2)],
)
def test_one_backward_pass_a_row_and_batch(name, rows, monkeypatch):
    case, calls, grad = made(name), [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    counted = {}
    for batch_size in (2, 6):
        calls.clear()
        extract_fishers(case.model, **case.arguments, features="dense", fisher=case.fisher, batch_size=batch_size, progress=False)
        counted[batch_size] = len(calls)
    assert case.n == 6
    assert counted[2] - counted[6] == rows * (3 - 1)
    assert counted[6] - rows <= LOOKED


def test_few_of_many_classes_cost_few_backward_passes(monkeypatch):
    case, calls, grad = made("next token, GPT-2"), [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    extract_fishers(case.model, **case.arguments | {"classes": 3}, features="dense", batch_size=6, progress=False)
    assert len(calls) <= 3 + LOOKED


STATEFUL = ["BERT", "RoBERTa", "GPT-2", "words, T5", "images", "groups and batch norm", "attention", "hand-made layer", "branches", "examples second"]


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("name", STATEFUL)
def test_the_model_is_as_it_was(name):
    """Weights, statistics of batch norm, flags, modes, hooks: also where modules are run again or one by one."""
    case = made(name)
    model = copy.deepcopy(case.model)
    next(model.parameters()).requires_grad_(False)
    before = twins.state(model)
    extract_fishers(model, **case.arguments, parameters="all", features="dense", batch_size=3, progress=False)
    twins.assert_untouched(model, before)


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "images", "transformer", "groups and batch norm", "hand-made layer"])
def test_frozen_parameters_take_part(name):
    case = made(name)
    free = extract_fishers(case.model, **case.arguments, parameters="all", features="dense", batch_size=3, progress=False)
    model = copy.deepcopy(case.model)
    for number, p in enumerate(model.parameters()):
        p.requires_grad_(number % 3 == 1)
    frozen = extract_fishers(model, **case.arguments, parameters="all", features="dense", batch_size=3, progress=False)
    np.testing.assert_array_equal(frozen.factors, free.factors)
    assert [p.requires_grad for p in model.parameters()] == [number % 3 == 1 for number in range(len(list(model.parameters())))]


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: classifier(
            tiny.bert_for("SequenceClassification", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, classifier_dropout=0.5),
            tiny.tokenizer(),
        ),
        lambda: classifier(
            tiny.gpt2_for("ForSequenceClassification", pad_token_id=0, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5), tiny.tokenizer(types=False)
        ),
        lambda: ready(tiny.seeded(lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(9, 3))), numbers(5, 2, 4)),
    ],
    ids=["BERT", "GPT-2", "run again"],
)
def test_dropout_stays_off(make):
    case = make()
    one, two = (extract_fishers(case.model, **case.arguments, parameters="all", features="dense", progress=False) for _ in range(2))
    np.testing.assert_array_equal(one.factors, two.factors)


@pytest.mark.parametrize("task", ["BERT", "GPT-2", "Llama"])
def test_eager_attention_and_sdpa_agree(task):
    make = {
        "BERT": lambda kind: classifier(tiny.bert_for("SequenceClassification", attn_implementation=kind), tiny.tokenizer()),
        "GPT-2": lambda kind: label_words(tiny.gpt2_for("LMHeadModel", attn_implementation=kind), tiny.tokenizer(types=False), LONG),
        "Llama": lambda kind: label_words(tiny.llama_for("CausalLM", attn_implementation=kind), tiny.tokenizer(types=False), LONG),
    }[task]
    found = []
    for kind in ("eager", "sdpa"):
        case = make(kind)
        assert case.model.config._attn_implementation == kind
        found.append(extract_fishers(case.model, **case.arguments, parameters="all", features="dense", batch_size=3, progress=False))
    for i in range(len(TEXTS)):
        assert twins.relative_distance(found[0].factors[i], found[1].factors[i]) < FLOAT32


# Eight bits of mantissa are a rounding of 0.4 % in every activation and every gradient that passes a layer.  Through these two-layer models that is
# measured as 1.0 to 4.5 % of a Fisher on average and 6.2 % at most (T5); a wrong term would make tens.
BFLOAT16 = 0.1


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "words, GPT-2", "long words, Llama", "words, T5", "images", "hand-made layer"])
def test_half_precision_gives_single_precision_factors_near_the_exact_ones(name):
    case = made(name)
    exact = extract_fishers(case.model, **case.arguments, parameters="all", features="dense", batch_size=3, progress=False)
    half = copy.deepcopy(case.model).to(torch.bfloat16)
    arguments = dict(case.arguments)
    if "inputs" in arguments:
        arguments["inputs"] = arguments["inputs"].to(torch.bfloat16)
    if name == "images":
        arguments["tokenizer"] = lambda pictures, **k: {key: v.to(torch.bfloat16) for key, v in tiny.ImageProcessor()(pictures, **k).items()}
    found = extract_fishers(half, **arguments, parameters="all", features="dense", batch_size=3, progress=False)
    assert found.factors.dtype == np.float32
    assert found.norms.dtype == np.float64
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    off = [twins.relative_distance(found.factors[i], exact.factors[i]) for i in range(case.n)]
    assert max(off) < BFLOAT16


# -------------------------------------------------------------------------------------------------------------- adapters


def with_adapters(model: nn.Module, task: str, targets: list[str], **settings: Any) -> nn.Module:
    """PEFT starts one side of every adapter at zero, where half of the gradients vanish."""
    made_of = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=2, target_modules=targets, lora_dropout=0.5, **settings))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in made_of.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=draw) / 4)
    return made_of.eval()


def adapted(name: str) -> Case:
    if name == "BERT":
        model = with_adapters(tiny.bert_for("SequenceClassification"), "SEQ_CLS", ["query", "value"])
        return classifier(model, tiny.tokenizer())
    if name == "BERT, DoRA":
        model = with_adapters(tiny.bert_for("SequenceClassification"), "SEQ_CLS", ["query", "dense"], use_dora=True)
        return classifier(model, tiny.tokenizer())
    model = with_adapters(tiny.gpt2_for("LMHeadModel"), "CAUSAL_LM", ["c_attn"], fan_in_fan_out=True)
    return label_words(model, tiny.tokenizer(types=False), LONG)


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("parameters", ["default", "all"])
@pytest.mark.parametrize("name", ["BERT", "BERT, DoRA", "GPT-2"])
def test_adapters(name, parameters):
    case = adapted(name)
    before = twins.state(case.model)
    pefs = extract_fishers(case.model, **case.arguments, features="dense", parameters=parameters, batch_size=3, progress=False)
    twins.assert_untouched(case.model, before)
    names = list(pefs.parameters["name"])
    adapters = [n for n, _ in case.model.named_parameters() if "lora_" in n]
    assert names == (adapters if parameters == "default" else [n for n, _ in case.model.named_parameters()])
    model = twins.double(case.model)
    for i in range(case.n):
        rows = twins.rows_of_logits(model, case.ask(model, i), names)
        assert np.abs(rows).max() > 0
        assert twins.relative_distance(pefs.factors[i], rows) < FLOAT32, f"example {i}"
        assert pefs.norms[i] == pytest.approx(twins.frobenius(rows), rel=FLOAT32)
    assert set(pefs.parameters.loc[pefs.parameters["name"].isin(adapters), "kind"]) == {"adapter"}


def test_the_head_is_found_under_adapters():
    kinds = describe_parameters(adapted("BERT").model).set_index("name")["kind"]
    heads = kinds.index[kinds == "head"]
    assert len(heads) and all("classifier" in name for name in heads)
    assert all(kind == "head" for name, kind in kinds.items() if "classifier" in name)
    assert set(choose_parameters(adapted("BERT").model)["kind"]) == {"adapter"}
    # Asked for by name, the head takes part beside them.
    assert set(choose_parameters(adapted("BERT").model, ["adapter", "head"])["kind"]) == {"adapter", "head"}


def test_the_question_is_found_under_adapters():
    assert isinstance(outputs.output_for(adapted("BERT").model), outputs.SequenceClasses)
    assert isinstance(outputs.output_for(adapted("GPT-2").model), NextToken)
    several = with_adapters(tiny.bert_for("SequenceClassification", problem_type="multi_label_classification"), "SEQ_CLS", ["query"])
    assert isinstance(outputs.output_for(several), MultiLabel)


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("bad", [[4], [0], [1, 2, 3, 4]])
@pytest.mark.parametrize("name", ["attention", "examples second", "hand-made layer"])
def test_examples_that_are_masked_do_not_hide_what_has_to_be_learned(name, bad):
    """One example is looked at before the others to see how parameters are used: not one whose numbers are no numbers."""
    case = made(name)
    inputs = case.arguments["inputs"].clone()
    inputs[bad] = torch.nan
    pefs = extract_fishers(
        case.model, **case.arguments | {"inputs": inputs}, parameters="all", features="dense", on_nan="mask", batch_size=5, progress=False
    )
    for i, rows in enumerate(expected(name, tuple(pefs.parameters["name"]))):
        if i in bad:
            assert not pefs.factors[i].any()
            assert pefs.norms[i] == 0
        else:
            assert twins.relative_distance(pefs.factors[i], rows) < FLOAT32, f"example {i}"


@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
@pytest.mark.parametrize("silent", [0, 2, 4])
def test_an_example_that_feels_nothing_of_a_parameter_does_not_hide_its_use(silent):
    """A parameter that a function reads has no gradient on an input of zeros; on the others it has."""
    model, inputs = tiny.seeded(tiny.ReadByFunction), numbers(5, 5)
    inputs[silent] = 0
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", features="dense", progress=False)
    double = twins.double(model)
    for i in range(5):
        rows = twins.rows_of_logits(double, double(inputs[i : i + 1].double())[0], list(pefs.parameters["name"]))
        assert twins.relative_distance(pefs.factors[i], rows) < FLOAT32, f"example {i}"
