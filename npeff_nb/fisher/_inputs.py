"""What people hand over, turned into batches: tables, lists of texts, data sets, ready batches."""

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


class TextBatches:
    """Texts through a tokenizer, in batches of like length; positions are those of the table.

    Over-long texts are cut to what the model takes, with one warning that counts them.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, table: pd.DataFrame, batch_size: int | None, quiet: bool = False) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        longest = longest_input(model, tokenizer)
        pairs = {"text_pair": table["text_pair"].tolist()} if "text_pair" in table.columns else {}
        # Measured in full first (cheap), so that cut texts can be counted.
        full = tokenizer(table["text"].tolist(), **pairs, truncation=False, verbose=False)
        self.cut = sum(len(ids) > longest for ids in full["input_ids"]) if longest else 0
        if self.cut and not quiet:
            warnings.warn(
                f"{self.cut} of {len(table)} texts are longer than the {longest} tokens that the model takes and are cut to that length; "
                "what stands after the cut takes no part",
                stacklevel=3,
            )
        self.encoded = tokenizer(table["text"].tolist(), **pairs, truncation=True, max_length=longest, verbose=False) if self.cut else full
        self.lengths = np.array([len(ids) for ids in self.encoded["input_ids"]])
        if self.lengths.min() == 0:
            raise ValueError(f"row {int(self.lengths.argmin())} gives no tokens at all: drop texts that are empty for the tokenizer")

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Positions of each batch: longest first, so that running out of memory happens at once, not at the end."""
        rows = np.arange(len(self.lengths)) if rows is None else np.asarray(rows)
        order = rows[np.argsort(-self.lengths[rows], kind="stable")]
        out, at = [], 0
        while at < len(order):
            size = self.batch_size or max(1, min(64, POSITIONS_A_BATCH // int(self.lengths[order[at]])))
            out.append(order[at : at + size])
            at += size
        return out

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        chosen = {key: [values[i] for i in rows] for key, values in self.encoded.items()}
        return dict(self.tokenizer.pad(chosen, padding="longest", return_tensors="pt"))

    def take(self, rows: np.ndarray) -> TextBatches:
        some = copy.copy(self)
        some.encoded = {key: [values[i] for i in rows] for key, values in self.encoded.items()}
        some.lengths = self.lengths[rows]
        return some


class ReadyBatches:
    """Inputs that need no tokenizer: one tensor (n, ...) or a dict of them, for any module with ``logits=``."""

    def __init__(self, inputs: Any, batch_size: int | None) -> None:
        self.cut = 0
        self.inputs = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        self.bare = not isinstance(inputs, dict)
        lengths = {key: len(value) for key, value in self.inputs.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the inputs differ in length: {lengths}")
        self.n = next(iter(lengths.values()))
        self.size = batch_size or 32

    def __len__(self) -> int:
        return self.n

    def batches(self, rows: np.ndarray | None = None) -> list[np.ndarray]:
        rows = np.arange(self.n) if rows is None else np.asarray(rows)
        return [rows[at : at + self.size] for at in range(0, len(rows), self.size)]

    def batch(self, rows: np.ndarray) -> Any:
        chosen = {key: value[torch.as_tensor(rows)] for key, value in self.inputs.items()}
        return chosen["inputs"] if self.bare else chosen

    def take(self, rows: np.ndarray) -> ReadyBatches:
        some = copy.copy(self)
        some.inputs = {key: value[torch.as_tensor(rows)] for key, value in self.inputs.items()}
        some.n = len(rows)
        return some


def longest_input(model: nn.Module, tokenizer: Any) -> int | None:
    """Tokens that model and tokenizer both take, or None where neither says."""
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa's table begins after the padding index.
    if positions and getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert", "longformer"}:
        positions -= getattr(config, "pad_token_id", 0) + 1
    said = getattr(tokenizer, "model_max_length", None)
    known = [int(x) for x in (positions, said) if x and x < 10**9]
    return min(known) if known else None


def to_device(batch: Any, device: torch.device) -> Any:
    return {k: v.to(device) for k, v in batch.items()} if isinstance(batch, dict) else batch.to(device)


def hugging_face_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(n, c) of a sequence classifier."""
    output = model(**batch)
    logits = getattr(output, "logits", None)
    if logits is None or logits.ndim != 2:
        shape = None if logits is None else tuple(logits.shape)
        raise ValueError(
            f"{type(model).__name__} gives logits of shape {shape}; expected (examples, classes), as a sequence classifier does. "
            "For another model pass logits=, a function (model, batch) -> (n, c)"
        )
    return logits


LogitsOf = Callable[[nn.Module, Any], Tensor]
