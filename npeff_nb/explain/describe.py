"""One row a component: what its top examples have in common, in their words and in the columns of their table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb.explain.enriched import Coded, Corpus
from npeff_nb.fisher.predictions import gold_labels, predictions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npeff_nb.decomposition.factorisation import Factorisation

USED = 0.05
"""An example uses a component when its coefficient is at least this (a unit-norm Fisher that is one component has coefficient 1)."""
TOP = 20
"""Examples that a component is described by."""
SHOWN = 16
"""Top examples of a component whose tokens and predictions are shown."""
DRAWS = 400
"""Random draws behind the purity that is expected by chance."""
MOST_VALUES = 200
"""A column with more different values than this is no label."""


@dataclass(frozen=True)
class Purity:
    """How alike the top examples are in one column."""

    name: str  # commonest value
    share: float  # its share among the top examples
    expected: float  # mean share of the commonest value among random examples (of the same labels, where `given` was)
    p_value: float  # share of random draws that were at least as pure


def label_columns(examples: pd.DataFrame) -> list[str]:
    """Columns that can serve as labels, coarsest first: few values that repeat, and neither the texts nor the split."""
    found = {}
    for column in examples.columns:
        if column in {"text", "text_pair", "split"}:
            continue
        values = examples[column].dropna()
        if pd.api.types.is_float_dtype(values) or not all(isinstance(v, (str, int, np.integer, bool)) for v in values):
            continue
        if 2 <= values.nunique() <= min(MOST_VALUES, len(examples) // 2):
            found[column] = values.nunique()
    return sorted(found, key=lambda c: (c != "label", found[c]))


def purity(values: Any, top: np.ndarray, given: Any = None, seed: int = 0) -> Purity:
    """Purity of ``values`` (n,) among the examples ``top`` against chance.

    Chance is a draw of as many examples at random; with ``given`` (n,), at random among the examples whose ``given`` is the same: then only what goes
    beyond that column counts.  The draws are without replacement and seeded.  Both columns may be :class:`~npeff_nb.explain.enriched.Coded` already.
    """
    values = Coded.of(values)
    codes, n_values = values.codes, len(values.names)
    counts = np.bincount(codes[top][codes[top] >= 0], minlength=n_values)
    share = counts.max() / len(top)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((DRAWS, n_values + 1), dtype=int)  # the last stands for what is not known
    groups = {0: np.arange(len(codes))} if given is None else Coded.of(given).members
    of_top = np.zeros(len(codes), dtype=int) if given is None else Coded.of(given).codes
    for group, size in zip(*np.unique(of_top[top], return_counts=True), strict=True):
        there = np.bincount(codes[groups[int(group)]] % (n_values + 1), minlength=n_values + 1)
        drawn += rng.multivariate_hypergeometric(there, size, DRAWS, method="count")
    commonest = drawn[:, :n_values].max(1) / len(top)
    # The usual correction: the observed set is itself one of the possible draws.
    p_value = float((1 + (commonest >= share - 1e-12).sum()) / (1 + DRAWS))
    return Purity(str(values.names[counts.argmax()]), float(share), float(commonest.mean()), p_value)


def distinguishing_words(texts: list[str], top: np.ndarray, most: int = 3) -> list[str]:
    """Words that stand in many top texts and in few of the others, in the order in which people write them."""
    return Corpus(texts).distinguishing(top, most)


def default_label(
    npeff: Factorisation, k: int, corpus: Corpus | None = None, top: np.ndarray | None = None, columns: Sequence[str] | None = None
) -> str:
    """A name for a component from what its top examples share: their words, or else their label, or else nothing but the number.

    Whoever asks about many components may give the texts, the top examples and the label columns.
    """
    top = npeff.top_examples(k, TOP) if top is None else top
    if npeff.examples is None or not len(top):
        return f"component {k}" if len(top) else "unused"
    if "text" in npeff.examples.columns:
        corpus = Corpus(npeff.examples["text"].tolist()) if corpus is None else corpus
        words = corpus.distinguishing(top)
        if words:
            return " · ".join(words)
    columns = label_columns(npeff.examples) if columns is None else columns
    if columns:
        return f"mostly {npeff.examples[columns[0]].iloc[top].mode().iloc[0]}"
    return f"component {k}"


def component_table(npeff: Factorisation, top: int = TOP) -> pd.DataFrame:
    """One row a component, most explained energy first.

    Columns: ``component``; ``name`` (given by the person, or the default); ``share`` of the explained energy; ``examples`` that use it
    (coefficient ≥ 0.05);
    ``prediction``, the commonest among the top examples; ``accuracy`` on them, where the label column holds class names; for every label column
    its commonest value, ``… purity`` and ``… expected`` purity: for the first label column by chance, for finer ones given the first;
    ``kl_ratio +`` and ``kl_ratio −`` where the component was profiled; ``example``, the text that uses it most.
    """
    W = npeff.coefficients_
    explained = max(float(npeff.component_shares_.sum()), np.finfo(float).tiny)
    rows = []
    predictions = predictions_of(npeff)
    gold = gold_labels(npeff.examples, npeff.classes)
    columns = [] if npeff.examples is None else label_columns(npeff.examples)
    coded = {column: Coded.of(npeff.examples[column]) for column in columns}
    corpus = None if npeff.examples is None or "text" not in npeff.examples.columns else Corpus(npeff.examples["text"].tolist())
    for k in range(W.shape[1]):
        best = npeff.top_examples(k, top)
        row = {
            "component": k,
            "name": npeff.labels.get(k) or default_label(npeff, k, corpus, columns=columns),
            "share": float(npeff.component_shares_[k]) / explained,
            "examples": int((W[:, k] >= USED).sum()),
        }
        if predictions is not None and len(best):
            row["prediction"] = str(pd.Series(predictions[best]).mode().iloc[0])
            if gold is not None:
                known = ~pd.isna(gold[best])
                row["accuracy"] = float((gold[best] == predictions[best])[known].mean()) if known.any() else float("nan")
        for at, column in enumerate(columns if len(best) else []):
            found = purity(coded[column], best, None if at == 0 else coded[columns[0]])
            row |= {column: found.name, f"{column} purity": found.share, f"{column} expected": found.expected, f"{column} p": found.p_value}
        profile = npeff.profiles.get(k)
        if profile is not None and profile["edit"] is not None:
            row |= {"kl_ratio +": profile["edit"]["kl_ratio"]["+"], "kl_ratio −": profile["edit"]["kl_ratio"]["-"]}
        if npeff.examples is not None and "text" in npeff.examples.columns and len(best):
            row["example"] = npeff.examples["text"].iloc[best[0]]
        rows.append(row)
    return pd.DataFrame(rows)
