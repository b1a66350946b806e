"""What is a component's own: its direction less what it has in common with the others.

Components are not orthogonal, so an edit along one moves others with it.  Only those whose |cos| with it is at most a limit s are taken out: of
nearly the same one twice, little would be left.

Two rules, both for unit-norm directions ĝ, where J are the others with |⟨ĝ_k, ĝ_j⟩| ≤ s:

* ``"least squares"``: ĝ_k − Σ_J c_j ĝ_j with c minimising the length of what is left.  It is orthogonal to all of J, in whatever order they come.
* ``"sequential"``, the reference implementation's: one pass over J in order of index, v ← v − ⟨v, ĝ_j⟩ ĝ_j.  Each step brings back some of what the
  ones before took out, so the result depends on the order and is orthogonal to the last alone.  Here for comparison.

Both are a combination of the directions that their inner products alone decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from npeff_nb.directions.lift import Direction, norm

RULES = ("least squares", "sequential")
LEAST_LEFT = 1e-4
"""Length of what is left, of 1, below which it is rounding: directions are float32, and their rounding would grow by the inverse of this."""
_RANK = 1e-10
"""Eigenvalues of the inner products, as a share of the largest, that count as none: float32 rounding squared is 1e-14."""
_AT_ONCE = 1 << 16
"""Entries of each direction that are turned into float64 at a time."""


def inner_products(directions: Sequence[Direction]) -> np.ndarray:
    """⟨d_i, d_j⟩ of r directions over the same parameters, (r, r) float64."""
    names = list(directions[0])
    for at, other in enumerate(directions):
        if set(other) != set(names):
            odd = next(iter(set(other) ^ set(names)))
            raise ValueError(f"direction {at} and direction 0 are over different parameters ({odd!r} is in one of them only): lift both the same way")
    found = np.zeros((len(directions), len(directions)))
    for name in names:
        flat = [each[name].detach().reshape(-1) for each in directions]
        for start in range(0, len(flat[0]), _AT_ONCE):
            part = torch.stack([values[start : start + _AT_ONCE].double() for values in flat])
            found += (part @ part.T).cpu().numpy()
    return found


def rejected(directions: Sequence[Direction], k: int, limit: float, rule: str = "least squares", products: np.ndarray | None = None) -> Direction:
    """Direction ``k`` without what it shares with the others, brought back to unit norm.

    Parameters
    ----------
    directions : of all components, in their order; ``[npeff.direction(j) for j in range(r)]``.
    limit : s in [0, 1): others with a larger |cos| are left in.
    products : :func:`inner_products` of the directions, where several components are worked on.

    Returns
    -------
    The direction; its ``cosine`` is the one it keeps with the component.

    Raises
    ------
    ValueError
        When there is no direction ``k``, another rule or limit is asked for, or nothing is left.
    """
    r = len(directions)
    if not 0 <= k < r:
        raise ValueError(f"direction {k} does not exist: there are {r} (0 to {r - 1})")
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: the rules are {', '.join(map(repr, RULES))}")
    if not 0 <= limit < 1:
        raise ValueError(f"limit={limit}: the |cos| up to which another component is taken out is at least 0 and below 1")
    G = inner_products(directions) if products is None else np.asarray(products, dtype=np.float64)
    lengths = np.sqrt(np.diag(G))
    if not (lengths > 0).all():
        raise ValueError(f"direction {int(np.argmin(lengths > 0))} has length {lengths[np.argmin(lengths > 0)]}: it cannot be compared with others")
    G = G / np.outer(lengths, lengths)
    taken = np.flatnonzero((np.abs(G[k]) <= limit) & (np.arange(r) != k))

    x = np.eye(r)[k]  # what is left is Σ x_j ĝ_j
    if rule == "sequential":
        for j in taken:
            x[j] -= G[j] @ x
    elif len(taken):
        x[taken] = -np.linalg.pinv(G[np.ix_(taken, taken)], rcond=_RANK, hermitian=True) @ G[taken, k]
    weights = x / lengths
    found = Direction()
    for name, value in directions[k].items():
        left = torch.zeros_like(value, dtype=torch.float64)
        for weight, other in zip(weights, directions, strict=True):
            if weight:
                left.add_(other[name], alpha=float(weight))
        found[name] = left.to(value.dtype)
    length = norm(found)
    if not length > LEAST_LEFT:
        raise ValueError(
            f"nothing is left of direction {k}: it lies in the span of the {len(taken)} others whose |cos| with it is at most {limit:g} "
            f"(what remains has length {length:.1g} of 1); choose a lower limit, so that fewer are taken out"
        )
    for value in found.values():
        value /= length
    found.cosine = float(np.clip(directions[k].cosine * (G[k] @ x) / length, -1, 1))
    found.examples = directions[k].examples
    return found
