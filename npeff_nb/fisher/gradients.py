"""Per-example gradients of the factor rows, without ever asking autograd for a weight's gradient.

Parameters stay out of autograd; the graph is cut open at the *outputs* of the modules that own them, one backward per factor row serves a whole
batch, and each module's formula (:mod:`npeff_nb.fisher.layers`) turns its input and its output's gradient into per-example gradients.  A module
without a formula is run again under ``torch.func.vmap``: slower and as exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from npeff_nb.fisher.layers import Use, Uses, Whole, nonzero_rows, rule_for


class UnsupportedModule(NotImplementedError):
    """A parameter that takes part is used in a way whose per-example gradient cannot be had."""


@dataclass
class _Call:
    """One call of one module in the recorded pass."""

    module: nn.Module
    names: dict[str, str]  # the module's own name for a parameter -> the model's
    given: list[Tensor]  # the tensors among its arguments
    versions: list[int]  # of `given` when the module was called
    per_example: list[int]  # rows of each given tensor that belong to one example; 0 where it is shared by all
    edges: list[Any]  # the places of its outputs in autograd's graph
    rows_out: list[int]  # rows of each output that belong to one example
    rebuild: Callable[[list[Tensor]], tuple[tuple, dict]] | None = None  # arguments again, from tensors like `given`
    outputs: Callable[[Any], list[Tensor]] | None = None  # the tensors of a result, in the order of `edges`


_Shapes = list[torch.Size]
_Seen = dict[tuple[int, int], tuple[_Shapes, _Shapes]]
"""Which call of which module -> shapes of the tensors that went in and came out."""


class Tape:
    """Watches a model's forward passes and gives the per-example gradients of chosen parameters.

    Parameters
    ----------
    model : the caller's model; only hooks are put on it, for the time of :meth:`recording`.
    parameters : names (as in ``model.named_parameters()``, tied ones under the first name) whose gradients are wanted.

    A tape has to be taught first, by :meth:`learn`, which axes carry the examples.
    """

    def __init__(self, model: nn.Module, parameters: list[str]) -> None:
        self.model = model
        wanted = dict(model.named_parameters())
        self._canonical = {id(wanted[name]): name for name in parameters}
        self._owners: dict[str, dict[str, str]] = {}  # module path -> {own name of a parameter: the model's}
        for path, module in model.named_modules():
            for own, p in module.named_parameters(recurse=False, remove_duplicate=False):
                if id(p) in self._canonical:
                    self._owners.setdefault(path, {})[own] = self._canonical[id(p)]
        self._one: _Seen = {}
        self._two: _Seen = {}
        self._seeing: _Seen | None = None
        self._calls: list[_Call] = []
        self._counts: dict[int, int] = {}
        self._n = 0
        self._told: set[str] = set()
        self.one_by_one = False
        """Some module works once for a whole batch: examples then have to come alone."""

    # ---------------------------------------------------------------------------------------------------------------- owners

    def widen(self, name: str) -> bool:
        """Moves a parameter from the module that owns it to the next larger one, for a use outside its own module; False at the model itself."""
        paths = [path for path, names in self._owners.items() if name in names.values()]
        if paths == [""] or not paths:
            return False
        parts = [path.split(".") for path in paths]
        shared = parts[0][:-1] if len(parts) == 1 else [own[0] for own in takewhile(lambda own: len(set(own)) == 1, zip(*parts, strict=False))]
        target = ".".join(shared)
        for path in paths:
            self._owners[path] = {own: n for own, n in self._owners[path].items() if n != name}
            if not self._owners[path]:
                del self._owners[path]
        module = self.model.get_submodule(target)
        own = next(own for own, p in module.named_parameters() if self._canonical.get(id(p)) == name)
        self._owners.setdefault(target, {})[own] = name
        return True

    def without_formula(self) -> dict[str, list[str]]:
        """Class of module -> parameters, for modules that are run again under vmap."""
        found: dict[str, list[str]] = {}
        for path, names in self._owners.items():
            module = self.model.get_submodule(path)
            if self._rule(module, names) is None:
                found.setdefault(type(module).__name__, []).extend(names.values())
        return found

    @staticmethod
    def _rule(module: nn.Module, names: dict[str, str]) -> Any:
        return None if any("." in own for own in names) else rule_for(module)

    # ---------------------------------------------------------------------------------------------------------------- recording

    def learn(self, looks: list[tuple[Callable[[], Any], Callable[[], Any]]]) -> None:
        """Runs the model on an example and on that example twice, to see which tensors grow with the batch; so for each of a few examples.

        A number of rows alone does not tell: a batch of eight examples and a table of eight positions look the same.  Where it differs from
        example to example how many rows it has (experts that see some of the positions), rows cannot be told apart in a batch: then, and where a
        tensor does not grow, examples have to come alone.
        """
        found: list[tuple[_Seen, _Seen]] = []
        several = False
        for look in looks:
            seen_sizes: list[_Shapes] = []
            seen: list[_Seen] = []
            for n, run in zip((1, 2), look, strict=True):
                self._seeing = {}
                seen_sizes.append([])
                handles = [m.register_forward_hook(_sizes_into(seen_sizes[-1])) for m in self.model.modules()]
                try:
                    with self.recording(n), torch.no_grad():
                        run()
                finally:
                    once, self._seeing = self._seeing, None
                    for handle in handles:
                        handle.remove()
                seen.append(once)
            found.append((seen[0], seen[1]))
            # What is looked up once for the batch has a first axis of 1 and is spread over the examples, unless these have several rows each: how
            # often to spread it would then depend on where it goes.
            several |= any(_carries(a, b) and a[0] > 1 for a, b in zip(*seen_sizes, strict=False))
        self._one, self._two = found[0]
        pairs = [(a, b) for one, two in found for key, (_, shapes) in one.items() for a, b in zip(shapes, two.get(key, ([], []))[1], strict=False)]
        self.one_by_one = any(not _carries(a, b) and (a != b or a[0] != 1 or several) for a, b in pairs)
        firsts = [{key: [shape[0] for side in sides for shape in side if shape] for key, sides in one.items()} for one, _ in found]
        self.one_by_one |= any(first != firsts[0] for first in firsts)

    @contextmanager
    def recording(self, n_examples: int) -> Iterator[None]:
        """Records the calls of one forward pass over ``n_examples``; parameters are out of autograd meanwhile, and back as they were after."""
        self._calls, self._n, self._counts = [], n_examples, {}
        asked = [p for p in self.model.parameters() if p.requires_grad]
        handles: list[RemovableHandle] = []
        try:
            for p in asked:
                p.requires_grad_(False)
            for path, names in self._owners.items():
                module = self.model.get_submodule(path)
                hook = self._formula_hook if self._rule(module, names) is not None else self._whole_hook
                handles.append(module.register_forward_hook(hook(names), with_kwargs=True))
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

    def _key(self, module: nn.Module) -> tuple[int, int]:
        """Which call of which module of this pass."""
        number = self._counts.get(id(module), 0)
        self._counts[id(module)] = number + 1
        return id(module), number

    def _per_example(self, module: nn.Module, given: list[Tensor], out: list[Tensor]) -> tuple[list[int], list[int]]:
        """Rows of every tensor that belong to one example (0: shared by all), from what one example and two looked like."""
        key, n = self._key(module), self._n
        now = [_rows(t) for t in given], [_rows(t) for t in out]
        one, two = (seen.get(key, ([], [])) for seen in (self._one, self._two))
        known = all(len(one[i]) == len(two[i]) == len(now[i]) for i in (0, 1))
        found: tuple[list[int], list[int]] = ([], [])
        for side in (0, 1):
            for at, rows in enumerate(now[side]):
                # A call that was not there before (a branch that depends on the input) is taken to be like most.
                carries = _carries(one[side][at], two[side][at]) if known else rows == n
                # Positions are looked up once for all, until padding on the left moves them.
                carries |= known and one[side][at][:1] == two[side][at][:1] == (1,) and one[side][at] == two[side][at] and rows == n > 1
                found[side].append(rows // n if carries else 0)
                if carries and rows % n:
                    raise UnsupportedModule(
                        f"a {type(module).__name__} of the model saw {rows} rows for {n} examples: per-example gradients need the examples "
                        "on the first axis of every layer. Try batch_size=1, or leave it out with parameters=[...]"
                    )
        return found

    def _for_each(self, module: nn.Module, names: dict[str, str], output: Tensor, per: int) -> tuple[Tensor, int]:
        """An output that was computed once for the whole batch (positions, say), once for each example: each needs a gradient of its own."""
        if per or self._n == 1:
            return output, per
        if output.shape[0] != 1:
            raise UnsupportedModule(
                f"a {type(module).__name__} of the model (parameter {next(iter(names.values()))!r}) works once for the whole batch, so its gradient "
                "is no single example's. Use batch_size=1, or leave it out with parameters=[...]"
            )
        return output.expand(self._n, *output.shape[1:]), 1

    def _formula_hook(self, names: dict[str, str]) -> Callable[[nn.Module, tuple, dict, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple, named: dict, output: Tensor) -> Tensor:
            x = inputs[0] if inputs else named["input"]
            given = x.detach()
            if self._seeing is not None:
                self._seeing[self._key(module)] = [given.shape], [output.shape]
                return output
            version = given._version
            (per_given,), (per_out,) = self._per_example(module, [given], [output])
            weight = _weight(module, given, output)
            if weight is not None and output.requires_grad:
                output = _Linear.apply(x, output.detach(), weight)
            output, per_out = self._for_each(module, names, output, per_out)
            if per_given == 0 and self._n > 1:
                given, per_given = given.expand(self._n, *given.shape[1:]), 1
            edge, output = _open(output)
            self._calls.append(_Call(module, names, [given], [version], [per_given], [edge], [per_out]))
            return output

        return hook

    def _whole_hook(self, names: dict[str, str]) -> Callable[[nn.Module, tuple, dict, Any], Any]:
        def hook(module: nn.Module, inputs: tuple, named: dict, output: Any) -> Any:
            flat_in, tree_in = pytree.tree_flatten((inputs, named))
            at = [i for i, x in enumerate(flat_in) if isinstance(x, Tensor)]
            given = [flat_in[i].detach() for i in at]
            flat_out, tree_out = pytree.tree_flatten(output)
            out_at = [i for i, x in enumerate(flat_out) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim]
            if self._seeing is not None:
                self._seeing[self._key(module)] = [t.shape for t in given], [flat_out[i].shape for i in out_at]
                return output
            per_given, per_out = self._per_example(module, given, [flat_out[i] for i in out_at])
            edges = []
            for j, i in enumerate(out_at):
                value, per_out[j] = self._for_each(module, names, flat_out[i], per_out[j])
                edge, flat_out[i] = _open(value)
                edges.append(edge)

            def rebuild(tensors: list[Tensor]) -> tuple[tuple, dict]:
                again = list(flat_in)
                for i, tensor in zip(at, tensors, strict=True):
                    again[i] = tensor
                return pytree.tree_unflatten(again, tree_in)

            def outputs(result: Any) -> list[Tensor]:
                found = pytree.tree_flatten(result)[0]
                return [found[i] for i in out_at]

            versions = [t._version for t in given]
            self._calls.append(_Call(module, names, given, versions, per_given, edges, per_out, rebuild, outputs))
            return pytree.tree_unflatten(flat_out, tree_out)

        return hook

    # ---------------------------------------------------------------------------------------------------------------- gradients

    def gradients(self, logits: Tensor, cotangents: Tensor) -> Iterator[tuple[str, Uses]]:
        """One backward a row over the recorded pass, then parameter by parameter the gradients of Σ_i ⟨cotangents[i, k], logits_i⟩.

        Parameters
        ----------
        logits : (n, c), from the recorded forward.
        cotangents : (n, K, c), constants.

        Yields
        ------
        (name, uses) once for every parameter that the forward pass used; the gradient is the sum over ``uses``.  A parameter whose module was
        never called does not come.
        """
        cotangents = cotangents.to(logits)
        rows = cotangents.shape[1]
        for call in self._calls:
            if any(t._version != version for t, version in zip(call.given, call.versions, strict=True)):
                raise UnsupportedModule(
                    f"the input of a {type(call.module).__name__} (parameter {next(iter(call.names.values()))!r}) was changed in place after the "
                    "layer read it: its gradient cannot be formed. Leave it out with parameters=[...]"
                )
        edges = [edge for call in self._calls for edge in call.edges]
        if not edges:
            return
        backwards: list[list[Tensor | None]] = [[] for _ in edges]
        for k in range(rows):
            found = torch.autograd.grad(logits, edges, cotangents[:, k], retain_graph=k + 1 < rows, allow_unused=True)
            for of_edge, gradient in zip(backwards, found, strict=True):
                of_edge.append(gradient)
        at = iter(backwards)
        waiting = [(call, [next(at) for _ in call.edges]) for call in self._calls]
        self._calls = []
        left: dict[str, int] = {}
        for call, _ in waiting:
            for name in call.names.values():
                left[name] = left.get(name, 0) + 1
        by_name: dict[str, Uses] = {}
        # From the last layer down, as the backward went; a parameter leaves as soon as its last use is known, so that memory shrinks as it goes.
        while waiting:
            call, kept = waiting.pop()
            # Else the output was computed and then not used, or there was nothing of this example in it.
            if any(rows_of[0] is not None and rows_of[0].numel() for rows_of in kept):
                # An accelerator takes all examples at once.
                held = sum(g.numel() for rows_of in kept for g in rows_of if g is not None and g.is_cpu)
                for own, of_some in self._uses(call, kept).items():
                    by_name.setdefault(call.names[own], Uses(self._n)).add(of_some, held)
            for name in call.names.values():
                left[name] -= 1
                if not left[name] and name in by_name:
                    yield name, by_name.pop(name)

    def _uses(self, call: _Call, kept: list[list[Tensor | None]]) -> dict[str, Callable[[slice], Use]]:
        """By the module's own name of a parameter: what forms its use in some of the examples."""
        if call.rebuild is not None:
            return {own: whole.take for own, whole in self._again(call, kept).items()}
        of_rows = [_by_example(g, self._n, call.rows_out[0]) for g in kept[0] if g is not None]
        given = _by_example(call.given[0], self._n, call.per_example[0])
        rule = rule_for(call.module)
        assert rule is not None, "only modules with a formula are recorded without their arguments"

        def use(own: str, some: slice) -> Use:
            rows = [g[some] for g in of_rows]
            # (n, K, …, out) by name, but the K rows of a position beside each other in memory: what follows mixes positions for all rows at once.
            b = torch.stack(rows, 1) if isinstance(call.module, nn.Conv2d) else torch.stack(rows, -2).movedim(-2, 1)
            return rule(call.module, _wide(given[some]), _wide(b))[own]()

        return {own: partial(use, own) for own in call.names}

    def _again(self, call: _Call, kept: list[list[Tensor | None]]) -> dict[str, Whole]:
        """Gradients of a module without a formula: the module is run again for every example, seen through its parameters."""
        n, module = self._n, call.module
        parameters = {own: module.get_parameter(own).detach() for own in call.names}
        rows = max(len(k) for k in kept)
        used = [j for j, gradients in enumerate(kept) if gradients[0] is not None]
        wanted = [torch.stack([_by_example(g, n, call.rows_out[j]) for g in kept[j] if g is not None], 1) for j in used]
        tensors = [_by_example(t, n, per) if per else t for t, per in zip(call.given, call.per_example, strict=True)]
        batched = [bool(per) for per in call.per_example]
        alone = [per == 0 or t.ndim == 0 for t, per in zip(call.given, call.per_example, strict=True)]
        unfold = [_fold(t, per) for t, per in zip(call.given, call.per_example, strict=True)]
        assert call.rebuild is not None, "a module that is run again was recorded with its arguments"
        assert call.outputs is not None, "and with the places of its outputs"
        rebuild, outputs = call.rebuild, call.outputs

        def run(weights: dict[str, Tensor], of_one: list[Tensor]) -> list[Tensor]:
            args, named = rebuild([t if shared else fold(t) for t, shared, fold in zip(of_one, alone, unfold, strict=True)])
            found = outputs(torch.func.functional_call(module, weights, args, named))
            return [found[j] for j in used]

        def pulled(of_one: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
            made, pull = torch.func.vjp(lambda w: run(w, of_one), parameters)[:2]
            shaped = [c.reshape(c.shape[0], *m.shape) for c, m in zip(cotangents, made, strict=True)]
            return torch.func.vmap(lambda *c: pull(list(c))[0])(*shaped)

        try:
            with torch.no_grad():
                found = torch.func.vmap(pulled, in_dims=([0 if x else None for x in batched], [0] * len(used)))(tensors, wanted)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            self._tell(
                f"{type(module).__name__}|loop", f"a {type(module).__name__} cannot be vectorised ({_first_line(error)}): one example at a time"
            )
            found = self._loop(run, parameters, tensors, batched, wanted, n, rows)
        return {own: Whole(_wide(g).reshape(n, rows, g.shape[2] if g.ndim > 2 else 1, -1)) for own, g in found.items()}

    @staticmethod
    def _loop(run: Any, parameters: dict[str, Tensor], tensors: list, batched: list[bool], wanted: list, n: int, rows: int) -> dict[str, Tensor]:
        kept: dict[str, list[Tensor]] = {own: [] for own in parameters}
        for i in range(n):
            leaves = {own: p.clone().requires_grad_() for own, p in parameters.items()}
            with torch.enable_grad():
                made = run(leaves, [t[i] if x else t for t, x in zip(tensors, batched, strict=True)])
                for k in range(rows):
                    cotangents = [w[i, k].reshape(m.shape) for w, m in zip(wanted, made, strict=True)]
                    got = torch.autograd.grad(made, list(leaves.values()), cotangents, retain_graph=k + 1 < rows, allow_unused=True)
                    for own, g in zip(leaves, got, strict=True):
                        kept[own].append(torch.zeros_like(leaves[own]) if g is None else g)
        return {own: torch.stack(found).view(n, rows, *parameters[own].shape) for own, found in kept.items()}

    def _tell(self, key: str, message: str) -> None:
        if key not in self._told:
            self._told.add(key)
            warnings.warn(f"slower and as exact: {message}", stacklevel=2)


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 0


def _carries(one: torch.Size, two: torch.Size) -> bool:
    """Whether the first axis carries the examples: twice as long for two, and nothing else is longer."""
    return bool(one) and two == torch.Size([2 * one[0], *one[1:]])


def _sizes_into(found: _Shapes) -> Callable[[nn.Module, tuple, Any], None]:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim:
            found.append(output.shape)

    return hook


def _open(output: Tensor) -> tuple[Any, Tensor]:
    """The place of an output in autograd's graph, and the output to go on with."""
    if output.requires_grad:
        # The edge, not the tensor: a later in-place operation would turn the tensor into another one.
        return torch.autograd.graph.get_gradient_edge(output), output
    # Nothing below takes part: the graph begins here.
    leaf = output.detach().requires_grad_()
    return leaf, leaf.clone()


class _Linear(torch.autograd.Function):
    """A linear layer's way back that leaves out the positions without gradient: of a last layer, where one token is read, nearly all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.mark_dirty(output)  # else it would be a view, which the model could not change in place
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        flat = gradient.reshape(-1, gradient.shape[-1])
        # One column tells at once that there is gradient nearly everywhere.
        if 2 * int(flat[:, 0].count_nonzero()) < len(flat):
            felt = nonzero_rows(flat).nonzero()[:, 0]
            if 2 * len(felt) < len(flat):
                found = flat.new_zeros(len(flat), ctx.weight.shape[1]).index_copy_(0, felt, flat[felt] @ ctx.weight)
                return found.view(*gradient.shape[:-1], -1), None, None
        return gradient @ ctx.weight, None, None


def _weight(module: nn.Module, given: Tensor, output: Tensor) -> Tensor | None:
    """(out, in) where a module's output is input · Wᵀ + b and nothing else, in one precision; None where another hook or class may have a say.

    None also on an accelerator: it would wait longer to hear where there is gradient than it saves.
    """
    kind, weight = type(module), getattr(module, "weight", None)
    alone = len(module._forward_hooks) == 1 and not module._forward_pre_hooks and "forward" not in vars(module)
    # A quantised weight is of another class and multiplied in a way of its own.
    if not alone or not given.is_cpu or type(weight) is not nn.Parameter or not given.dtype == output.dtype == weight.dtype:
        return None
    if kind is nn.Linear:
        return weight
    return weight.T if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils" else None


def _by_example(tensor: Tensor, n: int, per: int) -> Tensor:
    """(n, …) where every example has one row, (n, per, …) where it has several, (1, …) where the only example has all."""
    if per == 1:
        return tensor
    if per == 0:
        return tensor[None]
    return tensor.reshape(n, per, *tensor.shape[1:])


def _fold(tensor: Tensor, per: int) -> Callable[[Tensor], Tensor]:
    """Back from one example's view (:func:`_by_example` without its first axis) to what the module takes: with a first axis."""
    return (lambda t: t[None]) if per == 1 else (lambda t: t)


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is widened before sums over positions are formed."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
