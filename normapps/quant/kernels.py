"""What onnxruntime really computes in int8, and whether this processor has instructions for it.

Needs the extra `deploy`; loads no torch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ..engine.ort import open_session

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Layers computed in float; with what follows in one, onnxruntime calls them `FusedConv`, …"""

_CPUINFO = Path("/proc/cpuinfo")
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"}
"""Flags of x86 and Arm processors that sum products of bytes in int32 without saturation."""


def kernels(path: str | os.PathLike[str]) -> dict[str, int]:
    """Count the operators that onnxruntime runs for an ONNX file on this machine's CPU, by name.

    Integer ones are `QLinearConv`, `QGemm`, `MatMulIntegerToFloat`, …; a `Conv` is float.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the file is missing, is no ONNX or cannot be run.
    """
    counts: dict[str, int] = {}
    for node in _optimized(path).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def float_operators(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the layers with weights that onnxruntime computes in float, as "operator name".

    Of an int8 file: the layers that were left out, and those that onnxruntime has no int8 kernel
    for, such as `ConvTranspose`. Names are the file's, or what onnxruntime made of them.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the file is missing, is no ONNX or cannot be run.
    """
    graph = _optimized(path).graph
    weights = {each.name for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights.update(node.output)
    return tuple(
        f"{node.op_type} {node.name}"
        for node in graph.node
        if node.op_type.removeprefix("Fused") in _PRODUCTS and weights.intersection(node.input[1:2])
    )


def has_vnni() -> bool | None:
    """Say whether this processor adds products of bytes without saturating; None where unknown.

    On one that cannot, a uint8 activation times an int8 weight is summed in pairs in int16, which
    saturates: `write_int8` with `reduce_range` avoids that.
    """
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return not _DOT_PRODUCTS.isdisjoint(value.split())
    return None


def _optimized(path: str | os.PathLike[str]) -> Any:
    """Return the graph that onnxruntime makes of a file when it opens it."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimized.onnx"
        open_session(path, threads=1, optimized=file)
        return onnx.load(file)
