"""The coefficients heatmap: all examples × components in one byte a cell, in several orders of the examples, handed out in tiles.

A tile shows so many columns of one order, each with the largest coefficient among its examples, so that a lone strong example is never averaged away.
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb.explain.describe import label_columns
from npeff_nb.fisher.predictions import gold_labels, predictions_of

if TYPE_CHECKING:
    from npeff_nb._progress import Progress
    from npeff_nb.npeff import NPEFF
    from npeff_nb.widgets.desk import Desk

STRONGEST = "strongest component"
CLUSTERED = "clustered"
FOCUS = "component in focus"
COLUMN = "column: "
"""Orders of the examples; the last one goes before the name of a column."""
BLOCK = 1 << 22
"""Bytes of coefficients that are worked on at a time."""
MOST_COLUMNS = 4096
"""Columns of one tile: more than a screen has pixels."""
MOST_VALUES = 200
"""Values of a column that have a name of their own; the rarer ones share one."""
MOST_STRIPS = 24
"""Columns of the table that are offered; names of all of them travel with the overview."""
IN_A_PAGE = 4_000_000
"""Coefficients that a saved page holds at most (5 MB of base64)."""
LONGEST = 60
"""Characters of a value's name."""
SECOND = 0.25
"""A second component counts for the clustered order when its coefficient is at least this part of the strongest."""
BEST_LEAVES = 600
"""Up to so many components the tree's leaves are put into their best order (0.4 s); its time grows with the third power."""
FOCUSES = 4
"""Orders by a component in focus that are kept."""


@dataclass(frozen=True)
class Strip:
    """One column that can colour the strip: its name, the names of its values (commonest first) and their codes (n,) int16, -1 unknown."""

    name: str
    values: list[str]
    codes: np.ndarray


def strips(npeff: NPEFF) -> list[Strip]:
    """The columns that can colour the strip: gold label, prediction, and what else of the examples' table can serve as a label."""
    gold, predictions = gold_labels(npeff.examples, npeff.classes), predictions_of(npeff)
    found = {}
    # One list of values for both, so that a class has one colour.
    shared = [values for values in (gold, predictions) if values is not None]
    if gold is not None:
        found["label"] = _strip("label", gold, shared)
    if predictions is not None:
        found["prediction"] = _strip("prediction", predictions, shared)
    for column in [] if npeff.examples is None else label_columns(npeff.examples):
        if column == "label" and gold is not None:
            continue
        name = str(column) if str(column) not in found else f"{column} (table)"
        values = npeff.examples[column].astype(object).to_numpy()
        found[name] = _strip(name, values, [values])
    return list(found.values())[:MOST_STRIPS]


def _strip(name: str, values: np.ndarray, shared: list[np.ndarray]) -> Strip:
    codes, names = pd.factorize(np.concatenate([values, *shared]))
    counts = np.bincount(codes[len(values) :] + 1, minlength=len(names) + 1)[1:]
    common = sorted(range(len(names)), key=lambda i: (-counts[i], str(names[i])))
    place = np.empty(len(names) + 1, dtype=np.int16)
    place[common] = np.minimum(np.arange(len(names)), MOST_VALUES - 1)
    place[-1] = -1  # of code -1: a missing value
    said = [_readable(str(names[i])) for i in common]
    if len(said) > MOST_VALUES:
        said[MOST_VALUES - 1 :] = [f"{len(said) - MOST_VALUES + 1} rarer values"]
    return Strip(name, said, place[codes[: len(values)]])


def _readable(name: str) -> str:
    """What can be sent (no lone surrogates) and fits into a legend."""
    name = name.encode("utf-8", "replace").decode()
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


