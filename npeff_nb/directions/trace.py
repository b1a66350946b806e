"""Where an edit enters the network and how it reaches the prediction: the derivative of the logits along a direction, taken apart exactly.

Along a direction v the logits change by dz_c = ∂z_c/∂θ · v, and that is a sum over what every module's own parameters change at every position t,

    dz_c = Σ_modules Σ_t ⟨λ_c,t , (∂out_t/∂θ_module) v⟩,        λ_c,t = ∂z_c/∂out_t,

the *introduced* parts.  What a position already carries when it enters a block, ⟨λ_c,t, u_t⟩ with its tangent u_t, is *passed on* through attention
from token s to token t, through the MLP, or by the *residual* stream.  All are first-order and exact, norms, queries and keys included: inside
attention every edge is a closed product of its probabilities, queries, keys and values with their tangents and cotangents, so no edge costs a pass of
its own.  Together: one forward with a backward a class, two or three forwards with tangents, and O(c · heads · T² · width) products a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from npeff_nb.directions.lift import check_fits, subject_of
from npeff_nb.directions.lift import direction as lifted
from npeff_nb.directions.watch import OUTSIDE, Attention, Watch, find_blocks, tangent, torch_attention
from npeff_nb.fisher.batches import TextBatches
from npeff_nb.fisher.subject import Subject, alone_with, check_ready

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

ALL_CLASSES = 32
"""Up to so many classes all are traced; of more, such as a vocabulary, the likeliest."""
LIKELIEST = 8
MODULES = ("embedding", "embedding norm", "attention", "attention norm", "MLP", "MLP norm", "head", "head norm")
KINDS = ("introduced", "passed on", "residual")
INDEX = ["layer", "module", "head", "source", "source_token", "target", "target_token", "kind"]
"""Columns of :attr:`Trace.table` before those of the classes."""
_NONE = -1
"""In index columns, before they become missing values."""


@dataclass
class Trace:
    """The derivative of one example's logits along a direction, per unit of strength, taken apart.

    Attributes
    ----------
    table : one row an edge; columns of :data:`INDEX`, then one a class with the edge's part of that class's derivative.  Missing where it does not
        apply: the ``layer`` of embeddings and head, the ``head`` of what is not one attention head's, the ``target`` of what goes to the logits, the
        ``source`` of a head's parameters that see no position.

        ========================  =============================================================================================================
        attention, introduced     its own parameters at target t, split by head and by the token s that t looks at: changed attention to s times
                                  the value of s, plus attention to s times the changed value and output of s.  No head: the output's bias
        attention, passed on      ⟨λ_t, ∂attention_t/∂h_s · u_s⟩ by head; through a query it goes from t to t
        attention, residual       what a position keeps past attention
        MLP                       introduced, passed on, residual: likewise, each position by itself
        … norm                    introduced by a norm's parameters: of attention or MLP, standing before it or after it
        embedding, head           introduced below the first block and above the last
        head, passed on           what a position carries when it leaves the last block
        ========================  =============================================================================================================

    totals : what passes through every position at every ``boundary``: 0 below the first block, b above block b − 1.  Introduced rows below a boundary
        add up to its total; its total and the introduced rows above it add up to the derivative.
    tokens : (T,) as the tokenizer writes them.
    classes, logits, derivative : names, logits and dz (c,) of the traced classes.  Everything is linear in the class: a difference of two columns is
        the trace of the log-odds.
    n_layers, n_heads : of the model.
    """

    table: pd.DataFrame
    totals: pd.DataFrame
    tokens: list[str]
    classes: list[str]
    logits: np.ndarray
    derivative: np.ndarray
    n_layers: int
    n_heads: int


def trace(
    npeff: Factorisation, k: int, example: int | str | tuple[str, str], model: nn.Module | None = None, classes: Sequence[int | str] | None = None
) -> Trace:
    """Component ``k`` traced through the network on one example.

    Parameters
    ----------
    example : a row of ``npeff.examples``, a text, or a text and its pair.
    classes : names or numbers; by default all, of more than 32 the eight likeliest.

    Raises
    ------
    ValueError
        There is no such component, row, class or model, or the model is no transformer whose blocks can be found (:func:`trace_direction`).
    """
    return trace_direction(subject_of(npeff, model), lifted(npeff, k, model), example, classes)


def trace_direction(
    subject: Subject, direction: Mapping[str, Tensor], example: int | str | tuple[str, str], classes: Sequence[int | str] | None = None
) -> Trace:
    """Any direction in parameter space traced through the network on one example; arguments and errors as :func:`trace`.

    The model is taken to have a list of blocks, each of which lets positions speak with each other in one call of torch's scaled dot-product
    attention and treats them one by one otherwise: BERT, RoBERTa, DistilBERT, GPT-2, Llama and their like.  Whether this holds is tested: the parts
    have to add up at every position of every boundary.
    """
    model = subject.model
    check_ready(model)
    find_blocks(model)  # raises before anything runs
    subject, row = _one_example(subject, example)
    assert isinstance(subject.batches, TextBatches)
    tokens = [str(token) for token in subject.tokenizer.convert_ids_to_tokens(list(subject.batches.encoded["input_ids"][row]))]
    there = dict(model.named_parameters())
    check_fits(there, direction)

    passes = _Passes(subject, row, direction)
    with alone_with(model), torch_attention(model):
        seen, z = passes.plain()
        seen.check(len(tokens))
        chosen, names = _classes(subject, z.detach(), classes)
        cotangents = _Cotangents(z, chosen, seen)
        total, dz = passes.with_tangents()
        outside = {call.module for call in seen.calls} - seen.within_callers()
        own, _ = passes.with_tangents(without=outside | seen.callers(), cut_attention=True)
        early = any(call.layer >= 0 and not call.after and call.module in outside for call in seen.calls)  # a norm before attention
        entering = passes.with_tangents(without=seen.members)[0] if early else own
    derivative = dz[chosen].double().cpu().numpy()
    if not np.isfinite(derivative).all():
        raise ValueError(f"the derivative of the logits is {derivative}, not finite: check the direction, the model's weights and the text")

    moving = {id(there[name]): value.to(there[name]).double().cpu() for name, value in direction.items()}
    ways = _Ways(seen, cotangents, total, entering, own, moving, len(tokens))
    totals = ways.follow(derivative)
    size = np.abs(totals).sum(2).max() + np.abs(derivative).max()
    missed = max(float(x.abs().max()) for x in ways.left_over)
    # Far above the rounding of the model's own precision (norms fall back to float32 in models of float64), far below a way that is not followed.
    if missed > size * max(torch.finfo(kind).eps for kind in (z.dtype, torch.float32)) ** 0.5:
        raise ValueError(
            f"the trace of {type(model).__name__} does not add up: {missed:.3g} of a derivative of {size:.3g} goes ways that are not followed "
            "(positions speak with each other outside attention, attention depends on parameters otherwise than by queries, keys and values, or "
            "parameters are read by others than the layers that hold them)"
        )
    wide = {name: totals[:, at].ravel() for at, name in enumerate(names)}
    boundary, position = (x.ravel() for x in np.indices((len(totals), len(tokens))))
    return Trace(
        ways.rows.table(tokens, names),
        pd.DataFrame({"boundary": boundary, "position": position, "token": np.array(tokens, dtype=object)[position], **wide}),
        tokens, names, z.detach()[chosen].double().cpu().numpy(), derivative, len(seen.blocks), ways.n_heads,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------- the question


def _one_example(subject: Subject, example: Any) -> tuple[Subject, int]:
    if not isinstance(subject.batches, TextBatches) or subject.tokenizer is None:
        raise ValueError("a trace follows the tokens of a text, and these examples are no texts with a tokenizer")
    if isinstance(example, (int, np.integer)):
        if not 0 <= example < len(subject.batches):
            raise ValueError(f"example {example} does not exist: there are {len(subject.batches)} (0 to {len(subject.batches) - 1})")
        return subject, int(example)
    texts = (example,) if isinstance(example, str) else example
    if not isinstance(texts, (tuple, list)) or not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"example={example!r}: give a row's number, a text, or a text and its pair")
    batches, _ = subject.output.prepare(
        subject.model, subject.tokenizer, pd.DataFrame([dict(zip(("text", "text_pair"), texts, strict=False))]), batch_size=1
    )
    if len(batches) != 1:
        raise ValueError(f"this text makes {len(batches)} examples, one for each word or position: give the row of one that was extracted")
    return Subject(subject.model, batches, subject.output, subject.recipe, subject.tokenizer), 0


def _classes(subject: Subject, z: Tensor, asked: Sequence[int | str] | None) -> tuple[list[int], list[str]]:
    """Numbers and names of the classes to trace; the names differ from each other and from the other columns."""
    c, vocabulary = len(z), subject.output.vocabulary
    known = [] if vocabulary else subject.output.class_names(subject.model, c)
    if asked is None:
        chosen = list(range(c)) if c <= ALL_CLASSES else z.topk(LIKELIEST).indices.tolist()
    else:
        chosen = [_class_number(one, c, known, subject.tokenizer) for one in ([asked] if isinstance(asked, (int, str)) else asked)]
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"classes={asked!r}: give at least one class, and none twice")
    taken = {*INDEX, "boundary", "position", "token"}
    names = []
    for i in chosen:
        name = known[i] if known else subject.tokenizer.decode([i])
        names.append(name if name not in taken else f"{name} ({i})")
        taken.add(names[-1])
    return chosen, names


def _class_number(one: Any, c: int, known: list[str], tokenizer: Any) -> int:
    if isinstance(one, str) and known:
        found = known.index(one) if one in known else _NONE
    elif isinstance(one, str):
        ids = tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"]
        found = ids[0] if len(ids) == 1 else _NONE
    else:
        found = int(one)
    if not 0 <= found < c:
        raise ValueError(
            f"class {one!r} does not exist: give a number from 0 to {c - 1} or " + (f"one of {', '.join(known)}" if known else "one token")
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------- passes


class _Question(nn.Module):
    """One example's logits (C,) as a module's output, so that parameters can be replaced for one call."""

    def __init__(self, subject: Subject, row: int) -> None:
        super().__init__()
        self.model, self.subject, self.row = subject.model, subject, row

    def forward(self) -> Tensor:
        return self.subject.raw_logits(np.array([self.row]))[0]


class _Passes:
    """Forward passes over one example, watched."""

    def __init__(self, subject: Subject, row: int, direction: Mapping[str, Tensor]) -> None:
        self.question = _Question(subject, row)
        self.values = {name: p.detach() for name, p in self.question.named_parameters()}
        self.moving = {f"model.{name}": value.to(self.values[f"model.{name}"]) for name, value in direction.items()}

    def plain(self) -> tuple[Watch, Tensor]:
        with torch.enable_grad():
            return self._run(Watch(self.question.model, tangents=False), self.values)

    def with_tangents(self, **cuts: Any) -> tuple[Watch, Tensor]:
        """What was seen, all tangents, and the logits' tangent."""
        with torch.no_grad(), forward_ad.dual_level():
            duals = self.values | {name: forward_ad.make_dual(self.values[name], v) for name, v in self.moving.items()}
            seen, z = self._run(Watch(self.question.model, tangents=True, **cuts), duals)
            return seen, tangent(z)

    def _run(self, watch: Watch, values: dict[str, Tensor]) -> tuple[Watch, Tensor]:
        with watch.on():
            return watch, torch.func.functional_call(self.question, values, ())


