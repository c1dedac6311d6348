"""Which device and precision a command runs with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import InputError

Network = TypeVar("Network", bound=nn.Module)

_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that is really there.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        return torch.device(_best())
    kind = name.split(":", maxsplit=1)[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device {name}: choose auto, cpu, cuda or mps")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
    if not available[kind]:
        raise InputError(f"--device {name}: not on this machine; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device name, such as cuda:0") from error
    if device.index is not None and kind == "cuda" and device.index >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn `float32`, `bfloat16`, `float16` or `auto` into a dtype.

    `auto` is bfloat16 where the device computes in it, and float32 elsewhere: a processor without
    such instructions is slower in bfloat16 than in float32.
    """
    if name == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise InputError(f"--dtype {name}: choose auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def place(model: Network, device: torch.device, dtype: torch.dtype = torch.float32) -> Network:
    """Move a convolutional network to a device and precision, weights channels_last."""
    # some of the torch versions that we allow do not type this keyword
    convert: Any = model.to(device, dtype).to
    convert(memory_format=torch.channels_last)
    return model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode without gradients; every module's mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if _has_mps() else "cpu"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # younger than the oldest torch that we allow
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    found: dict[str, bool] = capabilities() if device.type == "cpu" else {}
    return any(found.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
