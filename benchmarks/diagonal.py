"""D-NPEFF against other non-negative matrix factorisations: time until the loss is within 1 % of the best that any of them found.

    python benchmarks/diagonal.py

Every method is asked for the same loss on the same unit-norm diagonals in float32.  No library tells when it gets there, so first its path is walked
in short calls without tolerance, each from where the last one ended, with the loss in float64 after each; then one fresh call of exactly so many
iterations, which looks at no loss on its way, is what is timed.  Ours is the whole estimator, its start and its own losses included.  The others
begin at the examples that k-means++ draws, which costs them nothing, and scikit-learn also in its own way (NNDSVD), which does; the better one
counts.  One that needs more than 5 times our time is stopped: its ratio is then the least that it can be.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse
from sklearn.decomposition import non_negative_factorization

from npeff_nb.decomposition import diagonal
from npeff_nb.decomposition.diagonal import DNPEFF

COMPONENTS, SEEDS, RUNS = 32, 3, 3
WITHIN = 1.01
LONGEST = 5
"""Times our own time."""

Factors = tuple[np.ndarray, np.ndarray]


def main() -> None:
    for name, found in rows().items():
        print(f"{name:<55} {found['value']:8.3g}  {found['command']}")


def rows() -> dict[str, dict[str, Any]]:
    """One row a problem and rival, and one for the best of them with the target of 2."""
    return compared("dense", "2 000 x 20 000, all entries positive", dense()) | compared(
        "sparse", "2 000 x 100 000, the 1 000 largest entries of each", sparse()
    )


# ------------------------------------------------------------------------------------------------------------------------ problems


def dense(n: int = 2000, m: int = 20_000, r: int = COMPONENTS) -> np.ndarray:
    """Planted components with long-tailed entries, mixed in gamma-distributed parts, and half their norm of noise; unit rows."""
    rng = np.random.default_rng(0)
    H = rng.gamma(0.3, 1, (r, m)).astype(np.float32)
    X = rng.gamma(0.5, 1, (n, r)).astype(np.float32) @ (H / np.linalg.norm(H, axis=1, keepdims=True))
    noise = np.abs(rng.standard_normal((n, m), dtype=np.float32))
    X += 0.5 * np.linalg.norm(X) / np.linalg.norm(noise) * noise
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def sparse(n: int = 2000, m: int = 100_000, r: int = COMPONENTS, kept: int = 1000) -> csr_array:
    """As diagonal Fishers are kept: components over 5 000 parameters each and 500 that all share, log-normal entries, one to several in an example,
    noise of 0.3 of its norm over 3 000 parameters; of each example the largest entries, of unit norm, in the parameters that any keeps.
    """
    rng = np.random.default_rng(0)
    W = (rng.random((n, r)) < 2 / r) * rng.gamma(1, 1, (n, r))
    W[np.arange(n), rng.integers(r, size=n)] += 0.5
    H = np.zeros((r, m), np.float32)
    for h in H:
        h[rng.choice(m, 5000, replace=False)] = rng.lognormal(0, 1.5, 5000)
    H[:, :500] += rng.lognormal(0, 1, (r, 500)) * rng.random((r, 1))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    values, columns = np.empty((n, kept), np.float32), np.empty((n, kept), np.int32)
    for i in range(n):
        x, noise = W[i] @ H, rng.lognormal(0, 1.5, 3000)
        x[rng.choice(m, 3000, replace=False)] += 0.3 * np.linalg.norm(x) / np.linalg.norm(noise) * noise
        columns[i] = np.sort(np.argpartition(-x, kept)[:kept])
        values[i] = x[columns[i]] / np.linalg.norm(x[columns[i]])
    used, places = np.unique(columns, return_inverse=True)
    return csr_array((values.ravel(), places.ravel().astype(np.int32), np.arange(n + 1, dtype=np.int32) * kept), shape=(n, len(used)))


# ------------------------------------------------------------------------------------------------------------------------ methods


@dataclass(frozen=True)
class Rival:
    """``call(X, start, iterations)`` gives factors (n, r) and (r, m); ``own`` when it makes its own start; ``step`` iterations between two looks."""

    name: str
    call: Callable[[Any, Factors | None, int], Factors]
    own: bool
    step: int


def scikit_learn(solver: str) -> Callable[[Any, Factors | None, int], Factors]:
    def call(X: Any, start: Factors | None, iterations: int) -> Factors:
        W, H = (None, None) if start is None else (part.copy() for part in start)
        options = {"init": "custom" if start else "nndsvda", "solver": solver, "tol": 0, "max_iter": iterations, "random_state": 0}
        return non_negative_factorization(X, W, H, n_components=COMPONENTS, **options)[:2]

    return call


def torchnmf() -> Callable[[Any, Factors | None, int], Factors]:
    """Raises ImportError where it is not installed: ``pip install --no-deps torchnmf``."""
    import torch
    from torchnmf.nmf import NMF

    def call(X: Any, start: Factors | None, iterations: int) -> Factors:
        assert start is not None
        if issparse(X):
            rows, columns = X.nonzero()
            X = torch.sparse_coo_tensor(np.stack([rows, columns]), torch.from_numpy(X.data), X.shape)
        else:
            X = torch.from_numpy(X)
        model = NMF(W=torch.from_numpy(start[1].T.copy()), H=torch.from_numpy(start[0]))
        model.fit(X, beta=2, tol=-math.inf, max_iter=iterations)
        return model.H.detach().numpy(), model.W.detach().numpy().T

    return call


def rivals() -> tuple[list[Rival], str]:
    """Those that are installed, and what to say of the one that is not."""
    found = [
        Rival(f"scikit-learn {solver}", scikit_learn(solver), own, step)
        for solver, step in (("cd", 1), ("mu", 5))
        # scikit-learn itself advises against NNDSVD for multiplicative updates only where it leaves zeros; "nndsvda" does not.
        for own in (False, True)
    ]
    try:
        return [*found, Rival("torchnmf", torchnmf(), False, 5)], ""
    except ImportError as error:
        return found, f"; without torchnmf ({error})"


# ------------------------------------------------------------------------------------------------------------------------ measuring


def compared(name: str, what: str, X: Any) -> dict[str, dict[str, Any]]:
    Xt = csr_array(X.T) if issparse(X) else X.T
    others, missing = rivals()
    ratios: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        losses = our_losses(Xt, seed)
        start = first_factors(Xt, seed)
        # CD ends nearly where ours does, or below: the loss to reach is no property of one method.
        goal = WITHIN * min(min(losses), loss_of(Xt, scikit_learn("cd")(X, start, len(losses))))
        reached = [i for i, value in enumerate(losses) if value <= goal]
        if not reached:
            raise RuntimeError(f"seed {seed} of {name!r} ends {min(losses) / goal * WITHIN - 1:.1%} above the best loss")
        ours = DNPEFF(COMPONENTS, n_init=1, tol=0, max_iter=max(1, reached[0]), random_state=seed)
        of_each: dict[str, list[float]] = {}
        limit = LONGEST * seconds(lambda ours=ours: ours.fit(X))
        for rival in others:
            needed = iterations_to(goal, X, Xt, rival, start, limit)
            ways = {"ours": lambda ours=ours: ours.fit(X)}
            if needed is not None:
                begin = None if rival.own else start
                ways["theirs"] = lambda rival=rival, begin=begin, needed=needed: rival.call(X, begin, needed)
            times = in_turn(ways)
            of_each.setdefault(rival.name, []).append(min(LONGEST, times["theirs"] / times["ours"]) if needed else LONGEST)
        for key, values in of_each.items():
            ratios.setdefault(key, []).append(min(values))
        ratios.setdefault("best", []).append(min(min(values) for values in of_each.values()))
    said = f"make bench: seconds to within 1 % of the best loss, float32, {COMPONENTS} components, {what}, median of {SEEDS} seeds: DNPEFF against "
    found = {}
    for key, values in ratios.items():
        value = statistics.median(values)
        least = " (at least: stopped there)" if value >= LONGEST else ""
        best = key == "best"
        label = f"D-NPEFF, {name} / " + ("best of scikit-learn and torchnmf" if best else key)
        found[label] = {"value": float(f"{value:.4g}")} | ({"target": 2} if best else {})
        found[label]["command"] = said + (f"the fastest of them{missing}" if best else key) + least
    return found


def our_losses(Xt: Any, seed: int) -> list[float]:
    """After every iteration of the estimator with this seed, to its end."""
    rng = np.random.default_rng(seed)
    return diagonal.hals(Xt, diagonal.start(Xt, COMPONENTS, rng), float(Xt.shape[1]), tol=1e-6).losses[:-1]


def first_factors(Xt: Any, seed: int) -> Factors:
    """The examples that k-means++ draws, and a few sweeps of coefficients for them."""
    H = diagonal.kmeans_pp(Xt, COMPONENTS, np.random.default_rng(seed))
    Wt = np.zeros((COMPONENTS, Xt.shape[1]))
    diagonal.descend(Wt, *diagonal.products(Xt, H), diagonal.FIRST_SWEEPS)
    return np.ascontiguousarray(Wt.T, dtype=H.dtype), H


def loss_of(Xt: Any, factors: Factors) -> float:
    W, H = factors
    B, G = diagonal.products(Xt, H)
    return diagonal.loss(B, G, W.T.astype(np.float64), float(Xt.shape[1]))


def iterations_to(goal: float, X: Any, Xt: Any, rival: Rival, start: Factors, limit: float) -> int | None:
    """How many a method needs to a loss of ``goal``, to the next ``rival.step``; None when its calls alone have taken ``limit`` seconds."""
    spent = 0.0
    for done, (seconds_, factors) in enumerate(walk(X, rival, start), 1):
        spent += seconds_
        if loss_of(Xt, factors) <= goal:
            return done * rival.step
        if spent > limit:
            return None
    raise AssertionError("a walk has no end")


def walk(X: Any, rival: Rival, start: Factors) -> Iterator[tuple[float, Factors]]:
    at = None if rival.own else start
    while True:
        begin = time.perf_counter()
        at = rival.call(X, at, rival.step)
        yield time.perf_counter() - begin, at


def seconds(way: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


def in_turn(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds, measured in turn, so that a slow moment of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            times[name].append(seconds(way))
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
