"""A component in parameter space: one weighted backward pass over the examples that make it up.

Every minimiser lies in the span of the factor rows, h_k = Σ_iy Θ_k,iy a_iy (:meth:`npeff_nb.NPEFF.row_weights`), and a_iy is the pull-back of a
known vector on the logits.  So the direction is the gradient of Σ_i ⟨Σ_y Θ_k,iy row_iy, z_i⟩ with the brackets' left side held constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from npeff_nb.fisher.subject import Subject, alone_with, check_ready

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

COVERAGE = 0.98
"""Share of ‖h‖² whose examples take part: a component leans on few examples, and the long rest would cost most of the time."""


class Direction(dict[str, Tensor]):
    """A unit-norm direction in parameter space: parameter name -> tensor of that parameter's shape.

    Attributes
    ----------
    cosine : with the component's full direction, as far as the factor rows' features tell; 1 when every example took part.
    examples : how many examples took part.
    """

    cosine: float = 1.0
    examples: int = 0


def direction(npeff: Factorisation, k: int, model: nn.Module | None = None, coverage: float = COVERAGE) -> Direction:
    """Component ``k`` as a unit-norm direction over the parameters that took part.

    Parameters
    ----------
    model : the model of the extraction by default; a loaded decomposition needs :meth:`~npeff_nb.NPEFF.attach` first, after which another
        model of the same shape (a later checkpoint, say) may be given here.
    coverage : examples are taken, those that contribute most first, until they carry this share of the component.

    Raises
    ------
    ValueError
        When the component does not exist, there is no model, or it lacks one of the parameters.
    """
    k = npeff.check_component(k)
    subject = subject_of(npeff, model)
    theta = npeff.row_weights(k)
    rows, carried = support(theta, npeff.projections_[:, :, k], coverage)
    found, length = combined(npeff, subject, rows, theta[rows])
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"component {k} has a direction of length {length} in parameter space: it cannot be lifted")
    found.cosine = float(min(1.0, carried / length))
    return found


def support(theta: np.ndarray, projections: np.ndarray, coverage: float) -> tuple[np.ndarray, float]:
    """The examples that carry a share ``coverage`` of a component, those that contribute most first, and what of ‖h‖² they carry.

    theta, projections : (n, k) weights of the factor rows, and their projections on the component.
    """
    contribution = (theta * projections).sum(1)  # sums to ‖h‖² = 1 at a stationary point
    order = np.argsort(-np.abs(contribution), kind="stable")
    reached = np.cumsum(contribution[order])
    take = int((reached < coverage * reached[-1]).argmin()) + 1 if coverage < 1 else len(order)
    return order[:take], reached[take - 1]


def combined(npeff: Factorisation, subject: Subject, rows: np.ndarray, weights: np.ndarray) -> tuple[Direction, float]:
    """Σ weights_iy · (unit-norm factor row iy) over examples ``rows`` (m,) at unit norm, and its length before.

    A length that is zero or not finite leaves no direction: the caller says so.
    """
    weights = weights / np.sqrt(np.where(npeff.norms[rows] > 0, npeff.norms[rows], 1.0))[:, None]
    found = Direction(pull_back(subject, list(npeff.parameters["name"]), rows, weights, npeff.logits[rows]))
    for name, scale in zip(npeff.parameters["name"], npeff.parameters["scale"], strict=True):
        # The Fisher was taken over θ/s: its gradients are s times as long, and a step of 1 there is a step of s here.
        if scale != 1:
            found[name] *= scale**2
    length = norm(found)
    for value in found.values():
        value /= length
    found.examples = len(rows)
    return found, length


def check_fits(there: Mapping[str, Tensor], direction: Mapping[str, Tensor], does: str = "moves") -> None:
    """That a model with parameters ``there`` has all that a direction moves, in the same shapes; else a ValueError in words."""
    for name, value in direction.items():
        if name not in there or there[name].shape != value.shape:
            has = tuple(there[name].shape) if name in there else "no such parameter"
            raise ValueError(f"the direction {does} {name!r} of shape {tuple(value.shape)}; the model has {has}")


def pull_back(subject: Subject, names: list[str], rows: np.ndarray, weights: np.ndarray, logits: np.ndarray) -> dict[str, Tensor]:
    """Σ_ik weights_ik · (factor row k of example i) over chosen parameters: parameter name -> tensor, on the model's device, float32.

    Parameters
    ----------
    rows : (m,) examples; weights : (m, k); logits : (m, c) of the extraction, so that these are the very rows that were decomposed, signs and order
        of classes included.
    """
    model = subject.model
    check_ready(model)
    there = dict(model.named_parameters())
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"the model has no parameter {missing[0]!r}, over which this decomposition was made")
    place = {int(row): at for at, row in enumerate(rows)}
    chosen = [there[name] for name in names]
    total = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in chosen]
    with alone_with(model):
        asked = {p: p.requires_grad for p in model.parameters()}
        try:
            for p in asked:
                p.requires_grad_(False)
            for p in chosen:
                p.requires_grad_(True)
            for batch in subject.batches.batches(rows):
                at = [place[int(row)] for row in batch]
                with torch.enable_grad():
                    z = subject.raw_logits(batch)
                    cotangents = subject.recipe.cotangents(z.detach(), torch.from_numpy(logits[at]), subject.choices_of(batch))
                    theta = torch.from_numpy(weights[at, : cotangents.shape[1]]).to(cotangents)
                    v = torch.einsum("ny,nyc->nc", theta, cotangents).to(z)
                    gradients = torch.autograd.grad((z * v).sum(), chosen, allow_unused=True)
                for kept, gradient in zip(total, gradients, strict=True):
                    if gradient is not None:
                        kept += gradient
        finally:
            for p, was in asked.items():
                p.requires_grad_(was)
    return dict(zip(names, total, strict=True))


def random_direction(like: dict[str, Tensor], seed: int = 0) -> Direction:
    """A unit-norm Gaussian direction over the same parameters: the control that tells an edit from mere noise."""
    generator = torch.Generator().manual_seed(seed)
    drawn = Direction({name: torch.randn(value.shape, generator=generator).to(value) for name, value in like.items()})
    length = norm(drawn)
    for value in drawn.values():
        value /= length
    return drawn


def norm(direction: dict[str, Tensor]) -> float:
    """L2 norm over all tensors together, summed in float64."""
    return float(sum(value.double().square().sum() for value in direction.values()) ** 0.5)


def subject_of(npeff: Factorisation, model: nn.Module | None = None) -> Subject:
    """The model with its examples behind a decomposition, or an error that says how to provide it."""
    if npeff.subject is None:
        raise ValueError(
            "this decomposition has no model at hand: "
            + (
                "call npeff.attach(model, tokenizer) with the model it was made from"
                if npeff.examples is not None
                else "it was fitted on an array; fit it on the result of nb.extract_fishers to lift and edit components"
            )
        )
    if model is None or model is npeff.subject.model:
        return npeff.subject
    return npeff.subject.with_model(model)
