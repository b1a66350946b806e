"""Does a component move its own examples more than other directions would?  Components of the demo as edits, beside three controls.

    python benchmarks/controls.py

2 000 questions and 32 components, as in ``npeff-nb demo``.  A cell is the median over components of the KL ratio, mean KL of the 32 top questions by
that of 96 others drawn at random, with a 95 % interval from resampling components and their questions (:mod:`npeff_nb.directions.sweeps`).  Each
direction has a row for edits of the length in the column's head, and each control one for edits that are matched: the control moves the model as far
as changes the other questions as much as the component's edit does, and the cell is the component's ratio by the control's.

* random: noise over the same parameters.  It has to be hundreds of times as long for any effect.
* combination: the very gradients that the component is made of, with random weights.
* k-means: the centroid, of as many clusters of unit gradients as there are components, most similar to the component.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import npeff_nb as nb
from npeff_nb.demo.run import COMPONENTS, EXAMPLES
from npeff_nb.directions.sweeps import COMPONENT

CACHE = Path(__file__).parents[1] / "notebooks" / "fishers-cache"
"""Where `make demo` keeps the Fishers too."""
STRENGTHS = (0.1, 0.3)
CURVE = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
"""Where gradients are run, so that what a component causes lies between two of them."""
FAR = (10, 30, 50, 70, 100)
"""And noise, which does next to nothing at a component's length: the weights that take part are 201 long."""
CONTROLS = {"random": (*STRENGTHS, *FAR), "combination": CURVE, "kmeans": CURVE}
NAMES = {COMPONENT: "component", "kmeans": "k-means centroid", "combination": "its gradients mixed at random", "random": "random direction"}


def fitted() -> tuple[nb.NPEFF, nb.PEFs]:
    """The demo's decomposition, and what it was fitted on."""
    demo = nb.load_demo()
    fishers = nb.extract_fishers(demo.model, demo.tokenizer, demo.sample(EXAMPLES, 0), progress=False, cache=CACHE)
    return nb.NPEFF(COMPONENTS, random_state=0).fit(fishers), fishers


def printed(table: pd.DataFrame, column: str, said: str) -> None:
    """One row a direction of a table of medians, one cell a signed strength."""
    for kind, name in NAMES.items():
        cells = table[table["direction"] == kind].set_index("strength")
        if len(cells):
            print(f"| {said.format(name)} | {' | '.join(cell(cells.loc[s], column) for s in signed())} |", flush=True)


def cell(found: pd.Series, column: str) -> str:
    """``median (low–high)``, and of how many components where some are left out."""
    if not found["components"]:
        return "out of range"
    fewer = f", {found['components']:.0f} components" if found["components"] < COMPONENTS else ""
    return f"{found[column]:.3g} ({found[f'{column}_low']:.3g}–{found[f'{column}_high']:.3g}{fewer})"


def signed() -> list[float]:
    """From large to small, turned down first."""
    return [sign * s for s in reversed(STRENGTHS) for sign in (-1, 1)]


def main() -> None:
    npeff, fishers = fitted()
    runs = npeff.sweep(None, STRENGTHS, controls=CONTROLS, fishers=fishers)
    equal, matched = nb.sweeps.medians(runs), nb.sweeps.medians(runs, on="kl_baseline")
    print(f"| | {' | '.join(f'{s:+g}'.replace('-', '−') for s in signed())} |")
    print("|---" * (1 + len(signed())) + "|")
    printed(equal, "kl_ratio", "KL ratio, {}")
    printed(matched, "advantage", "component / {}, matched")


if __name__ == "__main__":
    main()
