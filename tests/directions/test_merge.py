"""The Fisher-weighted merge: against its formula number by number, and its search against the model really run."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from torch import nn

import npeff_nb as nb
from npeff_nb.directions.merge import FLOOR, REACH, _search, fisher_merge, merge_direction
from npeff_nb.directions.perturb import kl
from npeff_nb.fisher.extract import extract_fishers

N_TOP = 8


def extract(examples=None, diagonal=400, **settings):
    table = tiny.table() if examples is None else examples
    return extract_fishers(tiny.bert(), tiny.tokenizer(), table, features="sketch", diagonal=diagonal, progress=False, **settings)


@pytest.fixture(scope="module")
def once():
    pefs = extract()
    return pefs, nb.DNPEFF(3, n_init=1, random_state=0).fit(pefs)


@pytest.fixture
def pefs(once):
    return once[0]


@pytest.fixture
def dnpeff(once):
    return copy.copy(once[1])


def loss_gradient(pefs, rows, labels) -> np.ndarray:
    """(p,) of the summed cross-entropy, in float64."""
    model = twins.double(tiny.bert())
    chosen = [dict(model.named_parameters())[name] for name in pefs.parameters["name"]]
    z = torch.cat([model(**tiny.tokenizer()([pefs.examples["text"][row]], return_tensors="pt")).logits for row in rows])
    return twins.flat_gradients(nn.functional.cross_entropy(z, torch.tensor(labels), reduction="sum"), chosen).numpy()


def top_of(dnpeff, k, n=N_TOP):
    return np.argsort(-dnpeff.coefficients_[:, k], kind="stable")[:n]


def flat(direction, pefs) -> np.ndarray:
    return np.concatenate([direction[name].double().numpy().ravel() for name in pefs.parameters["name"]])


def by_hand(dnpeff, k, pefs, mix, gradient, floor=FLOOR) -> np.ndarray:
    """θ' − θ for δ = 1, as the weighted mean of θ and θ − δs that it is, parameter by parameter."""
    H = dnpeff.components_
    row = np.asarray(H.toarray() if hasattr(H, "toarray") else H, dtype=np.float64)[k]
    h = np.zeros(dnpeff.n_parameters_)
    h[dnpeff.kept_columns_] = row / np.linalg.norm(row)
    f = pefs.diagonal.astype(np.float64)
    f /= np.linalg.norm(f)
    out, theta = np.zeros(len(h)), 0.0
    for j in range(len(h)):
        ours, theirs = (1 - mix) * max(f[j], floor), mix * h[j]
        out[j] = (ours * theta + theirs * (theta - np.sign(gradient[j]))) / (ours + theirs) - theta
    return out


@pytest.mark.parametrize("mix", [0.05, 0.5, 0.95])
def test_the_direction_is_the_formula(mix, dnpeff, pefs):
    labels = tiny.table()["label"].to_numpy()
    for k in range(3):
        rows = top_of(dnpeff, k)
        gradient = loss_gradient(pefs, rows, labels[rows])
        found = merge_direction(dnpeff, k, pefs, mix, n_top=N_TOP)
        assert list(found) == list(pefs.parameters["name"])
        assert (found.mix, found.gold) == (mix, 1.0)
        expected = by_hand(dnpeff, k, pefs, mix, gradient)
        sure = np.abs(gradient) > 1e-5 * np.abs(gradient).max()  # below, float32 does not know the sign
        assert sure.mean() > 0.9
        np.testing.assert_allclose(flat(found, pefs)[sure], expected[sure], rtol=1e-5, atol=1e-8)
        assert 0 < (expected != 0).mean() < 1  # it stays where the component is


def test_an_edit_along_it_is_the_merge_of_two_models(dnpeff, pefs):
    """θ' from its definition with matrices of weights: [(1−λ) f̃ θ + λh (θ − δs)] / [(1−λ) f̃ + λh]."""
    model, mix, delta = pefs.subject.model, 0.3, 0.02
    direction = merge_direction(dnpeff, 1, pefs, mix, n_top=N_TOP)
    theta = np.concatenate([p.detach().double().numpy().ravel() for n, p in model.named_parameters() if n in direction])
    h = np.zeros(len(theta))
    h[dnpeff.kept_columns_] = dnpeff.components_[1]
    f = np.maximum(pefs.diagonal / np.linalg.norm(pefs.diagonal), FLOOR)
    s = -np.sign(flat(direction, pefs))
    expected = ((1 - mix) * f * theta + mix * h * (theta - delta * s)) / ((1 - mix) * f + mix * h)
    with nb.perturb(model, direction, delta):
        moved = np.concatenate([p.detach().double().numpy().ravel() for n, p in model.named_parameters() if n in direction])
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_small_step_lowers_the_loss_of_the_top_examples(dnpeff, pefs):
    labels = torch.tensor(tiny.table()["label"].tolist())
    for k in range(3):
        rows = top_of(dnpeff, k)
        losses = []
        for step in (-1e-3, 0.0, 1e-3):
            with nb.perturb(pefs.subject.model, merge_direction(dnpeff, k, pefs, n_top=N_TOP), step):
                losses.append(float(nn.functional.cross_entropy(pefs.subject.logits(rows).double(), labels[rows])))
        assert losses[0] > losses[1] > losses[2]


