"""The most memory this process has held so far."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return the most memory that was resident at once, in bytes, since the program's start.

    On Linux as the kernel counts it for this program, elsewhere as `getrusage` does, which may be
    the peak of the process that started it.
    """
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)


def peak_device_bytes(device: torch.device) -> int | None:
    """Return the most memory that tensors took on a CUDA device, None on any other."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
