"""Errors by component against scipy's tests one at a time, and repairs that are known because the damage was done here."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tiny
import torch
import twins

from npeff_nb import NPEFF
from npeff_nb._progress import Cancelled
from npeff_nb.directions import repair as repair_module
from npeff_nb.directions.perturb import edited_logits
from npeff_nb.directions.repair import USED, error_table, repair
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.predictions import predicted_classes

DAMAGE = 0.2
"""What is wrong with the model: it stands a step of this length back along component 1."""


@pytest.fixture(scope="module")
def whole():
    """Sixty texts whose gold labels are what the model predicts after a step along component 1: that step is the perfect repair."""
    table = tiny.table(60).drop(columns="label")
    pefs = extract_fishers(tiny.bert(initializer_range=0.4), tiny.tokenizer(), table, features="dense", progress=False)
    npeff = NPEFF(4, n_init=1, random_state=0).fit(pefs)
    moved = edited_logits(pefs.subject, npeff.direction(1), [DAMAGE], np.arange(60))[0]
    npeff.examples = npeff.examples.assign(label=predicted_classes(moved, npeff.classes))
    wrong = moved.argmax(1) != npeff.logits.argmax(1)
    assert 6 <= wrong.sum() <= 40  # else there would be nothing to find
    return npeff


def labelled(npeff: NPEFF, labels) -> NPEFF:
    import copy

    own = copy.copy(npeff)
    own.examples = npeff.examples.assign(label=labels)
    return own


# ---------------------------------------------------------------------------------------------------------------- which components


def test_the_table_of_errors_is_fisher_s_test_one_component_at_a_time(whole):
    found = error_table(whole, top=7)
    wrong = np.asarray(whole.classes, dtype=object)[whole.logits.argmax(1)] != whole.examples["label"].to_numpy()
    assert len(found) == 4
    for row in found.itertuples():
        users = whole.coefficients_[:, row.component] >= USED
        counts = [[(users & wrong).sum(), (users & ~wrong).sum()], [(~users & wrong).sum(), (~users & ~wrong).sum()]]
        assert row.examples == users.sum() and row.wrong == counts[0][0]
        assert row.errors == pytest.approx(wrong[users].mean())
        assert row.errors_elsewhere == pytest.approx(wrong[~users].mean(), nan_ok=True)
        assert row.enrichment == pytest.approx(wrong[users].mean() / wrong[~users].mean(), nan_ok=True)
        assert row.p_value == pytest.approx(scipy.stats.fisher_exact(counts, alternative="greater").pvalue)
        assert row.top_errors == pytest.approx(wrong[whole.top_examples(row.component, 7)].mean())
    assert found["p_value"].is_monotonic_increasing
    np.testing.assert_allclose(found["p_adjusted"], scipy.stats.false_discovery_control(found["p_value"]))


def planted(npeff: NPEFF) -> NPEFF:
    """Every user of component 2 is predicted wrongly and nobody else."""
    names = np.asarray(npeff.classes, dtype=object)
    predicted = npeff.logits.argmax(1)
    return labelled(npeff, names[np.where(npeff.coefficients_[:, 2] >= 0.3, (predicted + 1) % len(names), predicted)])


def test_a_component_whose_users_are_wrong_comes_first(whole):
    own = planted(whole)
    own.coefficients_ = np.where(own.coefficients_ >= 0.3, own.coefficients_, 0.0)
    found = error_table(own)
    assert found["component"].iloc[0] == 2
    assert found["errors"].iloc[0] == 1 and found["top_errors"].iloc[0] == 1
    assert found["enrichment"].iloc[0] == math.inf and found["errors_elsewhere"].iloc[0] == 0
    assert found["p_value"].iloc[0] < 1e-6


def test_a_single_wrong_user_does_not_come_first(whole):
    """It has the largest enrichment there is, and little to show for it."""
    own = planted(whole)
    own.coefficients_ = np.where(own.coefficients_ >= 0.3, own.coefficients_, 0.0)
    own.coefficients_[:, 1] = 0
    own.coefficients_[own.top_examples(2, 1), 1] = 1
    found = error_table(own).set_index("component")
    assert found.loc[1, "errors"] == 1 and found.index[0] == 2


def test_components_without_users_are_left_out_and_examples_without_labels_do_not_count(whole):
    labels = whole.examples["label"].to_numpy().copy()
    labels[:20] = None
    own = labelled(whole, labels)
    own.coefficients_ = own.coefficients_.copy()
    own.coefficients_[20:, 3] = 0
    found = error_table(own)
    assert sorted(found["component"]) == [0, 1, 2]
    assert found["examples"].max() <= 40


# ---------------------------------------------------------------------------------------------------------------- repairing


def test_damage_along_a_component_is_found_and_repaired(whole):
    """The step that was left out has to be chosen on one half, and mends the other as well."""
    before = twins.state(whole.subject.model)
    found = repair(whole, [0, 1, 2, 3], (0.05, DAMAGE, 1.0), progress=False)
    twins.assert_untouched(whole.subject.model, before)
    first = found.iloc[0]
    assert (first["component"], first["strength"], first["chosen"]) == (1, DAMAGE, True)
    assert found["chosen"].sum() == 1
    assert first["tuning_after"] == first["accuracy_after"] == 1
    assert first["accuracy_before"] < 0.95
    assert first["broken"] == 0 and first["fixed"] == round((1 - first["accuracy_before"]) * first["examples"])
    assert found["tuning_after"].is_monotonic_decreasing
    assert (found["tuning_examples"] == 30).all() and (found["examples"] == 30).all()


def test_nothing_is_tuned_and_tested_on_the_same_examples(whole, monkeypatch):
    """Of the model's runs, the search's are over one half and each component's last is over the other."""
    asked = []

    def watched(subject, along, strengths, rows):
        asked.append((strengths[0], frozenset(rows.tolist())))
        return edited_logits(subject, along, strengths, rows)

    monkeypatch.setattr(repair_module, "edited_logits", watched)
    found = repair(whole, [1], (0.05, DAMAGE), progress=False)
    *search, last = asked
    tuning = search[0][1]
    assert len(search) == 4 and {rows for _, rows in search} == {tuning}
    assert not tuning & last[1] and tuning | last[1] == set(range(60))
    assert last[0] == found["strength"].iloc[0]


