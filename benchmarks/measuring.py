"""How rows of the benchmark are measured and said."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

RUNS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Row = dict[str, Any]
"""{"value": a ratio or a measurement, "target": the least that we want (if there is one), "command": what was compared}."""


def in_turn(ways: dict[str, Callable[[], int]], runs: int = RUNS) -> dict[str, float]:
    """Median rate (what a way returns, a second), measured in turn after one warm-up, so that a slow moment of the machine meets all of them."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in ways.items():
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            count = way()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def exponent(rates: dict[str, float], factor: float = 4) -> float:
    """The b of time ~ size^b, from the rates of a small and of a ``factor`` times larger piece of work."""
    small, large = rates.values()
    return float(np.log(small / large) / np.log(factor))


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def row(value: float, target: float | None, command: str) -> Row:
    return {"value": float(f"{value:.4g}")} | ({} if target is None else {"target": target}) | {"command": f"make bench: {command}"}
