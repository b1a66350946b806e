"""A guard: are all uses of the chosen parameters seen?  Hooks see modules, not functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from npeff_nb.fisher.gradients import Tape, UnsupportedModule
from npeff_nb.fisher.subject import Subject, alone_with

COMPLETE = 0.05
"""Relative difference of a parameter's gradient from autograd's at which the tape has missed a use; rounding, also of bfloat16, stays below."""


LOOKS = 3
"""Examples that are looked at: one may happen to feel nothing of a parameter."""


def tape_for(subject: Subject, names: list[str], quiet: bool = False) -> Tape:
    """A tape for these parameters, taught which axes carry the examples and held against autograd; made once for a subject.

    A few examples' gradients are compared with autograd's, parameter by parameter.  A parameter that is also used outside its own module (by a
    function, say) is followed through the next larger module that contains the use; modules without a formula are named once in a warning.

    Raises
    ------
    UnsupportedModule
        When even the whole model, run again, gives another gradient than autograd.
    """
    key = tuple(names)
    if key not in subject.tapes:
        tape = Tape(subject.model, names)
        _teach(subject, tape, names)
        subject.tapes[key] = tape
        if not quiet:
            _tell(tape)
    if subject.tapes[key].one_by_one:
        subject.batches.batch_size = 1
    return subject.tapes[key]


def _teach(subject: Subject, tape: Tape, names: list[str]) -> None:
    with alone_with(subject.model):
        looks = _looks(subject)
        while looks:  # none: said elsewhere, in its own words
            if subject.batches.batch_size != 1:  # alone, an example owns every row there is
                tape.learn([_twice(subject, row) for row in looks])
            missed = sorted({name for row in looks for name in _missed(subject, tape, row, names)})
            if not missed:
                return
            widened = [tape.widen(name) for name in missed]
            if not all(widened):
                raise UnsupportedModule(
                    f"the gradient of parameter {missed[0]!r} cannot be followed through the model: leave it out with parameters=[...]"
                )


def _looks(subject: Subject) -> list[np.ndarray]:
    """A few examples, from short to long: only such whose numbers are finite."""
    order = np.argsort(subject.batches.lengths, kind="stable")
    spread = order[np.unique(np.linspace(0, len(order) - 1, min(LOOKS, len(order))).astype(int))]
    found: list[np.ndarray] = []
    for row in dict.fromkeys([*spread.tolist(), *order.tolist()]):
        if _asked(subject, np.array([row])):
            found.append(np.array([row]))
        if len(found) == LOOKS:
            break
    return found


def _twice(subject: Subject, row: np.ndarray) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    return lambda: subject.raw_logits(row), lambda: subject.raw_logits(np.concatenate([row, row]))


def _tell(tape: Tape) -> None:
    if tape.one_by_one:
        warnings.warn("some parameters that take part are used once for a whole batch: examples go one by one, slower and as exact", stacklevel=5)
    without = tape.without_formula()
    if without:
        kinds = ", ".join(f"{kind} ({len(owned)} parameter{'s' * (len(owned) != 1)}, {owned[0]} first)" for kind, owned in without.items())
        warnings.warn(f"no formula for {kinds}: these modules are run again for every example, slower and as exact", stacklevel=5)


def _asked(subject: Subject, row: np.ndarray) -> bool:
    with torch.enable_grad():
        z = subject.raw_logits(row)
    return z.ndim == 2 and bool(torch.isfinite(z).all()) and z.shape[1] >= (1 if subject.recipe.family == "bernoulli" else 2)


def _weights(z: Tensor) -> Tensor:
    v = torch.arange(z.shape[1], dtype=z.dtype, device=z.device) + 1
    v = v / v[-1]
    return v - v.mean() if z.shape[1] > 1 else v


def _by_autograd(subject: Subject, row: np.ndarray, names: list[str]) -> dict[str, Tensor | None]:
    there = dict(subject.model.named_parameters())
    asked = [p.requires_grad for p in subject.model.parameters()]
    try:
        for p in subject.model.parameters():
            p.requires_grad_(False)
        for name in names:
            there[name].requires_grad_(True)
        with torch.enable_grad():
            z = subject.raw_logits(row)
            if not z.requires_grad:
                return dict.fromkeys(names)
            found = torch.autograd.grad((z[0] * _weights(z)).sum(), [there[name] for name in names], allow_unused=True)
    finally:
        for p, was in zip(subject.model.parameters(), asked, strict=True):
            p.requires_grad_(was)
    return {name: None if g is None else g.float() for name, g in zip(names, found, strict=True)}


def _missed(subject: Subject, tape: Tape, row: np.ndarray, names: list[str]) -> list[str]:
    """Parameters whose gradient on the tape is not autograd's, for one example."""
    exact = _by_autograd(subject, row, names)
    sizes = {name: 0.0 if g is None else float(g.norm()) for name, g in exact.items()}
    if not np.isfinite(list(sizes.values())).all():
        return []  # nothing can be compared here
    with tape.recording(1):
        z = subject.raw_logits(row)
    if not z.requires_grad:
        return []
    distance = dict(sizes)
    for name, uses in tape.gradients(z, _weights(z)[None, None]):  # one at a time: all together are as large as the model
        g = exact[name]
        here = torch.stack([use.dense()[0, 0] for use in uses]).sum(0).flatten()
        distance[name] = float((here if g is None else here - g.flatten()).norm())
    scale = max(sizes.values(), default=0.0)
    return [name for name in names if distance[name] > COMPLETE * max(sizes[name], 1e-3 * scale)]
