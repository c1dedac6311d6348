"""Fingerprint: which model, with which weights, a population of statistics belongs to."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...errors import InputError

STATISTICS = ("running_mean", "running_var", "running_cov", "num_batches_tracked")
"""Last parts of the names that are a population's own and say nothing about the weights."""


class Entry(NamedTuple):
    """One tensor of a model: its name, its shape, its dtype as `float32`, a digest of its bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class Fingerprint:
    """Every weight of a model in order: name, shape, dtype and 16 hexadecimal digits of SHA-256.

    The same on every device and in every memory format, and whether batch norm is trainable,
    frozen, converted to ours or back: whatever is in the state dict counts but the population's own
    buffers. A copy in another dtype is another model, because its statistics are others.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Fingerprint:
        """Take a model's fingerprint, at about 1.5 GB of weights a second.

        Raises:
            InputError: a weight has no values (it is on the meta device, or lazy).
        """
        state: dict[str, Any] = model.state_dict()
        return cls(
            tuple(
                Entry(name, tuple(value.shape), _dtype(value), digest_of(name, value))
                for name, value in state.items()
                if isinstance(value, Tensor) and name.rpartition(".")[2] not in STATISTICS
            )
        )

    def difference(self, other: Fingerprint) -> str | None:
        """Say what the first weight is that differs, None where all agree.

        The text begins with the weight's name: `layer1.0.conv1.weight differs`, or has another
        shape or dtype, or is in one of the two only.
        """
        for mine, theirs in zip(self.entries, other.entries, strict=False):
            if mine != theirs:
                return _compare(mine, theirs)
        longer = max(self.entries, other.entries, key=len)
        rest = longer[min(len(self.entries), len(other.entries)) :]
        return f"{rest[0].name} is in one of the two only" if rest else None

    def to_list(self) -> list[list[Any]]:
        """Return the entries as lists that JSON can hold."""
        return [[name, list(shape), *rest] for name, shape, *rest in self.entries]

    @classmethod
    def from_list(cls, entries: list[list[Any]]) -> Fingerprint:
        """Undo `to_list`.

        Raises:
            ValueError: the entries are none of its.
            TypeError: likewise.
        """
        return cls(
            tuple(
                Entry(str(name), tuple(int(size) for size in shape), str(dtype), str(digest))
                for name, shape, dtype, digest in entries
            )
        )


def _compare(mine: Entry, theirs: Entry) -> str:
    if mine.name != theirs.name:
        return f"{mine.name} stands where the other has {theirs.name}"
    if mine.shape != theirs.shape:
        return f"{mine.name} has shape {mine.shape}, the other {theirs.shape}"
    if mine.dtype != theirs.dtype:
        return f"{mine.name} is {mine.dtype}, the other {theirs.dtype}"
    return f"{mine.name} differs"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def digest_of(name: str, value: Tensor) -> str:
    """Return 16 hexadecimal digits of SHA-256 over a tensor's bytes, row by row.

    Raises:
        InputError: it has no values; `name` is named.
    """
    if value.is_meta or nn.parameter.is_lazy(value):
        raise InputError(f"{name}: has no values yet; load or run the model before measuring it")
    # a view without a copy: torch gives its memory to Python only through numpy
    dense = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
    size = dense.numel() * dense.element_size()
    memory = (ctypes.c_char * size).from_address(dense.data_ptr()) if size else b""
    return hashlib.sha256(memory).hexdigest()[:16]
