"""From rows to components: the plan carried out, with several starts of which the best is kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from npeff_nb.decomposition.hals import hals
from npeff_nb.decomposition.minibatch import minibatch
from npeff_nb.decomposition.multiplicative import multiplicative
from npeff_nb.decomposition.objective import Solution, stationary, total_energy
from npeff_nb.decomposition.plan import Plan
from npeff_nb.decomposition.reduction import reduce, sketched
from npeff_nb.decomposition.rows import CONVERTED_UP_TO, Gram, Rows, Stored
from npeff_nb.decomposition.starts import START_EXAMPLES, kmeans_pp, loosened
from npeff_nb.decomposition.stiefel import stiefel

SOLVERS: dict[str, Callable[..., Solution]] = {"hals": hals, "multiplicative": multiplicative, "stiefel": stiefel, "minibatch": minibatch}
_OURS = {"tol", "max_iter", "on_iteration", "frozen", "start", "W", "P"}
"""Keyword arguments of solvers that are settings of the estimator, or no settings at all."""

Tell = Callable[[str, int, float], None]
"""Called with (what is running, iteration, loss)."""


@dataclass(frozen=True)
class Found:
    """Unit-norm components (r, d) over the rows' own features, and how the fit went."""

    H: Tensor
    losses: list[float]
    converged: bool
    restart_losses: list[float]


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
    tell: Tell = lambda what, iteration, loss: None,
) -> Found:
    """Runs ``n_init`` starts (one from ``start`` (r, d), where it is given) and keeps the one with the lowest loss.

    ``energy`` is what a basis has to carry, where the plan is one.
    """
    n_init = 1 if start is not None else n_init

    def telling(what: str) -> Callable[[int, float], None]:
        return lambda iteration, loss: tell(what, iteration, loss)

    def attempt(number: int) -> str:
        return f"start {number + 1} of {n_init}" if n_init > 1 else "fit"

    def begin(seen: Rows) -> Tensor:
        return loosened(seen, kmeans_pp(seen, r, rng), rng) if start is None else start

    if solver in {"multiplicative", "stiefel"}:
        run = SOLVERS[solver]
        best, losses = _best(run(rows, r, total, rng, on_iteration=telling(attempt(i)), **options) for i in range(n_init))
        return Found(best.H, best.losses, best.converged, losses)
    if solver == "minibatch":
        # Batches are good at going on and bad at getting out of a poor start: the start is the best fit of a sample.
        assert isinstance(rows, Stored)
        sample = rows.take(np.sort(rng.choice(rows.n, min(rows.n, START_EXAMPLES), replace=False)))
        energy_ = total_energy(sample)
        best, losses = _best(
            hals(sample, begin(sample), energy_, tol=tol, max_iter=max_iter, on_iteration=telling(attempt(i))) for i in range(n_init)
        )
        over_all = minibatch(rows, best.H, rng, tol=tol, max_iter=max_iter, on_iteration=telling("batches"), **options)
        return Found(over_all.H, over_all.losses, over_all.converged, [x * rows.n / sample.n for x in losses])

    work: Rows = rows
    reduced = None
    if plan.form == "gram":
        assert isinstance(rows, Stored)
        work = Gram.of(rows)
    elif plan.form == "sketch":
        assert isinstance(rows, Stored)
        work = sketched(rows, plan.size, rng)
    elif plan.form == "basis":
        assert isinstance(rows, Stored)
        reduced = reduce(rows, plan.size, rng, energy)
        work = reduced.rows
    seen = _some(work, rng) if isinstance(work, Stored) and start is None else work
    best, losses = _best(hals(work, begin(seen), total, tol=tol, max_iter=max_iter, on_iteration=telling(attempt(i))) for i in range(n_init))
    if work is rows:
        return Found(best.H, best.losses, best.converged, losses)
    left = max(1, max_iter - len(best.losses) + 2)
    P = None
    if reduced is not None:
        H, P = best.H @ reduced.basis, best.P
    elif plan.form == "sketch":
        assert best.P is not None
        H = stationary(rows, best.W, rows.moment(best.W), best.P, best.H @ best.H.T)
    else:  # weights on rows may be large and cancel: what they project to is computed again
        H = rows.gather(best.H.T.reshape(rows.n, rows.k, r))
    over_all = hals(rows, H, total, tol=tol, max_iter=left, W=best.W, P=P, on_iteration=telling("over the rows"))
    before = [] if plan.form == "sketch" else best.losses[:-1]  # a sketch's losses are none of the rows'
    return Found(over_all.H, before + over_all.losses, over_all.converged, losses)


def _best(attempts: Iterable[Solution]) -> tuple[Solution, list[float]]:
    """The one with the lowest loss, and the losses of all; the arrays of the others are let go as they come."""
    best, losses = None, []
    for found in attempts:
        losses.append(found.losses[-1])
        best = found if best is None or losses[-1] < best.losses[-1] else best
        del found
    assert best is not None
    return best, losses


def _some(rows: Stored, rng: np.random.Generator) -> Stored:
    """The rows themselves, or as many as starts are looked for among."""
    if rows.n <= START_EXAMPLES or 8 * rows.rows.numel() <= CONVERTED_UP_TO:
        return rows
    return rows.take(np.sort(rng.choice(rows.n, START_EXAMPLES, replace=False)))
