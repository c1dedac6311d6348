"""Any model of ours as a file for another runtime: ONNX, or a program of torch.export.

Either the file computes what torch does, or it is not there: every file is run before it gets its
name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from .engine.device import evaluating
from .errors import UsageError
from .export_options import DYNAMIC, ExportOptions
from .files import check_writable
from .graph.fold import fold_batchnorm_
from .models.adain_tiny import STRIDE, AdainTiny, moments
from .models.folder import read_manifest
from .models.load import OpenedModel, find_model, open_by
from .models.onnx import Dynamic, check_deploy, to_onnx
from .models.options import preprocessing_of
from .models.pt2 import to_pt2
from .norm.nesting import tensors_in
from .style.color import pair_colors
from .style.detail import mix_detail
from .style.onnx.files import write_runtime
from .style.onnx.stylizer import DECODER, ENCODER

SUFFIXES = (".onnx", ".pt2")
"""Of the files that can be written: ONNX, and torch.export's own format."""

_SIDE = 96
"""Of the pictures that a stylizer of open size is exported and compared with."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        out: the file, or a stylizer's model folder.
        model: what was exported, in words.
        inputs: shape of each input; None is a size left open.
        outputs: shape of each output for one such input.
        difference: the largest one to torch, relative to the largest value of an output.
        folded: batch norms (and other fixed norms) that went into their neighbours.
        left: name of each norm layer that stayed, and why.
        size: of the file in bytes, or of the graphs in the folder.
    """

    out: Path
    model: str
    inputs: tuple[tuple[int | None, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    difference: float
    folded: int = 0
    left: tuple[tuple[str, str], ...] = ()
    size: int = 0


class PairStylizer(nn.Module):
    """A stylizer as one network of two pictures; the file of `normapps export adain-tiny`."""

    def __init__(self, network: AdainTiny) -> None:
        super().__init__()
        self.network = network

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Give pictures the style of a painting.

        Args:
            content: (N, 3, H, W) float sRGB in [0, 1], H and W multiples of 8, at least 16.
            style: (1, 3, H', W') likewise.

        Returns:
            (N, 3, H, W) in [0, 1].
        """
        shown = pair_colors(content, style, "newton")
        wanted = moments(self.network.encode(style))
        drawn = self.network.decode(self.network.encode(shown), wanted).clamp(0, 1)
        return mix_detail(drawn, shown).clamp(0, 1)


def export_model(
    spec: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> ExportReport:
    """Write a model for another runtime, and compare the two.

    Args:
        spec: the network, as `normapps.models.load.open_model` takes it.
        out: `.onnx` or `.pt2`; of a stylizer also a folder, which gets a copy of the model that
            `normapps stylize --runtime onnx` takes (or the model's own folder).
        options: whose weights, the size of the input, and how.
        say: told what was opened.

    Raises:
        UsageError: options that this kind of file has not.
        NormappsError: the extra `deploy` is missing.
        InputError: no such model, one that cannot be exported (the operator is named), a file
            that exists, or one that would not compute what torch does.
    """
    options = options or ExportOptions()
    target = Path(out)
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        return _export_folder(spec, target, options)
    if suffix == ".onnx":
        check_deploy()
    elif options.opset is not None:
        raise UsageError(f"--opset {options.opset}: {target} is no ONNX; leave it out")
    check_writable(target, options.overwrite)
    opened = open_by(spec, options)
    say(opened.describe())
    if isinstance(opened.model, AdainTiny):
        work = _stylizer(opened.model, options)
    else:
        work = _network(opened, options)
    common: dict[str, Any] = {
        "dynamic": work.dynamic,
        "overwrite": options.overwrite,
        "metadata": {"model": opened.describe(), "normapps": __version__} | work.metadata,
    }
    if suffix == ".onnx":
        found = to_onnx(work.model, work.inputs, target, opset=options.opset, **common)
    else:
        found = to_pt2(work.model, work.inputs, target, **common)
    return _report(target, opened, work, found)


@dataclass(frozen=True)
class _Work:
    """A network, inputs to trace and compare it with, which sizes are open, what is said of it."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic: Dynamic | None
    metadata: dict[str, str]
    folded: int = 0
    left: tuple[tuple[str, str], ...] = ()


def _network(opened: OpenedModel, options: ExportOptions) -> _Work:
    """Any network of one picture: normalized noise of its size."""
    preprocessing = preprocessing_of(opened, options)
    batch = None if options.batch == DYNAMIC else int(options.batch)
    random = torch.Generator().manual_seed(options.seed)
    shape = (batch or 2, preprocessing.channels, *preprocessing.size)
    inputs = (torch.randn(shape, generator=random),)
    metadata = {key: json.dumps(value) for key, value in preprocessing.to_json().items()}
    shapes = _outputs(opened.model, inputs)
    if [len(shape) for shape in shapes] == [2]:
        metadata["num_classes"] = str(shapes[0][1])
    work = _Work(opened.model, inputs, ((),) if batch else None, metadata)
    if not options.fold:
        return work
    folding = fold_batchnorm_(opened.model, inputs)
    return replace(work, folded=len(folding.folded), left=folding.left)


def _stylizer(network: AdainTiny, options: ExportOptions) -> _Work:
    """Two pictures of any sizes; `--size` and `--batch` fix those of the photo."""
    batch = None if options.batch == DYNAMIC else int(options.batch)
    side = options.size or _SIDE
    if side % STRIDE or side < 2 * STRIDE:
        raise UsageError(f"--size {side}: must be a multiple of {STRIDE}, at least {2 * STRIDE}")
    random = torch.Generator().manual_seed(options.seed)
    inputs = (
        torch.rand(batch or 2, 3, side, side + 8 * (options.size is None), generator=random),
        torch.rand(1, 3, _SIDE, _SIDE - 16, generator=random),
    )
    free = (*(() if batch else (0,)), *(() if options.size else (2, 3)))
    metadata = {"range": "[0, 1]", "stride": str(STRIDE)}
    return _Work(PairStylizer(network).eval(), inputs, (free, (2, 3)), metadata)


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    with evaluating(model), torch.inference_mode():
        return tuple(tuple(each.shape) for each in tensors_in(model(*inputs)))


def _report(target: Path, opened: OpenedModel, work: _Work, found: float) -> ExportReport:
    outputs = _outputs(work.model, work.inputs)
    free = ((0,),) if work.dynamic is None else work.dynamic
    inputs = tuple(
        tuple(None if i in open_sizes else size for i, size in enumerate(each.shape))
        for each, open_sizes in zip(work.inputs, free, strict=True)
    )
    size = target.stat().st_size
    return ExportReport(
        target, opened.describe(), inputs, outputs, found, work.folded, work.left, size
    )


def _export_folder(
    spec: str | os.PathLike[str], target: Path, options: ExportOptions
) -> ExportReport:
    """Give a stylizer's model folder the graphs of `stylize --runtime onnx`."""
    folder = find_model(spec)
    if not isinstance(folder, Path) or read_manifest(folder).builder != "adain-tiny":
        raise UsageError(f"-o {target}: must end in {' or '.join(SUFFIXES)}")
    found = write_runtime(folder, target, overwrite=options.overwrite)
    size = sum((target / name).stat().st_size for name in (ENCODER, DECODER))
    inputs = ((None, None, 3),)
    return ExportReport(target, f"model folder {folder}", inputs, (), found, size=size)
