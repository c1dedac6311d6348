"""Several processes under torchrun; one process needs nothing of this."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """This process among all: its rank, how many there are, its place on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.size
        return value


@contextlib.contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the process group that torchrun announced, and leave it at the end.

    Within a group that was joined before, that one counts and stays: a script that trains several
    times puts one `world` around all, because torchrun's store takes no second group.
    """
    if distributed.is_available() and distributed.is_initialized():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield World(distributed.get_rank(), distributed.get_world_size(), local_rank)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size(), local_rank)
    finally:
        distributed.destroy_process_group()
