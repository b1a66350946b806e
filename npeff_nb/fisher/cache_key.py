"""What makes two extractions the same: the name under which a result is found again."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import torch

from npeff_nb.fisher._inputs import LogitsOf, ReadyBatches, TextBatches
from npeff_nb.fisher.features import FeatureMap


def cache_key(
    facts: dict, table: pd.DataFrame, chosen: pd.DataFrame, feature_map: FeatureMap, batches: TextBatches | ReadyBatches, logits: LogitsOf | None
) -> str:
    """A hash of the model, the examples as the model sees them, the parameters, the coordinates and the function that reads logits.

    Raises
    ------
    ValueError
        When ``logits`` is no plain function: its code cannot be told from another's.
    """
    digest = hashlib.sha256(json.dumps([facts, list(chosen["name"]), feature_map.id], sort_keys=True, default=str).encode())
    digest.update(table.to_json(orient="split").encode())
    if isinstance(batches, TextBatches):  # what the model really sees: another tokenizer, another cut
        digest.update(json.dumps({key: list(values) for key, values in batches.encoded.items()}, sort_keys=True).encode())
    else:
        for name, tensor in batches.inputs.items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    if logits is not None:
        code = getattr(logits, "__code__", None)
        if code is None:
            raise ValueError(f"cache= cannot tell one {type(logits).__name__} from another: give logits= as a plain function, or no cache=")
        held = [repr(cell.cell_contents) for cell in logits.__closure__ or ()]
        digest.update(repr((logits.__module__, logits.__qualname__, code.co_code, code.co_consts, code.co_names, logits.__defaults__, held)).encode())
    return digest.hexdigest()[:24]
