"""Options of paired training, `normapps translate train --maps`; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ...options import option
from .options import FrameOptions

HINGE = "hinge"
"""The loss of the paper, and the only one here."""


@dataclass(frozen=True)
class PairedOptions(FrameOptions):
    """From label maps to pictures, learned from pairs of one name.

    The paper (Park et al. 2019, section 4) has rates of 1e-4 and 4e-4 (`lr`, `d_lr`), a width of
    64, 128 hidden channels, and no held-out pairs.

    Raises:
        InputError: a value out of range, or a size that does not fit; the line names the flag.
    """

    lr: float = option(1e-4, "the generator's rate of Adam; falls over the second half", low=0)
    maps: str = option("", "folder, zip or tar of label maps: PNG of class ids, or of colours")
    target: str = option("", "folder, zip or tar of pictures, called as their maps")
    ignore: tuple[str, ...] = option((), "an id (255) or colour (#ff00ff) that is no class")
    hold_out: int = option(10, "every how many-th pair is kept for the samples (0: none)", low=0)
    d_lr: float = option(4e-4, "the discriminator's rate of Adam", low=0)
    feature_weight: float = option(10.0, "weight of feature matching", low=0)
    width: int = option(32, "channels of the generator at full resolution", low=4)
    ups: int = option(4, "doublings of the generator", low=1, high=8)
    hidden: int = option(64, "channels inside each SPADE", low=4)
    latent: int = option(0, "numbers of a latent that varies the picture (0: none)", low=0)
    base: str = option(
        "batch", "normalization under SPADE: batch (the paper) or instance",
        choices=("batch", "instance"),
    )  # fmt: skip
    d_width: int = option(32, "channels of the discriminator's first layer", low=4)
    d_layers: int = option(3, "layers of the discriminator before its scores", low=1, high=6)
    scales: int = option(2, "sizes at which the discriminator looks", low=1, high=4)
    flip: float = option(0.5, "augmentation: probability of mirroring a pair", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_out == 1:
            raise InputError("--hold-out 1: keeps every pair; must be 0, or at least 2")
        if self.size % 2**self.ups:
            raise InputError(
                f"--size {self.size}: must be a multiple of {2**self.ups}, 2 to the --ups "
                f"{self.ups}"
            )
