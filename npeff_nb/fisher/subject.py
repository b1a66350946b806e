"""The model together with the examples it was asked about: what later rooms need to run it again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from npeff_nb.fisher.batches import Batches, to_device
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.gradients import Tape
from npeff_nb.fisher.layers import Uses
from npeff_nb.fisher.outputs import Output

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def alone_with(model: nn.Module) -> Any:
    """A lock: inside its ``with`` block nobody else of this process runs or changes the model: a widget's thread would disturb a cell.

    The lock itself and no generator around it, which an interrupt could leave half done.
    """
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def check_ready(model: nn.Module) -> None:
    """Refuses a model in training mode: dropout would make every Fisher random and batch norm would move its statistics."""
    if any(module.training for module in model.modules()):
        raise ValueError(
            f"the model ({type(model).__name__}) is in training mode, in which dropout would make its Fishers random; "
            "call model.eval() first (it is not done for you, so that your model stays as you left it)"
        )


@dataclass
class Pass:
    """One recorded pass over one batch of b examples."""

    logits: Tensor  # (b, c) float64, of the prediction that is decomposed
    chosen: dict[str, np.ndarray]  # what was decided for these examples (npeff_nb.fisher.factors.Recipe.decide)
    retained: np.ndarray  # (b,) share of the trace over the logits that the kept classes carry
    rows: int  # K, zero rows left out at the end
    bad: np.ndarray  # (b,) whether the logits are not finite
    gradients: Iterator[tuple[str, Uses]]


class Subject:
    """A model, its examples as batches, and how predictions are read off it.

    Runs the model on chosen examples, with or without gradients; never moves it and never changes its mode.

    Attributes
    ----------
    choices : per-example decisions of the extraction, (n, ·) each, or empty before it (:class:`~npeff_nb.fisher.factors.Recipe`).
    gold : (n,) or (n, C), for the empirical Fisher.
    tapes : parameter names -> tape, as far as they were made (:func:`npeff_nb.fisher.completeness.tape_for`).
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        output: Output,
        recipe: Recipe,
        tokenizer: Any = None,
        choices: dict[str, np.ndarray] | None = None,
        gold: np.ndarray | None = None,
    ) -> None:
        self.model, self.batches, self.output, self.recipe, self.tokenizer = model, batches, output, recipe, tokenizer
        self.choices = choices or {}
        self.gold = gold
        self.tapes: dict[tuple[str, ...], Tape] = {}

    @property
    def device(self) -> torch.device:
        """Where the model stands; inputs follow it there."""
        return next(self.model.parameters()).device

    def restricted(self, rows: np.ndarray) -> Subject:
        """The same model with some of the examples, renumbered."""
        choices = {key: value[rows] for key, value in self.choices.items()}
        gold = None if self.gold is None else self.gold[rows]
        return Subject(self.model, self.batches.take(rows), self.output, self.recipe, self.tokenizer, choices, gold)

    def asks_like(self, other: Subject) -> bool:
        """Whether the same model object is asked the same question."""
        functions = [getattr(subject.output, "function", None) for subject in (self, other)]
        return self.model is other.model and self.output.facts() == other.output.facts() and functions[0] is functions[1]

    def with_model(self, model: nn.Module) -> Subject:
        """The same questions to another model."""
        return Subject(model, self.batches, self.output, self.recipe, self.tokenizer, self.choices, self.gold)

    def choices_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What was decided for these examples."""
        return {key: value[rows] for key, value in self.choices.items()}

    def raw_logits(self, batch: np.ndarray) -> Tensor:
        """(b, C) as the model gives them for one batch, with their graph where grad mode is on."""
        z = self.output.logits(self.model, to_device(self.batches.batch(batch), self.device))
        _check_shape(z, len(batch))
        return z

    def logits(self, rows: np.ndarray) -> Tensor:
        """(len(rows), c) float32 logits of these examples as the model stands now, on the CPU, in the order asked for."""
        rows = np.asarray(rows)
        place = {int(row): at for at, row in enumerate(rows)}
        if len(place) != len(rows):
            raise ValueError("an example was asked for twice in one call")
        found, order = [], []
        with alone_with(self.model), torch.no_grad():
            for batch in self.batches.batches(rows):
                found.append(self.recipe.coarse(self.raw_logits(batch), self.choices_of(batch)).float().cpu())
                order += [place[int(row)] for row in batch]
        return torch.cat(found)[torch.tensor(order).argsort()]

    @contextmanager
    def gradients(self, tape: Tape, batch: np.ndarray, mask_bad: bool = False) -> Iterator[Pass]:
        """One recorded pass over one batch: logits, and the gradients of its factor rows by parameter.

        A context, because the backward passes read the weights too: the model is ours alone until the block ends.

        Raises
        ------
        ValueError
            When logits are not finite (unless ``mask_bad``, which gives such examples zero rows) or there are fewer than two classes.
        """
        with alone_with(self.model):
            with tape.recording(len(batch)):
                z = self.raw_logits(batch)
            least = 1 if self.recipe.family == "bernoulli" else 2
            if z.shape[1] < least:
                raise ValueError(
                    f"the model has {z.shape[1]} class: a Fisher needs a distribution over at least 2. "
                    "(A regression head gives one number and no distribution.)"
                )
            bad = ~torch.isfinite(z).all(1)
            if bool(bad.any()) and not mask_bad:
                raise ValueError(
                    f"the model gives logits that are not finite for {int(bad.sum())} of {len(batch)} examples in one batch, "
                    f"the first being row {int(batch[int(bad.int().argmax())])}: check the input and the model's weights, or leave such examples "
                    "out with on_nan='mask'"
                )
            if tape.used and not z.requires_grad:
                raise ValueError(
                    "the logits carry no gradient to the chosen parameters: logits= must not detach them nor run the model under torch.no_grad()"
                )
            seen = torch.where(bad[:, None], 0.0, z.detach())
            gold = None if self.gold is None else self.gold[batch]
            chosen = self.choices_of(batch) if self.choices else self.recipe.decide(seen, batch, gold)
            coarse = self.recipe.coarse(seen, chosen)
            rows = self.recipe.cotangents(seen, coarse, chosen)
            rows[bad] = 0
            # A cut by probability leaves most examples fewer rows than the neediest may have: what is zero for all needs no backward.
            used = rows.abs().amax((0, 2)) > 0
            k = int(used.nonzero().max()) + 1 if bool(used.any()) else 1
            retained = self.recipe.retained(seen, chosen)
            yield Pass(coarse, chosen, retained, k, bad.cpu().numpy(), tape.gradients(z, rows[:, :k]))


def _check_shape(logits: Tensor, n: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != n:
        raise ValueError(f"logits have shape {tuple(logits.shape)} for {n} examples; expected ({n}, classes)")
