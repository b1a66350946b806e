"""The explorer's Python side: plain values, questions of the page, and what it refuses."""

import json
import threading
import time

import pytest
import torch

import npeff_nb as nb


class Page:
    """Stands in for the browser: asks, and waits for what comes back."""

    def __init__(self, explorer):
        self.explorer, self.said, self.news = explorer, [], threading.Condition()
        explorer.send = self._receive

    def _receive(self, message, buffers=None):
        with self.news:
            self.said.append(message)
            self.buffers = buffers
            self.news.notify_all()

    def ask(self, **question):
        self.explorer._on_message(self.explorer, {"id": "q", **question}, [])

    def answer(self, seconds=60):
        def ended():
            return any("answer" in m or "error" in m for m in self.said)

        with self.news:
            assert self.news.wait_for(ended, seconds), "no answer came"
        return next(m for m in self.said if "answer" in m or "error" in m)


@pytest.fixture
def explorer(npeff):
    made = nb.explore(npeff)
    yield made
    made.close()


@pytest.fixture
def asking(explorer):
    return Page(explorer)


def test_state_is_plain_values(explorer):
    explorer.component, explorer.strength, explorer.selection = 2, -0.5, [3, 1]
    assert (explorer.component, explorer.strength, explorer.selection) == (2, -0.5, [3, 1])


def test_state_can_be_observed(explorer):
    seen = []
    explorer.observe(lambda change: seen.append(change["new"]), names="component")
    explorer.component = 3
    assert seen == [3]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("component", 40, r"component 40 does not exist: this decomposition has 4 \(0 to 3\)\."),
        ("component", -1, r"component -1 does not exist"),
        ("strength", 3.0, r"strength 3\.0 is not on this explorer's slider, which goes from -1 to 1"),
        ("strength", float("nan"), r"strength nan is not on"),
        ("selection", [0, 99_999], r"example 99999 does not exist: this decomposition has \d+"),
        ("labels", {"9": "x"}, r"component 9 does not exist"),
        ("notes", {"x": "y"}, r"component x does not exist"),
        ("stars", [4], r"component 4 does not exist"),
        ("pinned", 4, r"component 4 does not exist"),
        ("others", {"1": 7.0}, r"strength 7\.0 is not on this explorer's slider"),
        ("example", 10**6, r"example 1000000 does not exist"),
        ("sort", "-size", r"sort 'size' does not exist; choose one of 'share', 'number'"),
        ("order", "by colour", r"order 'by colour' does not exist; choose one of 'strongest component'"),
        ("strip", "colour", r"strip 'colour' does not exist; choose one of '', 'label'"),
        ("panel", "layers", r"panel 'layers' does not exist; choose one of 'components', 'table'"),
    ],
)
def test_values_that_do_not_exist_are_refused_and_change_nothing(explorer, name, value, words):
    before = getattr(explorer, name)
    with pytest.raises(ValueError, match=words):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


def test_arguments_that_do_not_exist_are_refused(npeff):
    with pytest.raises(TypeError, match=r"explore\(\) has no argument 'componnent'; it takes panel, component, pinned, strength"):
        nb.explore(npeff, componnent=1)
    with pytest.raises(TypeError, match="takes a fitted NPEFF, not a dict"):
        nb.explore({})


def test_labels_are_kept_in_the_decomposition_and_saved(explorer, npeff, tmp_path):
    explorer.labels = {"1": "my name", "2": ""}
    assert npeff.labels == {1: "my name"}
    assert npeff.component_table()["name"][1] == "my name"
    assert nb.load(npeff.save(tmp_path / "x.npeff")).labels == {1: "my name"}


def test_notes_and_stars_are_kept_and_saved(explorer, npeff, tmp_path):
    explorer.notes, explorer.stars = {"2": "asks for a number"}, [3, 1]
    again = nb.explore(nb.load(npeff.save(tmp_path / "x.npeff")))
    assert again.notes == {"2": "asks for a number"} and again.stars == [1, 3]
    again.notes, again.stars = {}, []
    assert again.npeff.notes == {} and again.npeff.stars == set()


