"""The explorer: one widget whose parts are linked, live in a notebook."""

from __future__ import annotations

import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anywidget
import traitlets

from npeff_nb._progress import Cancelled
from npeff_nb.widgets.bundle import PARTS, SLIDER, first_state, sendable
from npeff_nb.widgets.desk import Desk
from npeff_nb.widgets.page import fallback, static_text, write_page

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from npeff_nb.npeff import NPEFF

TELL_EVERY = 0.2
"""Seconds between two progress messages: a page needs no more, and a socket stays free."""
PANELS = (*PARTS, "examples", "layers")
SORTS = ("share", "number", "name", "label", "purity", "fine", "errors", "examples", "kl", "kl_up", "note", "star")


def _numbered(value: traitlets.TraitType) -> traitlets.Dict:
    """Component number, as text (JSON has no other keys) -> value."""
    return traitlets.Dict(key_trait=traitlets.Unicode(), value_trait=value)


class Explorer(anywidget.AnyWidget):
    """What a person sees and does, as plain values that can be read, set and observed; :attr:`state` has them all.

    Attributes
    ----------
    component : the component in focus.
    pinned : a component that is kept beside it for comparison; −1 for none.
    strength : strength of the edit along the component in focus (L2; negative turns it down).
    others : strengths of further components that are edited at the same time, by number as text.
    selection : rows of the examples that were picked.
    example : row of the one example that is traced; −1 for none.
    labels, notes : names given to components and what was written about them, by number as text; stars : components that were marked.  All three
        are kept in the decomposition and saved with it.
    panel : the part that is shown, one of ``panels``.
    query : what is searched for.  sort : the list's order: ``"share"``, ``"number"``, ``"name"``, ``"label"``, ``"purity"``, ``"fine"``,
        ``"errors"``, ``"examples"``, ``"kl"``, ``"kl_up"``, ``"note"`` or ``"star"``, with ``-`` before it when falling.
    order, strip : how the heatmap's columns are ordered, and by which column of the examples' table the strip under it is coloured.
    text : a text of one's own.
    tokens : what colours words, ``"share"`` of the coefficient or ``"sensitivity"``; pieces : raw tokens instead of words.
    theme : ``"auto"`` follows the notebook, ``"light"``, ``"dark"``.
    """

    # Text, not a path: a path would keep every instance alive and watch the file.
    _esm = static_text("explorer.js")
    _css = static_text("explorer.css")

    overview = traitlets.Dict().tag(sync=True)
    panels = traitlets.List(traitlets.Enum(PANELS)).tag(sync=True)
    panel = traitlets.Enum(PANELS, default_value="components").tag(sync=True)
    component = traitlets.Int(0).tag(sync=True)
    pinned = traitlets.Int(-1).tag(sync=True)
    strength = traitlets.Float(0.0).tag(sync=True)
    others = _numbered(traitlets.Float()).tag(sync=True)
    selection = traitlets.List(traitlets.Int()).tag(sync=True)
    example = traitlets.Int(-1).tag(sync=True)
    labels = _numbered(traitlets.Unicode()).tag(sync=True)
    notes = _numbered(traitlets.Unicode()).tag(sync=True)
    stars = traitlets.List(traitlets.Int()).tag(sync=True)
    query = traitlets.Unicode("").tag(sync=True)
    sort = traitlets.Unicode("-share").tag(sync=True)
    order = traitlets.Unicode("").tag(sync=True)
    strip = traitlets.Unicode("").tag(sync=True)
    text = traitlets.Unicode("").tag(sync=True)
    tokens = traitlets.Enum(["share", "sensitivity"], default_value="share").tag(sync=True)
    pieces = traitlets.Bool(False).tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], default_value="auto").tag(sync=True)

    PARTS: ClassVar[tuple[str, ...]] = PARTS
    STATE: ClassVar = (
        "panel", "component", "pinned", "strength", "others", "selection", "example", "query", "sort", "order", "strip", "text", "tokens", "pieces",
        "theme",
    )  # fmt: skip

    def __init__(self, npeff: NPEFF, **state: Any) -> None:
        from sklearn.utils.validation import check_is_fitted

        from npeff_nb.npeff import NPEFF

        # First of all: a widget that was refused is closed as well.
        self._workers = {pace: ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"npeff-{pace}") for pace in ("long", "background")}
        self._cancelled: dict[str, threading.Event] = {}
        called = f"{self._called()}()"
        _check_names(state, self.STATE, called)
        if not isinstance(npeff, NPEFF):
            raise TypeError(f"{called} takes a fitted NPEFF, not a {type(npeff).__name__}")
        check_is_fitted(npeff, "components_")
        self.npeff = npeff
        self._desk = Desk(npeff)
        overview = sendable(self._desk.bundle.overview(live=npeff.subject is not None))
        self._first = {"panel": self.PARTS[0]} | first_state(overview)
        super().__init__(
            overview=overview,
            panels=list(self.PARTS),
            labels=sendable({str(k): v for k, v in npeff.labels.items()}),
            notes=sendable({str(k): v for k, v in npeff.notes.items()}),
            stars=sorted(npeff.stars),
            **self._first | state,
        )
        self.on_msg(self._on_message)

    # ------------------------------------------------------------------------------------------------------------------- plain values

    @property
    def state(self) -> dict[str, Any]:
        """Everything that the person chose, as plain values.  ``nb.explore(npeff, **explorer.state)`` shows the same again; it can be set, too."""
        return {name: getattr(self, name) for name in self.STATE}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        _check_names(value, self.STATE, "state")
        with self.hold_trait_notifications():
            for name, one in value.items():
                setattr(self, name, one)

    def code(self, npeff: str = "npeff") -> str:
        """The line of Python that opens an explorer like this one; ``npeff`` is what the decomposition is called."""
        first = {name: self.trait_defaults(name) for name in self.STATE} | self._first
        said = [f"{name}={value!r}" for name, value in self.state.items() if value != first[name]]
        return f"nb.{self._called()}({', '.join([npeff, *said])})"

    def _called(self) -> str:
        """What a person calls to get one of these."""
        return "explore" if type(self).__name__ == "Explorer" else type(self).__name__

    @traitlets.validate("component")
    def _check_component(self, proposal: Any) -> int:
        return self.npeff.check_component(proposal["value"])

    @traitlets.validate("pinned")
    def _check_pinned(self, proposal: Any) -> int:
        return proposal["value"] if proposal["value"] == -1 else self.npeff.check_component(proposal["value"])

    @traitlets.validate("strength")
    def _check_strength(self, proposal: Any) -> float:
        return _on_slider(proposal["value"])

    @traitlets.validate("others")
    def _check_others(self, proposal: Any) -> dict[str, float]:
        for value in self._numbers(proposal["value"]).values():
            _on_slider(value)
        return proposal["value"]

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> list[int]:
        for row in proposal["value"]:
            self._check_row(row)
        return proposal["value"]

    @traitlets.validate("example")
    def _check_example(self, proposal: Any) -> int:
        return proposal["value"] if proposal["value"] == -1 else self._check_row(proposal["value"])

    @traitlets.validate("labels", "notes")
    def _check_numbered(self, proposal: Any) -> dict[str, str]:
        self._numbers(proposal["value"])
        return proposal["value"]

    @traitlets.validate("stars")
    def _check_stars(self, proposal: Any) -> list[int]:
        return [self.npeff.check_component(k) for k in proposal["value"]]

    @traitlets.validate("sort")
    def _check_sort(self, proposal: Any) -> str:
        return _one_of(proposal["value"].removeprefix("-"), SORTS, "sort", proposal["value"])

    @traitlets.validate("order")
    def _check_order(self, proposal: Any) -> str:
        return _one_of(proposal["value"], self.overview["orders"], "order")

    @traitlets.validate("strip")
    def _check_strip(self, proposal: Any) -> str:
        return _one_of(proposal["value"], ["", *(column["name"] for column in self.overview["columns"])], "strip")

    @traitlets.validate("panel")
    def _check_panel(self, proposal: Any) -> str:
        return _one_of(proposal["value"], self.panels or PANELS, "panel")

    def _check_row(self, row: int) -> int:
        n = len(self.npeff.coefficients_)
        if not 0 <= row < n:
            raise ValueError(f"example {row} does not exist: this decomposition has {n} (0 to {n - 1}).")
        return row

    def _numbers(self, by_number: dict[str, Any]) -> dict[int, Any]:
        return {self.npeff.check_component(_number(key)): value for key, value in by_number.items()}

    @traitlets.observe("labels", "notes")
    def _keep(self, change: Any) -> None:
        setattr(self.npeff, change["name"], {int(k): v for k, v in change["new"].items() if v})

    @traitlets.observe("stars")
    def _keep_stars(self, change: Any) -> None:
        self.npeff.stars = set(change["new"])

    # ------------------------------------------------------------------------------------------------------------------- pictures

    def to_html(self, path: str | os.PathLike) -> Path:
        """One offline file, still interactive.

        What was computed so far (:meth:`npeff_nb.NPEFF.profile`) is in it; what needs the model says so.
        """
        return write_page(self.npeff, path, bundle=self._desk.bundle, panels=list(self.panels), **self.state)

    def parameter_map(self) -> go.Figure:
        """The layer × matrix map of the component in focus as a Plotly figure."""
        from npeff_nb.widgets.figures import parameter_map

        if self.component not in self.npeff.profiles:  # known already: shown without a model, and without torch
            self.npeff.profile(self.component)
        return parameter_map(self.npeff, self.component)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        made = super()._repr_mimebundle_(**kwargs)
        if made is None:
            return None
        data, metadata = made if isinstance(made, tuple) else (made, {})
        # A live notebook prefers the widget; GitHub and nbconvert show the table.
        return data | {"text/html": fallback(self.npeff, self.overview)}, metadata

    def __repr__(self) -> str:
        return f"Explorer(component={self.component}, strength={self.strength:g}, {len(self.selection)} examples picked)"

    def close(self) -> None:
        """Ends the widget and what still runs for it."""
        for event in list(self._cancelled.values()):
            event.set()
        for worker in self._workers.values():
            worker.shutdown(wait=False, cancel_futures=True)
        super().close()

    # ------------------------------------------------------------------------------------------------------------------- questions of the page

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        """Answers at once what is known; what needs the model goes to worker threads, so that the kernel stays free to hear Cancel."""
        if not isinstance(content, dict) or not isinstance(content.get("id"), str):
            return
        asked = content["id"]
        if content.get("ask") == "cancel":
            event = self._cancelled.get(asked)
            if event is not None:
                event.set()
            return
        event, pace = threading.Event(), self._desk.pace(content)
        if pace == "quick":
            self._answer(asked, content, event)
        else:
            self._cancelled[asked] = event
            self._workers[pace].submit(self._answer, asked, content, event)

    def _answer(self, asked: str, content: dict[str, Any], event: threading.Event) -> None:
        last = 0.0

        def tell(done: int, total: int, note: str, partial: Any = None) -> None:
            nonlocal last
            if event.is_set():
                raise Cancelled
            if partial is not None or time.monotonic() - last >= TELL_EVERY:
                last = time.monotonic()
                known = {} if partial is None else {"partial": sendable(partial)}
                self.send({"id": asked, "progress": {"done": done, "total": total, "note": note}} | known)

        try:
            if event.is_set():  # cancelled while it waited for its turn: a slider moved on, another component was chosen
                raise Cancelled
            answer, parts = self._desk.answer(content, tell)
            self.send({"id": asked, "answer": answer}, parts)
        except Cancelled:
            self.send({"id": asked, "error": "cancelled"})
        except KeyboardInterrupt:  # the kernel was interrupted while it answered on the cells' own thread
            self.send({"id": asked, "error": "the kernel was interrupted"})
        except Exception as error:  # noqa: BLE001 - whatever it is, the page shows it in place instead of waiting for ever
            self.send({"id": asked, "error": sendable(str(error)) or type(error).__name__})
        finally:
            self._cancelled.pop(asked, None)


