"""Agreement of processes: an error in one is raised in all, so that none waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from ...errors import InputError, NormappsError
from ..distributed import is_joined

_LENGTH = 600
"""Bytes of a message that is sent; a longer one is cut."""


@contextmanager
def agreeing(device: torch.device, group: Any) -> Iterator[None]:
    """Run a block in every process of a group; if it fails in one, raise in all.

    Every process must come to the end of the block, which waits for the others; the block itself
    must not. An error that is none of ours keeps its type in the process that it is from.

    Args:
        device: of the tensors that the group's backend sends.
        group: a `torch.distributed` process group, None for all processes.

    Raises:
        InputError: a process failed; the first one and its error are named, in every process.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    failed = _first(_messages(own, device, group), group)
    if own is not None and (failed is None or not isinstance(own, NormappsError)):
        raise own
    if failed is not None:
        raise InputError(failed) from own


def _messages(error: Exception | None, device: torch.device, group: Any) -> list[str]:
    """The error of every process in the group, empty where there is none; alone: nothing."""
    if not is_joined() or distributed.get_world_size(group) == 1:
        return []
    row = torch.tensor(list(_message(error).ljust(_LENGTH, b"\0")), dtype=torch.uint8)
    row = row.to(device)
    rows = [torch.empty_like(row) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(rows, row, group=group)
    return [_text(each) for each in rows]


def _message(error: Exception | None) -> bytes:
    if error is None:
        return b""
    lines = str(error).splitlines() or [""]
    kind = "" if isinstance(error, NormappsError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0]}".encode()[:_LENGTH] or b"failed"


def _text(row: Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore")


def _first(messages: list[str], group: Any) -> str | None:
    for index, message in enumerate(messages):
        if message:
            rank = index if group is None else distributed.get_global_rank(group, index)
            return f"process {rank}: {message}"
    return None
