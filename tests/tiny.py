"""Models and tokenizers small enough to differentiate by hand: made from seeds, no files and no network."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WHOLE_WORDS = ("what", "who", "where", "when", "how", "many", "is", "the", "a", "of", "in", "play", "run", "city", "king", "year", "?", ",", "'")
PIECES = ("##ing", "##er", "##s", "##ed")

TEXTS = [
    "what is the city of the king ?",
    "who played in the year ?",
    "how many runners",
    "where is the running king , the player ?",
    "when",
    "how many years is a king in the city of cities",
    "who is who",
    "the kings played , the runner runs",
]
"""Lengths from one word to eleven, so that every batch of several is padded."""


def tokenizer(padding_side: str = "right", model_max_length: int = 10**30) -> PreTrainedTokenizerFast:
    """WordPiece over a handful of words, with [CLS] and [SEP] as BERT places them."""
    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *WHOLE_WORDS, *PIECES))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side=padding_side,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


N_TOKENS = len(SPECIAL) + len(WHOLE_WORDS) + len(PIECES)


def bert(classes: int = 3, seed: int = 0, attention: str = "eager", **settings) -> BertForSequenceClassification:
    """Two layers of width 16.  Weights of spread 0.2, so that predictions differ from example to example."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=N_TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32,
        num_labels=classes, initializer_range=0.2, pad_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    config.update(settings)
    return BertForSequenceClassification(config).eval()


def gpt2(classes: int = 3, seed: int = 0) -> GPT2ForSequenceClassification:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=N_TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=classes, initializer_range=0.2, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


class ConvNet(nn.Module):
    """Conv2d with stride, padding and dilation, then a linear layer."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 5, (2, 3), dilation=(1, 2), padding=(0, 2))
        self.out = nn.Linear(5, classes)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))).mean((2, 3)))


class TwoLinearsOneWeight(nn.Module):
    """Two modules that hold the same parameter, as encoder and decoder often do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class EmbeddingIsAlsoLinear(nn.Module):
    """A table that is looked up and, as a matrix, read out again: a language model's tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.read = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.read.weight = self.table.weight

    def forward(self, ids):
        return self.read(torch.tanh(self.middle(self.table(ids)))).mean(1)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.again(torch.tanh(self.again(x)))))


class InPlace(nn.Module):
    """Activations and a residual sum that overwrite what the layer gave: the tensor that the hook saw is another one afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = nn.functional.relu(self.first(x), inplace=True)
        h = self.second(h).mul_(2)
        h += x
        return self.out(torch.tanh(h))


def seeded(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def plain_logits(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """``logits=`` of a module that gives nothing but logits."""
    return model(batch)


def table(n: int = 24) -> pd.DataFrame:
    """``n`` different texts with a coarse and a fine label, as a person's table has them."""
    rng = np.random.default_rng(5)
    words = [w for w in WHOLE_WORDS if w.isalpha()]
    texts = [" ".join(rng.choice(words, rng.integers(2, 9))) for _ in range(n)]
    return pd.DataFrame({"text": texts, "label": rng.integers(0, 3, n), "fine_label": [f"f{v}" for v in rng.integers(0, 6, n)]})
