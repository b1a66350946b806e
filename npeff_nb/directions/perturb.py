"""The edit: a model moved along a direction, for as long as a ``with`` block lasts, and what that does to its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from npeff_nb.fisher.subject import Subject, alone_with


@contextmanager
def perturb(model: nn.Module, direction: Mapping[str, Tensor], strength: float) -> Iterator[nn.Module]:
    """θ + strength · direction inside the ``with`` block; θ again afterwards, bit for bit.

    The parameters are put back from a copy (never by subtraction) on every way out: normal end, exception, Ctrl-C.  Other threads
    that run this model through npeff_nb wait until the block ends.

    Parameters
    ----------
    direction : parameter name -> tensor of its shape, as :meth:`npeff_nb.NPEFF.direction` gives.
    strength : step length; for a unit-norm direction the L2 distance moved.  Its sign matters: positive strengthens a component,
        negative turns it down.

    Raises
    ------
    ValueError
        When strength is not finite or the direction does not fit the model; nothing has been changed then.
    """
    strength = float(strength)
    if not np.isfinite(strength):
        raise ValueError(f"strength={strength}: it must be a finite number")
    there = dict(model.named_parameters())
    for name, value in direction.items():
        if name not in there or there[name].shape != value.shape:
            has = tuple(there[name].shape) if name in there else "no such parameter"
            raise ValueError(f"the direction moves {name!r} of shape {tuple(value.shape)}; the model has {has}")
    with alone_with(model):
        before = {name: there[name].detach().clone() for name in direction}
        try:
            with torch.no_grad():
                for name, value in direction.items():
                    there[name].add_(value.to(there[name]), alpha=strength)
            yield model
        finally:
            _restore(there, before)


def _restore(there: dict[str, nn.Parameter], before: dict[str, Tensor]) -> None:
    """Copies everything back; a Ctrl-C that arrives meanwhile is kept until it is done."""
    interrupted = None
    left = list(before)
    while left:
        try:
            with torch.no_grad():
                there[left[-1]].copy_(before[left[-1]])
            left.pop()
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def kl(perturbed: np.ndarray | Tensor, original: np.ndarray | Tensor, family: str = "categorical") -> np.ndarray:
    """KL(perturbed ‖ original) in nats from logits (..., c), float64, never below zero but for rounding.

    Σ p'(log p' − log p) from log-softmax; for independent labels (``"bernoulli"``) the sum of each label's own.
    """
    new, old = torch.as_tensor(perturbed, dtype=torch.float64), torch.as_tensor(original, dtype=torch.float64)
    if family == "bernoulli":
        yes = torch.nn.functional.logsigmoid(new), torch.nn.functional.logsigmoid(old)
        no = torch.nn.functional.logsigmoid(-new), torch.nn.functional.logsigmoid(-old)
        return (yes[0].exp() * (yes[0] - yes[1]) + no[0].exp() * (no[0] - no[1])).sum(-1).clamp_min(0).numpy()
    new, old = torch.log_softmax(new, -1), torch.log_softmax(old, -1)
    return (new.exp() * (new - old)).sum(-1).clamp_min(0).numpy()


def edited_logits(subject: Subject, direction: Mapping[str, Tensor], strengths: list[float], rows: np.ndarray) -> np.ndarray:
    """The model really run: logits (strengths, rows, c) float32 under θ + strength · direction."""
    out = []
    for strength in strengths:
        with perturb(subject.model, direction, strength):
            out.append(subject.logits(rows).numpy())
    return np.stack(out)


@dataclass(frozen=True)
class EditSets:
    """The examples an edit is judged on: the ones that use a component most, and a random sample of all others."""

    top: np.ndarray
    baseline: np.ndarray


def edit_sets(coefficients: np.ndarray, n_top: int, n_baseline: int, seed: int = 0, eligible: np.ndarray | None = None) -> EditSets:
    """Top ``n_top`` users by coefficient (n,), and ``n_baseline`` drawn at random from everything else: the two never overlap.

    The baseline may contain lesser users of the component: it stands for the data, not for the component's absence.  Examples outside ``eligible``
    (n,) (without a Fisher, because their numbers are not finite, say) are in neither.
    """
    order = np.argsort(-coefficients, kind="stable")
    users = order[coefficients[order] > 0]
    # With few examples the top set leaves at least half of them for comparison.
    top = users[: max(1, min(n_top, len(coefficients) // 2))]
    rest = np.setdiff1d(np.arange(len(coefficients)) if eligible is None else np.flatnonzero(eligible), top)
    drawn = np.random.default_rng(seed).permutation(rest)[:n_baseline]
    return EditSets(top, np.sort(drawn))


def kl_ratio(top: np.ndarray, baseline: np.ndarray) -> float | None:
    """Mean KL on the top set over mean KL on the baseline (Matena and Raffel, section 4); None where the baseline did not move."""
    below = float(np.mean(baseline))
    return float(np.mean(top)) / below if below > 0 else None
