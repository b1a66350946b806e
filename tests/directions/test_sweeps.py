"""Sweeps against models edited by hand, and what is read from their tables against the same said slowly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tiny
import torch
import twins

from npeff_nb import NPEFF
from npeff_nb._progress import Cancelled
from npeff_nb.directions import sweeps
from npeff_nb.directions.controls import clusters, control
from npeff_nb.directions.perturb import edit_sets, kl, perturb
from npeff_nb.directions.sweeps import SETS, _reader, effects, label_matched, matched, medians, sweep
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import MultiLabel, NextToken

SMALL = {"n_top": 5, "n_baseline": 8, "progress": False}
KEYS = ["component", "direction", "strength"]


@pytest.fixture(scope="module")
def table(fitted_once, shared):
    """Read by many tests, changed by none."""
    return sweep(fitted_once, [2, 0], (0.1, 0.4), controls=("random", "combination", "kmeans", "other", 3), fishers=shared, **SMALL)


# ---------------------------------------------------------------------------------------------------------------- what is run


def test_every_row_is_the_edited_model_s(table, fitted_once, shared):
    """Copies of the model in float64, moved by hand, one text at a time."""
    npeff, found = fitted_once, clusters(shared, fitted_once, 4)
    gold = np.asarray(shared.classes, dtype=object)[shared.examples["label"]]
    still = {row: one_by_one(tiny.bert(), shared.examples["text"][row]) for row in table["example"].unique()}
    checked = 0
    for k in (2, 0):
        like = npeff.direction(k)
        for kind in ("component", "random", "combination", "kmeans", "other", "component 3"):
            along = like if kind == "component" else control(npeff, k, 3 if kind == "component 3" else kind, like, found)
            for strength in (-0.4, 0.1):
                moved = tiny.bert().double()
                with torch.no_grad():
                    for name, p in moved.named_parameters():
                        p += strength * along[name].double() if name in along else 0
                rows = table[(table["component"] == k) & (table["direction"] == kind) & (table["strength"] == strength)]
                assert len(rows) >= 13
                for row in rows.itertuples():
                    new, old = one_by_one(moved, shared.examples["text"][row.example]), still[row.example]
                    predicted = int(old.argmax())
                    p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (new, old))
                    # float32 logits: their 1e-6 is doubled by two of them, and enters a KL times √KL.
                    assert row.kl == pytest.approx(scipy.stats.entropy(p, q), rel=1e-3, abs=1e-8)
                    odds = [np.log(d[predicted] / np.delete(d, predicted).sum()) for d in (p, q)]
                    assert row.log_odds == pytest.approx(odds[0] - odds[1], abs=1e-4)
                    assert row.flip == (new.argmax() != predicted)
                    assert row.correct == (shared.classes[int(new.argmax())] == gold[row.example])
                    assert row.was_correct == (shared.classes[predicted] == gold[row.example])
                    assert row.norm == shared.norms[row.example]
                    checked += 1
    assert checked == len(table) / 2


def one_by_one(model, text: str) -> np.ndarray:
    with torch.no_grad():
        return model.double()(**tiny.tokenizer()([text], return_tensors="pt")).logits[0].numpy()


def test_the_table_is_small_and_says_what_it_is(table):
    assert table["component"].unique().tolist() == [2, 0]
    assert list(table["direction"].cat.categories) == ["component", "random", "combination", "kmeans", "other", "component 3"]
    assert list(table["set"].cat.categories) == list(SETS)
    assert sorted(table["strength"].unique()) == [-0.4, -0.1, 0.1, 0.4]
    assert not table.duplicated([*KEYS, "set", "example"]).any()
    assert not table.isna().any().any()
    assert table.memory_usage(deep=True).sum() / len(table) < 64  # bytes; words alone would be more


def test_the_sets_are_those_of_an_edit(table, fitted_once):
    for k in (0, 2):
        own = {name: set(part["example"]) for name, part in table[table["component"] == k].groupby("set", observed=True)}
        sets = edit_sets(fitted_once.coefficients_[:, k], 5, 8, seed=k, eligible=fitted_once.norms > 0)
        assert own["top"] == set(sets.top) and own["baseline"] == set(sets.baseline)
        assert not own["top"] & own["label_matched"]
        predicted = fitted_once.logits.argmax(1)
        wanted, shared = (np.bincount(predicted[list(own[name])], minlength=3) for name in ("top", "baseline"))
        # What the random baseline has of a class is taken from there first.
        assert len(own["label_matched"] & own["baseline"]) == np.minimum(wanted, shared).sum()


def test_the_label_matched_set_has_the_top_set_s_labels():
    labels = np.array(list("aaaaaaaabbbbbbbbccccccccdddddddd"))
    top = np.array([0, 1, 8])  # two a, one b
    order = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(32), top))
    found = label_matched(labels, top, order)
    assert labels[found].tolist() == ["a", "a", "b"]
    assert not set(found) & set(top)
    for label, n in (("a", 2), ("b", 1)):  # the first of each in the draw of the baseline
        assert set(found[labels[found] == label]) == set([i for i in order if labels[i] == label][:n])


@pytest.mark.parametrize(("left", "expected"), [(1, "abb"), (0, "bb"), (4, "aabb")])
def test_where_a_label_is_scarce_there_is_what_there_is(left, expected):
    labels = np.array(["a"] * (2 + left) + ["b"] * 20)
    top = np.array([0, 1, 2 + left, 3 + left])  # two a, two b
    found = label_matched(labels, top, np.setdiff1d(np.arange(len(labels)), top))
    assert "".join(labels[found]) == expected


def test_baselines_share_what_they_can():
    """Both are beginnings of one draw, so the examples that are run are fewer than the sets' sizes together."""
    rng = np.random.default_rng(0)
    labels, top = rng.integers(0, 3, 300), np.arange(20)
    order = rng.permutation(np.arange(20, 300))
    found, baseline = label_matched(labels, top, order), order[:15]
    shared = np.minimum(np.bincount(labels[top]), np.bincount(labels[baseline])).sum()
    assert len(set(found) & set(baseline)) == shared > 10


