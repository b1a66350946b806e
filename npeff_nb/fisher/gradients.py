"""Per-example gradients of the factor rows, without ever asking autograd for a weight's gradient.

Every parameter that takes part belongs to a module whose gradient is a sum over positions t of outer products,

    ∂⟨row, z⟩/∂W = Σ_t left_t right_tᵀ,

with one side known from the forward pass (a linear layer's input) and the other from the backward pass (the gradient with respect to
that layer's *output*).  So parameters stay out of autograd, one backward per factor row serves a whole batch, and what is kept of a
gradient is decided later by whoever consumes the two sides (:mod:`npeff_nb.fisher.features`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Outer:
    """One use of one parameter in a batch: gradient (i, k) = Σ_t left[i, k, t] ⊗ right[i, k, t].

    ``left`` is (n, K or 1, T, out) and ``right`` (n, K or 1, T, in), both real; or ``left`` is (n, 1, T) of integers: the row of a table
    that position t looked up, standing for a one-hot vector of length ``rows``.
    """

    left: Tensor
    right: Tensor
    rows: int | None = None  # length of the one-hot vectors, for a looked-up table

    def dense(self) -> Tensor:
        """The gradients themselves, (n, K, out, in)."""
        if self.rows is None:
            left, right = _same_rows(self.left, self.right)
            return torch.einsum("nkto,nkti->nkoi", left, right)
        n, k, t, width = self.right.shape
        table = self.right.new_zeros(n, k, self.rows, width)
        where = self.left.expand(n, k, t)[..., None].expand(n, k, t, width)
        return table.scatter_add_(2, where, self.right)

    def projected(self, u: Tensor | None, v: Tensor | None) -> Tensor:
        """U · gradient · Vᵀ without the gradient: (n, K, s_out, s_in) for U (s_out, out), V (s_in, in); None is the identity."""
        if self.rows is None:
            left = self.left if u is None else self.left @ u.T
        elif u is None:
            left = nnf.one_hot(self.left, self.rows).to(self.right.dtype)
        else:
            left = u.T[self.left]
        right = self.right if v is None else self.right @ v.T
        left, right = _same_rows(left, right)
        return left.transpose(-1, -2) @ right

    def along(self, direction: Tensor) -> Tensor:
        """⟨left_t ⊗ right_t, direction⟩ for every position: (n, K, T), whose sum over t is the gradient along ``direction`` (out, in)."""
        if self.rows is None:
            left, right = _same_rows(self.left, self.right @ direction.T)
            return (left * right).sum(-1)
        return (direction[self.left] * self.right).sum(-1)


def _same_rows(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    k = max(left.shape[1], right.shape[1])
    return left.expand(-1, k, -1, -1), right.expand(-1, k, -1, -1)


def small_grams(uses: list[Outer]) -> Tensor:
    """Exact inner products of each example's K rows for one parameter, summed over its uses: (n, K, K).

    ⟨Σ_t l_t r_tᵀ, Σ_s l'_s r'_sᵀ⟩ = Σ_{t,s} (l_t·l'_s)(r_t·r'_s): with few positions this costs far less than the gradient
    itself; with many the gradients are formed, whichever is cheaper.
    """
    if len(uses) == 1:
        use = uses[0]
        left_width = use.left.shape[-1] if use.rows is None else use.rows
        t, width = use.right.shape[2], use.right.shape[3]
        k = max(use.left.shape[1], use.right.shape[1])
        ghost = (k * t) ** 2 * (width if use.left.shape[1] == 1 or use.rows is not None else left_width)
        if use.rows is None and ghost > k * t * left_width * width:
            rows = use.dense().flatten(2)
            return rows @ rows.transpose(1, 2)
    return torch.stack([_inner(_left_products(a, b), _flat_products(a.right, b.right), a, b) for a in uses for b in uses]).sum(0)


def _flat_products(x: Tensor, y: Tensor) -> Tensor:
    """x_{k,t}·y_{l,s} as (n, K, T, L, S)."""
    (n, k, t, _), (_, l, s, _) = x.shape, y.shape  # noqa: E741
    return (x.flatten(1, 2) @ y.flatten(1, 2).transpose(1, 2)).view(n, k, t, l, s)


def _left_products(a: Outer, b: Outer) -> Tensor:
    if a.rows is None and b.rows is None:
        return _flat_products(a.left, b.left)
    if a.rows is not None and b.rows is not None:
        return (a.left[:, :, :, None, None] == b.left[:, None, None]).to(a.right.dtype)
    if a.rows is not None:
        return _left_products(b, a).permute(0, 3, 4, 1, 2)
    # a's vectors, read at the places that b looked up
    n, k, t, _ = a.left.shape
    s = b.left.shape[-1]
    return a.left.gather(-1, b.left[:, :, None].expand(n, k, t, s)).view(n, k, t, 1, s)


def _inner(left: Tensor, right: Tensor, a: Outer, b: Outer) -> Tensor:
    products = left * right  # (n, K|1, T, K|1, S), broadcast
    k = max(a.left.shape[1], a.right.shape[1])
    l = max(b.left.shape[1], b.right.shape[1])  # noqa: E741
    return products.sum((2, 4)).expand(-1, k, l)


# ---------------------------------------------------------------------------------------------------------------------------------
# The rules: for one call of a module, the two sides of each of its parameters.  `a` is the module's input, `b` the gradients with
# respect to its output for all K rows, (n, K, ..., out).


def _positions(x: Tensor, lead: int) -> Tensor:
    """Everything between the leading axes and the last one becomes a single axis of positions."""
    return x.reshape(*x.shape[:lead], -1, x.shape[-1])


def _bias(b: Tensor) -> Outer:
    b = b.sum(2, keepdim=True)
    return Outer(b, b.new_ones(1, 1, 1, 1).expand(b.shape[0], 1, 1, 1))


def _linear(module: nn.Linear, a: Tensor, b: Tensor) -> dict[str, Outer]:
    b = _positions(b, 2)
    return {"weight": Outer(b, _positions(a, 1)[:, None]), "bias": _bias(b)}


def _conv1d(module: nn.Module, a: Tensor, b: Tensor) -> dict[str, Outer]:
    # GPT-2's "Conv1D" is a linear layer that keeps its weight transposed: (in, out).
    b = _positions(b, 2)
    return {"weight": Outer(_positions(a, 1)[:, None], b), "bias": _bias(b)}


def _embedding(module: nn.Embedding, a: Tensor, b: Tensor) -> dict[str, Outer]:
    ids, b = a.reshape(a.shape[0], 1, -1).expand(b.shape[0], 1, -1), _positions(b, 2)
    if module.padding_idx is not None:  # autograd gives that row of the table no gradient
        b = b * (ids != module.padding_idx)[..., None]
    return {"weight": Outer(ids, b, rows=module.num_embeddings)}


def _layer_norm(module: nn.LayerNorm, a: Tensor, b: Tensor) -> dict[str, Outer]:
    if len(module.normalized_shape) != 1:
        raise NotImplementedError(f"LayerNorm over {len(module.normalized_shape)} axes; per-example gradients know LayerNorm over the last one")
    normal = nnf.layer_norm(a, module.normalized_shape, eps=module.eps)
    b = _positions(b, 2)
    return {"weight": _bias(b * _positions(normal, 1)[:, None]), "bias": _bias(b)}


def _conv2d(module: nn.Conv2d, a: Tensor, b: Tensor) -> dict[str, Outer]:
    if module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise NotImplementedError("Conv2d with groups, named padding or a padding mode other than zeros")
    patches = nnf.unfold(a, module.kernel_size, module.dilation, module.padding, module.stride)  # (n, in*kh*kw, T)
    b = b.flatten(3).transpose(2, 3)  # (n, K, T, out)
    return {"weight": Outer(b, patches.transpose(1, 2)[:, None]), "bias": _bias(b)}


RULES: dict[str, Callable[[Any, Tensor, Tensor], dict[str, Outer]]] = {
    "Linear": _linear,
    "Conv1D": _conv1d,
    "Embedding": _embedding,
    "LayerNorm": _layer_norm,
    "Conv2d": _conv2d,
}
"""By class name, so that no optional library needs to be imported to know its layers."""


class UnsupportedModule(NotImplementedError):
    """A parameter that takes part belongs to a kind of module whose per-example gradient is not known."""


# ---------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    module: nn.Module
    names: dict[str, str]  # the module's own name for a parameter -> the model's
    given: Tensor
    version: int  # of `given` when the module was called
    edge: Any  # the place in autograd's graph: a tensor or a GradientEdge


class Tape:
    """Watches a model's forward passes and gives the per-example gradients of chosen parameters.

    Parameters
    ----------
    model : the caller's model; only hooks are put on it, for the time of :meth:`recording`.
    parameters : names (as in ``model.named_parameters()``, tied ones under the first name) whose gradients are wanted.

    Raises
    ------
    UnsupportedModule
        When one of the parameters belongs to a module without a rule; the message names both.
    """

    def __init__(self, model: nn.Module, parameters: list[str]) -> None:
        self.model = model
        wanted = dict(model.named_parameters())
        canonical = {id(wanted[name]): name for name in parameters}
        self._owners: list[tuple[nn.Module, dict[str, str]]] = []
        for path, module in model.named_modules():
            names = {own: canonical[id(p)] for own, p in module.named_parameters(recurse=False) if id(p) in canonical}
            if not names:
                continue
            if type(module).__name__ not in RULES:
                raise UnsupportedModule(
                    f"parameter {next(iter(names.values()))!r} belongs to a {type(module).__name__} (module {path or 'model'!r}), whose "
                    f"per-example gradient is not known; known are {', '.join(sorted(RULES))}. Leave it out with parameters=[...]"
                )
            self._owners.append((module, names))
        self._calls: list[_Call] = []
        self._n = 0

    @contextmanager
    def recording(self, n_examples: int) -> Iterator[None]:
        """Records the calls of one forward pass over ``n_examples``; parameters are out of autograd meanwhile, and back as they were after."""
        self._calls, self._n = [], n_examples
        asked = [p for p in self.model.parameters() if p.requires_grad]
        handles: list[RemovableHandle] = []
        try:
            for p in asked:
                p.requires_grad_(False)
            for module, names in self._owners:
                handles.append(module.register_forward_hook(self._hook(names), with_kwargs=True))
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for p in asked:
                p.requires_grad_(True)

    @property
    def used(self) -> bool:
        """Whether the recorded pass called a module whose parameters are wanted."""
        return bool(self._calls)

    def _hook(self, names: dict[str, str]) -> Callable[[nn.Module, tuple, dict, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple, named: dict, output: Tensor) -> Tensor:
            given = (inputs[0] if inputs else named["input"]).detach()
            version = given._version
            if output.shape[0] == 1 and self._n > 1:
                # Looked up once for the whole batch (positions): each example needs a gradient of its own.
                output = output.expand(self._n, *output.shape[1:])
                given = given.expand(self._n, *given.shape[1:])
            if output.shape[0] != self._n:
                raise UnsupportedModule(
                    f"a {type(module).__name__} of the model saw {output.shape[0]} rows for {self._n} examples: "
                    "per-example gradients need the examples on the first axis of every layer"
                )
            if output.requires_grad:
                # The edge, not the tensor: a later in-place operation would turn the tensor into another one.
                self._calls.append(_Call(module, names, given, version, torch.autograd.graph.get_gradient_edge(output)))
                return output
            # Nothing below takes part: the graph begins here.
            leaf = output.detach().requires_grad_()
            self._calls.append(_Call(module, names, given, version, leaf))
            return leaf.clone()

        return hook

    def gradients(self, logits: Tensor, cotangents: Tensor) -> Iterator[tuple[str, list[Outer]]]:
        """One backward a row over the recorded pass, then parameter by parameter the gradients of Σ_i ⟨cotangents[i, k], logits_i⟩.

        Parameters
        ----------
        logits : (n, c), from the recorded forward.
        cotangents : (n, K, c), constants.

        Yields
        ------
        (name, uses): the parameter's name and each use of it in the forward pass; their sum is its gradient.  Parameters come in the order
        of the model; one whose module was never called does not come.
        """
        cotangents = cotangents.to(logits)
        rows = cotangents.shape[1]
        for call in self._calls:
            if call.given._version != call.version:
                raise UnsupportedModule(
                    f"the input of a {type(call.module).__name__} (parameter {next(iter(call.names.values()))!r}) was changed in place after the "
                    "layer read it: its gradient cannot be formed. Leave it out with parameters=[...]"
                )
        edges = [call.edge for call in self._calls]
        if not edges:
            return
        backwards: list[list[Tensor]] = [[] for _ in edges]
        for k in range(rows):
            found = torch.autograd.grad(logits, edges, cotangents[:, k], retain_graph=k + 1 < rows, allow_unused=True)
            for kept, gradient in zip(backwards, found, strict=True):
                kept.append(gradient)
        by_name: dict[str, list[Outer]] = {}
        for call, kept in zip(self._calls, backwards, strict=True):
            if kept[0] is None:  # the output was computed and then not used
                continue
            stacked = torch.stack(kept, 1)  # (n, K, ..., out)
            kept.clear()
            uses = RULES[type(call.module).__name__](call.module, call.given, stacked)
            for own, name in call.names.items():
                by_name.setdefault(name, []).append(uses[own])
        self._calls = []
        yield from by_name.items()
