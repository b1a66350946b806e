"""Which parameters take part, and what each of them is: the choice that decides what components can be about.

One layer can own nearly all the gradient energy (in small models the classifier's own weights often do), and then every component is a
statement about that layer.  So the choice is explicit, it is recorded with its energy, and the head is left out by default.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
from torch import nn

KINDS: tuple[tuple[str, str], ...] = (
    ("attention query", r"(query|q_proj|q_lin|self_attn\.q|Attention\.q)$"),
    ("attention key", r"(key|k_proj|k_lin|Attention\.k)$"),
    ("attention value", r"(value|v_proj|v_lin|Attention\.v)$"),
    ("attention query key value", r"(c_attn|query_key_value|qkv)$"),
    ("attention output", r"(attention\.output\.dense|o_proj|out_lin|attn\.c_proj|out_proj|attention\.dense|Attention\.o)$"),
    ("MLP in", r"(intermediate\.dense|up_proj|gate_proj|lin1|mlp\.c_fc|fc1|dense_h_to_4h|wi(_\d)?)$"),
    ("MLP out", r"(output\.dense|down_proj|lin2|mlp\.c_proj|fc2|dense_4h_to_h|wo)$"),
    ("pooler", r"pooler\.dense$"),
)
"""The parts of a transformer layer, by how the common families name the module (first match counts)."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)(?:\.|$)")


_RANGE = re.compile(r"layers?\s+(\d+)\s*(?:(?:-|to)\s*(\d+))?$", re.IGNORECASE)
_ADAPTER = re.compile(r"(^|\.)(lora_[A-Za-z_]+|adapters?)(\.|$)")


def describe_parameters(model: nn.Module) -> pd.DataFrame:
    """One row a parameter, tied ones once: ``name``, ``kind``, ``layer`` (or <NA>), ``shape``, ``numel``.

    Kinds: the parts of a transformer layer as in :data:`KINDS`, ``adapter`` (low-rank matrices that PEFT puts beside a layer), ``embedding``,
    ``norm``, ``bias``, ``head`` (what stands outside a Hugging Face model's base, or else the last module with parameters) and ``weight`` for
    everything else.
    """
    owners = {id(p): (path, m) for path, m in reversed(list(model.named_modules())) for p in m.parameters(recurse=False)}
    head = _head_prefixes(model)
    rows = []
    for name, parameter in model.named_parameters():
        path, module = owners[id(parameter)]
        layer = _LAYER.search(name)
        rows.append(
            {
                "name": name,
                "kind": _kind(name, path, module, parameter, head),
                "layer": int(layer.group(1)) if layer else pd.NA,
                "shape": tuple(parameter.shape),
                "numel": parameter.numel(),
            }
        )
    table = pd.DataFrame(rows, columns=["name", "kind", "layer", "shape", "numel"])
    return table.astype({"layer": "Int64"})


