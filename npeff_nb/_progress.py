"""Long work tells how far it is, and can be told to stop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from tqdm.auto import tqdm

Progress = Callable[[int, int, str], None]
"""Called as (done, total, what); may raise :class:`Cancelled`."""


class Cancelled(Exception):
    """The person asked to stop; what was finished is kept, and the model is as it was."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the one who pressed Cancel need not read where the work happened to be."""
        return [f"Cancelled: {self}" if str(self) else "Cancelled"]


@dataclass
class At:
    """How far a piece of work is.

    Attributes
    ----------
    what : is being done.
    done, total : units; the total is None where nobody knows it.
    unit : of what is counted, in the singular.
    now : the piece at hand, where pieces have names.
    note : the latest figure of the work itself, if it has one.
    """

    what: str
    done: int
    total: int | None
    unit: str
    now: str = ""
    note: str = ""

    def counted(self, number: int) -> str:
        """``"1 fit"``, ``"12 passes"``."""
        return f"{number} {self.units}" if number != 1 else f"1 {self.unit}"

    @property
    def units(self) -> str:
        """The unit in the plural."""
        return self.unit + ("es" if self.unit.endswith("s") else "s")

    def so_far(self) -> str:
        """``"310 of 2000 examples"``."""
        return self.counted(self.done) if self.total is None else f"{self.done} of {self.counted(self.total)}"


class Face(Protocol):
    """What shows the progress to a person."""

    def tell(self, at: At) -> None:
        """Shows it, now or with a later one."""

    def cancelled(self) -> bool:
        """Whether the person asked to stop."""

    def end(self, words: str) -> None:
        """The last words: nothing comes after them."""


class Bar:
    """A progress bar with the time that is left and, in a notebook, a Cancel button; or the caller's own function; or nothing.

    Parameters
    ----------
    progress : True for a bar, False for nothing, or a function (done, total, what).
    total : units of work; None where nobody knows how many it will be.
    what : is done, as a heading.
    unit : what is counted, in the singular.
    kept : said to who cancels: what remains, and how to go on from there.

    Attributes
    ----------
    what : is being done; may be set to the name of each piece.
    """

    def __init__(self, progress: bool | Progress, total: int | None, what: str, unit: str, kept: str = "") -> None:
        self._tell = progress if callable(progress) else None
        self.what, self.at, self._kept = what, At(what, 0, total, unit), kept
        # With nothing to do there is nothing to watch.
        self._face: Face | None = _face(self.at) if progress and self._tell is None and total != 0 else None
        self._whole, self._earlier, self._since = what, 0, monotonic()

    def __enter__(self) -> Self:
        if self._tell is not None:
            self._tell(0, self.at.total or 0, self.what)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._face is not None:
            self._face.end(self._last_words(error))

    def add(self, number: int, note: str = "") -> None:
        """So many more are done.

        Raises
        ------
        Cancelled
            When the person pressed Cancel, and something is still to do.
        """
        at = self.at
        at.done, at.note, at.now = at.done + number, note, "" if self.what == at.what else self.what
        if self._tell is not None:
            self._tell(at.done, at.total or 0, self.what)
        if self._face is not None:
            self._face.tell(at)
            if self._face.cancelled() and at.done != at.total:
                raise Cancelled("; ".join(part for part in (f"{at.so_far()} done", self._kept) if part))

    def begin(self, what: str) -> None:
        """The next part, counted anew."""
        self._earlier += self.at.done
        self.what, self.at = what, At(what, 0, self.at.total, self.at.unit)

    def _last_words(self, error: BaseException | None) -> str:
        at, took = self.at, span(monotonic() - self._since)
        if error is None:
            return f"{self._whole}: {at.counted(self._earlier + at.done)} in {took}" + (f" · {at.note}" if at.note else "")
        if isinstance(error, (Cancelled, KeyboardInterrupt)):
            return f"{at.what}: cancelled after {at.so_far()}, {took}"
        return f"{at.what}: failed after {at.so_far()}: {type(error).__name__}: {error}"


def span(seconds: float) -> str:
    """``"54 s"``, ``"2 min 5 s"``, ``"1 h 12 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def say(text: str) -> None:
    """A line beside a bar."""
    tqdm.write(text)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, so that a page may show widgets.  Whether there is one, nobody can know beforehand."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def _face(at: At) -> Face:
    if in_notebook():
        from npeff_nb.widgets.progress import NotebookBar

        return NotebookBar(at)
    return _Line(at)


class _Line:
    """tqdm's line, in a terminal or a log; Ctrl-C stops the work there."""

    def __init__(self, at: At) -> None:
        self._what = at.what
        self._bar = tqdm(total=at.total, desc=at.what, unit=at.unit)

    def tell(self, at: At) -> None:
        if at.what != self._what:
            self._what = at.what
            self._bar.reset()
            self._bar.set_description(at.what, refresh=False)
        if at.note or at.now:
            self._bar.set_postfix_str(at.note or at.now, refresh=False)
        self._bar.update(at.done - self._bar.n)

    def cancelled(self) -> bool:
        return False

    def end(self, words: str) -> None:
        self._bar.close()
