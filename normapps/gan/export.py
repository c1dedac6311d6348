"""`normapps gan export`: a generator or discriminator as ONNX or a program of torch.export.

Everything that is a fixed map once training is over is made one: weights that are normalized become
plain ones, batch norms go into the convolutions beside them, and the upsampling convolutions into
transposed ones. The file is run against the network as it was opened before it gets its name.
"""

from __future__ import annotations

import copy
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
from ..graph.comparison import difference_of
from ..graph.fold import fold_batchnorm_
from ..models.onnx import TOLERANCE, Dynamic, check_deploy, to_onnx
from ..models.pt2 import to_pt2
from ..models.sngan_blocks import (
    PoolingConv2d,
    UpsamplingConv2d,
    pooling_kernel,
    upsampling_kernel,
)
from ..norm.weight.matrix import remove_parametrization_
from .drawing import words_of
from .gradient_norm import GradientNormalized
from .run import open_run
from .sample_options import GanExportOptions
from .sampling import latents, open_generator

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


def fixed(model: nn.Module, inputs: tuple[Tensor, ...], fold: bool = True) -> Fixed:
    """Return a copy of a network in which everything is a plain layer that can be.

    Args:
        model: stays as it is.
        inputs: what `model(*inputs)` takes.
        fold: batch norms into the layers beside them, too.

    Raises:
        InputError: the copy does not compute the same, or the network does not run.
    """
    plain = copy.deepcopy(model)
    bake_(plain)
    folded, left = 0, tuple[tuple[str, str], ...]()
    if fold and any(name.endswith("running_mean") for name, _ in plain.named_buffers()):
        folding = fold_batchnorm_(plain, inputs)
        folded, left = len(folding.folded), folding.left
    resample_(plain)
    difference = difference_of(model, plain, inputs, TOLERANCE)
    if not difference <= TOLERANCE:  # so written that nan is refused, too
        raise InputError(
            f"{type(model).__name__}: made plain for export, it differs by {difference:.1e} of the"
            " largest value; try --no-fold"
        )
    return Fixed(plain, folded, left)


@dataclass(frozen=True)
class Fixed:
    """A network made of plain layers, batch norms that were folded, and those that were not."""

    model: nn.Module
    folded: int
    left: tuple[tuple[str, str], ...]


def bake_(model: nn.Module) -> None:
    """Make every normalized weight an ordinary parameter of the value that inference uses."""
    model.eval()
    for layer in list(model.modules()):
        for name in list(getattr(layer, "parametrizations", {})):
            remove_parametrization_(layer, name)


def resample_(model: nn.Module) -> None:
    """Replace convolutions that resample by torch's own layers of the 4×4 kernels they compute."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, UpsamplingConv2d):
                setattr(parent, name, _transposed(layer))
            elif isinstance(layer, PoolingConv2d):
                setattr(parent, name, _strided(layer))


def _transposed(layer: nn.Conv2d) -> nn.Module:
    made = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 4, stride=2, padding=1)
    return _filled(made, upsampling_kernel(layer.weight), layer.bias)


def _strided(layer: nn.Conv2d) -> nn.Module:
    made = nn.Conv2d(layer.in_channels, layer.out_channels, 4, stride=2, padding=1)
    return _filled(made, pooling_kernel(layer.weight), layer.bias)


@torch.no_grad()
def _filled(made: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    made.register_parameter("weight", nn.Parameter(weight.contiguous()))
    made.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
    return made.eval()


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
    made = fixed(model, inputs, options.fold)
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
