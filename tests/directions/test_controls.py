"""Controls against their definition: sums of gradients that dense features show, and gradients by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import twins

from npeff_nb import NPEFF
from npeff_nb.directions import lift
from npeff_nb.directions.controls import Clusters, clusters, control, kmeans_directions, other_component, random_combination
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import MultiLabel, NextToken


def flat(direction: dict[str, torch.Tensor], names: list[str]) -> np.ndarray:
    return np.concatenate([direction[name].double().numpy().ravel() for name in names])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def unit_rows(pefs) -> np.ndarray:
    return pefs.factors.astype(np.float64) / np.sqrt(pefs.norms)[:, None, None]


def fitted(pefs, components: int = 2) -> NPEFF:
    return NPEFF(components, n_init=1, random_state=0).fit(pefs)


@pytest.mark.parametrize("coverage", [0.6, 1])
def test_a_random_combination_is_of_the_component_s_own_rows(coverage, npeff, shared):
    """Dense features are the gradients: the combination lies in the span of the rows that the component is made of, and of no others."""
    names = list(shared.parameters["name"])
    found = random_combination(npeff, 1, seed=3, coverage=coverage)
    own = lift.direction(npeff, 1, coverage=coverage)
    assert found.examples == own.examples
    theta = npeff.row_weights(1)
    contribution = (theta * npeff.projections_[:, :, 1]).sum(1)
    used = np.argsort(-np.abs(contribution), kind="stable")[: own.examples]
    rows = unit_rows(shared)[used][theta[used] != 0]
    weights, *_ = np.linalg.lstsq(rows.T, flat(found, names), rcond=None)
    assert np.linalg.norm(rows.T @ weights - flat(found, names)) < 1e-5  # float32
    assert lift.norm(found) == pytest.approx(1, abs=1e-6)
    drawn = np.random.default_rng([3, 1]).standard_normal(theta[used].shape)[theta[used] != 0]
    assert unit(drawn @ rows) @ flat(found, names) > 1 - 1e-6


def test_random_combinations_are_seeded_and_differ_between_components(npeff):
    names = list(npeff.parameters["name"])
    one, same, seed, other = (flat(random_combination(npeff, *which), names) for which in ((0, 1), (0, 1), (0, 2), (1, 1)))
    np.testing.assert_array_equal(one, same)
    assert abs(one @ seed) < 0.9 and abs(one @ other) < 0.9


def texts(**settings):
    return extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(12), features="dense", progress=False, **settings)


def multi_label(**settings):
    model = tiny.bert_for("SequenceClassification", problem_type="multi_label_classification")
    return extract_fishers(
        model, tiny.tokenizer(), tiny.table(12)[["text"]], features="dense", output=MultiLabel(), progress=False, parameters=PARAMETERS, **settings
    )


def next_token(**settings):
    model = tiny.llama_for("CausalLM")
    return extract_fishers(
        model, tiny.tokenizer(types=False), tiny.TEXTS, features="dense", output=NextToken(), progress=False, parameters="*down_proj*", **settings
    )


PARAMETERS = ["bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.weight"]
QUESTIONS = {
    "classes": lambda: texts(parameters=PARAMETERS),
    "turned rows": lambda: texts(parameters=PARAMETERS, rank=2),
    "the predicted label": lambda: texts(parameters=PARAMETERS, fisher="predicted"),
    "independent labels": multi_label,
    "independent labels, turned": lambda: multi_label(rank=3),
    "few of many classes": lambda: next_token(classes=4),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_clustered_is_the_gradient_of_the_prediction(question):
    """Against autograd in float64: ∇log p of what is predicted, all of it where the rows were only turned and none was left out."""
    pefs = QUESTIONS[question]()
    npeff = fitted(pefs)
    found = clusters(pefs, npeff, 3)
    gradients = np.einsum("nk,nkd->nd", found.weights, unit_rows(pefs))
    np.testing.assert_allclose(np.linalg.norm(gradients, axis=1), 1, rtol=1e-5)
    model, subject = twins.double(pefs.subject.model), pefs.subject
    chosen = [dict(model.named_parameters())[name] for name in pefs.parameters["name"]]
    for row in range(len(pefs)):
        z = subject.output.logits(model, subject.batches.batch(np.array([row])))[0]
        if "independent" in question:
            log_p = torch.nn.functional.logsigmoid(torch.where(z.detach() > 0, z, -z)).sum()
        elif question == "few of many classes":
            log_p = torch.log_softmax(z, -1)
            kept = pefs.choices["outcomes"][row].tolist()
            rest = [c for c in range(len(z)) if c not in kept]
            log_p = torch.cat([log_p[kept], log_p[rest].logsumexp(0)[None]]).amax()  # "anything else" may be the likeliest
        else:
            log_p = torch.log_softmax(z, -1).amax()
        expected = unit(twins.flat_gradients(log_p, chosen).numpy())
        assert gradients[row] @ expected > 1 - 1e-5


def test_with_the_paper_s_rows_too(bert, tokenizer):
    """Top-k keeps entries of the paper's c rows: what counts is that the predicted class's own is the one with weight."""
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="topk", budget=2000, progress=False)
    found = clusters(pefs, fitted(pefs), 2)
    np.testing.assert_array_equal((found.weights != 0).argmax(1), pefs.logits.argmax(1))
    assert ((found.weights != 0).sum(1) == 1).all()


def test_directions_of_centroids_are_means_of_their_members(npeff, shared):
    names = list(shared.parameters["name"])
    found, directions = clusters(shared, npeff, 4, seed=2), kmeans_directions(shared, npeff, 4, seed=2)
    gradients = np.einsum("nk,nkd->nd", found.weights, unit_rows(shared))
    assert set(found.labels) == set(range(4))
    for number, direction in enumerate(directions):
        mean = gradients[found.labels == number].mean(0)
        np.testing.assert_allclose(found.centroids[number], mean, atol=1e-5)
        assert unit(mean) @ flat(direction, names) > 1 - 1e-5
        assert direction.examples == (found.labels == number).sum()
    # k-means has come to rest: nobody is nearer to another centroid.
    distances = np.linalg.norm(gradients[:, None] - found.centroids, axis=2)
    np.testing.assert_array_equal(distances.argmin(1), found.labels)
    np.testing.assert_array_equal(clusters(shared, npeff, 4, seed=2).labels, found.labels)


def test_a_step_along_a_centroid_makes_its_predictions_likelier(npeff, shared):
    from npeff_nb.directions.perturb import edited_logits

    found = clusters(shared, npeff, 3)
    for number in range(3):
        rows = np.flatnonzero(found.labels == number)
        still, up = edited_logits(shared.subject, found.lifted(npeff, number), [0.0, 1e-2], rows)
        predicted = still.argmax(1)
        gain = torch.log_softmax(torch.from_numpy(up), -1) - torch.log_softmax(torch.from_numpy(still), -1)
        assert gain.numpy()[np.arange(len(rows)), predicted].mean() > 0


def test_scaled_parameters_are_stepped_along_as_the_component_is(bert, tokenizer):
    """The Fisher over θ/s with s = ½ on one matrix: a component of one example and its one cluster are the same direction."""
    name = "bert.pooler.dense.weight"
    pefs = extract_fishers(
        bert, tokenizer, tiny.TEXTS[:2], features="dense", fisher="predicted", parameters=[name, "bert.encoder.layer.1.output.dense.weight"],
        scale={name: 0.5}, progress=False,
    )  # fmt: skip
    npeff = fitted(pefs)
    k = int(npeff.coefficients_[0].argmax())
    labels = clusters(pefs, npeff, 2).labels
    found, own = kmeans_directions(pefs, npeff, 2)[labels[0]], npeff.direction(k)
    names = list(found)
    assert abs(flat(found, names) @ flat(own, names)) > 1 - 1e-4


def test_examples_without_a_gradient_are_in_no_cluster(npeff, shared):
    some = shared[np.arange(len(shared))]
    some.factors = some.factors.copy()
    some.factors[3] = 0
    found = clusters(some, npeff, 2)
    assert found.labels[3] == -1 and (np.delete(found.labels, 3) >= 0).all()
    with pytest.raises(ValueError, match="n_clusters=24: 23 examples have a gradient; choose from 1 to 23"):
        clusters(some, npeff, 24)


def test_the_other_component_is_the_most_similar_one_in_use(npeff):
    npeff.components_ = unit(np.array([[1.0, 0, 0, 0], [0.1, 1, 0, 0], [-0.8, 0, 1, 0], [0.99, 0, 0, 0.1]]))
    assert [other_component(npeff, k) for k in range(4)] == [3, 0, 0, 0]
    npeff.coefficients_[:, 3] = 0  # a dead one is no control
    assert [other_component(npeff, k) for k in range(3)] == [2, 0, 0]
    npeff.coefficients_[:, [1, 2]] = 0
    with pytest.raises(ValueError, match="component 0 is the only one that examples use"):
        other_component(npeff, 0)


@pytest.mark.parametrize("kind", ["random", "combination", "kmeans", "other", 2])
@pytest.mark.parametrize("k", [0, 3])
def test_controls_are_unit_and_on_the_component_s_side(kind, k, npeff, shared):
    names = list(shared.parameters["name"])
    like = npeff.direction(k)
    made = control(npeff, k, kind, like, clusters(shared, npeff, 4), seed=5)
    assert list(made) == names
    assert lift.norm(made) == pytest.approx(1, abs=1e-6)
    assert flat(made, names) @ flat(like, names) >= 0
    again = control(npeff, k, kind, like, clusters(shared, npeff, 4), seed=5)
    np.testing.assert_array_equal(flat(made, names), flat(again, names))
    if kind == 2:
        assert abs(flat(made, names) @ flat(npeff.direction(2), names)) > 1 - 1e-6


@pytest.mark.parametrize("kind", ["random", "combination", "kmeans", "other"])
def test_controls_of_a_part_are_over_that_part(kind, npeff, shared):
    """A component's direction within one matrix is held against the control's part in it, made as long."""
    name = "bert.pooler.dense.weight"
    whole, found = npeff.direction(0), clusters(shared, npeff, 4)
    part = type(whole)({name: whole[name]})
    made, of_whole = control(npeff, 0, kind, part, found), control(npeff, 0, kind, whole, found)
    assert list(made) == [name] and lift.norm(made) == pytest.approx(lift.norm(part), abs=1e-6)
    assert lift.norm(part) < 0.99
    assert float((made[name] * part[name]).sum()) >= 0
    if kind != "random":
        assert abs(unit(made[name].numpy().ravel()) @ unit(of_whole[name].numpy().ravel())) > 1 - 1e-6


def test_a_control_that_has_nothing_there_is_refused(npeff):
    with pytest.raises(ValueError, match="the control 'other' of component 0 is zero over the parameters of the direction"):
        control(npeff, 0, "other", {"bert.embeddings.word_embeddings.weight": torch.ones(27, 16)})


def test_the_nearest_centroid_is_by_the_angle_alone():
    found = Clusters(np.zeros(1), np.zeros((1, 1)), np.array([[5.0, 5.0], [0.0, -0.1], [0.2, 0.0]]))
    assert found.nearest(np.array([0.1, 1.0])) == 1
    assert found.nearest(np.array([1.0, 0.9])) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda pefs: np.zeros((24, 2, 3)), "fishers is a ndarray; k-means needs the PEFs that the decomposition was fitted on"),
        (lambda pefs: pefs[:20], r"fishers are not the 24 that this decomposition was fitted on \(20 examples\): give those"),
        (lambda pefs: pefs[np.arange(24)[::-1]], r"fishers are not the 24 .* \(24 examples with other predictions\)"),
        (
            lambda pefs: extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(), features="sketch", budget=40, progress=False),
            "fishers have other coordinates than the ones fitted on",
        ),
    ],
)  # fmt: skip
def test_other_fishers_than_those_of_the_fit_are_refused(given, words, npeff, shared):
    with pytest.raises(ValueError, match=words):
        clusters(given(shared), npeff, 2)


def test_a_fit_on_an_array_has_no_gradients_to_cluster(shared):
    npeff = NPEFF(2, n_init=1, random_state=0).fit(shared.factors)
    with pytest.raises(ValueError, match="fitted on an array"):
        clusters(shared, npeff, 2)
    with pytest.raises(ValueError, match="fitted on an array"):
        random_combination(npeff, 0)


def test_the_model_is_left_as_it_was(npeff, shared):
    before = twins.state(shared.subject.model)
    kmeans_directions(shared, npeff, 3)
    random_combination(npeff, 0)
    twins.assert_untouched(shared.subject.model, before)
