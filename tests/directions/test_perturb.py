"""The edit: what it does while it lasts, and that nothing of it stays."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import scipy.special
import tiny
import torch
import twins
from torch import nn

import npeff_nb as nb
from npeff_nb import NPEFF
from npeff_nb.directions import lift
from npeff_nb.directions.perturb import edit_sets, edited_logits, kl, kl_ratio
from npeff_nb.fisher.extract import extract_fishers


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).eval()


@pytest.fixture
def step(model):
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=draw) for name, p in model.named_parameters()}


def test_inside_the_block_the_parameters_have_moved(model, step):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with nb.perturb(model, step, 0.3) as same:
        assert same is model
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), before[name] + 0.3 * step[name])


def test_only_named_parameters_move(model, step):
    before = model[2].weight.detach().clone()
    with nb.perturb(model, {"0.weight": step["0.weight"]}, 0.3):
        assert torch.equal(model[2].weight, before)


@pytest.mark.parametrize("strength", [0.1, -0.7, 1e8, 0.0])
def test_restored_bit_for_bit(strength, model, step):
    """1e8 would swallow every digit of a parameter: subtraction could not bring it back."""
    before = twins.state(model)
    with nb.perturb(model, step, strength):
        pass
    twins.assert_untouched(model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restored_after_an_error(error, model, step):
    before = twins.state(model)
    with pytest.raises(error), nb.perturb(model, step, 0.3):
        raise error
    twins.assert_untouched(model, before)


@pytest.mark.parametrize("after", [False, True], ids=["before the copy", "after the copy"])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_restored_when_ctrl_c_arrives_during_the_restoring(at, after, model, step, monkeypatch):
    before, copy, calls = twins.state(model), torch.Tensor.copy_, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == at and not after:
            raise KeyboardInterrupt
        out = copy(self, *arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return out

    with pytest.raises(KeyboardInterrupt), nb.perturb(model, step, 0.3):
        monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    monkeypatch.undo()
    assert len(calls) == 5  # four parameters, one of them twice
    twins.assert_untouched(model, before)


def test_restored_when_ctrl_c_arrives_while_moving(model, step, monkeypatch):
    before, add, calls = twins.state(model), torch.add, []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(*arguments, **settings)

    monkeypatch.setattr(torch, "add", interrupted)
    with pytest.raises(KeyboardInterrupt), nb.perturb(model, step, 0.3):
        pytest.fail("the block must not begin")
    monkeypatch.undo()
    twins.assert_untouched(model, before)


def test_a_block_goes_from_strength_to_strength_from_one_copy(model, step, monkeypatch):
    """The very bits of a block of its own at each strength: nothing adds up, not even after a strength that swallows every digit."""
    before, alone = twins.state(model), {}
    strengths = [0.1, -0.7, 1e8, 0.3, 0.0]
    for strength in strengths:
        with nb.perturb(model, step, strength):
            alone[strength] = twins.state(model)
    copies, clone = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **k: copies.append(self.shape) or clone(self, **k))
    edit = nb.perturb(model, step, 5.0)
    with edit as same:
        assert same is model and edit.strength == 5
        assert len(copies) == 4
        for strength in strengths:
            edit.move(strength)
            monkeypatch.undo()
            twins.assert_untouched(model, alone[strength])
            monkeypatch.setattr(torch.Tensor, "clone", lambda self, **k: pytest.fail("copied once more"))
    monkeypatch.undo()
    twins.assert_untouched(model, before)


def test_an_outer_edit_moves_under_an_inner_one(model, step):
    before = twins.state(model)
    with nb.perturb(model, step, 0.3), nb.perturb(model, {"0.bias": step["0.bias"]}, 0.5):
        expected = twins.state(model)
    outer = nb.perturb(model, step, -4.0)
    with outer, nb.perturb(model, {"0.bias": step["0.bias"]}, 0.5):
        outer.move(0.3)
        twins.assert_untouched(model, expected)
    twins.assert_untouched(model, before)


def test_an_edit_is_opened_once_at_a_time_and_moved_when_open(model, step):
    before, edit = twins.state(model), nb.perturb(model, step, 0.3)
    with pytest.raises(RuntimeError, match=r"this edit is not open: move\(\) goes from strength to strength inside its with block"):
        edit.move(1)
    for _ in range(2):  # again, after it was closed
        with edit:
            moved = twins.state(model)
            with pytest.raises(RuntimeError, match="this edit is open already: make another"), edit:
                pytest.fail("the block must not begin")
            with pytest.raises(ValueError, match="strength=inf: it must be a finite number"):
                edit.move(float("inf"))
            twins.assert_untouched(model, moved)
        twins.assert_untouched(model, before)


def test_tied_parameters_move_once_by_either_name():
    model = tiny.gpt2_for("LMHeadModel")
    assert model.lm_head.weight is model.transformer.wte.weight
    before = twins.state(model)
    value = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    expected = model.lm_head.weight.detach() + 0.3 * value
    for name in ("transformer.wte.weight", "lm_head.weight"):
        with nb.perturb(model, {name: value}, 0.3):
            torch.testing.assert_close(model.lm_head.weight.detach(), expected)
        twins.assert_untouched(model, before)
    both = {"transformer.wte.weight": value, "lm_head.weight": value}
    with pytest.raises(ValueError, match=r"one tied parameter twice, as 'transformer.wte.weight' and as 'lm_head.weight': leave one of them out"):
        nb.perturb(model, both, 0.3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_rounded_once(kind, model, step):
    """The step is added in the finer of the two precisions: entries of a unit-norm direction are too small for half precision by themselves."""
    model.to(kind)
    step = {name: 1e-6 * value for name, value in step.items()}
    before = twins.state(model)
    with nb.perturb(model, step, 3e4):
        for name, p in model.named_parameters():
            exact = before["values"][name].double() + 3e4 * step[name].double()
            # Half a unit in the last place of the parameter's kind; what is added in float32 (half precision) has its rounding too.
            torch.testing.assert_close(p.detach().double(), exact, rtol=torch.finfo(kind).eps / 2 + (0 if kind == torch.float64 else 3e-7), atol=1e-8)
    twins.assert_untouched(model, before)


def test_nested_edits_add_up_and_unwind(model, step):
    before = twins.state(model)
    start = model[0].weight.detach().clone()
    with nb.perturb(model, step, 0.3):
        once = twins.state(model)
        with nb.perturb(model, step, 0.2):
            torch.testing.assert_close(model[0].weight.detach(), start + 0.5 * step["0.weight"])
        twins.assert_untouched(model, once)
    twins.assert_untouched(model, before)


@pytest.mark.parametrize(
    ("direction", "strength", "words"),
    [
        (
            {"0.weight": torch.ones(4, 5), "3.weight": torch.ones(2)},
            0.1,
            r"the direction moves '3.weight' of shape \(2,\); the model has no such parameter",
        ),
        ({"0.weight": torch.ones(4, 5), "2.bias": torch.ones(4)}, 0.1, r"moves '2.bias' of shape \(4,\); the model has \(3,\)"),
        ({"0.weight": torch.ones(4, 5)}, float("nan"), "strength=nan: it must be a finite number"),
        ({"0.weight": torch.ones(4, 5)}, float("-inf"), "strength=-inf: it must be a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(direction, strength, words, model, monkeypatch):
    before = twins.state(model)
    monkeypatch.setattr(torch, "add", lambda *a, **k: pytest.fail("a parameter was moved"))
    with pytest.raises(ValueError, match=words), nb.perturb(model, direction, strength):
        pytest.fail("the block must not begin")
    twins.assert_untouched(model, before)


def test_the_caller_may_train_inside_no_block_but_parameters_keep_their_flags(model, step):
    model[2].weight.requires_grad_(False)
    with nb.perturb(model, step, 0.3):
        assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]
        model(torch.randn(2, 5)).sum().backward()  # an edited model can still be differentiated
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("spread", [0.1, 3.0, 50.0])
def test_kl_against_scipy(spread):
    draw = torch.Generator().manual_seed(0)
    new, old = (spread * torch.randn(40, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = (scipy.special.softmax(z.numpy(), -1) for z in (new, old))
    expected = scipy.special.rel_entr(p, q).sum(-1)
    finite = np.isfinite(expected)  # scipy's probabilities underflow where log-probabilities do not
    np.testing.assert_allclose(kl(new, old)[finite], expected[finite], rtol=1e-9, atol=1e-13)
    assert np.isfinite(kl(new, old)).all()
    assert kl(new.float().numpy(), old.float().numpy()).dtype == np.float64


def test_kl_is_never_negative_and_zero_for_equal_predictions():
    z = 20 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    assert (kl(z, z) == 0).all()
    assert (kl(z, z + 1e-7 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))) >= 0).all()
    np.testing.assert_allclose(kl(z, z + 5), 0, atol=1e-12)  # a shift of all logits changes nothing


@pytest.mark.parametrize(
    ("n", "n_top", "n_baseline", "users"), [(200, 32, 96, 150), (200, 32, 96, 5), (40, 32, 96, 40), (3, 32, 96, 3), (2, 32, 96, 1)]
)
def test_edit_sets_are_disjoint(n, n_top, n_baseline, users):
    w = np.zeros(n)
    w[np.random.default_rng(0).permutation(n)[:users]] = np.linspace(1, 0.1, users)
    sets = edit_sets(w, n_top, n_baseline, seed=4)
    assert not set(sets.top) & set(sets.baseline)
    assert len(sets.top) == min(n_top, users, max(1, n // 2))
    assert len(sets.baseline) == min(n_baseline, n - len(sets.top))
    assert (w[sets.top] > 0).all()
    assert w[sets.top].min() >= max(np.delete(w, sets.top), default=0)  # the strongest users
    assert len(set(sets.baseline)) == len(sets.baseline)


def test_edit_sets_are_seeded():
    w = np.random.default_rng(0).uniform(size=100)
    np.testing.assert_array_equal(edit_sets(w, 10, 20, seed=1).baseline, edit_sets(w, 10, 20, seed=1).baseline)
    assert edit_sets(w, 10, 20, seed=1).baseline.tolist() != edit_sets(w, 10, 20, seed=2).baseline.tolist()


def test_kl_ratio():
    assert kl_ratio(np.array([0.2, 0.4]), np.array([0.1, 0.2])) == pytest.approx(2)
    assert kl_ratio(np.array([0.2]), np.array([0.0, 0.0])) is None


def test_edited_logits_are_the_edited_model_s(shared, npeff):
    direction, rows = npeff.direction(0), np.array([5, 2, 9])
    before = twins.state(shared.subject.model)
    found = edited_logits(shared.subject, direction, [-0.5, 0.0, 0.5], rows)
    twins.assert_untouched(shared.subject.model, before)
    assert found.shape == (3, 3, 3)
    for strength, logits in zip([-0.5, 0.0, 0.5], found, strict=True):
        other = tiny.bert()
        with torch.no_grad():
            for name, p in other.named_parameters():
                if name in direction:
                    p += strength * direction[name]
            for row, z in zip(rows, logits, strict=True):
                alone = other(**tiny.tokenizer()([shared.examples["text"][row]], return_tensors="pt")).logits[0]
                np.testing.assert_allclose(z, alone.numpy(), atol=1e-5)  # float32, other padding


def test_edited_logits_of_many_strengths_are_those_of_each(shared, npeff):
    direction, rows, strengths = npeff.direction(0), np.arange(4), [-0.5, 0.2, 0.2, 3.0, 0.0]
    together = edited_logits(shared.subject, direction, strengths, rows)
    for strength, found in zip(strengths, together, strict=True):
        np.testing.assert_array_equal(found, edited_logits(shared.subject, direction, [strength], rows)[0])
    np.testing.assert_array_equal(together[-1], shared.subject.logits(rows).numpy())
    with pytest.raises(ValueError, match="strengths is empty"):
        edited_logits(shared.subject, direction, [], rows)


def test_a_small_step_s_kl_is_the_fisher_s_quadratic_form(tokenizer):
    """KL(θ + s v ‖ θ) = ½ s² vᵀF v + O(s³); averaged over ±s the cubic term falls out, and 1e-2 squared times higher derivatives remains.

    vᵀF_i v = ‖F_i‖ B_ij with B of the unit-norm Fisher, exact for dense features and the whole direction.  The model runs in float64, so that
    a KL of 1e-5 is not rounding.
    """
    double = tiny.bert().double()
    pefs = extract_fishers(double, tokenizer, tiny.table(16), features="dense", progress=False)
    npeff = NPEFF(3, n_init=1, tol=1e-10, max_iter=2000, random_state=0).fit(pefs)
    rows, s = np.arange(16), 1e-2
    for k in range(3):
        found = lift.direction(npeff, k, coverage=1)
        quadratic = 0.5 * s**2 * pefs.norms * (npeff.projections_[:, :, k] ** 2).sum(1)
        down, still, up = edited_logits(pefs.subject, found, [-s, 0.0, s], rows)
        measured = (kl(up, still) + kl(down, still)) / 2
        # 3 %: the next term at s = 0.01. 1e-9: logits come as float32.
        np.testing.assert_allclose(measured, quadratic, rtol=0.03, atol=1e-9 + 1e-3 * quadratic.max())


def test_another_thread_waits_until_the_model_is_itself_again(npeff):
    """A widget's thread and a cell share the model: neither may see the other's edit."""
    subject = npeff.subject
    rows = np.arange(4)
    before = subject.logits(rows)
    entered, seen = threading.Event(), []

    def other():
        entered.wait(30)
        seen.append(subject.logits(rows))

    thread = threading.Thread(target=other)
    thread.start()
    with nb.perturb(subject.model, npeff.direction(0), 5.0):
        entered.set()
        thread.join(0.3)
        assert thread.is_alive() and not seen  # it waits
        assert not torch.equal(subject.logits(rows), before)  # while the thread that edits goes on
    thread.join(30)
    assert torch.equal(seen[0], before)
