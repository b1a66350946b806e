"""What a step along a direction would do to predictions, to first order: for live sliders, before the edited model is really run.

For logits z(θ) and a direction g, one pass in forward mode gives z and dz = J g, J = ∂z/∂θ, for all classes (or the whole vocabulary) at once.  Then

    z(θ + s g) = z + s dz + O(s²),
    gᵀF g = Σ_c p_c (dz_c − Σ_l p_l dz_l)²,          p = softmax(z);          Σ_l p_l (1 − p_l) dz_l² for independent labels,

since F = Jᵀ (diag p − p pᵀ) J (Matena and Raffel 2023, section 2).  The first line is a preview, good for small s (:func:`trust`); the second is
exact, and with it coefficients of new examples are fitted to directions that exist in parameter space alone (:func:`coefficients_of`).
"""

from __future__ import annotations

import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from npeff_nb.decomposition.coefficients import fit_coefficients
from npeff_nb.directions.forward_mode import Layers, moving, read_at_first_position
from npeff_nb.directions.lift import check_fits, subject_of
from npeff_nb.directions.perturb import kl
from npeff_nb.fisher.batches import EXAMPLES_A_BATCH, ReadyBatches
from npeff_nb.fisher.completeness import tape_for
from npeff_nb.fisher.predictions import probabilities
from npeff_nb.fisher.subject import Subject, alone_with

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

DEPARTED = 0.1
"""Share of the true KL by which a preview may be off and still be trusted."""
UNSEEN = 1e-8
"""KL in nats below which two predictions count as one: rounding of float32 logits (about 5e-6 on logits of 10) moves √(2 KL) by a tenth there."""
ROWS_AT_ONCE = 32
"""Backward passes over one recorded forward pass, where forward mode has no formula: what they keep grows with their number."""
LEARNED_FROM = 16
"""Examples from which on it pays to look, on the shortest one, which positions are read."""
A_BATCH = 100
"""What a batch costs by itself, in padded positions: on the demo model about 40 on one core and 200 on two."""
_READ: weakref.WeakKeyDictionary[Subject, frozenset[int]] = weakref.WeakKeyDictionary()
"""What was learned (:func:`~npeff_nb.directions.forward_mode.read_at_first_position`).  Every pass shows whether it holds."""


# ------------------------------------------------------------------------------------------------------------------------ the pass


def response(
    npeff: Factorisation | Subject, direction: Mapping[str, Tensor], rows: np.ndarray, *, whole: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of examples and their derivative along a direction, in one pass.

    Exact to the model's own precision.  A model with an operation that has no formula in forward mode is differentiated by one backward pass a class
    instead, as exact and slower; a warning says so.  The model is never changed, nor are its flags.

    Parameters
    ----------
    npeff : the decomposition, or the model with its examples (:class:`~npeff_nb.fisher.subject.Subject`).
    direction : parameter name -> tensor of its shape, as :meth:`npeff_nb.NPEFF.direction` gives.  Other parameters stand still.
    rows : (m,) different examples.
    whole : the model's own logits over all C classes or the vocabulary, instead of those of the prediction that was decomposed (a few outcomes
        and *anything else*, where there are many).

    Returns
    -------
    logits (m, c), derivative (m, c) : float64; the derivative is per unit of strength.

    Raises
    ------
    ValueError
        When the direction does not fit the model, or an example is asked for twice.
    """
    subject = npeff if isinstance(npeff, Subject) else subject_of(npeff)
    rows = np.asarray(rows)
    if not len(rows):
        raise ValueError("no example was asked for")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("an example was asked for twice in one call")
    tangents = _tangents(subject.model, direction)
    with alone_with(subject.model):
        try:
            found = _forward(subject, tangents, rows, whole)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:160]
            warnings.warn(f"slower and as exact: no derivative in forward mode ({said}): one backward pass a class instead", stacklevel=2)
            found = _backward(subject, tangents, rows, whole)
    order = np.argsort(np.concatenate([batch for batch, _, _ in found]))[np.argsort(np.argsort(rows))]
    z, dz = torch.cat([z for _, z, _ in found]), torch.cat([dz for _, _, dz in found])
    return z.cpu().numpy()[order], dz.cpu().numpy()[order]


_Found = list[tuple[np.ndarray, Tensor, Tensor]]
"""Examples of a batch, their logits (b, c) and derivatives (b, c)."""


def _tangents(model: nn.Module, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction where the parameters stand, in their precision."""
    there = dict(model.named_parameters())
    if not direction:
        raise ValueError("the direction moves no parameter at all")
    check_fits(there, direction)
    return {name: value.detach().to(there[name]) for name, value in direction.items()}


