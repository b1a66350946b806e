"""What a layer's parameters receive: the per-example gradient of each kind of layer, kept as thin as it comes.

Nearly every parameter's gradient is a sum over positions t of outer products,

    ∂⟨row, z⟩/∂W = Σ_t left_t right_tᵀ,

with one side known from the forward pass (a linear layer's input) and the other from the backward pass (the gradient with respect to that
layer's *output*).  Two thin factors answer whatever is asked of a gradient (inner products, sketches, its size along a direction) for less
than writing it out; a layer without a formula gives the gradient itself (:class:`Whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


@dataclass(frozen=True)
class Outer:
    """One use of one parameter in a batch: gradient (i, k) = Σ_t left[i, k, t] ⊗ right[i, k, t].

    ``left`` is (n, K or 1, T, out) and ``right`` (n, K or 1, T, in), both real; or ``left`` is (n, 1, T) of integers: the row of a table
    that position t looked up, standing for a one-hot vector of length ``rows``.
    """

    left: Tensor
    right: Tensor
    rows: int | None = None  # length of the one-hot vectors, for a looked-up table

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, K, out, in) of the gradients."""
        k = self.right.shape[1] if self.rows is not None else max(self.left.shape[1], self.right.shape[1])
        return self.right.shape[0], k, self.rows or self.left.shape[-1], self.right.shape[-1]

    def dense(self) -> Tensor:
        """The gradients themselves, (n, K, out, in)."""
        if self.rows is None:
            left, right = _same_rows(self.left, self.right)
            return left.transpose(-1, -2) @ right
        n, k, t, width = self.right.shape
        table = self.right.new_zeros(n, k, self.rows, width)
        where = self.left.expand(n, k, t)[..., None].expand(n, k, t, width)
        return table.scatter_add_(2, where, self.right)

    def projected(self, u: Tensor | None, v: Tensor | None) -> Tensor:
        """U · gradient · Vᵀ without the gradient: (n, K, s_out, s_in) for U (s_out, out), V (s_in, in); None is the identity."""
        if self.rows is None and self.right.shape[1] == 1:
            return _beside(self.left, u).transpose(1, 2).matmul(_beside(self.right, v)).unflatten(1, (self.shape[1], -1))
        if self.rows is None and self.left.shape[1] == 1:
            turned = _beside(self.right, v).transpose(1, 2).matmul(_beside(self.left, u)).unflatten(1, (self.shape[1], -1))
            return turned.transpose(-1, -2)
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

    def take(self, where: slice) -> Outer:
        """Some of the examples."""
        return Outer(self.left[where], self.right[where], self.rows)

    def scaled(self, factor: float) -> Outer:
        """The gradients times a number."""
        return self if factor == 1 else Outer(self.left, self.right * factor, self.rows)

    def thinned(self) -> Outer:
        """The same gradients without the positions that add nothing, where these are most: of a last layer, often one token is read."""
        n, k, _, _ = self.shape
        t = self.right.shape[2]
        for side in (self.left, self.right):
            # One column tells at once that there is something nearly everywhere; an accelerator would wait longer for the answer than it saves.
            if side.is_floating_point() and side.shape[1] == k and side.is_cpu and 2 * int(side[..., 0].count_nonzero()) < n * k * t:
                felt = nonzero_rows(side).any(1)
                most = max(1, int(felt.sum(1).max()))
                if 2 * most < t:
                    at = felt.byte().argsort(dim=1, descending=True, stable=True)[:, None, :most, None]
                    left, right = (_at_positions(x, at) for x in (self.left, self.right))
                    return Outer(left, right, self.rows)
        return self

    def padded(self, k: int) -> Outer:
        """With zero rows up to k."""
        missing = k - self.shape[1]
        if not missing:
            return self
        if self.rows is None and self.right.shape[1] == 1:
            return Outer(nnf.pad(self.left, (0, 0, 0, 0, 0, missing)), self.right)
        # Nothing times anything is nothing: one side is enough, and a shared one stays shared.
        left = self.left if self.left.shape[1] == 1 else nnf.pad(self.left, (0, 0, 0, 0, 0, missing))
        return Outer(left, nnf.pad(self.right, (0, 0, 0, 0, 0, missing)), self.rows)

    def finite(self) -> Tensor:
        """(n,) whether all of an example's numbers are."""
        right = torch.isfinite(self.right).flatten(1).all(1)
        return right if self.rows is not None else right & torch.isfinite(self.left).flatten(1).all(1)

    def without(self, bad: Tensor) -> Outer:
        """With zero gradients for some of the examples, (n,)."""
        left, right = self.left.clone(), self.right.clone()
        right[bad] = 0
        if self.rows is None:
            left[bad] = 0
        return Outer(left, right, self.rows)

    def contiguous(self) -> Outer:
        """Free of whatever larger tensor it was cut from."""
        return Outer(self.left.contiguous(), self.right.contiguous(), self.rows)

    @property
    def numbers(self) -> int:
        """Numbers held."""
        return self.left.numel() + self.right.numel()


