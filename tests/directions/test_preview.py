"""The first-order response against central differences in float64, for every kind of model; what is made of it; and the caller's model around it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import sys
import threading
import warnings

import numpy as np
import pytest
import tiny
import torch
import twins
from fisher.test_architectures import CASES, adapted, made
from torch import nn

import npeff_nb as nb
from npeff_nb import NPEFF
from npeff_nb.directions import forward_mode, lift, preview
from npeff_nb.directions.perturb import edited_logits, kl
from npeff_nb.directions.preview import Preview, coefficients_of, curvature, response, trust
from npeff_nb.fisher.batches import ReadyBatches
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.factors import Recipe, Sampled
from npeff_nb.fisher.outputs import MultiLabel, Own, SequenceClasses, output_for
from npeff_nb.fisher.subject import Subject

# Rounding of float32 through some dozens of sums, relative to the largest derivative of an example.
FLOAT32 = 2e-5

pytestmark = pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")


def subject_of_case(case, batch_size: int = 3) -> Subject:
    """The model with its examples, as an extraction makes it."""
    a = case.arguments
    output = Own(a["logits"], case.family) if "logits" in a else a.get("output") or output_for(case.model)
    batches = ReadyBatches(a["inputs"], batch_size) if "inputs" in a else output.prepare(case.model, a["tokenizer"], a["examples"], batch_size)[0]
    return Subject(case.model, batches, output, Recipe(output.family), a.get("tokenizer"))


def step_over(model: nn.Module, names: list[str] | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """A direction over all parameters, or some."""
    return lift.random_direction({name: p.detach() for name, p in model.named_parameters() if names is None or name in names}, seed)


def differences(model: nn.Module, direction: dict[str, torch.Tensor], asked, h: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """asked(model) and its derivative along a direction, by four-point central differences in float64: the error is h⁴ and rounding / h, 1e-11."""
    double = twins.double(model)
    there, found = dict(double.named_parameters()), {}
    start = {name: there[name].detach().clone() for name in direction}
    with torch.no_grad():
        for s in (-2, -1, 0, 1, 2):
            for name, value in direction.items():
                there[name].copy_(start[name] + s * h * value.double())
            found[s] = asked(double).numpy()
    return found[0], (8 * (found[1] - found[-1]) - (found[2] - found[-2])) / (12 * h)


def by_autograd(model: nn.Module, direction: dict[str, torch.Tensor], asked, n: int) -> tuple[np.ndarray, np.ndarray]:
    """asked(model, i) and its derivative along a direction, class by class in float64.

    Some models make their norms in float32 whatever they are given: differences would see that rounding.
    """
    double = twins.double(model)
    chosen = [dict(double.named_parameters())[name] for name in direction]
    v = torch.cat([value.double().flatten() for value in direction.values()])
    z = [asked(double, i) for i in range(n)]
    return torch.stack(z).detach().numpy(), np.array([[float(twins.flat_gradients(of_class, chosen) @ v) for of_class in one] for one in z])


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = FLOAT32) -> None:
    size = np.abs(expected).max()
    assert size > 0
    assert np.abs(found - expected).max() < tolerance * size


# ------------------------------------------------------------------------------------------------------------------------ every model


BY_BACKWARD = {"recurrent, two layers, last state", "weights made of others"}
"""An LSTM's fused kernel, and that of a normed weight, have no formula in forward mode."""


@pytest.mark.parametrize("name", CASES)
def test_the_response_is_the_derivative(name, monkeypatch):
    monkeypatch.setattr(preview, "LEARNED_FROM", 1)  # also look which positions are read
    case = made(name)
    subject, step = subject_of_case(case), step_over(case.model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        z, dz = response(subject, step, np.arange(case.n))
    expected, moved = by_autograd(case.model, step, case.ask, case.n)
    assert z.dtype == dz.dtype == np.float64
    if name.startswith("words"):  # the reference's are log-probabilities: equal but for what all words share
        z, dz, expected, moved = (one - one.mean(1, keepdims=True) for one in (z, dz, expected, moved))
    assert_close(z, expected)
    assert_close(dz, moved)
    told = [str(one.message) for one in said if "no derivative in forward mode" in str(one.message)]
    assert bool(told) == (name in BY_BACKWARD), told


@pytest.mark.parametrize("name", ["BERT", "BERT, DoRA", "GPT-2"])
def test_adapters(name, monkeypatch):
    monkeypatch.setattr(preview, "LEARNED_FROM", 1)
    case = adapted(name)
    subject = subject_of_case(case)
    step = step_over(case.model, [n for n, _ in case.model.named_parameters() if "lora_" in n])
    z, dz = response(subject, step, np.arange(case.n))
    expected, moved = by_autograd(case.model, step, case.ask, case.n)
    assert_close(z, expected)
    assert_close(dz, moved)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "name", ["BERT", "GPT-2", "Llama", "words, T5", "masked token", "images", "hand-made layer", "weights made of others", "multi-label"]
)
def test_one_backward_pass_a_class_finds_the_same(name, whole, monkeypatch):
    monkeypatch.setattr(preview, "ROWS_AT_ONCE", 2)
    case = made(name)
    subject, step, rows = subject_of_case(case), step_over(case.model), np.arange(case.n)
    subject.recipe = subject.recipe.for_classes(1 if len(rows) and not whole else "all", subject.raw_logits(rows[:1]).shape[1])
    expected = response(subject, step, rows, whole=whole)
    monkeypatch.setattr(preview, "_forward", lambda *a: (_ for _ in ()).throw(NotImplementedError("no formula for this")))
    with pytest.warns(UserWarning, match=r"slower and as exact: no derivative in forward mode \(no formula for this\): one backward pass a class"):
        found = response(subject, step, rows, whole=whole)
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])


