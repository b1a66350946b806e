"""The explorer's Python side: plain values, questions of the page, and what it refuses."""

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
    ],
)
def test_values_that_do_not_exist_are_refused_and_change_nothing(explorer, name, value, words):
    before = getattr(explorer, name)
    with pytest.raises(ValueError, match=words):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


def test_arguments_that_do_not_exist_are_refused(npeff):
    with pytest.raises(TypeError, match=r"explore\(\) has no argument 'componnent'; it takes component, strength, selection, theme"):
        nb.explore(npeff, componnent=1)
    with pytest.raises(TypeError, match="takes a fitted NPEFF, not a dict"):
        nb.explore({})


def test_labels_are_kept_in_the_decomposition_and_saved(explorer, npeff, tmp_path):
    explorer.labels = {"1": "my name", "2": ""}
    assert npeff.labels == {1: "my name"}
    assert npeff.component_table()["name"][1] == "my name"
    assert nb.load(npeff.save(tmp_path / "x.npeff")).labels == {1: "my name"}


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
    asking.ask(ask="strength", component=0, strength=-0.6)
    answer = asking.answer()["answer"]
    edit = npeff.profiles[0]["edit"]
    at = edit["strengths"].index(-0.6)
    # The same model on the same examples; batches are composed differently, so float32 rounding differs.
    assert answer["kl_top"] == pytest.approx(edit["kl_top"][at], rel=1e-3, abs=1e-6)
    assert answer["kl_baseline"] == pytest.approx(edit["kl_baseline"][at], rel=1e-3, abs=1e-6)
    torch.testing.assert_close(torch.tensor(answer["probabilities"]), torch.tensor(edit["probabilities"][at]), atol=1e-3, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_examples_are_answered_at_once(asking, npeff):
    asking.ask(ask="examples", rows=[2, 0, 10**6, "x"])
    rows = asking.said[0]["answer"]
    assert [row["row"] for row in rows] == [2, 0]
    assert 0 <= rows[0]["unexplained"] <= 1


def test_cancel_stops_a_profile_and_keeps_nothing(asking, npeff, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(npeff, k, tell):
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
    explorer._worker.submit(busy.wait, 30)
    monkeypatch.setattr("npeff_nb.explain.profile.profile", lambda *_: pytest.fail("was run"))
    asking.ask(ask="component", component=2)
    asking.ask(ask="cancel")
    busy.set()
    assert asking.answer()["error"] == "cancelled"


def test_failure_is_answered_in_words(asking, monkeypatch):
    def fails(*_):
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
