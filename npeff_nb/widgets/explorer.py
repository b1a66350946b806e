"""The explorer: one widget whose parts are linked, live in a notebook."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from npeff_nb.widgets.bundle import SLIDER, Bundle
from npeff_nb.widgets.page import fallback, static_text, write_page

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from npeff_nb.npeff import NPEFF

TELL_EVERY = 0.2
"""Seconds between two progress messages: a page needs no more, and a socket stays free."""
DIRECTIONS_KEPT = 4
"""Directions held for the slider (one has as many numbers as the parameters that took part)."""


class Explorer(anywidget.AnyWidget):
    """What a person sees and does, as plain values that can be read, set and observed.

    Attributes
    ----------
    component : the component in focus.
    strength : strength of the edit on the slider (L2; negative turns the component down).
    selection : rows of the examples that were picked.
    labels : names given to components, by number as text; kept in the decomposition and saved with it.
    theme : ``"auto"`` follows the notebook, ``"light"``, ``"dark"``.
    """

    # Text, not a path: a path would keep every instance alive and watch the file.
    _esm = static_text("explorer.js")
    _css = static_text("explorer.css")

    overview = traitlets.Dict().tag(sync=True)
    heat = traitlets.Bytes().tag(sync=True)
    component = traitlets.Int(0).tag(sync=True)
    strength = traitlets.Float(0.0).tag(sync=True)
    selection = traitlets.List(traitlets.Int()).tag(sync=True)
    labels = traitlets.Dict(key_trait=traitlets.Unicode(), value_trait=traitlets.Unicode()).tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], default_value="auto").tag(sync=True)

    def __init__(self, npeff: NPEFF, *, component: int = 0, strength: float = 0.0, selection: list[int] | None = None, theme: str = "auto") -> None:
        self.npeff = npeff
        self._bundle = Bundle(npeff)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="npeff-explorer")
        self._cancelled: dict[str, threading.Event] = {}
        self._directions: dict[int, Any] = {}
        super().__init__(
            overview=self._bundle.overview(live=npeff.subject is not None),
            heat=self._bundle.heat(),
            labels={str(k): v for k, v in npeff.labels.items()},
            component=component,
            strength=strength,
            selection=selection or [],
            theme=theme,
        )
        self.on_msg(self._on_message)

    # ------------------------------------------------------------------------------------------------------------------- plain values

    @traitlets.validate("component")
    def _check_component(self, proposal: Any) -> int:
        return self.npeff.check_component(proposal["value"])

    @traitlets.validate("strength")
    def _check_strength(self, proposal: Any) -> float:
        value = proposal["value"]
        if not (math.isfinite(value) and SLIDER["low"] <= value <= SLIDER["high"]):
            raise ValueError(
                f"strength {value} is not on this explorer's slider, which goes from {SLIDER['low']:g} to {SLIDER['high']:g}; "
                "nb.perturb(model, npeff.direction(k), strength) takes any"
            )
        return value

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> list[int]:
        n = len(self.npeff.coefficients_)
        for row in proposal["value"]:
            if not 0 <= row < n:
                raise ValueError(f"example {row} does not exist: this decomposition has {n} (0 to {n - 1}).")
        return proposal["value"]

    @traitlets.validate("labels")
    def _check_labels(self, proposal: Any) -> dict[str, str]:
        for key in proposal["value"]:
            self.npeff.check_component(int(key) if key.lstrip("-").isdigit() else key)
        return proposal["value"]

    @traitlets.observe("labels")
    def _keep_labels(self, change: Any) -> None:
        self.npeff.labels = {int(k): v for k, v in change["new"].items() if v}

    # ------------------------------------------------------------------------------------------------------------------- pictures

    def to_html(self, path: str | os.PathLike) -> Path:
        """One offline file, still interactive.

        What was computed so far (:meth:`npeff_nb.NPEFF.profile`) is in it; what needs the model says so.
        """
        return write_page(self.npeff, path, component=self.component, strength=self.strength, selection=list(self.selection), theme=self.theme)

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
        self._worker.shutdown(wait=False, cancel_futures=True)
        super().close()

    # ------------------------------------------------------------------------------------------------------------------- questions of the page

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        """Answers at once what is known; what needs the model goes to one worker thread, so that the kernel stays free to hear Cancel."""
        if not isinstance(content, dict) or not isinstance(content.get("id"), str):
            return
        asked, ask = content["id"], content.get("ask")
        if ask == "cancel":
            event = self._cancelled.get(asked)
            if event is not None:
                event.set()
            return
        try:
            if ask == "examples":
                n = len(self.npeff.coefficients_)
                rows = [row for row in content["rows"] if isinstance(row, int) and 0 <= row < n]
                self.send({"id": asked, "answer": [self._bundle.example(row) for row in rows]})
                return
            if ask not in {"component", "strength"}:
                raise ValueError(f"the page asked for {ask!r}, which this version does not know; restart the kernel after an update")
            k = self.npeff.check_component(content["component"])
            if ask == "component" and (k in self.npeff.profiles or self.npeff.subject is None):
                self.send({"id": asked, "answer": self._bundle.detail(k)})
                return
            event = self._cancelled[asked] = threading.Event()
            work = (lambda: self._profile(k, asked, event)) if ask == "component" else (lambda: self._run(k, float(content["strength"])))
            self._worker.submit(self._answer, asked, event, work)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page shows it in place instead of waiting for ever
            self.send({"id": asked, "error": str(error)})

    def _answer(self, asked: str, event: threading.Event, work: Callable[[], Any]) -> None:
        from npeff_nb._progress import Cancelled

        try:
            if event.is_set():  # cancelled while it waited for its turn: a slider moved on, another component was chosen
                raise Cancelled
            self.send({"id": asked, "answer": work()})
        except Cancelled:
            self.send({"id": asked, "error": "cancelled"})
        except Exception as error:  # noqa: BLE001 - as above
            self.send({"id": asked, "error": str(error) or type(error).__name__})
        finally:
            self._cancelled.pop(asked, None)

    def _profile(self, k: int, asked: str, event: threading.Event) -> dict[str, Any]:
        from npeff_nb._progress import Cancelled
        from npeff_nb.explain.profile import profile

        last = 0.0
        # What is known without the model is shown meanwhile.
        partial = self._bundle.detail(k, "")

        def tell(done: int, total: int, note: str) -> None:
            nonlocal last
            if event.is_set():
                raise Cancelled
            if time.monotonic() - last >= TELL_EVERY:
                last = time.monotonic()
                self.send({"id": asked, "progress": {"done": done, "total": total, "note": note}} | ({"partial": partial} if done == 0 else {}))

        profile(self.npeff, k, tell)
        return self._bundle.detail(k)

    def _run(self, k: int, strength: float) -> dict[str, Any]:
        """StrengthResult: the model really run at this strength on the sets of the component's profile."""
        import numpy as np

        from npeff_nb.directions.lift import direction, subject_of
        from npeff_nb.directions.perturb import edited_logits, kl
        from npeff_nb.explain.profile import profile
        from npeff_nb.fisher.predictions import probabilities

        subject = subject_of(self.npeff)
        edit = profile(self.npeff, k)["edit"]
        if k not in self._directions:
            while len(self._directions) >= DIRECTIONS_KEPT:
                self._directions.pop(next(iter(self._directions)))
            self._directions[k] = direction(self.npeff, k)
        rows = np.unique(np.concatenate([edit["top"], edit["baseline"], edit["shown"]]))
        at = {int(row): i for i, row in enumerate(rows)}
        original = subject.logits(rows).numpy()
        moved = edited_logits(subject, self._directions[k], [strength], rows)[0]
        distance = kl(moved, original, self.npeff.family)
        shown = probabilities(moved[[at[i] for i in edit["shown"]]], self.npeff.family)
        return {
            "strength": strength,
            "kl_top": float(distance[[at[i] for i in edit["top"]]].mean()),
            "kl_baseline": float(distance[[at[i] for i in edit["baseline"]]].mean()),
            "probabilities": np.round(shown, 5).tolist(),
        }


def explore(npeff: NPEFF, **state: Any) -> Explorer:
    """Opens the explorer on a fitted decomposition.

    Parameters
    ----------
    state : any of ``component``, ``strength``, ``selection``, ``theme`` to begin with.

    Raises
    ------
    TypeError, ValueError
        Another argument, something that is no fitted NPEFF, or a value that does not exist.
    """
    allowed = ("component", "strength", "selection", "theme")
    for name in state:
        if name not in allowed:
            raise TypeError(f"explore() has no argument {name!r}; it takes {', '.join(allowed)}")
    from sklearn.utils.validation import check_is_fitted

    from npeff_nb.npeff import NPEFF

    if not isinstance(npeff, NPEFF):
        raise TypeError(f"explore() takes a fitted NPEFF, not a {type(npeff).__name__}")
    check_is_fitted(npeff, "components_")
    return Explorer(npeff, **state)
