"""What the slider asks, against slow twins in float64 and a model that is edited by hand."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import tiny
import torch
import twins

from npeff_nb import NPEFF
from npeff_nb._progress import Cancelled
from npeff_nb.directions.perturb import kl
from npeff_nb.explain.packed import unpack
from npeff_nb.explain.profile import STRENGTHS, profile
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import Own, SequenceClasses
from npeff_nb.fisher.predictions import probabilities
from npeff_nb.widgets import edits
from npeff_nb.widgets.desk import Desk
from npeff_nb.widgets.turns import first_with, give_way

ROUNDED = 2e-5
"""16-bit integers of a scale for each example: off by 1/65534 of its largest number."""


def quiet(*_, **__):
    """Nobody listens."""


@pytest.fixture
def desk(npeff):
    return Desk(npeff)


def by_hand(npeff, rows, steps):
    """Logits (m, c) in float64 under θ + Σ strength · direction, one example at a time: no batches, no padding."""
    model, directions = twins.double(tiny.bert()), {k: npeff.direction(k) for k in steps}
    with torch.no_grad():
        for name, p in model.named_parameters():
            for k, s in steps.items():
                p += directions[k].get(name, torch.zeros(())).double() * s
        return torch.cat([model(**tiny.tokenizer()([npeff.examples["text"][int(row)]], return_tensors="pt")).logits for row in rows]).numpy()


# ------------------------------------------------------------------------------------------------------------------------ preview


@pytest.mark.parametrize(("k", "along"), [(0, 0), (0, 2), (3, 1)])
def test_the_preview_is_the_derivative_of_the_logits(k, along, desk, npeff):
    found = edits.preview(desk, {"component": k, "along": along}, quiet)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["component"], found["along"], found["family"], found["trusted"]) == (k, along, "categorical", None)
    step = 1e-5
    up, down = (by_hand(npeff, found["rows"], {along: sign * step}) for sign in (1, -1))
    np.testing.assert_allclose(unpack(found["logits"]), by_hand(npeff, found["rows"], {}), atol=1e-4)
    derivative = (up - down) / (2 * step)
    # The model's float32 forward-mode pass, and 16 bits on the way.
    np.testing.assert_allclose(unpack(found["derivative"]), derivative, rtol=1e-3, atol=1e-4 * np.abs(derivative).max())


def test_rows_are_the_top_set_then_the_baseline_then_what_is_shown_besides(desk, npeff):
    found, edit = edits.preview(desk, {"component": 1, "along": 1}, quiet), profile(npeff, 1)["edit"]
    assert found["rows"] == [*edit["top"], *edit["baseline"], *sorted({*edit["shown"]} - {*edit["top"], *edit["baseline"]})]
    assert (found["n_top"], found["n_baseline"]) == (len(edit["top"]), len(edit["baseline"]))
    assert len(set(found["rows"])) == len(found["rows"])


def test_a_profile_answers_for_its_own_preview_without_the_model(desk, npeff, monkeypatch):
    profile(npeff, 1)
    monkeypatch.setattr(npeff, "subject", None)
    found = edits.preview(desk, {"component": 1, "along": 1}, quiet)
    down, up = found["trusted"]
    assert -1 <= down < 0 < up <= 1
    with pytest.raises(ValueError, match=r"no model at hand.*attach"):
        edits.preview(desk, {"component": 1, "along": 0}, quiet)


def test_responses_to_other_components_are_kept_with_the_profile_the_latest_few(desk, npeff, monkeypatch):
    monkeypatch.setattr(edits, "ALONG_KEPT", 2)
    profile(npeff, 1)
    for along in (0, 2, 3):
        first = edits.preview(desk, {"component": 1, "along": along}, quiet)
    assert list(npeff.profiles[1]["edit"]["along"]) == ["2", "3"]
    assert desk.bundle.detail(1)["along"]["3"] == first["derivative"]
    monkeypatch.setattr(npeff, "subject", None)
    assert edits.preview(desk, {"component": 1, "along": 3}, quiet) == first


def test_independent_labels(bert):
    bert.config.problem_type = "multi_label_classification"
    pefs = extract_fishers(bert, tiny.tokenizer(), tiny.table(), features="dense", progress=False)
    assert pefs.family == "bernoulli"
    npeff = NPEFF(2, n_init=1, random_state=0).fit(pefs)
    desk = Desk(npeff)
    found = edits.preview(desk, {"component": 0, "along": 0}, quiet)
    assert found["family"] == "bernoulli"
    answer = edits.strength(desk, {"component": 0, "strengths": {"0": -0.5}}, quiet)
    p = np.array(answer["probabilities"])
    assert not np.allclose(p.sum(1), 1)
    z = npeff.subject.logits(np.array(answer["rows"])).numpy()
    moved = np.log(p) - np.log1p(-p)
    assert kl(moved, z, "bernoulli")[: found["n_top"]].mean() == pytest.approx(answer["kl_top"], rel=1e-2)
    edit = profile(npeff, 0)["edit"]
    assert edit["flips_top"].keys() == {"+", "-"}


def test_many_classes_are_not_kept_and_are_asked_for(desk, npeff, monkeypatch):
    monkeypatch.setattr("npeff_nb.explain.profile.KEPT_NUMBERS", 10)
    edit = profile(npeff, 0)["edit"]
    assert edit["preview"] is None and edit["logits"] is None
    assert np.shape(edit["probabilities"]) == (len(STRENGTHS), len(edit["shown"]), 3)
    detail = desk.bundle.detail(0)
    assert detail["preview"] is None and detail["sweep"]["rows"] == edit["shown"]
    own, other = (edits.preview(desk, {"component": 0, "along": along}, quiet) for along in (0, 2))
    assert own["logits"] == other["logits"] and own["derivative"] != other["derivative"]
    assert edit["along"] == {}


# ------------------------------------------------------------------------------------------------------------------------ really run


@pytest.mark.parametrize("steps", [{0: -0.4}, {0: -0.4, 2: 0.3}, {1: 0.2, 2: -0.1, 3: 0.5}, {0: 0.0}, {}])
def test_strengths_of_several_components_are_a_model_edited_by_hand(steps, desk, npeff):
    before = twins.state(npeff.subject.model)
    answer = edits.strength(desk, {"component": 0, "strengths": {str(k): s for k, s in steps.items()}}, quiet)
    twins.assert_untouched(npeff.subject.model, before)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["strengths"] == {str(k): s for k, s in steps.items()}
    rows = answer["rows"]
    z, moved = by_hand(npeff, rows, {}), by_hand(npeff, rows, steps)
    np.testing.assert_allclose(answer["probabilities"], probabilities(moved), atol=1e-4)  # float32, and five digits
    n_top = len(profile(npeff, 0)["edit"]["top"])
    distance = kl(moved, z)
    assert answer["kl_top"] == pytest.approx(distance[:n_top].mean(), rel=1e-3, abs=1e-6)
    assert answer["kl_baseline"] == pytest.approx(distance[n_top : n_top + len(profile(npeff, 0)["edit"]["baseline"])].mean(), rel=1e-3, abs=1e-6)


def test_a_run_agrees_with_the_grid(desk, npeff):
    edit = profile(npeff, 0)["edit"]
    answer, at = edits.strength(desk, {"component": 0, "strengths": {"0": -0.6}}, quiet), edit["strengths"].index(-0.6)
    assert answer["kl_top"] == pytest.approx(edit["kl_top"][at], rel=1e-3)
    grid = unpack(edit["logits"])
    assert grid.shape == (len(answer["rows"]), len(STRENGTHS), 3)
    np.testing.assert_allclose(probabilities(grid[:, at]), answer["probabilities"], atol=1e-4)


def test_the_unedited_model_is_run_once_a_component(desk, npeff, monkeypatch):
    calls, run = [], npeff.subject.logits
    monkeypatch.setattr(npeff.subject, "logits", lambda rows: calls.append(len(rows)) or run(rows))
    edits.strength(desk, {"component": 0, "strengths": {"0": -0.6}}, quiet)
    first = len(calls)
    edits.strength(desk, {"component": 0, "strengths": {"0": -0.5}}, quiet)
    assert len(calls) - first == first / 2


@pytest.mark.parametrize("at", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt])
def test_stopped_anywhere_the_model_is_as_it_was(at, error, desk, npeff, monkeypatch):
    monkeypatch.setattr(npeff.subject.batches, "batch_size", 8)
    before, said = twins.state(npeff.subject.model), []

    def tell(*step):
        said.append(step)
        if len(said) == at + 1:
            raise error

    with pytest.raises(error):
        edits.strength(desk, {"component": 0, "strengths": {"0": -0.6, "1": 0.2}}, tell)
    twins.assert_untouched(npeff.subject.model, before)
    assert edits.strength(desk, {"component": 0, "strengths": {"0": -0.6, "1": 0.2}}, quiet)  # and it can be asked again


def test_an_error_of_the_edited_model_leaves_it_as_it_was(desk, npeff, monkeypatch):
    before = twins.state(npeff.subject.model)

    def fail(model, batch):
        if not torch.equal(model.bert.pooler.dense.weight, before["values"]["bert.pooler.dense.weight"]):
            raise RuntimeError("no memory")
        return SequenceClasses().logits(model, batch)

    monkeypatch.setattr(npeff.subject, "output", Own(fail))
    with pytest.raises(RuntimeError, match="no memory"):
        edits.strength(desk, {"component": 0, "strengths": {"0": -0.6}}, quiet)
    twins.assert_untouched(npeff.subject.model, before)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"component": 9, "strengths": {}}, "component 9 does not exist"),
        ({"component": 0, "strengths": {"9": 0.1}}, "component 9 does not exist"),
        ({"component": 0, "strengths": {"0": float("nan")}}, "must be a finite number"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(content, said, desk):
    with pytest.raises(ValueError, match=said):
        edits.strength(desk, content, quiet)


def test_out_of_the_range_of_numbers(desk):
    with pytest.raises(ValueError, match=r"logits are not finite.*smaller strengths"):
        edits.strength(desk, {"component": 0, "strengths": {"0": 1e38}}, quiet)


# ------------------------------------------------------------------------------------------------------------------------ a component, in stages


def test_a_component_comes_in_stages_that_only_grow(desk, npeff):
    parts = []

    def tell(done, total, note, partial=None):
        if partial:
            parts.append(json.loads(json.dumps(partial, allow_nan=False)))

    answer = edits.profiled(desk, 1, tell)
    assert answer == desk.bundle.detail(1)
    assert set(answer) >= {"sweep", "preview", "along"}
    runs = [len(part["sweep"]["strengths"]) if part["sweep"] else 0 for part in parts]
    known = [[bool(part["energy"]), bool(part["top"][0]["tokens"]), bool(part["preview"]), n] for part, n in zip(parts, runs, strict=True)]
    assert known[:4] == [[False, False, False, 0], [True, False, False, 0], [True, True, False, 0], [True, True, True, 0]]
    assert [one[3] for one in known[4:]] == list(range(1, len(STRENGTHS) + 1))
    grids = [part["sweep"]["strengths"] for part in parts[4:]]
    assert grids[1] == [-0.3, 0.0] and grids[4] == [-0.3, -0.15, 0.0, 0.15, 0.3]
    assert all(grid == sorted(grid) and 0.0 in grid for grid in grids)
    # How far it holds is said once the model was run close to zero.
    assert [part["preview"]["trusted"] is not None for part in parts[4:]] == [{-0.05, 0.05} <= set(grid) for grid in grids]
    for part in parts[4:]:
        assert unpack(part["sweep"]["logits"]).shape == (len(part["preview"]["rows"]), len(part["sweep"]["strengths"]), 3)
    assert parts[-1]["sweep"] == answer["sweep"]


def test_cancelled_between_two_strengths_nothing_is_kept(desk, npeff):
    before = twins.state(npeff.subject.model)

    def tell(done, total, note, partial=None):
        if partial and partial["sweep"] and len(partial["sweep"]["strengths"]) == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        edits.profiled(desk, 1, tell)
    assert npeff.profiles == {}
    twins.assert_untouched(npeff.subject.model, before)


def test_the_direction_is_lifted_once(desk, npeff, monkeypatch):
    lifted, lift = [], npeff.direction
    monkeypatch.setattr(npeff, "direction", lambda k: lifted.append(k) or lift(k))
    edits.profiled(desk, 1, quiet)
    edits.strength(desk, {"component": 1, "strengths": {"1": -0.4}}, quiet)
    assert lifted == [1]


def test_profiles_from_before_still_show_their_sweep(desk, npeff):
    edit = profile(npeff, 0)["edit"]
    grid = unpack(edit["logits"])
    places = [[*edit["top"], *edit["baseline"]].index(row) for row in edit["shown"]]
    for key in ("logits", "preview", "along"):
        del edit[key]
    edit["probabilities"] = [probabilities(grid[places, at]).tolist() for at in range(len(STRENGTHS))]
    detail = desk.bundle.detail(0)
    assert detail["preview"] is None and detail["along"] == {}
    assert detail["sweep"]["logits"] is None and detail["sweep"]["rows"] == edit["shown"]
    assert len(detail["sweep"]["probabilities"]) == len(STRENGTHS)
    found = edits.preview(desk, {"component": 0, "along": 0}, quiet)
    assert found["trusted"] is None and len(found["rows"]) == len(grid)


def test_a_released_slider_goes_before_a_profile_in_the_background(desk, npeff):
    order, reached, released = [], threading.Event(), threading.Event()

    def tell(done, total, note, partial=None):
        if done == 4 and not reached.is_set():
            reached.set()
            assert released.wait(30)
        order.append(f"profile {done}")

    work = threading.Thread(target=lambda: edits.profiled(desk, 1, tell))
    work.start()
    assert reached.wait(30)

    def slider(done, total, note):
        released.set()
        order.append("slider")

    edits.strength(desk, {"component": 1, "strengths": {"1": -0.4}}, slider)
    order.append("answered")
    work.join(60)
    assert not work.is_alive()
    between = order[order.index("slider") : order.index("answered")]
    # What the profile was at when the slider asked may still be told; no strength is begun.
    assert {one for one in between if one != "slider"} <= {"profile 4"}
    assert 1 in npeff.profiles


def test_giving_way_ends_with_the_question_also_when_it_fails():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError), first_with(model):
        raise RuntimeError
    give_way(model)
    give_way(torch.nn.Linear(1, 1))
