"""A pass in forward mode: parameters that carry tangents for as long as a block lasts, and layers that waste nothing on them.

Nearly all the time of a pass goes into linear layers, and there are three products in each, x W and dx W + x dW, where a plain pass has one.  So here
they are summed in place, and not formed for rows that nothing reads: in an encoder's last layer often all but those of the first position.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

LOCK = threading.Lock()
"""torch has one level of forward mode for all threads."""


@contextmanager
def moving(model: nn.Module, tangents: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters carry tangents inside the block; their values are not touched, so that nothing has to be put back.

    A copy of a parameter onto itself sets its tangent and moves no byte.  So whoever holds the parameter (tied modules, lists, parametrizations)
    sees it, and the end of torch's level of forward mode removes it everywhere.
    """
    there = dict(model.named_parameters())
    moved = [there[name] for name in tangents]
    fast = torch.backends.mha.get_fastpath_enabled()
    # A graph that the caller holds over these parameters stays good: their values are the same.
    with (
        LOCK, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level(), torch.autograd._unsafe_preserve_version_counter(tuple(moved))
    ):  # fmt: skip
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # fused kernels have no formula in forward mode
            for p, tangent in zip(moved, tangents.values(), strict=True):
                p.copy_(forward_ad.make_dual(p.detach(), tangent))
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


class Layers(TorchFunctionMode):
    """Linear layers, layer norms and attention inside the block by formulas of our own, in which the terms of a tangent are summed in place.

    Parameters
    ----------
    first : numbers of the linear layers' calls of which only the first position of each example is formed; all others are NaN, so that they cannot
        go unnoticed should anything read them after all.
    """

    def __init__(self, first: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.first, self._calls = first, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nnf.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        if func is nnf.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        if func is not nnf.linear:
            return func(*args, **(kwargs or {}))
        self._calls += 1
        return self._linear(self._calls - 1, *args, **(kwargs or {}))

    def _linear(self, number: int, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
        if number in self.first and input.ndim == 3 and input.shape[1] > 1:
            read = self._linear(-1, input[:, :1], weight, bias)
            whole = forward_ad.unpack_dual(read).primal.new_full((*input.shape[:2], read.shape[2]), torch.nan)
            whole[:, :1] = read
            return whole
        (x, dx), (w, dw) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(weight)
        b, db = (None, None) if bias is None else forward_ad.unpack_dual(bias)
        out = nnf.linear(x, w, b)
        if dw is None:
            tangent = None if dx is None else nnf.linear(dx, w, db)
        else:
            tangent = nnf.linear(x, dw, db)
            if dx is not None:
                tangent.view(-1, tangent.shape[-1]).addmm_(dx.reshape(-1, dx.shape[-1]), w.t())
        if tangent is None and db is not None:
            tangent = db.expand_as(out)
        return out if tangent is None else forward_ad.make_dual(out, tangent)


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5  # noqa: A002 - torch's name
) -> Tensor:  # fmt: skip
    """A layer norm y = γ x̂ + β, x̂ = (x − mean x) / σ, and dy = γ (dx − mean dx − x̂ mean(x̂ dx)) / σ + dγ x̂ + dβ, where torch takes dozens of steps."""
    x, dx = forward_ad.unpack_dual(input)
    (w, dw), (b, db) = ((None, None) if p is None else forward_ad.unpack_dual(p) for p in (weight, bias))
    if dx is None or len(normalized_shape) != 1 or x.dtype not in {torch.float32, torch.float64}:
        return nnf.layer_norm(input, normalized_shape, weight, bias, eps)
    out, mean, inverse = torch.native_layer_norm(x, normalized_shape, w, b, eps)
    normed = (x - mean).mul_(inverse)
    along = torch.linalg.vecdot(normed, dx)[..., None] / x.shape[-1]
    tangent = (dx - dx.mean(-1, keepdim=True)).addcmul_(normed, along, value=-1).mul_(inverse)
    tangent = tangent if w is None else tangent.mul_(w)
    tangent = tangent if dw is None else tangent.addcmul_(normed, dw)
    return forward_ad.make_dual(out, tangent if db is None else tangent.add_(db))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any) -> Tensor:
    """Attention o = P v, P = softmax(s), s = c q kᵀ + mask: do = dP v + P dv with dP = P ∘ (ds − Σ P ∘ ds), ds = c (dq kᵀ + q dkᵀ)."""
    duals = [forward_ad.unpack_dual(part) for part in (query, key, value)]
    (q, dq), (k, dk), (v, dv) = duals
    if dq is None or dk is None or dv is None or dropout_p or more.get("is_causal") or more.get("enable_gqa"):
        return nnf.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **more)
    c = more.get("scale") or q.shape[-1] ** -0.5
    q, k = q * c, k.transpose(-1, -2)
    p = q @ k
    attn_mask, dmask = (None, None) if attn_mask is None else forward_ad.unpack_dual(attn_mask)  # a table of relative positions has a tangent
    if attn_mask is not None:
        p = p.masked_fill_(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else p.add_(attn_mask)
    nothing = None if attn_mask is None else (p == -torch.inf).all(-1, keepdim=True)
    p = torch.softmax(p, -1)
    p = p if nothing is None else p.masked_fill_(nothing, 0)  # a position that sees nothing gives nothing, as in torch
    ds = ((dq * c) @ k).add_(q @ dk.transpose(-1, -2))
    ds = ds if dmask is None else ds.add_(dmask)
    dp = ds.sub_(torch.linalg.vecdot(p, ds)[..., None]).mul_(p)
    return forward_ad.make_dual(p @ v, (dp @ v).add_(p @ dv))


class _Watched(TorchFunctionMode):
    """Keeps the shapes of what linear layers give, and their places in the graph, which begins at the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes, self.edges = list[torch.Size](), list[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is not nnf.linear:
            return found
        self.shapes.append(found.shape)
        if found.requires_grad:
            # The edge, not the tensor: a later in-place operation would turn the tensor into another one.
            self.edges.append(torch.autograd.graph.get_gradient_edge(found))
            return found
        self.edges.append(found.detach().requires_grad_())
        return self.edges[-1].clone()


def read_at_first_position(logits: Callable[[], Tensor]) -> frozenset[int]:
    """Numbers of the linear layers' calls of which one example's prediction feels the first of several positions alone, by one backward pass.

    None where there is no way back.
    """
    try:
        with torch.enable_grad(), _Watched() as watched:
            z = logits()
        # Unlike weights: equal ones add up to nothing where a prediction is normalised.
        weights = torch.linspace(1, 2, z.numel(), dtype=z.dtype, device=z.device).view_as(z)
        gradients = torch.autograd.grad(z, watched.edges, weights, allow_unused=True)
    except RuntimeError:
        return frozenset()
    return frozenset(
        number
        for number, (shape, gradient) in enumerate(zip(watched.shapes, gradients, strict=True))
        if len(shape) == 3 and shape[0] == 1 < shape[1] and gradient is not None and not bool(gradient[:, 1:].any())
    )
