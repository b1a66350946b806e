"""The bar that long work shows in a notebook: how far, how long still, and a button that stops it while the cell runs."""

from __future__ import annotations

import contextvars
import html
import threading
from time import monotonic
from typing import Any

import anywidget
import traitlets
from IPython.display import display
from tqdm.std import EMA

from npeff_nb._progress import At
from npeff_nb.widgets.page import static_text

TELL_EVERY = 0.2
"""Seconds between two updates: a page needs no more, and a socket stays free."""
SMOOTHING = 0.05
"""Weight of the latest update in the rate: the time left follows the last few seconds, and does not jump with every batch."""
LONGEST = 400
"""Characters of the last words: they stay in the saved notebook."""


def beside_cells() -> contextvars.Context:
    """Where a message is sent that belongs to no cell.

    A kernel with subshells (ipykernel 7) hears a page's messages on a thread of their own, so that a button works while a cell runs.  But it leads
    the answers to a comm back to whoever sent on it last (ipykernel 7.4, ``BaseComm._reply_subshell_for``): after a message from the running cell
    they wait for that cell's end.  Sent without the cell's request as their parent, messages change nothing about that way.  Other kernels
    have no such variable, and nothing happens.
    """
    context = contextvars.copy_context()
    for variable in context:
        if variable.name == "shell_parent":
            context.run(variable.set, {})
    return context


class ProgressWidget(anywidget.AnyWidget):
    """What the page shows.  ``at`` is the latest: what, done, total, units, note, left (seconds), end (last words)."""

    _esm = static_text("progress.js")
    _css = static_text("progress.css")

    at = traitlets.Dict().tag(sync=True)

    def __init__(self, at: dict[str, Any]) -> None:
        self.stop = threading.Event()
        super().__init__(at=at)
        self.on_msg(self._on_message)

    def open(self) -> None:
        """Begins to be heard."""
        beside_cells().run(super().open)

    def send_state(self, key: Any = None) -> None:
        """Tells the page."""
        beside_cells().run(super().send_state, key)

    def send(self, content: Any, buffers: Any = None) -> None:
        """Answers the page."""
        beside_cells().run(super().send, content, buffers)

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        """On a thread of the kernel's; the working one looks at ``stop`` when a piece is done."""
        if content == {"ask": "cancel"}:
            self.stop.set()
        self.send({"heard": True})


class NotebookBar:
    """A :class:`~npeff_nb._progress.Face`.  When the work has ended a line of text takes the widget's place, and the saved notebook has it too."""

    def __init__(self, at: At) -> None:
        self._rate, self._since = _Rate(), monotonic()
        self._widget = ProgressWidget(self._shown(at))
        self._told = self._since
        made: Any = self._widget._repr_mimebundle_()
        data, metadata = made if isinstance(made, tuple) else (made, {})
        self._place = display(data | _text(f"{at.what}: was running when this was saved"), metadata=metadata, raw=True, display_id=True)

    def tell(self, at: At) -> None:
        """Shows it, at most five times a second."""
        now = monotonic()
        if now - self._told < TELL_EVERY:
            return
        self._told = now
        self._rate.see(at, now - self._since)
        self._widget.at = self._shown(at)

    def cancelled(self) -> bool:
        """Whether the button was pressed."""
        return self._widget.stop.is_set()

    def end(self, words: str) -> None:
        """Puts the last words in the widget's place."""
        short = words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
        self._widget.at = self._widget.at | {"end": short}
        self._place.update(_text(short), raw=True)
        self._widget.close()

    def _shown(self, at: At) -> dict[str, Any]:
        left, note = self._rate.left(at), at.note or at.now
        return {"what": at.what, "done": at.done, "total": at.total, "units": at.units, "note": note, "left": left, "end": ""}


class _Rate:
    """Units a second, by tqdm's moving average: what lay finished in a cache says nothing about the rest for long."""

    def __init__(self) -> None:
        self._units, self._seconds = EMA(SMOOTHING), EMA(SMOOTHING)
        self._at, self._done, self._what = 0.0, 0, ""

    def see(self, at: At, now: float) -> None:
        if at.what != self._what:
            self._what, self._done = at.what, 0
        self._units(at.done - self._done)
        self._seconds(now - self._at)
        self._at, self._done = now, at.done

    def left(self, at: At) -> float | None:
        """Seconds; None as long as nobody can know."""
        units = self._units()
        return None if at.total is None or not units else round((at.total - at.done) * self._seconds() / units, 1)


def _text(words: str) -> dict[str, str]:
    return {"text/plain": words, "text/html": f"<span>{html.escape(words)}</span>"}
