"""One row a component: what its top examples have in common, in their words and in the columns of their table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from npeff_nb.fisher.predictions import gold_labels, predictions_of

if TYPE_CHECKING:
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

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?", re.UNICODE)


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


def purity(values: np.ndarray, top: np.ndarray, given: np.ndarray | None = None, seed: int = 0) -> Purity:
    """Purity of ``values`` (n,) among the examples ``top`` against chance.

    Chance is a draw of as many examples at random; with ``given`` (n,), at random among the examples whose ``given`` is the same: then only what goes
    beyond that column counts.  The draws are without replacement and seeded.
    """
    codes, names = pd.factorize(values)
    n_values = len(names)
    counts = np.bincount(codes[top][codes[top] >= 0], minlength=n_values)
    share = counts.max() / len(top)
    rng = np.random.default_rng(seed)
    groups = np.zeros(len(codes), dtype=int) if given is None else pd.factorize(given)[0]
    pools = [(np.flatnonzero(groups == g), int((groups[top] == g).sum())) for g in np.unique(groups[top])]
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        some = np.concatenate([rng.choice(pool, size, replace=False) for pool, size in pools])
        drawn[i] = np.bincount(codes[some][codes[some] >= 0], minlength=n_values).max() / len(top)
    # The usual correction: the observed set is itself one of the possible draws.
    return Purity(str(names[counts.argmax()]), float(share), float(drawn.mean()), float((1 + (drawn >= share - 1e-12).sum()) / (1 + DRAWS)))


def distinguishing_words(texts: list[str], top: np.ndarray, most: int = 3) -> list[str]:
    """Words that stand in many top texts and in few of the others, in the order in which people write them."""
    words = [[w.casefold() for w in _WORD.findall(text)] for text in texts]
    everywhere: dict[str, int] = {}
    for text in words:
        for word in set(text):
            everywhere[word] = everywhere.get(word, 0) + 1
    here: dict[str, list[int]] = {}
    for i in top:
        for word in set(words[i]):
            here.setdefault(word, []).append(words[i].index(word))
    # Difference of the two shares: a rare word that stands in two top examples says less than "how" in all of them.
    gain = {w: len(at) / len(top) - everywhere[w] / len(words) for w, at in here.items() if len(at) >= 2}
    best = sorted(gain, key=lambda w: (-gain[w], w))
    kept = [w for w in best if gain[w] >= max(0.15, 0.4 * gain[best[0]])][:most]
    return sorted(kept, key=lambda w: np.mean(here[w]))


def default_label(npeff: Factorisation, k: int) -> str:
    """A name for a component from what its top examples share: their words, or else their label, or else nothing but the number."""
    top = npeff.top_examples(k, TOP)
    if npeff.examples is None or not len(top):
        return f"component {k}" if len(top) else "unused"
    if "text" in npeff.examples.columns:
        words = distinguishing_words(npeff.examples["text"].tolist(), top)
        if words:
            return " · ".join(words)
    columns = label_columns(npeff.examples)
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
    for k in range(W.shape[1]):
        best = npeff.top_examples(k, top)
        row = {
            "component": k,
            "name": npeff.labels.get(k) or default_label(npeff, k),
            "share": float(npeff.component_shares_[k]) / explained,
            "examples": int((W[:, k] >= USED).sum()),
        }
        if predictions is not None and len(best):
            row["prediction"] = str(pd.Series(predictions[best]).mode().iloc[0])
            if gold is not None:
                known = ~pd.isna(gold[best])
                row["accuracy"] = float((gold[best] == predictions[best])[known].mean()) if known.any() else float("nan")
        for at, column in enumerate(columns if len(best) else []):
            values = npeff.examples[column].astype(object).to_numpy()
            found = purity(values, best, None if at == 0 else npeff.examples[columns[0]].astype(object).to_numpy())
            row |= {column: found.name, f"{column} purity": found.share, f"{column} expected": found.expected, f"{column} p": found.p_value}
        profile = npeff.profiles.get(k)
        if profile is not None and profile["edit"] is not None:
            row |= {"kl_ratio +": profile["edit"]["kl_ratio"]["+"], "kl_ratio −": profile["edit"]["kl_ratio"]["-"]}
        if npeff.examples is not None and "text" in npeff.examples.columns and len(best):
            row["example"] = npeff.examples["text"].iloc[best[0]]
        rows.append(row)
    return pd.DataFrame(rows)
