"""What a picture needs, as plain data: the same for the notebook, the saved page and a machine without torch.

The shapes are those of ``widgets/src/protocol.d.ts``; every function here builds one of them from a fitted decomposition and never runs a model.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb.explain.describe import SHOWN, TOP, USED, default_label, label_columns, purity
from npeff_nb.explain.enriched import Coded, Corpus, Enriched, bands, enriched, folded
from npeff_nb.explain.usage import together, usage
from npeff_nb.fisher.predictions import gold_labels, predictions_of, probabilities
from npeff_nb.widgets import edits
from npeff_nb.widgets.heat import Grid
from npeff_nb.widgets.places import places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npeff_nb.npeff import NPEFF

PARTS = ("components", "table", "heatmap", "map", "lab", "text", "trace")
"""The explorer's own tabs."""
BINS = 24
NEIGHBOURS = 5
"""Components listed as alike, by each of the two measures."""
SLIDER = {"low": -1.0, "high": 1.0, "step": 0.01}
"""Strengths (L2) that the slider offers: the range over which profiles run the model."""
KIND_ORDER = (
    "attention query", "attention key", "attention value", "attention query key value", "attention output", "MLP in", "MLP out",
)  # fmt: skip
NO_MODEL = "Tokens, layers and edits need the model: call npeff.attach(model, tokenizer) and explore again."
NOT_PROFILED = "This component was not profiled before the page was saved: tokens, layers and edits are in the notebook."


