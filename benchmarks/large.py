"""An invented decomposition of any size, saved as a real one would be: to see how pictures stand it.  No model is behind it.

``python benchmarks/large.py large.npeff --examples 100000 --components 512``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from npeff_nb.fisher.features import FeatureMap
from npeff_nb.npeff import NPEFF

QUESTIONS = ["how many", "what year", "where is", "who wrote", "why does", "what animal", "which city", "how do you", "what does", "when was"]
THINGS = ["river", "bridge", "novel", "candle", "lobster", "planet", "engine", "island", "painter", "law", "bone", "letter", "star", "city", "song"]
QUALITIES = ["old", "long", "red", "first", "lost", "tall", "quiet", "northern", "famous", "small", "deep", "early", "bright", "wooden", "last"]
COARSE, FINE = 6, 48
LAYERS, KINDS, SIDE = 6, ("attention query", "attention key", "attention value", "attention output", "MLP in", "MLP out"), 4
USED_BESIDES = 6
"""Components that an example uses beside its main one."""


def make(path: Path, examples: int, components: int, seed: int = 0) -> Path:
    """Writes the folder: every example has one main component and a few weak ones, and its words and labels go with the main one."""
    rng = np.random.default_rng(seed)
    n, r = examples, components
    popularity = rng.dirichlet(np.full(r, 0.7))
    main = rng.choice(r, size=n, p=popularity)
    W = np.zeros((n, r))
    rows = np.arange(n)
    for _ in range(min(USED_BESIDES, r)):
        W[rows, rng.integers(r, size=n)] = 0.15 * rng.random(n) ** 2
    W[rows, main] = 0.2 + 0.75 * rng.beta(2, 3, size=n)
    kinds = [(name, layer) for layer in range(LAYERS) for name in KINDS]
    d = SIDE * SIDE * len(kinds)
    H = rng.normal(size=(r, d)) + 2 * rng.normal(size=(COARSE, d))[np.arange(r) % COARSE]
    H /= np.linalg.norm(H, axis=1, keepdims=True)

    opening = np.array([f"{QUESTIONS[j % 10]} {QUALITIES[j // 10 % 15]} {THINGS[j // 7 % 15]}" for j in range(r)], dtype=object)
    ending = np.array([f"the {a} {b} of the {c}" for a in QUALITIES for b in THINGS for c in THINGS], dtype=object)
    text = opening[main] + " " + ending[rng.integers(len(ending), size=n)] + " number " + rows.astype(str).astype(object) + " ?"
    gold = main % COARSE
    predicted = np.where(rng.random(n) < 0.06, rng.integers(COARSE, size=n), gold)
    logits = rng.normal(size=(n, COARSE)).astype(np.float32)
    logits[rows, predicted] += 5

    npeff = NPEFF(r, random_state=seed)
    npeff._adopt(None)
    npeff.coefficients_, npeff.components_, npeff.projections_ = W, H, np.sqrt(W)[:, None]
    share = W.sum(0) / W.sum() * 0.41
    npeff.component_shares_, npeff.example_explained_, npeff.n_features_in_ = share, np.clip((W**2).sum(1), 0, 0.95), d
    npeff.reconstruction_err_, npeff.explained_variance_ = 0.59 * n, 0.41
    npeff.losses_, npeff.n_iter_, npeff.converged_, npeff.restart_losses_ = [0.6 * n, 0.59 * n], 1, True, [0.59 * n]
    names = [f"encoder.layer.{layer}.{name.replace(' ', '_')}.weight" for name, layer in kinds]
    npeff.parameters = pd.DataFrame({
        "name": names, "kind": [name for name, _ in kinds], "layer": pd.array([layer for _, layer in kinds], dtype="Int64"),
        "shape": [(SIDE, SIDE)] * len(kinds), "numel": SIDE * SIDE, "energy": 1 / len(kinds), "scale": 1.0,
    })  # fmt: skip
    npeff.feature_map = FeatureMap("dense", names, [(SIDE, SIDE)] * len(kinds), why="invented")
    npeff.logits, npeff.norms, npeff.classes = logits, np.ones(n), [f"CLASS {c}" for c in range(COARSE)]
    labels = np.array(npeff.classes, dtype=object)[gold]
    npeff.examples = pd.DataFrame({"text": text, "label": labels, "fine_label": [f"kind {j % FINE}" for j in main]})
    npeff.facts = {"model": "invented"}
    return npeff.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--components", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(make(given.path, given.examples, given.components, given.seed))
