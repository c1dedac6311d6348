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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..engine.ort import inference_session
from ..errors import InputError, NormappsError
from ..files import atomic_path
from ..norm.nesting import tensors_in

TOLERANCE = 1e-4
"""Largest difference that is rounding: float32 sums in another order, through a hundred layers."""

Dynamic = tuple[tuple[int, ...], ...]
"""For each input of a network the dimensions whose size stays open."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_DEPENDS = re.compile(
    r"data-dependent.*The following call raised this error:.*?"
    r'File "([^"\n]+)", line (\d+), in [^\n]+\n\s*([^\n]+?)\s*\n',
    re.DOTALL,
)
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
    inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    dynamic: Dynamic | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    remedy: str = "",
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    finish: Callable[[Path], object] | None = None,
) -> float:
    """Write a network as ONNX, for batches of any size if not told otherwise, and compare it.

    The file is run by onnxruntime on the CPU, on the whole batch and on its first picture, before
    it gets its name: either it is right, or it is not there.

    Args:
        model: in float32, on the CPU; it stays as it is.
        inputs: (N, C, H, W) float32 that look like what the network will see; height and width
            are fixed in the file. Or the network's several inputs; `dynamic` says what is open.
        path: file to write.
        dynamic: for each input the dimensions whose size stays open, as `((0, 2, 3),)`; the inputs
            then stand for all sizes. None: the first one of the only input.
        tolerance: the largest difference of an output, relative to the largest value that torch
            gives in it.
        overwrite: replace an older file.
        remedy: what to do where there can be no file, for the message: `leave out --onnx`.
        opset: version of ONNX's operators; the exporter's own choice if None.
        metadata: texts by name, to be read from the file by whoever runs it.
        finish: called with the file, still under another name, to change it before it is run.

    Returns:
        The largest relative difference found.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the network cannot be exported (the operator is named where that is the
            reason), the file's outputs differ from torch's, or
            the file exists or cannot be written.
    """
    check_deploy()
    cases = cases_of(inputs, dynamic)
    hint = f"; {remedy}" if remedy else ""
    with atomic_path(path, overwrite=overwrite) as temporary, evaluating(model):
        program = _exported(model, cases[0], dynamic, opset, hint)
        _save(program, temporary, metadata or {})
        if finish is not None:
            finish(temporary)
        worst = max(_difference(model, case, temporary, hint) for case in cases)
        if not worst <= tolerance:  # so written that nan is refused, too
            raise InputError(
                f"{path}: onnxruntime's outputs differ from torch's by {worst:.1e} of the largest,"
                f" more than {tolerance:.0e}; the file is not kept"
            )
    return worst


def cases_of(
    inputs: Tensor | tuple[Tensor, ...], dynamic: Dynamic | None
) -> list[tuple[Tensor, ...]]:
    """What is run to compare: the inputs, and where any batch is allowed one picture, too."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    if dynamic is not None:
        return [several]
    batch = several[0]
    if len(batch) == 1:  # the exporter would take it for a fixed size
        batch = torch.cat([batch, batch])
    return [(batch,), (batch[:1],)]


def _exported(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    dynamic: Dynamic | None,
    opset: int | None,
    hint: str,
) -> Any:
    try:
        with quiet():
            return torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                dynamic_shapes=shapes_of(dynamic),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # of the exporter, of onnxscript, of the network
        raise InputError(
            f"{type(model).__name__}: torch.onnx cannot export it ({reason_of(error)}){hint}"
        ) from error


def shapes_of(dynamic: Dynamic | None) -> tuple[Any, ...]:
    """What torch.export takes; sizes that are open may depend on each other."""
    if dynamic is None:
        return ({0: torch.export.Dim("batch")},)
    return tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) or None for each in dynamic)


def _save(program: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file without the lines of code, and their folders, that each node came from."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    program.model.metadata_props.update(metadata)
    program.save(str(path))


def reason_of(error: BaseException) -> str:
    """What the exporter stumbled over: the operator where it tells one, else its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    if missing := _MISSING.search(str(error)):
        return f"ONNX has no operator for {missing[1]}"
    if line := _DEPENDS.search(str(error)):
        file, number, code = line.groups()
        return f"what it does depends on values: '{code}', {PurePath(file).name} line {number}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) < _LONGEST else f"{reason[: _LONGEST - 1]}…"


def _difference(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, hint: str) -> float:
    wanted = [each.numpy() for each in tensors_in(model(*inputs))]
    found = _run(path, *(each.numpy() for each in inputs))
    if [each.shape for each in wanted] != [each.shape for each in found]:
        raise InputError(
            f"{path.name}: onnxruntime gives {_shapes(found)}, torch {_shapes(wanted)}{hint}"
        )
    return max((relative(*pair) for pair in zip(wanted, found, strict=True)), default=0.0)


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value that was wanted."""
    largest = float(np.abs(wanted).max(initial=0.0))
    apart = float(np.abs(found - wanted).max(initial=0.0))
    return apart / largest if largest else apart


def _run(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    session = inference_session(path, threads=torch.get_num_threads())
    names = [each.name for each in session.get_inputs()]
    given = dict(zip(names, inputs, strict=True))
    return [np.asarray(each) for each in session.run(None, given)]


def _shapes(values: Sequence[np.ndarray]) -> str:
    return ", ".join(str(each.shape) for each in values) or "nothing"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's steps, warnings and log lines off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with silent[0], silent[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
