"""Slow, obvious counterparts in float64 of what the package does fast."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


def double(model: nn.Module) -> nn.Module:
    """A copy in float64, all of whose parameters can be asked for gradients."""
    return copy.deepcopy(model).double().requires_grad_()


def flat_gradients(value: torch.Tensor, chosen: list[nn.Parameter]) -> torch.Tensor:
    """∂ value / ∂θ (p,) by autograd alone; zeros for what is not used."""
    found = torch.autograd.grad(value, chosen, retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(chosen, found, strict=True)])


def rows_of_logits(
    model: nn.Module, z: torch.Tensor, names: list[str], family: str = "categorical", fisher: str = "true", gold: object = None
) -> np.ndarray:
    """Factor rows (k, p) of one example by their definition, from its logits z (c,) with their graph over the parameters of ``model``.

    ``true``: √p_y ∇log p_y for every class; for independent labels √(p_l (1 − p_l)) ∇z_l for every label.
    ``empirical``, ``predicted``: ∇log p of the label ``gold`` (a class, or c zeros and ones), or of the likeliest.
    """
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    if family == "bernoulli":
        p = torch.sigmoid(z).detach()
        if fisher == "true":
            return torch.stack([(p_l * (1 - p_l)).sqrt() * flat_gradients(z_l, chosen) for p_l, z_l in zip(p, z, strict=True)]).numpy()
        y = torch.as_tensor(gold if fisher == "empirical" else (p > 0.5).numpy(), dtype=z.dtype)
        return flat_gradients((y * nn.functional.logsigmoid(z) + (1 - y) * nn.functional.logsigmoid(-z)).sum(), chosen)[None].numpy()
    log_p = torch.log_softmax(z, -1)
    if fisher == "true":
        return torch.stack([(v.detach() / 2).exp() * flat_gradients(v, chosen) for v in log_p]).numpy()
    return flat_gradients(log_p[int(gold) if fisher == "empirical" else int(z.argmax())], chosen)[None].numpy()


def log_probability_gradients(model: nn.Module, logits_of, batch_of_one, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """p (c,) and ∂ log p_y / ∂θ (c, p) of one example, class by class, by autograd alone."""
    double = copy.deepcopy(model).double()
    if torch.is_tensor(batch_of_one) and batch_of_one.is_floating_point():
        batch_of_one = batch_of_one.double()
    parameters = dict(double.named_parameters())
    chosen = [parameters[name] for name in names]
    log_p = torch.log_softmax(logits_of(double, batch_of_one)[0], -1)
    rows = []
    for y in range(len(log_p)):
        found = torch.autograd.grad(log_p[y], chosen, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(chosen, found, strict=True)]))
    return log_p.exp().detach().numpy(), torch.stack(rows).numpy()


def fisher_rows(model: nn.Module, logits_of, batch_of_one, names: list[str]) -> np.ndarray:
    """Rows √p_y ∇log p_y (c, p), whose Gram is F = Σ_y p_y ∇log p_y ∇log p_yᵀ: the definition, without any reduction."""
    p, gradients = log_probability_gradients(model, logits_of, batch_of_one, names)
    return np.sqrt(p)[:, None] * gradients


def stick_breaking(logits: np.ndarray) -> np.ndarray:
    """The c − 1 vectors on the logits (c,) whose pull-backs are an example's factor rows, class after class from the likeliest on."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    rows = np.zeros((len(p) - 1, len(p)))
    for k, y in enumerate(order[:-1]):
        here, after = p[order[k:]].sum(), p[order[k + 1 :]].sum()
        rows[k, y] = 1
        rows[k, order[k + 1 :]] = -p[order[k + 1 :]] / after
        rows[k] *= np.sqrt(p[y] * after / here)
    return rows


def fisher(rows: np.ndarray) -> np.ndarray:
    """(d, d) from factor rows (k, d)."""
    return rows.T.astype(np.float64) @ rows


def relative_distance(found: np.ndarray, expected: np.ndarray) -> float:
    """‖F_found − F_expected‖_F / ‖F_expected‖_F from their rows, as dense matrices in an orthonormal basis of all rows together."""
    both = np.concatenate([found, expected]).astype(np.float64)
    basis = np.linalg.qr(both.T)[0]
    return float(np.linalg.norm(fisher(found @ basis) - fisher(expected @ basis)) / np.linalg.norm(fisher(expected @ basis)))


def frobenius(rows: np.ndarray) -> float:
    """‖AᵀA‖_F of factor rows, by the smaller Gram."""
    rows = rows.astype(np.float64)
    return float(np.linalg.norm(rows @ rows.T))


def dense_loss(A: np.ndarray, W: np.ndarray, H: np.ndarray) -> float:
    """Σ_i ‖A_iᵀA_i − Σ_j W_ij h_j h_jᵀ‖²_F with every matrix written out."""
    return float(sum(np.linalg.norm(fisher(a) - (H.T * w) @ H) ** 2 for a, w in zip(A, W, strict=True)))


def state(model: nn.Module) -> dict:
    """All that a caller could find changed: values, flags, modes, gradients, hooks."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "asked": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    }


def assert_untouched(model: nn.Module, before: dict) -> None:
    now = state(model)
    assert now["values"].keys() == before["values"].keys()
    assert all(torch.equal(now["values"][name], value) for name, value in before["values"].items())
    assert {key: now[key] for key in ("asked", "training", "hooks")} == {key: before[key] for key in ("asked", "training", "hooks")}
    assert all(a is b for a, b in zip(now["gradients"], before["gradients"], strict=True))
