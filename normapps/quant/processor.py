"""What the processor does with 8-bit products. Loads no torch.

onnxruntime multiplies uint8 activations by int8 weights. x86 without VNNI adds pairs of products
in 16 bits, where 255·127·2 does not fit and saturates: such a processor answers otherwise than
others do, and weights of 7 bits (`--reduce-range`) are its remedy. ARM has no such instruction.
"""

from __future__ import annotations

import platform
from pathlib import Path

_FLAGS = Path("/proc/cpuinfo")
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8", "avx_vnni_int8"}
"""Instructions, as Linux names them, that add four products in 32 bits."""

SATURATES = (
    "this processor has no VNNI: 8-bit products may saturate, which int8 answers worse for;"
    " --reduce-range takes weights of 7 bits"
)


def saturates(cpuinfo: str | None = None, machine: str | None = None) -> bool:
    """Whether int8 products may overflow here; where nothing is known, they are said not to.

    Args:
        cpuinfo: what Linux tells of the processor; None reads it.
        machine: the architecture, such as `x86_64`; None is this one.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i686"):
        return False
    flags = _flags(_read() if cpuinfo is None else cpuinfo)
    return bool(flags) and not flags & _EXACT


def _read() -> str:
    try:
        return _FLAGS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _flags(cpuinfo: str) -> set[str]:
    """The flags of the first processor that has some."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return set()