def test_the_choice_does_not_hang_on_the_other_half_s_labels(whole, monkeypatch):
    """Whatever the labels of the other half: same component, same strength, same accuracy where it was tuned."""
    _, wrong, known = repair_module._errors(whole)
    halves = repair_module._halves(whole.examples["label"].to_numpy(), wrong, np.flatnonzero(known), 0.5, 0)
    monkeypatch.setattr(repair_module, "_halves", lambda *a: halves)
    labels = whole.examples["label"].to_numpy().copy()
    labels[halves[1]] = np.random.default_rng(0).choice(whole.classes, len(halves[1]))
    here, there = (repair(one, None, (0.05, DAMAGE), progress=False) for one in (whole, labelled(whole, labels)))
    columns = ["component", "strength", "tuning_examples", "tuning_before", "tuning_after", "chosen"]
    pd.testing.assert_frame_equal(here[columns], there[columns])
    assert not np.allclose(here["accuracy_before"], there["accuracy_before"])


@pytest.mark.parametrize("split", [0.5, 0.3, 0.8])
def test_halves_have_the_same_labels_and_errors(split):
    rng = np.random.default_rng(1)
    gold = rng.choice(np.array(["a", "b", "c"], dtype=object), 400, p=[0.7, 0.25, 0.05])
    wrong, rows = rng.random(400) < 0.2, np.sort(rng.permutation(400)[:350])
    one, other = repair_module._halves(gold, wrong, rows, split, 0)
    assert sorted([*one, *other]) == rows.tolist()
    assert len(one) == pytest.approx(split * 350, abs=1)
    for label in "abc":
        for error in (False, True):
            there = ((gold == label) & (wrong == error))[rows].sum()
            # Every so many of a run of like examples: one more or less at each end.
            assert ((gold == label) & (wrong == error))[one].sum() == pytest.approx(split * there, abs=1)
    assert repair_module._halves(gold, wrong, rows, split, 1)[0].tolist() != one.tolist()
    assert repair_module._halves(gold, wrong, rows, split, 0)[0].tolist() == one.tolist()


def test_where_nothing_helps_nothing_is_done(whole):
    """The damaged model's own errors, and a step too small to change any prediction."""
    found = repair(whole, [0, 1], (1e-9,), progress=False)
    assert (found["strength"] == 0).all() and not found["chosen"].any()
    assert (found["accuracy_after"] == found["accuracy_before"]).all() and (found["p_value"] == 1).all()
    assert found[["change_low", "change_high"]].isna().all().all()


