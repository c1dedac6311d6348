"""Rules of operations by elements that scaled and shifted channels have in common.

Layers start new atoms, moves carry them, pooling and resampling pass them channel by channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .elements import Found, Rule, Step, fixed, small
from .layer_graph import Clip, Layer

MIXED = "{where} does not keep its channels in one dimension"
COMPUTED = "{where} has no weight that is a parameter itself"
OTHER = "{where} takes {op} of them"


def unknown(step: Step) -> Found:
    """Keep what an operation without a rule reads; its results may not change."""
    seen = [step.atoms(each) for each in step.tensors]
    for atoms in seen:
        step.pin(atoms, OTHER)
    if all(atoms is None for atoms in seen):
        return [None] * len(step.outputs)
    return [fixed(output) for output in step.outputs]


# Layers


def convolution(step: Step) -> Found:
    """(N, I, …) with weight (O, I/groups, …), or (I, O/groups, …) transposed."""
    transposed, padded = bool(step["transposed"]), any(step["padding"])
    make = partial(Layer, groups=step["groups"], transposed=transposed, padded=padded)
    return _layer(step, step["input"], step["weight"], step["bias"], make, dim=1)


def _linear(step: Step) -> Found:
    return _layer(step, step["input"], step["weight"], step["bias"])


def _addmm(step: Step) -> Found:
    """bias + mat1 · mat2, mat2 a weight turned."""
    if step["beta"] != 1 or step["alpha"] != 1:
        return unknown(step)
    return _layer(step, step["mat1"], step["mat2"], step["self"], turned=True)


def _mm(step: Step) -> Found:
    return _layer(step, step["self"], step["mat2"], None, turned=True)


def _layer(
    step: Step,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    make: Callable[..., Layer] = Layer,
    *,
    dim: int = -1,
    turned: bool = False,
) -> Found:
    """Note a layer and start its output's atoms; without a weight of its own, keep the input."""
    atoms, given = step.atoms(x), [step.label(each) for each in (weight, bias) if each is not None]
    if atoms is None or any(each.atoms is not None for each in given):
        step.elements.spoil(step.tensors)
        return unknown(step)
    if given[0].turned != turned or not all(each.source for each in given):
        step.elements.spoil(step.tensors)
        step.pin(atoms, COMPUTED)
        return [fixed(step.outputs[0])]
    name, *biases = [str(each.source) for each in given]
    inputs = step.along(atoms, dim, MIXED)
    out = step.elements.fresh(step.outputs[0].shape[dim])
    module = name.rpartition(".")[0]
    _note(step, make(module, name, tuple(biases), inputs.numpy(), out.numpy()))
    return [step.spread(out, dim)]


def _note(step: Step, layer: Layer) -> None:
    """A weight or bias that runs again ties what it makes and reads to what it did before."""
    layers = step.elements.layers
    for other in layers.values():
        if set(layer.biases) & set(other.biases) or layer.weight == other.weight:
            _tie(step, layer.out, other.out)
    before = layers.setdefault(layer.weight, layer)
    if before is not layer:
        _tie(step, layer.inputs, before.inputs)
        biases = dict.fromkeys((*before.biases, *layer.biases))
        layers[layer.weight] = dataclasses.replace(before, biases=tuple(biases))


def _tie(step: Step, first: Any, second: Any) -> None:
    pair = torch.from_numpy(first), torch.from_numpy(second)
    if len(pair[0]) == len(pair[1]):
        step.tie(*pair, "{where} shares a weight that may not change")
    else:
        for atoms in pair:
            step.pin(atoms, "{where} shares a weight")


# Moves


def _view(step: Step) -> Found:
    atoms = step.atoms("self")
    return [None if atoms is None else atoms.reshape(step.outputs[0].shape)]


def _move(step: Step) -> Found:
    """Run the operation on the atoms; constants among the arguments may not change."""
    seen = [step.atoms(each) for each in step.tensors]
    if all(atoms is None for atoms in seen):
        return [None] * len(step.outputs)

    def stand_in(tensor: Tensor) -> Tensor:
        atoms = step.atoms(tensor)
        return fixed(tensor) if atoms is None else atoms

    return list(step.run(stand_in))


def _index(step: Step) -> Found:
    """Fancy indexing by constants; an index computed of the input is unknown."""
    atoms = step.atoms("self")
    indices = step["indices"] if step.name == "index" else [step["index"]]
    if any(step.atoms(index) is not None for index in indices):
        return unknown(step)
    if atoms is None:
        return [None]
    found: Found = list(step.run(lambda tensor: atoms if tensor is step["self"] else tensor))
    return found


# Channel by channel


def same(step: Step) -> Found:
    """Pass atoms on, element by element."""
    atoms = step.atoms("self")
    return [atoms if atoms is None else atoms.expand(step.outputs[0].shape)]


def _copy(step: Step) -> Found:
    """What is written in the place of other numbers."""
    atoms = step.atoms("src")
    return [None if atoms is None else atoms.expand(step.outputs[0].shape)]


def rectified(step: Step) -> Found:
    """Pass atoms on, and note that a ReLU read them."""
    atoms = step.atoms("self")
    if atoms is not None:
        step.elements.rectified.append(small(atoms).unique().numpy())
    return [atoms]


