"""Other people's weight files of the classic stylizers, read into one `VggCascade`.

Two layouts: the Sequential state dicts of WCT and AdaIN (`vgg_normalised*.pth`, `decoder.pth`,
`feature_invertor_conv*_1.pth`; names are indices), and the named convolutions of Collaborative
Distillation (Wang et al., CVPR 2020: `5SE.pth`, `5SD.pth`). Which file is what is seen from its
tensors, never from its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .checkpoint import without_prefixes
from .shipped import read_weights
from .vgg import layer_names
from .vgg_cascade import LAYERS, VggCascade

SUFFIXES = (".pth", ".pt", ".safetensors", ".tar")
"""Of the files that are looked at in a folder."""

_NAMED = re.compile(r"conv(\d)(\d)\.weight")
_INDEXED = re.compile(r"(\d+)\.weight")

Conv = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Part:
    """An encoder or decoder: its convolutions in the order in which they run."""

    file: Path
    convs: tuple[Conv, ...]
    is_encoder: bool
    rectified: bool

    def covers(self, count: int) -> bool:
        """Whether the first `count` convolutions reach a level that a decoder starts from."""
        return self.is_encoder and len(self.convs) > count


def read_cascade(
    files: Iterable[str | os.PathLike[str]], method: str = ""
) -> tuple[VggCascade, dict[str, Any]]:
    """Read encoders and decoders into a network.

    Args:
        files: weight files, or folders of them. Each decoder makes a level; an encoder that goes
            deeper serves the levels above it that have none of their own.
        method: the network's default; `adain` for a single level and `wct` for more where empty.

    Returns:
        The network in evaluation mode on the CPU, and the arguments of builder `vgg-cascade`.

    Raises:
        InputError: naming the file that is none of these networks, cannot be read, has no
            counterpart, or does not fit it.
    """
    parts = [_read_part(file) for file in weight_files(files)]
    decoders = sorted((p for p in parts if not p.is_encoder), key=lambda part: -len(part.convs))
    if not decoders:
        raise InputError(f"{parts[0].file}: no decoder is among the files; add the decoder's too")
    levels = [(_encoder_for(decoder, parts), decoder) for decoder in decoders]
    arguments: dict[str, Any] = {
        "layers": [_layer(decoder) for decoder in decoders],
        "widths": [_widths(encoder, _layer(decoder)) for encoder, decoder in levels],
        "method": method or ("adain" if len(levels) == 1 else "wct"),
        "rectified": decoders[0].rectified,
    }
    network = VggCascade(**arguments)
    for level, (encoder, decoder) in zip(network.stages, levels, strict=True):
        _copy_([level.encoder.input, *level.encoder.convs.values()], encoder)
        _copy_(list(level.decoder.convs.values()), decoder)
    return network.eval().requires_grad_(False), arguments


def weight_files(files: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List files and, of folders, those in them that can hold weights, sorted.

    Raises:
        InputError: a path is not there, or a folder has none.
    """
    found: list[Path] = []
    for path in map(Path, files):
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not inside or not path.exists():
            raise InputError(f"{path}: no weight files ({', '.join(SUFFIXES)}) there; name them")
        found += inside
    if not found:
        raise InputError("no files given; name the weight files of an encoder and a decoder")
    return found


def _read_part(file: Path) -> _Part:
    state = read_weights(file)
    state = without_prefixes(state, [f"{i}.weight" for i in range(60)])
    named = {key: match for key in state if (match := _NAMED.fullmatch(key))}
    indexed = [key for key in state if _INDEXED.fullmatch(key)]
    if named:
        first = ["conv0.weight"] if "conv0.weight" in state else []
        keys = first + sorted(named, key=lambda k: named[k].groups(), reverse=not first)
    else:
        keys = sorted(indexed, key=lambda key: int(key.split(".")[0]))
    convs = tuple((state[key].float(), _bias(state, key)) for key in keys)
    if not convs or any(weight.dim() != 4 for weight, _ in convs):
        raise InputError(f"{file}: is no VGG encoder or decoder of WCT or AdaIN; leave it out")
    is_encoder = convs[0][0].shape == (3, 3, 1, 1)
    if not is_encoder and convs[-1][0].shape[0] != 3:
        raise InputError(
            f"{file}: is neither an encoder (it begins with no 1x1 convolution of the colours) "
            "nor a decoder (it does not end in a picture); leave it out"
        )
    return _Part(file, convs, is_encoder, bool(named))


def _bias(state: Mapping[str, Tensor], key: str) -> Tensor:
    bias = state.get(key.replace("weight", "bias"))
    return torch.zeros(len(state[key])) if bias is None else bias.float()


def _layer(decoder: _Part) -> str:
    for layer in LAYERS:
        if len(layer_names(layer)) == len(decoder.convs):
            return layer
    raise InputError(
        f"{decoder.file}: has {len(decoder.convs)} convolutions, which mirrors none of "
        f"{', '.join(LAYERS)}; leave it out"
    )


def _encoder_for(decoder: _Part, parts: Sequence[_Part]) -> _Part:
    """The smallest encoder that reaches the decoder's level with its channels."""
    count, channels = len(decoder.convs), decoder.convs[0][0].shape[1]
    fitting = [
        part for part in parts if part.covers(count) and part.convs[count][0].shape[0] == channels
    ]
    if not fitting:
        raise InputError(
            f"{decoder.file}: no encoder to {_layer(decoder)} of {channels} channels is among "
            "the files; add it"
        )
    return min(fitting, key=lambda part: len(part.convs))


def _widths(encoder: _Part, layer: str) -> list[int]:
    """Channels of the five blocks; of those that the level does not reach, the last one's."""
    widths = [0] * 5
    for name, (weight, _) in zip(layer_names(layer), encoder.convs[1:], strict=False):
        widths[int(name[4]) - 1] = weight.shape[0]
    return [width or max(widths) for width in widths]


@torch.no_grad()
def _copy_(layers: Sequence[nn.Module], part: _Part) -> None:
    for i, (layer, (weight, bias)) in enumerate(zip(layers, part.convs, strict=False)):
        if not isinstance(layer, nn.Conv2d) or layer.weight.shape != weight.shape:
            wanted = tuple(getattr(layer, "weight", weight).shape)
            raise InputError(
                f"{part.file}: convolution {i} is {tuple(weight.shape)}, not {wanted}; "
                "is it of another network?"
            )
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
