"""β-compensation: a channel whose scale is 0 is a constant, and constants move into biases.

Data-free (METHODS: a channel with γ = 0 is the constant act(β), so what the next layer makes of
it, Σ_k W[:, dead]·act(β), can be added to the next bias or subtracted from the next batch norm's
running mean). The constants are not derived from patterns of layers but measured: the scales of
the doomed channels are set to 0, the model runs once, and each convolution or linear layer is
asked what its doomed inputs add to its outputs.

All is measured in that one run, for a correction changes no other: with γ = 0 a batch norm returns
β whatever comes in. Two things are not quite constant, and are then corrected in the mean and
reported: what a convolution with zero padding adds near its border, and channels behind a gate
(squeeze-and-excitation), which depend on the input. The mean rather than the value away from
the border, because it leaves no error in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import InputError
from ..graph.graph import Atoms, ChannelGraph, Keep
from ..models.slimmed import Edits
from ..norm.undo import Undo
from .reading import LAYERS, Reading, listen, owner_of


@dataclass(frozen=True)
class Correction:
    """What was done for one weight that reads doomed channels.

    The last three are in standard deviations σ: where a batch norm comes next, its running one of
    the output in question; else the one of all outputs of the layer together, over channels as
    well, because what `inputs` do to a single one may be next to nothing.

    Attributes:
        weight: its name in the model's state.
        into: the tensor that was changed: a bias, or a batch norm's running mean.
        is_new: the bias was not there before.
        channels: doomed inputs of the weight.
        shift: the largest change of an output.
        off: largest distance of what the channels added, at any position and input, from the
            change: 0 where the compensation is exact.
        off_mean: root mean square of the same distance, over positions, inputs and outputs.
    """

    weight: str
    into: str
    is_new: bool
    channels: int
    shift: float
    off: float
    off_mean: float


class Compensation(Undo):
    """What `compensate_` did; calling it, or leaving its `with` block, takes it back.

    Attributes:
        corrections: in order of execution; none where the doomed channels say 0, so that no
            layer gets a new bias of 0.
        missed: weights that read doomed channels and could not be compensated, because they are
            never called, are computed from other weights, or have no place for a bias.
        graph: the channel graph with the new biases.
    """

    corrections: tuple[Correction, ...] = ()
    missed: tuple[str, ...] = ()

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__()
        self.graph = graph

    @property
    def off(self) -> float:
        """The largest of all layers' `off`; 0 where nothing was to be corrected."""
        return max((each.off for each in self.corrections), default=0.0)

    def complete(self, edits: Edits) -> Edits:
        """Return the edits of a network cut after this, with the new biases that kept their size.

        `slim_model` lists tensors that shrank; a fresh base has no new bias of any size.
        """
        new = (each.into for each in self.corrections if each.is_new)
        shapes = {name: list(self.graph.shapes[name]) for name in new}
        return replace(edits, shapes={**shapes, **edits.shapes})


@torch.no_grad()
def compensate_(model: nn.Module, graph: ChannelGraph, keep: Keep, inputs: Any) -> Compensation:
    """Move what doomed channels always say into the layers that stay, and silence the channels.

    Afterwards γ and β of the doomed channels are 0, and cutting them out changes nothing: the
    oracle of `normapps.graph.oracle` proves it. The result equals the model with these γ = 0 and
    their β kept, up to the `off` of the corrections.

    Args:
        model: with all its channels; changed in place, run once in evaluation mode.
        graph: of it.
        keep: (count,) bool, False for the doomed.
        inputs: a tensor (N, ...) or a tuple of positional arguments: noise (`noise`) will do
            unless channels are gated, which are then measured in the mean over the inputs.

    Raises:
        InputError: `keep` is of another graph; or the model's outputs on `inputs` are not finite.
            Nothing has changed then.
    """
    if keep.shape != (graph.count,) or keep.dtype != bool:
        raise InputError(
            f"keep is {keep.shape} {keep.dtype}; the channel graph has {graph.count} atoms,"
            f" so it must be ({graph.count},) bool"
        )
    done = Compensation(graph)
    try:
        _silence_(model, graph, keep, "weight", done)
        readings, missed = listen(model, graph, keep, inputs)
        _check(readings)
        _silence_(model, graph, keep, "bias", done)
        said = [each for each in readings if bool((each.low != 0).any() | (each.high != 0).any())]
        tried = [(each.weight, _correct_(model, each, keep, done)) for each in said]
    except BaseException:
        done()
        raise
    done.corrections = tuple(each for _, each in tried if each is not None)
    done.missed = (*missed, *(weight for weight, each in tried if each is None))
    return done


