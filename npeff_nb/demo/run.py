"""The main job on the embedded model: from questions to a report that a person can open."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npeff_nb import _files

if TYPE_CHECKING:
    import pandas as pd

    from npeff_nb.npeff import NPEFF

EXAMPLES = 2000
COMPONENTS = 32
PURE_P_VALUE = 0.05
"""A component counts as purer than its coarse label predicts when fewer than this share of random draws are as pure."""


def run_demo(
    output: str | os.PathLike,
    *,
    n_examples: int = EXAMPLES,
    n_components: int = COMPONENTS,
    random_state: int = 0,
    progress: bool = True,
    cache: str | os.PathLike | None = None,
    check: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Extracts, decomposes, profiles and writes ``report.html``, ``components.csv``, ``decomposition.npeff/`` and ``summary.json`` into ``output``.

    Each file is written whole or not at all; ``summary.json`` comes last, so its presence says that all is there.

    Parameters
    ----------
    cache : a folder that keeps the Fishers, so that the lesson (or a second run) finds them; by default they are not kept.
    check : also fit with five other seeds, and to Fishers of random directions: how surely components come back, what chance explains.
    tell : called with a line before each stage.

    Returns
    -------
    The contents of ``summary.json``.
    """
    from npeff_nb.demo.model import load_demo
    from npeff_nb.fisher.extract import extract_fishers
    from npeff_nb.npeff import NPEFF
    from npeff_nb.widgets.page import write_page

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, what: str) -> Iterator[None]:
        tell(what)
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 2)

    with stage("load", "loading the model and its questions"):
        demo = load_demo()
        examples = demo.sample(n_examples, random_state)
    with stage("extract", f"taking the Fisher of each of {len(examples)} questions"):
        fishers = extract_fishers(demo.model, demo.tokenizer, examples, progress=progress, cache=cache)
    with stage("fit", f"factoring them into {n_components} components"):
        npeff = NPEFF(n_components, random_state=random_state).fit(fishers)
    with stage("profile", "lifting each component to the weights, splitting it over tokens, turning it both ways"):
        npeff.profile(progress=progress)
    with stage("write", f"writing {output}"):
        table = npeff.component_table()
        npeff.save(output / "decomposition.npeff")
        _files.write_text(output / "components.csv", table.to_csv(index=False))
        write_page(npeff, output / "report.html", component=_first_to_show(npeff))

    checked: dict[str, Any] = {}
    if check:
        from npeff_nb.decomposition.checks import checks

        with stage("check", "fitting again with other seeds, and to Fishers of random directions"):
            checked = checks(npeff, fishers, random_state=random_state + 1, progress=progress)
    summary = checked | summarise(npeff, table, demo.facts | {"split": examples["split"].value_counts().to_dict()}, seconds)
    _files.write_text(output / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def summarise(npeff: NPEFF, table: pd.DataFrame, demo_facts: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """The figures of a run: how much is explained, how pure components are in labels the model never saw, what edits do."""
    edits = {k: profile["edit"] for k, profile in npeff.profiles.items()}

    def median(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return float(np.median(known)) if known else None

    return {
        "model": {key: demo_facts[key] for key in ("base", "held_out_accuracy", "held_out_examples")},
        "n_examples": len(npeff.coefficients_),
        "examples_by_split": demo_facts["split"],
        "n_components": len(npeff.components_),
        "explained_variance": npeff.explained_variance_,
        "energy_kept": npeff.facts["energy_kept"],
        "fine_labels": {
            "mean_purity": float(table["fine_label purity"].mean()),
            "mean_expected_from_coarse": float(table["fine_label expected"].mean()),
            "components_purer_than_expected": int((table["fine_label purity"] > table["fine_label expected"]).sum()),
            "components_purer_beyond_chance": int((table["fine_label p"] < PURE_P_VALUE).sum()),
            "chance_level": PURE_P_VALUE,
        },
        "edit": {
            "strength": next(iter(edits.values()))["judged_at"],
            "median_kl_ratio": {sign: median([e["kl_ratio"][sign] for e in edits.values()]) for sign in "+-"},
            "median_kl_ratio_random": {sign: median([e["kl_ratio_random"][sign] for e in edits.values()]) for sign in "+-"},
            "median_kl_top": {sign: median([_at(e, "kl_top", sign) for e in edits.values()]) for sign in "+-"},
            "median_kl_top_random": {sign: median([_at(e, "kl_random", sign) for e in edits.values()]) for sign in "+-"},
        },
        "kl_ratio": {str(k): e["kl_ratio"] for k, e in edits.items()},
        "kl_ratio_random": {str(k): e["kl_ratio_random"] for k, e in edits.items()},
        "seconds": seconds,
    }


def _at(edit: dict[str, Any], curve: str, sign: str) -> float:
    strength = edit["judged_at"] if sign == "+" else -edit["judged_at"]
    return edit[curve][edit["strengths"].index(strength)]


def _first_to_show(npeff: NPEFF) -> int:
    """The report opens on a component that speaks for itself: turned down, it moves its own examples most for what it moves elsewhere."""
    ratios = {k: p["edit"]["kl_ratio"]["-"] or 0.0 for k, p in npeff.profiles.items()}
    return max(ratios, key=lambda k: ratios[k]) if ratios else 0