def test_a_file_of_the_first_release_has_neither_notes_nor_stars(npeff, tmp_path):
    path = npeff.save(tmp_path / "x.npeff")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["facts"]["notes"], manifest["facts"]["stars"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    loaded = nb.load(path)
    assert loaded.notes == {} and loaded.stars == set()


def test_state_is_replayed(explorer, npeff):
    explorer.state = {"component": 2, "pinned": 1, "strength": -0.25, "others": {"3": 0.5}, "selection": [4], "example": 4, "query": "how",
                      "sort": "-purity", "order": explorer.overview["orders"][1], "text": "who", "tokens": "sensitivity",
                      "panel": "heatmap"}  # fmt: skip
    assert nb.explore(npeff, **explorer.state).state == explorer.state
    again = eval(explorer.code("npeff"), {"nb": nb, "npeff": npeff})
    assert again.state == explorer.state
    assert nb.explore(npeff).code("mine") == "nb.explore(mine)"


@pytest.mark.parametrize(
    "name", ["ComponentTable", "CoefficientHeatmap", "ComponentMap", "TopExamples", "ParameterMap", "PerturbationLab", "OwnText", "TraceView"]
)
def test_parts_stand_alone(npeff, name):
    part = getattr(nb, name)(npeff, component=2)
    assert len(part.panels) == 1 and part.panel == part.panels[0] and part.component == 2
    assert part.code() == f"nb.{name}(npeff, component=2)"
    with pytest.raises(TypeError, match=rf"{name}\(\) has no argument 'colour'"):
        getattr(nb, name)(npeff, colour="red")


def test_the_page_can_be_asked_for(asking, npeff):
    asking.ask(ask="page", state={"component": 2, "panel": "map"})
    answer = asking.answer()["answer"]
    assert answer["name"] == f"{asking.explorer.overview['title']}.html" and '"component":2' in answer["text"]


def test_component_is_answered_after_progress_and_kept(asking, npeff):
    asking.ask(ask="component", component=1)
    answer = asking.answer()["answer"]
    assert answer["component"] == 1 and answer["sweep"] is not None and answer["unavailable"] is None
    first = asking.said[0]
    assert first["progress"]["done"] == 0 and first["partial"]["top"][0]["text"] == answer["top"][0]["text"]
    assert 1 in npeff.profiles
    asking.said.clear()
    asking.ask(ask="component", component=1)
    assert [list(m) for m in asking.said] == [["id", "answer"]]  # at once, without the worker


def test_strength_runs_the_model_and_leaves_it_alone(asking, npeff):
    model = npeff.subject.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    npeff.profile(0, progress=False)
    asking.ask(ask="strength", component=0, strengths={"0": -0.6})
    answer = asking.answer()["answer"]
    edit = npeff.profiles[0]["edit"]
    at = edit["strengths"].index(-0.6)
    # The same model on the same examples; batches are composed differently, so float32 rounding differs.
    assert answer["kl_top"] == pytest.approx(edit["kl_top"][at], rel=1e-3, abs=1e-6)
    assert answer["kl_baseline"] == pytest.approx(edit["kl_baseline"][at], rel=1e-3, abs=1e-6)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_release_does_not_wait_for_a_profile(asking, npeff):
    npeff.profile(0, progress=False)
    busy = threading.Event()
    asking.explorer._workers["background"].submit(busy.wait, 60)
    asking.ask(ask="strength", component=0, strengths={"0": 0.3})
    assert "answer" in asking.answer()
    busy.set()


def test_examples_are_answered_at_once(asking, npeff):
    asking.ask(ask="examples", rows=[2, 0, 10**6, "x"])
    rows = asking.said[0]["answer"]
    assert [row["row"] for row in rows] == [2, 0]
    assert 0 <= rows[0]["unexplained"] <= 1


def test_cancel_stops_a_profile_and_keeps_nothing(asking, npeff, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(npeff, k, tell, **_):
        tell(0, 2, "first")
        started.set()
        assert go_on.wait(30)
        tell(1, 2, "second")
        raise AssertionError("went on after Cancel")

    monkeypatch.setattr("npeff_nb.explain.profile.profile", slow)
    asking.ask(ask="component", component=2)
    assert started.wait(30)
    asking.ask(ask="cancel")
    go_on.set()
    assert asking.answer()["error"] == "cancelled"
    assert npeff.profiles == {}


def test_a_question_cancelled_in_the_queue_is_never_run(explorer, npeff, monkeypatch):
    asking, busy = Page(explorer), threading.Event()
    explorer._workers["background"].submit(busy.wait, 30)
    monkeypatch.setattr("npeff_nb.explain.profile.profile", lambda *_, **__: pytest.fail("was run"))
    asking.ask(ask="component", component=2)
    asking.ask(ask="cancel")
    busy.set()
    assert asking.answer()["error"] == "cancelled"


def test_failure_is_answered_in_words(asking, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("npeff_nb.explain.profile.profile", fails)
    asking.ask(ask="component", component=0)
    assert asking.answer()["error"] == "out of memory"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"ask": "component", "component": 9}, "component 9 does not exist"),
        ({"ask": "dance"}, "the page asked for 'dance'"),
        ({"ask": "component"}, "component"),
    ],
)
def test_bad_questions_are_answered(asking, question, words):
    asking.ask(**question)
    assert words in asking.answer()["error"]


def test_messages_that_are_no_questions_are_ignored(explorer):
    asking = Page(explorer)
    for message in (None, "x", {}, {"id": 3}, {"ask": "component"}):
        explorer._on_message(explorer, message, [])
    time.sleep(0.05)
    assert asking.said == []


def test_loaded_decomposition_says_what_is_missing_and_gets_it(npeff, tmp_path, bert, tokenizer):
    loaded = nb.load(npeff.save(tmp_path / "x.npeff"))
    asking = Page(nb.explore(loaded))
    asking.ask(ask="component", component=0)
    assert "npeff.attach(model, tokenizer)" in asking.answer()["answer"]["unavailable"]
    asking = Page(nb.explore(loaded.attach(bert, tokenizer)))
    asking.ask(ask="component", component=0)
    assert asking.answer()["answer"]["sweep"] is not None


def test_static_fallback_stands_beside_the_widget(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "<table>" in data["text/html"]