def test_the_components_most_surely_tied_to_errors_are_tried(whole, monkeypatch):
    monkeypatch.setattr(repair_module, "CANDIDATES", 2)
    _, wrong, known = repair_module._errors(whole)
    tuning, _ = repair_module._halves(whole.examples["label"].to_numpy(), wrong, np.flatnonzero(known), 0.5, 0)
    own = repair_module._table(whole, wrong, tuning, 20)
    found = repair(whole, None, (0.2,), progress=False)
    assert sorted(found["component"]) == sorted(own["component"].head(2))


@pytest.mark.parametrize(("fixed", "broken", "same"), [(9, 1, 90), (3, 3, 10), (1, 0, 5), (0, 6, 30), (25, 12, 400)])
def test_mcnemar_s_exact_test_and_its_interval(fixed, broken, same):
    """The binomial sum written out; the interval ends where the same test of a shifted share stands at 2.5 % on its side."""
    before = np.array([False] * fixed + [True] * broken + [True] * same)
    after = np.array([True] * fixed + [False] * broken + [True] * same)
    found, n, changed = repair_module._compared(before, after), len(before), fixed + broken
    tail = sum(math.comb(changed, i) for i in range(max(fixed, broken), changed + 1)) / 2**changed
    assert found["p_value"] == pytest.approx(min(1, 2 * tail))
    assert found["fixed"] == fixed and found["broken"] == broken and found["examples"] == n
    assert found["change"] == pytest.approx(after.mean() - before.mean())
    assert found["change_low"] <= found["change"] <= found["change_high"]
    for end, least in (("change_low", fixed > 0), ("change_high", broken > 0)):
        share = (found[end] * n / changed + 1) / 2
        if least:
            side = scipy.stats.binom.sf(fixed - 1, changed, share) if end == "change_low" else scipy.stats.binom.cdf(fixed, changed, share)
            assert side == pytest.approx(0.025, rel=1e-6)
        else:
            assert found[end] == pytest.approx(changed / n * (1 if end == "change_high" else -1))
    assert (found["p_value"] < 0.05) == (found["change_low"] > 0 or found["change_high"] < 0)


def test_progress_counts_to_its_end_and_may_stop_it(whole):
    told = []
    repair(whole, [0, 1], (0.2,), progress=lambda *step: told.append(step))
    assert {total for _, total, _ in told} == {2 + 2 * 3} and told[-1][0] == 8
    before = twins.state(whole.subject.model)

    def stop(done, total, what):
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        repair(whole, [0, 1], (0.2,), progress=stop)
    twins.assert_untouched(whole.subject.model, before)


@pytest.mark.parametrize("function", [error_table, repair])
def test_without_gold_labels_or_errors_it_says_so(function, whole, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "add_", lambda *a, **k: pytest.fail("the model was edited"))
    bare = labelled(whole, None)
    bare.examples = bare.examples.drop(columns="label")
    with pytest.raises(ValueError, match=r"errors need gold labels, a column 'label' .* by name or by number; there is none \(classes: 'LABEL_0'"):
        function(bare)
    with pytest.raises(ValueError, match=r"errors need gold labels.*; its values are others"):
        function(labelled(whole, "spam"))
    names = np.asarray(whole.classes, dtype=object)
    with pytest.raises(ValueError, match="all 60 predictions with a gold label are right: there are no errors to tie components to"):
        function(labelled(whole, names[whole.logits.argmax(1)]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": 0}, "split=0: it is the share of the examples to tune on, above 0 and below 1"),
        ({"split": 1.0}, "split=1.0: it is the share"),
        ({"split": 0.001}, r"split=0.001 of 60 examples with \d+ errors leaves 0 to tune on, with 0 of the errors, and 60 to test on: too few"),
        ({"components": [4]}, "component 4 does not exist"),
        ({"components": []}, "components is empty"),
        ({"strengths": (0,)}, "give finite L2 distances other than 0"),
    ],
)
def test_what_cannot_be_tried_is_refused(arguments, words, whole):
    with pytest.raises(ValueError, match=words):
        repair(whole, progress=False, **arguments)


def test_errors_that_are_all_in_the_other_half_are_too_few(whole):
    """One error, and one example to tune on, which is another."""
    names, wrong = np.asarray(whole.classes, dtype=object), whole.logits.argmax(1)
    wrong[0] = (wrong[0] + 1) % len(names)
    words = "split=0.02 of 60 examples with 1 error leaves 1 to tune on, with 0 of the errors, and 59 to test on: too few"
    with pytest.raises(ValueError, match=words):
        repair(labelled(whole, names[wrong]), split=0.02, progress=False)
