"""Edits: what a preview, a slider's release and a sweep cost, against the plain forward passes they cannot do without."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from measuring import DEVICE, RUNS, Row, device_name, in_turn, row

import npeff_nb as nb
from npeff_nb.directions.lift import random_direction
from npeff_nb.directions.perturb import edited_logits
from npeff_nb.directions.preview import response
from npeff_nb.directions.trace import trace_direction
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import output_for
from npeff_nb.fisher.parameters import choose_parameters
from npeff_nb.fisher.subject import Subject

SHOWN, SWEPT = 64, 128
"""Examples under a slider, and of a sweep: the top ones, and others for comparison."""
STRENGTHS = [float(s) for s in np.geomspace(0.01, 1, 9)]
FORWARDS = 2.5
"""A preview may cost so many plain forward passes.  Each product x W takes two more, dx W and x dW; the rest of a pass is not doubled throughout."""
ANSWER = 0.5
"""Seconds in which a released slider is to show the truth."""
SENTENCE = (
    "what is the name of the river that runs through the old city where the king who built the first bridge of stone in the country was born in ?"
)
"""32 tokens."""


def rows() -> dict[str, Row]:
    demo = nb.load_demo()
    demo.model.to(DEVICE)
    output = output_for(demo.model)
    batches, _ = output.prepare(demo.model, demo.tokenizer, demo.sample(SWEPT, 0), None)
    subject = Subject(demo.model, batches, output, Recipe(), demo.tokenizer)
    return preview(subject) | sweep(subject) | traced(demo)


def _step(subject: Subject, seed: int = 0) -> dict:
    """A direction over the parameters that components are made of.  Where it points makes no difference to its cost."""
    there = dict(subject.model.named_parameters())
    return random_direction({name: there[name].detach() for name in choose_parameters(subject.model)["name"]}, seed)


def preview(subject: Subject) -> dict[str, Row]:
    """64 examples of the demo: logits and derivative in one pass, and the edited model really run, against a plain forward pass."""
    shown, step = np.arange(SHOWN), _step(subject)

    def plain() -> int:
        subject.logits(shown)
        return 1

    def first_order() -> int:
        response(subject, step, shown)
        return 1

    def released() -> int:
        edited_logits(subject, step, [0.3], shown)
        return 1

    rates = in_turn({"plain": plain, "preview": first_order, "release": released}, runs=3 * RUNS)
    what = f"{SHOWN} questions of the demo, on {device_name()}"
    return {
        "preview / plain forward": row(
            rates["preview"] / rates["plain"], 1 / FORWARDS, f"{what}: logits and derivative, {rates['plain'] / rates['preview']:.3g} forward passes"
        ),
        f"slider release, {ANSWER} s / seconds": row(
            ANSWER * rates["release"], 1, f"{what}: edited, run and restored at one strength in {1 / rates['release']:.3g} s"
        ),
    }


def sweep(subject: Subject, components: int = 1) -> dict[str, Row]:
    """A sweep over strengths of both signs against as many plain forward passes over the same examples."""
    swept, steps = np.arange(SWEPT), [_step(subject, seed) for seed in range(components)]
    signed = [sign * s for sign in (1, -1) for s in STRENGTHS]

    def edits() -> int:
        for step in steps:
            edited_logits(subject, step, signed, swept)
        return 1

    def plain() -> int:
        for _ in range(len(signed) * components):
            subject.logits(swept)
        return 1

    rates = in_turn({"sweep": edits, "plain": plain}, runs=2)
    what = f"{components} direction x {len(STRENGTHS)} strengths x 2 signs, {SWEPT} questions of the demo, on {device_name()}"
    return {"sweep / its forward passes": row(rates["sweep"] / rates["plain"], 1 / 1.15, f"{what}: against the model run as often, unedited")}


def traced(demo: Any) -> dict[str, Row]:
    """A trace against a forward with tangents for each of the (L − 1) T² + L T + 1 edges, as the reference's tracer ran a masked linear one."""
    output = output_for(demo.model)
    batches, _ = output.prepare(demo.model, demo.tokenizer, [SENTENCE], 1)
    subject = Subject(demo.model, batches, output, Recipe(), demo.tokenizer)
    step = _step(subject)
    values = {name: demo.model.get_parameter(name).detach() for name in step}
    inputs = {key: value.to(DEVICE) for key, value in batches.batch(np.array([0])).items()}

    def trace() -> int:
        trace_direction(subject, step, 0)
        return 1

    def forward() -> int:
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            torch.func.jvp(lambda moved: torch.func.functional_call(demo.model, moved, (), inputs).logits, (values,), (dict(step),))
        return 1

    rates = in_turn({"trace": trace, "forward": forward})
    layers, tokens = demo.model.config.num_hidden_layers, inputs["input_ids"].shape[1]
    edges = (layers - 1) * tokens**2 + layers * tokens + 1
    what = f"a sentence of {tokens} tokens, {layers} layers, on {device_name()}: {1 / rates['trace']:.3g} s against {edges} forwards with tangents"
    return {"trace / one forward an edge": row(edges * rates["trace"] / rates["forward"], 100, what)}