def _read(subject: Subject, z: Tensor, batch: np.ndarray, whole: bool) -> Tensor:
    """Logits of the prediction that is decomposed, from the model's own; as a function of these, with their tangents or graph."""
    if whole:
        return z.double()
    with torch.no_grad():
        chosen = subject.choices_of(batch) if subject.choices else subject.recipe.decide(forward_ad.unpack_dual(z).primal.detach(), batch)
    return subject.recipe.coarse(z, chosen)


def _forward(subject: Subject, tangents: dict[str, Tensor], rows: np.ndarray, whole: bool) -> _Found:
    found: list[tuple[np.ndarray, Tensor, Tensor | None]] = []
    batches = _batches(subject, rows)
    if len(rows) >= LEARNED_FROM and subject not in _READ:
        _READ[subject] = read_at_first_position(lambda: subject.raw_logits(batches[-1][-1:]))
    first = _READ.get(subject, frozenset())
    with _unhurried() as stopped, moving(subject.model, tangents):
        for batch in batches:
            stopped()
            with Layers(first):
                raw = subject.raw_logits(batch)
            if first and not all(bool(torch.isfinite(part).all()) for part in forward_ad.unpack_dual(raw) if part is not None):
                with Layers():
                    raw = subject.raw_logits(batch)
            z, dz = forward_ad.unpack_dual(_read(subject, raw, batch, whole))
            found.append((batch, z.detach(), dz))
    if all(dz is None for _, _, dz in found):
        # Not felt, or lost on the way (compiled code): the other way tells which.
        raise RuntimeError("the logits carry none")
    return [(batch, z, torch.zeros_like(z) if dz is None else dz) for batch, z, dz in found]


def _batches(subject: Subject, rows: np.ndarray) -> list[np.ndarray]:
    """On a processor, the cuts between examples in order of length that cost least: a pass three times as dear is worth less padding."""
    batches = subject.batches
    if batches.batch_size is not None or subject.device.type != "cpu":
        return batches.batches(rows)
    order = rows[np.argsort(-batches.lengths[rows], kind="stable")]
    length = batches.lengths[order].tolist()
    cost, begin = [0.0], [0]
    for end in range(1, len(order) + 1):
        starts = [at for at in range(max(0, end - EXAMPLES_A_BATCH), end) if (end - at) * length[at] <= batches.positions] or [end - 1]
        begin.append(min(starts, key=lambda at: cost[at] + (end - at) * length[at]))
        cost.append(cost[begin[-1]] + (end - begin[-1]) * length[begin[-1]] + A_BATCH)
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(begin[cuts[-1]])
    return [order[at:end] for end, at in pairwise(cuts)][::-1]


@contextmanager
def _unhurried() -> Iterator[Callable[[], None]]:
    """Ctrl-C comes where the function that this gives is called, and at the end: not while torch's level of forward mode opens or closes."""
    before, asked = signal.getsignal(signal.SIGINT), list[Any]()
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler

    def stopped() -> None:
        if asked:
            asked.clear()
            raise KeyboardInterrupt

    if ours:  # other threads never see it
        signal.signal(signal.SIGINT, lambda *a: asked.append(a))
    try:
        yield stopped
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    stopped()


def _backward(subject: Subject, tangents: dict[str, Tensor], rows: np.ndarray, whole: bool) -> _Found:
    """⟨∂z_c/∂θ, g⟩ class by class, from the per-example gradients that Fishers are made of."""
    tape = tape_for(subject, list(tangents))
    found = []
    for batch in subject.batches.batches(rows):
        at, z, parts = 0, None, []
        while z is None or at < z.shape[1]:
            with tape.recording(len(batch)):
                raw = subject.raw_logits(batch)
            if tape.used and not raw.requires_grad:
                raise ValueError("the logits carry no derivative along the direction: logits= must not detach them")
            with torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                z = _read(subject, leaf, batch, whole)
                some = [torch.autograd.grad(z[:, k].sum(), leaf, retain_graph=True)[0] for k in range(at, min(at + ROWS_AT_ONCE, z.shape[1]))]
            dz = torch.zeros(len(batch), len(some), dtype=torch.float64, device=z.device)
            if tape.used:
                for name, uses in tape.gradients(raw, torch.stack(some, 1)):
                    g = tangents[name].reshape(len(tangents[name]) if tangents[name].ndim else 1, -1)
                    for use in uses:
                        dz += use.along(g.to(use.right if hasattr(use, "right") else use.gradient)).sum(2)
            parts.append(dz)
            at += len(some)
        found.append((batch, z.detach(), torch.cat(parts, 1)))
    return found


# ------------------------------------------------------------------------------------------------------------------------ what it tells


