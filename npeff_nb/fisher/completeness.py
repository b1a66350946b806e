"""A guard: are all uses of the chosen parameters seen?  Hooks see modules, not functions."""

from __future__ import annotations

import torch

from npeff_nb.fisher._inputs import to_device
from npeff_nb.fisher.gradients import Tape, UnsupportedModule, small_grams
from npeff_nb.fisher.subject import Subject, alone_with

COMPLETE = 0.05
"""Relative difference of a parameter's gradient from autograd's at which the tape has missed a use; rounding, also of bfloat16, stays below."""


def check_complete(subject: Subject, tape: Tape, names: list[str]) -> None:
    """Compares one example's gradients with autograd's, parameter by parameter.

    Raises
    ------
    UnsupportedModule
        When a parameter is also used where no hook stands: its Fishers would be wrong without a word.
    """
    batch = to_device(subject.batches.batch(subject.batches.batches()[0][:1]), subject.device)
    there = dict(subject.model.named_parameters())
    chosen = [there[name] for name in names]
    with alone_with(subject.model):
        with tape.recording(1):
            z = subject.logits_of(subject.model, batch)
        if z.ndim != 2 or z.shape[1] < 2 or not z.requires_grad or not torch.isfinite(z).all():
            return  # said elsewhere, in its own words
        v = torch.arange(z.shape[1], dtype=z.dtype, device=z.device) + 1
        v = v - v.mean()
        found = {name: float(small_grams(uses)[0, 0, 0]) ** 0.5 for name, uses in tape.gradients(z, v[None, None])}
        asked = [p.requires_grad for p in subject.model.parameters()]
        try:
            for p in chosen:
                p.requires_grad_(True)
            with torch.enable_grad():
                z = subject.logits_of(subject.model, batch)
                exact = torch.autograd.grad((z[0] * v).sum(), chosen, allow_unused=True)
        finally:
            for p, was in zip(subject.model.parameters(), asked, strict=True):
                p.requires_grad_(was)
    scale = max([float(g.norm()) for g in exact if g is not None], default=0.0)
    for name, gradient in zip(names, exact, strict=True):
        expected = 0.0 if gradient is None else float(gradient.norm())
        if abs(found.get(name, 0.0) - expected) > COMPLETE * max(expected, 1e-3 * scale):
            raise UnsupportedModule(
                f"parameter {name!r} is used outside its own module (by a function, say), where its gradient cannot be followed: "
                "leave it out with parameters=[...]"
            )
