"""What the slider asks: the preview of an edit, and the model really run, along one component or several at once."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from npeff_nb.explain.packed import pack, unpack
from npeff_nb.fisher.predictions import probabilities
from npeff_nb.widgets.turns import first_with, give_way

if TYPE_CHECKING:
    from npeff_nb.fisher.subject import Subject
    from npeff_nb.npeff import NPEFF
    from npeff_nb.widgets.desk import Desk

ALONG_KEPT = 8
"""Responses to other components that a profile keeps, the latest: with them a page without a model shows several components at once."""
_ORIGINALS: weakref.WeakKeyDictionary[Any, dict[int, np.ndarray]] = weakref.WeakKeyDictionary()
"""Desk -> component -> logits of its examples under the unedited model: half of what a release of the slider would cost."""


def pictures(npeff: NPEFF, k: int, edit: dict[str, Any] | None) -> dict[str, Any]:
    """What a ComponentDetail says about the edit: ``sweep``, ``preview`` and ``along``, from a profile's or what is known of it so far."""
    if edit is None:
        return {"sweep": None, "preview": None, "along": {}}
    sweep = {key: edit[key] for key in ("strengths", "kl_top", "kl_baseline", "kl_random")} | {
        "n_top": len(edit["top"]),
        "n_baseline": len(edit["baseline"]),
        # Profiles from before have probabilities of the shown examples alone.
        "logits": edit.get("logits"),
        "rows": edit["shown"],
        "probabilities": edit["probabilities"],
    }
    return {"sweep": sweep if edit["strengths"] else None, "preview": _kept_preview(npeff, k, edit), "along": edit.get("along", {})}


def profiled(desk: Desk, k: int, tell: Any) -> dict[str, Any]:
    """ComponentDetail of a component that has no profile yet; what is known after each stage goes ahead with ``tell``."""
    from npeff_nb.directions.lift import subject_of
    from npeff_nb.explain.profile import profile

    model, at = subject_of(desk.npeff).model, (0, 1, "")

    def step(done: int, total: int, what: str) -> None:
        nonlocal at
        at = (done, total, what)
        tell(*at)
        give_way(model)
        tell(*at)  # it may have been cancelled meanwhile

    def part(known: dict[str, Any]) -> None:
        edit = known["edit"]
        if edit and edit["logits"] and 0.0 in edit["strengths"]:
            # Fresh from this model, and good to 2e-5 of the largest: the slider need not run it again.
            _ORIGINALS.setdefault(desk, {})[k] = unpack(edit["logits"])[:, edit["strengths"].index(0.0)]
        tell(*at, desk.bundle.detail(k, "", known))

    tell(*at, desk.bundle.detail(k, ""))  # what needs no model
    profile(desk.npeff, k, step, on_part=part, lift=desk.direction)
    return desk.bundle.detail(k)