class _Doubles(torch.autograd.Function):
    """Hand-made, with a way back and none forward."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class OneWay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(_Doubles.apply(self.first(x))))


class ThroughNumpy(OneWay):
    def forward(self, x):
        return self.out(torch.from_numpy(np.tanh(self.first(x).detach().numpy())))


def ready(model: nn.Module, n: int = 6, batch_size: int = 4) -> Subject:
    inputs = torch.randn(n, 5, generator=torch.Generator().manual_seed(3))
    return Subject(model, ReadyBatches(inputs, batch_size), Own(tiny.plain_logits), Recipe())


def test_an_operation_without_a_formula_is_gone_round():
    subject = ready(tiny.seeded(OneWay))
    step, x = step_over(subject.model), subject.batches.inputs["inputs"]
    with pytest.warns(UserWarning, match="slower and as exact: no derivative in forward mode"):
        z, dz = response(subject, step, np.arange(6))
    expected, moved = differences(subject.model, step, lambda model: model(x.double()))
    assert_close(z, expected)
    assert_close(dz, moved)


def test_what_is_not_felt_is_zero_and_what_is_lost_is_an_error():
    bert = tiny.bert_for("MaskedLM", vocab_size=28)
    bert.register_parameter("unused", nn.Parameter(torch.ones(3)))
    tokenizer = tiny.tokenizer(mask=True)
    output = output_for(bert)
    subject = Subject(bert, output.prepare(bert, tokenizer, ["what is [MASK]"], 2)[0], output, Recipe(), tokenizer)
    z, dz = response(subject, {"unused": torch.ones(3)}, np.arange(1))
    assert z.any()
    assert not dz.any()
    with pytest.raises(ValueError, match="carry no derivative along the direction: logits= must not detach them"):
        response(ready(tiny.seeded(ThroughNumpy)), {"first.weight": torch.ones(4, 5)}, np.arange(6))
    assert response(ready(tiny.seeded(ThroughNumpy)), {"out.bias": torch.ones(3)}, np.arange(6))[1] == pytest.approx(1)


def test_against_jvp_written_out():
    """torch.func.jvp and functional_call, over one example at a time in float64."""
    subject = ready(tiny.seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))))
    model, step = twins.double(subject.model), step_over(subject.model)
    names, found = list(step), response(subject, step, np.array([4, 0, 2]))
    for at, row in enumerate([4, 0, 2]):
        x = subject.batches.inputs["inputs"][row : row + 1].double()

        def logits(*weights, x=x):
            return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))[0]

        there = dict(model.named_parameters())
        z, dz = torch.func.jvp(logits, tuple(there[n].detach() for n in names), tuple(step[n].double() for n in names))
        np.testing.assert_allclose(found[0][at], z.detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1][at], dz.detach(), rtol=1e-5, atol=1e-6)


def test_it_is_what_the_edited_model_does(shared, npeff):
    """(z(θ + s g) − z(θ − s g)) / 2s of models really run, s = 1e-3: what remains is s² and rounding of float32 / s."""
    rows, step = np.array([5, 2, 9]), npeff.direction(1)
    z, dz = response(npeff, step, rows)
    down, still, up = edited_logits(shared.subject, step, [-1e-3, 0.0, 1e-3], rows)
    np.testing.assert_allclose(z, still, atol=1e-5)
    np.testing.assert_allclose(dz, (up - down) / 2e-3, atol=2e-3 * np.abs(dz).max())


def test_order_and_batches_make_no_difference(shared, npeff):
    step = npeff.direction(0)
    every = response(shared.subject, step, np.arange(24))
    rows = np.random.default_rng(0).permutation(24)[:11]
    for found, of_all in zip(response(shared.subject, step, rows), every, strict=True):
        np.testing.assert_allclose(found, of_all[rows], atol=1e-5)


def test_only_named_parameters_move_and_the_rest_stands_still():
    case = made("BERT")
    subject = subject_of_case(case)
    every = step_over(case.model)
    parts = [dict(list(every.items())[at::3]) for at in range(3)]
    together = response(subject, every, np.arange(case.n))[1]
    assert_close(sum(response(subject, part, np.arange(case.n))[1] for part in parts), together)


def test_a_tied_weight_moves_once():
    model = tiny.seeded(tiny.TwoLinearsOneWeight)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    subject = Subject(model, ReadyBatches(x), Own(tiny.plain_logits), Recipe())
    step = {"first.weight": torch.randn(6, 6, generator=torch.Generator().manual_seed(1))}
    moved = differences(model, step, lambda m: m(x.double()))[1]
    assert_close(response(subject, step, np.arange(4))[1], moved)
    with pytest.raises(ValueError, match=r"moves 'second.weight' of shape \(6, 6\); the model has no such parameter"):
        response(subject, {"second.weight": step["first.weight"]}, np.arange(4))


def test_half_precision_is_near_the_exact_one():
    """Eight bits of mantissa in every activation: some per cent, as for the Fishers of such a model."""
    case = made("BERT")
    half = copy.deepcopy(case.model).to(torch.bfloat16)
    subject, step = subject_of_case(case), step_over(case.model)
    exact = response(subject, step, np.arange(case.n))[1]
    rough = response(subject.with_model(half), step, np.arange(case.n))[1]
    assert_close(rough, exact, 0.1)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())


# ------------------------------------------------------------------------------------------------------------------------ what is left out


@pytest.fixture
def always_looks(monkeypatch):
    monkeypatch.setattr(preview, "LEARNED_FROM", 1)


def test_rows_that_nothing_reads_are_not_formed(always_looks, monkeypatch):
    """Of an encoder's last layer: query, attention's output and the MLP; none of a decoder that reads its last token."""
    seen = []
    monkeypatch.setattr(preview, "Layers", lambda first=frozenset(): seen.append(first) or forward_mode.Layers(first))
    for name in ("BERT", "DistilBERT", "GPT-2", "Llama", "token classes", "images"):
        case = made(name)
        response(subject_of_case(case, batch_size=64), step_over(case.model), np.arange(case.n))
    # Per layer: query, key, value, output, MLP in, MLP out; then the head's, which have no positions.
    assert [sorted(one) for one in seen] == [[6, 9, 10, 11], [6, 9, 10, 11], [], [], [], [6, 9, 10, 11]]


class ReadsAsItLikes(nn.Module):
    """The first position of short inputs, all of long ones: what is learned on the shortest does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        h = torch.tanh(self.first(nn.functional.one_hot(input_ids % 5, 5).to(self.first.weight.dtype)))
        mean = (h * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return self.out(torch.where(attention_mask.sum(1, keepdim=True) > 4, mean, h[:, 0]))


def test_rows_that_are_read_after_all_are_formed(always_looks):
    model, tokenizer = tiny.seeded(ReadsAsItLikes), tiny.tokenizer(types=False)
    output = Own(lambda model, batch: model(**batch))
    subject = Subject(model, SequenceClasses().prepare(model, tokenizer, tiny.TEXTS, None)[0], output, Recipe(), tokenizer)
    step, shortest = step_over(model), int(subject.batches.lengths.argmin())
    assert forward_mode.read_at_first_position(lambda: subject.raw_logits(np.array([shortest]))) == {0}
    z, dz = response(subject, step, np.arange(8))
    expected, moved = by_autograd(model, step, lambda m, i: m(**dict(tokenizer([tiny.TEXTS[i]], return_tensors="pt")))[0], 8)
    assert_close(z, expected)
    assert_close(dz, moved)


def test_what_is_changed_in_place(always_looks):
    model = tiny.seeded(tiny.InPlace)
    for shape in ((4, 6), (4, 3, 6)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        subject = Subject(model, ReadyBatches(x), Own(lambda m, batch: m(batch) if batch.ndim == 2 else m(batch)[:, 0]), Recipe())
        step = step_over(model)
        assert_close(response(subject, step, np.arange(4))[1], differences(model, step, lambda m: subject.output.logits(m, x.double()))[1])  # noqa: B023


@pytest.mark.parametrize("moved", [["0.weight"], ["0.bias"], ["1.weight"], ["1.bias"], ["2.weight"], ["2.bias"], ["0.weight", "1.bias", "2.weight"]])
def test_own_formulas_part_by_part(moved):
    """Any of a layer's parameters may stand still, and so may its input."""
    model = tiny.spread(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    subject, step = Subject(model, ReadyBatches(x), Own(tiny.plain_logits), Recipe()), step_over(model, moved)
    assert_close(response(subject, step, np.arange(6))[1], differences(model, step, lambda m: m(x.double()))[1])


@pytest.mark.parametrize("settings", [{"elementwise_affine": False}, {"bias": False}, {"eps": 0.3}])
def test_layer_norms_of_all_kinds(settings):
    model = tiny.spread(nn.Sequential(nn.Linear(5, 6, bias=False), nn.LayerNorm(6, **settings), nn.Linear(6, 3)))
    x = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    subject, step = Subject(model, ReadyBatches(x), Own(lambda m, batch: m(batch)[:, 1]), Recipe()), step_over(model)
    assert_close(response(subject, step, np.arange(6))[1], differences(model, step, lambda m: m(x.double())[:, 1])[1])


@pytest.mark.parametrize("n", [1, 5, 64, 150])
def test_batches_hold_every_example_once_and_no_more_than_fits(n):
    lengths = np.random.default_rng(n).integers(3, 40, 200)
    batches = ReadyBatches(torch.zeros(200, 1))
    batches.lengths, batches.batch_size, batches.positions = lengths, None, 128
    subject, rows = Subject(nn.Linear(1, 1), batches, Own(None), Recipe()), np.random.default_rng(0).permutation(200)[:n]
    found = preview._batches(subject, rows)
    assert sorted(np.concatenate(found)) == sorted(rows)
    assert all(len(batch) * lengths[batch].max() <= 128 for batch in found)

    def cost(cut):
        return sum(len(batch) * lengths[batch].max() + preview.A_BATCH for batch in cut)

    assert cost(found) <= cost(batches.batches(rows))
    if n == 5:  # every way to cut them
        order = rows[np.argsort(-lengths[rows], kind="stable")]
        ways = [np.split(order, [i + 1 for i in range(4) if way >> i & 1]) for way in range(16)]
        assert cost(found) == min(cost(way) for way in ways if all(len(batch) * lengths[batch].max() <= 128 for batch in way))


# ------------------------------------------------------------------------------------------------------------------------ which prediction


@pytest.fixture(scope="module")
def few_of_many():
    """Next tokens of a GPT-2: the three likeliest of 27, and anything else."""
    tokenizer = tiny.tokenizer(types=False)
    return extract_fishers(tiny.gpt2_for("LMHeadModel"), tokenizer, tiny.table(16), classes=3, features="dense", parameters="all", progress=False)


def test_a_coarse_prediction_is_the_one_that_was_decomposed(few_of_many):
    subject, rows = few_of_many.subject, np.array([3, 0, 7])
    step = step_over(subject.model)
    z, dz = response(subject, step, rows)
    assert z.shape == dz.shape == (3, 4)
    np.testing.assert_allclose(z, few_of_many.logits[rows], atol=1e-5)

    def asked(model):
        raw = subject.with_model(model).raw_logits(rows)
        return subject.recipe.coarse(raw, subject.choices_of(rows))

    expected, moved = differences(subject.model, step, asked)
    assert_close(z, expected)
    assert_close(dz, moved)
    raw, along = response(subject, step, rows, whole=True)
    assert raw.shape == along.shape == (3, tiny.N_TOKENS)
    expected, moved = differences(subject.model, step, lambda model: subject.with_model(model).raw_logits(rows).double())
    assert_close(raw, expected)
    assert_close(along, moved)


def test_outcomes_that_leave_nothing_else_and_outcomes_that_are_not_there():
    """Everything but the kept outcomes ruled out (−inf), and an example with fewer outcomes than others: finite, and nothing moves there."""
    model = tiny.seeded(lambda: nn.Linear(5, 4))

    def logits(model, batch):
        z = model(batch)
        return torch.cat([z, torch.full_like(z, float("-inf"))], 1)

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    chosen = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 1, -1, -1]], dtype=np.int32)
    subject = Subject(model, ReadyBatches(x), Own(logits), Recipe(top=4), choices={"outcomes": chosen})
    step = step_over(model)
    z, dz = response(subject, step, np.arange(3))
    assert z.shape == (3, 5)
    assert np.isfinite(dz).all()
    assert not dz[:2, 4].any()
    assert not dz[2, 2:4].any()

    def asked(double):
        z = torch.log_softmax(double(x.double()), -1)
        kept = [torch.stack([z[i, c] if c >= 0 else z.new_tensor(0.0) for c in chosen[i]]) for i in range(3)]
        rest = torch.stack([z.new_tensor(0.0), z.new_tensor(0.0), torch.logsumexp(z[2, [0, 3]], 0)])
        return torch.cat([torch.stack(kept), rest[:, None]], 1)

    assert_close(dz, differences(model, step, asked)[1])


