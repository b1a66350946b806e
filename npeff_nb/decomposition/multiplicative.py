"""The paper's solver to the letter: multiplicative updates of the coefficients, gradient descent at a fixed rate on the components.

It is here to repeat published runs and as a yardstick; :mod:`npeff_nb.decomposition.hals` is the default.  With P, B and S as in
:mod:`npeff_nb.decomposition.objective`, an iteration computes them once and steps first in W, then in H:

    W ← W ∘ B / (W (S∘S) + ε),        H ← H − η ∇,    ∇ = 4 [(WᵀΩW∘S) H − (ΩW⊙P)ᵀA].

It begins at random, W uniform in (0, 1] and H Gaussian with E‖h_j‖² = 2/r, and first moves H alone.  Of such an H in a large parameter space the
rows see next to nothing; were W to move at once, it would collapse to zero.  The number of iterations is fixed beforehand.
Source: Matena and Raffel 2023, section 3, and the code published with it, whose default rate and ε are kept here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.objective import Solution, loss_of_products
from npeff_nb.decomposition.rows import Gram, Rows, Stored
from npeff_nb.decomposition.starts import uniform_coefficients

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""From W, V = WᵀΩW, H, P, S and a learning rate to the next H, P and S."""


def multiplicative(
    rows: Rows,
    r: int,
    total: float,
    rng: np.random.Generator,
    *,
    iterations: int = 1000,
    h_only: int = 100,
    learning_rate: float = 1e-3,
    h_only_learning_rate: float | None = None,
    mu_eps: float = 1e-9,
    orthogonality: float = 0.0,
    p: int | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    tol: float = 0.0,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Solution:
    """``h_only`` gradient steps on H, then ``iterations`` joint ones; the losses are those after every one of them, the start's first.

    Parameters
    ----------
    rows : of unit-norm Fishers.
    r : components.
    total : Σ_i ω_i‖F̂_i‖² of what is to be explained.
    learning_rate, h_only_learning_rate : η, and η while H moves alone (None: the same).  The loss is a sum over examples: what is stable falls
        with their number.
    mu_eps : ε, which keeps the quotient finite.
    orthogonality : λ of a penalty λ‖HHᵀ − (2/r) I‖²_F on H, which is no part of the losses.
    p : parameters of the model, for the variance 2/(r p) of the start; None: as many as features.
    start : W (n, r) and H (r, ·) instead of a random start; needed where the rows have no coordinates to draw H in (:class:`Gram`).
    tol : ends when a joint iteration changes the loss by less than this share of it; 0 runs them all, and ``converged`` is then False.
    on_iteration : called with (iteration, loss), counted over both phases.

    Raises
    ------
    ValueError
        When a setting or the start is not one.
    FloatingPointError
        When the iterations diverge.
    """
    W, H = checked_start(rows, r, start) if start is not None else random_start(rows, r, rng, p)

    def descend(W: Tensor, V: Tensor, H: Tensor, P: Tensor, S: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        H = H - rate * gradient(rows, W, V, H, P, S, orthogonality)
        P = rows.project(H)
        return H, P, rows.inner(H, H, P)

    W, H, P, S, losses, converged = alternate(
        rows, W, H, total, descend, iterations=iterations, h_only=h_only, learning_rate=learning_rate,
        h_only_learning_rate=h_only_learning_rate, mu_eps=mu_eps, tol=tol, on_iteration=on_iteration,
    )  # fmt: skip
    # Unit components, and coefficients in their units: every W_ij h_j h_jᵀ and so the loss are as before.
    energies = S.diagonal().clamp_min(torch.finfo(S.dtype).tiny)
    return Solution(W * energies, H / energies.sqrt()[:, None], losses, converged, P / energies.sqrt())


def random_start(rows: Rows, r: int, rng: np.random.Generator, p: int | None = None) -> tuple[Tensor, Tensor]:
    """W (n, r) uniform in (0, 1] and H (r, d) normal with variance 2/(r p): what d features see of a start in all p parameters."""
    d = features(rows)
    p = d if p is None else p
    if r < 1 or p < d:
        raise ValueError(f"r={r} components of p={p} parameters: r must be at least 1, and p at least the number of features, {d}")
    H = directions(rows, rng.normal(scale=math.sqrt(2 / (r * p)), size=(r, d)))
    return uniform_coefficients(rows, r, rng), H


def directions(rows: Rows, H: np.ndarray) -> Tensor:
    """H (r, d) where the rows are: the features here, where they are shared out among processes."""
    return rows.part(torch.from_numpy(H).to(rows.device))


def features(rows: Rows) -> int:
    """d, or an error for rows that are known by their inner products alone."""
    d = getattr(rows, "d", None)
    if d is None:
        raise ValueError(
            f"{type(rows).__name__} rows have no coordinates in which a random start could be drawn; pass start=(W, H), "
            "H being weights on the rows, or make both from stored rows with random_start and with_start"
        )
    return d


def gradient(rows: Rows, W: Tensor, V: Tensor, H: Tensor, P: Tensor, S: Tensor, orthogonality: float = 0.0) -> Tensor:
    """∂/∂H of L + λ‖HHᵀ − (2/r) I‖²_F, (r, ·), with V = WᵀΩW: 4 [((V + λ)∘S − (2λ/r) I) H − (ΩW⊙P)ᵀA], λ being added to every entry of V."""
    mixing = (V + orthogonality) * S
    mixing.diagonal().sub_(2 * orthogonality / len(H))
    return 4 * (mixing @ H - rows.gather((rows.weights[:, None] * W)[:, None] * P))


def alternate(
    rows: Rows, W: Tensor, H: Tensor, total: float, step: Step, *, iterations: int, h_only: int, learning_rate: float,
    h_only_learning_rate: float | None, mu_eps: float, tol: float, on_iteration: Callable[[int, float], None] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[float], bool]:  # fmt: skip
    """The iterations with any ``step`` for H: the last W, H, P and S as they are, losses, and whether ``tol`` was met.

    A loss after every iteration is nearly free: what it needs is V of this iteration, and P, S and B of the next.  Settings as in
    :func:`multiplicative`.
    """
    rates = {"h_only_learning_rate": learning_rate if h_only_learning_rate is None else h_only_learning_rate, "learning_rate": learning_rate}
    for name, value in {**rates, "mu_eps": mu_eps}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: it must be positive and finite")
    for name, count in {"iterations": iterations, "h_only": h_only}.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 0:
            raise ValueError(f"{name}={count!r}: it must be a whole number of iterations from 0 up")
    P = rows.project(H)
    S = rows.inner(H, H, P)
    B = P.square().sum(1)
    losses = [loss_of_products(rows, W, P, S, total)]
    for iteration in range(1, h_only + iterations + 1):
        joint = iteration > h_only
        if joint:
            W = W * B / (W @ S.square() + mu_eps)
        V = rows.moment(W)
        rate = "learning_rate" if joint else "h_only_learning_rate"
        H, P, S = step(W, V, H, P, S, rates[rate])
        B = P.square().sum(1)
        explained = rows.total((rows.weights[:, None] * W * B).sum())
        losses.append(float(total - 2 * explained + (V * S.square()).sum()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss is {losses[-1]} after iteration {iteration} of {h_only + iterations}: gradient descent diverged; lower {rate} "
                f"(now {rates[rate]:g})"
            )
        if on_iteration is not None:
            on_iteration(iteration, losses[-1])
        if joint and abs(losses[-2] - losses[-1]) < tol * abs(losses[-1]):
            return W, H, P, S, losses, True
    return W, H, P, S, losses, False


def checked_start(rows: Rows, r: int, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """``start`` as float64, or an error that says what is wrong with it."""
    W, H = (torch.as_tensor(x, dtype=torch.float64, device=rows.device) for x in start)
    if W.shape != (rows.n, r) or H.ndim != 2 or len(H) != r:
        raise ValueError(f"start has shapes {tuple(W.shape)} and {tuple(H.shape)}; expected W ({rows.n}, {r}) and H ({r}, ·)")
    if not (W >= 0).all() or not torch.isfinite(W).all() or not torch.isfinite(H).all():
        raise ValueError("start has values that are not finite, or negative coefficients; expected finite numbers and W ≥ 0")
    return W, H


class Extended(Gram):
    """The Gram form for directions that leave the span of the rows: weights (r, N + m) on the rows and on m further vectors.

    What a start has outside the span has no part in any projection, yet it adds to the norms and so steers the iterations while it decays.
    With the start's own vectors appended to the rows, every iterate is a combination of both, and the iterations are those of parameter space.

    Parameters
    ----------
    gram : of the rows alone.
    cross : (N, m) inner products of the rows with the further vectors.
    own : (m, m) inner products of the further vectors.
    """

    def __init__(self, gram: Gram, cross: Tensor, own: Tensor) -> None:
        super().__init__(gram.K, gram.k, gram.weights)
        self.cross, self.own = cross, own

    def project(self, H: Tensor) -> Tensor:
        """K Θᵀ over the rows, and what the further vectors add to it, (n, k, r)."""
        on_rows, beyond = self._split(H)
        return super().project(on_rows) + (self.cross @ beyond.T).view(self.n, self.k, len(H))

    def gather(self, V: Tensor) -> Tensor:
        """The weights themselves, and none on the further vectors."""
        return self._padded(super().gather(V))

    def inner(self, H: Tensor, D: Tensor, Q: Tensor) -> Tensor:
        """Over the rows and over the further vectors, (r, s)."""
        on_rows, beyond = self._split(H)
        also_on_rows, also_beyond = self._split(D)
        return on_rows @ Q.flatten(0, 1) + beyond @ (self.cross.T @ also_on_rows.T + self.own @ also_beyond.T)

    def example(self, at: int) -> Tensor:
        """Weights that pick its rows, (k, N + m)."""
        return self._padded(super().example(at))

    def _split(self, H: Tensor) -> tuple[Tensor, Tensor]:
        return H[:, : len(self.K)], H[:, len(self.K) :]

    def _padded(self, H: Tensor) -> Tensor:
        return torch.nn.functional.pad(H, (0, len(self.own)))


def with_start(rows: Stored, H: Tensor, outside: Tensor | None = None, gram: Gram | None = None) -> tuple[Extended, Tensor]:
    """Gram form in which ``H`` (r, d) is an exact start, and its weights there, (r, N + r).

    Iterations from it are those of :func:`multiplicative` on ``rows`` from ``H``, at the cost of Gram form.

    Parameters
    ----------
    outside : (r, r) inner products of what the start has outside the features of ``rows`` (:func:`outside_features`); none by default.
    gram : ``Gram.of(rows)``, when it is at hand.
    """
    gram = Gram.of(rows) if gram is None else gram
    own = H @ H.T if outside is None else H @ H.T + outside.to(H.device)
    weights = torch.eye(len(H), dtype=H.dtype, device=H.device)
    return Extended(gram, rows.project(H).flatten(0, 1), own), torch.nn.functional.pad(weights, (len(gram.K), 0))


def outside_features(r: int, d: int, p: int, rng: np.random.Generator) -> Tensor:
    """(r, r) inner products of what a random start in p parameters has outside d orthonormal features: Wishart with p − d degrees of freedom.

    Drawn as LLᵀ (Bartlett 1933), L lower triangular with χ on its diagonal and normal below: never p numbers.
    """
    seen = min(r, p - d)
    L = np.tril(rng.normal(size=(r, seen)), -1)
    L[range(seen), range(seen)] = np.sqrt(rng.chisquare(p - d - np.arange(seen)))
    return torch.from_numpy(2 / (r * p) * L @ L.T)