def preview(desk: Desk, content: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Preview: what a step along one component does to the examples of another (or its own), to first order.

    Raises
    ------
    ValueError
        When a component does not exist, there is no model, or the numbers are not finite.
    """
    npeff = desk.npeff
    k, along = npeff.check_component(content["component"]), npeff.check_component(content["along"])
    edit: dict[str, Any] = (npeff.profiles.get(k) or {}).get("edit") or {}
    kept = _kept_preview(npeff, k, edit)
    if kept and along == k:
        return kept
    if kept and str(along) in edit["along"]:
        return kept | {"along": along, "derivative": edit["along"][str(along)], "trusted": None}

    from npeff_nb.directions.lift import subject_of
    from npeff_nb.directions.preview import preview as first_order
    from npeff_nb.explain.profile import in_order, judged

    with first_with(subject_of(npeff).model):
        sets, shown = judged(npeff, k)
        tell(0, 2, f"finding the direction of component {along}")
        direction = desk.direction(along)
        tell(1, 2, f"first-order response to component {along}")
        found = first_order(npeff, direction, in_order(sets, shown))
    derivative = pack(np.asarray(found.derivative))
    if kept:
        others = list(edit["along"].items())[1 - ALONG_KEPT :]
        edit["along"] = dict(others) | {str(along): derivative}  # a new dict: another thread may be saving the old one
    return {
        "component": k,
        "along": along,
        "rows": found.rows,
        "n_top": len(sets.top),
        "n_baseline": len(sets.baseline),
        "logits": pack(np.asarray(found.logits)),
        "derivative": derivative,
        "family": found.family,
        "trusted": None,
    }


def strength(desk: Desk, content: dict[str, Any], tell: Any) -> dict[str, Any]:
    """StrengthResult: the model really run, moved along several components at once, on the examples of one of them.

    Raises
    ------
    ValueError
        When a component does not exist, a strength is not finite, or there is no model.
    """
    from npeff_nb.directions.lift import subject_of
    from npeff_nb.directions.perturb import kl, perturb
    from npeff_nb.explain.profile import in_order, judged

    npeff = desk.npeff
    k = npeff.check_component(content["component"])
    asked = {npeff.check_component(int(j)): float(s) for j, s in content["strengths"].items()}
    if not np.isfinite([*asked.values()]).all():
        raise ValueError(f"strengths {asked}: each must be a finite number")
    steps = {j: s for j, s in asked.items() if s != 0}
    subject = subject_of(npeff)
    with first_with(subject.model):
        sets, shown = judged(npeff, k)
        rows = in_order(sets, shown)
        originals = _ORIGINALS.setdefault(desk, {})
        for j in steps:
            tell(0, 1, f"finding the direction of component {j}")
            desk.direction(j)
        if k not in originals:
            originals[k] = _run(subject, rows, tell, "running the model as it is")
        moved = originals[k]
        if steps:
            with perturb(subject.model, _combined(desk, steps), 1.0):
                moved = _run(subject, rows, tell, "running the edited model")
    distance = kl(moved, originals[k], npeff.family)
    if not np.isfinite(moved).all():
        raise ValueError("the edited model's logits are not finite: it was moved out of the range of its numbers, choose smaller strengths")
    return {
        "strengths": {str(j): s for j, s in asked.items()},
        "kl_top": float(distance[: len(sets.top)].mean()),
        "kl_baseline": float(distance[len(sets.top) : len(sets.top) + len(sets.baseline)].mean()),
        "rows": rows.tolist(),
        "probabilities": np.round(probabilities(moved, npeff.family), 5).tolist(),
    }


def _kept_preview(npeff: NPEFF, k: int, edit: dict[str, Any]) -> dict[str, Any] | None:
    """Preview from a profile that has one."""
    kept = edit.get("preview")
    if kept is None:
        return None
    both = {*edit["top"], *edit["baseline"]}
    return {
        "component": k,
        "along": k,
        "rows": [*edit["top"], *edit["baseline"], *sorted(row for row in edit["shown"] if row not in both)],
        "n_top": len(edit["top"]),
        "n_baseline": len(edit["baseline"]),
        "family": npeff.family,
        **kept,
    }


def _combined(desk: Desk, steps: dict[int, float]) -> dict[str, Any]:
    """Σ strength · direction, parameter by parameter."""
    total: dict[str, Any] = {}
    for j, step in steps.items():
        for name, value in desk.direction(j).items():
            total[name] = total[name].add_(value, alpha=step) if name in total else value * step
    return total


def _run(subject: Subject, rows: np.ndarray, tell: Any, what: str) -> np.ndarray:
    """Logits (m, c) of the examples as the model stands, batch by batch, so that it can be cancelled between two."""
    batches, found = subject.batches.batches(rows), []
    for done, batch in enumerate(batches):
        tell(done, len(batches), what)
        found.append(subject.logits(batch).numpy())
    return np.concatenate(found)[np.argsort(np.concatenate(batches))][np.argsort(np.argsort(rows))]
