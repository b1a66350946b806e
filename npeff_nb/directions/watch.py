"""One forward pass of a transformer, watched: its blocks, its layers, its attention.

The trace (:mod:`npeff_nb.directions.trace`) runs the same question several times, once with a graph for cotangents and then with tangents, and lays
side by side what was seen at the same places.  Models are recognised by what they do, not by name: blocks are the longest list of modules, attention
is whatever calls torch's scaled dot-product attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from npeff_nb.fisher.outputs import is_encoder_decoder

OUTSIDE = -1
"""The layer of what stands below the first block."""


@dataclass
class Call:
    """One call of a layer: a module that has parameters of its own.

    Attributes
    ----------
    layer : number of the block it was called in; :data:`OUTSIDE` below the first, the number of blocks above the last.
    after : whether this block's attention had been called.
    x : first argument; out : the output, or its tangent.
    """

    module: nn.Module
    layer: int
    after: bool
    x: Tensor | None
    out: Tensor


@dataclass
class Attention:
    """One call of scaled dot-product attention on one example: softmax(scale · q kᵀ + mask) v.

    Attributes
    ----------
    q, k, v, out : (1, heads, T, ·), keys and values repeated where heads share them; p : probabilities (1, heads, T, T).  In a pass with tangents
        these are the tangents.
    caller : the innermost module that called it; given : what that module gives.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    out: Tensor
    scale: float
    caller: nn.Module
    given: Tensor | None = None


class Watch(TorchFunctionMode):
    """What one pass does, in order.

    Parameters
    ----------
    tangents : note tangents; otherwise tensors with their graph, all of which require gradients from the embeddings on.
    without : modules that receive no tangents, so that theirs are what their own parameters introduce.
    cut_attention : likewise for what receives attention's output.

    Attributes
    ----------
    blocks : every block's input; last : the last block's output.
    calls : in order; attention : by layer.
    """

    def __init__(self, model: nn.Module, tangents: bool, without: set[nn.Module] | None = None, cut_attention: bool = False) -> None:
        super().__init__()
        self.members, self.tangents, self.without, self.cut_attention = find_blocks(model), tangents, without or set(), cut_attention
        self.model = model
        self.blocks: list[Tensor] = []
        self.last: Tensor | None = None
        self.calls: list[Call] = []
        self.attention: dict[int, list[Attention]] = {}
        self._running: list[nn.Module] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watches what the model does until the block ends; leaves no hook behind."""
        hooks = []
        try:
            for module in self.model.modules():
                hooks += [module.register_forward_pre_hook(self._before, with_kwargs=True), module.register_forward_hook(self._behind)]
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def callers(self) -> set[nn.Module]:
        """The modules that call attention."""
        return {found.caller for calls in self.attention.values() for found in calls}

    def within_callers(self) -> set[nn.Module]:
        """They and all within them."""
        return {module for caller in self.callers() for module in caller.modules()}

    def check(self, length: int) -> None:
        """Raises ValueError, in words, where the model is not of the kind that can be followed."""
        name = type(self.model).__name__
        if not self.blocks:
            raise ValueError(f"{name} calls none of its blocks: a trace follows a plain forward pass")
        for layer, h in enumerate(self.blocks):
            calls = self.attention.get(layer, [])
            if h.ndim != 3 or tuple(h.shape[:2]) != (1, length):
                raise ValueError(f"block {layer} of {name} reads a tensor of shape {tuple(h.shape)}; a trace needs (1, {length} tokens, width)")
            if len(calls) != 1 or calls[0].p.ndim != 4 or tuple(calls[0].p.shape[-2:]) != (length, length):
                raise ValueError(
                    f"block {layer} of {name} has {len(calls)} calls of scaled dot-product attention that its {length} tokens could be followed "
                    "through; a trace needs one a block, as BERT, RoBERTa, DistilBERT, GPT-2, Llama and their like have it"
                )

    def _layer(self) -> int:
        if any(module in self.members for module in self._running):
            return len(self.blocks) - 1
        return len(self.blocks) if self.blocks else OUTSIDE

    def _noted(self, x: Tensor) -> Tensor:
        return tangent(x) if self.tangents else x

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if module in self.members:
            self.blocks.append(self._noted(args[0] if args else kwargs["hidden_states"]))
        self._running.append(module)
        if module not in self.without:
            return args, kwargs
        return tuple(map(_primal, args)), {key: _primal(value) for key, value in kwargs.items()}

    def _behind(self, module: nn.Module, args: tuple, out: Any) -> Any:
        self._running.pop()
        if module in self.members:
            self.last = self._noted(out[0] if isinstance(out, tuple) else out)
        for found in self.attention.get(self._layer(), []):
            if found.caller is module:
                found.given = self._noted(out[0] if isinstance(out, tuple) else out)
        if not torch.is_tensor(out) or not _is_layer(module) or any(_is_layer(outer) for outer in self._running):
            return None
        if not self.tangents and not out.requires_grad:
            out.requires_grad_()  # an embedding's: cotangents are asked of what modules give, never of parameters
        layer = self._layer()
        self.calls.append(Call(module, layer, layer in self.attention, args[0] if args else None, self._noted(out)))
        return None if self.tangents else out.clone()  # what was noted stays as it is when the model writes over its own copy

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        out = self._attend(*args, **(kwargs or {}))
        return _primal(out) if self.cut_attention else out

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """As torch does it, in steps that can be differentiated both ways, and noted."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scores = query @ key.mT * scale
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        p = scores.softmax(-1)
        out = p @ value
        q, k, v, p = (tangent(x) if self.tangents else x.detach() for x in (query, key, value, p))
        self.attention.setdefault(self._layer(), []).append(Attention(q, k, v, p, self._noted(out), scale, self._running[-1]))
        return out


def find_blocks(model: nn.Module) -> set[nn.Module]:
    """The members of the model's longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists or is_encoder_decoder(model):
        what = "is an encoder-decoder" if lists else "has no list of blocks (torch.nn.ModuleList)"
        raise ValueError(f"{type(model).__name__} {what}: a trace follows transformers with one list of blocks, as BERT, GPT-2 and Llama have it")
    longest = max(lists, key=len)
    return set(longest)


def _is_layer(module: nn.Module) -> bool:
    """Whether it has parameters and no modules within, or is a layer with an adapter (PEFT), which counts as one.

    A parameter of what has modules within is mostly one of theirs under a second name, as the bias of a language model's head.
    """
    plain = next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None
    return plain or isinstance(getattr(module, "base_layer", None), nn.Module)


def tangent(x: Tensor) -> Tensor:
    """The tangent of a dual tensor, zeros where it has none."""
    found = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if found is None else found.clone()


def _primal(x: Any) -> Any:
    return forward_ad.unpack_dual(x).primal if torch.is_tensor(x) else x


@contextmanager
def torch_attention(model: nn.Module) -> Iterator[None]:
    """Hugging Face's models call torch's attention function meanwhile, however they were set."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None and getattr(c, "_attn_implementation", None)}
    was = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            if config._attn_implementation != "sdpa":
                config._attn_implementation = "sdpa"
        yield
    finally:
        for key, config in configs.items():
            if config._attn_implementation != was[key]:
                config._attn_implementation = was[key]
