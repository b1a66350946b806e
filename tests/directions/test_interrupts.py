"""Interrupts at every point of an edit: after each of them the weights, the lock and the signals' handlers are what they were.

Two ways to be interrupted: a trace function that sends the signal before the n-th bytecode of our module, and at the n-th line of what it calls, for
every n; and real timers that go off wherever they do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import twins
from torch import nn

import npeff_nb as nb
from npeff_nb.directions import perturb as module
from npeff_nb.directions.perturb import edited_logits
from npeff_nb.fisher import subject as subject_module
from npeff_nb.fisher.subject import alone_with

BYTECODES = module.__file__  # stopped at before each of its bytecodes
LINES = {__file__, threading.__file__, signal.__file__, weakref.__file__}
TORCH = str(Path(torch.__file__).parent)

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).eval()


@pytest.fixture
def step(model):
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=draw) for name, p in model.named_parameters() if name != "0.bias"}


@pytest.fixture(autouse=True)
def handlers():
    """Handlers as Python sets them, also where a test fails."""
    kept = {signum: signal.getsignal(signum) for signum in module._SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)
    torch.set_grad_enabled(True)  # no_grad() around the model's run leaves it off when it is interrupted itself


def held(model: nn.Module) -> bool:
    """Whether this thread has the model's lock."""
    lock = subject_module._LOCKS.get(model)
    return lock is not None and lock._is_owned()


def someone_else_can_take(model: nn.Module) -> bool:
    taken = []

    def take():
        with alone_with(model):
            taken.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    return bool(taken)


def stopped_at(function, n: int | None, lines: set[str] = LINES) -> int:
    """Runs ``function``, interrupts it at the n-th place (None: never), and says how many places there were."""
    places = 0

    def trace(frame, event, argument):
        nonlocal places
        name = frame.f_code.co_filename
        if name == BYTECODES:
            frame.f_trace_opcodes = True
        elif name not in lines and not name.startswith(TORCH):
            return None
        if event != "line" or name != BYTECODES:  # a line there is its first bytecode
            places += 1
            if places == n:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        function()
    except ZeroDivisionError:
        pass  # that of failing()
    finally:
        sys.settrace(None)
    return places


def plain(model, step):
    with nb.perturb(model, step, 0.3):
        model(torch.ones(1, 3))


def nested(model, step):
    with nb.perturb(model, step, 0.3), nb.perturb(model, {"0.weight": step["0.weight"]}, -0.2):
        pass


def moved(model, step):
    edit = nb.perturb(model, step, 0.3)
    with edit:
        edit.move(-1e8)


def failing(model, step):
    with nb.perturb(model, step, 0.3):
        raise ZeroDivisionError


# Python itself is left with a stale exception by one that a trace function raises on leaving a block that an error ends.
@pytest.mark.parametrize(("way", "lines"), [(plain, LINES), (nested, LINES), (moved, LINES), (failing, LINES - {__file__})])
def test_an_interrupt_before_any_bytecode(way, lines, model, step):
    before, places = twins.state(model), stopped_at(lambda: way(model, step), None, lines)
    assert places > 500
    for n in range(1, places + 1):
        with pytest.raises(KeyboardInterrupt):
            stopped_at(lambda: way(model, step), n, lines)
        twins.assert_untouched(model, before)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, n
        assert not held(model), n
    assert someone_else_can_take(model)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_before_any_line_of_a_sweep(shared, npeff):
    """What runs the model is stopped anywhere: in the edit, and in torch's Python (every 29th of its many lines).

    There one may be lost: Python drops what is raised in a generator that is being closed, and torch leaves such generators behind.
    """
    subject, direction = shared.subject, dict(list(npeff.direction(0).items())[:2])
    before, rows = twins.state(subject.model), np.array([3])

    def sweep():
        edited_logits(subject, direction, [0.3, -0.3], rows)

    places, heard = range(1, stopped_at(sweep, None), 29), 0
    for n in places:
        try:
            stopped_at(sweep, n)
        except KeyboardInterrupt:
            heard += 1
        twins.assert_untouched(subject.model, before)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, n
        assert not held(subject.model), n
    assert heard > 0.95 * len(places)