def _resized(step: Step) -> Found:
    """Pooling, resampling, padding of positions: dimensions of another size must be of one atom."""
    atoms = step.atoms("self" if "self" in step.values else "input")
    if atoms is None:
        return [None] * len(step.outputs)
    rank = _ranks(step)
    if any(stride != 0 and size > 1 for stride, size in _lasts(atoms, rank)):
        return unknown(step)
    core = atoms
    for dim in range(-rank, 0):
        core = core.narrow(dim, 0, 1)
    found: Found = [core.expand(output.shape) for output in step.outputs]
    return [*found[:1], *[fixed(places) for places in step.outputs[1:]]]


def _lasts(atoms: Tensor, rank: int) -> list[tuple[int, int]]:
    return list(zip(atoms.stride()[-rank:], atoms.shape[-rank:], strict=True))


def _ranks(step: Step) -> int:
    """Dimensions of position: the digit in an operation's name, as 2 of `avg_pool2d`."""
    return next(int(letter) for letter in reversed(step.name) if letter in "123")


def _pad(step: Step) -> Found:
    """Padding with zeros: of positions, or channels of zeros, which start atoms of their own."""
    atoms, pads = step.atoms("self"), step["pad"]
    if atoms is None or step["value"] not in (0, None):
        return unknown(step)
    for position in range(len(pads) // 2):
        dim = atoms.dim() - 1 - position
        atoms = _padded(step, atoms, dim, pads[2 * position], pads[2 * position + 1])
    return [atoms]


def _padded(step: Step, atoms: Tensor, dim: int, before: int, after: int) -> Tensor:
    lead, rest = atoms.shape[:dim], atoms.shape[dim + 1 :]
    if atoms.stride(dim) == 0 or atoms.shape[dim] == 1:
        size = atoms.shape[dim] + before + after
        return atoms.narrow(dim, 0, 1).expand(*lead, size, *rest)

    def zeros(count: int) -> Tensor:
        fresh = step.elements.fresh(max(count, 0))
        return fresh.view(-1, *[1] * len(rest)).expand(*lead, len(fresh), *rest)

    start, stop = max(0, -before), atoms.shape[dim] + min(0, after)
    return torch.cat([zeros(before), atoms.narrow(dim, start, stop - start), zeros(after)], dim)


def reduced(step: Step) -> Found:
    """A mean or extreme over dimensions of one atom."""
    atoms, dims = step.atoms("self"), step["dim"]
    if atoms is None:
        return [None] * len(step.outputs)
    chosen = range(atoms.dim()) if dims is None or dims == [] else dims
    gone = {dim % atoms.dim() for dim in (chosen if not isinstance(chosen, int) else [chosen])}
    if any(atoms.stride(dim) != 0 and atoms.shape[dim] > 1 for dim in gone):
        return unknown(step)
    at = tuple(slice(0, 1) if dim in gone else slice(None) for dim in range(atoms.dim()))
    return [atoms[at].reshape(output.shape) for output in step.outputs]


def clipped(step: Step) -> Found:
    """Clipping at fixed bounds: passed on and noted where a module of its own does it."""
    atoms = step.atoms("self")
    if atoms is None or not _clips(step.module):
        return unknown(step)
    if atoms.dim() < 2:
        return unknown(step)
    channels = step.along(atoms, 1, MIXED)
    before = step.elements.clips.setdefault(step.owner, Clip(step.owner, channels.numpy()))
    _tie(step, channels.numpy(), before.atoms)
    return [step.spread(channels, 1)]


def _clips(module: nn.Module) -> bool:
    return isinstance(module, nn.Hardtanh) or bool(getattr(module, "clips_channels", False))


_MOVES = (
    "permute transpose t numpy_T squeeze unsqueeze expand repeat cat stack split split_with_sizes"
    " slice select unbind flip roll pixel_shuffle pixel_unshuffle channel_shuffle"
    " native_channel_shuffle unfold diagonal"
)
_SAME = "alias clone contiguous detach lift lift_fresh positive _to_copy"
_POOLS = "avg_pool{}d adaptive_avg_pool{}d _adaptive_avg_pool{}d reflection_pad{}d"
_EXTREMES = "adaptive_max_pool{}d max_pool{}d max_pool{}d_with_indices replication_pad{}d"
_RESIZES = (
    "upsample_nearest{}d _upsample_nearest_exact{}d upsample_linear{}d upsample_bilinear{}d"
    " upsample_bicubic{}d upsample_trilinear{}d _upsample_bilinear{}d_aa _upsample_bicubic{}d_aa"
)

SHARED: dict[str, Rule] = {
    **dict.fromkeys(["convolution", "convolution_overrideable", "_convolution"], convolution),
    "linear": _linear,
    "addmm": _addmm,
    "mm": _mm,
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "_reshape_alias"], _view),
    **dict.fromkeys(_MOVES.split(), _move),
    **dict.fromkeys(["index", "index_select"], _index),
    **dict.fromkeys(_SAME.split(), same),
    **{
        name.format(n): _resized
        for n in (1, 2, 3)
        for name in f"{_POOLS} {_EXTREMES} {_RESIZES}".split()
    },
    "copy": _copy,
    "constant_pad_nd": _pad,
    **dict.fromkeys(["mean", "amax", "amin"], reduced),
    "relu": rectified,
}
"""Operation → rule."""