def test_one_forward_for_each_direction_and_strength_and_one_as_it_is(npeff, shared, monkeypatch):
    asked, told = [], []
    logits = shared.subject.logits
    monkeypatch.setattr(shared.subject, "logits", lambda rows: (asked.append(tuple(rows)), logits(rows))[1])
    sweep(npeff, [1], (0.1, 0.2), controls={"random": (1, 2, 3), "other": None}, **SMALL | {"progress": lambda *step: told.append(step)})
    forwards = 1 + 4 + 6 + 4
    assert len(asked) == forwards and len(set(asked)) == 1
    assert [done for done, _, _ in told] == list(range(forwards + 1))
    assert {total for _, total, _ in told} == {forwards}
    assert told[1][2] == "component 1: the model as it is" and told[-1][2] == "component 1: other at strength +0.2"


def test_controls_may_have_strengths_of_their_own(npeff):
    found = sweep(npeff, [1], (0.1,), controls={"random": (-5, 0, 5, 2), "combination": None}, **SMALL)
    strengths = found.groupby("direction", observed=True)["strength"].unique().map(sorted)
    assert strengths.to_dict() == {"component": [-0.1, 0.1], "random": [-5, -2, 2, 5], "combination": [-0.1, 0.1]}


def test_a_direction_that_was_lifted_before_is_taken_as_it_is(npeff):
    found = npeff.direction(0)
    changed = type(found)({name: -value for name, value in found.items()})
    here, there = sweep(npeff, [0], (0.3,), controls=(), **SMALL), sweep(npeff, {0: changed}, (0.3,), controls=(), **SMALL)
    there["strength"] *= -1
    both = here.merge(there, on=[*KEYS, "set", "example"])
    assert len(both) == len(here)
    np.testing.assert_allclose(both["kl_x"], both["kl_y"], rtol=1e-5)


def test_equal_seeds_give_equal_tables_and_others_do_not(npeff):
    def run(seed):
        return sweep(npeff, [1], (0.3,), seed=seed, **SMALL)

    pd.testing.assert_frame_equal(run(3), run(3))
    assert not run(3)["kl"].equals(run(4)["kl"])


