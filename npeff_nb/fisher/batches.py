"""Examples as batches: tables, lists of texts, data sets, images, ready tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

POSITIONS_A_BATCH = 512
"""Tokens (padding included) in one batch when ``batch_size`` is not given: throughput is flat from there on, memory is not."""
EXAMPLES_A_BATCH = 64


def as_table(examples: Any) -> pd.DataFrame:
    """A DataFrame, a data set or a list of texts as a DataFrame with a fresh index."""
    if isinstance(examples, pd.DataFrame):
        return examples.reset_index(drop=True)
    if hasattr(examples, "to_pandas"):
        return examples.to_pandas().reset_index(drop=True)
    if isinstance(examples, str):
        raise TypeError("examples is one string; give a list of texts, a DataFrame with a 'text' column or a datasets.Dataset")
    if isinstance(examples, Iterable):
        return pd.DataFrame({"text": list(examples)})
    raise TypeError(f"examples is a {type(examples).__name__}; give a list of texts, a DataFrame with a 'text' column or a datasets.Dataset")


def examples_table(examples: Any) -> pd.DataFrame:
    """Examples as a DataFrame with a fresh index.

    A DataFrame, a ``datasets.Dataset`` (anything with ``to_pandas``), or a list of texts.

    Raises
    ------
    ValueError, TypeError
        Empty input, no ``text`` column, a text that is no string.
    """
    table = as_table(examples)
    if "text" not in table.columns:
        raise ValueError(
            f"examples has no column 'text'; its columns are {', '.join(map(repr, table.columns)) or 'none'}: rename the one with the texts"
        )
    if not len(table):
        raise ValueError("examples is empty: there is no per-example Fisher without an example")
    for column in ("text", "text_pair"):
        if column in table.columns:
            bad = [i for i, text in enumerate(table[column]) if not isinstance(text, str)]
            if bad:
                raise ValueError(
                    f"row {bad[0]} of {column!r} is {table[column].iloc[bad[0]]!r}, not a string"
                    + (f" ({len(bad)} rows like it)" if len(bad) > 1 else "") + ": drop or fill these rows first"
                )  # fmt: skip
    return table


class Batches:
    """Examples in batches of like length; positions are those of the table.

    Attributes
    ----------
    lengths : (n,) positions that each example takes (tokens; 1 where examples have no length).
    batch_size : examples a batch, or None for as many as fit ``positions``.
    positions : a batch's padded positions at most, when ``batch_size`` is None.
    cut : texts that were cut to what the model takes.
    """

    lengths: np.ndarray
    batch_size: int | None = None
    positions: int = POSITIONS_A_BATCH
    cut: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Positions of each batch: longest first, so that running out of memory happens at once, not at the end."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        order = rows[np.argsort(-self.lengths[rows], kind="stable")]
        out, at = [], 0
        while at < len(order):
            size = self.batch_size or max(1, min(EXAMPLES_A_BATCH, self.positions // int(self.lengths[order[at]])))
            out.append(order[at : at + size])
            at += size
        return out

    def batch(self, rows: np.ndarray) -> Any:
        """What the model is called with for these examples."""
        raise NotImplementedError

    def take(self, rows: np.ndarray) -> Batches:
        """Some of the examples, renumbered."""
        raise NotImplementedError

    def encoded_bytes(self) -> Iterable[bytes]:
        """What the model really sees, for telling two sets of examples apart."""
        raise NotImplementedError


class TextBatches(Batches):
    """Texts through a tokenizer.

    Parameters
    ----------
    encoded : key -> one list an example (``input_ids`` and what else the tokenizer gives).
    collate : turns the encoded values of some examples into a batch; :func:`padded` by default.
    texts, pairs : what was encoded, for showing tokens as words.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoded: dict[str, list],
        texts: list[str],
        pairs: list[str] | None = None,
        *,
        batch_size: int | None = None,
        collate: Callable[[Any, dict[str, list]], dict[str, Tensor]] | None = None,
        cut: int = 0,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.tokenizer, self.encoded, self.texts, self.pairs = tokenizer, encoded, texts, pairs
        self.batch_size, self.collate, self.cut = batch_size, collate or padded, cut
        self.lengths = np.array([len(ids) for ids in encoded["input_ids"]]) if lengths is None else lengths
        if self.lengths.min() == 0:
            raise ValueError(f"row {int(self.lengths.argmin())} gives no tokens at all: drop texts that are empty for the tokenizer")

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.collate(self.tokenizer, {key: [values[i] for i in rows] for key, values in self.encoded.items()})

    def take(self, rows: np.ndarray) -> TextBatches:
        some = copy.copy(self)
        some.encoded = {key: [values[i] for i in rows] for key, values in self.encoded.items()}
        some.texts = [self.texts[i] for i in rows]
        some.pairs = None if self.pairs is None else [self.pairs[i] for i in rows]
        some.lengths = self.lengths[rows]
        return some

    def encoded_bytes(self) -> Iterable[bytes]:
        for key in sorted(self.encoded):
            for values in self.encoded[key]:
                yield f"{key}{values}".encode()