class _Cotangents:
    """λ = ∂z_c/∂x of everything that a plain pass saw, (c, ...) each, by one batched backward; float64 on the CPU."""

    def __init__(self, z: Tensor, chosen: list[int], seen: Watch) -> None:
        layers = len(seen.blocks)
        attention = [seen.attention[layer][0] for layer in range(layers)]
        ends = [*(a.given for a in attention), *seen.blocks, seen.last]
        wanted = [*(a.out for a in attention), *(x for x in ends if x is not None), *(call.out for call in seen.calls)]
        one_each = torch.eye(len(z), dtype=z.dtype, device=z.device)[chosen]
        found = torch.autograd.grad(z, wanted, one_each, is_grads_batched=True, allow_unused=True)
        every = [torch.zeros(len(chosen), *x.shape).double() if g is None else g.double().cpu() for g, x in zip(found, wanted, strict=True)]
        self.attended, self.given = [g[:, 0] for g in every[:layers]], [g[:, 0] for g in every[layers : 2 * layers]]
        self.boundaries = [g[:, 0] for g in every[2 * layers : 3 * layers + 1]]
        self.calls = every[3 * layers + 1 :]


# ---------------------------------------------------------------------------------------------------------------------- edges


@dataclass
class _Heads:
    """Attention of one block with the cotangents g of its output: every edge from token s to token t by head, (c, heads, t, s)."""

    now: Attention
    g: Tensor  # (c, heads, T, ·)

    def __post_init__(self) -> None:
        self.q, self.k, self.v, self.p = (x[0].double().cpu() for x in (self.now.q, self.now.k, self.now.v, self.now.p))
        self.gv = self.g @ self.v.mT  # what a unit of attention from t to s is worth
        self.attended = self.p.sum(0) > 0

    def looking(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
        """Split by the token s that t looks at: δp_ts ⟨g_t, v_s⟩ + p_ts ⟨g_t, δv_s⟩."""
        scores = (dq @ self.k.mT + self.q @ dk.mT) * self.now.scale
        dp = self.p * (scores - (self.p * scores).sum(-1, keepdim=True))
        return dp * self.gv + self.p * (self.g @ dv.mT)

    def coming(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
        """Split by the token s that the change comes from: as key and value it reaches every t, as query only itself."""
        worth = self.p * (self.gv - (self.p * self.gv).sum(-1, keepdim=True)) * self.now.scale  # ∂z/∂(q_t · k_s)
        edges = worth * (self.q @ dk.mT) + self.p * (self.g @ dv.mT)
        edges.diagonal(dim1=-2, dim2=-1).add_((worth * (dq @ self.k.mT)).sum(-1))
        return edges

    def written(self, back: Tensor) -> Tensor:
        """p_ts ⟨back_t, v_s⟩: a change of what the output does with the heads' values, ``back`` (c, T, heads · width) its cotangent."""
        c, T, _ = back.shape
        return self.p * (back.view(c, T, len(self.p), -1).transpose(1, 2) @ self.v.mT)


class _Ways:
    """Lays the passes side by side and takes every boundary's derivative apart.

    Parameters
    ----------
    total, own, entering : passes with tangents: of everything; of each module's own parameters; of each block's own parameters.
    moving : id of a parameter -> the direction's part.

    Attributes
    ----------
    left_over : what boundaries carry beyond their rows: zero but for rounding where the model is as it should be.
    """

    def __init__(
        self, seen: Watch, cotangents: _Cotangents, total: Watch, entering: Watch, own: Watch, moving: dict[int, Tensor], length: int
    ) -> None:
        self.seen, self.cotangents, self.total, self.entering, self.own = seen, cotangents, total, entering, own
        self.moving, self.length = moving, length
        self.n_layers, self.n_heads = len(seen.blocks), int(seen.attention[0][0].p.shape[1])
        self.c = len(cotangents.boundaries[0])
        self.inner = seen.within_callers()
        self.rows, self.left_over = _Rows(length), list[Tensor]()

    def follow(self, derivative: np.ndarray) -> np.ndarray:
        """Fills the rows; totals (layers + 1, c, T) of every position at every boundary."""
        assert self.total.last is not None
        carried = [x[0].double().cpu() for x in (*self.total.blocks, self.total.last)]
        totals = torch.stack([torch.einsum("ctd,td->ct", g, u) for g, u in zip(self.cotangents.boundaries, carried, strict=True)])
        below, by_position = self._outside("embedding", OUTSIDE)
        self.left_over += [totals[0] - by_position, below]
        for layer in range(self.n_layers):
            self.left_over.append(totals[layer + 1] - self._block(layer, totals[layer]))
        self.rows.add("head", "passed on", totals[-1], source=np.arange(self.length))
        above, by_position = self._outside("head", self.n_layers)
        self.left_over.append(torch.from_numpy(derivative) - totals[-1].sum(1) - by_position.sum(1) - above)
        return totals.numpy()

    def _calls(self, layer: int) -> list[int]:
        return [at for at, call in enumerate(self.seen.calls) if call.layer == layer]

    def _outside(self, name: str, layer: int) -> tuple[Tensor, Tensor]:
        """What embeddings or head introduce, in sum (c,) and at positions (c, T): a pooler sees none."""
        t, sums, by_position = np.arange(self.length), self._zero()[:, 0], self._zero()
        for norm in (False, True):
            parts = [self._introduced(at) for at in self._calls(layer) if self._is_norm(at) == norm and self._moves(at)]
            placed, others = [x for x in parts if x.ndim == 2], [x for x in parts if x.ndim == 1]
            module = f"{name} norm" if norm else name
            if placed:
                here = torch.stack(placed).sum(0)
                by_position = by_position + here
                self.rows.add(module, "introduced", here, source=t, target=t if name == "embedding" else _NONE)
            if others:
                there = torch.stack(others).sum(0)
                sums = sums + there
                self.rows.add(module, "introduced", there[:, None])
        return sums, by_position

    def _block(self, layer: int, before: Tensor) -> Tensor:
        """One block's rows; what they say that its output carries, (c, T)."""
        calls, rows = self._calls(layer), self.rows
        heads = _Heads(self.seen.attention[layer][0], self.cotangents.attended[layer])
        total, entering, own = (_qkv(seen.attention[layer][0]) for seen in (self.total, self.entering, self.own))
        passed = heads.coming(*(a - b for a, b in zip(total, entering, strict=True)))
        introduced = heads.looking(*own)
        first_norm = heads.coming(*(a - b for a, b in zip(entering, own, strict=True))).sum(1)  # (c, t, s)
        output, norms, mlp_norms, mlp = self._parts(layer, calls)

        zero = self._zero()
        given = self.own.attention[layer][0].given
        assert given is not None
        at_output = torch.einsum("ctd,td->ct", self.cotangents.given[layer], given[0].double().cpu())
        if output is not None and self.seen.calls[output].module not in self.inner:
            at_output = at_output + self._introduced(output)
        back = None if output is None else self._through_heads(output)
        if output is not None and back is not None:
            written = heads.written(back)
            introduced, at_output = introduced + written, at_output - written.sum((1, 3)) if self._more_than_weight(calls, output) else zero
        # What a norm before attention introduces and attention does not pass on stays at its position; one behind attention does so as a whole.
        first_norm = first_norm + torch.diag_embed(sum((self._introduced(at) for at in norms), zero) - first_norm.sum(1))
        past = before - passed.sum((1, 2))
        rows.edges(layer, "attention", "introduced", introduced, heads.attended)
        rows.local(layer, "attention", "introduced", at_output)
        rows.edges(layer, "attention", "passed on", passed, heads.attended)
        rows.local(layer, "attention", "residual", past)
        rows.edges(layer, "attention norm", "introduced", first_norm, heads.attended)
        halfway = past + passed.sum((1, 3)) + introduced.sum((1, 3)) + at_output + first_norm.sum(2)

        in_norms, in_mlp = sum((self._introduced(at) for at in mlp_norms), zero), sum((self._introduced(at) for at in mlp), zero)
        if mlp:
            out = (self.cotangents.calls[mlp[-1]] * self.total.calls[mlp[-1]].out.double().cpu()).sum(-1).view(self.c, -1)
            inside = sum((self._introduced(at) for at in mlp_norms if at < mlp[0]), in_mlp)
            rows.local(layer, "MLP", "introduced", in_mlp)
            rows.local(layer, "MLP", "passed on", out - inside)
            rows.local(layer, "MLP", "residual", halfway - (out - inside))
        rows.local(layer, "MLP norm", "introduced", in_norms)
        return halfway + in_norms + in_mlp

    def _parts(self, layer: int, calls: list[int]) -> tuple[int | None, list[int], list[int], list[int]]:
        """Attention's output, norms of attention, norms of the MLP, the MLP: calls of one block by number."""
        seen = self.seen.calls
        outside = [at for at in calls if seen[at].module not in self.inner]
        odd = next((at for at in outside if not self._by_position(at)), None)
        if odd is not None:
            what, shape = type(seen[odd].module).__name__, tuple(seen[odd].out.shape)
            raise ValueError(f"block {layer} has a {what} that gives a tensor of shape {shape}; a trace needs (1, {self.length} tokens, width)")
        output = next((at for at in calls if seen[at].after and self._reads_heads(layer, at)), None)
        left = [at for at in outside if at != output]
        mlp = [at for at in left if not self._is_norm(at)]
        early = [at for at in left if self._is_norm(at) and (not mlp or at < mlp[0])]
        # Where a norm stands before attention, the last one before the MLP is the MLP's; else norms stand behind what they belong to.
        mlp_norms = [early.pop()] if mlp and len(early) > 1 and not seen[early[0]].after else []
        late = [at for at in left if self._is_norm(at) and at not in early and at not in mlp_norms]
        return output, early, mlp_norms + late, mlp

    def _reads_heads(self, layer: int, at: int) -> bool:
        heads, x = self.seen.attention[layer][0].out.detach().transpose(1, 2).flatten(2), self.seen.calls[at].x
        return x is not None and x.shape[-1] == heads.shape[-1] and x.numel() == heads.numel() and torch.equal(x.detach().view_as(heads), heads)

    def _through_heads(self, at: int) -> Tensor | None:
        """λ_t pulled back through the output's change of weight, (c, T, heads · width); None where it is no linear layer on the heads' values."""
        module: Any = self.seen.calls[at].module
        weight = self.moving.get(id(getattr(module, "weight", None)))
        if weight is None or not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            return None
        return self.cotangents.calls[at].view(self.c, self.length, -1) @ (weight if isinstance(module, nn.Linear) else weight.T)

    def _more_than_weight(self, calls: list[int], output: int) -> bool:
        """Whether anything moves behind attention's heads, up to its output, but the output's matrix: else what is left of it is rounding."""
        behind = [self.seen.calls[at].module for at in calls if self.seen.calls[at].after]
        modules = {self.seen.calls[output].module, *(module for module in behind if module in self.inner)}
        matrix: Any = self.seen.calls[output].module.weight
        return any(id(p) in self.moving for module in modules for p in module.parameters() if p is not matrix)

    def _introduced(self, at: int) -> Tensor:
        """⟨λ, own tangent⟩ of one call, (c, T) where it works position by position and (c,) elsewhere."""
        part = (self.cotangents.calls[at] * self.own.calls[at].out.double().cpu()).sum(-1).view(self.c, -1)
        return part if self._by_position(at) else part.sum(1)

    def _by_position(self, at: int) -> bool:
        """Whether what a call gives is (T, width), or (1, T, width)."""
        shape = self.seen.calls[at].out.shape
        return len(shape) in (2, 3) and shape[-2] == self.length and shape[:-2].numel() == 1

    def _moves(self, at: int) -> bool:
        return any(id(p) in self.moving for p in self.seen.calls[at].module.parameters())

    def _zero(self) -> Tensor:
        return torch.zeros(self.c, self.length, dtype=torch.float64)

    def _is_norm(self, at: int) -> bool:
        return "norm" in type(self.seen.calls[at].module).__name__.lower()


def _qkv(found: Attention) -> list[Tensor]:
    return [x[0].double().cpu() for x in (found.q, found.k, found.v)]


class _Rows:
    """Rows of the table as they come, one column a class."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.kinds: list[tuple[int, int, int]] = []

    def add(self, module: str, kind: str, values: Tensor, *, layer: int = _NONE, head: Any = _NONE, source: Any = _NONE, target: Any = _NONE,
            keep: Any = True) -> None:  # fmt: skip
        """``values`` (c, ...) with index arrays that fit ``...``; ``keep`` (...) says which become rows."""
        shape = values.shape[1:]
        mask = np.broadcast_to(keep, shape)
        index = [np.broadcast_to(np.asarray(x, dtype=np.int32), shape)[mask] for x in (head, source, target)]
        self.parts.append((*index, values.numpy()[:, mask]))
        self.kinds.append((layer, MODULES.index(module), KINDS.index(kind)))

    def edges(self, layer: int, module: str, kind: str, values: Tensor, attended: Tensor) -> None:
        """Between positions: (c, heads, t, s), or (c, t, s) of all heads together; pairs that the mask hides are no edges."""
        if not bool(values.any()):
            return
        t = np.arange(self.length)
        keep = attended.numpy() | np.eye(self.length, dtype=bool)
        by_head = {"head": np.arange(values.shape[1])[:, None, None]} if values.ndim == 4 else {}
        self.add(module, kind, values, layer=layer, source=t[None, :], target=t[:, None], keep=keep, **by_head)

    def local(self, layer: int, module: str, kind: str, values: Tensor) -> None:
        """At every position by itself: (c, T)."""
        if bool(values.any()):
            self.add(module, kind, values, layer=layer, source=np.arange(self.length), target=np.arange(self.length))

    def table(self, tokens: list[str], classes: list[str]) -> pd.DataFrame:
        """All rows as :attr:`Trace.table`."""
        counts = [len(part[0]) for part in self.parts]
        head, source, target = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        layer, module, kind = (np.repeat(column, counts) for column in np.array(self.kinds).T)
        values = np.concatenate([part[3] for part in self.parts], axis=1)
        spelled, codes = np.unique(tokens, return_inverse=True)

        def token(at: np.ndarray) -> pd.Categorical:
            return pd.Categorical.from_codes(np.where(at == _NONE, _NONE, codes[at]), spelled)

        index = [
            _missing(layer), pd.Categorical.from_codes(module, MODULES), _missing(head), _missing(source), token(source), _missing(target),
            token(target), pd.Categorical.from_codes(kind, KINDS),
        ]  # fmt: skip
        return pd.DataFrame(dict(zip(INDEX, index, strict=True)) | dict(zip(classes, values, strict=True)))


def _missing(values: np.ndarray) -> pd.arrays.IntegerArray:
    return pd.arrays.IntegerArray(values.astype(np.int16), values == _NONE)
