"""Sketches and their principal directions: unbiased, calibrated, the same coordinates again."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from npeff_nb import NPEFF
from npeff_nb.fisher import features as features_module
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.features import FeatureMap, Size, principal_basis
from npeff_nb.fisher.layers import Outer
from npeff_nb.fisher.parameters import choose_parameters


@pytest.fixture
def narrow(monkeypatch):
    """Maps of side 6 over the tiny BERT's 13 matrices (16 or 24 wide): a real reduction of a small model."""
    monkeypatch.setattr(features_module, "SKETCH_FEATURES", 13 * 6**2)


def sketched(model, tokenizer, examples, **settings):
    return extract_fishers(model, tokenizer, examples, features="sketch", progress=False, **settings)


def test_inner_products_are_unbiased():
    """The average over seeds approaches the exact inner product at the rate of its own scatter.

    Seeds are independent, so the mean of S of them is off by (standard deviation)/√S; 5 of these is one failure in two million, and the
    seeds are fixed.  That the bound can fail: a map without its 1/√side is off by the factor side², far outside.
    """
    draw = torch.Generator().manual_seed(0)
    uses = [Outer(torch.randn(2, 1, 3, 12, generator=draw), torch.randn(2, 1, 3, 10, generator=draw))]
    rows = uses[0].dense().flatten(1).double()
    exact = float(rows[0] @ rows[1])
    found = []
    for seed in range(400):
        sketch = FeatureMap("sketch", ["w"], [(12, 10)], seed=seed, side=4).of_parameter("w", uses).flatten(1).double()
        found.append(float(sketch[0] @ sketch[1]))
    scatter = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - exact) < 5 * scatter
    assert scatter < 0.25 * float(rows[0].norm() * rows[1].norm())  # the bound above says something
    # Variance of ⟨U a Vᵀ, U b Vᵀ⟩ for Gaussian maps of side s is of the order ‖a‖²‖b‖²(2/s): a larger side scatters less.
    wide = [float((s[0] @ s[1]).item()) for s in (
        FeatureMap("sketch", ["w"], [(12, 10)], seed=seed, side=9).of_parameter("w", uses).flatten(1).double() for seed in range(400)
    )]  # fmt: skip
    assert np.std(wide) < 0.7 * np.std(found)


def test_a_matrix_no_wider_than_the_side_is_kept_as_it_is():
    draw = torch.Generator().manual_seed(0)
    uses = [Outer(torch.randn(2, 1, 3, 4, generator=draw), torch.randn(2, 1, 3, 5, generator=draw))]
    found = FeatureMap("sketch", ["w"], [(4, 5)], side=5).of_parameter("w", uses)
    torch.testing.assert_close(found, uses[0].dense().flatten(2))


def test_maps_are_the_parameter_s_own():
    """Drawn by name: another choice of parameters around it leaves a parameter's sketch as it was."""
    uses = [Outer(torch.ones(1, 1, 1, 12), torch.ones(1, 1, 1, 10))]
    one = FeatureMap("sketch", ["w"], [(12, 10)], seed=3, side=4).of_parameter("w", uses)
    among_others = FeatureMap("sketch", ["a", "w"], [(9, 9), (12, 10)], seed=3, side=4)
    assert torch.equal(one, among_others.of_parameter("w", uses))
    assert not torch.equal(one, FeatureMap("sketch", ["v"], [(12, 10)], seed=3, side=4).of_parameter("v", uses))
    assert not torch.equal(one, FeatureMap("sketch", ["w"], [(12, 10)], seed=4, side=4).of_parameter("w", uses))


def test_slots_tile_the_width():
    some = FeatureMap("sketch", ["a", "b", "c"], [(9, 9), (2, 10), (3, 1)], side=4)
    slots = [some.slot(name) for name in "abc"]
    assert [(s.start, s.stop) for s in slots] == [(0, 16), (16, 24), (24, 27)]
    assert some.width == 27


@pytest.mark.parametrize(("features", "kind"), [("dense", "dense"), ("sketch", "sketch"), ("auto", "dense")])
def test_choice_of_features(features, kind, bert):
    assert FeatureMap.choose(features, choose_parameters(bert)).kind == kind


def test_auto_sketches_what_is_large(bert, monkeypatch):
    monkeypatch.setattr(features_module, "DENSE_LIMIT", 100)
    # Many examples of few tokens: every row against a thousand landmark rows would cost far more than the passes through the model.
    made = FeatureMap.choose("auto", choose_parameters(bert), size=Size(10_000, 2, 10))
    assert made.kind == "sketch"
    assert made.width <= features_module.SKETCH_FEATURES


def test_unknown_features_are_refused(bert):
    with pytest.raises(ValueError, match="features='gram2' is not known; choose one of 'auto', 'dense', 'reduced', 'sketch', 'topk', 'gram'"):
        FeatureMap.choose("gram2", choose_parameters(bert))


