"""From a predictive distribution to the factor of its Fisher: first step on the way through the house.

For logits z in R^c and p = softmax(z), the Fisher matrix of one example over the parameters is

    F = Jᵀ (diag p − p pᵀ) J,        J = ∂z/∂θ  (c, p)                                  (Matena and Raffel 2023, section 2)

The middle matrix has rank c − 1, so c − 1 rows carry all of it.  They are had in closed form by stick-breaking: with the classes in
any order and s_k = Σ_{l≥k} p_l,

    row_k = √(p_k s_{k+1} / s_k) · (e_k − p_{>k} / s_{k+1}),      k = 1 … c − 1,

satisfies Σ_k row_k row_kᵀ = diag p − p pᵀ exactly.  Classes are taken by falling probability: the first row is then *the predicted
class against all others* and usually carries nearly all the energy, and each row's sign has a meaning (upwards for class k).

**Many classes.**  The first q rows are, exactly, the Fisher of a coarser prediction: the q likeliest classes one by one, and *anything else*.  What
is left out is the Fisher within the rest, weighted by the rest's probability s; it is never negative, so F_kept ≤ F, and it has the trace
s − Σ_{l in rest} p_l²/s over the logits.  Labels drawn within the rest estimate it without bias.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

ABSENT = -1e4
"""Logit of an outcome that an example does not have: probability zero to double precision, and finite."""
ALL_UP_TO = 33
"""``classes="auto"`` keeps every class up to here: a row costs one backward pass a batch."""
AUTO_TOP = 8
"""... and this many of more, beside *anything else*."""
MOST_ROWS = 64
"""Outcomes at most under a cut by probability."""
FISHERS = ("true", "empirical", "predicted")


def reduced_cotangents(logits: Tensor) -> Tensor:
    """The c − 1 vectors on the logits whose pull-backs are the factor rows of the Fisher.

    Parameters
    ----------
    logits : (n, c) real.

    Returns
    -------
    (n, c − 1, c) float64; row k of an example belongs to its k-th most probable class.  A class whose probability, or whose tail of
    less probable classes, is zero to double precision gives a zero row: it carries no Fisher information.
    """
    p = torch.softmax(logits.double(), dim=-1)
    # A stable sort: equal logits keep the classes' order, so that a recomputation gives the same rows.
    p_sorted, order = torch.sort(p, dim=-1, descending=True, stable=True)
    # Summed from the smallest on: the tail of a confident prediction keeps its digits.
    tail = torch.flip(torch.cumsum(torch.flip(p_sorted, [-1]), -1), [-1])  # s_k, (n, c)
    s_here, s_next = tail[:, :-1], tail[:, 1:]  # (n, c-1)
    head = p_sorted[:, :-1]
    scale = torch.where(s_here > 0, head * s_next / s_here.clamp_min(torch.finfo(p.dtype).tiny), 0.0).sqrt()
    share = p_sorted[:, None, :] / s_next.clamp_min(torch.finfo(p.dtype).tiny)[:, :, None]  # p_l / s_{k+1}
    rows = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)[:-1] - torch.triu(share, diagonal=1)
    rows = scale[:, :, None] * rows
    return torch.zeros_like(rows).scatter_(-1, order[:, None, :].expand_as(rows), rows)


def class_cotangents(logits: Tensor) -> Tensor:
    """√p_y (e_y − p) for every class, (n, c, c) float64: the paper's rows √p_y ∇log p_y, one more than the Fisher's rank."""
    p = torch.softmax(logits.double(), dim=-1)
    return p.sqrt()[:, :, None] * (torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p[:, None, :])


def bernoulli_cotangents(logits: Tensor) -> Tensor:
    """√(p_l (1 − p_l)) e_l for independent labels, (n, c, c) float64: F = Σ_l p_l (1 − p_l) ∇z_l ∇z_lᵀ."""
    z = logits.double()
    return torch.diag_embed((torch.sigmoid(z) * torch.sigmoid(-z)).sqrt())


@dataclass(frozen=True)
class Sampled:
    """``classes=Sampled(...)``: an estimate of the whole Fisher without bias, for predictions over many classes.

    The ``top`` likeliest classes are kept exactly; for the rest, ``draws`` labels are drawn from the model's own distribution within it.  The
    expectation over draws is the true Fisher; the table of examples gets ``sampling_error``, the relative standard error of each one in Frobenius
    norm, √(E‖F̂ − F‖²) / ‖F̂‖, estimated from the draws themselves.  The noise makes ‖F̂‖ too long: with as few as 4 draws a single example's
    error comes out 20 to 30 % below the true one on average.
    """

    draws: int = 8
    top: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 2 or self.top < 1:
            raise ValueError(f"Sampled(draws={self.draws}, top={self.top}): at least 2 draws (their spread is the error) and 1 class kept exactly")


@dataclass(frozen=True)
class Recipe:
    """How factor rows are made from logits.  What is decided for a single example (kept classes, drawn labels) is recorded beside it.

    Attributes
    ----------
    family : ``"categorical"`` (softmax over c classes) or ``"bernoulli"`` (c independent labels).
    fisher : ``"true"``, the expectation over the model's own distribution; ``"empirical"``, the gradient for the gold label;
        ``"predicted"``, the gradient for the predicted label, which is what gradient clustering takes.
    rows : ``"reduced"``, as in this module's head; ``"classes"``, the paper's c rows.
    top, least : outcomes kept apart: the likeliest ``top``, or at most ``top`` of probability ``least``; None keeps every class.
    draws, seed : labels drawn within the rest (:class:`Sampled`).
    rank : rows an example after rotation onto its own principal axes, a number or a share of its trace to carry; None rotates nothing.
    """

    family: str = "categorical"
    fisher: str = "true"
    rows: str = "reduced"
    top: int | None = None
    least: float | None = None
    draws: int = 0
    seed: int = 0
    rank: float | int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values, for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Recipe:
        """The other way round."""
        return cls(**facts)

    def for_classes(self, classes: str | float | Sampled, c: int) -> Recipe:
        """The recipe with ``classes=`` of the extraction applied to a prediction over c classes.

        Raises
        ------
        ValueError
            When ``classes`` is none of ``"auto"``, ``"all"``, a whole number from 1, a probability below 1, or :class:`Sampled`.
        """
        if self.fisher != "true" or self.rows == "classes":
            if classes not in ("auto", "all"):
                raise ValueError(f"classes={classes!r} cuts the expectation over classes, of which this Fisher has none: leave it at 'auto'")
            return self
        if isinstance(classes, Sampled):
            if self.family != "categorical":
                raise ValueError("Sampled draws one class of many; independent labels are kept or left out: give classes= a number")
            return replace(self, top=classes.top, draws=classes.draws, seed=classes.seed) if classes.top + 1 < c else self
        if classes == "auto":
            return replace(self, top=None if c <= ALL_UP_TO else AUTO_TOP)
        if classes == "all":
            return replace(self, top=None)
        if isinstance(classes, (int, np.integer)) and not isinstance(classes, bool) and classes >= 1:
            spare = 1 if self.family == "categorical" else 0
            return replace(self, top=int(classes) if classes + spare < c else None)
        if isinstance(classes, float) and 0 < classes < 1:
            return replace(self, top=min(MOST_ROWS, c if self.family == "bernoulli" else c - 1), least=classes)
        raise ValueError(f"classes={classes!r}: give 'auto', 'all', how many to keep (from 1), a least probability (below 1), or Sampled(draws)")

    def n_rows(self, c: int) -> int:
        """Rows of an example for a prediction over c classes, before ``rank``."""
        if self.fisher != "true":
            return 1
        if self.rows == "classes":
            return c
        return (self.top or (c if self.family == "bernoulli" else c - 1)) + self.draws

    # ------------------------------------------------------------------------------------------------ decisions for single examples

    def decide(self, z: Tensor, rows: np.ndarray, gold: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What is chosen once for each example and then holds: ``outcomes`` (b, top), −1 where fewer; ``labels`` (b, draws or 1 or c).

        Parameters
        ----------
        z : (b, C) logits of the examples numbered ``rows`` (seeds of the draws, so that batches do not matter).
        gold : (b,) class numbers or (b, C) 0/1, for the empirical Fisher.
        """
        z = z.double()
        chosen: dict[str, np.ndarray] = {}
        if self.fisher == "empirical":
            assert gold is not None, "the empirical Fisher needs labels"
            chosen["labels"] = np.asarray(gold, dtype=np.int32).reshape(len(rows), -1)
        elif self.fisher == "predicted":
            found = (z > 0).int() if self.family == "bernoulli" else z.argmax(1, keepdim=True)
            chosen["labels"] = found.cpu().numpy().astype(np.int32)
        if self.top is not None:
            weight = torch.softmax(z, -1) if self.family == "categorical" else torch.sigmoid(z) * torch.sigmoid(-z)
            value, outcome = torch.sort(weight, dim=-1, descending=True, stable=True)
            outcome = outcome[:, : self.top]
            if self.least is not None:
                keep = value[:, : self.top] >= self.least
                keep[:, 0] = True  # something is always predicted
                outcome = torch.where(keep, outcome, -1)
            chosen["outcomes"] = outcome.cpu().numpy().astype(np.int32)
        if self.draws:
            rest = torch.softmax(_masked(z, torch.from_numpy(chosen["outcomes"]).to(z.device)), -1).cpu().numpy()
            upto = np.cumsum(rest, axis=1)
            uniform = np.stack([np.random.default_rng([self.seed, int(row)]).random(self.draws) for row in rows])
            drawn = np.stack([np.searchsorted(u, x * u[-1], side="right") for u, x in zip(upto, uniform, strict=True)])
            chosen["labels"] = np.minimum(drawn, z.shape[1] - 1).astype(np.int32)
        return chosen

    def coarse(self, z: Tensor, chosen: dict[str, np.ndarray]) -> Tensor:
        """Logits of the prediction that is decomposed: (b, c) as they are, or (b, top + 1) with *anything else* last; float64."""
        z = z.double()
        if "outcomes" not in chosen:
            return z
        outcomes = torch.from_numpy(chosen["outcomes"]).long().to(z.device)
        if self.family == "categorical":  # as log-probabilities: what is absent is far below them, whatever the logits' own level
            z = torch.log_softmax(z, -1)
        kept = torch.where(outcomes >= 0, z.gather(1, outcomes.clamp_min(0)), ABSENT)
        if self.family == "bernoulli":
            return kept
        return torch.cat([kept, _masked(z, outcomes).logsumexp(1, keepdim=True).clamp_min(ABSENT)], 1)

    def coarse_cotangents(self, coarse: Tensor) -> Tensor:
        """Rows on the coarse logits, (b, K, c), as far as they are its Fisher's: without draws and before ``rank``."""
        if self.family == "bernoulli":
            return bernoulli_cotangents(coarse)
        return class_cotangents(coarse) if self.rows == "classes" else reduced_cotangents(coarse)

    def cotangents(self, z: Tensor, coarse: Tensor, chosen: dict[str, np.ndarray]) -> Tensor:
        """Rows on the model's own logits, (b, K, C) float64; with ``mixing`` among the choices, rotated by it.

        ``coarse`` are the logits on which the examples' rows were first made: near-ties keep their order when the model is run again.
        """
        z, coarse = z.double(), coarse.double().to(z.device)
        if self.fisher != "true":
            labels = torch.from_numpy(chosen["labels"]).long().to(z.device)
            if self.family == "bernoulli":
                found = (labels.double() - torch.sigmoid(z))[:, None]
            else:
                found = torch.nn.functional.one_hot(labels, z.shape[1]).double() - torch.softmax(z, -1)[:, None]
        else:
            found = self.coarse_cotangents(coarse)
            if "outcomes" in chosen:
                found = self._spread(found, z, coarse, chosen)
        if "mixing" in chosen:
            found = torch.from_numpy(chosen["mixing"]).double().to(z.device) @ found
        return found

    def _spread(self, coarse_rows: Tensor, z: Tensor, coarse: Tensor, chosen: dict[str, np.ndarray]) -> Tensor:
        """Rows on the coarse logits pulled back to all of them: ∂z̃_rest/∂z_l = p_l / s within the rest."""
        outcomes = torch.from_numpy(chosen["outcomes"]).long().to(z.device)
        b, q = outcomes.shape
        k, c = coarse_rows.shape[1], z.shape[1]
        kept = torch.where(outcomes[:, None] >= 0, coarse_rows[:, :, :q], 0.0)
        out = torch.zeros(b, k, c, dtype=z.dtype, device=z.device)
        out.scatter_add_(2, outcomes.clamp_min(0)[:, None].expand(b, k, q), kept)
        if self.family == "bernoulli":
            return out
        within = torch.nan_to_num(torch.softmax(_masked(z, outcomes), -1))
        out += coarse_rows[:, :, q:] * within[:, None]
        if self.draws:
            s = torch.softmax(coarse, -1)[:, -1]
            labels = torch.from_numpy(chosen["labels"]).long().to(z.device)
            scores = torch.nn.functional.one_hot(labels, c).double() - within[:, None]
            out = torch.cat([out, (s / self.draws).sqrt()[:, None, None] * scores], 1)
        return out

    def retained(self, z: Tensor, chosen: dict[str, np.ndarray]) -> np.ndarray:
        """(b,) share of the Fisher's trace over the logits that the kept outcomes carry; exact."""
        z = z.double()
        if "outcomes" not in chosen:
            return np.ones(len(z))
        outcomes = torch.from_numpy(chosen["outcomes"]).long().to(z.device)
        if self.family == "bernoulli":
            weight = torch.sigmoid(z) * torch.sigmoid(-z)
            kept = torch.where(outcomes >= 0, weight.gather(1, outcomes.clamp_min(0)), 0.0).sum(1)
            total = weight.sum(1)
            return torch.where(total > 0, kept / total.clamp_min(torch.finfo(z.dtype).tiny), 1.0).cpu().numpy()
        p = torch.softmax(z, -1)
        within = torch.nan_to_num(torch.softmax(_masked(z, outcomes), -1))
        s = torch.softmax(self.coarse(z, chosen), -1)[:, -1]
        total, lost = _spread_of(p), s * _spread_of(within)
        return torch.where(total > 0, 1 - lost / total.clamp_min(torch.finfo(p.dtype).tiny), 1.0).clamp(0, 1).cpu().numpy()


