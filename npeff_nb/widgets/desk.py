"""The desk: where the questions of a page are answered.  What is asked and what comes back stands in ``widgets/src/protocol.d.ts``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from npeff_nb.widgets import edits, heat, readings, search
from npeff_nb.widgets.bundle import Bundle, sendable
from npeff_nb.widgets.turns import first_with

if TYPE_CHECKING:
    from npeff_nb.directions.lift import Direction
    from npeff_nb.npeff import NPEFF

Tell = Callable[..., None]
"""Called as (done, total, what) and, where there is something to show already, with a part of the answer; raises Cancelled."""
Answer = Any
"""JSON, or JSON with a list of binary buffers beside it."""
Handler = Callable[["Desk", dict[str, Any], Tell], Answer]

DIRECTIONS_KEPT = 4
"""Directions that are held in any case, for as many sliders (one has as many numbers as the parameters that took part) ..."""
HELD_BYTES = 2**30
"""... and more while they take no more than this: lifting one costs seconds."""


class Desk:
    """A fitted decomposition, what its pictures are made from, and what was computed for them.

    Attributes
    ----------
    npeff : the decomposition.
    bundle : its pictures as plain data.
    """

    def __init__(self, npeff: NPEFF) -> None:
        self.npeff, self.bundle = npeff, Bundle(npeff)
        self._directions: dict[int, Direction] = {}
        self._lock = threading.RLock()

    def direction(self, k: int) -> Direction:
        """Component ``k`` among the model's parameters; the latest few are kept."""
        with self._lock:
            found = self._directions.pop(k, None) or self.npeff.direction(k)
            self._directions[k] = found
            size = sum(value.numel() * value.element_size() for value in found.values())
            while len(self._directions) > max(DIRECTIONS_KEPT, HELD_BYTES // size):
                self._directions.pop(next(iter(self._directions)))
            return found

    def pace(self, content: dict[str, Any]) -> str:
        """``"quick"``: answered at once.  Others are worked out beside the kernel, which stays free to hear Cancel: ``"long"``, and ``"background"``,
        which gives way to the long ones.
        """
        ask = content.get("ask")
        if ask == "component":
            known = self.npeff.subject is None or content.get("component") in self.npeff.profiles
            return "quick" if known else "background"
        return "long" if ask in LONG else "quick"

    def answer(self, content: dict[str, Any], tell: Tell) -> tuple[Any, list[bytes]]:
        """The answer to one question and its binary parts.

        Raises
        ------
        ValueError
            A question that this version does not know, or about something that does not exist.
        """
        ask = content.get("ask")
        handler = QUICK.get(ask) or LONG.get(ask)  # type: ignore[arg-type]
        if handler is None:
            raise ValueError(f"the page asked for {ask!r}, which this version does not know; restart the kernel after an update")
        found = handler(self, content, tell)
        answer, parts = found if isinstance(found, tuple) else (found, [])
        return sendable(answer), parts


def _component(desk: Desk, content: dict[str, Any], tell: Tell) -> dict[str, Any]:
    k = desk.npeff.check_component(content["component"])
    if desk.npeff.subject is not None and k not in desk.npeff.profiles:
        return edits.profiled(desk, k, tell)
    return desk.bundle.detail(k)


def _examples(desk: Desk, content: dict[str, Any], tell: Tell) -> list[dict[str, Any]]:
    n = len(desk.npeff.coefficients_)
    return [desk.bundle.example(row) for row in content["rows"] if isinstance(row, int) and 0 <= row < n]


def _tops(desk: Desk, content: dict[str, Any], tell: Tell) -> dict[str, Any]:
    return {"rows": [desk.bundle.usage.top[desk.npeff.check_component(k)].tolist() for k in content["components"]]}


def _first(handler: Handler) -> Handler:
    """Short work with the model goes before a profile in the background."""

    def answered(desk: Desk, content: dict[str, Any], tell: Tell) -> Answer:
        if desk.npeff.subject is None:
            return handler(desk, content, tell)
        with first_with(desk.npeff.subject.model):
            return handler(desk, content, tell)

    return answered


def _page(desk: Desk, content: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The explorer as one file, for the browser to save; ``state`` is what the person sees now."""
    from npeff_nb.widgets.page import page

    state = content.get("state")
    if not isinstance(state, dict):
        raise ValueError(f"the page's state is {state!r}, not a table of values")
    return {"name": f"{desk.bundle.title}.html", "text": page(desk.npeff, bundle=desk.bundle, panels=content.get("panels"), **state)}


QUICK: dict[str, Handler] = {
    "component": _component, "examples": _examples, "tops": _tops, "band": readings.band, "search": search.find,
    "heat": heat.tile, "cell": heat.cell, "places": heat.places,
}  # fmt: skip
LONG: dict[str, Handler] = {
    "preview": edits.preview, "strength": edits.strength, "tokens": _first(readings.tokens), "text": _first(readings.text),
    "trace": _first(readings.trace), "page": _page,
}  # fmt: skip