def test_without_gold_labels_the_predicted_ones_speak(once):
    dnpeff = copy.copy(once[1])
    pefs, rows = once[0], top_of(dnpeff, 0)
    predicted = pefs.logits.argmax(1)
    assert (predicted != tiny.table()["label"].to_numpy())[rows].any()
    gradient = loss_gradient(pefs, rows, predicted[rows])
    expected = by_hand(dnpeff, 0, pefs, 0.5, gradient)
    sure = np.abs(gradient) > 1e-5 * np.abs(gradient).max()
    dnpeff.examples = pefs.examples.drop(columns="label")
    found = merge_direction(dnpeff, 0, pefs, n_top=N_TOP)
    assert found.gold == 0
    np.testing.assert_allclose(flat(found, pefs)[sure], expected[sure], rtol=1e-5, atol=1e-8)


def test_a_missing_gold_label_is_replaced_by_the_predicted_one(once):
    dnpeff = copy.copy(once[1])
    pefs, rows = once[0], top_of(dnpeff, 2)
    names = [dnpeff.classes[label] for label in tiny.table()["label"]]
    known = np.ones(len(names), dtype=bool)
    known[rows[:3]] = False
    labels = np.where(known, tiny.table()["label"], pefs.logits.argmax(1))
    gradient = loss_gradient(pefs, rows, labels[rows])
    dnpeff.examples = pefs.examples.assign(label=[name if there else None for name, there in zip(names, known, strict=True)])
    found = merge_direction(dnpeff, 2, pefs, n_top=N_TOP)
    assert found.gold == 1 - 3 / N_TOP
    sure = np.abs(gradient) > 1e-5 * np.abs(gradient).max()
    np.testing.assert_allclose(flat(found, pefs)[sure], by_hand(dnpeff, 2, pefs, 0.5, gradient)[sure], rtol=1e-5, atol=1e-8)


def test_the_floor_keeps_the_merge_finite_where_the_fisher_is_zero(dnpeff, pefs):
    bare = copy.copy(pefs)
    bare.diagonal = np.zeros_like(pefs.diagonal)
    bare.diagonal[np.setdiff1d(np.arange(len(bare.diagonal)), dnpeff.kept_columns_)[0]] = 1  # somewhere else
    found = flat(merge_direction(dnpeff, 0, bare, floor=1e-30, n_top=N_TOP), pefs)
    assert np.isfinite(found).all()
    assert set(np.unique(np.abs(found).round(6))) == {0.0, 1.0}  # nothing holds θ back: wherever h is not 0, it is the other model
    held = flat(merge_direction(dnpeff, 0, bare, floor=1.0, n_top=N_TOP), pefs)
    assert 0 < np.abs(held).max() < 0.6
    assert np.abs(flat(merge_direction(dnpeff, 0, pefs, 0.9, n_top=N_TOP), pefs)).sum() > 2 * np.abs(
        flat(merge_direction(dnpeff, 0, pefs, 0.1, n_top=N_TOP), pefs)
    ).sum() > 0  # fmt: skip


def test_a_scaled_fisher_is_merged_in_its_own_coordinates():
    """Over φ = θ/s the merge is the formula; a step of 1 there is one of s in θ."""
    pefs = extract(scale={"MLP": 3.0})
    dnpeff = nb.DNPEFF(2, n_init=1, random_state=0).fit(pefs)
    rows = top_of(dnpeff, 0)
    gradient = loss_gradient(pefs, rows, tiny.table()["label"].to_numpy()[rows])
    scales = np.repeat(pefs.parameters["scale"], pefs.parameters["numel"]).to_numpy()
    assert set(scales) == {1.0, 3.0}
    sure = np.abs(gradient) > 1e-5 * np.abs(gradient).max()
    found = flat(merge_direction(dnpeff, 0, pefs, n_top=N_TOP), pefs)
    np.testing.assert_allclose(found[sure], (scales * by_hand(dnpeff, 0, pefs, 0.5, gradient))[sure], rtol=1e-5, atol=1e-8)