@pytest.mark.parametrize("at", range(10))
def test_the_model_is_left_as_it_was_also_when_it_is_cancelled(at, npeff, shared):
    """Between any two of 1 + 2 · 4 forwards, also within a direction."""
    before = twins.state(shared.subject.model)

    def stop(done, total, what):
        if done == at:
            raise Cancelled

    with pytest.raises(Cancelled):
        sweep(npeff, [1], (0.1, 0.4), **SMALL | {"progress": stop})
    twins.assert_untouched(shared.subject.model, before)


def test_the_model_is_left_as_it_was_when_it_fails_under_an_edit(npeff, shared, monkeypatch):
    before, asked, logits = twins.state(shared.subject.model), [], shared.subject.logits

    def fails(rows):
        asked.append(rows)
        if len(asked) == 4:
            raise MemoryError
        return logits(rows)

    monkeypatch.setattr(shared.subject, "logits", fails)
    with pytest.raises(MemoryError):
        sweep(npeff, [1], (0.1, 0.4), **SMALL)
    twins.assert_untouched(shared.subject.model, before)


def test_parameters_are_copied_once_for_each_direction(npeff, monkeypatch):
    opened = []
    monkeypatch.setattr(sweeps, "perturb", lambda *given: (opened.append(given), perturb(*given))[1])
    sweep(npeff, [1, 3], (0.1, 0.2, 0.4), controls=("random",), **SMALL)
    assert len(opened) == 4


def test_without_gold_labels_correctness_is_missing(npeff):
    npeff.examples = npeff.examples.drop(columns="label")
    found = sweep(npeff, [0], (0.3,), **SMALL)
    assert found["correct"].isna().all() and found["was_correct"].isna().all()
    assert not found[["kl", "log_odds", "flip"]].isna().any().any()
    assert effects(found, draws=10)["accuracy_change_top"].isna().all()


def test_a_missing_label_is_missing_and_the_others_count(npeff):
    npeff.examples = npeff.examples.assign(label=[*np.asarray(npeff.classes, dtype=object)[npeff.examples["label"]][:-1], None])
    found = sweep(npeff, [0], (0.3,), **SMALL | {"n_baseline": 30})
    assert found["correct"].isna().to_numpy().tolist() == (found["example"] == 23).tolist()


def test_components_without_users_are_left_out(npeff):
    npeff.coefficients_[:, 1] = 0
    assert sweep(npeff, None, (0.3,), controls=(), **SMALL)["component"].unique().tolist() == [0, 2, 3]


