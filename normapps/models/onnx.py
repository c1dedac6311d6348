"""Any network of ours as an ONNX file, compared with torch before it gets its name.

Stands among the models, below the applications, because more than one of them ends in a file for
somebody else's runtime. Needs the extra `deploy`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError, NormappsError
from ..files import atomic_path
from ..norm.nesting import tensors_in

TOLERANCE = 1e-4
"""Largest difference that is rounding: float32 sums in another order, through a hundred layers."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_LONGEST = 200
"""Letters of the exporter's message that are shown."""


def check_deploy() -> None:
    """Find out, before long work, whether the packages of the extra `deploy` are there.

    Raises:
        NormappsError: one is missing.
    """
    from importlib.util import find_spec

    for name in _PACKAGES:
        if find_spec(name) is None:
            raise NormappsError(f"ONNX needs the package {name}: install normapps[deploy]")


def to_onnx(
    model: nn.Module,
    inputs: Tensor,
    path: str | os.PathLike[str],
    *,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    remedy: str = "",
) -> float:
    """Write a network as ONNX for batches of any size, and compare it with torch.

    The file is run by onnxruntime on the CPU, on the whole batch and on its first picture, before
    it gets its name: either it is right, or it is not there.

    Args:
        model: in float32, on the CPU; it stays as it is.
        inputs: (N, C, H, W) float32 that look like what the network will see; height and width
            are fixed in the file.
        path: file to write.
        tolerance: the largest difference of an output, relative to the largest value that torch
            gives in it.
        overwrite: replace an older file.
        remedy: what to do where there can be no file, for the message: `leave out --onnx`.

    Returns:
        The largest relative difference found.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the network cannot be exported (the operator is named where that is the
            reason), the file's outputs differ from torch's, or
            the file exists or cannot be written.
    """
    check_deploy()
    batch = inputs if len(inputs) > 1 else torch.cat([inputs, inputs])  # 1 would become fixed
    hint = f"; {remedy}" if remedy else ""
    with atomic_path(path, overwrite=overwrite) as temporary:
        with evaluating(model):
            _export(model, batch, temporary, hint)
            differences = [_difference(model, each, temporary, hint) for each in (batch, batch[:1])]
        worst = max(differences)
        if not worst <= tolerance:  # so written that nan is refused, too
            raise InputError(
                f"{path}: onnxruntime's outputs differ from torch's by {worst:.1e} of the largest,"
                f" more than {tolerance:.0e}; the file is not kept"
            )
    return worst


def _export(model: nn.Module, inputs: Tensor, path: Path, hint: str) -> None:
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                model, (inputs,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
            )
            program.save(str(path))
    except Exception as error:  # of the exporter, of onnxscript, of the network
        raise InputError(
            f"{type(model).__name__}: torch.onnx cannot export it ({_reason(error)}){hint}"
        ) from error


def _reason(error: BaseException) -> str:
    """What the exporter stumbled over: the operator where it tells one, else its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    if missing := _MISSING.search(str(error)):
        return f"ONNX has no operator for {missing[1]}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) < _LONGEST else f"{reason[: _LONGEST - 1]}…"


def _difference(model: nn.Module, inputs: Tensor, path: Path, hint: str) -> float:
    wanted = [each.numpy() for each in tensors_in(model(inputs))]
    found = _run(path, inputs.numpy())
    if [each.shape for each in wanted] != [each.shape for each in found]:
        raise InputError(
            f"{path.name}: onnxruntime gives {_shapes(found)}, torch {_shapes(wanted)}{hint}"
        )
    return max((_relative(*pair) for pair in zip(wanted, found, strict=True)), default=0.0)


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    largest = float(np.abs(wanted).max(initial=0.0))
    apart = float(np.abs(found - wanted).max(initial=0.0))
    return apart / largest if largest else apart


def _run(path: Path, inputs: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {session.get_inputs()[0].name: inputs})]


def _shapes(values: Sequence[np.ndarray]) -> str:
    return ", ".join(str(each.shape) for each in values) or "nothing"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's steps, warnings and log lines off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with silent[0], silent[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