def curvature(logits: np.ndarray, derivative: np.ndarray, family: str = "categorical") -> np.ndarray:
    """gᵀF(x)g (m,) of each example's true Fisher, exactly, from :func:`response`; half of it times s² is the KL of a small step s.

    Of the prediction whose ``logits`` (m, c) these are: the decomposed one, or with ``whole=True`` that over the whole vocabulary.
    """
    p, dz = probabilities(np.asarray(logits), family), np.asarray(derivative, dtype=np.float64)
    if family == "bernoulli":
        return (p * (1 - p) * dz**2).sum(1)
    # Around the mean, not as a difference of two sums: a confident prediction keeps its digits.
    return (p * (dz - (p * dz).sum(1, keepdims=True)) ** 2).sum(1)


def coefficients_of(
    npeff: Factorisation | Subject, directions: Sequence[Mapping[str, Tensor]], examples: Any = None, *, inputs: Any = None
) -> np.ndarray:
    """Coefficients of new examples for directions in parameter space, without features: ``transform`` where the Fishers are not extracted.

    B_ij = g_jᵀF_i g_j from one pass a direction (:func:`curvature`), S from the directions' inner products, and then the non-negative least squares
    of :mod:`npeff_nb.decomposition.coefficients`: W_i minimises ‖F_i − Σ_j W_ij g_j g_jᵀ‖² exactly, for unit-norm g_j.

    Parameters
    ----------
    directions : r of them, as :meth:`npeff_nb.NPEFF.direction` gives; any length.
    examples : new texts, as for :func:`npeff_nb.extract_fishers`; asked as the decomposed ones were.
    inputs : ready tensors instead, for a model without a tokenizer.

    Returns
    -------
    (n, r) >= 0, of the Fishers as long as they are: divided by their norms, (n, 1), they are what :meth:`~npeff_nb.NPEFF.transform` gives.  A norm
    takes backward passes, one a factor row.  An estimate by drawn labels is replaced by the whole Fisher that it estimates, one cut to some ``rank``
    by the uncut one.

    Raises
    ------
    ValueError
        No directions, one that does not fit the model, or Fishers of gold labels, which new examples lack.
    """
    known = npeff if isinstance(npeff, Subject) else subject_of(npeff)
    recipe = known.recipe
    if not directions:
        raise ValueError("coefficients_of needs at least one direction")
    if recipe.fisher == "empirical":
        raise ValueError(
            "these Fishers are of gold labels (fisher='empirical'): extract new examples with their labels and like=, then transform them"
        )
    if inputs is None and (examples is None or known.tokenizer is None):
        raise TypeError(f"coefficients_of needs {'inputs=' if known.tokenizer is None else 'examples='}")
    batches = known.output.prepare(known.model, known.tokenizer, examples, None)[0] if inputs is None else ReadyBatches(inputs)
    subject = Subject(known.model, batches, known.output, recipe, known.tokenizer)
    scale = {} if isinstance(npeff, Subject) else dict(zip(npeff.parameters["name"], npeff.parameters["scale"], strict=True))
    S = _inner_products(directions, scale)
    lengths = S.diagonal().sqrt()
    whole = recipe.draws > 0 or recipe.fisher != "true"
    B = torch.empty(len(batches), len(directions), dtype=torch.float64)
    for j, one in enumerate(directions):
        z, dz = response(subject, one, np.arange(len(batches)), whole=whole)
        along = curvature(z, dz, recipe.family) if recipe.fisher == "true" else _score(z, dz, recipe.family) ** 2
        B[:, j] = torch.from_numpy(along) / lengths[j] ** 2
    # The solver's tolerance is for Fishers of length about one.
    size = B.amax(1, keepdim=True).clamp_min(torch.finfo(B.dtype).tiny)
    return (fit_coefficients(B / size, (S / torch.outer(lengths, lengths)).square()) * size).numpy()


def _inner_products(directions: Sequence[Mapping[str, Tensor]], scale: Mapping[str, float]) -> Tensor:
    """(r, r) float64, over θ/s where the Fisher was: a step of 1 in θ is one of 1/s there."""
    S = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for name in dict.fromkeys(name for one in directions for name in one):
        like = next(one[name] for one in directions if name in one)
        here = torch.stack([one.get(name, torch.zeros_like(like)).flatten() for one in directions]).double().cpu() / scale.get(name, 1.0)
        S += here @ here.T
    if not bool((S.diagonal() > 0).all()):
        raise ValueError(f"direction {int((S.diagonal() <= 0).int().argmax())} is zero everywhere")
    return S


def _score(z: np.ndarray, dz: np.ndarray, family: str) -> np.ndarray:
    """(m,) d log p of the predicted label (or set of labels) along the direction."""
    p = probabilities(z, family)
    y = (z > 0) if family == "bernoulli" else np.eye(z.shape[1])[z.argmax(1)]
    return ((y - p) * dz).sum(1)


