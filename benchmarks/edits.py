"""Edits: what a preview, a slider's release and a sweep cost, against the plain forward passes they cannot do without."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from controls import fitted
from measuring import DEVICE, RUNS, Row, device_name, in_turn, row

import npeff_nb as nb
from npeff_nb.demo.run import COMPONENTS
from npeff_nb.directions.lift import COVERAGE, random_direction, support
from npeff_nb.directions.perturb import edited_logits
from npeff_nb.directions.preview import response
from npeff_nb.directions.sweeps import STRENGTHS
from npeff_nb.directions.trace import trace_direction
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import output_for
from npeff_nb.fisher.parameters import choose_parameters
from npeff_nb.fisher.subject import Subject

SHOWN = 64
"""Examples under a slider."""
SWEPT = 4
"""Components that are swept, of the 32: one from each quarter, by how many examples their directions are lifted from."""
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
    return preview(_asked(demo, demo.sample(SHOWN, 0))) | sweep() | traced(demo)


def _asked(demo: Any, examples: Any) -> Subject:
    output = output_for(demo.model)
    batches, _ = output.prepare(demo.model, demo.tokenizer, examples, None)
    return Subject(demo.model, batches, output, Recipe(), demo.tokenizer)


def _step(subject: Subject) -> dict:
    """A direction over the parameters that components are made of.  Where it points makes no difference to its cost."""
    there = dict(subject.model.named_parameters())
    return random_direction({name: there[name].detach() for name in choose_parameters(subject.model)["name"]})


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

    rates = in_turn({"plain": plain, "preview": first_order, "release": released}, runs=9 * RUNS)
    what = f"{SHOWN} questions of the demo, on {device_name()}"
    return {
        "preview / plain forward": row(
            rates["preview"] / rates["plain"], 1 / FORWARDS, f"{what}: logits and derivative, {rates['plain'] / rates['preview']:.3g} forward passes"
        ),
        f"slider release, {ANSWER} s / seconds": row(
            ANSWER * rates["release"], 1, f"{what}: edited, run and restored at one strength in {1 / rates['release']:.3g} s"
        ),
    }


def sweep() -> dict[str, Row]:
    """What a sweep takes, lifts of directions included, against plain forward passes: one over the same examples after each of its own."""
    npeff, _ = fitted()
    npeff.subject.model.to(DEVICE)
    lifted = [len(support(npeff.row_weights(k), npeff.projections_[:, :, k], COVERAGE)[0]) for k in range(COMPONENTS)]
    quarter = COMPONENTS // SWEPT
    chosen = np.argsort(lifted)[quarter // 2 :: quarter].tolist()
    ratios, questions, seconds = [], [], []

    for k in chosen:
        rows = np.sort(nb.sweeps.sweep(npeff, k, STRENGTHS[:1], controls=(), progress=False)["example"].unique())
        times = [time.perf_counter()]

        def told(done: int, total: int, what: str, rows: np.ndarray = rows, times: list[float] = times) -> None:
            times.append(time.perf_counter())
            if done:
                npeff.subject.logits(rows)
            times.append(time.perf_counter())

        nb.sweeps.sweep(npeff, k, STRENGTHS, controls=(), progress=told)
        times.append(time.perf_counter())
        spent = np.diff(times)
        ratios.append(spent[1::2].sum() / spent[::2].sum())
        questions.append(len(rows))
        seconds.append(spent[::2].sum())
    what = (
        f"{SWEPT} of {COMPONENTS} components x {len(STRENGTHS)} strengths x 2 signs, {np.mean(questions):.0f} questions of the demo each, directions "
        f"lifted from {np.mean([lifted[k] for k in chosen]):.0f} (all {COMPONENTS}: {np.mean(lifted):.0f}), on {device_name()}: "
        f"{np.median(seconds):.3g} s a component, against as many forward passes"
    )
    return {"sweep / its forward passes": row(float(np.median(ratios)), 1 / 1.15, what)}


def traced(demo: Any) -> dict[str, Row]:
    """A trace against a forward with tangents for each of the (L − 1) T² + L T + 1 edges, as the reference's tracer ran a masked linear one."""
    subject = _asked(demo, [SENTENCE])
    step = _step(subject)
    values = {name: demo.model.get_parameter(name).detach() for name in step}
    inputs = {key: value.to(DEVICE) for key, value in subject.batches.batch(np.array([0])).items()}

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
