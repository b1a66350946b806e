"""Strengths in other units than L2: as a share of the parameters' own length, or as the KL that the edit causes.

A strength is a step length along a direction.  One and the same length is much for one model and little for another, and components that are moved
equally far disturb predictions to very unlike degrees: comparing their effects needs a common unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from torch import Tensor, nn

from npeff_nb.directions.lift import norm
from npeff_nb.directions.perturb import kl, moved_parameters, perturb
from npeff_nb.fisher.subject import Subject

UNITS = ("l2", "relative", "kl")
LIMIT = 1.0
"""Longest step that a search tries, as a share of the moved parameters' L2 norm: beyond it little of the model is left."""
_START = 1e-3
"""First step of a search, in the same unit; it goes up or down from there."""
_GROWTH, _SHRINKING = 4.0, 64.0
"""Steps change by no larger a factor at once.  Out there the KL need not rise all the way, and the first strength that reaches the target is wanted;
towards 0 it is a parabola."""
_NARROWEST = 1e-6
"""Relative width of a gap between strengths at which a KL that is not met within it is one that jumps."""


@dataclass(frozen=True)
class Reached:
    """A strength with the mean KL (nats) that was measured there, and what finding it cost in forward passes over the rows."""

    strength: float
    kl: float
    forwards: int


def absolute(direction: dict[str, Tensor], subject: Subject, value: float, unit: str = "l2", rows: np.ndarray | None = None) -> float:
    """A strength as :func:`~npeff_nb.directions.perturb.perturb` takes it, from one said in another unit; the sign of ``value`` is kept.

    Parameters
    ----------
    unit : ``"l2"``, the strength itself; ``"relative"``, ‖step‖ / ‖θ‖ over the parameters that move; ``"kl"``, the mean KL(edited ‖ original) in
        nats on ``rows``, reached along +direction or −direction as the sign says (:func:`strength_for_kl`).

    Raises
    ------
    ValueError
        Another unit, a direction that moves nothing, ``"kl"`` without rows, or a KL that cannot be reached.
    """
    if not np.isfinite(value):
        raise ValueError(f"value={value}: a strength must be a finite number, whatever its unit")
    if unit == "l2" or (value == 0 and unit in UNITS):
        return float(value)
    if unit == "relative":
        return float(value) * whole_step(direction, subject.model)
    if unit == "kl":
        if rows is None:
            raise ValueError("unit='kl' needs rows: the examples whose mean KL is meant")
        return strength_for_kl(subject, direction, abs(value), rows, sign=1 if value > 0 else -1).strength
    raise ValueError(f"unit={unit!r}: a strength is said in one of {', '.join(map(repr, UNITS))}")


def whole_step(direction: dict[str, Tensor], model: nn.Module) -> float:
    """The strength whose step is as long as the parameters that it moves: ‖θ‖ / ‖direction‖, L2 over both."""
    length = norm(direction)
    if not 0 < length < np.inf:
        raise ValueError(f"the direction's norm is {length}: it has no length that a step could be measured by")
    return norm({str(at): parameter.detach() for at, parameter in enumerate(moved_parameters(model, direction))}) / length


def strength_for_kl(
    subject: Subject, direction: dict[str, Tensor], target: float, rows: np.ndarray, sign: int = 1, limit: float = LIMIT, accuracy: float = 0.01
) -> Reached:
    """The strength along ``sign`` · direction at which the mean KL(edited ‖ original) on ``rows`` is ``target``.

    The KL of a small step is ½ s² dᵀFd, so log KL over log s is searched: outwards until the target lies between two strengths, then by Brent's
    method between these.  The KL may fall again further out; found is a strength in the first gap that holds the target.

    Parameters
    ----------
    target : nats, above 0.
    limit : longest step tried, as a share of the moved parameters' L2 norm.
    accuracy : how far from ``target`` the KL may be, as a share of it.

    Raises
    ------
    ValueError
        When the target is not reached within ``limit``, or the KL jumps over it.
    """
    rows = np.asarray(rows)
    if not 0 < target < np.inf:
        raise ValueError(f"target={target}: the KL to reach is a positive number of nats")
    if not limit > 0 or not 0 < accuracy < 1 or sign not in (-1, 1):
        raise ValueError(f"limit={limit}, accuracy={accuracy}, sign={sign}: a limit is above 0, an accuracy between 0 and 1, a sign 1 or -1")
    if not len(rows):
        raise ValueError("rows is empty: a mean KL is over at least one example")
    whole = np.log(whole_step(direction, subject.model))
    last = whole + np.log(limit)
    edit = perturb(subject.model, direction, 0.0)
    seen: dict[float, float] = {}  # log of the step -> mean KL
    with edit:  # one copy of the parameters for all steps
        original = subject.logits(rows).numpy()
        if not np.isfinite(original).all():
            raise ValueError("the unedited model's logits are not finite for some of the rows: leave these out")

        def mean_kl(at: float) -> float:
            if at not in seen:
                edit.move(sign * np.exp(at))
                found = kl(subject.logits(rows).numpy(), original, subject.recipe.family).mean()
                seen[at] = float(found) if np.isfinite(found) else np.inf  # weights too large for the model's numbers
            return seen[at]

        def apart(at: float) -> float:
            """Log of KL over target, finite, and 0 where it is near enough: there Brent's method ends."""
            off = float(np.log(np.clip(mean_kl(at) / target, 1e-300, 1e300)))
            return 0.0 if abs(off) < np.log1p(accuracy) else off

        below, at = -np.inf, min(whole + np.log(_START), last)
        while apart(at) < 0:
            if at >= last:
                most = max(seen, key=lambda tried: seen[tried])
                raise ValueError(
                    f"a mean KL of {target:g} is not reached along {'+' if sign > 0 else '-'}direction: the most was {seen[most]:.3g} at strength "
                    f"{sign * np.exp(most):.3g}, and the search ends at {sign * np.exp(last):.3g}, {limit:g} times the norm of the parameters that "
                    "move; ask for less or raise limit="
                )
            # Half the distance in logs is where a quadratic would reach the target; a little beyond, so that the next step is on the other side.
            below, at = at, min(last, at + np.clip(-apart(at) / 2 + 0.1, 0.5, np.log(_GROWTH)))
        while apart(at) > 0 and below == -np.inf:
            shorter = at - np.clip(apart(at) / 2 + 0.1, 0.5, np.log(_SHRINKING))
            below, at = (shorter, at) if apart(shorter) <= 0 else (below, shorter)
        if apart(at) > 0:
            at = brentq(apart, below, at, xtol=_NARROWEST)
        if apart(at) != 0:
            raise ValueError(f"the mean KL jumps past {target:g} at strength {sign * np.exp(at):.6g}, where it is {mean_kl(at):.3g}: ask for another")
    return Reached(float(sign * np.exp(at)), mean_kl(at), len(seen) + 1)
