"""Any network of ours as a program of torch.export, compared before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..files import atomic_path
from ..norm.nesting import tensors_in
from .onnx import TOLERANCE, Dynamic, cases_of, quiet, reason_of, relative, shapes_of


def to_pt2(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    dynamic: Dynamic | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a network as torch.export does, open the file again and compare.

    `torch.export.load(path).module()` runs it where there is torch and none of our code.

    Args:
        model: on the CPU; it stays as it is.
        inputs: see `to_onnx`.
        path: file to write, with the suffix `.pt2`.
        dynamic: see `to_onnx`.
        tolerance: see `to_onnx`.
        overwrite: replace an older file.
        metadata: texts by name, kept beside the program (torch's `extra_files`).

    Returns:
        The largest relative difference found.

    Raises:
        InputError: the network cannot be exported, the file's outputs differ from torch's, or
            the file exists or cannot be written.
    """
    cases = cases_of(inputs, dynamic)
    with atomic_path(path, overwrite=overwrite) as temporary, evaluating(model), quiet():
        program = _exported(model, cases[0], dynamic)
        torch.export.save(program, temporary, extra_files=dict(metadata or {}))
        again = torch.export.load(temporary).module()
        worst = max(_difference(model, again, case) for case in cases)
        if not worst <= tolerance:  # so written that nan is refused, too
            raise InputError(
                f"{path}: its outputs differ from the model's by {worst:.1e} of the largest, more"
                f" than {tolerance:.0e}; the file is not kept"
            )
    return worst


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: Dynamic | None) -> Any:
    try:
        return torch.export.export(model, inputs, dynamic_shapes=shapes_of(dynamic))
    except Exception as error:  # of the tracer, of the network
        raise InputError(
            f"{type(model).__name__}: torch.export cannot trace it ({reason_of(error)})"
        ) from error


@torch.no_grad()
def _difference(model: nn.Module, program: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    wanted, found = ([x.numpy() for x in tensors_in(each(*inputs))] for each in (model, program))
    return max((relative(*pair) for pair in zip(wanted, found, strict=True)), default=0.0)