class Grid:
    """The coefficients of one decomposition as bytes, and the orders of its examples.  Nothing is worked out before it is asked for.

    Attributes
    ----------
    matrix : (n, r) uint8; 255 is each component's largest coefficient, 0 is only what is 0.
    strips : columns that can colour the strip.
    """

    def __init__(self, npeff: NPEFF) -> None:
        self.W = npeff.coefficients_
        self.n, self.r = self.W.shape
        self._npeff = npeff
        self._orders: dict[str, np.ndarray] = {}
        self._focuses: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()  # questions may come on several threads, and nobody wants the matrix twice

    @cached_property
    def strips(self) -> list[Strip]:  # noqa: D102 - described above, as `matrix` is
        with self._lock:
            return strips(self._npeff)

    @property
    def orders(self) -> list[str]:
        """Names of the orders that the examples can stand in; the first is the default."""
        return [STRONGEST, CLUSTERED, FOCUS, *(COLUMN + strip.name for strip in self.strips)]

    @property
    def columns(self) -> list[dict[str, Any]]:
        """Name and values of each column that can colour the strip."""
        return [{"name": strip.name, "values": strip.values} for strip in self.strips]

    @property
    def matrix(self) -> np.ndarray:  # noqa: D102
        with self._lock:
            return self._matrix

    @cached_property
    def _matrix(self) -> np.ndarray:
        # A component that is used nowhere, or so little that 255 / its largest overflows, keeps a scale that is a number.
        scale = (255 / np.maximum(self._extremes[2], np.finfo(np.float32).tiny * 256)).astype(np.float32)
        made = np.empty((self.n, self.r), dtype=np.uint8)
        for at, block in self._blocks():
            scaled = np.multiply(block, scale, dtype=np.float32, casting="same_kind")
            np.rint(scaled, out=scaled)
            np.maximum(scaled, block > 0, out=scaled)
            made[at : at + len(block)] = scaled
        return made

    @cached_property
    def _extremes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each example's strongest component (n,), r where it uses none, and its coefficient (n,); each component's largest (r,)."""
        strongest, coefficient, largest = np.empty(self.n, dtype=np.int32), np.empty(self.n, dtype=self.W.dtype), np.zeros(self.r)
        for at, block in self._blocks():
            best = block.argmax(1)
            peak = block[np.arange(len(block)), best]
            strongest[at : at + len(block)] = np.where(peak > 0, best, self.r)
            coefficient[at : at + len(block)] = peak
            np.maximum(largest, block.max(0), out=largest)
        return strongest, coefficient, largest

    def _blocks(self) -> Any:
        """(first row, coefficients) of so many examples at a time that no second copy of all of them is ever made."""
        rows = max(1, BLOCK // (self.r * self.W.dtype.itemsize))
        for at in range(0, self.n, rows):
            yield at, np.asarray(self.W[at : at + rows])

    # ------------------------------------------------------------------------------------------------------------------ orders

    def order(self, name: str, focus: int = 0) -> np.ndarray:
        """Rows of the examples (n,) int32 in the order of this name.

        Raises
        ------
        ValueError
            There is no such order, or no such component in focus.
        """
        if name not in self.orders:
            raise ValueError(f"there is no order {name!r} of the examples; there are {', '.join(map(repr, self.orders))}")
        with self._lock:
            if name == FOCUS:
                return self._by_component(self.check(focus))
            if name not in self._orders:
                made = {STRONGEST: self._by_strongest, CLUSTERED: self._clustered}.get(name)
                self._orders[name] = (made() if made else self._by_column(name.removeprefix(COLUMN))).astype(np.int32)
            return self._orders[name]

    def check(self, k: Any) -> int:
        """``k``, if it is the number of a component."""
        if not _whole(k) or not 0 <= k < self.r:
            raise ValueError(f"component {k} does not exist: this decomposition has {self.r} (0 to {self.r - 1}).")
        return k

    def _by_strongest(self) -> np.ndarray:
        """By the component an example uses most, within one by falling coefficient; those that use none come last."""
        strongest, coefficient, _ = self._extremes
        return np.lexsort((-coefficient, strongest))

    def _by_component(self, k: int) -> np.ndarray:
        if k not in self._focuses:
            self._focuses[k] = np.argsort(-np.asarray(self.W[:, k]), kind="stable").astype(np.int32)
        self._focuses.move_to_end(k)
        while len(self._focuses) > FOCUSES:
            self._focuses.popitem(last=False)
        return self._focuses[k]

    def _by_column(self, name: str) -> np.ndarray:
        """By value, commonest first and unknown last; within a value by strongest component."""
        codes = next(strip.codes for strip in self.strips if strip.name == name).astype(np.int32)
        order = self.order(STRONGEST)
        return order[np.argsort(np.where(codes < 0, len(codes), codes)[order], kind="stable")]

    def _clustered(self) -> np.ndarray:
        """Alike examples side by side, by way of the components: there are few of them, and 100 000 examples have no tree.

        Components are put in the order of a tree over the mean profiles of their examples, so that those that are used together are neighbours.
        Examples then stand by their strongest component; among those of one component, by the second: examples that lean towards a component on the
        left stand left, those with no second one in the middle.
        """
        strongest, coefficient, _ = self._extremes
        place = np.empty(self.r + 1, dtype=np.int64)
        place[np.append(self.component_order, self.r)] = np.arange(self.r + 1)
        first, lean = place[strongest], np.zeros(self.n, dtype=np.int64)
        for at, block in self._blocks():
            rest, here = block.copy(), np.arange(len(block))
            mine = slice(at, at + len(block))
            rest[here, np.minimum(strongest[mine], self.r - 1)] = 0
            second = rest.argmax(1)
            counts = rest[here, second] >= SECOND * coefficient[mine]
            lean[mine] = np.where(counts & (coefficient[mine] > 0), place[second] - first[mine], 0)
        return np.lexsort((-coefficient, lean, first))

    @cached_property
    def component_order(self) -> np.ndarray:
        """Components (r,) as the leaves of a tree over their examples' mean profiles (average linkage, cosine); those nowhere strongest are last."""
        from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
        from scipy.spatial.distance import squareform

        strongest, _, largest = self._extremes
        grouped = self.order(STRONGEST)
        groups = np.split(grouped, np.searchsorted(strongest[grouped], np.arange(self.r), side="right"))[:-1]
        used = np.flatnonzero([len(group) for group in groups])
        order = used
        if len(used) > 2:
            profiles = np.stack([self.matrix[groups[k]].mean(0, dtype=np.float32) for k in used]) * largest
            profiles /= np.linalg.norm(profiles, axis=1, keepdims=True)
            distance = squareform(np.maximum(1 - profiles @ profiles.T, 0), checks=False)
            tree = linkage(distance, "average")
            order = used[leaves_list(optimal_leaf_ordering(tree, distance) if len(used) <= BEST_LEAVES else tree)]
        return np.concatenate([order, np.setdiff1d(np.arange(self.r), used)])

    # ------------------------------------------------------------------------------------------------------------------ tiles

    def heat(self, order: np.ndarray, start: int, stop: int, columns: int) -> np.ndarray:
        """uint8 (r, columns): the largest byte of each component among the examples that share a column.

        Column c has the examples ``order[start + c · m // columns : start + (c + 1) · m // columns]`` of m = stop - start.
        """
        edges = _edges(start, stop, columns)
        last = edges[1:] - 1
        out = self.matrix[order[edges[:-1]]]
        # One example of every column at a time: 20 times faster than reduceat, which goes through memory cell by cell.
        for step in range(1, int((edges[1:] - edges[:-1]).max())):
            np.maximum(out, self.matrix[order[np.minimum(edges[:-1] + step, last)]], out=out)
        return np.ascontiguousarray(out.T)

    def codes(self, strip: str, order: np.ndarray, start: int, stop: int, columns: int) -> np.ndarray:
        """int16 (columns,): the commonest code of each column; among equals the one that is commoner everywhere, and a known one before -1.

        Raises
        ------
        ValueError
            There is no such column.
        """
        found = next((candidate for candidate in self.strips if candidate.name == strip), None)
        if found is None:
            names = ", ".join(repr(candidate.name) for candidate in self.strips)
            raise ValueError(f"there is no column {strip!r} to colour the strip by; there {'are ' + names if names else 'is none'}")
        values, codes = len(found.values), found.codes[order[start:stop]].astype(np.int64)
        column = np.repeat(np.arange(columns), np.diff(_edges(start, stop, columns)))
        counts = np.bincount(column * (values + 1) + np.where(codes < 0, values, codes), minlength=columns * (values + 1))
        best = counts.reshape(columns, values + 1).argmax(1)
        return np.where(best == values, -1, best).astype(np.int16)

    def static(self, rows: np.ndarray | None = None) -> dict[str, Any]:
        """What ``widgets/src/heat_answer.js`` answers from in a saved page: bytes, orders and codes in base64 (little-endian).

        ``rows`` (rising) are the examples that are kept, by default all; orders then count within these, and ``sample`` says which they are.
        """
        kept = slice(None) if rows is None else rows
        return {
            "matrix": _base64(self.matrix[kept], "u1"),
            "sample": None if rows is None else _base64(rows, "<i4"),
            "orders": {name: _base64(self._within(self.order(name), rows), "<i4") for name in (STRONGEST, CLUSTERED)},
            "rows": {CLUSTERED: self.component_order.tolist()},
            "codes": {strip.name: _base64(strip.codes[kept], "<i2") for strip in self.strips},
        }

    def sample(self, most: int) -> np.ndarray | None:
        """Rows, rising, of at most ``most`` examples, evenly along the default order, so that every component keeps its part; None where that is all.

        Fewer where the coefficients would be more than :data:`IN_A_PAGE`.
        """
        count = max(1, min(most, IN_A_PAGE // self.r))
        return None if count >= self.n else np.sort(self.order(STRONGEST)[np.arange(count) * self.n // count])

    def _within(self, order: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """An order of all examples as an order of those that are kept, by their places among these."""
        if rows is None:
            return order
        place = np.full(self.n, -1, dtype=np.int32)
        place[rows] = np.arange(len(rows))
        return place[order][place[order] >= 0]


def _edges(start: int, stop: int, columns: int) -> np.ndarray:
    return start + np.arange(columns + 1, dtype=np.int64) * (stop - start) // columns


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


# ---------------------------------------------------------------------------------------------------------------------- questions of the page


def grid(desk: Desk) -> Grid:
    """The one grid of a desk."""
    return desk.bundle.grid


def tile(desk: Desk, content: dict[str, Any], tell: Progress) -> tuple[dict[str, Any], list[bytes]]:
    """Heat: so many columns of one order, as bytes, and the codes of the strip."""
    heat = grid(desk)
    start, stop = _range(heat, content)
    columns, most = content.get("columns", 0), min(stop - start, MOST_COLUMNS)
    if not _whole(columns) or not 1 <= columns <= most:
        raise ValueError(f"{columns!r} columns for {stop - start} examples: 1 to {most} are possible")
    order = heat.order(content.get("order", ""), content.get("focus", 0))
    buffers = [heat.heat(order, start, stop, columns).tobytes()]
    if content.get("strip"):
        buffers.append(heat.codes(content["strip"], order, start, stop, columns).astype("<i2").tobytes())
    rows = heat.component_order.tolist() if content["order"] == CLUSTERED else None
    return {"order": content["order"], "from": start, "to": stop, "columns": columns, "rows": rows}, buffers


def cell(desk: Desk, content: dict[str, Any], tell: Progress) -> dict[str, Any]:
    """Cell: the example with the largest coefficient of one component among [from, to) of an order; the first among equals."""
    heat = grid(desk)
    start, stop = _range(heat, content)
    order = heat.order(content.get("order", ""), content.get("focus", 0))
    k = heat.check(content.get("component"))
    values = heat.W[order[start:stop], k]
    at = int(values.argmax())
    example = desk.bundle.example(int(order[start + at]))
    return {"component": k, "coefficient": round(float(values[at]), 5), "at": start + at, "example": example}


def places(desk: Desk, content: dict[str, Any], tell: Progress) -> list[int]:
    """Where some examples stand in an order: to mark them on the heatmap."""
    heat = grid(desk)
    order, rows = heat.order(content.get("order", ""), content.get("focus", 0)), content.get("rows")
    if not isinstance(rows, list) or not all(_whole(row) and 0 <= row < heat.n for row in rows):
        raise ValueError(f"rows {rows!r} are not all examples: this decomposition has {heat.n} (0 to {heat.n - 1}).")
    at = np.empty(heat.n, dtype=np.int32)
    at[order] = np.arange(heat.n, dtype=np.int32)
    return at[rows].tolist() if rows else []


def _range(heat: Grid, content: dict[str, Any]) -> tuple[int, int]:
    start, stop = content.get("from", -1), content.get("to", -1)
    if not _whole(start) or not _whole(stop) or not 0 <= start < stop <= heat.n:
        raise ValueError(f"there are no examples from {start!r} to {stop!r}: this decomposition has {heat.n}, and a range is at least one long")
    return start, stop


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
