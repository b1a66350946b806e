"""What a picture needs, as plain data: the same for the notebook, the saved page and a machine without torch.

The shapes are those of ``widgets/src/protocol.d.ts``; every function here builds one of them from a fitted decomposition and never runs a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb.explain.describe import SHOWN, TOP, USED, default_label, label_columns, purity
from npeff_nb.fisher.predictions import gold_labels, predictions_of, probabilities

if TYPE_CHECKING:
    from npeff_nb.npeff import NPEFF

BINS = 24
SLIDER = {"low": -1.0, "high": 1.0, "step": 0.01}
"""Strengths (L2) that the slider offers: the range over which profiles run the model."""
KIND_ORDER = (
    "attention query", "attention key", "attention value", "attention query key value", "attention output", "MLP in", "MLP out",
)  # fmt: skip
NO_MODEL = "Tokens, layers and edits need the model: call npeff.attach(model, tokenizer) and explore again."
NOT_PROFILED = "This component was not profiled before the page was saved: tokens, layers and edits are in the notebook."


class Bundle:
    """Everything that is derived once from a decomposition for its pictures."""

    def __init__(self, npeff: NPEFF) -> None:
        self.npeff = npeff
        n = len(npeff.coefficients_)
        has = npeff.examples is not None
        self.texts = npeff.examples["text"].tolist() if has and "text" in npeff.examples.columns else [f"example {i}" for i in range(n)]
        self.gold = gold_labels(npeff.examples, npeff.classes)
        self.probabilities = None if npeff.logits is None else probabilities(npeff.logits, npeff.family)
        self.predictions = predictions_of(npeff)
        self.columns = label_columns(npeff.examples) if has else []
        self.default_labels = [default_label(npeff, k) for k in range(len(npeff.components_))]

    # ------------------------------------------------------------------------------------------------------------------ the overview

    def overview(self, live: bool) -> dict[str, Any]:
        """Overview: what the list and the heatmap need."""
        npeff = self.npeff
        n, r = npeff.coefficients_.shape
        name = npeff.facts.get("model", "array")
        order = self.order()
        return {
            "title": f"{name} · {r} component{'s' * (r != 1)}",
            "subtitle": f"{n} examples · {100 * npeff.explained_variance_:.0f} % of their Fishers explained",
            "live": live,
            "classes": list(npeff.classes or []),
            "n_examples": n,
            "n_components": r,
            "components": [self.summary(k) for k in range(r)],
            "order": order.tolist(),
            "strip": self._strip(order),
            "strengths": SLIDER,
        }

    def summary(self, k: int) -> dict[str, Any]:
        """ComponentSummary of one component."""
        npeff = self.npeff
        w = npeff.coefficients_[:, k]
        top = npeff.top_examples(k, TOP)
        labels = self.gold if self.gold is not None else self.predictions
        common = pd.Series(labels[top]).value_counts() if labels is not None and len(top) else None
        explained = max(float(npeff.component_shares_.sum()), np.finfo(float).tiny)
        fine: dict[str, Any] | None = None
        if len(self.columns) > 1 and len(top):
            coarse, finer = (npeff.examples[c].astype(object).to_numpy() for c in self.columns[:2])
            found = purity(finer, top, coarse)
            fine = {"column": self.columns[1], "name": found.name, "share": found.share, "expected": round(found.expected, 4)}
        said: list[str] = [self.default_labels[k], *(str(labels[i]) for i in top if labels is not None), fine["name"] if fine else ""]
        return {
            "component": k,
            "label": self.default_labels[k],
            "share": round(float(npeff.component_shares_[k]) / explained, 5),
            "examples": int((w >= USED).sum()),
            "histogram": np.histogram(w[w > 0], bins=BINS, range=(0, max(float(w.max()), 1e-12)))[0].tolist(),
            "max_coefficient": float(w.max()),
            "main_label": str(common.index[0]) if common is not None else "",
            "purity": float(common.iloc[0] / len(top)) if common is not None else 0.0,
            "counted": len(top),
            "fine": fine,
            "keywords": " ".join(dict.fromkeys([*said, *(self.texts[i] for i in top)])).casefold(),
        }

    def order(self) -> np.ndarray:
        """Columns of the heatmap: examples by the component they use most, strongest first; those that use none come last."""
        W = self.npeff.coefficients_
        strongest = np.where(W.max(1) > 0, W.argmax(1), W.shape[1])
        return np.lexsort((-W.max(1), strongest))

    def heat(self) -> bytes:
        """uint8, components × examples in :meth:`order`; 255 is each component's largest coefficient."""
        W = self.npeff.coefficients_[self.order()]
        return np.round(255 * W / np.maximum(W.max(0), 1e-12)).astype(np.uint8).T.tobytes()

    def _strip(self, order: np.ndarray) -> dict[str, Any]:
        if self.gold is not None:
            column, values = "label", self.gold
        elif self.predictions is not None:
            column, values = "prediction", self.predictions
        else:
            return {"column": "", "names": [], "codes": []}
        codes, names = pd.factorize(values, sort=True)
        return {"column": column, "names": [str(name) for name in names], "codes": codes[order].tolist()}

    # ------------------------------------------------------------------------------------------------------------------ one component

    def detail(self, k: int, unavailable: str | None = None) -> dict[str, Any]:
        """ComponentDetail from the profile, or with the reason why there is none."""
        npeff = self.npeff
        profile = npeff.profiles.get(k)
        top = npeff.top_examples(k, SHOWN) if profile is None else np.asarray(profile["edit"]["shown"])
        detail: dict[str, Any] = {
            "component": k,
            "top": [self._row(int(i), k, profile) for i in top],
            "energy": None,
            "other_energy": [],
            "sweep": None,
            "unavailable": None if profile is not None else unavailable or NO_MODEL,
        }
        if profile is not None:
            detail["energy"], detail["other_energy"] = self.energy(profile)
            edit = profile["edit"]
            detail["sweep"] = {key: edit[key] for key in ("strengths", "kl_top", "kl_baseline", "kl_random", "probabilities")} | {
                "n_top": len(edit["top"]),
                "n_baseline": len(edit["baseline"]),
            }
        return detail

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

    def _row(self, i: int, k: int, profile: dict[str, Any] | None) -> dict[str, Any]:
        tokens = (profile["tokens"] or {}).get(str(i)) if profile is not None else None
        return {
            "row": i,
            "coefficient": round(float(self.npeff.coefficients_[i, k]), 5),
            "text": self.texts[i],
            "tokens": tokens and [{**word, "share": round(word["share"], 5)} for word in tokens["words"]],
            "aside": [{"name": a["name"], "share": round(a["share"], 5)} for a in tokens["asides"]] if tokens else [],
            "note": None,
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
