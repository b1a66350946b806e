"""The trace's picture: every edge that is strong enough is in it once, and menu, slider and legend say what they do."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import tiny

from npeff_nb.directions.lift import random_direction
from npeff_nb.directions.trace import Trace, trace_direction
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import NextToken, SequenceClasses
from npeff_nb.fisher.subject import Subject
from npeff_nb.widgets.trace_figure import AGAINST, OPACITY, SHOWN, STRENGTHS, TOWARDS, figure

TEXT = "who played the king ?"


def traced(model, output=None, tokenizer=None) -> Trace:
    output, tokenizer = output or SequenceClasses(), tokenizer or tiny.tokenizer()
    batches, _ = output.prepare(model, tokenizer, [TEXT], 1)
    return trace_direction(Subject(model, batches, output, Recipe(), tokenizer), random_direction(dict(model.named_parameters())), 0)


@pytest.fixture(scope="module")
def bert() -> Trace:
    return traced(tiny.bert())


@pytest.fixture(scope="module")
def gpt2() -> Trace:
    return traced(tiny.gpt2_for("LMHeadModel", vocab_size=300), NextToken(), tiny.llama_tokenizer())


def lines(drawn):
    """Traces of edges, with kind and colour."""
    edges = [t for t in drawn.data if t.type == "scatter" and t.mode == "lines" and t.showlegend is False]
    return [(t, t.legendgroup, TOWARDS if TOWARDS in t.line.color else AGAINST) for t in edges]


def segments(x) -> int:
    return sum(value is None for value in x)


def merged(trace: Trace):
    """Edges as the picture has them: heads together, norms with what they belong to."""
    table = trace.table.assign(module=trace.table["module"].astype(str).str.removesuffix(" norm"))
    keys = ["layer", "module", "source", "target", "kind"]
    return table.groupby(keys, dropna=False, observed=True)[trace.classes].sum().reset_index()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_every_edge_that_is_strong_enough_is_drawn_once(name, request):
    trace = request.getfixturevalue(name)
    drawn, edges = figure(trace), merged(trace)
    start = trace.classes[int(np.argmax(trace.logits))]
    share = edges[start].abs() / edges[start].abs().max()
    for kind in OPACITY:
        for colour, sign in ((TOWARDS, 1), (AGAINST, -1)):
            found = [t for t, of, side in lines(drawn) if of == kind and side == colour]
            assert len(found) == len(STRENGTHS)
            wanted = (edges["kind"] == kind) & (np.sign(edges[start]) == sign)
            between = zip(STRENGTHS, [*STRENGTHS[1:], np.inf], strict=True)
            assert [segments(t.x) for t in found] == [int((wanted & (share >= low) & (share < high)).sum()) for low, high in between]
            assert [t.line.width for t in found] == sorted(t.line.width for t in found)


def test_an_edge_stands_where_it_belongs(bert):
    drawn = figure(bert)
    start = bert.classes[int(np.argmax(bert.logits))]
    edges = merged(bert)
    passed = edges[(edges["kind"] == "passed on") & (edges["module"] == "attention") & (edges["source"] != edges["target"])]
    top = passed.loc[passed[start].abs().idxmax()]
    ends = [int(top["source"]), 2 * top["layer"], int(top["target"]), 2 * top["layer"] + 1]
    said = f"layer {top['layer']}, attention: {bert.tokens[ends[0]]} → {bert.tokens[ends[2]]}<br>passed on<br>{top[start]:+.3g}"
    hits = []
    for t, _, _ in lines(drawn):
        for at, text in enumerate(t.text or ()):
            if text.startswith(said):
                gaps = [-1, *(i for i, x in enumerate(t.x) if x is None)]
                first, last = next((a + 1, b - 1) for a, b in pairwise(gaps) if a < at < b)
                hits.append([t.x[first], t.y[first], t.x[last], t.y[last]])
    assert hits
    assert all(hit == ends for hit in hits)


def test_the_menu_shows_another_class(bert):
    drawn = figure(bert)
    menu = drawn.layout.updatemenus[0]
    assert [button.label for button in menu.buttons] == bert.classes
    start = int(np.argmax(bert.logits))
    assert menu.active == start
    for at, button in enumerate(menu.buttons):
        data, layout = button.args
        assert all(len(data[key]) == len(drawn.data) for key in ("x", "y", "text"))
        assert f"{bert.derivative[at]:+.3g}" in layout["title.text"]
    own = menu.buttons[start].args[0]
    assert all(list(own["x"][i]) == list(t.x) for i, t in enumerate(drawn.data))
    # Bars: what each height introduces, both signs together.
    for at, name in enumerate(bert.classes):
        sums = bert.table[bert.table["kind"] == "introduced"][name].sum()
        assert sum(sum(menu.buttons[at].args[0]["x"][i]) for i in (-1, -2)) == pytest.approx(sums, rel=1e-5)
        assert sums == pytest.approx(bert.derivative[at], rel=1e-3)


def test_the_slider_hides_what_is_weaker(bert):
    drawn = figure(bert)
    slider = drawn.layout.sliders[0]
    assert slider.steps[slider.active].label == f"{100 * SHOWN:g} %"
    assert [step.label for step in slider.steps] == [f"{100 * s:g} %" for s in STRENGTHS]
    widths = [t.line.width for t, _, _ in lines(drawn)]
    for number, step in enumerate(slider.steps):
        said = step.args[0]
        hidden = [w for w, opacity in zip(widths, said["opacity"], strict=False) if opacity == 0]
        assert len(hidden) == number * 2 * len(OPACITY)
        assert all(w < min(set(widths) - set(hidden)) for w in hidden)
        assert [h == "skip" for h in said["hoverinfo"]] == [o == 0 for o in said["opacity"]]
        assert len(said["opacity"]) == len(drawn.data)
    shown = slider.steps[slider.active].args[0]["opacity"]
    assert [t.opacity for t, _, _ in lines(drawn)] == shown[: len(widths)]


def test_kinds_are_named_in_the_legend(bert):
    drawn = figure(bert, title="Component 3")
    assert [t.name for t in drawn.data if t.type == "scatter" and t.mode == "lines" and t.showlegend is None] == list(OPACITY)
    assert drawn.layout.title.text.startswith("Component 3<br>")
    json.loads(drawn.to_json())


def test_tokens_are_no_markup(gpt2):
    assert gpt2.tokens[0] == "<s>"
    drawn = figure(gpt2)
    assert drawn.layout.xaxis.ticktext[0] == "&lt;s&gt;"
    assert "<s>" not in drawn.to_json()


def test_a_trace_of_nothing_can_be_drawn(bert):
    zero = traced(tiny.bert())
    zero.table[zero.classes] = 0.0
    zero.totals[zero.classes] = 0.0
    zero.derivative = np.zeros(3)
    assert not any(segments(t.x) for t, _, _ in lines(figure(zero)))