def encode(
    model: nn.Module, tokenizer: Any, texts: list[str], pairs: list[str] | None = None, *, keep: int = 0, keep_end: bool = False, quiet: bool = False
) -> tuple[dict[str, list], int]:
    """Token ids of texts, cut to what the model takes (less ``keep`` positions), and how many were cut; says so once with the count.

    ``keep_end`` cuts at the beginning: a prompt's end is what the next token hangs on.
    """
    longest = longest_input(model, tokenizer)
    longest = None if longest is None else longest - keep
    both = {} if pairs is None else {"text_pair": pairs}
    # Measured in full first (cheap), so that cut texts can be counted.
    full = tokenizer(texts, **both, truncation=False, verbose=False)
    cut = sum(len(ids) > longest for ids in full["input_ids"]) if longest else 0
    if cut and not quiet:
        warnings.warn(
            f"{cut} of {len(texts)} texts are longer than the {longest} tokens that the model takes and are cut to that length; "
            f"what stands {'before' if keep_end else 'after'} the cut takes no part",
            stacklevel=4,
        )
    if cut and keep_end:
        full = {key: [values[-longest:] if longest else values for values in of_all] for key, of_all in full.items()}
    elif cut:
        full = tokenizer(texts, **both, truncation=True, max_length=longest, verbose=False)
    return {key: list(values) for key, values in full.items()}, cut


def padded(tokenizer: Any, encoded: dict[str, list]) -> dict[str, Tensor]:
    """Lists of unlike length as one tensor a key, padded on the right.

    On the right whatever the tokenizer prefers: a text's positions are then what they are when it stands alone.
    """
    fill = {"input_ids": pad_id(tokenizer), "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0) or 0}
    out = {}
    for key, values in encoded.items():
        if not isinstance(values[0], (list, tuple)):
            out[key] = torch.tensor(values)
            continue
        tensors = [torch.tensor(v, dtype=torch.long) for v in values]
        out[key] = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill.get(key, 0))
    if "attention_mask" not in out and "input_ids" in out:
        lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])
        out["attention_mask"] = (torch.arange(out["input_ids"].shape[1])[None] < lengths[:, None]).long()
    return out


def pad_id(tokenizer: Any) -> int:
    """Any token does where there is none for padding: the mask hides it."""
    found = getattr(tokenizer, "pad_token_id", None)
    found = getattr(tokenizer, "eos_token_id", None) if found is None else found
    return 0 if found is None else int(found)


class ImageBatches(Batches):
    """Images through an image processor, prepared batch by batch."""

    def __init__(self, processor: Any, images: list[Any], batch_size: int | None = None) -> None:
        self.processor, self.images, self.batch_size = processor, images, batch_size or 16
        self.lengths = np.ones(len(images), dtype=int)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {key: torch.as_tensor(value) for key, value in self.processor([self.images[i] for i in rows], return_tensors="pt").items()}

    def take(self, rows: np.ndarray) -> ImageBatches:
        some = copy.copy(self)
        some.images, some.lengths = [self.images[i] for i in rows], self.lengths[rows]
        return some

    def encoded_bytes(self) -> Iterable[bytes]:
        for image in self.images:
            array = np.ascontiguousarray(image)
            yield f"{array.shape}{array.dtype}".encode()
            yield array.tobytes()


class ReadyBatches(Batches):
    """Inputs that need no tokenizer: one tensor (n, ...) or a dict of them, for any module with ``logits=``."""

    def __init__(self, inputs: Any, batch_size: int | None = None, trim: bool = False) -> None:
        self.trim = trim  # drop what is padding for a whole batch
        self.inputs = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        self.bare = not isinstance(inputs, dict)
        lengths = {key: len(value) for key, value in self.inputs.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the inputs differ in length: {lengths}")
        n = next(iter(lengths.values()))
        if not n:
            raise ValueError("inputs is empty: there is no per-example Fisher without an example")
        self.lengths = np.ones(n, dtype=int)
        self.batch_size = batch_size or 32

    def batch(self, rows: np.ndarray) -> Any:
        chosen = {key: value[torch.as_tensor(rows)] for key, value in self.inputs.items()}
        mask = chosen.get("attention_mask")
        if self.trim and mask is not None:
            kept = int(mask.flatten(0, -2).any(0).nonzero().max()) + 1
            chosen = {k: v[..., :kept] if v.ndim == mask.ndim and v.shape[-1] == mask.shape[-1] else v for k, v in chosen.items()}
        return chosen["inputs"] if self.bare else chosen

    def take(self, rows: np.ndarray) -> ReadyBatches:
        some = copy.copy(self)
        some.inputs = {key: value[torch.as_tensor(rows)] for key, value in self.inputs.items()}
        some.lengths = self.lengths[rows]
        return some

    def encoded_bytes(self) -> Iterable[bytes]:
        for name, tensor in self.inputs.items():
            yield f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode()
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def longest_input(model: nn.Module, tokenizer: Any) -> int | None:
    """Tokens that model and tokenizer both take, or None where neither says."""
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if getattr(config, "model_type", "") in {"t5", "mt5", "umt5"}:
        positions = None  # relative positions: the number in the configuration is what it was trained with
    # RoBERTa's table begins after the padding index.
    if positions and getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert", "longformer"}:
        positions -= getattr(config, "pad_token_id", 0) + 1
    said = getattr(tokenizer, "model_max_length", None)
    known = [int(x) for x in (positions, said) if x and x < 10**9]
    return min(known) if known else None


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch where the model stands."""
    return {k: v.to(device) for k, v in batch.items()} if isinstance(batch, dict) else batch.to(device)