def test_components_with_few_entries_left_are_merged_alike(dnpeff, pefs):
    few = dnpeff.sparsify(0.02, pefs)
    assert few.components_.nnz < 0.9 * dnpeff.components_.size
    rows = top_of(few, 1)
    gradient = loss_gradient(pefs, rows, tiny.table()["label"].to_numpy()[rows])
    found = flat(merge_direction(few, 1, pefs, n_top=N_TOP), pefs)
    sure = np.abs(gradient) > 1e-5 * np.abs(gradient).max()
    np.testing.assert_allclose(found[sure], by_hand(few, 1, pefs, 0.5, gradient)[sure], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("task", "labels"), [("multi", "independent"), ("single", "kept apart")])
def test_other_predictions_move_by_what_they_predict(task, labels):
    """Independent labels, and classes of which few were kept: the loss is of the model's own prediction over all it has."""
    settings = {"problem_type": "multi_label_classification"} if task == "multi" else {}
    model, classes = tiny.bert_for("SequenceClassification", num_labels=5, **settings), "auto" if task == "multi" else 2
    texts = tiny.TEXTS
    pefs = extract_fishers(model, tiny.tokenizer(), texts, classes=classes, features="sketch", diagonal=300, progress=False)
    dnpeff = nb.DNPEFF(2, n_init=1, random_state=0).fit(pefs)
    found = merge_direction(dnpeff, 0, pefs, n_top=4)
    assert found.gold == 0
    double = twins.double(model)
    z = torch.cat([double(**tiny.tokenizer()([texts[row]], return_tensors="pt")).logits for row in top_of(dnpeff, 0, 4)])
    if task == "multi":
        loss = nn.functional.binary_cross_entropy_with_logits(z, (z > 0).double(), reduction="sum")
    else:
        loss = nn.functional.cross_entropy(z, z.argmax(1), reduction="sum")
    gradient = twins.flat_gradients(loss, [dict(double.named_parameters())[name] for name in pefs.parameters["name"]]).numpy()
    sure = np.abs(gradient) > 1e-5 * np.abs(gradient).max()
    np.testing.assert_allclose(flat(found, pefs)[sure], by_hand(dnpeff, 0, pefs, 0.5, gradient)[sure], rtol=1e-5, atol=1e-8)


# --------------------------------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("wanted", [(1e-4, 1.2e-4), (0.05, 0.1), (0.2, 0.22)])
def test_the_kl_is_in_the_range_asked_for(wanted, sign, dnpeff, pefs):
    subject, before = pefs.subject, twins.state(pefs.subject.model)
    found = fisher_merge(dnpeff, 1, pefs, wanted, sign=sign, n_top=N_TOP, n_baseline=12)
    twins.assert_untouched(subject.model, before)
    assert sorted(found.top) == sorted(top_of(dnpeff, 1))
    assert len(found.baseline) == 12
    assert not set(found.top) & set(found.baseline)
    assert np.sign(found.step) == sign
    measured = []
    for rows in (found.top, found.baseline):
        original = subject.logits(rows)
        with nb.perturb(subject.model, found.direction, found.step):
            measured.append(kl(subject.logits(rows), original).mean())
    assert wanted[0] <= found.kl_top <= wanted[1]
    assert found.kl_top == pytest.approx(measured[0], rel=1e-6)
    assert found.kl_baseline == pytest.approx(measured[1], rel=1e-6)
    assert found.kl_ratio == pytest.approx(measured[0] / measured[1], rel=1e-6)
    again = fisher_merge(dnpeff, 1, pefs, wanted, sign=sign, n_top=N_TOP, n_baseline=12)
    assert (again.step, again.mix, again.kl_ratio) == (found.step, found.mix, found.kl_ratio)  # nothing is drawn but the baseline, by its seed


def test_the_next_mix_is_tried_where_one_fails(dnpeff, pefs, monkeypatch):
    from npeff_nb.directions import merge

    search, calls = merge._search, []

    def fails_once(*arguments):
        calls.append(arguments)
        return (None, 0.0, "no luck") if len(calls) == 1 else search(*arguments)

    monkeypatch.setattr(merge, "_search", fails_once)
    found = fisher_merge(dnpeff, 0, pefs, (0.01, 0.02), mixes=(0.3, 0.7), n_top=N_TOP)
    assert (found.mix, found.direction.mix) == (0.7, 0.7)


