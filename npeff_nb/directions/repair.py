"""Repair: components that are tied to errors, and whether an edit along one mends more than it breaks.

Whatever is chosen by labels (component, sign, strength) is chosen on one half of the examples and judged on the other.  The components themselves
were found, and are lifted, from all examples and without labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control, hypergeom

from npeff_nb._progress import Bar, Progress
from npeff_nb.directions.lift import direction, subject_of
from npeff_nb.directions.perturb import edited_logits
from npeff_nb.directions.sweeps import signed_strengths
from npeff_nb.fisher.predictions import gold_labels, predicted_classes, predictions_of

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

USED = 0.05
"""An example uses a component from this coefficient on, as in the table of components."""
TOP = 20
"""Top examples of a component, as in the table of components."""
CANDIDATES = 4
"""Components that a repair tries, those most surely tied to errors."""
STRENGTHS = (0.05, 0.1, 0.2, 0.4)
"""L2 distances that a repair tries.  Each costs two passes over half of the examples for every component."""


def error_table(npeff: Factorisation, top: int = TOP) -> pd.DataFrame:
    """How components are tied to wrong predictions: one row for each that examples use, the surest tie first.

    Sorted by p-value and not by enrichment, of which a component with a single, wrong user would have the most.

    Parameters
    ----------
    top : how many examples with the largest coefficients ``top_errors`` is about.

    Returns
    -------
    DataFrame: ``component``; ``examples`` that use it (coefficient ≥ 0.05) and have a gold label, how many of them are ``wrong``; ``errors``, their
    share; ``errors_elsewhere``, that among all others; ``enrichment``, the one by the other; ``p_value``, of as many errors or more if errors fell
    on examples by chance (hypergeometric, one side of Fisher's exact test); ``p_adjusted``, false discovery rate over all components (Benjamini and
    Hochberg); ``top_errors``.

    Raises
    ------
    ValueError
        When there are no gold labels, or no errors.
    """
    _, wrong, known = _errors(npeff)
    return _table(npeff, wrong, np.flatnonzero(known), top)


def repair(
    npeff: Factorisation,
    components: int | Iterable[int] | None = None,
    strengths: Iterable[float] = STRENGTHS,
    split: float = 0.5,
    seed: int = 0,
    *,
    progress: bool | Progress = True,
) -> pd.DataFrame:
    """Searches edits on one half of the examples and reports them on the other.

    The halves have the same shares of each label, and of errors within it.  On the tuning half each component gets the sign and strength with the
    highest accuracy (the smallest one, where several have it), and the components are put in that order.  Then each is run once over the other half.

    Parameters
    ----------
    components : by default the four that are most surely tied to errors on the tuning half (:func:`error_table`).
    strengths : L2 distances; both signs are tried.
    split : share of the examples to tune on.
    progress : a bar, none, or a function called as (done, total, what), which may raise :class:`~npeff_nb._progress.Cancelled`.

    Returns
    -------
    DataFrame, one row a component, best on the tuning half first.  ``component``; ``strength``, signed, 0 where nothing was better than no edit.
    ``tuning_examples``, ``tuning_before``, ``tuning_after``: the half that was chosen on, and accuracy on it.  Of the other half: ``examples``;
    ``accuracy_before``, ``accuracy_after``, ``change``; ``change_low``, ``change_high``, the 95 % interval of McNemar's exact test, given how many
    predictions became right or wrong (missing where none did); ``fixed`` and ``broken``, how many became the one and the other; ``p_value`` of that
    test.  ``chosen``: the first row, where it edits anything; to prefer another for its figures on the other half would be to tune on it.

    Raises
    ------
    ValueError
        No gold labels, no errors, halves without examples, or no model at hand.
    """
    subject = subject_of(npeff)
    signed = signed_strengths(strengths)
    gold, wrong, known = _errors(npeff)
    tuning, other = _halves(gold, wrong, np.flatnonzero(known), split, seed)
    if components is None:
        chosen = _table(npeff, wrong, tuning, TOP)["component"].head(CANDIDATES).tolist()
    else:
        given = [components] if isinstance(components, (int, np.integer)) else components
        chosen = list(dict.fromkeys(npeff.check_component(k) for k in given))
    if not chosen:
        raise ValueError("components is empty: give numbers of components, or leave it out for those tied to errors")

    def right(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return predicted_classes(logits, npeff.classes, npeff.family) == gold[rows]

    found = []
    with Bar(progress, 2 + len(chosen) * (len(signed) + 1), "Repair", "pass") as bar:
        bar.what = "the model as it is"
        # In the same batches as under every edit.
        before, before_other = (right(subject.logits(rows).numpy(), rows) for rows in (tuning, other))
        bar.add(2)
        for k in chosen:
            along = direction(npeff, k)
            best, after = 0.0, before.mean()
            for strength in sorted(signed, key=abs):
                bar.what = f"component {k} at strength {strength:+g}"
                accuracy = right(edited_logits(subject, along, [strength], tuning)[0], tuning).mean()
                bar.add(1)
                if accuracy > after:
                    best, after = float(strength), accuracy
            now = right(edited_logits(subject, along, [best], other)[0], other) if best else before_other
            bar.add(1)
            row = {"component": k, "strength": best, "tuning_examples": len(tuning), "tuning_before": before.mean(), "tuning_after": after}
            found.append(row | _compared(before_other, now))
    table = pd.DataFrame(found).sort_values("tuning_after", ascending=False, kind="stable", ignore_index=True)
    return table.assign(chosen=(np.arange(len(table)) == 0) & (table["strength"] != 0))


def _errors(npeff: Factorisation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold labels (n,), which predictions are wrong (n,), and for which that is known (n,)."""
    gold = gold_labels(npeff.examples, npeff.classes)
    if gold is None:
        has = "there is none" if npeff.examples is None or "label" not in npeff.examples.columns else "its values are others"
        classes = ", ".join(map(repr, (npeff.classes or [])[:6])) or "none"
        raise ValueError(
            "errors need gold labels, a column 'label' of the examples that holds the model's classes by name or by number; "
            f"{has} (classes: {classes})"
        )
    known = pd.notna(gold) & (npeff.norms > 0)
    wrong = known & (predictions_of(npeff) != gold)
    if not wrong.any():
        raise ValueError(f"all {int(known.sum())} predictions with a gold label are right: there are no errors to tie components to")
    return gold, wrong, known


