"""Int8 programs of torch, for torch.compile: torchao's PT2E.

The prepared float network is exported with an open batch size, observed on pictures, converted and
exported again. torchao chooses which operators are rounded: those that Inductor has int8 kernels
for on x86, convolutions of one and two axes, linear layers, products, and what lies between them.
The grids are ours, those of `grid.py`, as of an ONNX file. torchao's own differ: weights from −128,
no scale below 2^-12, which crushes channels of small weights, and outliers always cut off.
Inductor's kernels know weights with a scale each channel only, so one scale a weight is that scale
repeated.

Works with torch 2.13 and torchao 0.18. Two things are done here that they leave undone: the float
weights, which stay in the program beside the int8 ones, are taken out, and so are the traces of
where each operator was written, which hold paths and addresses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..models.onnx import quiet, reason_of
from ..models.program import register_operators
from .grid import Grid, activation_grid, weight_grid
from .layers import Node
from .options import QuantizeOptions
from .pictures import Seen
from .ranges import Histogram, range_of

_LAYERS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear")
_CHANNELS, _VALUES = "PerChannelMinMaxObserver", "MinMaxObserver"


@dataclass(frozen=True, eq=False)
class Rounded:
    """What was made of a network.

    Attributes:
        layers: that have weights, in the order they run.
        kept_float: names of those for which there is no int8 kernel.
        ranges: of every tensor that is rounded, by the name of the operator that gives it.
    """

    layers: tuple[Node, ...]
    kept_float: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]

    @property
    def float_operators(self) -> tuple[str, ...]:
        """The layers that stay float, as "operator name"."""
        return tuple(
            f"{each.op} {each.module or each.name}"
            for each in self.layers
            if each.name in self.kept_float
        )


def batches_of(
    options: QuantizeOptions, seen: Seen | None, images: np.ndarray | None
) -> Iterator[Tensor]:
    """Yield the batches that give ranges: distilled images, or the pictures that calibrate."""
    if images is not None:
        yield from torch.from_numpy(images).split(options.batch_size)
    elif seen is not None:
        yield from seen.calibration()


def make_program(
    model: nn.Module,
    inputs: Tensor,
    batches: Iterable[Tensor],
    path: str | os.PathLike[str],
    options: QuantizeOptions,
) -> Rounded:
    """Write a program as the options say: `write_program` with these."""
    return write_program(
        model,
        inputs,
        batches,
        path,
        method=options.ranges,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
    )


def write_program(
    model: nn.Module,
    inputs: Tensor,
    batches: Iterable[Tensor],
    path: str | os.PathLike[str],
    *,
    method: str = "min-max",
    per_channel: bool = True,
    reduce_range: bool = False,
) -> Rounded:
    """Write a network with int8 layers as a program that `Program` opens.

    Args:
        model: folded, float32, on the CPU; it stays as it is.
        inputs: (N, C, H, W) float32 of the size that the program takes, in batches of any size.
        batches: the same, of pictures, at least one.
        path: file to write, with the suffix `.pt2`.
        method: how values give a range, one of `ranges.METHODS`.
        per_channel: a scale for each output channel of a weight, or one for it all.
        reduce_range: weights of 7 bits.

    Raises:
        NormappsError: torchao is missing.
        InputError: torch.export or torchao cannot do the network, it has no layer that could be
            int8, there is no batch, or a range that is not finite.
    """
    register_operators()
    with evaluating(model), quiet():
        observed, layers = _observed(model, inputs)
        ranges = _calibrate(observed, batches, method)
        _round_weights(observed, per_channel, 7 if reduce_range else 8)
        converted = _converted(observed)
        kept = _kept_float(converted, layers)
        if len(kept) == len(layers):
            raise InputError("has no layer that torchao could compute in int8")
        program = _exported(converted, inputs)
        _strip(program)
        torch.export.save(program, path)
    return Rounded(layers, kept, ranges)


def _exported(model: nn.Module, inputs: Tensor) -> Any:
    # a batch of one would be taken for the only size
    batch = torch.cat([inputs, inputs])[: max(2, len(inputs))]
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(model, (batch,), dynamic_shapes=shapes)
    except Exception as error:  # of the tracer, of the network
        raise InputError(f"torch.export cannot trace it ({reason_of(error)})") from error


def _observed(model: nn.Module, inputs: Tensor) -> tuple[Any, tuple[Node, ...]]:
    """Export and put torchao's observers where something will be rounded."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    exported = _exported(model, inputs).module()
    layers = _layers(exported)
    try:
        return prepare_pt2e(exported, _quantizer()), layers
    except Exception as error:  # of the quantizer's patterns
        raise InputError(f"torchao cannot prepare it ({reason_of(error)})") from error