def sendable(value: Any) -> Any:
    """JSON without lone surrogates, which no message and no file in UTF-8 can hold: each becomes a question mark."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {sendable(key): sendable(one) for key, one in value.items()}
    return [sendable(one) for one in value] if isinstance(value, (list, tuple)) else value


def first_state(overview: dict[str, Any]) -> dict[str, Any]:
    """What is chosen before a person chooses, where that depends on the data."""
    return {"order": overview["orders"][0], "strip": next((column["name"] for column in overview["columns"]), "")}


class Bundle:
    """Everything that is derived once from a decomposition for its pictures."""

    def __init__(self, npeff: NPEFF) -> None:
        self.npeff = npeff
        n = len(npeff.coefficients_)
        has = npeff.examples is not None
        spoken = has and "text" in npeff.examples.columns
        self.texts: Sequence[str] = npeff.examples["text"].tolist() if spoken else [f"example {i}" for i in range(n)]
        self.corpus = Corpus(self.texts) if spoken else None
        self.gold = gold_labels(npeff.examples, npeff.classes)
        self.probabilities = None if npeff.logits is None else probabilities(npeff.logits, npeff.family)
        self.predictions = predictions_of(npeff)
        self.coded = {column: Coded.of(npeff.examples[column]) for column in label_columns(npeff.examples)} if has else {}
        self.columns = list(self.coded)
        self.grid = Grid(npeff)
        self.usage = usage(npeff.coefficients_, USED, TOP, BINS)
        self.default_labels = [default_label(npeff, k, self.corpus, top, self.columns) for k, top in enumerate(self.usage.top)]

    @property
    def title(self) -> str:
        """Model and number of components."""
        r = len(self.npeff.components_)
        return f"{self.npeff.facts.get('model', 'array')} · {r} component{'s' * (r != 1)}"

    # ------------------------------------------------------------------------------------------------------------------ the overview

    def overview(self, live: bool) -> dict[str, Any]:
        """Overview: what the list, the table and the map need."""
        npeff = self.npeff
        n, r = npeff.coefficients_.shape
        return {
            "title": self.title,
            "subtitle": f"{n} examples · {100 * npeff.explained_variance_:.0f} % of their Fishers explained",
            "live": live,
            "classes": list(npeff.classes or []),
            "n_examples": n,
            "n_components": r,
            "components": [self.summary(k) for k in range(r)],
            "orders": self.grid.orders,
            "columns": self.grid.columns,
            "strengths": SLIDER,
            "places": places(npeff.components_, npeff.component_shares_),
        }

    def summary(self, k: int) -> dict[str, Any]:
        """ComponentSummary of one component."""
        npeff, use = self.npeff, self.usage
        top = use.top[k]
        labels = self.gold if self.gold is not None else self.predictions
        common = pd.Series(labels[top]).value_counts() if labels is not None and len(top) else None
        explained = max(float(npeff.component_shares_.sum()), np.finfo(float).tiny)
        fine: dict[str, Any] | None = None
        if len(self.coded) > 1 and len(top):
            (_, coarse), (column, finer) = list(self.coded.items())[:2]
            found = purity(finer, top, coarse)
            fine = {"column": column, "name": found.name, "share": found.share, "expected": round(found.expected, 4)}
        profile = npeff.profiles.get(k)
        measured = None if profile is None or profile["edit"] is None else profile["edit"]["kl_ratio"]
        return {
            "component": k,
            "label": self.default_labels[k],
            "share": round(float(npeff.component_shares_[k]) / explained, 5),
            "examples": int(use.examples[k]),
            "histogram": use.histogram[k].tolist(),
            "max_coefficient": round(float(use.largest[k]), 6),
            "main_label": str(common.index[0]) if common is not None else "",
            "purity": float(common.iloc[0] / len(top)) if common is not None else 0.0,
            "counted": len(top),
            "errors": self._errors(top),
            "kl_ratio": measured and [measured["-"], measured["+"]],
            "fine": fine,
        }

    def _errors(self, top: np.ndarray) -> float | None:
        """Share of wrong predictions among examples with a gold label."""
        if self.gold is None or self.predictions is None:
            return None
        known = top[~pd.isna(self.gold[top])]
        return float((self.gold[known] != self.predictions[known]).mean()) if len(known) else None

    # ------------------------------------------------------------------------------------------------------------------ one component

    def detail(self, k: int, unavailable: str | None = None, profile: dict[str, Any] | None = None) -> dict[str, Any]:
        """ComponentDetail from the profile (the one that is kept, or what is known of one so far), or with the reason why there is none."""
        npeff = self.npeff
        profile = npeff.profiles.get(k) if profile is None else profile
        edit = None if profile is None else profile.get("edit")
        top = npeff.top_examples(k, SHOWN) if edit is None else np.asarray(edit["shown"], dtype=int)
        kept = folded(self.texts, top)
        detail: dict[str, Any] = {
            "component": k,
            "top": [self.row(int(top[at]), k, profile) | {"duplicates": top[like].tolist()} for at, like in kept.items()],
            "bands": [asdict(band) for band in bands(npeff.coefficients_[:, k])],
            "enriched": [{"column": column, "values": [asdict(value) for value in values]} for column, values in self.enriched(k)],
            "neighbours": self.neighbours(k),
            "energy": None,
            "other_energy": [],
            "unavailable": None if profile is not None else unavailable or NO_MODEL,
        }
        if profile is not None:
            detail["energy"], detail["other_energy"] = self.energy(profile)
        return detail | edits.pictures(npeff, k, edit)

    def enriched(self, k: int) -> list[tuple[str, list[Enriched]]]:
        """Words and labels that are commoner among a component's top examples, near-duplicates counted once."""
        top = self.usage.top[k]
        return enriched(self.corpus, self.coded, top[list(folded(self.texts, top))])

    def neighbours(self, k: int) -> list[dict[str, Any]]:
        """The components nearest in direction, up to its sign, and those whose coefficients go most with this one's, the former first."""
        cosines = np.abs(self.npeff.components_ @ self.npeff.components_[k])
        use = self.usage
        going = together(self.npeff.coefficients_, k, use.mean, use.spread)
        others = np.flatnonzero(np.arange(len(cosines)) != k)
        nearest = {int(j) for value in (cosines, going) for j in others[np.argsort(-value[others], kind="stable")[:NEIGHBOURS]]}
        return [
            {"component": j, "cosine": round(float(cosines[j]), 4), "together": round(float(going[j]), 4)}
            for j in sorted(nearest, key=lambda j: (-cosines[j], j))
        ]

    def energy(self, profile: dict[str, Any]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """A direction's squared length by layer × kind of matrix (bottom layer first), and what has no layer, by kind."""
        table = self.npeff.parameters.set_index("name")
        table = table.assign(share=pd.Series({e["name"]: e["share"] for e in profile["energy"]}))
        inside = table[table["layer"].notna()]
        cells = None
        if len(inside):
            grid = inside.pivot_table(index="layer", columns="kind", values="share", aggfunc="sum")
            kinds = [k for k in KIND_ORDER if k in grid.columns] + sorted(k for k in grid.columns if k not in KIND_ORDER)
            values = [[None if pd.isna(v) else round(float(v), 6) for v in row] for row in grid[kinds].to_numpy()]
            cells = {"layers": [f"layer {layer}" for layer in grid.index], "kinds": kinds, "values": values}
        outside = table[table["layer"].isna()].groupby("kind")["share"].sum()
        return cells, [{"name": str(kind), "value": round(float(value), 6)} for kind, value in outside.items()]

    def row(self, i: int, k: int, profile: dict[str, Any] | None = None) -> dict[str, Any]:
        """ExampleRow of one example of a component."""
        tokens = (profile.get("tokens") or {}).get(str(i)) if profile is not None else None
        return {
            "row": i,
            "coefficient": round(float(self.npeff.coefficients_[i, k]), 5),
            "text": self.texts[i],
            "tokens": tokens and [{**word, "share": round(word["share"], 5)} for word in tokens["words"]],
            "aside": [{"name": a["name"], "share": round(a["share"], 5)} for a in tokens["asides"]] if tokens else [],
            "duplicates": [],
        } | self._outcome(i)

    def _outcome(self, i: int) -> dict[str, Any]:
        gold = None if self.gold is None or pd.isna(self.gold[i]) else str(self.gold[i])
        if self.probabilities is None or self.predictions is None:
            return {"gold": gold, "prediction": "", "probability": 0.0}
        return {"gold": gold, "prediction": str(self.predictions[i]), "probability": round(float(self.probabilities[i].max()), 5)}

    # ------------------------------------------------------------------------------------------------------------------ examples

    def example(self, i: int) -> dict[str, Any]:
        """ExampleDetail: one example and the components that explain it."""
        w = self.npeff.coefficients_[i]
        largest = [int(j) for j in np.argsort(-w, kind="stable")[:6] if w[j] > 0]
        return {
            "row": int(i),
            "text": self.texts[i],
            "coefficients": [{"component": j, "value": round(float(w[j]), 5)} for j in largest],
            "unexplained": round(1 - float(self.npeff.example_explained_[i]), 5),
        } | self._outcome(i)
