"""What logits say, without torch: for the rooms that only show results, on machines that run no model."""

from __future__ import annotations

import numpy as np


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits (n, c), float64."""
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def predicted_classes(logits: np.ndarray, classes: list[str]) -> np.ndarray:
    """Name of the most probable class of each example, (n,)."""
    return np.asarray(classes, dtype=object)[logits.argmax(1)]
