"""The bar in a notebook: what the page gets, how often, and what stays when the work has ended."""

import contextvars
import threading

import pytest

from npeff_nb._progress import At, Bar, Cancelled, in_notebook
from npeff_nb.widgets import progress
from npeff_nb.widgets.progress import LONGEST, TELL_EVERY, NotebookBar, ProgressWidget, _Rate, beside_cells


class Place:
    """Where a notebook shows something, and shows something else later."""

    def __init__(self):
        self.shown = []

    def update(self, data, raw):
        assert raw
        self.shown.append(data)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def place(monkeypatch):
    place = Place()

    def display(data, metadata, raw, display_id):
        assert raw and display_id
        place.shown.append(data)
        return place

    monkeypatch.setattr(progress, "display", display)
    return place


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.fixture
def widgets(monkeypatch):
    """Widgets that were made, with every state they had."""
    made = []

    class Recorded(ProgressWidget):
        def __init__(self, at):
            self.sent, self.closed = [], False
            super().__init__(at)
            self.observe(lambda change: self.sent.append(change["new"]), names="at")
            made.append(self)

        def close(self):
            self.closed = True
            super().close()

    monkeypatch.setattr(progress, "ProgressWidget", Recorded)
    return made


def test_page_is_told_five_times_a_second_at_most_and_a_line_remains(place, clock, widgets):
    at = At("Fishers", 0, 1000, "example")
    bar = NotebookBar(at)
    for step in range(1000):
        clock.now = 0.01 * (step + 1)
        at.done = step + 1
        bar.tell(at)
    bar.end("Fishers: 1000 examples in 10 s")
    (widget,) = widgets
    assert len(widget.sent) <= 10 / TELL_EVERY + 1
    assert widget.sent[-1]["end"] == "Fishers: 1000 examples in 10 s"
    # A hundred a second, and all that is told counts them exactly.
    assert all(said["left"] == pytest.approx((1000 - said["done"]) / 100, abs=0.06) for said in widget.sent)
    assert widget.closed
    first, last = place.shown
    assert first["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert first["text/plain"] == "Fishers: was running when this was saved"
    assert last == {"text/plain": "Fishers: 1000 examples in 10 s", "text/html": "<span>Fishers: 1000 examples in 10 s</span>"}


def test_last_words_are_short_and_inert(place, widgets):
    NotebookBar(At("x", 0, 2, "example")).end("<img src=x onerror=alert(1)>" + "é" * 10_000)
    last = place.shown[-1]
    assert len(last["text/plain"]) == LONGEST and last["text/plain"].endswith("…")
    assert "<img" not in last["text/html"] and len(last["text/html"]) < LONGEST + 100


def test_time_left_follows_the_pace_and_not_what_lay_in_a_cache():
    rate = _Rate()
    at = At("Fishers", 0, 2000, "example")
    assert rate.left(at) is None
    at.done = 1000
    rate.see(at, 0.3)  # from a cache
    for second in range(1, 101):
        at.done = 1000 + 5 * second
        rate.see(at, second + 0.3)
    # Twin: tqdm's weights, written out. 500 examples are left at 5 a second, the cache still counts by 0.95 to the hundredth.
    weights = [0.95 ** (100 - i) for i in range(101)]
    units = sum(w * u for w, u in zip(weights, [1000] + [5] * 100, strict=True))
    seconds = sum(w * s for w, s in zip(weights, [0.3] + [1.0] * 100, strict=True))
    assert rate.left(at) == pytest.approx(500 * seconds / units, abs=0.06)
    assert 60 < rate.left(at) <= 100


def test_a_new_part_begins_to_count_at_nothing_and_endless_work_has_no_time_left():
    rate = _Rate()
    at = At("start 1", 40, None, "iteration")
    rate.see(at, 1)
    assert rate.left(at) is None
    rate.see(At("start 2", 2, 4, "iteration"), 2)
    assert rate.left(At("start 2", 2, 4, "iteration")) > 0


def test_button_is_heard_on_any_thread_and_the_work_stops(place, widgets, monkeypatch):
    monkeypatch.setattr("npeff_nb._progress.in_notebook", lambda: True)
    answers = []
    monkeypatch.setattr(ProgressWidget, "send", lambda self, content, buffers=None: answers.append(content))
    with pytest.raises(Cancelled, match=r"^2 of 5 fits done$"), Bar(True, 5, "stability", "fit") as bar:
        bar.add(1)
        for message in ({"ask": "hear"}, {"ask": "cancel"}):
            heard = threading.Thread(target=lambda message=message: widgets[0]._on_message(None, message, []))
            heard.start()
            heard.join()
        bar.add(1)
    assert answers == [{"heard": True}, {"heard": True}]
    assert place.shown[-1]["text/plain"].startswith("stability: cancelled after 2 of 5 fits, ")


@pytest.mark.parametrize("message", [None, "cancel", {"ask": "hear"}, {"ask": ["cancel"]}, {}])
def test_other_messages_stop_nothing(message, place):
    widget = ProgressWidget({})
    widget._on_message(None, message, [])
    assert not widget.stop.is_set()


def test_messages_go_beside_cells():
    """As in a kernel: the running cell's request is a variable of the context, and what is sent has to be without it."""
    variable = contextvars.ContextVar("shell_parent")
    variable.set({"header": {"msg_id": "a cell"}})
    assert beside_cells().run(variable.get) == {}
    assert variable.get() == {"header": {"msg_id": "a cell"}}


def test_a_script_is_no_notebook():
    assert not in_notebook()