def noise(inputs: Tensor, count: int = 8, seed: int = 0) -> Tensor:
    """Return normal noise of the size of a model's input, where there are no pictures.

    Args:
        inputs: (N, ...) floating, whose size, dtype and device are taken.
        count: inputs to make.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, *inputs.shape[1:]), generator=generator).to(inputs)


def _check(readings: Sequence[Reading]) -> None:
    for each in readings:
        if not bool(each.added.mean.isfinite().all()):
            raise InputError(
                f"'{each.weight}': what the doomed channels add to its outputs is not finite;"
                " check the model's weights and the inputs"
            )


def _silence_(model: nn.Module, graph: ChannelGraph, keep: Keep, which: str, undo: Undo) -> None:
    """Set γ (`weight`) or β (`bias`) of the doomed channels to 0."""
    for layer, atoms in graph.scales.items():
        values = getattr(model.get_submodule(layer), which, None)
        doomed = torch.from_numpy(~keep[atoms])
        if values is not None and bool(doomed.any()):
            _change_(values, values.masked_fill(doomed.to(values.device), 0), undo)


def _correct_(
    model: nn.Module, reading: Reading, keep: Keep, done: Compensation
) -> Correction | None:
    """Add what the doomed channels say where it belongs; None where there is no place."""
    owner, prefix = owner_of(model, reading.weight), reading.weight.rpartition(".")[0]
    atoms = _output_atoms(owner, done.graph.slots[reading.weight])
    stays = torch.from_numpy(np.ones(len(reading.low), bool) if atoms is None else keep[atoms])
    shift = reading.added.mean[0].cpu().where(stays, 0)
    into, is_new = f"{prefix}.bias", False
    if isinstance(owner, LAYERS) and owner.bias is not None:
        _change_(owner.bias, owner.bias + shift.to(owner.bias), done)
    elif reading.norm is not None:
        into = f"{reading.norm}.running_mean"
        mean = model.get_buffer(into)
        _change_(mean, mean - shift.to(mean), done)
    elif isinstance(owner, LAYERS):
        is_new = True
        _give_bias_(owner, shift, done)
        done.graph = _with_bias(done.graph, into, atoms, len(shift))
    else:
        return None
    return _describe(reading, into, is_new, _spread(model, reading), stays)


def _with_bias(graph: ChannelGraph, name: str, atoms: Atoms | None, size: int) -> ChannelGraph:
    return replace(
        graph,
        slots={**graph.slots, name: (atoms,)},
        shapes={**graph.shapes, name: (size,)},
        parameter_names=(*graph.parameter_names, name),
    )


def _output_atoms(owner: nn.Module, slots: Sequence[Atoms | None]) -> Atoms | None:
    """Return the atom of each output of a weight, None where they are never cut."""
    if not isinstance(owner, _ConvNd) or not owner.transposed:
        return slots[0]
    return None if slots[1] is None else np.tile(slots[1], owner.groups)


def _spread(model: nn.Module, reading: Reading) -> Tensor:
    """Return the deviation that counts for each output, (O,) float64; 1 where there is none."""
    if reading.norm is not None:
        var = model.get_buffer(f"{reading.norm}.running_var").double()
    else:
        mean, own = reading.outputs.mean[0], reading.outputs.var[0]
        var = (own.mean() + mean.var(correction=0)).expand_as(own)
    return var.where(var > 0, 1).sqrt().cpu()


def _describe(
    reading: Reading, into: str, is_new: bool, spread: Tensor, stays: Tensor
) -> Correction:
    mean, var, low, high = (
        each.cpu()[stays]
        for each in (reading.added.mean[0], reading.added.var[0], reading.low, reading.high)
    )
    unit = spread[stays]
    off = torch.maximum(high - mean, mean - low) / unit
    return Correction(
        reading.weight,
        into,
        is_new,
        reading.channels,
        float((mean.abs() / unit).amax()),
        float(off.amax()),
        float((var / unit.square()).mean().sqrt()),
    )


def _give_bias_(owner: nn.Module, values: Tensor, undo: Undo) -> None:
    weight = owner.get_parameter("weight")
    undo.add(lambda: owner.register_parameter("bias", None))
    owner.register_parameter("bias", nn.Parameter(values.to(weight), weight.requires_grad))


def _change_(tensor: Tensor, values: Tensor, undo: Undo) -> None:
    old = tensor.detach().clone()
    undo.add(lambda: _write_(tensor, old))
    tensor.copy_(values)


@torch.no_grad()
def _write_(tensor: Tensor, values: Tensor) -> None:
    tensor.copy_(values)
