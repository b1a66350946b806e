"""Two decompositions side by side: seeds, sizes or checkpoints of a model, matched component to component."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anywidget
import numpy as np
import pandas as pd
import traitlets
from scipy.optimize import linear_sum_assignment

from npeff_nb import _files
from npeff_nb.decomposition.matching import correlations, match, pairs, same_examples
from npeff_nb.explain.describe import TOP
from npeff_nb.explain.usage import strongest
from npeff_nb.fisher.predictions import gold_labels, predictions_of
from npeff_nb.widgets.bundle import Bundle
from npeff_nb.widgets.page import as_script_data, fill, static_text

if TYPE_CHECKING:
    from npeff_nb.npeff import NPEFF

SAME = 0.8
"""From this agreement on a pair counts as the same component; the factor match score of two fits that found the same lies above."""
LONGEST = 2000
"""Characters of a text that are sent: a page shows no more."""
SORTS = ("agreement", "direction", "coefficients", "share", "a", "b")


class Side:
    """One of the two: its coefficients of the examples that both are compared on, and what its components are called."""

    def __init__(self, npeff: NPEFF, coefficients: np.ndarray, examples: Any) -> None:
        bundle = Bundle(npeff)
        self.npeff, self.coefficients = npeff, coefficients
        self.title = bundle.title
        self.names = [npeff.labels.get(k) or label for k, label in enumerate(bundle.default_labels)]
        explained = max(float(npeff.component_shares_.sum()), np.finfo(float).tiny)
        self.shares = npeff.component_shares_ / explained
        own = coefficients is npeff.coefficients_  # what was predicted is known of no others
        self.predictions = predictions_of(npeff) if own else None
        self.gold = gold_labels(examples, npeff.classes)
        spoken = examples is not None and "text" in examples.columns
        self.texts = examples["text"].to_numpy(dtype=object) if spoken else None

    def components(self) -> list[dict[str, Any]]:
        """What the lists show of each."""
        return [{"component": k, "label": name, "share": round(float(self.shares[k]), 5)} for k, name in enumerate(self.names)]

    def top(self, k: int) -> list[dict[str, Any]]:
        """The examples that use component ``k`` most."""
        w = np.ascontiguousarray(self.coefficients[:, k])
        return [
            {
                "row": int(i),
                "coefficient": round(float(w[i]), 5),
                "text": f"example {i}" if self.texts is None else str(self.texts[i])[:LONGEST],
                "gold": None if self.gold is None or pd.isna(self.gold[i]) else str(self.gold[i]),
                "prediction": None if self.predictions is None else str(self.predictions[i]),
            }
            for i in strongest(w, TOP)
        ]


class Compare(anywidget.AnyWidget):
    """Two decompositions matched component to component; :func:`compare` makes one.

    Attributes
    ----------
    a_component, b_component : the two components that are looked at.
    sort : order of the pairs: ``"agreement"``, ``"direction"``, ``"coefficients"``, ``"share"`` (of a), ``"a"`` or ``"b"``, with ``-`` before it when
        falling.
    theme : ``"auto"`` follows the notebook, ``"light"``, ``"dark"``.
    table : DataFrame, one row a pair by falling agreement, then the components that have no partner.
    """

    _esm = static_text("compare.js")
    _css = static_text("explorer.css")

    data = traitlets.Dict().tag(sync=True)
    matrix = traitlets.Bytes().tag(sync=True)
    a_component = traitlets.Int(0).tag(sync=True)
    b_component = traitlets.Int(0).tag(sync=True)
    sort = traitlets.Unicode("-agreement").tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], default_value="auto").tag(sync=True)

    STATE: ClassVar = ("a_component", "b_component", "sort", "theme")

    def __init__(self, a: NPEFF, b: NPEFF, X: Any = None, **state: Any) -> None:
        for name in state:
            if name not in self.STATE:
                raise TypeError(f"compare() has no argument {name!r}; it takes X, {', '.join(self.STATE)}")
        Wa, Wb = (a.coefficients_, b.coefficients_) if X is None else (a.transform(X), b.transform(X))
        found, agreement, trouble = _matched(a, Wa, b, Wb, X)
        examples = next((e for e in ((a.examples, b.examples) if X is None else (getattr(X, "examples", None),)) if e is not None), None)
        self.a, self.b = Side(a, Wa, examples), Side(b, Wb, examples)
        self.table = _table(found, self.a, self.b)
        best = found.loc[found["agreement"].idxmax()] if len(found) else None
        first = {} if best is None else {"a_component": int(best["a"]), "b_component": int(best["b"])}
        self._sides = {"a": self.a, "b": self.b}
        super().__init__(data=_data(found, self.a, self.b, trouble), matrix=np.round(255 * agreement).astype(np.uint8).tobytes(), **first | state)
        self.on_msg(self._on_message)

    @traitlets.validate("a_component", "b_component")
    def _check_component(self, proposal: Any) -> int:
        return self._sides[proposal["trait"].name[0]].npeff.check_component(proposal["value"])

    @traitlets.validate("sort")
    def _check_sort(self, proposal: Any) -> str:
        if proposal["value"].removeprefix("-") not in SORTS:
            raise ValueError(f"sort={proposal['value']!r}: pairs are sorted by {', '.join(SORTS)}, with - before it when falling")
        return proposal["value"]

    @property
    def state(self) -> dict[str, Any]:
        """What the person chose: ``nb.compare(a, b, **comparison.state)`` shows the same again."""
        return {name: getattr(self, name) for name in self.STATE}

    def to_html(self, path: str | os.PathLike) -> Path:
        """One offline file, still interactive."""
        data = {
            "data": self.data, "matrix": base64.b64encode(self.matrix).decode(), "state": self.state,
            "tops": {name: [side.top(k) for k in range(len(side.names))] for name, side in self._sides.items()},
        }  # fmt: skip
        return _files.write_text(
            path,
            fill({
                "<!--TITLE-->": html.escape(self.data["title"]),
                "<!--FALLBACK-->": self._fallback(),
                "/*EXPLORER_CSS*/": static_text("explorer.css"),
                "/*EXPLORER_JS*/": static_text("compare_page.js").replace("</script", "<\\/script"),
                "/*DATA*/": as_script_data(data),
            }),
        )  # fmt: skip

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        if not isinstance(content, dict) or not isinstance(content.get("id"), str) or content.get("ask") == "cancel":
            return
        try:
            if content.get("ask") != "top" or content.get("side") not in self._sides:
                raise ValueError(f"the page asked for {content.get('ask')!r}, which this version does not know; restart the kernel after an update")
            side = self._sides[content["side"]]
            self.send({"id": content["id"], "answer": side.top(side.npeff.check_component(content["component"]))})
        except Exception as error:  # noqa: BLE001 - whatever it is, the page shows it in place instead of waiting for ever
            self.send({"id": content["id"], "error": str(error) or type(error).__name__})

    def _fallback(self, most: int = 100) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (*_both(row), f"{row.agreement:.2f}")) + "</tr>"
            for row in self.table.head(most).itertuples()
            if not pd.isna(row.agreement)
        )
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in (self.a.title, self.b.title, "agreement"))
        return f"<table><caption>{html.escape(self.data['headline'])}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        made = super()._repr_mimebundle_(**kwargs)
        if made is None:
            return None
        data, metadata = made if isinstance(made, tuple) else (made, {})
        return data | {"text/html": self._fallback()}, metadata

    def __repr__(self) -> str:
        return f"Compare({self.data['headline']})"


def compare(a: NPEFF, b: NPEFF, X: Any = None, **state: Any) -> Compare:
    """Shows two decompositions matched component to component: seeds, sizes, checkpoints of a model.

    Parameters
    ----------
    a, b : fitted.  Over the same features, components are matched by direction and coefficients together (:func:`nb.match <npeff_nb.match>`); in
        other coordinates, but of the same examples, by the correlation of coefficients alone, and the picture says so.
    X : Fishers whose coefficients are compared; by default both were fitted on the same examples.
    state : any of ``a_component``, ``b_component``, ``sort``, ``theme`` to begin with.

    Raises
    ------
    TypeError, ValueError
        Another argument, something that is no fitted NPEFF, or two that have neither features nor examples in common.
    """
    from sklearn.utils.validation import check_is_fitted

    from npeff_nb.npeff import NPEFF

    for one in (a, b):
        if not isinstance(one, NPEFF):
            raise TypeError(f"compare() takes two fitted NPEFFs, not a {type(one).__name__}")
        check_is_fitted(one, "components_")
    return Compare(a, b, X, **state)


def _matched(a: NPEFF, Wa: np.ndarray, b: NPEFF, Wb: np.ndarray, X: Any) -> tuple[pd.DataFrame, np.ndarray, str]:
    """Pairs, the agreement of any two (r, s), and why it is one of coefficients alone, if it is."""
    trouble = ""
    if X is not None:  # both have taken its coordinates
        found = pairs(a.components_, Wa, b.components_, Wb)
    else:
        try:
            found = match(a, b)
        except ValueError as error:
            if len(Wa) != len(Wb) or not same_examples(a, b):
                raise
            trouble = str(error)
    together = np.maximum(correlations(Wa, Wb), 0)
    if not trouble:
        return found, np.minimum(np.abs(a.components_ @ b.components_.T), 1) * together, ""
    one, other = linear_sum_assignment(together, maximize=True)
    alike = together[one, other]
    found = pd.DataFrame({"a": one, "b": other, "direction": np.nan, "coefficients": alike, "agreement": alike, "same_sign": pd.NA})
    return found, together, trouble


def _table(found: pd.DataFrame, a: Side, b: Side) -> pd.DataFrame:
    """Pairs by falling agreement, then what stays alone; with names."""
    alone = [pd.DataFrame({side: sorted(set(range(len(of.names))) - set(found[side]))}) for side, of in (("a", a), ("b", b))]
    table = pd.concat([found.sort_values("agreement", ascending=False, kind="stable"), *(one for one in alone if len(one))], ignore_index=True)
    for side, of in (("a", a), ("b", b)):
        table[side] = table[side].astype("Int64")
        table[f"{side} name"] = [None if pd.isna(k) else of.names[k] for k in table[side]]
    return table[["a", "b", "a name", "b name", "agreement", "direction", "coefficients", "same_sign"]]


def _both(row: Any) -> tuple[str, str]:
    """The two cells of a pair: number and name."""
    return f"{row.a} {row._3}", f"{row.b} {row._4}"  # itertuples names columns with a space by their place


def _data(found: pd.DataFrame, a: Side, b: Side, trouble: str) -> dict[str, Any]:
    """Everything about the match that the page shows, but the matrix and the examples."""
    good = found[found["agreement"] >= SAME]
    carried = float(a.shares[good["a"].to_numpy(dtype=int)].sum())
    alone = {side: sorted(set(range(len(of.names))) - set(found[side])) for side, of in (("a", a), ("b", b))}
    words = [
        f"median agreement {found['agreement'].median():.2f} over {len(found)} pair{'s' * (len(found) != 1)}",
        f"{len(good)} of them at least {SAME:g}, with {100 * carried:.0f} % of what a explains",
        *(f"{len(rest)} of {side} without a partner" for side, rest in alone.items() if rest),
    ]
    return {
        "title": f"{a.title} and {b.title}" if a.title != b.title else f"twice {a.title}",
        "headline": " · ".join(words),
        "same": SAME,
        "trouble": trouble,
        "sides": {side: {"title": of.title, "components": of.components()} for side, of in (("a", a), ("b", b))},
        "pairs": [
            {
                "a": int(row.a), "b": int(row.b), "agreement": round(float(row.agreement), 4), "coefficients": round(float(row.coefficients), 4),
                "direction": None if trouble else round(float(row.direction), 4),
            }
            for row in found.itertuples()
        ],
        "alone": alone,
    }  # fmt: skip
