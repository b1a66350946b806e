"""From rows to components: the plan carried out, with several starts of which the best is kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from npeff_nb.decomposition.hals import hals
from npeff_nb.decomposition.minibatch import minibatch
from npeff_nb.decomposition.multiplicative import multiplicative
from npeff_nb.decomposition.objective import Solution, total_energy
from npeff_nb.decomposition.plan import Plan
from npeff_nb.decomposition.reduction import reduce
from npeff_nb.decomposition.rows import CONVERTED_UP_TO, Gram, Rows, Stored
from npeff_nb.decomposition.starts import kmeans_pp
from npeff_nb.decomposition.stiefel import stiefel

SOLVERS: dict[str, Callable[..., Solution]] = {"hals": hals, "multiplicative": multiplicative, "stiefel": stiefel, "minibatch": minibatch}
_OURS = {"tol", "max_iter", "on_iteration", "frozen", "start", "W", "P"}
"""Keyword arguments of solvers that are settings of the estimator, or no settings at all."""
START_EXAMPLES = 20_000
"""Starts are looked for among so many examples when the rows are not held in memory: each costs a product with all rows that are looked at."""

Tell = Callable[[str, int, float], None]
"""Called with (what is running, iteration, loss)."""


@dataclass(frozen=True)
class Found:
    """Unit-norm components (r, d) over the rows' own features, how the fit went, and projections (n, k, r) where they came with it."""

    H: Tensor
    losses: list[float]
    converged: bool
    restart_losses: list[float]
    P: Tensor | None = None


def options_of(solver: str) -> dict[str, Any]:
    """What ``solver_options`` may say, with defaults."""
    asked = inspect.signature(SOLVERS[solver]).parameters.values()
    return {p.name: p.default for p in asked if p.kind is p.KEYWORD_ONLY and p.name not in _OURS}


def find_components(
    rows: Rows,
    r: int,
    total: float,
    plan: Plan,
    rng: np.random.Generator,
    *,
    solver: str,
    options: dict[str, Any],
    start: Tensor | None,
    n_init: int,
    energy: float | None,
    tol: float,
    max_iter: int,
    frozen: int = 0,
    tell: Tell = lambda what, iteration, loss: None,
) -> Found:
    """Runs ``n_init`` starts (one from ``start`` (r, d), where it is given) and keeps the one with the lowest loss.

    ``energy`` is what a basis has to carry (None: its size says all).
    """
    n_init = 1 if start is not None else n_init

    def telling(what: str) -> Callable[[int, float], None]:
        return lambda iteration, loss: tell(what, iteration, loss)

    def attempt(number: int) -> str:
        return f"start {number + 1} of {n_init}" if n_init > 1 else "fit"

    if solver in {"multiplicative", "stiefel"}:
        run = SOLVERS[solver]
        return _best([run(rows, r, total, rng, on_iteration=telling(attempt(i)), **options) for i in range(n_init)])
    if solver == "minibatch":
        # Batches are good at going on and bad at getting out of a poor start: the start is the best fit of a sample.
        assert isinstance(rows, Stored)
        sample = rows.take(np.sort(rng.choice(rows.n, min(rows.n, START_EXAMPLES), replace=False)))
        energy_ = total_energy(sample)
        tried = [
            hals(sample, kmeans_pp(sample, r, rng) if start is None else start, energy_, tol=tol, max_iter=max_iter, on_iteration=telling(attempt(i)))
            for i in range(n_init)
        ]
        best = min(tried, key=_last)
        over_all = minibatch(rows, best.H, rng, tol=tol, max_iter=max_iter, on_iteration=telling("batches"), **options)
        return Found(over_all.H, over_all.losses, over_all.converged, [_last(s) * rows.n / sample.n for s in tried])

    work: Rows = rows
    reduced = None
    if plan.form == "gram":
        assert isinstance(rows, Stored)
        work = Gram.of(rows)
    elif plan.form == "basis":
        reduced = reduce(rows, plan.size, rng, energy)
        work = reduced.rows
    seen = _some(work, rng) if isinstance(work, Stored) and start is None else work
    tried = [
        hals(
            work, kmeans_pp(seen, r, rng) if start is None else start, total, tol=tol, max_iter=max_iter, frozen=frozen,
            on_iteration=telling(attempt(i)),
        )
        for i in range(n_init)
    ]  # fmt: skip
    found = _best(tried)
    if plan.form == "gram":
        return Found(rows.gather(found.H.T.reshape(rows.n, rows.k, r)), found.losses, found.converged, found.restart_losses, found.P)
    if reduced is not None:
        best = min(tried, key=_last)
        left = max(1, max_iter - len(best.losses) + 2)
        over_all = hals(rows, best.H @ reduced.basis, total, tol=tol, max_iter=left, W=best.W, P=best.P, on_iteration=telling("over the rows"))
        return Found(over_all.H, best.losses[:-1] + over_all.losses, over_all.converged, found.restart_losses, over_all.P)
    return found


def _best(tried: list[Solution]) -> Found:
    best = min(tried, key=_last)
    return Found(best.H, best.losses, best.converged, [_last(s) for s in tried], best.P)


def _last(solution: Solution) -> float:
    return solution.losses[-1]


def _some(rows: Stored, rng: np.random.Generator) -> Stored:
    """The rows themselves, or as many as starts are looked for among."""
    if rows.n <= START_EXAMPLES or 8 * rows.rows.numel() <= CONVERTED_UP_TO:
        return rows
    return rows.take(np.sort(rng.choice(rows.n, START_EXAMPLES, replace=False)))
