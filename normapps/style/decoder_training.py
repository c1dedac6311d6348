"""Training the decoder of the classic AdaIN on a VGG-19 that stays as it is.

Huang & Belongie 2017, sec. 5-6, with the losses of `training`: the distance of features
standardized a map does not change with a map's mean and deviation, so that the content's target
is AdaIN's own output, as there. VGG is normalised as in the paper, whichever weights it has.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.distributed import World
from ..models.folder import save_model
from ..models.vgg import Vgg19, load_vgg19
from ..models.vgg_cascade import VggCascade
from ..norm import INSTANCE, Moments, transfer
from .draws import as_tensor, sources
from .options import TrainOptions
from .training import StyleTask

_ARGUMENTS = {"layers": ["relu4_1"], "method": "adain"}
_SAMPLE, _SAMPLE_SIDE = 8, 160
"""Photographs, and their side, over which VGG's mean activations are taken."""
_LEAST = 1e-3
"""A channel that is hardly ever active is scaled as if its mean were this share of the largest."""


class DecoderTask(StyleTask):
    """Decoder, average, optimizer and step of one run of `style train --model vgg-adain`."""

    def __init__(self, options: TrainOptions, here: World, device: torch.device) -> None:
        # the recipe of the other model, whose options these are, at VGG's own size
        recipe = dataclasses.replace(options, model="adain-tiny", paint=1, methods=("adain",))
        super().__init__(recipe, here, device)

    def fresh(self) -> nn.Module:
        """Return the network with a decoder by the seed and the user's VGG, normalised."""
        torch.manual_seed(self.options.seed)
        network = TrainedDecoder()
        encoder = network.cascade.stages[0].encoder
        encoder.load_state_dict(load_vgg19(self.options.vgg, "relu4_1").state_dict())
        normalize_activations_(encoder, _photographs(self.options))
        encoder.requires_grad_(False)
        return network

    def show(self, content: Tensor, style: Tensor) -> Tensor:
        """Return the contents (N, 3, S, S) as they are, as in the paper."""
        return content

    def finish(self, output: Tensor, shown: Tensor) -> Tensor:
        """Return the output (N, 3, S, S) as it is."""
        return output

    def publish(self, folder: Path, step: int) -> None:
        """Write encoder and averaged decoder as a model folder, in half precision."""
        network = VggCascade(("relu4_1",), method="adain")
        state = self.average.state_dict()
        network.load_state_dict({k.removeprefix("cascade."): v for k, v in state.items()})
        save_model(
            folder,
            network.half(),
            builder="vgg-cascade",
            arguments=_ARGUMENTS,
            history=[{"step": step, "trained": "normapps style train --model vgg-adain"}],
            overwrite=True,
        )


class TrainedDecoder(nn.Module):
    """What a step runs: encoder, AdaIN, decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.cascade = VggCascade(("relu4_1",), method="adain")

    def forward(
        self, content: Tensor, style: Tensor, method: str = "adain"
    ) -> tuple[Tensor, Tensor]:
        """Return the N stylized pictures, and the first content reconstructed.

        Args:
            content, style: (N, 3, H, W) in [0, 1].
            method: see `norm.transfer`.
        """
        (level,) = self.cascade.stages
        with torch.no_grad():
            features, wanted = level.encode(content), level.encode(style)
            moments = Moments.of(wanted, INSTANCE, full=method != "adain")
            moved = transfer(features, moments, method)
        height, width = content.shape[2:]
        drawn = level.decode(torch.cat([moved, features[:1]]))[..., :height, :width]
        return drawn[:-1], drawn[-1:]


@torch.no_grad()
def normalize_activations_(vgg: Vgg19, image: Tensor) -> None:
    """Scale every channel so that its mean over pictures and positions is 1, in place.

    Gatys et al. 2016, sec. 2. The next layer undoes it, so that nothing else changes.

    Args:
        vgg: any; its pooling and padding are kept.
        image: (N, 3, H, W) in [0, 1].
    """
    x, before = vgg.input(image), image.new_ones(3)
    for name, conv in vgg.convs.items():
        if not isinstance(conv, nn.Conv2d) or conv.bias is None:
            continue
        if name.endswith("_1") and name != "relu1_1":
            x = F.max_pool2d(x, 2, ceil_mode=vgg.ceil_mode)
        conv.weight.mul_(before[None, :, None, None])
        x = F.relu(conv(x))
        before = x.mean((0, 2, 3))
        before = before.clamp_min(_LEAST * float(before.max()))
        conv.weight.div_(before[:, None, None, None])
        conv.bias.div_(before)
        x = x / before[:, None, None]


def _photographs(options: TrainOptions) -> Tensor:
    """The same crops of contents for every process and call."""
    contents, _ = sources(options)
    rng = np.random.default_rng([options.seed, 0x4064])
    picks = np.linspace(0, len(contents) - 1, _SAMPLE).astype(int)
    squares = [contents.crop(int(i), rng, _SAMPLE_SIDE, 1.0) for i in picks]
    return as_tensor(squares, torch.device("cpu"))
