"""Programs of torch.export with int8 layers, run by torch on the CPU. Needs the extra `torchao`.

torch.compile turns a program into oneDNN's int8 kernels, for which it needs a C++ compiler; the
weights have to be frozen for that, or they are multiplied in float32 after all. It compiles for
each batch size anew, which takes long. So there are two sizes, 1 and 8, and every batch is cut
and filled up to these. Without a compiler each rounding is an operator of its own, with the same
answers, slower than float32.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.ort import Session, open_session
from ..errors import InputError, NormappsError
from ..norm.nesting import tensors_in
from .onnx import quiet, reason_of

BATCH_SIZES = (1, 8)
"""Pictures a call, of what is compiled."""

SUFFIX = ".pt2"
_PROCESSORS = ("x86_64", "amd64")


def check_torchao() -> None:
    """Find out, before long work, whether the package torchao is there, and fits the processor.

    Raises:
        NormappsError: it is missing.
        InputError: the processor is not of the kind that the int8 kernels are for.
    """
    if find_spec("torchao") is None:
        raise NormappsError("torchao programs need the package torchao: install normapps[torchao]")
    if platform.machine().lower() not in _PROCESSORS:
        raise InputError(
            f"torchao's int8 kernels are for x86 processors, and this is {platform.machine()};"
            " use --backend onnxruntime"
        )


def register_operators() -> None:
    """Make torch know the operators of such programs, and how to fuse them.

    Raises:
        NormappsError: torchao is missing, or does not fit this torch.
    """
    check_torchao()
    try:
        with quiet():
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401
    except ImportError as error:
        raise NormappsError(
            f"torchao does not work with torch {torch.__version__} ({reason_of(error)}); upgrade it"
        ) from error


def why_not_compiled() -> str:
    """Say why torch.compile cannot be used here; empty where it can."""
    default = "clang++" if platform.system() == "Darwin" else "g++"
    compiler = os.environ.get("CXX", "").strip() or default
    if shutil.which(compiler.split()[0]):
        return ""
    return f"torch.compile needs a C++ compiler, and there is no {compiler}"


def open_network(file: Path | Program, *, threads: int | None = None) -> Session | Program:
    """Open a network by the suffix of its file: `.onnx` or `.pt2`.

    Args:
        file: or a program that is open already.
        threads: of onnxruntime; torch's are for all programs the same.

    Raises:
        NormappsError, InputError: as `open_session` and `Program`.
    """
    if isinstance(file, Program):
        return file
    return Program(file) if file.suffix == SUFFIX else open_session(file, threads=threads)


def open_compiled(path: Path, shape: Sequence[int]) -> tuple[Program, str]:
    """Open a program and compile it, or say why not and leave it as it is.

    Args:
        path: the file.
        shape: (C, H, W) of its input.
    """
    why = why_not_compiled()
    if not why:
        program = Program(path, is_compiled=True)
        try:
            for size in BATCH_SIZES:
                program.run(np.zeros((size, *shape), np.float32))
            return program, ""
        except InputError as error:
            why = str(error)
    return Program(path, is_compiled=False), why


class Program:
    """A program of one input, as `Session` is a network of onnxruntime.

    Args:
        path: the file, of a source that is trusted: it may hold pickled objects.
        is_compiled: compile it, when a batch of either size is first seen; None: where there is
            a C++ compiler.

    Attributes:
        name: the file.
        is_compiled: whether it is.
        output_names: `"0"` and so on.

    Raises:
        NormappsError: torchao is missing.
        InputError: the file is missing or is no program.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_compiled: bool | None = None) -> None:
        self.name = os.fspath(path)
        self.is_compiled = not why_not_compiled() if is_compiled is None else is_compiled
        self._eager = _loaded(Path(path))
        self._compiled = torch.compile(self._eager, dynamic=False) if self.is_compiled else None
        self._ready: set[int] = set()
        self.output_names = tuple(str(number) for number in range(_outputs(self._eager)))

    def run(self, inputs: np.ndarray, outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """Return the outputs for one batch, all of them or those named, in that order.

        Args:
            inputs: (N, C, H, W) float32.
            outputs: names of `output_names`.

        Raises:
            InputError: torch refuses the batch, or cannot compile; the line names the file.
        """
        batch = torch.from_numpy(np.ascontiguousarray(inputs))
        try:
            with torch.no_grad():
                found = self._whole(batch) if self.is_compiled else _tensors(self._eager, batch)
        except Exception as error:  # of the compiler, of any operator
            raise InputError(
                f"{self.name}: torch cannot run a batch of {inputs.dtype} {inputs.shape}"
                f" ({reason_of(error)})"
            ) from error
        names = self.output_names if outputs is None else outputs
        return [found[self.output_names.index(name)].numpy() for name in names]

    def _whole(self, batch: Tensor) -> list[Tensor]:
        """Run a batch in parts of the sizes that are compiled."""
        parts = [self._part(part) for part in batch.split(BATCH_SIZES[-1])]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def _part(self, part: Tensor) -> list[Tensor]:
        size = next(each for each in BATCH_SIZES if len(part) <= each)
        full = part[torch.arange(size) % len(part)]  # its first pictures again at the end
        return [each[: len(part)] for each in self._run_compiled(full)]

    def _run_compiled(self, batch: Tensor) -> list[Tensor]:
        if len(batch) in self._ready:
            return _tensors(self._compiled, batch)
        # an option of torch.compile would come too late: weights would be inputs by then
        with quiet(), torch._inductor.config.patch(freezing=True):
            found = _tensors(self._compiled, batch)
        self._ready.add(len(batch))
        return found


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    register_operators()
    try:
        with quiet():
            return torch.export.load(path).module()
    except Exception as error:  # of the archive, of its reader
        raise InputError(f"{path}: is no program of torch.export ({reason_of(error)})") from error


def _outputs(program: Any) -> int:
    """Count what the graph returns."""
    (last,) = (node for node in program.graph.nodes if node.op == "output")
    return len(last.args[0])


def _tensors(program: Callable[[Tensor], Any] | None, batch: Tensor) -> list[Tensor]:
    return list(tensors_in(program(batch))) if program is not None else []