@dataclass(frozen=True)
class Whole:
    """Gradients of a parameter written out, (n, K, out, in): for layers without a formula."""

    gradient: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, K, out, in)."""
        n, k, out, inn = self.gradient.shape
        return n, k, out, inn

    def dense(self) -> Tensor:
        """The gradients themselves."""
        return self.gradient

    def projected(self, u: Tensor | None, v: Tensor | None) -> Tensor:
        """U · gradient · Vᵀ; None is the identity."""
        seen = self.gradient if v is None else self.gradient @ v.T
        return seen if u is None else u @ seen

    def along(self, direction: Tensor) -> Tensor:
        """(n, K, 1): nothing is known about positions."""
        return (self.gradient * direction).sum((2, 3))[..., None]

    def take(self, where: slice) -> Whole:
        """Some of the examples."""
        return Whole(self.gradient[where])

    def scaled(self, factor: float) -> Whole:
        """The gradients times a number."""
        return self if factor == 1 else Whole(self.gradient * factor)

    def thinned(self) -> Whole:
        """Nothing is known about positions."""
        return self

    def padded(self, k: int) -> Whole:
        """With zero rows up to k."""
        missing = k - self.gradient.shape[1]
        return Whole(nnf.pad(self.gradient, (0, 0, 0, 0, 0, missing))) if missing else self

    def finite(self) -> Tensor:
        """(n,) whether all of an example's numbers are."""
        return torch.isfinite(self.gradient).flatten(1).all(1)

    def without(self, bad: Tensor) -> Whole:
        """With zero gradients for some of the examples, (n,)."""
        gradient = self.gradient.clone()
        gradient[bad] = 0
        return Whole(gradient)

    def contiguous(self) -> Whole:
        """Free of whatever larger tensor it was cut from."""
        return Whole(self.gradient.contiguous())

    @property
    def numbers(self) -> int:
        """Numbers held."""
        return self.gradient.numel()


Use = Outer | Whole

CACHED = 2**19
"""Numbers that still lie in a processor's cache when they are read again (2 MB): from 1 to 4 MB it makes little difference."""


