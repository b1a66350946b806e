"""Models and tokenizers small enough to differentiate by hand: made from seeds, no files and no network."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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


def tokenizer(padding_side: str = "right", model_max_length: int = 10**30, mask: bool = False, types: bool = True) -> PreTrainedTokenizerFast:
    """WordPiece over a handful of words, with [CLS] and [SEP] as BERT places them; with ``mask`` there is one piece more, [MASK]."""
    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *WHOLE_WORDS, *PIECES, *(("[MASK]",) if mask else ())))}
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
        mask_token="[MASK]" if mask else None,
        padding_side=padding_side,
        model_max_length=model_max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs learned from :data:`TEXTS`, as GPT-2 has them: a word's space belongs to it, nothing stands around a text, nothing pads."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        [f"{text} {text}" for text in TEXTS], trainers.BpeTrainer(vocab_size=N_TOKENS * 3, special_tokens=["<|end|>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", model_input_names=["input_ids", "attention_mask"])


def _pieces_tokenizer(special: tuple[str, ...], **settings) -> Tokenizer:
    """Words with a mark for the space before them, and single letters for the rest."""
    letters = sorted(set("".join(TEXTS)) - {" "})
    scores = (
        [(piece, 0.0) for piece in special] + [(f"▁{word}", -2.0) for word in WHOLE_WORDS] + [("▁", -4.0)] + [(letter, -8.0) for letter in letters]
    )
    return Tokenizer(models.Unigram(scores, unk_id=special.index("<unk>"), **settings))


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: a space is put before every text, also before one that has a space already."""
    made = _pieces_tokenizer(("<unk>", "<s>", "</s>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_input_names=["input_ids", "attention_mask"]
    )


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """As T5 has it: a text begins with a space and ends with a token of its own."""
    made = _pieces_tokenizer(("<pad>", "</s>", "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", model_input_names=["input_ids", "attention_mask"]
    )


class ImageProcessor:
    """Stands in for a processor: images (3, 16, 16) as numbers, scaled and stacked."""

    def __call__(self, images, return_tensors: str):
        assert return_tensors == "pt"
        return {"pixel_values": torch.stack([torch.as_tensor(image, dtype=torch.float32) / 2 for image in images])}


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


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of spread 0.2 everywhere, biases and norms off their start: so that every parameter matters and examples differ."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=draw)) if p.ndim > 1 else p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return model.eval()


_BERT_LIKE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40}


def _made(head: str, config: transformers.PretrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    return spread(getattr(transformers, head)(config))


def bert_for(task: str, **settings) -> nn.Module:
    """``task`` as in the class's name: SequenceClassification, TokenClassification, MaskedLM, ..."""
    return _made(f"BertFor{task}", BertConfig(**{"vocab_size": N_TOKENS, "pad_token_id": 0, "num_labels": 3, **_BERT_LIKE, **settings}))


def distilbert() -> nn.Module:
    return _made(
        "DistilBertForSequenceClassification",
        transformers.DistilBertConfig(vocab_size=N_TOKENS, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3, max_position_embeddings=40),
    )


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(vocab_size=N_TOKENS, num_labels=3, pad_token_id=0, type_vocab_size=1, **_BERT_LIKE)
    return _made("RobertaForSequenceClassification", config)


def gpt2_for(head: str, **settings) -> nn.Module:
    """``head`` as in the class's name: LMHeadModel or ForSequenceClassification."""
    small = {
        "vocab_size": N_TOKENS,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "num_labels": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return _made(f"GPT2{head}", GPT2Config(**{**small, **settings}))


def llama_for(task: str, **settings) -> nn.Module:
    """Keys and values shared by two heads.  ``task`` as in the class's name: CausalLM or SequenceClassification."""
    small = {"vocab_size": N_TOKENS, "num_key_value_heads": 1, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return _made(f"LlamaFor{task}", transformers.LlamaConfig(**{**small, **_BERT_LIKE, **settings}))


def t5(**settings) -> nn.Module:
    small = {
        "vocab_size": N_TOKENS,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }
    return _made("T5ForConditionalGeneration", transformers.T5Config(**{**small, **settings}))


def vit() -> nn.Module:
    small = {key: value for key, value in _BERT_LIKE.items() if key != "max_position_embeddings"}
    return _made("ViTForImageClassification", transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **small))


class GroupedNet(nn.Module):
    """Convolutions in groups, batch norm with statistics of its own, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)
        self.second, self.out = nn.Conv2d(4, 4, 3, groups=4, padding="same"), nn.Linear(4, 3)
        self.norm.running_mean.copy_(torch.randn(4) / 4)
        self.norm.running_var.copy_(torch.rand(4) + 0.5)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3)))


class Attends(nn.Module):
    """torch's own attention, which reads its output projection's weight without calling it."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=batch_first), nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        return self.out(torch.tanh(self.attention(x, x, x, need_weights=False)[0]).mean(1 if self.batch_first else 0))


class Encodes(nn.Module):
    """torch's own transformer: where nothing asks for gradients its layers run as one function that calls none of their modules."""

    def __init__(self, batch_first: bool = True, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.encoder, self.out = nn.TransformerEncoder(layer, layers), nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x):
        return self.out(self.encoder(x).mean(1)) if self.batch_first else self.out(self.encoder(x.transpose(0, 1)).mean(0))


class OwnLayer(nn.Module):
    """A hand-made layer: a low-rank update, a gate, and a number without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(6, 2) / 2), nn.Parameter(torch.randn(2, 6) / 2)
        self.gate, self.heat = nn.Parameter(torch.randn(6)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return x + torch.sigmoid(self.gate) * (torch.tanh(x @ self.down) @ self.up) / self.heat


class HandMade(nn.Module):
    """Hand-made layers between usual ones, and parameters that the model itself owns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own, self.out = nn.Linear(5, 6), OwnLayer(), nn.Linear(6, 3)
        self.query = nn.Parameter(torch.randn(6))

    def forward(self, x):  # (n, t, 5)
        h = self.own(self.own(torch.tanh(self.first(x))))
        return self.out((torch.softmax(h @ self.query, 1)[:, :, None] * h).sum(1))


class Composed(nn.Module):
    """Weights that are made of other parameters at every call: normed, and shared in part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.out(torch.tanh(h + nn.functional.linear(h, self.out.weight.T @ self.out.weight)))


class ReadByFunction(nn.Module):
    """A layer that is never called: a function reads its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(nn.functional.linear(x, self.first.weight)))


class Branches(nn.Module):
    """A layer that looks at its numbers: another way for examples whose first entry is negative, and a number read off each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(6, 6) / 2), nn.Parameter(torch.randn(6))

    def forward(self, x):
        rows = [torch.tanh(row @ self.weight) + self.shift if row[0].item() > 0 else row @ self.weight.T - self.shift for row in x]
        return torch.stack(rows)


class HasBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.branches, self.out = nn.Linear(5, 6), Branches(), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.branches(self.first(x))))


class TimeMajor(nn.Module):
    """Positions before examples, as old recurrent code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):  # (n, t, 5)
        return self.out(torch.tanh(self.first(x.transpose(0, 1)))).mean(0)


class Recurs(nn.Module):
    """A recurrent layer, read at its last state (layers, n, width) or at its last output."""

    def __init__(self, kind: type[nn.Module] = nn.GRU, batch_first: bool = True, layers: int = 1, state: bool = True) -> None:
        super().__init__()
        self.inner, self.out = kind(5, 6, batch_first=batch_first, num_layers=layers), nn.Linear(6, 3)
        self.state, self.batch_first = state, batch_first

    def forward(self, x):
        out, state = self.inner(x if self.batch_first else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        return self.out(state[-1] if self.state else (out[:, -1] if self.batch_first else out[-1]))


class Routed(nn.Module):
    """A mixture of experts: each position goes to one of two, so that an expert sees any number of rows of an example."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.out = nn.ModuleList([nn.Linear(5, 6), nn.Linear(5, 6)]), nn.Linear(6, 3)

    def forward(self, x):  # (n, t, 5)
        flat = x.flatten(0, 1)
        chosen = (flat[:, 0] > 0).long()
        h = flat.new_zeros(len(flat), 6)
        for number, expert in enumerate(self.experts):
            where = (chosen == number).nonzero()[:, 0]
            h = h.index_add(0, where, expert(flat[where]))
        return self.out(torch.tanh(h).view(*x.shape[:2], 6).sum(1))


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
