"""How a fit will go about it, and what memory that takes, said before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from npeff_nb.decomposition import rows
from npeff_nb.decomposition.coefficients import SOLVED_AT_ONCE
from npeff_nb.decomposition.reduction import buckets_for
from npeff_nb.decomposition.starts import START_EXAMPLES

Form = Literal["rows", "sketch", "basis", "gram", "mini-batch"]
SMALLEST_BASIS = 64
WORTH_A_BASIS = 16
"""Fewer coordinates are sought when there are more than this many times as many features: finding them costs a few iterations over all."""
HELD_OF_EACH = 7
"""Arrays (n, k, r), and as many (n, r), that exist at the same time at the fullest moment of a fit: temporary ones and the best start's included."""


@dataclass(frozen=True)
class Plan:
    """What a fit does.

    Attributes
    ----------
    form : ``"rows"``, over the rows as they are; ``"sketch"`` and ``"basis"``, first in fewer coordinates, then over the rows; ``"gram"``, over the
        rows' inner products; ``"mini-batch"``, some examples at a time.
    size : coordinates in which most iterations run; examples for ``"mini-batch"``.
    peak_bytes : memory beyond what the Fishers themselves take, at most; with a share of energy, if ``size`` coordinates carry it.
    why : the reason in words.
    """

    form: Form
    size: int
    peak_bytes: int
    why: str

    def __str__(self) -> str:
        size = f"{self.peak_bytes / 2**30:.2g} GB" if self.peak_bytes > 2**30 / 10 else f"{self.peak_bytes / 2**20:.2g} MB"
        return f"{self.why}; at most {size} of memory beside the Fishers"


def plan(n: int, k: int, d: int, r: int, solver: str, reduction: str | float, batch: int) -> Plan:
    """The plan for n examples of k rows over d features and r components.

    ``reduction`` is ``"auto"``, ``"none"``, ``"gram"`` or the share of energy that a basis has to carry.
    """
    N = n * k
    basis = min(N, max(SMALLEST_BASIS, 2 * r))
    form: Form = "rows"
    if solver == "minibatch":
        form = "mini-batch"
    elif solver == "hals" and reduction == "gram":
        form = "gram"
    elif solver == "hals" and not isinstance(reduction, str):
        form = "basis"
    elif solver == "hals" and reduction == "auto" and d > WORTH_A_BASIS * basis and basis < N:
        form = "sketch"
    elif solver == "hals" and reduction == "auto" and d > WORTH_A_BASIS * N:
        form = "gram"
    held = 8 * N * d <= rows.CONVERTED_UP_TO
    part = 8 * min(N * d, max(rows.PART // 4, k * d))  # of float32 rows, in float64
    # A sample is copied, and once more when it is held.
    sample = 12 * min(n, START_EXAMPLES) * k * d
    # Every fit ends with exact coefficients of all examples, for which systems of equations are copied and factored, and projections of all rows.
    peak = HELD_OF_EACH * 8 * (N + n) * r + 3 * 8 * max(r * r, min(n * r * r, SOLVED_AT_ONCE)) + 8 * (6 * r * d + 8 * r * r)
    peak += 8 * N * d if held else part
    if form == "mini-batch":
        return Plan(form, batch, peak + sample + 2 * 12 * batch * k * d, f"{batch:,} of {n:,} examples at a time")
    if form == "gram":
        return Plan(form, N, peak + 8 * (N * N + 6 * N * r) + 2 * part, f"over the {N:,} × {N:,} inner products of the rows")
    if form == "sketch":
        buckets = buckets_for(d, basis)
        peak += 8 * (3 * N * buckets + 3 * buckets**2 + N * basis + 2 * d)
        return Plan(form, basis, peak, f"first in {basis} coordinates that sketch {d:,}, then over the rows")
    if form == "basis":
        peak += 8 * (4 * basis * d + 4 * N * basis)
        return Plan(form, basis, peak, f"first in coordinates with {reduction:g} of the energy, from {basis} up, then over the rows")
    return Plan(form, d, peak + (0 if held else sample), f"over the rows as they are, {N:,} × {d:,}")


def physical_memory() -> int | None:
    """Bytes of memory that this machine has, or None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
