"""Who goes first with a model: a slider that was let go does not wait until a profile in the background is done."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WAITING: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""Model -> how many short questions want it or have it."""
_CHANGED = threading.Condition()
_NEXT_IN = 0.02
"""Seconds within which the next of several short questions begins: one is cancelled, the one that took its place has yet to start."""


@contextmanager
def first_with(model: Any) -> Iterator[None]:
    """For a short question: long work that gives way stops at its next step until the block ends.  The model's own lock is taken as ever."""
    with _CHANGED:
        _WAITING[model] = _WAITING.get(model, 0) + 1
    try:
        yield
    finally:
        with _CHANGED:
            _WAITING[model] -= 1
            _CHANGED.notify_all()


def give_way(model: Any) -> None:
    """For long work, between two steps and without the model's lock: waits until no short question wants the model."""
    with _CHANGED:
        while _WAITING.get(model) or _CHANGED.wait_for(lambda: _WAITING.get(model), _NEXT_IN):
            _CHANGED.wait_for(lambda: not _WAITING.get(model))
