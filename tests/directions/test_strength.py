"""Strengths in other units: against lengths and KLs that a model of one's own gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.special
import tiny
import torch
import twins
from torch import nn

from npeff_nb.directions import strength as module
from npeff_nb.directions.perturb import edited_logits, kl
from npeff_nb.directions.strength import absolute, strength_for_kl, whole_step
from npeff_nb.fisher.batches import ReadyBatches
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import Own
from npeff_nb.fisher.subject import Subject


class Waves(nn.Module):
    """Two classes whose logits go up and down with the one weight w: at w = 1 + s the difference is ``height`` · f(s)."""

    def __init__(self, f, height: float = 3.0) -> None:
        super().__init__()
        self.w, self.f, self.height = nn.Parameter(torch.ones(1)), f, height

    def forward(self, x):
        z = self.height * self.f(self.w - 1) * x
        return torch.cat([z, -z], 1)


def toy(f, height: float = 3.0, family: str = "categorical") -> Subject:
    inputs = torch.tensor([[1.0], [0.5], [-1.0]])
    return Subject(Waves(f, height).eval(), ReadyBatches(inputs), Own(tiny.plain_logits), Recipe(family=family))


ONE = {"w": torch.ones(1)}
ROWS = np.arange(3)


def slow_kl(subject: Subject, direction: dict, strength: float, rows: np.ndarray) -> float:
    """Mean KL by its definition, from a float64 copy of the model that is moved for good."""
    there = subject.with_model(copy.deepcopy(subject.model).double())
    q = scipy.special.softmax(there.logits(rows).numpy().astype(np.float64), -1)
    with torch.no_grad():
        for name, p in there.model.named_parameters():
            if name in direction:
                p += strength * direction[name].double()
    p = scipy.special.softmax(there.logits(rows).numpy().astype(np.float64), -1)
    return float(scipy.special.rel_entr(p, q).sum(-1).mean())


def test_l2_is_the_strength_itself(shared, npeff):
    for value in (0.3, -2.0, 0.0):
        assert absolute(npeff.direction(0), shared.subject, value) == value


def test_relative_is_a_share_of_the_parameters_that_move(shared, npeff):
    direction = npeff.direction(0)
    part = dict(list(direction.items())[:3])  # not of unit norm
    there = dict(shared.subject.model.named_parameters())
    for one in (direction, part):
        step = absolute(one, shared.subject, -0.02, "relative")
        moved = np.concatenate([step * one[name].double().numpy().ravel() for name in one])
        theta = np.concatenate([there[name].detach().double().numpy().ravel() for name in one])
        assert np.linalg.norm(moved) == pytest.approx(0.02 * np.linalg.norm(theta), rel=1e-12)
        assert step < 0


@pytest.mark.parametrize("value", [1e-6, -1e-6, 0.02, -0.02, 0.2, -0.2])
@pytest.mark.parametrize("k", [0, 2])
def test_kl_is_what_is_measured_at_the_strength_found(k, value, shared, npeff):
    direction, rows = npeff.direction(k), npeff.top_examples(k, 6)
    before = twins.state(shared.subject.model)
    strength = absolute(direction, shared.subject, value, "kl", rows)
    twins.assert_untouched(shared.subject.model, before)
    assert np.sign(strength) == np.sign(value)
    # 1 % is what is promised; at 1e-6 nats float32's own rounding of logits shows.
    assert slow_kl(shared.subject, direction, strength, rows) == pytest.approx(abs(value), rel=0.011 if abs(value) > 1e-3 else 0.05)


def test_what_it_cost_is_counted_in_forwards(shared, npeff, monkeypatch):
    direction, rows, calls = npeff.direction(0), npeff.top_examples(0, 6), []
    logits, clone, clones = Subject.logits, torch.Tensor.clone, []
    monkeypatch.setattr(Subject, "logits", lambda self, rows: calls.append(len(rows)) or logits(self, rows))
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **k: clones.append(1) or clone(self, **k))
    found = strength_for_kl(shared.subject, direction, 0.1, rows)
    monkeypatch.undo()
    assert calls == [len(rows)] * found.forwards
    assert len(clones) == len(direction)  # one copy for the whole search
    assert found.forwards <= 16  # 1 unedited, log 0.1/1e-7 / log 4² = 5 outwards, and Brent's few
    assert found.kl == kl(edited_logits(shared.subject, direction, [found.strength], rows)[0], shared.subject.logits(rows).numpy()).mean()
    assert found.kl == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("target", [1e-3, 0.1, 0.6])
def test_the_first_strength_that_reaches_it(start, target, monkeypatch):
    """The KL rises and falls: against the first crossing on a fine grid, from starts before and behind it."""
    monkeypatch.setattr(module, "_START", start)
    subject = toy(lambda s: torch.sin(4 * s))
    grid = np.linspace(1e-4, 2, 4000)
    curve = kl(edited_logits(subject, ONE, list(grid), ROWS), subject.logits(ROWS).numpy()).mean(1)
    assert (np.diff(curve) < 0).any() and curve.max() > target
    found = strength_for_kl(subject, ONE, target, ROWS, limit=2)
    first, last = (grid[np.argmax(curve >= share * target)] for share in (0.99, 1.01))
    if start < 0.5:
        assert first - 5e-4 <= found.strength <= last + 5e-4  # as wide as the grid
    assert found.kl == pytest.approx(target, rel=0.01)


def test_either_sign_is_its_own_search():
    """A direction that answers far more to one sign: e^(3s) − 1 saturates at −1 the other way."""
    subject = toy(lambda s: torch.exp(3 * s) - 1, height=0.4)
    up, down = (strength_for_kl(subject, ONE, 0.02, ROWS, sign=sign) for sign in (1, -1))
    assert up.strength > 0 > down.strength and up.strength < -0.7 * down.strength
    for found in (up, down):
        assert slow_kl(subject, ONE, found.strength, ROWS) == pytest.approx(0.02, rel=0.011)
    assert strength_for_kl(subject, ONE, 0.3, ROWS).kl == pytest.approx(0.3, rel=0.01)
    before = twins.state(subject.model)
    words = (
        r"a mean KL of 0.3 is not reached along -direction: the most was 0.0\d+ at strength -1, and the search ends at -1, "
        r"1 times the norm of the parameters that move; ask for less or raise limit="
    )
    with pytest.raises(ValueError, match=words):
        absolute(ONE, subject, -0.3, "kl", ROWS)
    twins.assert_untouched(subject.model, before)


def test_a_limit_may_be_set():
    subject = toy(lambda s: s, height=0.1)
    with pytest.raises(ValueError, match=r"is not reached along \+direction: .* at strength 1, and the search ends at 1, 1 times the norm"):
        strength_for_kl(subject, ONE, 0.1, ROWS)
    assert strength_for_kl(subject, ONE, 0.1, ROWS, limit=100).kl == pytest.approx(0.1, rel=0.01)
    with pytest.raises(ValueError, match=r"the search ends at 0.0001, 0.0001 times"):  # below the search's own first step
        strength_for_kl(subject, ONE, 0.1, ROWS, limit=1e-4)


def test_independent_labels_have_their_own_kl():
    subject = toy(lambda s: s, family="bernoulli")
    found = strength_for_kl(subject, ONE, 0.05, ROWS)
    measured = kl(edited_logits(subject, ONE, [found.strength], ROWS)[0], subject.logits(ROWS).numpy(), "bernoulli").mean()
    assert measured == found.kl == pytest.approx(0.05, rel=0.01)


def test_a_kl_that_jumps_over_the_target_is_said():
    subject = toy(lambda s: torch.floor(4 * s))
    with pytest.raises(ValueError, match=r"the mean KL jumps past 0.01 at strength 0.25\d*, where it is [\d.]+: ask for another"):
        strength_for_kl(subject, ONE, 0.01, ROWS)


def test_logits_that_are_not_finite_out_there_only_bound_the_search():
    subject = toy(lambda s: s + torch.where(s > 0.3, torch.inf, 0.0))
    assert strength_for_kl(subject, ONE, 0.05, ROWS).kl == pytest.approx(0.05, rel=0.01)
    with pytest.raises(ValueError, match=r"jumps past 5 at strength 0.3\d*, where it is"):
        strength_for_kl(subject, ONE, 5, ROWS)
    with pytest.raises(ValueError, match="the unedited model's logits are not finite for some of the rows: leave these out"):
        strength_for_kl(toy(lambda s: s + torch.inf), ONE, 0.1, ROWS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"value": float("nan")}, "value=nan: a strength must be a finite number, whatever its unit"),
        ({"unit": "nats"}, "unit='nats': a strength is said in one of 'l2', 'relative', 'kl'"),
        ({"unit": "nats", "value": 0}, "unit='nats'"),
        ({"unit": "kl", "rows": None}, "unit='kl' needs rows: the examples whose mean KL is meant"),
        ({"unit": "kl", "rows": []}, "rows is empty"),
        ({"unit": "relative", "direction": {"w": torch.zeros(1)}}, r"the direction's norm is 0.0: it has no length"),
        ({"unit": "kl", "direction": {"w": torch.full((1,), torch.nan)}}, r"the direction's norm is nan"),
        ({"unit": "relative", "direction": {"v": torch.ones(1)}}, "the direction moves 'v'"),
    ],
)
def test_what_cannot_be_said_is_refused(arguments, words):
    asked = {"direction": ONE, "subject": toy(torch.sin), "value": 0.1, "unit": "l2", "rows": ROWS, **arguments}
    with pytest.raises(ValueError, match=words):
        absolute(**asked)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": 0}, "target=0: the KL to reach is a positive number of nats"),
        ({"target": float("inf")}, "target=inf"),
        ({"limit": 0}, "limit=0"),
        ({"accuracy": 1}, "accuracy=1"),
        ({"sign": 0}, "sign=0"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        strength_for_kl(**{"subject": toy(torch.sin), "direction": ONE, "target": 0.1, "rows": ROWS, **arguments})


def test_no_step_is_no_step_in_any_unit():
    subject = toy(torch.sin)
    assert [absolute(ONE, subject, 0, unit, ROWS) for unit in module.UNITS] == [0, 0, 0]
    assert whole_step({"w": torch.full((1,), 0.5)}, subject.model) == 2
