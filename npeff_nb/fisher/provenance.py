"""Where Fishers come from: what tells one model, one set of examples, one way of asking from another."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd
import torch
from torch import nn

from npeff_nb.fisher.batches import Batches
from npeff_nb.fisher.outputs import Output, Own


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A hash of every parameter and buffer by its name: tells which tensors of two models are the same to the bit."""
    found = {}
    for name, value in model.state_dict().items():
        digest = hashlib.sha256(f"{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()[:16]
    return found


def fingerprint(of_each: dict[str, str]) -> str:
    """One hash of all of them."""
    return hashlib.sha256(json.dumps(of_each, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_facts(tokenizer: Any) -> dict[str, Any] | None:
    """Name and hash of a tokenizer's vocabulary, or None where there is none."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if not callable(vocabulary):
        return None
    words = json.dumps(sorted(vocabulary().items()))
    return {
        "name": str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__),
        "vocabulary": hashlib.sha256(words.encode()).hexdigest()[:16],
    }


def differences(facts: dict[str, Any], model: nn.Module, tokenizer: Any = None) -> list[str]:
    """What is different between the model that Fishers were taken from and this one, by name; empty for the same."""
    found = of_fingerprints(facts.get("fingerprints", {}), fingerprints(model))
    before, now = facts.get("tokenizer"), tokenizer_facts(tokenizer)
    if before and now and before["vocabulary"] != now["vocabulary"]:
        found.append(f"the tokenizer's vocabulary is another one ({now['name']}; it was {before['name']})")
    return found


def of_fingerprints(expected: dict[str, str], here: dict[str, str]) -> list[str]:
    """What is different between two models, by :func:`fingerprints`; nothing where one of them is not known."""
    found = []
    for what, names in (
        ("is missing", [n for n in expected if n not in here]),
        ("is new", [n for n in here if n not in expected]),
        ("has other values", [n for n in expected if n in here and here[n] != expected[n]]),
    ):
        if names and expected and here:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"{', '.join(names[:3])}{more} {what if len(names) == 1 else what.replace('is', 'are').replace('has', 'have')}")
    return found


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on."""
    found: dict[str, str | None] = {}
    for package in ("npeff-nb", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def extraction_key(facts: dict[str, Any], table: pd.DataFrame, chosen: pd.DataFrame, map_id: str, batches: Batches, output: Output) -> str:
    """A hash of the model, the examples as the model sees them, the parameters, the coordinates and the way of asking.

    Raises
    ------
    ValueError
        When ``logits=`` is no plain function: its code cannot be told from another's.
    """
    digest = hashlib.sha256(json.dumps([facts, list(chosen["name"]), list(chosen["scale"]), map_id], sort_keys=True, default=str).encode())
    digest.update(table.to_json(orient="split", default_handler=str).encode())
    for part in batches.encoded_bytes():
        digest.update(part)
    if isinstance(output, Own):
        function = output.function
        code = getattr(function, "__code__", None)
        if code is None:
            raise ValueError(f"cache= cannot tell one {type(function).__name__} from another: give logits= as a plain function, or no cache=")
        held = [repr(cell.cell_contents) for cell in function.__closure__ or ()]
        digest.update(
            repr((function.__module__, function.__qualname__, code.co_code, code.co_consts, code.co_names, function.__defaults__, held)).encode()
        )
    return digest.hexdigest()[:24]
