"""ONNX files run by onnxruntime on the CPU. Needs the extra `deploy`; loads no torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, NormappsError

_LONGEST = 200
"""Letters of onnxruntime's message that are shown."""


@dataclass(frozen=True)
class Session:
    """A network of one input, ready to run.

    `input_shape` has None where the file leaves a dimension open, as the batch is.
    """

    name: str
    session: Any
    input_name: str
    input_shape: tuple[int | None, ...]
    output_names: tuple[str, ...]

    def run(self, inputs: np.ndarray, outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """Return the outputs for one batch, all of them or those named, in that order.

        Args:
            inputs: in the file's shape and dtype, mostly (N, C, H, W) float32.
            outputs: names of `output_names`.

        Raises:
            InputError: onnxruntime refuses the batch; the line names the file.
        """
        try:
            found = self.session.run(outputs, {self.input_name: inputs})
        except Exception as error:  # onnxruntime's own classes share no base
            raise InputError(
                f"{self.name}: onnxruntime cannot run a batch of {inputs.dtype}"
                f" {inputs.shape} ({shortened(error)})"
            ) from error
        return [np.asarray(each) for each in found]


def open_session(
    model: str | os.PathLike[str] | bytes,
    *,
    threads: int | None = None,
    optimized: str | os.PathLike[str] | None = None,
) -> Session:
    """Open an ONNX file, or the bytes of one, on the CPU.

    Threads stop spinning when a run ends, so that another session measured in turn with this one
    is not slowed down by it.

    Args:
        model: the file, or its content.
        threads: threads that share an operator; onnxruntime's choice, one a core, where None.
        optimized: write the graph that onnxruntime makes of it to this file. The session then
            leaves out the last step, which lays tensors out for this processor and renames.

    Raises:
        NormappsError: onnxruntime is not installed.
        InputError: the file is missing, is no ONNX, holds an operator that onnxruntime lacks, or
            has not exactly one input.
    """
    name = _name(model)
    session = inference_session(model, threads=threads, optimized=optimized)
    if len(session.get_inputs()) != 1:
        names = ", ".join(each.name for each in session.get_inputs())
        raise InputError(f"{name}: must have one input, has {names or 'none'}")
    only = session.get_inputs()[0]
    shape = tuple(size if isinstance(size, int) else None for size in only.shape)
    outputs = tuple(each.name for each in session.get_outputs())
    return Session(name, session, only.name, shape, outputs)


def inference_session(
    model: str | os.PathLike[str] | bytes,
    *,
    threads: int | None = None,
    optimized: str | os.PathLike[str] | None = None,
    is_brief: bool = False,
) -> Any:
    """Open an ONNX file of any inputs as onnxruntime's own session, as `open_session` does.

    Args:
        model, threads, optimized: see `open_session`.
        is_brief: for a process that runs a few pictures and ends: such sessions have one arena
            for all, threads wait without spinning, and weights are not laid out anew.

    Raises:
        NormappsError, InputError: as `open_session` does, but for the number of inputs.
    """
    runtime, name = _runtime(), _name(model)
    if not isinstance(model, bytes) and not os.path.isfile(model):
        raise InputError(f"{name}: no such file")
    source = model if isinstance(model, bytes) else name
    options = _options(runtime, threads, optimized)
    if is_brief:
        _make_brief(runtime, options)
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base
        raise InputError(f"{name}: onnxruntime cannot open it ({shortened(error)})") from error


def shortened(error: BaseException) -> str:
    """Return an error of onnx or onnxruntime in one line of bounded length."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) < _LONGEST else f"{reason[: _LONGEST - 1]}…"


def _name(model: str | os.PathLike[str] | bytes) -> str:
    return "ONNX model" if isinstance(model, bytes) else os.fspath(model)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise NormappsError(
            "running ONNX needs the package onnxruntime: install normapps[deploy]"
        ) from error
    return onnxruntime


def _make_brief(runtime: Any, options: Any) -> None:
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _share_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _share_arena() -> bool:
    """Make the arena of the sessions that share one, once a process; say whether there is one."""
    runtime = _runtime()
    kind, usage = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
    try:
        place = runtime.OrtMemoryInfo("Cpu", kind, 0, usage)
        runtime.create_and_register_allocator(place, None)
    except Exception:  # an onnxruntime without it, or another user of it in this process
        return False
    return True


def _options(runtime: Any, threads: int | None, optimized: str | os.PathLike[str] | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
        level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
    return options