@pytest.mark.parametrize(("examples", "width"), [(40, 12), (12, 40)])
def test_principal_basis_is_orthonormal_and_keeps_the_energy_asked_for(examples, width):
    rows = torch.randn(examples, width, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, width)
    for energy in (0.5, 0.9, 0.999):
        basis = principal_basis(rows, energy=energy).double()
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=0, atol=1e-6)  # stored in float32
        values = torch.linalg.svdvals(rows.double()).square()
        needed = int((torch.cumsum(values, 0) / values.sum() < energy).sum()) + 1  # fewest directions that carry it
        assert basis.shape[1] == needed
        kept = float((rows.double() @ basis).square().sum() / rows.double().square().sum())
        assert kept >= energy - 1e-6


def test_principal_basis_honours_the_limit_and_the_rank():
    draw = torch.Generator().manual_seed(0)
    assert principal_basis(torch.randn(40, 12, generator=draw), limit=5).shape == (12, 5)
    low = torch.randn(40, 3, generator=draw) @ torch.randn(3, 12, generator=draw)
    assert principal_basis(low, energy=1.0).shape == (12, 3)
    assert principal_basis(torch.zeros(4, 6)).shape == (6, 1)


def test_an_extraction_s_basis_is_orthonormal_and_its_energy_measured(tokenizer, bert, narrow):
    pefs = sketched(bert, tokenizer, tiny.table(40))
    basis = pefs.feature_map.basis.astype(np.float64)
    assert basis.shape == (13 * 36, pefs.factors.shape[2])
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)  # stored in float32
    assert 0 < pefs.facts["energy_kept"] <= 1 + 1e-6
    assert pefs.facts["energy_kept"] > 0.99


def test_each_example_s_norm_is_put_right(tokenizer, bert, narrow):
    """Sketched Fishers have the exact norms but for what the principal directions leave out, which is at most 0.1 % of the energy on average."""
    pefs = sketched(bert, tokenizer, tiny.table(40))
    rows = pefs.factors.astype(np.float64)
    found = np.linalg.norm(rows @ rows.transpose(0, 2, 1), axis=(1, 2))
    assert (found <= pefs.norms * (1 + 1e-5)).all()  # a projection; float32
    assert np.mean(found / pefs.norms) > 0.99


@pytest.mark.parametrize("pilot", [None, 64])
def test_like_gives_the_same_coordinates(pilot, tokenizer, bert, narrow, monkeypatch):
    """Also when the directions were found on a part of the examples only."""
    if pilot is not None:
        monkeypatch.setattr("npeff_nb.fisher.loop.PILOT_BYTES", 1)  # the least: 64 examples
    examples = tiny.table(80)
    first = sketched(bert, tokenizer, examples)
    again = extract_fishers(bert, tokenizer, examples, like=first, progress=False)
    assert again.feature_map.id == first.feature_map.id
    scale = np.abs(first.factors).max()
    np.testing.assert_allclose(again.factors, first.factors, atol=1e-5 * scale)  # float32: batches may be made otherwise
    assert again.facts["energy_kept"] == pytest.approx(first.facts["energy_kept"], abs=1e-5)


def test_transform_of_the_same_examples_gives_the_coefficients(tokenizer, bert, narrow):
    examples = tiny.table(40)
    pefs = sketched(bert, tokenizer, examples)
    npeff = NPEFF(3, n_init=1, random_state=0).fit(pefs)
    again = npeff.transform(extract_fishers(bert, tokenizer, examples, like=npeff, progress=False))
    # Both solve the same convex problem, one to its end and one as far as the fit went: 1e-3 of a unit-norm Fisher.
    np.testing.assert_allclose(again, npeff.coefficients_, atol=1e-3)


def test_other_coordinates_are_not_mixed(tokenizer, bert, narrow):
    pefs = sketched(bert, tokenizer, tiny.table(20))
    other = sketched(bert, tokenizer, tiny.table(20), seed=1)
    assert other.feature_map.id != pefs.feature_map.id
    with pytest.raises(ValueError, match=r"other coordinates.*like=npeff"):
        NPEFF(2, n_init=1).fit(pefs).transform(other)


def test_like_asks_for_the_same_parameters(tokenizer, bert, narrow):
    pefs = sketched(bert, tokenizer, tiny.table(12))
    with pytest.raises(ValueError, match=r"like= was extracted over 'bert.*query.weight' of shape \(16, 16\), which this model does not have"):
        extract_fishers(tiny.gpt2(), tokenizer, tiny.TEXTS, like=pefs, progress=False)
    with pytest.raises(ValueError, match=r"has with shape \(32, 32\)"):
        extract_fishers(tiny.bert(hidden_size=32), tokenizer, tiny.TEXTS, like=pefs, progress=False)


def test_like_an_array_s_decomposition_is_refused(tokenizer, bert):
    """It has no parameters and no coordinates to give."""
    npeff = NPEFF(2, n_init=1, random_state=0).fit(np.random.default_rng(0).standard_normal((6, 4)))
    with pytest.raises(ValueError, match="array"):
        extract_fishers(bert, tokenizer, tiny.TEXTS, like=npeff, progress=False)


def test_equal_settings_give_equal_sketches(tokenizer, bert, narrow):
    one, two = (sketched(bert, tokenizer, tiny.table(12)) for _ in range(2))
    np.testing.assert_array_equal(one.factors, two.factors)
    assert one.feature_map.id == two.feature_map.id
