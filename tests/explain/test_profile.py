"""A component's portrait, end to end on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins

from npeff_nb import NPEFF
from npeff_nb._progress import Cancelled
from npeff_nb.directions.perturb import kl
from npeff_nb.explain.packed import pack, unpack
from npeff_nb.explain.profile import JUDGED_AT, STRENGTHS, profile
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import Own, SequenceClasses


def test_everything_a_picture_needs_as_plain_data(npeff):
    before = twins.state(npeff.subject.model)
    found = profile(npeff, 1)
    twins.assert_untouched(npeff.subject.model, before)
    assert set(found) == {"component", "direction", "energy", "tokens", "edit"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found  # also: no tuples, no numpy, string keys
    assert found["component"] == 1
    assert sum(e["share"] for e in found["energy"]) == pytest.approx(1, abs=1e-5)
    assert [e["name"] for e in found["energy"]] == list(npeff.parameters["name"])
    shown = npeff.top_examples(1, 16)
    assert found["edit"]["shown"] == shown.tolist()
    assert set(found["tokens"]) == {str(row) for row in shown}
    for told in found["tokens"].values():
        assert sum(w["share"] for w in told["words"]) + sum(a["share"] for a in told["asides"]) == pytest.approx(1, abs=1e-4)


def test_the_sweep_is_the_model_really_run(npeff):
    edit = profile(npeff, 0)["edit"]
    assert edit["strengths"] == list(STRENGTHS)
    still = edit["strengths"].index(0.0)
    assert edit["kl_top"][still] == edit["kl_baseline"][still] == edit["kl_random"][still] == 0
    assert all(value > 0 for at, value in enumerate(edit["kl_top"]) if at != still)
    assert not set(edit["top"]) & set(edit["baseline"])
    rows = [*edit["top"], *edit["baseline"]]
    grid = unpack(edit["logits"])
    assert grid.shape == (len(rows), len(STRENGTHS), 3)
    np.testing.assert_allclose(grid[:, still], npeff.logits[rows], atol=1e-4)  # 16 bits; float32 in other batches
    model, direction = twins.double(tiny.bert()), npeff.direction(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += direction[name].double() * STRENGTHS[1] if name in direction else 0
        for at, row in enumerate(rows):
            moved = model(**tiny.tokenizer()([npeff.examples["text"][row]], return_tensors="pt")).logits[0]
            np.testing.assert_allclose(grid[at, 1], moved, atol=1e-3)
    assert edit["probabilities"] is None  # they are in the logits


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 1), (2, 0)])
def test_packed_numbers_come_back(shape):
    given = np.random.default_rng(0).normal(size=shape) * np.logspace(-6, 6, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    packed = json.loads(json.dumps(pack(given)))
    back = unpack(packed)
    assert back.shape == shape
    for one, two in zip(given, back, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=np.abs(one).max(initial=0) / 65000)
    np.testing.assert_array_equal(unpack(pack(np.zeros((2, 3)))), np.zeros((2, 3)))


def test_parts_are_told_as_they_become_known_and_a_direction_may_be_given(npeff, monkeypatch):
    parts, lifted = [], npeff.direction(1)
    monkeypatch.setattr("npeff_nb.explain.profile.direction", lambda *_: pytest.fail("was lifted again"))
    found = profile(npeff, 1, on_part=parts.append, lift=lambda k: lifted)
    assert [part["tokens"] is not None for part in parts[:2]] == [False, True]
    assert [part["edit"] is not None for part in parts[:3]] == [False, False, True]
    assert parts[-1] == found and all(part is not found for part in parts)
    assert sorted(found["edit"]["strengths"]) == list(STRENGTHS)


@pytest.mark.parametrize("sign", "+-")
def test_the_ratio_is_of_means_at_the_strength_that_is_named(sign, npeff):
    edit = profile(npeff, 0)["edit"]
    at = edit["strengths"].index(JUDGED_AT if sign == "+" else -JUDGED_AT)
    assert edit["kl_ratio"][sign] == pytest.approx(edit["kl_top"][at] / edit["kl_baseline"][at])
    model, direction = tiny.bert(), npeff.direction(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += direction.get(name, 0) * float(f"{sign}{JUDGED_AT}")
        distances = []
        for row in edit["top"]:
            moved = model(**tiny.tokenizer()([npeff.examples["text"][row]], return_tensors="pt")).logits[0]
            distances.append(kl(moved, npeff.logits[row]))
    assert np.mean(distances) == pytest.approx(edit["kl_top"][at], rel=1e-3)  # float32, other batches


def test_it_is_computed_once(npeff, monkeypatch):
    first = profile(npeff, 0)
    monkeypatch.setattr(npeff.subject, "logits", lambda rows: pytest.fail("the model was run"))
    assert profile(npeff, 0) is first


def test_progress_counts_to_its_end_and_says_what_comes(npeff):
    told = []
    profile(npeff, 0, progress=lambda *step: told.append(step))
    done, total, said = zip(*told, strict=True)
    assert set(total) == {3 + len(STRENGTHS)}
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, total[0])
    assert all(isinstance(what, str) and what for what in said)


@pytest.mark.parametrize("step", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt])
def test_stopped_at_any_step_nothing_is_kept_and_the_model_is_as_it_was(step, error, npeff):
    before, calls = twins.state(npeff.subject.model), []

    def stop(done, total, what):
        calls.append(what)
        if len(calls) == step + 1:
            raise error

    with pytest.raises(error):
        profile(npeff, 0, progress=stop)
    assert npeff.profiles == {}
    twins.assert_untouched(npeff.subject.model, before)
    assert profile(npeff, 0)  # and it can be asked for again


def test_an_interrupt_while_the_edited_model_runs(npeff, monkeypatch):
    before, calls = twins.state(npeff.subject.model), []

    def stop(model, batch):
        calls.append(not torch.equal(model.bert.pooler.dense.weight, before["values"]["bert.pooler.dense.weight"]))
        if calls[-1]:
            raise KeyboardInterrupt
        return SequenceClasses().logits(model, batch)

    monkeypatch.setattr(npeff.subject, "output", Own(stop))
    with pytest.raises(KeyboardInterrupt):
        profile(npeff, 0)
    assert calls[-1]  # it was the edited model
    assert npeff.profiles == {}
    twins.assert_untouched(npeff.subject.model, before)


def test_a_component_without_users_is_refused_one_by_one_and_passed_over_in_all(npeff):
    npeff.coefficients_[:, 2] = 0
    with pytest.raises(ValueError, match="component 2 is used by no example, so it has no direction and no profile"):
        profile(npeff, 2)
    npeff.profile(progress=False)
    assert sorted(npeff.profiles) == [0, 1, 3]


@pytest.mark.parametrize(("asked", "found"), [(1, [1]), (np.int64(2), [2]), ([3, 0], [0, 3]), ([], [])])
def test_some_components(asked, found, npeff):
    assert npeff.profile(asked, progress=False) is npeff
    assert sorted(npeff.profiles) == found


def test_no_model_no_profile():
    npeff = NPEFF(1, n_init=1, random_state=0).fit(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"no model at hand: it was fitted on an array"):
        profile(npeff, 0)


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_ready_inputs_have_no_tokens(with_tokenizer, tokenizer, bert):
    encoded = dict(tokenizer(tiny.TEXTS, padding=True, return_tensors="pt"))
    given = (tokenizer,) if with_tokenizer else ()
    npeff = NPEFF(1, n_init=1, random_state=0).fit(extract_fishers(bert, *given, inputs=encoded, features="dense", progress=False))
    assert profile(npeff, 0)["tokens"] is None


@pytest.mark.parametrize("n", [2, 3])
def test_very_few_examples(n, tokenizer, bert):
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS[:n], features="dense", progress=False)
    json.dumps(profile(NPEFF(1, n_init=1, random_state=0).fit(pefs), 0), allow_nan=False)


def test_a_single_example_leaves_nothing_to_judge_an_edit_by(tokenizer, bert):
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS[:1], features="dense", progress=False)
    with pytest.raises(ValueError, match=r"1 example.*at least 2"):
        profile(NPEFF(1, n_init=1, random_state=0).fit(pefs), 0)


def test_text_pairs_reach_the_words(tokenizer, bert):
    pairs = pd.DataFrame({"text": tiny.TEXTS[:4], "text_pair": tiny.TEXTS[4:]})
    npeff = NPEFF(1, n_init=1, random_state=0).fit(extract_fishers(bert, tokenizer, pairs, features="dense", progress=False))
    for row, told in profile(npeff, 0)["tokens"].items():
        said = "".join((" " if w["space"] else "") + w["text"] for w in told["words"])
        assert said == f"{tiny.TEXTS[int(row)]} {tiny.TEXTS[4 + int(row)]}"
