"""Which parameters take part, and what each of them is: the choice that decides what components can be about.

One layer can own nearly all the gradient energy (in small models the classifier's own weights often do), and then every component is a
statement about that layer.  So the choice is explicit, it is recorded with its energy, and the head is left out by default.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pandas as pd
from torch import nn

KINDS: tuple[tuple[str, str], ...] = (
    ("attention query", r"(query|q_proj|q_lin|self_attn\.q|SelfAttention\.q)$"),
    ("attention key", r"(key|k_proj|k_lin|SelfAttention\.k)$"),
    ("attention value", r"(value|v_proj|v_lin|SelfAttention\.v)$"),
    ("attention query key value", r"(c_attn|query_key_value|qkv)$"),
    ("attention output", r"(attention\.output\.dense|o_proj|out_lin|attn\.c_proj|out_proj|attention\.dense|SelfAttention\.o)$"),
    ("MLP in", r"(intermediate\.dense|up_proj|gate_proj|lin1|mlp\.c_fc|fc1|dense_h_to_4h|wi(_\d)?)$"),
    ("MLP out", r"(output\.dense|down_proj|lin2|mlp\.c_proj|fc2|dense_4h_to_h|wo)$"),
    ("pooler", r"pooler\.dense$"),
)
"""The parts of a transformer layer, by how the common families name the module (first match counts)."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)(?:\.|$)")


def describe_parameters(model: nn.Module) -> pd.DataFrame:
    """One row a parameter, tied ones once: ``name``, ``kind``, ``layer`` (or <NA>), ``shape``, ``numel``.

    Kinds: the parts of a transformer layer as in :data:`KINDS`, ``embedding``, ``norm``, ``bias``, ``head`` (what stands outside a Hugging Face
    model's base, or else the last module with parameters) and ``weight`` for everything else.
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


def choose_parameters(model: nn.Module, parameters: str | list[str] = "default") -> pd.DataFrame:
    """The rows of :func:`describe_parameters` that take part.

    Parameters
    ----------
    parameters : ``"default"`` is every weight matrix but the head's and the embeddings'; ``"all"`` is every parameter; another string is a pattern on
        the names (``"*layer.5*"``) or one of the kinds (``"MLP in"``); a list holds names.

    Raises
    ------
    ValueError
        When nothing matches or a listed name does not exist; the message shows what is there.
    """
    table = describe_parameters(model)
    if table.empty:
        raise ValueError(f"the model ({type(model).__name__}) has no parameters, so there is nothing to take a Fisher over")
    if isinstance(parameters, str) and parameters == "all":
        chosen = table
    elif isinstance(parameters, str) and parameters == "default":
        chosen = table[~table["kind"].isin(["head", "embedding", "norm", "bias"])]
        # A model that is nothing but a head (logistic regression) is decomposed over that head.
        chosen = chosen if len(chosen) else table[~table["kind"].isin(["norm", "bias"])]
    elif isinstance(parameters, str):
        chosen = table[[fnmatchcase(n, parameters) or k == parameters for n, k in zip(table["name"], table["kind"], strict=True)]]
        if chosen.empty:
            raise ValueError(
                f"parameters={parameters!r} matches none of the model's {len(table)} parameters; a pattern matches names such as "
                f"{table['name'].iloc[0]!r}, and the kinds here are {', '.join(sorted(set(table['kind'])))}"
            )
    else:
        wanted = list(parameters)
        missing = [name for name in wanted if name not in set(table["name"])]
        if missing or not wanted:
            raise ValueError(
                f"parameters= names {missing[0]!r}, which the model does not have; its {len(table)} names are like {', '.join(table['name'].head(3))}"
                if missing
                else "parameters= is an empty list: name at least one parameter"
            )
        chosen = table[table["name"].isin(wanted)]
    return chosen.reset_index(drop=True)


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    base = getattr(model, "base_model_prefix", "")
    if base and getattr(model, base, None) is not None and getattr(model, base) is not model:
        return tuple(n for n, child in model.named_children() if n != base and any(True for _ in child.parameters()))
    with_parameters = [path for path, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    return (with_parameters[-1],) if with_parameters else ()


def _kind(name: str, path: str, module: nn.Module, parameter: nn.Parameter, head: tuple[str, ...]) -> str:
    if any(name == h or name.startswith(h + ".") for h in head):
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "Norm" in type(module).__name__:
        return "norm"
    if name.endswith("bias"):
        return "bias"
    return next((kind for kind, pattern in KINDS if re.search(pattern, path)), "weight")
