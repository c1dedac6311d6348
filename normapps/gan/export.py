"""`normapps gan export`: a generator or discriminator as ONNX or a program of torch.export.

What is written is the network made of plain layers (see `plain`), statistics and all. The file is
run against that, and that against the network as it was opened, before it gets its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..engine.device import evaluating
from ..errors import InputError, UsageError
from ..files import check_writable
from ..models.onnx import Dynamic, check_deploy, to_onnx
from ..models.pt2 import to_pt2
from .drawing import words_of
from .gradient_norm import GradientNormalized
from .opening import open_generator
from .plain import plain
from .run import open_run
from .sample_options import GanExportOptions
from .sampling import latents

SUFFIXES = (".onnx", ".pt2")
_BATCH = 4


@dataclass(frozen=True)
class GanExport:
    """What was written.

    Attributes:
        out: the file.
        inputs: name and shape of each input; None is a size left open.
        output: shape of the output, likewise.
        difference: the largest one to torch, relative to the largest value of the output.
        folded: batch norms that went into their neighbours.
        left: name of each norm layer that stayed, and why.
        statistics: of the batch norms, in words; empty where the network has none.
        size: of the file in bytes.
    """

    out: Path
    inputs: Mapping[str, tuple[int | None, ...]]
    output: tuple[int | None, ...]
    difference: float
    folded: int
    left: tuple[tuple[str, str], ...]
    statistics: str
    size: int


def export_generator(
    spec: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: GanExportOptions | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> GanExport:
    """Write a generator for another runtime: z (N, latent), and y (N,) int64 of a conditional one.

    Its output is (N, channels, S, S) float32 in [−1, 1]; a byte is ⌊128·(x + 1)⌋, at most 255.
    The file's metadata says so, and names the classes.

    Args:
        spec: the generator, as `open_generator` takes it.
        out: `.onnx` or `.pt2`.
        options: which statistics, and how.
        say: told which norm layers stay.

    Raises:
        UsageError: a file of another suffix, or `opset` without ONNX.
        NormappsError: the extra `deploy` is missing.
        InputError: no such generator or statistics; one that cannot be exported; a file that
            exists, or that would not compute what torch does.
    """
    options = options or GanExportOptions()
    _check(Path(out), options)
    opened = open_generator(spec)
    opened.use_(options.bn, standing=options.standing)
    z = latents(range(_BATCH), opened.latent)
    inputs: tuple[Tensor, ...] = (z,)
    if opened.classes:
        inputs += (torch.arange(_BATCH) % len(opened.classes),)
    statistics = words_of(options.bn, options.standing)
    metadata = {
        "statistics": statistics,
        "range": "[-1, 1]",
        "bytes": "floor(128 * (x + 1)), at most 255",
        "classes": json.dumps(opened.classes),
    }
    return _write(opened.generator, inputs, Path(out), metadata, options, say)


def export_discriminator(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: GanExportOptions | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> GanExport:
    """Write the discriminator of a run: x (N, channels, S, S) in [−1, 1], and y, to logits (N,).

    Args:
        run: folder of `gan train`.
        out, options, say: as `export_generator` takes them.

    Raises:
        UsageError, NormappsError: as `export_generator`.
        InputError: as `export_generator`; or the discriminator is normalized by its gradient.
    """
    options = options or GanExportOptions(discriminator=True)
    _check(Path(out), options)
    model = open_run(os.fspath(run)).discriminator()
    if isinstance(model, GradientNormalized):
        raise InputError(
            f"{run}: was trained with --d-norm gn; a gradient is part of its logits, and neither"
            " ONNX nor torch.export computes one"
        )
    network: Any = model
    random = torch.Generator().manual_seed(0)
    shape = _BATCH, network.channels, network.size, network.size
    inputs: tuple[Tensor, ...] = (torch.rand(shape, generator=random) * 2 - 1,)
    if network.num_classes:
        inputs += (torch.arange(_BATCH) % network.num_classes,)
    return _write(model, inputs, Path(out), {"range": "[-1, 1]"}, options, say)


def _check(out: Path, options: GanExportOptions) -> None:
    """Find out before any work whether the file can be written."""
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"-o {out}: must end in {' or '.join(SUFFIXES)}")
    if suffix == ".onnx":
        check_deploy()
    elif options.opset is not None:
        raise UsageError(f"--opset {options.opset}: {out} is no ONNX; leave it out")
    check_writable(out, options.overwrite)


def _write(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    out: Path,
    metadata: Mapping[str, str],
    options: GanExportOptions,
    say: Callable[[str], object],
) -> GanExport:
    made = plain(model, inputs, options.fold)
    for name, why in made.left:
        say(f"{name} stays: {why}")
    dynamic: Dynamic | None = None if len(inputs) == 1 else ((0,),) * len(inputs)
    common: dict[str, Any] = {
        "dynamic": dynamic,
        "overwrite": options.overwrite,
        "metadata": {"normapps": __version__, **metadata},
    }
    if out.suffix.lower() == ".onnx":
        difference = to_onnx(made.model, inputs, out, opset=options.opset, **common)
    else:
        difference = to_pt2(made.model, inputs, out, **common)
    with evaluating(model):
        shape = model(*inputs).shape
    names = ("x" if inputs[0].dim() == 4 else "z", "y")
    shapes = {name: (None, *each.shape[1:]) for name, each in zip(names, inputs, strict=False)}
    return GanExport(
        out,
        shapes,
        (None, *shape[1:]),
        difference,
        made.folded,
        made.left,
        metadata.get("statistics", ""),
        out.stat().st_size,
    )
