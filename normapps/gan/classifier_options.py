"""Options of `gan classifier`; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..options import option
from ..training.options import FitOptions


@dataclass(frozen=True)
class ClassifierOptions(FitOptions):
    """How the small classifier is trained whose features a GAN is scored by.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: a part of the network would stay as random as it begins.
    """

    data: str = option(
        "fashion-mnist", "labelled pictures: a folder a class, a ZIP, IDX files, .npz, or a name"
    )
    test: str = option("", "labelled pictures to measure on; else the part `test` of the data")
    hold_out: int = option(
        0, "measure on every n-th picture, not trained on, in the place of a part `test`", low=0
    )
    size: int = option(28, "side of the pictures, pixels", low=8)
    channels: int = option(0, "1 grey, 3 colour, 0 as the data have it", low=0, high=3)
    width: int = option(28, "channels of the first block; the features are four times as many",
                        low=1)  # fmt: skip
    limit: int | None = option(None, "the most pictures", low=1)
    workers: int | None = option(None, "threads that decode (default: one a core, up to 8)", low=0)
    steps: int = option(5000, "optimizer steps of the whole run", low=1)
    batch_size: int = option(128, "pictures a step and process", low=2)
    optimizer: str = option("adam", "sgd (momentum 0.9) or adam (AdamW)", choices=("sgd", "adam"))
    lr: float = option(0.004, "peak learning rate; 0.1 is usual for sgd", low=0)
    weight_decay: float = option(0.02, "of weights, not of norm layers and biases", low=0)
    warmup: int = option(200, "steps in which the rate rises", low=0)
    crop: float = option(
        1.0, "augmentation: smallest side of the window that is scaled up", low=0.05, high=1
    )
    shift: float = option(0.05, "augmentation: largest shift, share of the side", low=0, high=0.5)
    jitter: float = option(
        0.0, "augmentation: of brightness, contrast, saturation", low=0, high=0.9
    )
    overwrite: bool = option(False, "start the run anew if the folder holds one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test and self.hold_out:
            raise UsageError("--test and --hold-out: give one of the two")
        if self.channels == 2:
            raise UsageError("--channels 2: choose 0, 1 or 3")
        if self.train != "all":
            raise UsageError(f"--train {self.train}: fresh weights must all be trained")

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the options that a resumed run must share."""
        return tuple(name for name in super().fixed if name != "test")