def flat(direction: dict[str, torch.Tensor], parameters) -> np.ndarray:
    """In the dense coordinates of an extraction: over θ/s a step of 1 is one of 1/s."""
    return np.concatenate([direction[n].double().numpy().ravel() / s for n, s in zip(parameters["name"], parameters["scale"], strict=True)])


@pytest.mark.parametrize(
    "options",
    [{"classes": "all"}, {"classes": 3}, {"classes": 0.05}, {"fisher": "predicted"}, {"scale": {"*mlp*": 3.0}}],
    ids=["all", "three", "likely", "predicted", "scaled"],
)
def test_curvature_is_the_projection_of_the_factor_rows(options):
    """gᵀF g = Σ_y ⟨a_y, g⟩², the one from a pass forwards over the model, the other from gradients in dense coordinates."""
    pefs = extract_fishers(
        tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False), tiny.table(16), features="dense", parameters="all", progress=False, **options
    )
    for seed in range(3):
        step = step_over(pefs.subject.model, seed=seed)
        z, dz = response(pefs.subject, step, np.arange(16), whole="fisher" in options)
        found = curvature(z, dz) if "fisher" not in options else preview._score(z, dz, "categorical") ** 2
        expected = ((pefs.factors.astype(np.float64) @ flat(step, pefs.parameters)) ** 2).sum(1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_curvature_along_components_is_what_their_projections_say(shared):
    """gᵀF g = ‖F‖ Σ_y P_y² for a component lifted to the model: to 1e-4, which the fit's own stationarity leaves."""
    npeff = NPEFF(3, n_init=1, tol=1e-10, max_iter=2000, random_state=0).fit(shared)
    for k in range(3):
        found = curvature(*response(npeff, lift.direction(npeff, k, coverage=1), np.arange(24)))
        expected = shared.norms * (npeff.projections_[:, :, k] ** 2).sum(1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_curvature_of_independent_labels():
    model, texts = tiny.bert_for("SequenceClassification", num_labels=4, problem_type="multi_label_classification"), tiny.table(12)
    pefs = extract_fishers(model, tiny.tokenizer(), texts, features="dense", progress=False)
    assert isinstance(pefs.subject.output, MultiLabel)
    step = step_over(model, list(pefs.parameters["name"]))
    expected = ((pefs.factors.astype(np.float64) @ flat(step, pefs.parameters)) ** 2).sum(1)
    np.testing.assert_allclose(curvature(*response(pefs.subject, step, np.arange(12)), "bernoulli"), expected, rtol=1e-4)


def test_curvature_keeps_its_digits_where_a_prediction_is_certain():
    """p = 1 − 1e-12: as a difference of two sums nothing would be left of 1e-12 · (dz_0 − dz_1)² beside dz² = 1e6."""
    z, dz = np.array([[0.0, -np.log(1e12)]]), np.array([[1000.0, 1001.0]])
    assert curvature(z, dz)[0] == pytest.approx(1e-12, rel=1e-6)
    assert curvature(z, dz + 5)[0] == pytest.approx(curvature(z, dz)[0], rel=1e-9)  # a shift of all logits is no change


def test_curvature_of_a_whole_vocabulary_is_at_least_the_kept_part(few_of_many):
    rows, step = np.arange(16), step_over(few_of_many.subject.model)
    whole, kept = (curvature(*response(few_of_many.subject, step, rows, whole=whole)) for whole in (True, False))
    assert (kept < whole).all()
    raw, dz = response(few_of_many.subject, step, rows, whole=True)
    p = torch.softmax(torch.from_numpy(raw), -1).numpy()
    written_out = [dz[i] @ (np.diag(p[i]) - np.outer(p[i], p[i])) @ dz[i] for i in rows]
    np.testing.assert_allclose(whole, written_out, rtol=1e-8)


# ------------------------------------------------------------------------------------------------------------------------ coefficients


NEW = tiny.table(40)["text"].tolist()[24:]


@pytest.mark.parametrize(
    "options",
    [{}, {"classes": 3}, {"fisher": "predicted"}, {"scale": {"*mlp*": 3.0}}],
    ids=["all", "three", "predicted", "scaled"],
)
def test_coefficients_are_those_of_transform(options):
    """New texts two ways: extracted in the same dense coordinates and transformed, and by derivatives along the lifted components."""
    tokenizer = tiny.tokenizer(types=False)
    settings = {"features": "dense", "parameters": "default", "progress": False} | options
    pefs = extract_fishers(tiny.gpt2_for("LMHeadModel"), tokenizer, tiny.table(16), **settings)
    npeff = NPEFF(3, n_init=1, tol=1e-9, random_state=0).fit(pefs)
    directions = [lift.direction(npeff, k, coverage=1) for k in range(3)]
    new = extract_fishers(pefs.subject.model, tokenizer, NEW, like=npeff, features="dense", progress=False)
    found = coefficients_of(npeff, [{n: 7 * v for n, v in one.items()} for one in directions], NEW) / new.norms[:, None]
    expected = npeff.transform(new)
    assert (expected > 0.05).any(0).sum() >= 2
    # Components lifted and fitted agree to 1e-4 (the fit's stationarity); coefficients are quadratic in them and share what is alike.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_coefficients_of_independent_labels_and_ready_inputs():
    model = tiny.seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    x, new = (torch.randn(20, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    pefs = extract_fishers(model, inputs=x, logits=tiny.plain_logits, parameters="all", features="dense", progress=False)
    npeff = NPEFF(3, n_init=1, tol=1e-9, random_state=0).fit(pefs)
    directions = [lift.direction(npeff, k, coverage=1) for k in range(3)]
    there = extract_fishers(model, inputs=new, like=npeff, progress=False)
    np.testing.assert_allclose(coefficients_of(npeff, directions, inputs=new) / there.norms[:, None], npeff.transform(there), atol=2e-3)


def test_coefficients_solve_their_least_squares(shared):
    """min ‖F − Σ_j w_j g_j g_jᵀ‖² over dense Fishers, by scipy, for directions that no fit has found."""
    from scipy.optimize import nnls

    directions = [step_over(shared.subject.model, list(shared.parameters["name"]), seed) for seed in range(3)]
    # Of the examples' own rows, so that they explain something.
    for j, one in enumerate(directions):
        at = 0
        for name in shared.parameters["name"]:
            size = one[name].numel()
            one[name] = torch.from_numpy(shared.factors[j, 0, at : at + size]).view(one[name].shape)
            at += size
    found = coefficients_of(shared.subject, directions, shared.examples["text"].tolist())
    G = np.stack([np.concatenate([one[n].double().numpy().ravel() for n in shared.parameters["name"]]) for one in directions])
    G /= np.linalg.norm(G, axis=1, keepdims=True)
    for i in range(len(shared)):
        basis = np.linalg.qr(np.concatenate([G, shared.factors[i].astype(np.float64)]).T)[0]
        F, pieces = twins.fisher(shared.factors[i] @ basis), [np.outer(g @ basis, g @ basis).ravel() for g in G]
        expected = nnls(np.stack(pieces, 1), F.ravel())[0]
        np.testing.assert_allclose(found[i], expected, atol=1e-4 * shared.norms[i])


def test_drawn_labels_are_replaced_by_the_whole_expectation():
    tokenizer = tiny.tokenizer(types=False)
    model = tiny.gpt2_for("LMHeadModel")
    sampled, every = (
        extract_fishers(model, tokenizer, tiny.table(8), classes=c, features="dense", progress=False) for c in (Sampled(draws=4), "all")
    )
    steps = [step_over(model, list(every.parameters["name"]), seed) for seed in range(2)]
    np.testing.assert_array_equal(coefficients_of(sampled.subject, steps, NEW), coefficients_of(every.subject, steps, NEW))


def test_coefficients_say_what_they_need(shared, npeff):
    with pytest.raises(ValueError, match="needs at least one direction"):
        coefficients_of(npeff, [], NEW)
    with pytest.raises(TypeError, match="coefficients_of needs examples="):
        coefficients_of(npeff, [npeff.direction(0)])
    with pytest.raises(ValueError, match="direction 1 is zero everywhere"):
        coefficients_of(npeff, [npeff.direction(0), {n: 0 * v for n, v in npeff.direction(0).items()}], NEW)
    gold = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(8), fisher="empirical", features="dense", progress=False)
    with pytest.raises(ValueError, match="these Fishers are of gold labels"):
        coefficients_of(gold.subject, [npeff.direction(0)], NEW)


# ------------------------------------------------------------------------------------------------------------------------ trust


def curved(seed: int = 0, m: int = 5, c: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).standard_normal((3, m, c)))


def departure_at(s: float, z: np.ndarray, dz: np.ndarray, bend: np.ndarray) -> float:
    preview_kl, true_kl = kl(z + s * dz, z), kl(z + s * dz + s**2 * bend, z)
    return np.abs(preview_kl - true_kl).sum() / true_kl.sum()


@pytest.mark.parametrize("seed", range(4))
def test_trust_is_where_the_preview_s_kl_is_ten_per_cent_off(seed):
    """True logits with a known bend: on a fine grid the interpolated strength is the one that a search finds, on either side."""
    z, dz, bend = curved(seed)
    grid = np.linspace(-1, 1, 41)
    found = trust(z, dz, np.random.default_rng(0).permutation(grid), np.stack([z] * 41))  # a truth that does not move at all
    assert found == (-0.0, 0.0)
    shuffled = np.random.default_rng(0).permutation(grid)
    found = trust(z, dz, shuffled, np.stack([z + s * dz + s**2 * bend for s in shuffled]))
    for sign, strength in zip((-1, 1), found, strict=True):
        fine = sign * np.linspace(1e-4, 1, 20_000)
        first = next((s for s in fine if departure_at(s, z, dz, bend) > 0.1), sign * np.inf)
        assert strength == pytest.approx(first, abs=0.01)  # a grid of 0.05, nearly straight within a step
        assert np.sign(strength) == sign


def test_trust_beyond_the_grid_is_infinite_and_without_one_unknown():
    z, dz, _ = curved()
    straight = [(s, z + s * dz) for s in (-0.5, 0.0, 0.5)]
    strengths, truth = [s for s, _ in straight], np.stack([t for _, t in straight])
    assert trust(z, dz, strengths, truth) == (-np.inf, np.inf)
    one_side = trust(z, dz, strengths[1:], truth[1:])
    assert np.isnan(one_side.down)
    assert one_side.up == np.inf


def test_trust_does_not_let_examples_cancel():
    """One example's KL is twice what the preview says, another's none: the mean would agree."""
    z, dz = np.zeros((2, 2)), np.array([[1.0, 0.0], [1.0, 0.0]])
    truth = z[None] + np.array([[[0.1 * np.sqrt(2), 0], [0, 0]]])
    means = kl(z + 0.1 * dz, z).mean(), kl(truth[0], z).mean()
    assert means[0] == pytest.approx(means[1], rel=0.01)
    assert trust(z, dz, [0.1], truth).up < 0.02


def test_trust_does_not_count_rounding():
    z, dz, _ = curved()
    s = 1e-6
    noisy = (10 * z + s * dz + 1e-6 * np.random.default_rng(0).standard_normal(z.shape))[None]
    assert trust(10 * z, dz, [s], noisy).up == np.inf


def test_trust_of_what_is_no_number_is_none():
    z, dz, _ = curved()
    assert trust(z, dz, [0.2, 0.4], np.stack([z + 0.2 * dz, np.full_like(z, np.nan)])).up == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"logits \(5, 4\), derivative \(5, 4\) and truth \(1, 5, 4\) do not fit 2 strengths"):
        trust(z, dz, [0.1, 0.2], z[None])


def test_trust_of_independent_labels():
    z, dz, bend = curved(2)
    grid = np.linspace(-1, 1, 41)
    found = trust(z, dz, grid, np.stack([z + s * dz + s**2 * bend for s in grid]), "bernoulli")
    limits = [np.abs(kl(z + s * dz, z, "bernoulli") - (t := kl(z + s * dz + s**2 * bend, z, "bernoulli"))).sum() / t.sum() for s in found]
    np.testing.assert_allclose(limits, 0.1, atol=0.02)


# ------------------------------------------------------------------------------------------------------------------------ for the slider


def test_a_preview_is_plain_data(shared, npeff):
    rows, step, grid = np.array([5, 2, 9]), npeff.direction(0), [-2.0, -0.5, -0.01, 0.0, 0.01]
    z, dz = response(npeff, step, rows)
    truth = edited_logits(shared.subject, step, grid, rows)
    found = preview.preview(npeff, step, rows, grid, truth)
    again = Preview(**json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.rows == [5, 2, 9]
    assert again.family == "categorical"
    np.testing.assert_array_equal(again.logits, z)
    np.testing.assert_array_equal(again.derivative, dz)
    expected = trust(z, dz, grid, truth)
    assert expected.up == np.inf
    assert expected.down > -2
    assert list(again.trusted) == [expected.down, 0.01]  # to where it was run
    assert preview.preview(npeff, step, rows).trusted == (None, None)
    assert preview.preview(npeff, step, rows, grid[3:], truth[3:]).trusted == (None, 0.01)


def test_a_preview_of_what_is_no_number_is_refused():
    subject = ready(tiny.seeded(lambda: nn.Linear(5, 3)))
    subject.batches.inputs["inputs"][4, 1] = torch.nan
    step = step_over(subject.model)
    with pytest.raises(ValueError, match="not finite for 1 of 3 examples, the first being row 4"):
        preview.preview(subject, step, np.array([0, 4, 2]))
    dz = response(subject, step, np.array([0, 4, 2]))[1]
    assert np.isnan(dz[1]).any()
    assert np.isfinite(dz[[0, 2]]).all()


# ------------------------------------------------------------------------------------------------------------------------ what it leaves


@contextlib.contextmanager
def everything_as_it_was(model: nn.Module):
    before, versions = twins.state(model), [p._version for p in model.parameters()]
    handler, fast, flash = signal.getsignal(signal.SIGINT), torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    yield
    twins.assert_untouched(model, before)
    assert [p._version for p in model.parameters()] == versions
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.backends.cuda.flash_sdp_enabled() == flash
    assert not forward_mode.LOCK.locked()
    with torch.autograd.forward_ad.dual_level():  # no other is open
        assert all(torch.autograd.forward_ad.unpack_dual(p).tangent is None for p in model.parameters())


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "words, T5", "images", "transformer", "groups and batch norm", "weights made of others"])
def test_the_model_is_left_as_it_was(name):
    case = copy.copy(made(name))
    case.model = copy.deepcopy(case.model)
    for number, p in enumerate(case.model.parameters()):
        p.requires_grad_(number % 2 == 1)
        p.grad = torch.ones_like(p) if number % 4 == 1 else None
    with everything_as_it_was(case.model):
        response(subject_of_case(case), step_over(case.model), np.arange(case.n))


