"""The model together with the examples it was asked about: what later rooms need to run it again."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from npeff_nb.fisher._inputs import LogitsOf, ReadyBatches, TextBatches, to_device
from npeff_nb.fisher.factors import reduced_cotangents
from npeff_nb.fisher.gradients import Outer, Tape

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def alone_with(model: nn.Module) -> Iterator[None]:
    """Nobody else of this process runs or changes the model meanwhile: a widget's thread and a cell would disturb each other."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


def check_ready(model: nn.Module) -> None:
    """Refuses a model in training mode: dropout would make every Fisher random and batch norm would move its statistics."""
    if any(module.training for module in model.modules()):
        raise ValueError(
            f"the model ({type(model).__name__}) is in training mode, in which dropout would make its Fishers random; "
            "call model.eval() first (it is not done for you, so that your model stays as you left it)"
        )


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers: tells whether two models are the same to the bit."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class Subject:
    """A model, its examples as batches, and how logits are read off it.

    Runs the model on chosen examples, with or without gradients; never moves it and never changes its mode.
    """

    def __init__(self, model: nn.Module, batches: TextBatches | ReadyBatches, logits_of: LogitsOf, tokenizer: Any = None) -> None:
        self.model, self.batches, self.logits_of, self.tokenizer = model, batches, logits_of, tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model stands; inputs follow it there."""
        return next(self.model.parameters()).device

    def restricted(self, rows: np.ndarray) -> Subject:
        """The same model with some of the examples, renumbered."""
        return Subject(self.model, self.batches.take(rows), self.logits_of, self.tokenizer)

    def logits(self, rows: np.ndarray) -> Tensor:
        """(len(rows), c) float32 logits of these examples as the model stands now, on the CPU, in the order asked for."""
        rows = np.asarray(rows)
        place = {int(row): at for at, row in enumerate(rows)}
        if len(place) != len(rows):
            raise ValueError("an example was asked for twice in one call")
        found, order = [], []
        with alone_with(self.model), torch.no_grad():
            for batch in self.batches.batches(rows):
                z = self.logits_of(self.model, to_device(self.batches.batch(batch), self.device)).float().cpu()
                _check_shape(z, len(batch))
                found.append(z)
                order += [place[int(row)] for row in batch]
        return torch.cat(found)[torch.tensor(order).argsort()]

    @contextmanager
    def gradients(self, tape: Tape, batch: np.ndarray) -> Iterator[tuple[Tensor, Iterator[tuple[str, list[Outer]]]]]:
        """One recorded pass over one batch: logits (b, c), and the gradients of its c − 1 factor rows by parameter.

        A context, because the backward passes read the weights too: the model is ours alone until the block ends.

        Raises
        ------
        ValueError
            When logits are not finite or there are fewer than two classes.
        """
        with alone_with(self.model):
            with tape.recording(len(batch)):
                logits = self.logits_of(self.model, to_device(self.batches.batch(batch), self.device))
            _check_shape(logits, len(batch))
            if logits.shape[1] < 2:
                raise ValueError(
                    f"the model has {logits.shape[1]} class: a Fisher needs a distribution over at least 2. "
                    "(A regression head gives one number and no distribution.)"
                )
            finite = torch.isfinite(logits).all(1).tolist()
            if not all(finite):
                raise ValueError(
                    f"the model gives logits that are not finite for {finite.count(False)} of {len(batch)} examples in one batch, "
                    f"the first being row {int(batch[finite.index(False)])}: check the input and the model's weights"
                )
            if tape.used and not logits.requires_grad:
                raise ValueError(
                    "the logits carry no gradient to the chosen parameters: logits= must not detach them nor run the model under torch.no_grad()"
                )
            yield logits.detach(), tape.gradients(logits, reduced_cotangents(logits.detach()))


def _check_shape(logits: Tensor, n: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != n:
        raise ValueError(f"logits have shape {tuple(logits.shape)} for {n} examples; expected ({n}, classes)")
