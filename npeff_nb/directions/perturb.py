"""The edit: a model moved along a direction, for as long as a ``with`` block lasts, and what that does to its predictions.

What is hard about it is the way back.  A Ctrl-C or a timer's signal can arrive between any two steps of the interpreter, also while the parameters
are put back and before the first line of ``__exit__`` has run.  So while a block is open its signals pass through :class:`_Handler`, which looks at
where they arrived: inside the block they go straight on; while parameters are moved or put back they are kept until that is done.
"""

from __future__ import annotations

import itertools
import math
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from npeff_nb.directions.lift import check_fits
from npeff_nb.fisher.subject import Subject, alone_with

Key = TypeVar("Key")
Value = TypeVar("Value")

_NAMES = ("SIGINT", "SIGBREAK", "SIGTERM", "SIGHUP", "SIGALRM", "SIGVTALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Those whose handlers may raise: Ctrl-C, requests to end, timers.  Which there are differs by system."""
_LOOKS_UP = 0.05
"""Seconds between two looks for a Ctrl-C while another thread has the model."""
_EDITS: dict[int, weakref.ref[Edit]] = {}  # those that are open; no WeakValueDictionary, whose callbacks would swallow a Ctrl-C
_OPENINGS = itertools.count()


def perturb(model: nn.Module, direction: Mapping[str, Tensor], strength: float) -> Edit:
    """θ + strength · direction inside the ``with`` block; θ again afterwards, bit for bit.

    The parameters are put back from a copy (never by subtraction) on every way out: normal end, exception, and signals such as Ctrl-C or a
    timeout wherever they arrive.  Only the parameters that move are copied.  Other threads that run this model through npeff_nb wait until the
    block ends.  ``edit = perturb(...)`` before ``with edit:`` lets one block go from strength to strength (:meth:`Edit.move`).

    Parameters
    ----------
    direction : parameter name -> tensor of its shape, as :meth:`npeff_nb.NPEFF.direction` gives.  A tied parameter is moved once, whichever of its
        names is given.
    strength : step length; for a unit-norm direction the L2 distance moved.  Its sign matters: positive strengthens a component,
        negative turns it down.

    Raises
    ------
    ValueError
        When strength is not finite, the direction does not fit the model, or it names a tied parameter twice; nothing has been changed then.
    """
    return Edit(model, direction, strength)


class Edit:
    """A model at θ + strength · direction while its ``with`` block is open: what :func:`perturb` gives.

    Blocks may be nested and closed in any order: what is open applies on top of what was opened before it.

    Attributes
    ----------
    strength : where the edit stands, or will when its block opens.
    """

    _lock: Any = None  # held while the block is open
    _opening = -1  # which of all openings this was

    def __init__(self, model: nn.Module, direction: Mapping[str, Tensor], strength: float) -> None:
        self.model, self.strength = model, _finite(strength)
        self._moves = moved_parameters(model, direction)
        self._before: dict[nn.Parameter, Tensor] = {}
        self._handlers: dict[_Handler, int] = {}
        self._arrived: list[tuple[Callable[..., Any], int]] = []

    def __enter__(self) -> nn.Module:
        if self._lock is not None:
            raise RuntimeError("this edit is open already: make another with perturb(...) to go further along its direction")
        try:
            self._watch()
            self._wait()
            self._keep()
            self._apply()
            # One line: a signal comes before it and is seen, or after it and is none of our business.
            return self._pass_on() if self._arrived else self.model
        except BaseException:
            self._close()
            raise

    def __exit__(self, *_: object) -> None:
        self._close()

    def move(self, strength: float) -> None:
        """To θ + strength · direction within the open block: always from the kept copy, so that nothing adds up.

        Raises
        ------
        ValueError, RuntimeError
            When strength is not finite; when the block is not open.
        """
        strength = _finite(strength)
        if self._lock is None:
            raise RuntimeError("this edit is not open: move() goes from strength to strength inside its with block")
        later = self._later()
        for edit in reversed(later):
            edit._put_back()
        self.strength = strength
        self._apply()
        for edit in later:
            edit._keep()
            edit._apply()
        if self._arrived:
            self._pass_on()

    # ------------------------------------------------------------------------------------------------------------------------ parameters

    def _keep(self) -> None:
        self._before = {parameter: parameter.detach().clone() for parameter in self._moves}

    def _apply(self) -> None:
        for parameter, value in self._moves.items():
            # detach() shares the memory and asks for no gradient; half precision is rounded once, at the end.
            torch.add(self._before[parameter], value.detach().to(parameter.device), alpha=self.strength, out=parameter.detach())

    def _put_back(self) -> None:
        _undo(self._before, lambda parameter, before: parameter.detach().copy_(before))

    def _later(self) -> list[Edit]:
        """Edits of this model that were opened after this one and are open still."""
        edits = [edit for ref in list(_EDITS.values()) if (edit := ref()) is not None and edit._lock is self._lock and edit._opening > self._opening]
        return sorted(edits, key=lambda edit: edit._opening)

    # --------------------------------------------------------------------------------------------------------- opening and closing the block

    def _wait(self) -> None:
        """Until the model is ours alone; a signal meanwhile is heard."""
        lock = alone_with(self.model)
        while not lock.acquire(timeout=_LOOKS_UP):
            self._pass_on()
        self._lock, self._opening = lock, next(_OPENINGS)
        _EDITS[id(self)] = weakref.ref(self)
        self.__class__ = _Open

    def _close(self) -> None:
        """Everything as it was, whatever fails on the way; then the first error, or what arrived meanwhile."""
        first = None
        for step in (self._watch, self._end, self._release, self._unwatch, self._pass_on):
            try:
                step()
            except BaseException as error:  # noqa: BLE001
                first = first or error
        if first is not None:
            raise first

    def _end(self) -> None:
        later = self._later() if self._before else []
        for edit in reversed(later):
            edit._put_back()
        self._put_back()
        for edit in later:
            edit._keep()
            edit._apply()

    def _release(self) -> None:
        self.__class__ = Edit
        _EDITS.pop(id(self), None)
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    # --------------------------------------------------------------------------------------------------------------------------- signals

    def _watch(self) -> None:
        """Puts a handler of ours before each that is there now; Python runs them in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in _SIGNALS:
            now = signal.getsignal(signum)
            if callable(now) and not (isinstance(now, _Handler) and now in self._handlers):
                ours = _Handler(self, now)
                self._handlers[ours] = signum
                signal.signal(signum, ours)

    def _unwatch(self) -> None:
        """Handlers as they were; one that was set inside the block is its owner's and stays."""

        def put_back(ours: _Handler, signum: int) -> None:
            before = ours.standing()
            if signal.getsignal(signum) is ours:
                signal.signal(signum, before)

        _undo(self._handlers, put_back)

    def _keeps(self, frame: FrameType | None) -> bool:
        """Whether parameters are being moved or put back where a signal arrived."""
        while frame is not None:
            if frame.f_code in _AT_WORK and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _pass_on(self) -> nn.Module:
        """Hands what arrived to whom it was for."""
        if self._arrived:
            handler, signum = self._arrived.pop(0)
            try:
                handler(signum, sys._getframe())
            finally:
                self._pass_on()
        return self.model


class _Open(Edit):
    """An edit while its block is open: then alone is it undone when it is dropped without ``__exit__``, as when a debugger steps in between.

    What is raised in a ``__del__`` is lost, also a Ctrl-C: so it must not run for every edit.
    """

    def __del__(self) -> None:
        self._close()


_AT_WORK = {method.__code__ for method in (Edit.__enter__, Edit.__exit__, Edit.move, _Open.__del__)}


class _Handler:
    """Stands before a signal's handler while an edit is open; keeps what arrives at a bad moment, passes on the rest."""

    def __init__(self, edit: Edit, before: Callable[..., Any]) -> None:
        self.edit, self.before = weakref.ref(edit), before

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if not self._kept(signum, frame):
            self.before(signum, frame)

    def _kept(self, signum: int, frame: FrameType | None) -> bool:
        # A frame of its own: the traceback of what the other handler raises must not keep the edit alive.
        edit = self.edit()
        if edit is None or not edit._keeps(frame):
            return False
        edit._arrived.append((self.before, signum))
        return True

    def standing(self) -> Callable[..., Any]:
        """The handler before this one, past those of edits that were closed out of order."""
        before = self.before
        while isinstance(before, _Handler) and ((edit := before.edit()) is None or before not in edit._handlers):
            before = before.before
        return before


def _undo(left: dict[Key, Value], put_back: Callable[[Key, Value], Any]) -> None:
    """``put_back`` for everything in ``left``, the last first, emptying it; then raises the first error.

    What failed is tried once more, since an interrupt may have cut it short, and then given up so that the rest is done.
    """
    key: Key | None = None
    failed: Key | None = None
    first: BaseException | None = None
    while left:
        try:
            while left:
                key = next(reversed(left))
                put_back(key, left[key])
                del left[key]
        except BaseException as error:  # noqa: BLE001
            if key is not None and key is failed:
                left.pop(key, None)
            failed, first = key, first or error
    if first is not None:
        raise first


def moved_parameters(model: nn.Module, direction: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
    """Parameter -> its part of the direction, or an error that says what does not fit."""
    there = dict(model.named_parameters(remove_duplicate=False))
    moves: dict[nn.Parameter, Tensor] = {}
    check_fits(there, direction)
    for name, value in direction.items():
        if there[name] in moves:
            first = next(other for other in direction if there[other] is there[name])
            raise ValueError(f"the direction names one tied parameter twice, as {first!r} and as {name!r}: leave one of them out")
        moves[there[name]] = value
    return moves


def _finite(strength: float) -> float:
    strength = float(strength)
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength}: it must be a finite number")
    return strength


def kl(perturbed: np.ndarray | Tensor, original: np.ndarray | Tensor, family: str = "categorical") -> np.ndarray:
    """KL(perturbed ‖ original) in nats from logits (..., c), float64, never below zero but for rounding.

    Σ p'(log p' − log p) from log-softmax; for independent labels (``"bernoulli"``) the sum of each label's own.
    """
    new, old = torch.as_tensor(perturbed, dtype=torch.float64), torch.as_tensor(original, dtype=torch.float64)
    if family == "bernoulli":
        yes = torch.nn.functional.logsigmoid(new), torch.nn.functional.logsigmoid(old)
        no = torch.nn.functional.logsigmoid(-new), torch.nn.functional.logsigmoid(-old)
        return (yes[0].exp() * (yes[0] - yes[1]) + no[0].exp() * (no[0] - no[1])).sum(-1).clamp_min(0).numpy()
    new, old = torch.log_softmax(new, -1), torch.log_softmax(old, -1)
    return (new.exp() * (new - old)).sum(-1).clamp_min(0).numpy()


def edited_logits(subject: Subject, direction: Mapping[str, Tensor], strengths: Sequence[float], rows: np.ndarray) -> np.ndarray:
    """The model really run: logits (strengths, rows, c) float32 under θ + strength · direction.  One copy of the parameters for all strengths."""
    if not len(strengths):
        raise ValueError("strengths is empty: name at least one to run the model at")
    edit = perturb(subject.model, direction, strengths[0])
    out = []
    with edit:
        for strength in strengths:
            if strength != edit.strength:
                edit.move(strength)
            out.append(subject.logits(rows).numpy())
    return np.stack(out)


@dataclass(frozen=True)
class EditSets:
    """The examples an edit is judged on: the ones that use a component most, and a random sample of all others."""

    top: np.ndarray
    baseline: np.ndarray


def edit_sets(coefficients: np.ndarray, n_top: int, n_baseline: int, seed: int = 0, eligible: np.ndarray | None = None) -> EditSets:
    """Top ``n_top`` users by coefficient (n,), and ``n_baseline`` drawn at random from everything else: the two never overlap.

    The baseline may contain lesser users of the component: it stands for the data, not for the component's absence.  Examples outside ``eligible``
    (n,) (without a Fisher, because their numbers are not finite, say) are in neither.
    """
    order = np.argsort(-coefficients, kind="stable")
    users = order[coefficients[order] > 0]
    # With few examples the top set leaves at least half of them for comparison.
    top = users[: max(1, min(n_top, len(coefficients) // 2))]
    rest = np.setdiff1d(np.arange(len(coefficients)) if eligible is None else np.flatnonzero(eligible), top)
    drawn = np.random.default_rng(seed).permutation(rest)[:n_baseline]
    return EditSets(top, np.sort(drawn))


def kl_ratio(top: np.ndarray, baseline: np.ndarray) -> float | None:
    """Mean KL on the top set over mean KL on the baseline (Matena and Raffel, section 4); None where the baseline did not move."""
    below = float(np.mean(baseline))
    return float(np.mean(top)) / below if below > 0 else None
