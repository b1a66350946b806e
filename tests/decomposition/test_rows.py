"""Products with the rows, in every form, against the same products written out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import twins
from problems import KINDS, features_of, in_parts, mapped, planted, point, problem, weights_of

from npeff_nb.decomposition import rows as rows_module
from npeff_nb.decomposition.rows import Gram, Rows, Stored

SINGLE = 3e-6
"""Entries of products of unit rows, computed in float32: some tens of roundings of 6e-8."""
DOUBLE = 1e-12
"""The same in float64."""


def form(name: str, A: np.ndarray, monkeypatch: pytest.MonkeyPatch, path) -> tuple[Rows, float]:
    """Rows in one form, and how far their products may be from the definition's."""
    if name == "gram":
        return Gram.of(Stored(A)), DOUBLE
    if name == "held":
        return Stored(A), DOUBLE
    A = A.astype(np.float32) if "float32" in name else A
    if "mapped" in name:
        A = mapped(path / "rows", A)
    if "parts" in name:
        in_parts(monkeypatch, 3, A)
    return Stored(A), SINGLE if "float32" in name else DOUBLE


FORMS = ("held", "gram", "parts", "parts float32", "mapped parts", "mapped parts float32")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["random", "zero examples", "wide range"])
def test_products_are_what_they_say(name, kind, monkeypatch, tmp_path):
    A = problem(kind, 1, n=11, k=2, d=7)
    rows, atol = form(name, A, monkeypatch, tmp_path)
    rng = np.random.default_rng(2)
    V = rng.standard_normal((11, 2, 4))
    gathered = rows.gather(torch.from_numpy(V))
    as_features = (lambda H: features_of(rows, A, H)) if name == "gram" else (lambda H: H.numpy())
    H = np.einsum("nkr,nkd->rd", V, A)
    np.testing.assert_allclose(as_features(gathered), H, atol=10 * atol)  # sums of 22 rows
    P = rows.project(gathered)
    assert P.dtype == torch.float64
    assert P.shape == (11, 2, 4)
    np.testing.assert_allclose(P.numpy(), A @ H.T, atol=100 * atol)
    other = rows.gather(torch.from_numpy(V[:, :, ::-1].copy()))[:3]
    np.testing.assert_allclose(rows.inner(gathered, other, rows.project(other)).numpy(), H @ H[::-1][:3].T, atol=1000 * atol)
    np.testing.assert_allclose(rows.energies.numpy(), [twins.frobenius(a) ** 2 for a in A], atol=atol)
    for at in (0, 1, 10):
        np.testing.assert_allclose(as_features(rows.example(at)), A[at], atol=atol)
        np.testing.assert_allclose(rows.overlap(at).numpy(), [np.trace(twins.fisher(a) @ twins.fisher(A[at])) for a in A], atol=atol)
        leading = as_features(rows.leading(at))
        assert leading.shape == (1, 7)
        largest = np.linalg.eigvalsh(twins.fisher(A[at]))[-1]
        assert float(leading[0] @ twins.fisher(A[at]) @ leading[0]) == pytest.approx(largest, abs=atol)
        assert np.linalg.norm(leading) == pytest.approx(1 if A[at].any() else 0, abs=atol)
    np.testing.assert_allclose(as_features(rows.pick(np.array([21, 0, 3]))), A.reshape(22, 7)[[21, 0, 3]], atol=atol)
    np.testing.assert_array_equal(rows.whole(gathered), gathered)


@pytest.mark.parametrize("name", ["held", "parts", "parts float32"])
def test_scales_multiply_the_rows(name, monkeypatch, tmp_path):
    A = problem("random", 3)
    scales = np.logspace(-3, 3, len(A))
    dtype = np.float32 if "float32" in name else np.float64
    if "parts" in name:
        in_parts(monkeypatch, 4, A.astype(dtype))
    atol = SINGLE if dtype == np.float32 else DOUBLE
    rows = Stored((A / scales[:, None, None]).astype(dtype), scales)
    _, H = point(14, 3, 7, 4)
    np.testing.assert_allclose(rows.project(H).numpy(), A @ H.numpy().T, atol=atol)
    V = np.random.default_rng(5).standard_normal((14, 2, 3))
    np.testing.assert_allclose(rows.gather(torch.from_numpy(V)).numpy(), np.einsum("nkr,nkd->rd", V, A), atol=10 * atol)
    np.testing.assert_allclose(rows.energies.numpy(), 1, atol=atol)
    np.testing.assert_allclose(rows.example(13).numpy(), A[13], atol=atol)
    np.testing.assert_allclose(Gram.of(rows).K.numpy(), A.reshape(28, 7) @ A.reshape(28, 7).T, atol=atol)


@pytest.mark.parametrize(("dtype", "size"), [(np.float64, 1e-200), (np.float64, 1e150), (np.float32, 1e-30), (np.float32, 1e30)])
def test_small_and_large_rows_by_parts_have_their_energies(dtype, size, monkeypatch):
    """Fourth powers of the numbers as they are stored would be 0 or infinite."""
    A = problem("random", 0)
    raw = (A * size).astype(dtype)
    in_parts(monkeypatch, 5, raw)
    rows = Stored(raw, np.full(14, 1 / size))
    _, H = point(14, 3, 7, 4)
    atol = SINGLE if dtype == np.float32 else DOUBLE
    np.testing.assert_allclose(rows.energies.numpy(), 1, atol=atol)
    np.testing.assert_allclose(rows.project(H).numpy(), A @ H.numpy().T, atol=atol)
    V = torch.from_numpy(np.random.default_rng(5).standard_normal((14, 2, 3)))
    np.testing.assert_allclose(rows.gather(V).numpy(), np.einsum("nkr,nkd->rd", V.numpy(), A), atol=10 * atol)


