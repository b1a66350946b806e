"""From a predictive distribution to the factor of its Fisher: first step on the way through the house.

For logits z in R^c and p = softmax(z), the Fisher matrix of one example over the parameters is

    F = Jᵀ (diag p − p pᵀ) J,        J = ∂z/∂θ  (c, p)                                  (Matena and Raffel 2023, section 2)

The middle matrix has rank c − 1, so c − 1 rows carry all of it.  They are had in closed form by stick-breaking: with the classes in
any order and s_k = Σ_{l≥k} p_l,

    row_k = √(p_k s_{k+1} / s_k) · (e_k − p_{>k} / s_{k+1}),      k = 1 … c − 1,

satisfies Σ_k row_k row_kᵀ = diag p − p pᵀ exactly.  Classes are taken by falling probability: the first row is then *the predicted
class against all others* and usually carries nearly all the energy, and each row's sign has a meaning (upwards for class k).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
