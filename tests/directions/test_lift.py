"""A component in parameter space against its sum of factor rows, and the caller's model around it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import twins

from npeff_nb import NPEFF
from npeff_nb.directions import lift
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import Own, SequenceClasses


def flat(direction: dict[str, torch.Tensor], names: list[str]) -> np.ndarray:
    return np.concatenate([direction[name].double().numpy().ravel() for name in names])


@pytest.mark.parametrize("parameters", ["default", "all"])
def test_the_direction_is_the_weighted_sum_of_the_rows(parameters, tokenizer):
    """Dense rows are gradients themselves, so h = Σ Θ a can be read off them: the same vector but for float32."""
    pefs = extract_fishers(tiny.bert(), tokenizer, tiny.table(16), features="dense", parameters=parameters, progress=False)
    npeff = NPEFF(3, n_init=1, tol=1e-10, max_iter=2000, random_state=0).fit(pefs)
    unit = pefs.factors.astype(np.float64) / np.sqrt(pefs.norms)[:, None, None]
    for k in range(3):
        expected = np.einsum("ny,nyd->d", npeff.row_weights(k), unit)
        expected /= np.linalg.norm(expected)
        found = lift.direction(npeff, k, coverage=1)
        vector = flat(found, list(pefs.parameters["name"]))
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vector @ expected > 1 - 1e-5
        assert vector @ npeff.components_[k] > 1 - 1e-4  # the fit's own stationarity comes on top
        assert found.examples == 16


def test_tensors_have_their_parameters_shapes_and_unit_norm_together(npeff, shared):
    found = npeff.direction(0)
    there = dict(shared.subject.model.named_parameters())
    assert list(found) == list(shared.parameters["name"])
    assert all(found[name].shape == there[name].shape and not found[name].requires_grad for name in found)
    assert lift.norm(found) == pytest.approx(1, abs=1e-6)
    assert lift.norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5


def test_most_of_a_component_needs_part_of_the_examples(npeff):
    whole, most = lift.direction(npeff, 0, coverage=1), lift.direction(npeff, 0, coverage=0.6)
    names = list(whole)
    assert 0 < most.examples < whole.examples
    # What it says of itself is what it is: the kept features here are the parameters, so the cosine can be checked.
    assert flat(most, names) @ flat(whole, names) == pytest.approx(most.cosine, abs=1e-3)


def test_the_sign_strengthens_the_predicted_class(npeff, shared):
    """A small step along +h makes the component's strongest user more certain, a step back less."""
    from npeff_nb.directions.perturb import edited_logits

    for k in range(len(npeff.components_)):
        top = npeff.top_examples(k, 1)
        down, still, up = (
            torch.softmax(torch.from_numpy(z[0]), -1) for z in edited_logits(shared.subject, npeff.direction(k), [-0.02, 0.0, 0.02], top)
        )
        predicted = int(still.argmax())
        assert down[predicted] < still[predicted] < up[predicted]


def test_another_model_of_the_same_shape_may_be_lifted_to(npeff):
    later = tiny.bert(seed=3)
    here, there = npeff.direction(0), npeff.direction(0, model=later)
    assert list(here) == list(there)
    assert abs(flat(here, list(here)) @ flat(there, list(here))) < 0.9


def test_a_model_without_the_parameters_is_refused(npeff):
    with pytest.raises(
        ValueError, match=r"the model has no parameter 'bert.encoder.layer.0.attention.self.query.weight', over which this decomposition was made"
    ):
        npeff.direction(0, model=tiny.gpt2())


def test_a_model_in_training_mode_is_refused(npeff):
    with pytest.raises(ValueError, match="training mode"):
        npeff.direction(0, model=tiny.bert().train())


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was(error, bert, tokenizer):
    bert.classifier.bias.requires_grad_(False)
    bert.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)  # frozen, and still lifted to
    bert.bert.pooler.dense.weight.grad = torch.ones_like(bert.bert.pooler.dense.weight)
    npeff = NPEFF(2, n_init=1, random_state=0).fit(extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", batch_size=2, progress=False))
    before, calls = twins.state(bert), []

    def logits(model, batch):
        calls.append(1)
        if error is not None and len(calls) == 2:
            raise error("stopped here")
        return SequenceClasses().logits(model, batch)

    npeff.subject.output = Own(logits)
    if error is None:
        assert npeff.direction(0)["bert.encoder.layer.0.output.dense.weight"].any()
    else:
        with pytest.raises(error, match="stopped here"):
            npeff.direction(0)
    twins.assert_untouched(bert, before)


def test_pull_back_is_the_gradient_by_autograd(shared):
    """Σ_ik θ_ik · (factor row k of example i) for given θ, one example after the other in float64."""
    names = ["bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.weight"]
    rows = np.array([3, 11, 5])
    theta = np.random.default_rng(0).standard_normal((3, 2))
    found = lift.pull_back(shared.subject, names, rows, theta, shared.logits[rows])
    model = tiny.bert().double()
    chosen = [dict(model.named_parameters())[name] for name in names]
    total = 0
    for row, weights in zip(rows, theta, strict=True):
        z = model(**tiny.tokenizer()([shared.examples["text"][row]], return_tensors="pt")).logits[0]
        total = total + (z * torch.from_numpy(weights @ twins.stick_breaking(z.detach().numpy()))).sum()
    for name, expected in zip(names, torch.autograd.grad(total, chosen), strict=True):
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-5)  # float32


def test_pull_back_takes_the_rows_of_the_extraction_also_where_the_model_moved(shared):
    """Row k belongs to the k-th likeliest class *then*: an edited model's own order must not mix them up."""
    names, rows, theta = ["bert.pooler.dense.weight"], np.array([2]), np.array([[1.0, 0.0]])
    upside_down = -shared.logits[rows]
    found = lift.pull_back(shared.subject, names, rows, theta, upside_down)[names[0]]
    model = tiny.bert().double()
    z = model(**tiny.tokenizer()([shared.examples["text"][2]], return_tensors="pt")).logits[0]
    v = torch.from_numpy(twins.stick_breaking(upside_down[0].astype(np.float64))[0])
    (expected,) = torch.autograd.grad((z * v).sum(), [model.bert.pooler.dense.weight])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_random_direction_is_unit_seeded_and_like_its_model(npeff):
    like = npeff.direction(0)
    one = lift.random_direction(like, 1)
    assert lift.norm(one) == pytest.approx(1, abs=1e-6)
    assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in like.items()}
    assert all(torch.equal(one[n], lift.random_direction(like, 1)[n]) for n in like)
    assert not torch.equal(one["bert.pooler.dense.weight"], lift.random_direction(like, 2)["bert.pooler.dense.weight"])
    # p numbers: the cosine with anything fixed is about 1/√p = 0.014; 6 of these.
    assert abs(flat(one, list(like)) @ flat(like, list(like))) < 6 / sum(v.numel() for v in like.values()) ** 0.5