def _table(npeff: Factorisation, wrong: np.ndarray, rows: np.ndarray, top: int) -> pd.DataFrame:
    """:func:`error_table` of some of the examples."""
    W, wrong = npeff.coefficients_[rows], wrong[rows]
    users = W >= USED
    examples, errors = users.sum(0), (users & wrong[:, None]).sum(0)
    best = np.argsort(-W, axis=0, kind="stable")[:top]
    in_top = np.take_along_axis(W, best, 0) > 0
    share = np.divide(errors, examples, out=np.full(len(examples), np.nan), where=examples > 0)
    rest = len(rows) - examples
    elsewhere = np.divide(wrong.sum() - errors, rest, out=np.full(len(examples), np.nan), where=rest > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        enrichment, top_errors = share / elsewhere, (in_top & wrong[best]).sum(0) / in_top.sum(0)
    found = pd.DataFrame({
        "component": np.arange(len(examples)), "examples": examples, "wrong": errors, "errors": share, "errors_elsewhere": elsewhere,
        "enrichment": enrichment, "p_value": hypergeom.sf(errors - 1, len(rows), int(wrong.sum()), examples), "top_errors": top_errors,
    })  # fmt: skip
    found = found[found["examples"] > 0]
    found.insert(7, "p_adjusted", false_discovery_control(found["p_value"].clip(0, 1)) if len(found) else np.nan)
    return found.sort_values(["p_value", "enrichment"], ascending=[True, False], kind="stable", ignore_index=True)


def _halves(gold: np.ndarray, wrong: np.ndarray, rows: np.ndarray, split: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples to tune on and the others, by label and error in the same shares."""
    if not 0 < split < 1:
        raise ValueError(f"split={split!r}: it is the share of the examples to tune on, above 0 and below 1")
    labels = pd.factorize(gold[rows])[0]
    order = rows[np.lexsort((np.random.default_rng(seed).random(len(rows)), wrong[rows], labels))]
    # Every so many of a list in which like stands beside like.
    place = np.arange(len(order))
    taken = np.floor((place + 1) * split) > np.floor(place * split)
    errors, in_tuning = int(wrong.sum()), int(wrong[order[taken]].sum())
    if taken.all() or not in_tuning:
        raise ValueError(
            f"split={split:g} of {len(rows)} examples with {errors} error{'s' * (errors != 1)} leaves {int(taken.sum())} to tune on, "
            f"with {in_tuning} of the errors, and {int((~taken).sum())} to test on: too few"
        )
    return np.sort(order[taken]), np.sort(order[~taken])


def _compared(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Accuracy before and after on the same examples, by McNemar's exact test."""
    fixed, broken, n = int((~before & after).sum()), int((before & ~after).sum()), len(before)
    changed = fixed + broken
    low = high = np.nan
    if changed:
        of_changed = binomtest(fixed, changed).proportion_ci(0.95)
        low, high = ((2 * p - 1) * changed / n for p in (of_changed.low, of_changed.high))
    return {
        "examples": n, "accuracy_before": before.mean(), "accuracy_after": after.mean(), "change": (fixed - broken) / n, "change_low": low,
        "change_high": high, "fixed": fixed, "broken": broken, "p_value": binomtest(fixed, changed).pvalue if changed else 1.0,
    }  # fmt: skip
