"""What logits say, without torch: for the rooms that only show results, on machines that run no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

REST = "anything else"
FIRST_GUESS = "guess 1"
"""Where few of many classes are kept, they are another example's other classes: no label speaks of them."""


def probabilities(logits: np.ndarray, family: str = "categorical") -> np.ndarray:
    """Probabilities (n, c) float64: softmax of logits, or, for independent labels (``"bernoulli"``), the sigmoid of each."""
    z = logits.astype(np.float64)
    if family == "bernoulli":
        return np.exp(-np.logaddexp(0, -z))
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def predicted_classes(logits: np.ndarray, classes: Sequence[str], family: str = "categorical") -> np.ndarray:
    """Name of the most probable class of each example, (n,); of independent labels, all that are more likely than not, or ``"none"``."""
    if family == "bernoulli":
        return np.asarray([" + ".join(name for name, z in zip(classes, row, strict=True) if z > 0) or "none" for row in logits], dtype=object)
    return np.asarray(classes, dtype=object)[logits.argmax(1)]


def decided(fishers: Any, logits: np.ndarray) -> np.ndarray:
    """What logits (m, c) predict: (m,) the number of the likeliest outcome, or, of independent labels, (m, c) which are more likely than not.

    Where few of many classes are kept, *anything else* is no prediction: the likeliest single outcome is.
    """
    if fishers.family == "bernoulli":
        return logits > 0
    return logits[:, : -1 if "outcomes" in fishers.choices else None].argmax(1)


def predictions_of(fishers: Any) -> np.ndarray | None:
    """Name of what each example was predicted to be, (n,), for PEFs and for what is made of them; None without logits."""
    if fishers.logits is None:
        return None
    outcomes = fishers.choices.get("outcomes")
    if outcomes is None:
        return predicted_classes(fishers.logits, fishers.classes, fishers.family)
    names = {int(code): name for code, name in fishers.facts.get("outcome_names", {}).items()}
    if fishers.family == "bernoulli":
        rows = [
            [names[c] for c, z in zip(of_one, row, strict=True) if c >= 0 and z > 0] for of_one, row in zip(outcomes, fishers.logits, strict=True)
        ]
        return np.asarray([" + ".join(row) or "none" for row in rows], dtype=object)
    best = fishers.logits.argmax(1)
    at = np.minimum(best, outcomes.shape[1] - 1)
    # "Anything else" is no prediction: the likeliest single outcome is.
    at = np.where(best < outcomes.shape[1], at, fishers.logits[:, :-1].argmax(1))
    return np.asarray([names[int(code)] for code in outcomes[np.arange(len(at)), at]], dtype=object)


def gold_labels(examples: pd.DataFrame | None, classes: Sequence[str] | None) -> np.ndarray | None:
    """The examples' own labels as class names (n,), when there is a column ``label`` that speaks of the model's classes."""
    if examples is None or "label" not in examples.columns or not classes or classes[0] == FIRST_GUESS:
        return None
    values = examples["label"]
    if not all(isinstance(value, (str, int, float, np.integer, np.floating)) or value is None for value in values):
        return None
    names = np.asarray(classes, dtype=object)
    known = set(values.dropna())
    if known and known <= set(classes):
        return values.astype(object).to_numpy()
    if pd.api.types.is_integer_dtype(values) and values.between(0, len(names) - 1).all():
        return names[values.to_numpy()]
    return None


def probability_of_prediction(fishers: Any) -> np.ndarray:
    """(n,), of what :func:`predictions_of` names: never of *anything else*, and of independent labels, of all of them together."""
    p = probabilities(fishers.logits, fishers.family)
    if fishers.family == "bernoulli":
        return np.maximum(p, 1 - p).prod(1)
    return (p[:, :-1] if "outcomes" in fishers.choices else p).max(1)
