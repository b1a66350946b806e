"""Several processes on one extraction: who am I, and wait for the others.

The processes share a folder, in which each puts the shards it made; :mod:`torch.distributed` is only asked for ranks and barriers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Workers:
    """Which of ``number`` processes we are."""

    rank: int = 0
    number: int = 1

    @classmethod
    def here(cls) -> Workers:
        """As :mod:`torch.distributed` was set up; alone where it was not."""
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else cls()

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.number > 1:
            torch.distributed.barrier()


@contextmanager
def launched() -> Iterator[Workers]:
    """Joins the processes that ``torchrun`` started, for the time of the block; gloo on CPUs, NCCL between GPUs (one a process)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())  # NCCL wants one process a GPU
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Workers.here()
    finally:
        torch.distributed.destroy_process_group()