def test_a_graph_over_the_model_stays_good():
    subject = ready(tiny.seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))))
    loss = subject.model(subject.batches.inputs["inputs"]).square().sum()
    response(subject, step_over(subject.model), np.arange(6))
    loss.backward()
    assert subject.model[0].weight.grad is not None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_by_an_error(error, bert, tokenizer):
    calls = []

    def logits(model, batch):
        calls.append(1)
        if len(calls) == 2:
            raise error("stopped here")
        return SequenceClasses().logits(model, batch)

    output = Own(logits)
    subject = Subject(bert, SequenceClasses().prepare(bert, tokenizer, tiny.TEXTS, 3)[0], output, Recipe(), tokenizer)
    with everything_as_it_was(bert), pytest.raises(error, match="stopped here"):
        response(subject, step_over(bert), np.arange(8))
    assert len(calls) == 2


@pytest.fixture
def ctrl_c():
    """Where tests run in the background of a shell, Ctrl-C is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_comes_between_two_batches(bert, tokenizer, ctrl_c):
    calls = []

    def logits(model, batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return SequenceClasses().logits(model, batch)

    subject = Subject(bert, SequenceClasses().prepare(bert, tokenizer, tiny.TEXTS, 2)[0], Own(logits), Recipe(), tokenizer)
    with everything_as_it_was(bert), pytest.raises(KeyboardInterrupt):
        response(subject, step_over(bert), np.arange(8))
    assert len(calls) == 2
    calls[:] = [1, 1, 1]
    assert response(subject, step_over(bert), np.arange(8))[1].any()


@pytest.mark.parametrize("seed", range(25))
def test_an_interrupt_at_any_line_leaves_the_parameters(seed, bert, tokenizer):
    """Raised at a line of the module drawn at random, as a timeout would: values are never touched, and the next call is right."""
    subject = Subject(bert, SequenceClasses().prepare(bert, tokenizer, tiny.TEXTS, 3)[0], SequenceClasses(), Recipe(), tokenizer)
    step, rows, before = step_over(bert), np.arange(8), twins.state(bert)
    lines, left = [0], [None]

    def trace(frame, event, argument):
        if frame.f_code.co_filename != preview.__file__:
            return None
        lines[0] += event == "line"
        if event == "line" and lines[0] == left[0]:
            raise KeyboardInterrupt
        return trace

    def traced():
        lines[0] = 0
        sys.settrace(trace)
        try:
            return response(subject, step, rows)
        finally:
            sys.settrace(None)

    expected = traced()
    left[0] = int(np.random.default_rng(seed).integers(1, lines[0] + 1))
    with pytest.raises(KeyboardInterrupt):
        traced()
    twins.assert_untouched(bert, before)
    for one, other in zip(response(subject, step, rows), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_another_thread_waits_until_the_model_is_itself_again(npeff):
    subject, rows, step, found = npeff.subject, np.arange(4), npeff.direction(0), []
    before = response(subject, step, rows)
    thread = threading.Thread(target=lambda: found.append(response(subject, step, rows)))
    with nb.perturb(subject.model, step, 5.0):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not found
        assert not np.allclose(response(subject, step, rows)[0], before[0])  # while the thread that edits goes on
    thread.join(30)
    np.testing.assert_array_equal(found[0][1], before[1])


def test_two_models_in_two_threads_do_not_meet():
    """torch has one level of forward mode for a whole process."""
    subjects = [ready(tiny.seeded(lambda: nn.Linear(5, 3), seed), n=64, batch_size=1) for seed in range(4)]
    steps = [step_over(subject.model) for subject in subjects]
    alone = [response(subject, step, np.arange(64)) for subject, step in zip(subjects, steps, strict=True)]
    found = [None] * 4

    def work(at):
        found[at] = response(subjects[at], steps[at], np.arange(64))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not said
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one[1], other[1])


# ------------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("direction", "rows", "words"),
    [
        ({}, [0], "the direction moves no parameter at all"),
        ({"2.bias": torch.ones(4)}, [0], r"moves '2.bias' of shape \(4,\); the model has \(3,\)"),
        ({"3.bias": torch.ones(4)}, [0], r"moves '3.bias' of shape \(4,\); the model has no such parameter"),
        ({"2.bias": torch.ones(3)}, [0, 1, 0], "an example was asked for twice in one call"),
        ({"2.bias": torch.ones(3)}, [], "no example was asked for"),
    ],
)
def test_what_does_not_fit_is_refused(direction, rows, words):
    subject = ready(tiny.seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))))
    with pytest.raises(ValueError, match=words):
        response(subject, direction, np.array(rows, dtype=int))


def test_a_decomposition_without_a_model_says_so():
    with pytest.raises(ValueError, match="no model at hand"):
        response(NPEFF(1, n_init=1).fit(np.random.default_rng(0).standard_normal((6, 1, 4))), {"a": torch.ones(1)}, np.arange(2))
