"""The float network by torch, by onnxruntime, and the int8 one, timed in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..engine.device import evaluating, place
from ..engine.ort import Session
from ..measure.latency import SECONDS, Latency, time_in_turns
from ..models.program import Program, open_network

TORCH, FLOAT, INT8 = "torch", "onnxruntime", "int8"
"""The three that take turns; `FLOAT` is what int8 has to beat."""

BATCH_SIZES = (1, 8)

_PAUSE = 0.01
"""Seconds of rest: torch's threads spin for a while, and would take the next one's cores."""


def measure_latency(
    model: nn.Module,
    files: Mapping[str, Path | Program],
    shape: Sequence[int],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
) -> tuple[Latency, ...]:
    """Time one network as torch runs it and as onnxruntime does, on the CPU, all cores each.

    Args:
        model: in float32; a copy is timed, channels_last.
        files: ONNX or programs, by name.
        shape: (C, H, W) of a picture.
        batch_sizes: pictures a call.
        seconds: what each batch size may take about.

    Returns:
        One a batch size, with `TORCH` and the names of the files.
    """
    ready = place(copy.deepcopy(model), torch.device("cpu"))
    threads = torch.get_num_threads()
    sessions = {name: open_network(file, threads=threads) for name, file in files.items()}
    return tuple(_time_at(size, ready, sessions, shape, seconds) for size in batch_sizes)


def _time_at(
    size: int,
    model: nn.Module,
    sessions: Mapping[str, Session | Program],
    shape: Sequence[int],
    seconds: float,
) -> Latency:
    noise = np.random.default_rng(0).standard_normal((size, *shape), np.float32)
    cases = {TORCH: _torch_case(model, noise)}
    cases |= {name: _case(session, noise) for name, session in sessions.items()}
    return time_in_turns(size, cases, seconds=seconds, pause=_PAUSE)


def _torch_case(model: nn.Module, noise: np.ndarray) -> Callable[[], object]:
    batch = torch.from_numpy(noise)
    if batch.dim() == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with evaluating(model):
            model(batch)

    return run


def _case(session: Session | Program, noise: np.ndarray) -> Callable[[], object]:
    return lambda: session.run(noise)