def test_what_cannot_be_reached_is_said_for_every_mix(dnpeff, pefs):
    before = twins.state(pefs.subject.model)
    words = r"of component 2 into 1e\+06 to 2e\+06 nats: λ = 0.2: KL rises no higher than [\d.e+-]+ up to a step of .*; λ = 0.8: .*Ask for another"
    with pytest.raises(ValueError, match=words):
        fisher_merge(dnpeff, 2, pefs, (1e6, 2e6), mixes=(0.2, 0.8), n_top=N_TOP)
    twins.assert_untouched(pefs.subject.model, before)


def hump(step: float) -> float:
    """Rises to 1 at step 1 and falls again."""
    return step / (0.5 + 0.5 * step**2)


@pytest.mark.parametrize("start", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.6), (0.5, 0.5 + 1e-6), (1e-4, 2e-4), (0.9, 0.99)])
@pytest.mark.parametrize("value", [lambda s: s**2 / (1 + s**2), lambda s: min(s**2, 50.0), lambda s: s**2 * (1 + 0.3 * np.sin(9 * np.log(s))), hump])
def test_a_search_ends_in_the_range(value, low, high, start):
    step, found, why = _search(value, start, low, high)
    if value is hump and step is None:
        assert "than" in why  # from beyond the hump there may be no way back: it says so
        return
    assert step is not None, why
    assert low <= found == value(step) <= high


def test_a_search_says_why_it_failed():
    assert _search(lambda s: min(s, 0.5), 0.1, 0.6, 0.7)[::2] == (None, f"KL rises no higher than 0.5 up to a step of {0.1 * 4.0**REACH:.3g}")
    assert _search(lambda s: max(s, 0.5), 1.0, 0.1, 0.2)[::2] == (None, f"KL falls no lower than 0.5 up to a step of {4.0**-REACH:.3g}")
    step, _, why = _search(lambda s: 0.0 if s < 0.3 else 1.0, 0.1, 0.4, 0.6)
    assert step is None
    assert why == "KL jumps over the range at a step of 0.3"
    # A model that has left the numbers has gone too far, and not that far before.
    step, found, _ = _search(lambda s: s**2 if s < 1e3 else float("nan"), 1e6, 0.5, 0.6)
    assert step is not None and 0.5 <= found <= 0.6


# --------------------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mix": 1.0}, "mix=1.0: λ lies between 0"),
        ({"mix": 0}, "mix=0: λ lies between 0"),
        ({"mix": float("nan")}, "mix=nan: λ lies between 0"),
        ({"floor": 0.0}, "floor=0.0: the Fisher's least entry must be above 0"),
        ({"k": 3}, r"component 3 does not exist: this decomposition has 3 \(0 to 2\)"),
    ],
)
def test_settings_out_of_range(settings, words, dnpeff, pefs):
    with pytest.raises(ValueError, match=words):
        merge_direction(dnpeff, settings.pop("k", 0), pefs, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kl_range": (0.2, 0.1)}, r"kl_range=\(0.2, 0.1\): give two numbers of nats with 0 < low < high"),
        ({"kl_range": (0, 0.1)}, "0 < low < high"),
        ({"kl_range": (0.1, float("nan"))}, "0 < low < high"),
        ({"sign": 0}, "sign=0: 1 lowers the loss of the top examples, -1 raises it"),
        ({"mixes": ()}, "mixes is empty"),
        ({"mixes": (2,)}, "mix=2: λ lies between 0"),
    ],
)
def test_searches_out_of_range(settings, words, dnpeff, pefs):
    with pytest.raises(ValueError, match=words):
        fisher_merge(dnpeff, 0, pefs, **{"kl_range": (0.1, 0.2), **settings})


def test_an_array_s_columns_are_no_parameters(pefs):
    fitted = nb.DNPEFF(2, n_init=1, random_state=0).fit(np.random.default_rng(0).gamma(1, 1, (9, 12)))
    with pytest.raises(ValueError, match="was fitted on an array, so its columns are no parameters of a model: fit it on PEFs"):
        merge_direction(fitted, 0, pefs)


def test_fishers_without_what_is_needed(dnpeff, pefs):
    without = copy.copy(pefs)
    without.diagonal = None
    with pytest.raises(ValueError, match=r"no diagonal Fisher was kept: extract with diagonal=True"):
        merge_direction(dnpeff, 0, without)
    with pytest.raises(ValueError, match="over other parameters than the D-NPEFF; give those that it was fitted on"):
        merge_direction(dnpeff, 0, extract(parameters="MLP"))
    nothing = copy.copy(pefs)
    nothing.diagonal = np.zeros_like(pefs.diagonal)
    with pytest.raises(ValueError, match="diagonal Fisher has length 0: there is nothing to merge against"):
        merge_direction(dnpeff, 0, nothing)


