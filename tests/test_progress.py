"""Bars: what they count, what they say at the end, and who may stop the work."""

import subprocess
import sys

import pytest

from npeff_nb import _progress
from npeff_nb._progress import At, Bar, Cancelled, span


class Recorder:
    """A face that keeps what it is shown, and presses Cancel when it is told to."""

    def __init__(self):
        self.told, self.ended, self.pressed = [], None, False

    def tell(self, at):
        self.told.append((at.what, at.done, at.now, at.note))

    def cancelled(self):
        return self.pressed

    def end(self, words):
        self.ended = words


@pytest.fixture
def face(monkeypatch):
    face = Recorder()
    monkeypatch.setattr(_progress, "_face", lambda at: face)
    return face


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (1, "1 s"), (54.4, "54 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3599.7, "1 h 0 min"), (4350, "1 h 12 min")],
)
def test_spans_are_said_as_people_say_them(seconds, said):
    assert span(seconds) == said


def test_units_are_counted_in_the_plural():
    assert At("", 1, None, "fit").so_far() == "1 fit"
    assert At("", 2, 3, "pass").so_far() == "2 of 3 passes"
    assert At("", 0, 1, "example").so_far() == "0 of 1 example"


def test_last_words_of_work_that_was_finished(face, monkeypatch):
    times = iter([100.0, 154.2])
    monkeypatch.setattr(_progress, "monotonic", lambda: next(times))
    with Bar(True, 2000, "Fishers", "example") as bar:
        bar.add(1999)
        bar.add(1)
    assert face.told == [("Fishers", 1999, "", ""), ("Fishers", 2000, "", "")]
    assert face.ended == "Fishers: 2000 examples in 54 s"


def test_cancel_stops_at_the_next_piece_and_says_what_remains(face):
    said = "310 of 2000 examples done; they are in the cache"
    with pytest.raises(Cancelled, match=f"^{said}$") as caught, Bar(True, 2000, "Fishers", "example", "they are in the cache") as bar:
        bar.add(300)
        face.pressed = True
        bar.add(10)
    assert face.ended.startswith("Fishers: cancelled after 310 of 2000 examples, ")
    assert caught.value._render_traceback_() == [f"Cancelled: {said}"]
    assert Cancelled()._render_traceback_() == ["Cancelled"]


def test_cancel_after_the_last_piece_is_too_late(face):
    face.pressed = True
    with Bar(True, 3, "Fishers", "example") as bar:
        bar.add(3)
    assert face.ended.startswith("Fishers: 3 examples in ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "Sweep: cancelled after 1 of 4 forwards, 0.0 s"),
        (ValueError("no such layer"), "Sweep: failed after 1 of 4 forwards: ValueError: no such layer"),
    ],
)
def test_last_words_of_work_that_was_not_finished(face, error, said):
    with pytest.raises(type(error)), Bar(True, 4, "Sweep", "forward") as bar:
        bar.add(1)
        raise error
    assert face.ended == said


def test_pieces_with_names_and_parts_counted_anew(face):
    with Bar(True, None, "fit", "iteration") as bar:
        bar.what = "component 3"
        bar.add(1)
        bar.begin("start 2 of 2")
        bar.add(5, "explained=0.4")
    assert face.told == [("fit", 1, "component 3", ""), ("start 2 of 2", 5, "", "explained=0.4")]
    assert face.ended.startswith("fit: 6 iterations in ") and face.ended.endswith(" · explained=0.4")


def test_a_function_is_told_and_no_bar_is_drawn(face):
    told = []
    with Bar(lambda *now: told.append(now), 2, "Sweep", "forward") as bar:
        bar.what = "component 1"
        bar.add(2)
    assert told == [(0, 2, "Sweep"), (2, 2, "component 1")]
    assert face.told == [] and face.ended is None


@pytest.mark.parametrize(("progress", "total"), [(False, 5), (True, 0)])
def test_nothing_is_shown_unasked_or_of_nothing(progress, total, face, capsys):
    with Bar(progress, total, "Fishers", "example") as bar:
        bar.add(0)
    assert face.told == [] and face.ended is None
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_there_is_tqdms_line(capsys):
    with Bar(True, 3, "numbers of components", "fit") as bar:
        bar.add(1, "explained=0.5")
        bar.begin("again")
        bar.add(3)
    said = capsys.readouterr()
    assert said.out == ""
    assert "numbers of components:" in said.err and "again: 100%" in said.err and "3/3" in said.err


def test_scripts_load_no_widgets():
    code = """
import sys
from npeff_nb._progress import Bar, in_notebook
assert not in_notebook()
with Bar(True, 1, "Fishers", "example") as bar:
    bar.add(1)
print(sorted({"anywidget", "IPython", "npeff_nb.widgets.progress"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True, stderr=subprocess.DEVNULL).strip() == "[]"