def test_independent_labels():
    """KL over all labels; flips where any of them changes; log-odds of the whole prediction, by probabilities."""
    model = tiny.bert_for("SequenceClassification", problem_type="multi_label_classification")
    pefs = extract_fishers(model, tiny.tokenizer(), tiny.table(16)[["text"]], features="dense", output=MultiLabel(), progress=False)
    npeff = NPEFF(2, n_init=1, random_state=0).fit(pefs)
    found = sweep(npeff, [0], (0.5,), controls=("kmeans",), fishers=pefs, **SMALL)
    along, subject = npeff.direction(0), pefs.subject
    old = {row: subject.logits(np.array([row]))[0].double().numpy() for row in range(16)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.5 * along[name] if name in along else 0
    for row in found[(found["direction"] == "component") & (found["strength"] == 0.5)].itertuples():
        new = subject.logits(np.array([row.example]))[0].double().numpy()
        p, q = 1 / (1 + np.exp(-new)), 1 / (1 + np.exp(-old[row.example]))
        yes = old[row.example] > 0
        assert row.kl == pytest.approx((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(), rel=1e-3, abs=1e-8)
        assert row.flip == ((new > 0) != yes).any()
        whole = [np.where(yes, x, 1 - x).prod() for x in (p, q)]
        assert row.log_odds == pytest.approx(np.subtract(*(np.log(x / (1 - x)) for x in whole)), abs=1e-4)


def test_few_of_many_classes_are_what_predictions_are_among():
    """A language model's next token: the kept outcomes of each example and anything else."""
    model = tiny.llama_for("CausalLM")
    pefs = extract_fishers(
        model, tiny.tokenizer(types=False), tiny.table(16)[["text"]], features="dense", output=NextToken(), classes=3, parameters="*down_proj*",
        progress=False,
    )  # fmt: skip
    npeff = NPEFF(2, n_init=1, random_state=0).fit(pefs)
    found = sweep(npeff, [0], (0.5, 2.0), controls=(), **SMALL)
    assert found["correct"].isna().all()
    assert pefs.logits.shape[1] == 4 and (pefs.logits.argmax(1) == 3).any()  # "anything else" is the likeliest somewhere
    along, rows = npeff.direction(0), found["example"].unique()
    old = pefs.subject.logits(np.sort(rows)).numpy()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 2 * along[name] if name in along else 0
    new = pefs.subject.logits(np.sort(rows)).numpy()
    for row in found[found["strength"] == 2.0].itertuples():
        at = np.sort(rows).tolist().index(row.example)
        best = old[at, :3].argmax()
        assert row.flip == (new[at, :3].argmax() != best)
        p, q = (np.exp(z[at] - z[at].max()) / np.exp(z[at] - z[at].max()).sum() for z in (new.astype(float), old.astype(float)))
        assert row.log_odds == pytest.approx(np.log(p[best] / (1 - p[best])) - np.log(q[best] / (1 - q[best])), abs=1e-4)
        assert row.kl == pytest.approx(kl(new[at], old[at]), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"components": [9]}, r"component 9 does not exist: this decomposition has 4 \(0 to 3\)"),
        ({"components": []}, "components is empty: give numbers of components"),
        ({"components": [1]}, "component 1 is used by no example, so there is nothing on which to judge its edit"),
        ({"strengths": (0.1, float("nan"))}, "give finite L2 distances other than 0; both signs of each are run"),
        ({"strengths": ()}, "give finite L2 distances other than 0"),
        ({"strengths": (0, -0.0)}, "give finite L2 distances other than 0"),
        ({"controls": ("noise",)}, "controls has 'noise'; choose from 'random', 'combination', 'kmeans', 'other' and the numbers of components"),
        ({"controls": (7,)}, "component 7 does not exist"),
        ({"controls": ("kmeans",)}, 'the control "kmeans" clusters per-example gradients, which a decomposition does not keep: give fishers='),
        ({"n_top": 0}, "n_top=0, n_baseline=8: each set needs at least 1 example"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(arguments, words, npeff, monkeypatch):
    monkeypatch.setattr(type(npeff.subject), "logits", lambda *a: pytest.fail("the model was run"))
    npeff.coefficients_[:, 1] = 0
    with pytest.raises(ValueError, match=words):
        sweep(npeff, **SMALL | {"components": [0]} | arguments)


def test_one_example_is_no_sweep(tokenizer):
    pefs = extract_fishers(tiny.bert(), tokenizer, tiny.TEXTS[:1], features="dense", progress=False)
    with pytest.raises(ValueError, match="this decomposition has 1 example: an edit is judged against other examples"):
        sweep(NPEFF(1, n_init=1, random_state=0).fit(pefs))


@pytest.mark.parametrize("n", [2, 3])
def test_two_or_three_examples_are_enough(n, tokenizer):
    pefs = extract_fishers(tiny.bert(), tokenizer, tiny.TEXTS[:n], features="dense", progress=False)
    npeff = NPEFF(1, n_init=1, random_state=0).fit(pefs)
    found = effects(sweep(npeff, None, (0.3,), progress=False), draws=20)
    assert (found["examples_top"] == 1).all() and (found["examples_baseline"] == n - 1).all()
    assert (found["kl_ratio"] > 0).all()


# ---------------------------------------------------------------------------------------------------------------- what is read from it


def test_effects_are_the_means_of_the_rows(table):
    found = effects(table, draws=50)
    assert len(found) == 2 * 6 * 4
    for row in found.itertuples():
        part = table[(table["component"] == row.component) & (table["direction"] == row.direction) & (table["strength"] == row.strength)]
        mean = {}
        for name in SETS:
            own = part[part["set"] == name]
            mean[name] = own["kl"].mean()
            assert getattr(row, f"kl_{name}") == pytest.approx(mean[name])
            assert getattr(row, f"flips_{name}") == pytest.approx(own["flip"].mean())
            assert getattr(row, f"log_odds_{name}") == pytest.approx(own["log_odds"].mean(), rel=1e-5, abs=1e-7)
            assert getattr(row, f"accuracy_change_{name}") == pytest.approx(own["correct"].mean() - own["was_correct"].mean())
        top, baseline = (part[part["set"] == name] for name in ("top", "baseline"))
        assert row.kl_ratio == pytest.approx(mean["top"] / mean["baseline"])
        assert row.label_ratio == pytest.approx(mean["top"] / mean["label_matched"])
        assert row.kl_ratio_per_norm == pytest.approx((mean["top"] / top["norm"].mean()) / (mean["baseline"] / baseline["norm"].mean()))
        assert row.examples_top == len(top) and row.examples_baseline == len(baseline)
    own = found[found["direction"] == "component"].set_index(["component", "strength"])["kl_ratio"]
    expected = [own[row.component, row.strength] / row.kl_ratio for row in found.itertuples()]
    np.testing.assert_allclose(found["advantage"], expected)
    for name in ("kl_ratio", "label_ratio", "kl_ratio_per_norm", "advantage"):
        assert (found[f"{name}_low"] <= found[name] * (1 + 1e-9)).all() and (found[name] * (1 - 1e-9) <= found[f"{name}_high"]).all()


def made(kl_of: dict, n_top: int = 40, n_baseline: int = 60, seed: int = 0, strengths=(0.1, 0.2, 0.4), components=(0,)) -> pd.DataFrame:
    """A table whose KLs are ``kl_of[direction](strength, set, noise of the example)``."""
    rows = []
    for k in components:
        rng = np.random.default_rng([seed, k])
        noise = {"top": rng.lognormal(size=n_top), "baseline": rng.lognormal(size=n_baseline), "label_matched": rng.lognormal(size=n_top)}
        for direction, function in kl_of.items():
            own = strengths[direction] if isinstance(strengths, dict) else strengths
            for strength in (s * sign for s in own for sign in (-1, 1)):
                for name, of_set in noise.items():
                    shift = 1000 * SETS.index(name)
                    rows += [(k, direction, strength, name, shift + i, function(strength, name, x)) for i, x in enumerate(of_set)]
    found = pd.DataFrame(rows, columns=[*KEYS, "set", "example", "kl"])
    return found.assign(log_odds=0.0, flip=False, correct=True, was_correct=True, norm=1.0)


def test_intervals_are_those_of_a_percentile_bootstrap():
    """scipy's own, of the ratio of two means of independent samples; 4000 draws leave about 3 % on each end."""
    sample = made({"component": lambda s, name, x: abs(s) * (3 * x if name == "top" else x)})
    found = effects(sample, draws=4000, seed=1).iloc[0]
    part = sample[sample["strength"] == found["strength"]]
    top, baseline = (part[part["set"] == name]["kl"].to_numpy() for name in ("top", "baseline"))
    expected = scipy.stats.bootstrap(
        (top, baseline), lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    )
    assert found["kl_ratio_low"] == pytest.approx(expected.confidence_interval.low, rel=0.05)
    assert found["kl_ratio_high"] == pytest.approx(expected.confidence_interval.high, rel=0.05)


def test_component_and_control_see_the_same_resample():
    """A control that does half of what the component does to each top example has exactly half its ratio in every resample."""
    found = effects(
        made({
            "component": lambda s, name, x: x,
            "half": lambda s, name, x: x / 2 if name == "top" else x,
            "apart": lambda s, name, x: 1 / x,
        }), draws=200,
    ).set_index("direction")  # fmt: skip
    assert found.loc["half", "advantage"].to_numpy() == pytest.approx(2)
    assert (found.loc["half", "advantage_high"] - found.loc["half", "advantage_low"]).to_numpy() == pytest.approx(0, abs=1e-9)
    assert (found.loc["apart", "advantage_high"] > 1.2 * found.loc["apart", "advantage_low"]).all()
    assert (found.loc["half", "kl_ratio_high"] > 1.2 * found.loc["half", "kl_ratio_low"]).all()


def test_signs_are_never_merged():
    found = effects(made({"component": lambda s, name, x: (9 if s > 0 else 1) * (2 if name == "top" else 1) * x}), draws=20)
    assert sorted(found["strength"]) == [-0.4, -0.2, -0.1, 0.1, 0.2, 0.4]
    plus, minus = found[found["strength"] > 0], found[found["strength"] < 0]
    np.testing.assert_allclose(plus["kl_top"].to_numpy(), 9 * minus["kl_top"].to_numpy()[::-1])
    np.testing.assert_allclose(plus["kl_ratio"], minus["kl_ratio"].iloc[0])


def test_what_did_not_move_has_no_ratio():
    found = effects(made({"component": lambda s, name, x: x if name == "top" else 0.0}), draws=20)
    assert found[["kl_ratio", "kl_ratio_low", "kl_ratio_high", "kl_ratio_per_norm", "advantage"]].isna().all().all()
    assert (found["kl_top"] > 0).all() and (found["kl_baseline"] == 0).all()


def test_an_empty_set_is_missing_and_the_rest_is_there():
    sample = made({"component": lambda s, name, x: x})
    found = effects(sample[sample["set"] != "label_matched"], draws=20)
    assert found[["kl_label_matched", "label_ratio", "label_ratio_low", "flips_label_matched"]].isna().all().all()
    assert found[["kl_ratio", "kl_ratio_low", "flips_top", "accuracy_change_baseline"]].notna().all().all()


def powers(low: float = 0.01, high: float = 100.0):
    """A component and a control whose curves are exact powers of the strength, other ones for each sign: between strengths a line in logarithms."""

    def component(s, name, x):
        return x * abs(s) ** 2 * (5 if name == "top" else 1) * (2 if s > 0 else 1)

    def other(s, name, x):
        return x * 1e-3 * (3 * abs(s) ** 2.5 if name == "top" else abs(s) ** 2) * (4 if s > 0 else 1)

    return made({"component": component, "random": other}, strengths={"component": (0.1, 0.2, 0.4), "random": tuple(np.geomspace(low, high, 9))})


@pytest.mark.parametrize("on", ["kl_baseline", "kl_top", "kl_label_matched"])
def test_matched_controls_cause_what_the_component_causes(on):
    """Solved by hand: with kl = c·s^q the matched strength is (target / c)^(1/q)."""
    sample = powers()
    found, at = matched(sample, on, draws=50), effects(sample, draws=2).set_index(["direction", "strength"])
    assert len(found) == 6
    name = on.removeprefix("kl_")
    power = 2.5 if name == "top" else 2
    for row in found.itertuples():
        side = np.sign(row.strength) * 100.0
        whole = at.loc[("random", side), on] / 100.0**power  # c, the mean of the noise included
        strength = (at.loc[("component", row.strength), on] / whole) ** (1 / power)
        assert row.matched_strength == pytest.approx(np.sign(row.strength) * strength)
        assert row.kl_top_control == pytest.approx(at.loc[("random", side), "kl_top"] * (strength / 100) ** 2.5)
        assert row.kl_baseline_control == pytest.approx(at.loc[("random", side), "kl_baseline"] * (strength / 100) ** 2)
        assert row.kl_ratio == pytest.approx(at.loc[("component", row.strength), "kl_ratio"])
        assert row.kl_ratio_control == pytest.approx(row.kl_top_control / row.kl_baseline_control)
        assert row.advantage == pytest.approx(row.kl_ratio / row.kl_ratio_control)
        assert row.advantage_low <= row.advantage <= row.advantage_high
    if name != "label_matched":
        np.testing.assert_allclose(found[on], found[f"{on}_control"])


@pytest.mark.parametrize(("low", "high"), [(0.01, 1.0), (50.0, 100.0)], ids=["too small", "too large"])
def test_out_of_a_control_s_range_is_missing(low, high):
    """The component's 0.1 to 0.4 is the control's 2 to 13."""
    found = matched(powers(low, high), draws=20)
    assert found.drop(columns=[*KEYS, "kl_top", "kl_baseline", "kl_ratio"]).isna().all().all()
    assert found[["kl_top", "kl_baseline", "kl_ratio"]].notna().all().all()


def test_where_only_part_is_in_range_the_rest_is_there():
    found = matched(powers(0.01, 4.0), draws=20).set_index("strength")["matched_strength"]
    assert found.loc[[-0.1, 0.1]].notna().all() and found.loc[[-0.4, 0.4]].isna().all()


def test_the_first_point_that_reaches_it_counts():
    """A control that saturates and falls back: 0.1 → 1, 0.2 → 4, 0.4 → 2; a target of 2 is reached between the first two."""
    heights = {0.1: 1.0, 0.2: 4.0, 0.4: 2.0}
    found = matched(made({"component": lambda s, name, x: 2.0, "other": lambda s, name, x: heights[abs(s)]}), draws=5)
    np.testing.assert_allclose(found["matched_strength"].abs(), 0.1 * np.sqrt(2))


@pytest.mark.parametrize("seed", range(20))
def test_reading_a_curve_against_a_loop(seed):
    """Rough curves with ties, zeros and gaps: the first strength that reaches the target, by straight lines in the logarithms."""
    rng = np.random.default_rng(seed)
    curve, other = np.exp(rng.normal(size=(2, 30, 6)).cumsum(2))
    target = np.exp(rng.normal(size=(30, 4)))
    target[0], curve[1, :2], curve[2, 3], target[3, 1], target[4] = curve[0, :4], 0.0, np.nan, np.nan, curve[4, 0]
    found = _reader(curve, target)(other)
    for d in range(30):
        for t, height in enumerate(target[d]):
            reached = [i for i in range(6) if curve[d, i] >= height]
            if not reached:
                assert np.isnan(found[d, t])
            elif reached[0] == 0:
                assert found[d, t] == pytest.approx(other[d, 0]) if curve[d, 0] == height else np.isnan(found[d, t])
            elif not curve[d, reached[0] - 1] > 0:
                assert np.isnan(found[d, t])
            else:
                last, first = np.log(curve[d, reached[0] - 1]), np.log(curve[d, reached[0]])
                share = (np.log(height) - last) / (first - last)
                expected = (1 - share) * np.log(other[d, reached[0] - 1]) + share * np.log(other[d, reached[0]])
                assert found[d, t] == pytest.approx(np.exp(expected))


def test_a_control_matched_to_itself_is_itself(table):
    """The component as its own control: same strengths, same ratios, no interval."""
    own = table[table["direction"] == "component"]
    both = pd.concat([own, own.assign(direction="twin")], ignore_index=True).assign(direction=lambda t: t["direction"].astype(str))
    found = matched(both, draws=30)
    np.testing.assert_allclose(found["matched_strength"], found["strength"])
    np.testing.assert_allclose(found[["advantage", "advantage_low", "advantage_high"]].dropna(), 1)
    assert found["advantage"].notna().all()


def test_medians_over_components():
    """Twin: the resampling written out, component by component and example by example; they agree as two runs of it do."""

    def component(s, name, x):
        return x * (4 if name == "top" else 1)

    sample = made({"component": component, "random": lambda s, name, x: 1 / x}, strengths=(0.1,), components=range(7))
    found, single = medians(sample, draws=2000), effects(sample, draws=2)
    for row in found.itertuples():
        part = single[(single["direction"] == row.direction) & (single["strength"] == row.strength)]
        assert row.components == 7
        for name in ("kl_ratio", "kl_ratio_per_norm", "advantage"):
            assert getattr(row, name) == pytest.approx(part[name].median())
    rng, drawn = np.random.default_rng(9), []
    part = sample[(sample["direction"] == "component") & (sample["strength"] == 0.1)]
    kls = {(k, name): p["kl"].to_numpy() for (k, name), p in part.groupby(["component", "set"])}
    for _ in range(2000):
        values = []
        for k in rng.integers(7, size=7):
            top, baseline = (rng.choice(kls[k, name], len(kls[k, name])) for name in ("top", "baseline"))
            values.append(top.mean() / baseline.mean())
        drawn.append(np.median(values))
    row = found[(found["direction"] == "component") & (found["strength"] == 0.1)].iloc[0]
    # Two thousand draws leave the ends of an interval so far apart.
    np.testing.assert_allclose(row[["kl_ratio_low", "kl_ratio_high"]].to_numpy(dtype=float), np.quantile(drawn, [0.025, 0.975]), rtol=0.1)


def test_medians_of_matched_controls(table):
    """The median of what is matched, over the components that are in range."""
    for on in ("kl_baseline", "kl_top"):
        found, single = medians(table, on, draws=20), matched(table, on, draws=20).dropna(subset="advantage")
        assert 0 < len(single) == found["components"].sum() and set(single["direction"]) < set(found["direction"])
        for row in found.itertuples():
            part = single[(single["direction"] == row.direction) & (single["strength"] == row.strength)]
            assert row.components == len(part)
            for name in ("kl_ratio", "kl_ratio_control", "advantage"):
                assert getattr(row, name) == pytest.approx(part[name].median(), nan_ok=True)


def test_medians_leave_out_what_did_not_move():
    sample = made({"component": lambda s, name, x: x}, strengths=(0.1,), components=range(3))
    sample.loc[(sample["component"] == 1) & (sample["set"] == "baseline"), "kl"] = 0.0
    found = medians(sample, draws=50)
    assert found["components"].tolist() == [2, 2]
    assert found["kl_ratio"].notna().all()


def test_equal_seeds_give_equal_intervals(table):
    pd.testing.assert_frame_equal(effects(table, draws=30, seed=1), effects(table, draws=30, seed=1))
    assert not effects(table, draws=30, seed=1)["kl_ratio_low"].equals(effects(table, draws=30, seed=2)["kl_ratio_low"])


def test_neither_the_order_of_rows_nor_a_file_matters(table, tmp_path):
    """Shuffled, and back from a CSV, which knows no categories."""
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "sweep.csv", index=False)
    again = pd.read_csv(tmp_path / "sweep.csv")
    for read in (effects, matched, medians):
        here, there = (read(one, draws=20) for one in (table, again))
        order = [name for name in KEYS if name in here]
        here, there = (found.sort_values(order, ignore_index=True) for found in (here, there))
        pd.testing.assert_frame_equal(here, there, check_dtype=False, rtol=1e-5)


def test_one_sign_alone_can_be_read_too(table):
    found = matched(table[table["strength"] > 0], draws=20)
    assert sorted(found["strength"].unique()) == [0.1, 0.4]
    everything = matched(table, draws=20)
    pd.testing.assert_frame_equal(found, everything[everything["strength"] > 0].reset_index(drop=True))


def test_two_sweeps_that_overlap_are_refused(table):
    with pytest.raises(ValueError, match="the same component, direction, strength, set and example twice"):
        effects(pd.concat([table, table.iloc[:1]]))


def test_an_edit_that_breaks_the_model_is_missing(npeff):
    """Strengths at which numbers are none: the rows stay, and what is read from them is missing; the other strengths are as they were."""
    found = sweep(npeff, 0, (0.1, 1e38), controls=(), **SMALL)
    broken = found["strength"].abs() == 1e38
    assert found["kl"][broken].isna().any() and found["kl"][~broken].notna().all()
    read = effects(found, draws=20).set_index("strength")
    assert read["kl_ratio"][[-0.1, 0.1]].notna().all()
    pd.testing.assert_frame_equal(read.loc[[-0.1, 0.1]], effects(sweep(npeff, 0, (0.1,), controls=(), **SMALL), draws=20).set_index("strength"))


@pytest.mark.parametrize("read", [effects, matched, medians])
def test_what_is_no_sweep_is_refused(read, table):
    with pytest.raises(ValueError, match="the table has no column 'kl', 'norm': give what sweep returned"):
        read(table.drop(columns=["kl", "norm"]))
    with pytest.raises(ValueError, match="the table has no row of a component's own direction"):
        read(table[table["direction"] == "random"])


def test_matched_needs_controls_and_a_curve_that_exists(table):
    with pytest.raises(ValueError, match="on='kl': choose one of 'kl_top', 'kl_baseline', 'kl_label_matched'"):
        matched(table, "kl")
    for read in (matched, medians):
        with pytest.raises(ValueError, match="the table has no controls to match: sweep with controls="):
            read(table[table["direction"] == "component"], "kl_baseline")
