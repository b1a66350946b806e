"""Rejection against dense float64 vectors: least squares by numpy, the sequential rule by its loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npeff_nb.directions import rejection as module
from npeff_nb.directions.lift import Direction, norm
from npeff_nb.directions.rejection import inner_products, rejected


def flat(direction: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([value.double().numpy().ravel() for value in direction.values()])


def drawn(r: int = 7, seed: int = 0, common: float = 0.5) -> list[Direction]:
    """Unit-norm directions over two parameters (30 entries) that share a common part."""
    rng = np.random.default_rng(seed)
    V = rng.standard_normal((r, 30)) + common * rng.standard_normal(30)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    out = []
    for v in V:
        one = Direction({"a": torch.from_numpy(v[:18].reshape(6, 3)).float(), "b": torch.from_numpy(v[18:]).float()})
        one.examples = 5
        out.append(one)
    return out


def least_squares(V: np.ndarray, k: int, limit: float) -> np.ndarray:
    others = np.array([v for j, v in enumerate(V) if j != k and abs(v @ V[k]) <= limit])
    left = V[k] - others.T @ np.linalg.lstsq(others.T, V[k], rcond=None)[0] if len(others) else V[k]
    return left / np.linalg.norm(left)


def sequential(V: np.ndarray, k: int, limit: float) -> np.ndarray:
    v = V[k].copy()
    for j in range(len(V)):
        if j != k and abs(V[k] @ V[j]) <= limit:
            v = v - (v @ V[j]) * V[j]
    return v / np.linalg.norm(v)


@pytest.mark.parametrize("limit", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize(("rule", "twin"), [("least squares", least_squares), ("sequential", sequential)])
@pytest.mark.parametrize("seed", range(3))
def test_against_dense_vectors(seed, rule, twin, limit):
    directions = drawn(seed=seed)
    V = np.stack([flat(d) for d in directions])
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    assert ((np.abs(V @ V.T) > 0.2) & ~np.eye(7, dtype=bool)).any() and (np.abs(V @ V.T) < 0.2).any()
    for k in range(7):
        found = rejected(directions, k, limit, rule)
        np.testing.assert_allclose(flat(found), twin(V, k, limit), atol=1e-6)  # float32
        assert norm(found) == pytest.approx(1, abs=1e-6)
        assert {name: value.shape for name, value in found.items()} == {"a": (6, 3), "b": (12,)}
        assert found.cosine == pytest.approx(flat(found) @ V[k], abs=1e-6)
        assert found.examples == 5


def test_least_squares_is_orthogonal_to_all_and_does_not_depend_on_the_order():
    directions, order = drawn(), [3, 0, 6, 2, 5, 1, 4]
    V = np.stack([flat(d) for d in directions])
    found = {rule: flat(rejected(directions, 2, 0.9, rule)) for rule in module.RULES}
    turned = {rule: flat(rejected([directions[j] for j in order], order.index(2), 0.9, rule)) for rule in module.RULES}
    np.testing.assert_allclose(np.delete(V, 2, 0) @ found["least squares"], 0, atol=1e-6)
    np.testing.assert_allclose(turned["least squares"], found["least squares"], atol=1e-6)
    # What is wrong with the one-pass rule, so that nobody takes it for the other.
    assert abs(V[0] @ found["sequential"]) > 0.03
    assert np.abs(turned["sequential"] - found["sequential"]).max() > 0.01


def test_nearly_the_same_component_is_left_in():
    directions = drawn()
    noise = torch.Generator().manual_seed(0)
    twin = Direction({name: value + 0.01 * torch.randn(value.shape, generator=noise) for name, value in directions[0].items()})
    found = rejected([*directions, twin], 0, 0.9)
    np.testing.assert_allclose(flat(found), flat(rejected(directions, 0, 0.9)), atol=1e-6)
    assert abs(flat(found) @ flat(twin)) > 0.5


def test_lengths_of_the_directions_do_not_matter():
    directions = drawn()
    longer = [Direction({name: (j + 1) * value for name, value in d.items()}) for j, d in enumerate(directions)]
    for rule in module.RULES:
        np.testing.assert_allclose(flat(rejected(longer, 1, 0.4, rule)), flat(rejected(directions, 1, 0.4, rule)), atol=1e-6)


def test_others_that_repeat_each_other_count_once():
    directions = drawn()
    again = Direction({name: value.clone() for name, value in directions[3].items()})
    nearly = Direction({name: value * (1 + 1e-7) for name, value in directions[4].items()})
    np.testing.assert_allclose(flat(rejected([*directions, again, nearly], 1, 0.9)), flat(rejected(directions, 1, 0.9)), atol=1e-5)


def test_inner_products(monkeypatch):
    directions = drawn()
    V = np.stack([flat(d) for d in directions])
    for size in (1 << 16, 5):  # all at once, and in pieces that do not divide a parameter
        monkeypatch.setattr(module, "_AT_ONCE", size)
        np.testing.assert_allclose(inner_products(directions), V @ V.T, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(module, "inner_products", lambda directions: pytest.fail("computed again"))
    found = rejected(directions, 0, 0.5, products=V @ V.T)
    np.testing.assert_allclose(flat(found), least_squares(V, 0, 0.5), atol=1e-6)


def test_components_of_a_decomposition(npeff):
    directions = [npeff.direction(k) for k in range(4)]
    before = [flat(d) for d in directions]
    for k in range(4):
        found = rejected(directions, k, 0.95)
        taken = [j for j in range(4) if j != k and abs(before[j] @ before[k]) <= 0.95]
        assert taken
        np.testing.assert_allclose([before[j] @ flat(found) for j in taken], 0, atol=1e-6)
        assert 0 < found.cosine <= directions[k].cosine + 1e-6
    assert all((flat(d) == b).all() for d, b in zip(directions, before, strict=True))


def test_nothing_left_is_said():
    directions = drawn(3)
    mixed = Direction({name: (0.6 * directions[0][name] + 0.6 * directions[1][name]) for name in directions[0]})
    words = r"nothing is left of direction 3: it lies in the span of the 3 others whose \|cos\| with it is at most 0.99 \(what remains .*lower limit"
    with pytest.raises(ValueError, match=words):
        rejected([*directions, mixed], 3, 0.99)
    assert norm(rejected([*directions, mixed], 3, 0.01)) == pytest.approx(1, abs=1e-6)  # none of them is that unlike


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 7}, r"direction 7 does not exist: there are 7 \(0 to 6\)"),
        ({"k": -1}, "direction -1 does not exist"),
        ({"rule": "gram-schmidt"}, "rule='gram-schmidt': the rules are 'least squares', 'sequential'"),
        ({"limit": 1}, r"limit=1: the \|cos\| up to which another component is taken out is at least 0 and below 1"),
        ({"limit": float("nan")}, "limit=nan"),
        ({"directions": [*drawn(), Direction({"a": torch.ones(6, 3)})]}, r"direction 7 and direction 0 are over different parameters \('b'"),
        ({"directions": [*drawn(2), Direction({"a": torch.zeros(6, 3), "b": torch.zeros(12)})]}, "direction 2 has length 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        rejected(**{"directions": drawn(), "k": 0, "limit": 0.5, **arguments})