class Trusted(NamedTuple):
    """How far a preview holds on either side: strengths, ``down`` negative or -inf, ``up`` positive or inf; NaN where nothing was run."""

    down: float
    up: float


def trust(logits: np.ndarray, derivative: np.ndarray, strengths: Sequence[float], truth: np.ndarray, family: str = "categorical") -> Trusted:
    """The strengths up to which a first-order preview can be trusted.

    At strength s let K_i be the true KL of example i from its unedited prediction, and K̃_i the preview's, of softmax(z + s dz).  The preview holds
    while Σ_i |K̃_i − K_i| ≤ 10 % of Σ_i K_i; the departure grows linearly in s to leading order, and so it is interpolated between strengths.

    Parameters
    ----------
    logits, derivative : (m, c), from :func:`response`.
    strengths : (S,) at which the model was really run, of any sign and in any order; 0 says nothing.
    truth : (S, m, c) logits found there (:func:`npeff_nb.directions.perturb.edited_logits`).

    Returns
    -------
    One strength a side: infinite where the preview holds at every strength that was run there, NaN where none was.
    """
    z, dz = np.asarray(logits, dtype=np.float64), np.asarray(derivative, dtype=np.float64)
    grid, truth = np.asarray(strengths, dtype=np.float64), np.asarray(truth)
    if z.shape != dz.shape or truth.shape != (len(grid), *z.shape):
        raise ValueError(
            f"logits {z.shape}, derivative {dz.shape} and truth {truth.shape} do not fit {len(grid)} strengths: expected (S, m, c) for truth"
        )
    departure = {float(s): _departure(kl(z + s * dz, z, family), kl(found, z, family)) for s, found in zip(grid, truth, strict=True)}
    return Trusted(-_reach({-s: d for s, d in departure.items() if s < 0}), _reach({s: d for s, d in departure.items() if s > 0}))


def _departure(preview: np.ndarray, truth: np.ndarray) -> float:
    off, moved = float(np.abs(preview - truth).sum()), float(truth.sum())
    if np.isnan(off):
        return np.inf
    if max(off, moved) <= UNSEEN * len(truth):
        return 0.0
    return off / moved if moved > 0 else np.inf


def _reach(departure: dict[float, float]) -> float:
    """Where the departure first passes the limit, going outwards from nothing at strength zero."""
    if not departure:
        return np.nan
    before, was = 0.0, 0.0
    for s, now in sorted(departure.items()):
        if now > DEPARTED:
            return before + (s - before) * (DEPARTED - was) / (now - was)
        before, was = s, now
    return np.inf


# ------------------------------------------------------------------------------------------------------------------------ for the slider


@dataclass(frozen=True)
class Preview:
    """What a slider needs to draw softmax(z + s dz) by itself: plain lists and numbers, fit for JSON.

    Attributes
    ----------
    rows : (m,) the examples.
    family : ``"categorical"`` (softmax) or ``"bernoulli"`` (the sigmoid of each logit).
    logits, derivative : (m, c) each.
    trusted : strengths between which the preview holds, (down, up); the last strength that was run where it held on to the end, None where
        nothing was run yet.
    """

    rows: list[int]
    family: str
    logits: list[list[float]]
    derivative: list[list[float]]
    trusted: tuple[float | None, float | None] = (None, None)

    def to_json(self) -> dict[str, Any]:
        """As a dict of plain values."""
        return asdict(self)


def preview(
    npeff: Factorisation | Subject,
    direction: Mapping[str, Tensor],
    rows: np.ndarray,
    strengths: Sequence[float] = (),
    truth: np.ndarray | None = None,
) -> Preview:
    """The preview of an edit on some examples; with ``truth`` (S, m, c), true logits at ``strengths``, also how far it holds (:func:`trust`).

    Raises
    ------
    ValueError
        As :func:`response`; or when numbers are not finite, of which no picture can be drawn.
    """
    subject = npeff if isinstance(npeff, Subject) else subject_of(npeff)
    z, dz = response(subject, direction, rows)
    bad = ~(np.isfinite(z) & np.isfinite(dz)).all(1)
    if bad.any():
        raise ValueError(
            f"logits or their derivatives are not finite for {int(bad.sum())} of {len(z)} examples, the first being row {rows[bad.argmax()]}"
        )
    trusted: tuple[float | None, float | None] = (None, None)
    if truth is not None:
        found = trust(z, dz, strengths, truth, subject.recipe.family)
        down, up = (float(np.clip(one, min(strengths), max(strengths))) for one in found)
        trusted = (None if np.isnan(down) else down, None if np.isnan(up) else up)
    return Preview([int(row) for row in rows], subject.recipe.family, z.tolist(), dz.tolist(), trusted)