def _spread_of(p: Tensor) -> Tensor:
    """1 − Σ p², summed as Σ p (1 − p) with 1 − p of the likeliest as the sum of all others: a confident prediction keeps its digits."""
    top = p.argmax(1, keepdim=True)
    others = p.scatter(1, top, 0.0)
    return (others * (1 - others)).sum(1) + p.gather(1, top)[:, 0] * others.sum(1)


def _masked(z: Tensor, outcomes: Tensor) -> Tensor:
    """Logits of the rest: those kept apart are out."""
    # One column more takes what an example does not have.
    out = torch.cat([z, z.new_zeros(len(z), 1)], 1)
    out = out.scatter(1, torch.where(outcomes >= 0, outcomes, z.shape[1]).long(), float("-inf"))
    return out[:, :-1]


def sampling_error(grams: Tensor, draws: int) -> np.ndarray:
    """Relative standard error (b,) of F̂ from the Grams (b, K, K) of its rows, the last ``draws`` of which are drawn labels.

    For rows a_j = √(s/m) g_j of m independent labels, m²(a_i·a_j)² estimates s²‖E ggᵀ‖² for i ≠ j and s² E‖g‖⁴ for i = j, so that
    E‖F̂ − F‖² = (mean of the diagonal − mean of the rest) / m.
    """
    part = (draws * grams[:, -draws:, -draws:]).square()
    diagonal = part.diagonal(dim1=1, dim2=2).mean(1)
    others = (part.sum((1, 2)) - draws * diagonal) / (draws * (draws - 1))
    variance = ((diagonal - others) / draws).clamp_min(0)
    return (variance.sqrt() / grams.square().sum((1, 2)).sqrt().clamp_min(torch.finfo(grams.dtype).tiny)).cpu().numpy()


def principal_rows(grams: Tensor, rank: float | int) -> Tensor:
    """Rotations (b, q, K) of each example's rows onto its own principal axes, largest first, by the rows' Grams (b, K, K).

    ``rank`` is the number q, or the share of the trace to carry: then q is as many as the neediest example takes, and an example's rows beyond its
    own need are zero.
    """
    values, vectors = torch.linalg.eigh(grams)
    values, turn = values.flip(1).clamp_min(0), vectors.flip(2).transpose(1, 2)
    # The largest entry of every axis positive: equal runs look equal.
    peak = turn.gather(2, turn.abs().argmax(2, keepdim=True))
    turn = torch.where(peak < 0, -turn, turn)
    if isinstance(rank, (int, np.integer)):
        return turn[:, : int(rank)]
    share = values.cumsum(1) / values.sum(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    needed = (share < rank - 1e-12).sum(1) + 1
    needs = torch.arange(values.shape[1], device=grams.device)[None] < needed[:, None]
    return turn * needs[:, :, None]