def test_an_interrupt_while_parameters_are_put_back_is_heard_when_that_is_done(model, step, monkeypatch):
    before, copy, seen = twins.state(model), torch.Tensor.copy_, []

    def copied(self, other):
        signal.raise_signal(signal.SIGINT)
        seen.append(signal.getsignal(signal.SIGINT))
        return copy(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    with pytest.raises(KeyboardInterrupt), nb.perturb(model, step, 0.3):
        pass
    monkeypatch.undo()
    assert len(seen) == len(step)  # not one was put back twice
    assert all(isinstance(handler, module._Handler) for handler in seen)
    twins.assert_untouched(model, before)


def test_an_interrupt_while_moving_keeps_the_block_from_beginning(model, step, monkeypatch):
    before, add = twins.state(model), torch.add

    def added(*arguments, **settings):
        signal.raise_signal(signal.SIGINT)
        return add(*arguments, **settings)

    monkeypatch.setattr(torch, "add", added)
    with pytest.raises(KeyboardInterrupt), nb.perturb(model, step, 0.3):
        pytest.fail("the block must not begin")
    twins.assert_untouched(model, before)
    assert someone_else_can_take(model)


@needs_timers
@pytest.mark.parametrize("kind", ["alarm", "ctrl-c"])
def test_signals_that_arrive_by_themselves(kind, model, step):
    """A timer's TimeoutError (SIGALRM), or SIGINT from another process's point of view, at 300 moments spread over a block of about a millisecond."""

    def late(signum, frame):
        raise TimeoutError("time is up")

    before, caught, rng = twins.state(model), 0, np.random.default_rng(0)
    signal.signal(signal.SIGALRM, late if kind == "alarm" else lambda *_: os.kill(os.getpid(), signal.SIGINT))
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
            with nb.perturb(model, step, 0.3), nb.perturb(model, step, 0.3):
                pass
            time.sleep(2e-3)
        except (TimeoutError, KeyboardInterrupt):
            caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        twins.assert_untouched(model, before)
        assert not held(model)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert caught >= 297  # Python drops what is raised while it collects garbage, whosever it is
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert someone_else_can_take(model)


@needs_timers
def test_waiting_for_another_thread_can_be_interrupted(model, step):
    before, has_it, done = twins.state(model), threading.Event(), threading.Event()

    def hold():
        with alone_with(model):
            has_it.set()
            done.wait(30)

    def late(signum, frame):
        raise TimeoutError("time is up")

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(30)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(TimeoutError), nb.perturb(model, step, 0.3):
            pytest.fail("the block must not begin")
        assert thread.is_alive()
    finally:
        done.set()
        thread.join(30)
    assert signal.getsignal(signal.SIGALRM) is late
    twins.assert_untouched(model, before)
    assert someone_else_can_take(model)


def test_two_interrupts_at_once_are_both_heard(model, step, monkeypatch):
    heard, add = [], torch.add
    signal.signal(signal.SIGINT, lambda *_: heard.append(len(heard)))

    def added(*arguments, **settings):
        signal.raise_signal(signal.SIGINT)
        return add(*arguments, **settings)

    monkeypatch.setattr(torch, "add", added)
    with nb.perturb(model, step, 0.3):
        assert heard == [0, 1, 2]  # one a parameter; this handler lets the block begin


def test_handlers_are_put_back_whatever_was_there(model, step):
    mine = lambda *_: None  # noqa: E731
    for there in (mine, signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, there)
        with nb.perturb(model, step, 0.3):
            inside = signal.getsignal(signal.SIGINT)
            assert isinstance(inside, module._Handler) if there is mine else inside is there
            with nb.perturb(model, step, 0.3):
                pass
            assert signal.getsignal(signal.SIGINT) is inside
        assert signal.getsignal(signal.SIGINT) is there


def test_a_handler_that_is_set_inside_the_block_is_its_owner_s(model, step):
    before, heard = twins.state(model), []

    def mine(signum, frame):
        heard.append(signum)
        raise InterruptedError

    with nb.perturb(model, step, 0.3):
        ours = signal.signal(signal.SIGINT, mine)
        with pytest.raises(InterruptedError):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, ours)  # as who set it for a while does, here after the block's end
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with nb.perturb(model, step, 0.3):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # what stands for nothing any more is skipped
    twins.assert_untouched(model, before)
    assert len(heard) == 1


def test_a_handler_that_is_set_inside_the_block_cannot_stop_the_way_back(model, step, monkeypatch):
    before, copy = twins.state(model), torch.Tensor.copy_

    def mine(signum, frame):
        raise InterruptedError

    def copied(self, other):
        signal.raise_signal(signal.SIGINT)
        return copy(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    with pytest.raises(InterruptedError), nb.perturb(model, step, 0.3):
        signal.signal(signal.SIGINT, mine)
    monkeypatch.undo()
    twins.assert_untouched(model, before)
    assert signal.getsignal(signal.SIGINT) is mine
    assert someone_else_can_take(model)


def test_blocks_closed_out_of_order_leave_handlers_weights_and_lock_as_they_were(model, step):
    other = tiny.seeded(lambda: nn.Linear(3, 2))
    before, other_before = twins.state(model), twins.state(other)
    start = model[0].weight.detach().clone()
    first, second, elsewhere = nb.perturb(model, step, 0.3), nb.perturb(model, step, 0.5), nb.perturb(other, {"bias": torch.ones(2)}, 1)
    for edit in (first, elsewhere, second):
        edit.__enter__()
    first.__exit__(None, None, None)
    torch.testing.assert_close(model[0].weight.detach(), start + 0.5 * step["0.weight"])  # the second still applies, the first does not
    elsewhere.__exit__(None, None, None)
    second.__exit__(None, None, None)
    twins.assert_untouched(model, before)
    twins.assert_untouched(other, other_before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert someone_else_can_take(model) and someone_else_can_take(other)


def test_an_edit_that_is_dropped_open_is_undone(model, step):
    before = twins.state(model)
    nb.perturb(model, step, 0.3).__enter__()
    twins.assert_untouched(model, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert someone_else_can_take(model)


def test_a_thread_edits_without_touching_signals(model, step):
    before, inside, go_on, failures = twins.state(model), threading.Event(), threading.Event(), []

    def work():
        try:
            with nb.perturb(model, step, 0.3):
                inside.set()
                go_on.wait(30)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    go_on.set()
    thread.join(30)
    assert not failures
    twins.assert_untouched(model, before)


def test_a_parameter_that_cannot_be_put_back_does_not_hold_up_the_rest(model, step, monkeypatch):
    before, copy, stuck = twins.state(model), torch.Tensor.copy_, model[2].weight

    def copied(self, other):
        if self.data_ptr() == stuck.data_ptr():
            raise OSError("the device is gone")
        return copy(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    with pytest.raises(OSError, match="the device is gone"), nb.perturb(model, step, 0.3):
        pass
    monkeypatch.undo()
    now = twins.state(model)["values"]
    assert [name for name in now if not torch.equal(now[name], before["values"][name])] == ["2.weight"]
    assert someone_else_can_take(model)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
