"""Models of every architecture that reads texts, with parameters everywhere that matter, for what is said about tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import tiny
import torch
from torch import nn

from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import LabelWords, NextToken
from npeff_nb.fisher.pefs import PEFs
from npeff_nb.fisher.subject import Subject

TEXTS = [tiny.TEXTS[i] for i in (6, 4, 1)]
"""Three, one and six words."""
LONG = ["king", "what city", "years ,"]


def t5() -> nn.Module:
    """Smooth: where ReLUs switch, an energy jumps, and differences across say nothing."""
    return tiny.t5(vocab_size=45, feed_forward_proj="gated-gelu")


def bert(**settings: Any) -> nn.Module:
    return tiny.bert_for("SequenceClassification", **settings)


READERS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "BERT": lambda: (bert(), tiny.tokenizer(), None),
    "BERT, sdpa": lambda: (bert(attn_implementation="sdpa"), tiny.tokenizer(), None),
    "RoBERTa": lambda: (tiny.roberta(), tiny.tokenizer(types=False), None),
    "DistilBERT": lambda: (tiny.distilbert(), tiny.tokenizer(types=False), None),
    "GPT-2": lambda: (tiny.gpt2_for("ForSequenceClassification", pad_token_id=0), tiny.tokenizer(types=False), None),
    "GPT-2, next token": lambda: (tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), NextToken()),
    "GPT-2, every position": lambda: (tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), NextToken("every")),
    "GPT-2, long words": lambda: (tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), LabelWords(LONG, "who : {text} is")),
    "Llama": lambda: (tiny.llama_for("SequenceClassification"), tiny.tokenizer(types=False), None),
    "Llama, words": lambda: (tiny.llama_for("CausalLM", vocab_size=45), tiny.llama_tokenizer(), LabelWords(["king", "city"], "what {text} is")),
    "Llama, long words": lambda: (tiny.llama_for("CausalLM", vocab_size=45), tiny.llama_tokenizer(), LabelWords(LONG)),
    "T5, next token": lambda: (t5(), tiny.t5_tokenizer(), NextToken()),
    "T5, words": lambda: (t5(), tiny.t5_tokenizer(), LabelWords(["king", "city", "year"])),
    "T5, long words": lambda: (t5(), tiny.t5_tokenizer(), LabelWords(LONG)),
}


def fishers(name: str, double: bool = False, texts: list[str] = TEXTS, parameters: Any = "all") -> PEFs:
    model, tokenizer, output = READERS[name]()
    model = model.double() if double else model
    classes = 3 if isinstance(output, NextToken) else "auto"
    return extract_fishers(model, tokenizer, texts, output=output, classes=classes, parameters=parameters, features="sketch", progress=False)


def random_direction(subject: Subject, names: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    there = dict(subject.model.named_parameters())
    return {name: torch.randn(there[name].shape, generator=draw).to(there[name].dtype) for name in names}


def decomposed_logits(subject: Subject, model: nn.Module, row: int) -> torch.Tensor:
    """(c,) of one example alone, with their graph, of the prediction that is decomposed."""
    (batch,) = subject.batches.batches([row])
    z = subject.output.logits(model, subject.batches.batch(batch))
    return subject.recipe.coarse(z, subject.choices_of(batch))[0]


def double_of(subject: Subject) -> nn.Module:
    return copy.deepcopy(subject.model).double().requires_grad_()