def _quantizer() -> Any:
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    values = QuantizationSpec(
        torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine, is_dynamic=False
    )
    weights = QuantizationSpec(
        torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0
    )
    config = QuantizationConfig(values, values, weights, None, False)
    return X86InductorQuantizer().set_global(config)


def _layers(exported: Any) -> tuple[Node, ...]:
    """List the operators that multiply with weights."""
    found = []
    for node in exported.graph.nodes:
        op = _operator(node)
        if op in _LAYERS and node.args[1].op == "get_attr":
            weight = str(node.args[1].target)
            module = weight.rpartition(".")[0] or None
            found.append(Node(node.name, op, module, weight, node.name))
    return tuple(found)


def _operator(node: Any) -> str:
    """`conv2d` of `torch.ops.aten.conv2d.padding`; empty where it is no operator."""
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else str(packet).rpartition(".")[2]


@torch.no_grad()
def _calibrate(
    observed: Any, batches: Iterable[Tensor], method: str
) -> dict[str, tuple[float, float]]:
    """Run the pictures and give each tensor its grid; return the ranges."""
    places = {name: each for name, each in _observers(observed) if _kind(each) == _VALUES}
    histograms = {name: Histogram() for name in places if method != "min-max"}
    hooks = [places[name].register_forward_pre_hook(_adding(h)) for name, h in histograms.items()]
    count = 0
    for batch in batches:
        observed(batch)
        count += len(batch)
    for hook in hooks:
        hook.remove()
    if not count:
        raise InputError("no images: ranges need at least one")
    ranges = {}
    for name, observer in places.items():
        seen = (float(observer.min_val), float(observer.max_val))
        ranges[name] = range_of(histograms[name], method) if name in histograms else seen
        _set_grid(observer, activation_grid(*ranges[name]))
    return ranges


def _adding(histogram: Histogram) -> Any:
    def add(_: nn.Module, values: tuple[Tensor, ...]) -> None:
        histogram.add(values[0].numpy())

    return add


def _observers(observed: Any) -> Iterator[tuple[str, Any]]:
    """Yield every observer once, with the name of the first operator whose value it sees."""
    met: set[int] = set()
    for node in observed.graph.nodes:
        if node.op != "call_module":
            continue
        module = observed.get_submodule(node.target)
        if _kind(module) in (_CHANNELS, _VALUES) and id(module) not in met:
            met.add(id(module))
            yield node.args[0].name, module


def _kind(module: nn.Module) -> str:
    return type(module).__name__


@torch.no_grad()
def _round_weights(observed: Any, per_channel: bool, bits: int) -> None:
    for _, observer in _observers(observed):
        if _kind(observer) == _CHANNELS:
            limits = torch.stack([observer.min_val, observer.max_val], dim=1)
            grid = weight_grid(limits, per_channel=per_channel, bits=bits)
            _set_grid(observer, grid, len(limits))


def _set_grid(observer: Any, grid: Grid, channels: int = 1) -> None:
    """Let an observer answer with our grid when torchao asks it."""
    scale = grid.scale.flatten().expand(channels).clone()
    zero_point = grid.zero_point.flatten().long().expand(channels).clone()
    observer.calculate_qparams = lambda: (scale, zero_point)


def _converted(observed: Any) -> Any:
    """Replace observers by roundings, weights by integers, and drop what is not read."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    try:
        converted = convert_pt2e(observed)
    except Exception as error:  # of its passes
        raise InputError(f"torchao cannot convert it ({reason_of(error)})") from error
    read = {str(node.target) for node in converted.graph.nodes if node.op == "get_attr"}
    for name in [*dict(converted.named_parameters()), *dict(converted.named_buffers())]:
        if name not in read:
            place, _, own = name.rpartition(".")
            delattr(converted.get_submodule(place), own)
    return converted


def _kept_float(converted: Any, layers: tuple[Node, ...]) -> tuple[str, ...]:
    nodes = {node.name: node for node in converted.graph.nodes}
    int8 = "dequantize_per_channel"
    return tuple(each.name for each in layers if _operator(nodes[each.name].args[1]) != int8)


def _strip(program: Any) -> None:
    """Take out of a program what tells of this machine, and the batch it was traced with."""
    program.example_inputs = None
    for node in program.graph.nodes:
        for name in ("stack_trace", "nn_module_stack", "torch_fn", "from_node"):
            node.meta.pop(name, None)