def _number(key: str) -> Any:
    """A component's number; what is none stays as it is, so that the error says it."""
    return int(key) if key.lstrip("-").isdigit() else key


def _on_slider(value: float) -> float:
    if not (math.isfinite(value) and SLIDER["low"] <= value <= SLIDER["high"]):
        raise ValueError(
            f"strength {value} is not on this explorer's slider, which goes from {SLIDER['low']:g} to {SLIDER['high']:g}; "
            "nb.perturb(model, npeff.direction(k), strength) takes any"
        )
    return value


def _one_of(value: str, allowed: Any, name: str, given: str | None = None) -> str:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} does not exist; choose one of {', '.join(map(repr, allowed))}")
    return value if given is None else given


def _check_names(state: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    for name in state:
        if name not in allowed:
            raise TypeError(f"{what} has no argument {name!r}; it takes {', '.join(allowed)}")


def explore(npeff: NPEFF, **state: Any) -> Explorer:
    """Opens the explorer on a fitted decomposition.

    Parameters
    ----------
    state : what to begin with: any of the values that :attr:`Explorer.state` has, such as ``component=3`` or ``panel="heatmap"``.

    Raises
    ------
    TypeError, ValueError
        Another argument, something that is no fitted NPEFF, or a value that does not exist.
    """
    return Explorer(npeff, **state)
