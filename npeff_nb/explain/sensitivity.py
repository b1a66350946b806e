"""Which tokens a component's response depends on: the input-sensitivity view, beside the exact split of :mod:`npeff_nb.explain.tokens`.

The response of an example is its Fisher's energy along a direction g over the parameters, here as a function of the input embeddings e_t,

    R(e) = gᵀF(e)g = Σ_y p_y (ż_y − Σ_l p_l ż_l)²,        ż = J_θ(e) g,

with the parameters held.  What is reported is the derivative of log R, so that examples compare and the direction's length does not matter:

    signed:   ⟨e_t, ∂ log R/∂e_t⟩     the relative change of R for a relative change of that token's embedding ("gradient times input")
    unsigned: ‖∂ log R/∂e_t‖₂

Shares say at which positions the gradient of the *weights* arises, and add up to 1.  Sensitivities say with which tokens the response would change,
and add up to nothing in particular.

All by automatic differentiation, all classes at once.  With R = φ(z, ż), a = ∂φ/∂ż and b = ∂φ/∂z held constant,

    ∂R/∂e = ∂/∂e [⟨∂⟨a, z⟩/∂θ, g⟩ + ⟨b, z⟩]:

a forward-mode pass gives ż, a double backward pass the rest.  Not a reverse pass through the forward-mode one, nor three nested: PyTorch (2.13) takes
LayerNorm's saved mean and spread for constants there, and is silently wrong.

Where ReLUs switch, R jumps: its derivative says what happens up to the next such place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from npeff_nb.directions.lift import check_fits
from npeff_nb.explain.tokens import token_ids
from npeff_nb.fisher.batches import to_device
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.subject import Subject, alone_with, check_ready


def input_sensitivity(
    subject: Subject, direction: Mapping[str, Tensor], rows: np.ndarray, *, signed: bool = True
) -> dict[int, tuple[np.ndarray, float]]:
    """For each example: the sensitivity of its response to each of its tokens (T,), and to what else is read behind them.

    Same form as :func:`~npeff_nb.explain.tokens.token_shares`, so :func:`~npeff_nb.explain.tokens.words` puts it on the words.  The second entry
    belongs to class words that stand behind a prompt: their sum, or the norm of them all together.  An encoder–decoder's answer is not part of it.
    An example without response gets zeros.

    R is of the prediction that was decomposed: with few outcomes kept, of these and *anything else*; with drawn labels, of the whole distribution
    that they stand for; never cut to the largest axes (``rank=``).

    Parameters
    ----------
    direction : parameter name -> tensor of its shape, of any length.
    signed : embedding times gradient; else the gradient's norm.

    Raises
    ------
    TypeError, ValueError
        When the examples are no texts; when the model is in training mode, lacks a parameter, or looks the tokens up in no embedding table.
    """
    check_ready(subject.model)
    there = dict(subject.model.named_parameters())
    check_fits(there, direction, "is over")
    out: dict[int, tuple[np.ndarray, float]] = {}
    for batch in subject.batches.batches(np.asarray(rows)):
        lengths = [len(ids) for ids in token_ids(subject, batch)]
        response, gradient, embedded = _response(subject, direction, batch)
        slopes = gradient * torch.where(response > 0, 1 / response, 0.0)[:, None, None, None]  # of log R, (n, copies, T, width)
        for at, row in enumerate(batch):
            own, behind = slopes[at, :, : lengths[at]], slopes[at, :, lengths[at] :]
            if signed:
                felt = (slopes[at] * embedded[at]).sum((0, 2))
                found, rest = felt[: lengths[at]], felt[lengths[at] :].sum()
            else:
                # Read once before each class word, a prompt is still one: its gradients add up before their length is taken.
                found, rest = own.sum(0).norm(dim=1), behind.norm()
            out[int(row)] = (found.cpu().numpy(), float(rest))
    return out


def _response(subject: Subject, direction: Mapping[str, Tensor], batch: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """R (n,), and its gradient beside the embeddings of what is read as text, (n, copies, T, width) each; float64."""
    model, recipe = subject.model, subject.recipe
    there = dict(model.named_parameters())
    weights = {f"model.{name}": there[name].detach() for name in direction}
    tangents = {f"model.{name}": value.to(there[name]) for name, value in direction.items()}
    inputs = to_device(subject.batches.batch(batch), subject.device)
    asked = _Asked(model, subject.output.logits)
    seen: list[Tensor] = []

    def logits(moved: dict[str, Tensor], added: Tensor) -> Tensor:
        with _embedding(model, inputs["input_ids"], lambda embedded: embedded + added):
            z = torch.func.functional_call(asked, moved, (inputs,))
        return recipe.coarse(z, chosen) if recipe.fisher == "true" and not recipe.draws else z.double()

    # Fused attention has no second derivatives.
    with alone_with(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with _embedding(model, inputs["input_ids"], seen.append):
            z = asked(inputs)
        if not seen:
            raise ValueError(f"the model ({type(model).__name__}) looks its tokens up in no nn.Embedding, so there is nothing to differentiate by")
        gold = None if subject.gold is None else subject.gold[batch]
        chosen = subject.choices_of(batch) if subject.choices else recipe.decide(z, batch, gold)
        added = torch.zeros_like(seen[0])
        z, dz = torch.func.jvp(lambda moved: logits(moved, added), (weights,), (tangents,))  # type: ignore[misc]
        response = _energy(recipe, z, dz, chosen)
        b, a = torch.func.grad(lambda z, dz: _energy(recipe, z, dz, chosen).sum(), (0, 1))(z, dz)
        with torch.enable_grad():
            moved, added = {name: value.detach().requires_grad_() for name, value in weights.items()}, added.requires_grad_()
            z = logits(moved, added)
            pulled = torch.autograd.grad((a * z).sum(), list(moved.values()), create_graph=True, materialize_grads=True)
            along = torch.stack([(p * tangents[name]).sum() for name, p in zip(moved, pulled, strict=True)]).sum()
            (gradient,) = torch.autograd.grad(along + (b * z).sum(), added)
    shape = (len(batch), -1, *seen[0].shape[1:])
    return response, gradient.double().reshape(shape), seen[0].double().reshape(shape)


def _energy(recipe: Recipe, z: Tensor, dz: Tensor, chosen: dict[str, np.ndarray]) -> Tensor:
    """żᵀMż for the Fisher M over the logits (n, c) and their derivative: (n,)."""
    labels = torch.from_numpy(chosen["labels"]).long().to(z.device) if recipe.fisher != "true" else None
    if recipe.family == "bernoulli":
        p = torch.sigmoid(z)
        return (p * torch.sigmoid(-z) * dz.square()).sum(1) if labels is None else ((labels - p) * dz).sum(1).square()
    p = torch.softmax(z, -1)
    away = dz - (p * dz).sum(1, keepdim=True)
    return (p * away.square()).sum(1) if labels is None else away.gather(1, labels)[:, 0].square()


class _Asked(nn.Module):
    """Logits as the forward pass of a module, for functional calls of the model inside."""

    def __init__(self, model: nn.Module, logits: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, inputs: Any) -> Tensor:
        return self.logits(self.model, inputs)


@contextmanager
def _embedding(model: nn.Module, ids: Tensor, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Hands every look-up of the text's tokens (copies · n, T, width) to ``change``, which may return another tensor instead."""
    table = getattr(model, "get_input_embeddings", lambda: None)()

    def hook(module: nn.Module, looked_up: tuple, embedded: Tensor) -> Tensor | None:
        same = looked_up[0].numel() == ids.numel() and torch.equal(looked_up[0].flatten(), ids.flatten())
        return change(embedded) if same else None

    ours = [m for m in model.modules() if isinstance(m, nn.Embedding) and (table is None or m.weight is table.weight)]
    handles = [m.register_forward_hook(hook) for m in ours]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