class Uses(Sequence[Use]):
    """The uses of one parameter by a batch of n examples, formed when they are asked for: of all examples, or of a few after the other.

    Joining the rows of a whole batch costs as much as all that is asked of them, where memory is slow; few stay in the processor's cache.
    """

    def __init__(self, n: int) -> None:
        self._n, self._made, self._numbers = n, list[Callable[[slice], Use]](), 0

    def add(self, of_some: Callable[[slice], Use], numbers: int) -> None:
        """One more use, by what forms it for some of the examples, and how many numbers have to go through the processor's cache for it."""
        self._made.append(of_some)
        self._numbers += numbers

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, at: Any) -> Any:
        return self._made[at](slice(None))

    def parts(self) -> Iterator[tuple[slice, list[Use]]]:
        """Which examples, and their uses."""
        step = max(1, CACHED * self._n // max(1, self._numbers))
        for at in range(0, self._n, step):
            some = slice(at, at + step)
            yield some, [of_some(some) for of_some in self._made]


def _beside(side: Tensor, onto: Tensor | None = None) -> Tensor:
    """One side (n, K, T, w), projected if so asked, with the rows side by side: (n, T, K·w), so that one product per example serves all rows.

    Gradients come in that order from the backward passes (:mod:`npeff_nb.fisher.gradients`): then nothing is copied.
    """
    by_position = side.transpose(1, 2)  # (n, T, K, w)
    if onto is None:
        return by_position.flatten(2)
    return (by_position.reshape(-1, side.shape[-1]) @ onto.T).view(*by_position.shape[:2], -1)


def nonzero_rows(x: Tensor) -> Tensor:
    """Whether there is anything but zeros along the last axis (nan is something)."""
    return x.amax(-1).ne(0) | x.amin(-1).ne(0)


def _at_positions(side: Tensor, at: Tensor) -> Tensor:
    """Some positions (n, 1, most, 1) of one side, (n, K or 1, T, w) or (n, 1, T)."""
    if side.ndim == 3:
        return side.gather(2, at[..., 0])
    return side.gather(2, at.expand(-1, side.shape[1], -1, side.shape[3]))


def _same_rows(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    k = max(left.shape[1], right.shape[1])
    return left.expand(-1, k, -1, -1), right.expand(-1, k, -1, -1)


SLAB = 2**24
"""Numbers of written-out gradients held at once while inner products are taken (64 MB)."""

# ---------------------------------------------------------------------------------------------------------------------------------
# Inner products


def small_grams(uses: list[Use], memo: dict | None = None) -> Tensor:
    """Exact inner products of each example's K rows for one parameter, summed over its uses: (n, K, K).

    ⟨Σ_t l_kt r_tᵀ, Σ_s l_ls r_sᵀ⟩ = Σ_t l_kt · Σ_s (r_t·r_s) l_ls where the right side is shared by the rows (a linear layer's input is): with few
    positions this costs far less than the gradient itself; with many the gradients are formed, whichever is cheaper.  ``memo`` remembers
    the last input's r_t·r_s from one call to the next: query, key and value read the same input.
    """
    thin = [use for use in uses if isinstance(use, Outer)]
    if len(thin) < len(uses):
        return _of_rows(torch.stack([use.dense() for use in uses]).sum(0))
    if len(thin) == 1:
        return _gram(thin[0], {} if memo is None else memo)
    return torch.stack([_inner(_left_products(a, b), _flat_products(a.right, b.right), a, b) for a in thin for b in thin]).sum(0)


def _gram(use: Outer, memo: dict) -> Tensor:
    n, k, out, inn = use.shape
    t = use.right.shape[2]
    if use.rows is None and use.left.shape[1] > 1 and use.right.shape[1] > 1:  # neither side shared
        if (k * t) ** 2 * (out + inn) > k * t * out * inn:
            return _of_rows(use.dense())
        return _inner(_flat_products(use.left, use.left), _flat_products(use.right, use.right), use, use)
    if use.rows is not None:
        shared, own = (use.left[:, 0, :, None] == use.left[:, 0, None, :]).to(use.right.dtype), use.right
    else:
        once, own = (use.right, use.left) if use.right.shape[1] == 1 else (use.left, use.right)
        if t * (once.shape[-1] + k * own.shape[-1]) > k * out * inn:
            return _of_rows(use.dense())
        if t == 1:  # a bias, a pooled token: nothing to mix
            length = once.square().sum((2, 3))[:, :, None]
            return length * _of_rows(own)
        key = (once.data_ptr(), once.shape, once.stride())
        if key not in memo:
            if once.untyped_storage().data_ptr() != memo.get("tensor"):
                memo.clear()
            seen = once[:, 0]
            # The side is held as well: its place in memory stays its own as long as it is remembered.
            memo |= {"tensor": once.untyped_storage().data_ptr(), key: (seen @ seen.transpose(1, 2), once)}
        shared, _ = memo[key]  # (n, T, T)
    beside = _beside(own)
    mixed = (shared @ beside).view(n * t, own.shape[1], -1)
    # Position by position and then summed: both stay as they lie in memory.
    return (beside.reshape(mixed.shape) @ mixed.transpose(1, 2)).view(n, t, own.shape[1], -1).sum(1)


def _of_rows(gradient: Tensor) -> Tensor:
    rows = gradient.flatten(2)
    return rows @ rows.transpose(1, 2)


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
    return products.sum((2, 4)).expand(-1, a.shape[1], b.shape[1])


def cross_grams(some: list[Use], others: list[Use]) -> Tensor:
    """Exact inner products of every row of ``some`` (n examples) with every row of ``others`` (m examples): (n·K, m·L), float64.

    By written-out gradients, whose product over all pairs is the cheapest from few tokens on, a slab of examples at a time; a looked-up table of
    thousands of rows goes pair by pair of positions instead.
    """
    if any(isinstance(use, Outer) and use.rows is not None for use in (*some, *others)):
        parts = [torch.cat([_pairs(a.take(slice(i, i + 1)), b) for i in range(a.shape[0])]) for a in some for b in others]
        return torch.stack(parts).sum(0).flatten(2).flatten(0, 1)

    def slabs(uses: list[Use]) -> list[slice]:
        n, k, out, inn = uses[0].shape
        step = max(1, SLAB // (k * out * inn))
        return [slice(at, at + step) for at in range(0, n, step)]

    def written(uses: list[Use], where: slice) -> Tensor:
        return torch.stack([use.take(where).dense() for use in uses]).sum(0).flatten(2).flatten(0, 1)

    rights = slabs(others)
    found = []
    for where in slabs(some):
        left = written(some, where)
        found.append(torch.cat([(left @ written(others, w).T).double() for w in rights], 1))
    return torch.cat(found)


def _pairs(one: Use, others: Use) -> Tensor:
    """(1, K, m, L) float64 of one example with many."""
    if isinstance(one, Outer) and isinstance(others, Outer):
        m = others.shape[0]
        again = Outer(one.left.expand(m, *one.left.shape[1:]), one.right.expand(m, *one.right.shape[1:]), one.rows)
        found = _inner(_left_products(again, others), _flat_products(again.right, others.right), again, others)  # (m, K, L)
    else:
        found = torch.einsum("koi,mloi->mkl", one.dense()[0], others.dense())
    return found.double().transpose(0, 1)[None]


# ---------------------------------------------------------------------------------------------------------------------------------
# The rules: for one call of a module, the two sides of each of its parameters.  `a` is the module's input, (n, ..., in), `b` the gradients with
# respect to its output for all K rows, (n, K, ..., out); both float32 or wider.  What is not asked for is not computed.

Sides = dict[str, Callable[[], "Use"]]
"""The module's own name of a parameter -> its use, when it is called for."""


def _positions(x: Tensor, lead: int) -> Tensor:
    """Everything between the leading axes and the last one becomes a single axis of positions."""
    return x.unsqueeze(lead) if x.ndim == lead + 1 else x.flatten(lead, -2)


def _bias(b: Tensor) -> Outer:
    b = b.sum(2, keepdim=True)
    return Outer(b, b.new_ones(1, 1, 1, 1).expand(b.shape[0], 1, 1, 1))


def _linear(module: nn.Linear, a: Tensor, b: Tensor) -> Sides:
    b = _positions(b, 2)
    return {"weight": lambda: Outer(b, _positions(a, 1)[:, None]), "bias": lambda: _bias(b)}


def _conv1d(module: nn.Module, a: Tensor, b: Tensor) -> Sides:
    # GPT-2's "Conv1D" is a linear layer that keeps its weight transposed: (in, out).
    b = _positions(b, 2)
    return {"weight": lambda: Outer(_positions(a, 1)[:, None], b), "bias": lambda: _bias(b)}


def _embedding(module: nn.Embedding, a: Tensor, b: Tensor) -> Sides:
    ids, b = a.reshape(a.shape[0], 1, -1).expand(b.shape[0], 1, -1), _positions(b, 2)
    if module.padding_idx is not None:  # autograd gives that row of the table no gradient
        b = b * (ids != module.padding_idx)[..., None]
    return {"weight": lambda: Outer(ids, b, rows=module.num_embeddings)}


def _layer_norm(module: nn.LayerNorm, a: Tensor, b: Tensor) -> Sides:
    b = _positions(b, 2)

    def weight() -> Use:
        normal = nnf.layer_norm(a, module.normalized_shape, eps=module.eps)
        return _bias(b * _positions(normal, 1)[:, None])

    return {"weight": weight, "bias": lambda: _bias(b)}


def _rms_norm(module: nn.Module, a: Tensor, b: Tensor) -> Sides:
    # Under different names the same layer: x / √(mean x² + ε), scaled by w or by 1 + w.
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    eps = torch.finfo(a.dtype).eps if eps is None else eps
    normal = a * torch.rsqrt(a.square().mean(-1, keepdim=True) + eps)
    b = _positions(b, 2)
    return {"weight": lambda: _bias(b * _positions(normal, 1)[:, None])}


def _conv2d(module: nn.Conv2d, a: Tensor, b: Tensor) -> Sides:
    several = a.ndim == 5  # images to an example: (n, images, channels, height, width)

    def weight() -> Use:
        patches = nnf.unfold(a.flatten(0, 1) if several else a, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        return Outer(b, patches.transpose(1, 2).reshape(len(a), -1, patches.shape[1])[:, None])  # (n, T, in*kh*kw)

    b = b.transpose(2, 3) if several else b  # the channels before all positions
    b = b.flatten(3).transpose(2, 3)  # (n, K, T, out)
    return {"weight": weight, "bias": lambda: _bias(b)}


Rule = Callable[[Any, Tensor, Tensor], Sides]


def rule_for(module: nn.Module) -> Rule | None:
    """The formula for a module, by class name, so that no optional library is imported to know its layers; None where there is none."""
    name = type(module).__name__
    if name in {"Linear", "NonDynamicallyQuantizableLinear"}:
        return _linear
    if name == "Conv1D":
        return _conv1d
    if name == "Embedding" and getattr(module, "max_norm", None) is None and not getattr(module, "scale_grad_by_freq", False):
        return _embedding
    if name == "LayerNorm" and len(getattr(module, "normalized_shape", ())) == 1:
        return _layer_norm
    if name.endswith("RMSNorm") or name == "T5LayerNorm":
        own = {own for own, _ in module.named_parameters(recurse=False)}
        return _rms_norm if own == {"weight"} else None
    if isinstance(module, nn.Conv2d) and name == "Conv2d":
        plain = module.groups == 1 and not isinstance(module.padding, str) and module.padding_mode == "zeros"
        return _conv2d if plain else None
    return None