def test_parts_cover_the_rows_once_and_are_no_larger_than_said(monkeypatch):
    A = problem("random", 0)
    in_parts(monkeypatch, 4, A)
    parts = list(Stored(A).parts())
    assert [len(part) for _, part in parts] == [4, 4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([part.numpy() for _, part in parts]), A)
    np.testing.assert_array_equal(np.concatenate([A[where] for where, _ in parts]), A)
    monkeypatch.setattr(rows_module, "PART", 1)  # less than one example: one at a time
    assert [len(part) for _, part in Stored(A).parts()] == [1] * 14


def test_rows_that_are_not_held_are_not_copied(monkeypatch, tmp_path):
    A = mapped(tmp_path / "rows", problem("random", 0).astype(np.float32))
    in_parts(monkeypatch, 4, A)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that may not be written to
        rows = Stored(A)
    assert rows.rows.dtype == torch.float32
    assert rows.rows.data_ptr() == A.ctypes.data
    assert all(part.data_ptr() == rows.rows[where].data_ptr() for where, part in rows.parts())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_was_handed_over_is_never_changed(dtype):
    A = problem("random", 0).astype(dtype)
    before = A.copy()
    for given in (A, torch.from_numpy(A)):
        rows = Stored(given, np.full(14, 7.0))
        rows.gather(rows.project(point(14, 3, 7, 0)[1]))
        np.testing.assert_array_equal(A, before)


def test_reversed_and_strided_arrays_are_rows_too():
    A = problem("random", 0)
    for view in (A[::-1], A[:, ::-1], A[::2, :, ::-2], A.transpose(1, 0, 2)):
        np.testing.assert_array_equal(Stored(view).rows.numpy(), view)


@pytest.mark.parametrize("held", [True, False])
def test_some_of_the_examples_are_rows_with_their_scales_and_weights(held, monkeypatch):
    A = problem("random", 0)
    if not held:
        in_parts(monkeypatch, 4, A)
    weights, scales = weights_of(14), np.linspace(0.5, 2, 14)
    rows = Stored(A, scales, weights)
    for which in (slice(3, 9), np.array([0, 5, 13])):
        some = rows.take(which)
        np.testing.assert_array_equal(some.weights.numpy(), weights[which])
        expected = (A * scales[:, None, None])[which]
        np.testing.assert_allclose(torch.stack([some.example(i) for i in range(some.n)]).numpy(), expected, rtol=1e-15)
        np.testing.assert_allclose(some.energies.numpy(), [twins.frobenius(a) ** 2 for a in expected], rtol=1e-12)
        _, H = point(14, 3, 7, 1)
        np.testing.assert_allclose(some.project(H).numpy(), expected @ H.numpy().T, atol=DOUBLE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_is_the_same_from_slabs_of_features(kind, monkeypatch):
    A = problem(kind, 0, n=9, k=3, d=8)
    whole = Gram.of(Stored(A, weights=weights_of(9)))
    monkeypatch.setattr(rows_module, "PART", 3 * 8 * 27)  # three features at a time
    slabs = Gram.of(Stored(A, weights=weights_of(9)))
    flat = A.reshape(27, 8)
    np.testing.assert_allclose(whole.K.numpy(), flat @ flat.T, atol=1e-12)  # 1e-14 of the trace is added
    np.testing.assert_allclose(slabs.K.numpy(), whole.K.numpy(), atol=1e-14)
    np.testing.assert_array_equal(slabs.weights, weights_of(9))
    assert (slabs.n, slabs.k) == (9, 3)


def test_sums_over_examples_count_their_weights():
    A, weights = problem("random", 0), weights_of(14)
    W, _ = point(14, 3, 7, 1)
    expected = sum(o * np.outer(w, w) for o, w in zip(weights, W.numpy(), strict=True))
    for rows in (Stored(A, weights=weights), Gram.of(Stored(A, weights=weights))):
        np.testing.assert_allclose(rows.moment(W).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(Stored(A).moment(W).numpy(), (W.T @ W).numpy(), rtol=1e-12)


def test_examples_are_drawn_by_their_mass():
    rows, rng = Stored(problem("random", 0, n=4)), np.random.default_rng(0)
    mass = torch.tensor([1.0, 0.0, 3.0, 4.0], dtype=torch.float64)
    drawn = np.bincount([rows.draw(mass, rng) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [1 / 8, 0, 3 / 8, 4 / 8], atol=0.03)  # four standard errors
    assert drawn[1] == 0
    # No mass at all: any of them.
    assert {rows.draw(torch.zeros(4, dtype=torch.float64), rng) for _ in range(100)} == {0, 1, 2, 3}


def test_the_largest_come_first():
    rows = Stored(problem("random", 0, n=4))
    values = torch.tensor([1.0, 5.0, -2.0, 3.0], dtype=torch.float64)
    assert rows.largest(values, 2) == [(1, 5.0), (3, 3.0)]
    assert [at for at, _ in rows.largest(values, 9)] == [1, 3, 0, 2]


def test_projecting_and_gathering_are_adjoint():
    """⟨VᵀA, H⟩ = ⟨V, AHᵀ⟩ in every form; for a Gram the left side is over the rows' span."""
    A, _ = planted(20, 2, 9, 3, 0)
    V = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 2, 3)))
    for rows in (Stored(A), Gram.of(Stored(A))):
        H = rows.gather(V.flip(0))
        P = rows.project(H)
        assert float((V * P).sum()) == pytest.approx(float(rows.inner(rows.gather(V), H, P).trace()), rel=1e-12)