def choose_parameters(model: nn.Module, parameters: str | list[str] = "default", scale: dict[str, float] | None = None) -> pd.DataFrame:
    """The rows of :func:`describe_parameters` that take part, with a column ``scale``.

    Parameters
    ----------
    parameters : ``"default"`` is every weight matrix but the head's and the embeddings' (a model with adapters: the adapters alone); ``"all"`` is
        every parameter; another string is a pattern on the names (``"*layer.5*"``), one of the kinds or its first word (``"MLP in"``,
        ``"attention"``), or a range of layers (``"layers 2-5"``); several joined by ``&`` must all hold, ``!`` before one turns it round:
        ``"attention & layers 0-2 & !*bias"``.
         A list holds any of these, of which one must hold.
    scale : the same strings -> factor on these parameters' gradients; the Fisher is then the one over θ/scale.  Others stay at 1.

    Raises
    ------
    ValueError
        When nothing matches or a listed name does not exist; the message shows what is there.
    """
    table = describe_parameters(model)
    if table.empty:
        raise ValueError(f"the model ({type(model).__name__}) has no parameters, so there is nothing to take a Fisher over")
    if isinstance(parameters, str) and parameters == "default":
        chosen = table[table["kind"] == "adapter"]
        chosen = chosen if len(chosen) else table[~table["kind"].isin(["head", "embedding", "norm", "bias"])]
        # A model that is nothing but a head (logistic regression) is decomposed over that head.
        chosen = chosen if len(chosen) else table[~table["kind"].isin(["norm", "bias"])]
    elif isinstance(parameters, str):
        holds = _holds(table, parameters)
        if not holds.any():
            raise ValueError(
                f"parameters={parameters!r} matches none of the model's {len(table)} parameters; a pattern matches names such as "
                f"{table['name'].iloc[0]!r}, and the kinds here are {', '.join(sorted(set(table['kind'])))}"
            )
        chosen = table[holds]
    else:
        wanted = list(parameters)
        if not wanted:
            raise ValueError("parameters= is an empty list: name at least one parameter")
        holds = pd.Series(data=False, index=table.index)
        for one in wanted:
            found = _holds(table, one)
            if not found.any():
                raise ValueError(
                    f"parameters= names {one!r}, which the model does not have; its {len(table)} names are like {', '.join(table['name'].head(3))}"
                )
            holds |= found
        chosen = table[holds]
    return _scaled(chosen.reset_index(drop=True), scale)


def _holds(table: pd.DataFrame, said: str) -> pd.Series:
    """Which rows one string of ``parameters=`` speaks of."""
    holds = pd.Series(data=True, index=table.index)
    for part in map(str.strip, said.split("&")):
        wanted = part.removeprefix("!").strip()
        layers = _RANGE.match(wanted)
        if wanted == "all":
            found = pd.Series(data=True, index=table.index)
        elif layers:
            first = int(layers.group(1))
            found = table["layer"].between(first, int(layers.group(2) or first)).fillna(value=False).astype(bool)
        else:
            kind = (table["kind"] == wanted) | table["kind"].str.startswith(wanted + " ")
            found = table["name"].map(lambda name, wanted=wanted: fnmatchcase(name, wanted)) | kind
        holds &= ~found if part.startswith("!") else found
    return holds


def _scaled(chosen: pd.DataFrame, scale: dict[str, float] | None) -> pd.DataFrame:
    factors = pd.Series(1.0, index=chosen.index)
    for said, factor in (scale or {}).items():
        if not (isinstance(factor, (int, float, np.integer, np.floating)) and 0 < factor < float("inf")):
            raise ValueError(
                f"scale={{{said!r}: {factor!r}}}: a scale is a positive number; leave parameters out with parameters= instead of scaling by 0"
            )
        holds = _holds(chosen, said)
        if not holds.any():
            raise ValueError(f"scale= names {said!r}, which none of the {len(chosen)} parameters that take part is")
        factors[holds] *= float(factor)
    return chosen.assign(scale=factors)


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    unwrap = getattr(model, "get_base_model", None)  # under adapters (PEFT) that wrap it
    inner = unwrap() if callable(unwrap) else model
    within = next((path + "." if path else "" for path, m in model.named_modules() if m is inner), "")
    base = getattr(inner, "base_model_prefix", "")
    if base and getattr(inner, base, None) is not None and getattr(inner, base) is not inner:
        return tuple(within + n for n, child in inner.named_children() if n != base and any(True for _ in child.parameters()))
    with_parameters = [path for path, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    return (with_parameters[-1],) if with_parameters else ()


def _kind(name: str, path: str, module: nn.Module, parameter: nn.Parameter, head: tuple[str, ...]) -> str:
    if _ADAPTER.search(name):
        return "adapter"
    if any(name == h or name.startswith(h + ".") for h in head):
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "Norm" in type(module).__name__:
        return "norm"
    if name.endswith("bias"):
        return "bias"
    if "embed" in path.lower():  # an image's patches, a sequence's own first token
        return "embedding"
    return next((kind for kind, pattern in KINDS if re.search(pattern, path)), "weight")