def test_a_component_that_nobody_uses(dnpeff, pefs):
    dnpeff.coefficients_ = dnpeff.coefficients_ * np.array([1, 0, 1])
    with pytest.raises(ValueError, match="component 1 is used by no example, so no loss says which way to move"):
        merge_direction(dnpeff, 1, pefs)


def test_after_loading_the_fishers_bring_the_model(dnpeff, pefs, tmp_path):
    loaded, fishers = nb.load(dnpeff.save(tmp_path / "d.npeff")), nb.load(pefs.save(tmp_path / "f.pefs"))
    with pytest.raises(ValueError, match=r"no model at hand .* after fishers.attach\(model, tokenizer\)"):
        merge_direction(loaded, 0, fishers)
    fishers.attach(tiny.bert(), tiny.tokenizer())
    here, there = merge_direction(dnpeff, 0, pefs, n_top=N_TOP), merge_direction(loaded, 0, fishers, n_top=N_TOP)
    assert all(torch.equal(here[name], there[name]) for name in here)
    with pytest.raises(ValueError, match="no model at hand"):
        merge_direction(loaded, 0, fishers[:5])  # other examples: their rows are not the decomposition's


def test_after_loading_the_decomposition_may_be_given_its_model_itself(dnpeff, pefs, tmp_path):
    loaded, fishers = nb.load(dnpeff.save(tmp_path / "d.npeff")), nb.load(pefs.save(tmp_path / "f.pefs"))
    with pytest.raises(ValueError, match=r"no model at hand .* call dnpeff.attach\(model, tokenizer\), or"):
        merge_direction(loaded, 0, fishers)
    loaded.attach(tiny.bert(), tiny.tokenizer())
    here, there = (fisher_merge(one, 1, of, (0.05, 0.1), n_top=N_TOP) for one, of in ((dnpeff, pefs), (loaded, fishers)))
    assert fishers.subject is None
    assert all(torch.equal(here.direction[name], there.direction[name]) for name in here.direction)
    assert (here.step, here.kl_ratio) == (there.step, there.kl_ratio)
    # A part of the Fishers will do then: only their diagonal is read.
    again = merge_direction(loaded, 1, fishers[:5], here.mix, n_top=N_TOP)
    assert all(torch.equal(again[name], here.direction[name]) for name in again)


@pytest.mark.parametrize("task", ["one of five", "several of five"])
def test_gold_labels_are_known_after_loading(task, tmp_path):
    """The loss of an empirical Fisher is that of its labels, also of such as the table does not name as classes."""
    several = task == "several of five"
    settings = {"problem_type": "multi_label_classification"} if several else {}
    model = tiny.bert_for("SequenceClassification", num_labels=5, **settings)
    draw = np.random.default_rng(0)
    labels = list(draw.integers(0, 2, (8, 5)).tolist()) if several else [str(x) for x in draw.integers(0, 5, 8)]
    if not several:
        labels = [model.config.id2label[int(x)] for x in labels]
    table = pd.DataFrame({"text": tiny.TEXTS, "label": labels})
    pefs = extract_fishers(model, tiny.tokenizer(), table, fisher="empirical", features="sketch", diagonal=300, progress=False)
    dnpeff = nb.DNPEFF(2, n_init=1, random_state=0).fit(pefs)
    here = merge_direction(dnpeff, 0, pefs, n_top=4)
    loaded = nb.load(dnpeff.save(tmp_path / "d.npeff")).attach(model, tiny.tokenizer())
    there = merge_direction(loaded, 0, pefs, n_top=4)
    assert here.gold == there.gold == 1.0
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_another_model_may_be_given_and_is_left_as_it_was(dnpeff, pefs):
    later = tiny.bert(seed=3)
    later.bert.pooler.dense.weight.requires_grad_(False)
    before = twins.state(later)
    here, there = merge_direction(dnpeff, 0, pefs), merge_direction(dnpeff, 0, pefs, model=later)
    twins.assert_untouched(later, before)
    assert any(not torch.equal(here[name], there[name]) for name in here)
    with pytest.raises(ValueError, match="training mode"):
        merge_direction(dnpeff, 0, pefs, model=tiny.bert().train())
    with pytest.raises(ValueError, match="the model has no parameter"):
        merge_direction(dnpeff, 0, pefs, model=tiny.distilbert())
