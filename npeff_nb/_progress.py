"""Long work tells how far it is, and can be told to stop."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

Progress = Callable[[int, int, str], None]
"""Called as (done, total, what); may raise :class:`Cancelled`."""


class Cancelled(Exception):
    """The person asked to stop; what was finished is kept, and the model is as it was."""


class Bar:
    """A progress bar with the time that is left, or the caller's own function, or nothing."""

    def __init__(self, progress: bool | Progress, total: int, what: str, unit: str) -> None:
        self._tell = progress if callable(progress) else None
        self._bar = tqdm(total=total, desc=what, unit=unit, disable=self._tell is not None or not progress)
        self.done, self.total, self.what = 0, total, what

    def __enter__(self) -> Self:
        if self._tell is not None:
            self._tell(0, self.total, self.what)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def add(self, number: int) -> None:
        """So many more are done."""
        self.done += number
        self._bar.update(number)
        if self._tell is not None:
            self._tell(self.done, self.total, self.what)
