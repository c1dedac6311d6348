"""Options of `normapps stylize`, apart from the others: each class costs a start a millisecond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..options import device_option, option, validate

PRESET = "preset:"
"""What a shipped style's name begins with, such as `preset:ink`."""

SUFFIX = ".style"
"""What a style file's name ends with."""

METHODS = ("adain", "wct", "ot", "cholesky")
"""Maps that give features a style's moments: `normapps.norm.TRANSFERS`, adain-tiny's own first."""

AUTO = "auto"
"""Stands for the network's own among them: adain of adain-tiny and vgg-adain, wct of wct16."""

MODES = ("paint", "photo", "color")
"""What becomes of a photo: a painting, a photo of other colours and light (`--photo`), or itself in
other colours (`--color-only`)."""

DETAIL = 0.4
"""The photo's share in the finest lines of what adain-tiny paints, which is trained with 0.35."""

MOST = 65_500
"""Pixels of a side at most, as JPEG has it: a slip of the keys would fill the memory."""

CLIP_CODECS = ("auto", "h264", "hevc", "vp9")
"""Values of `--codec`; auto is h264, in WebM vp9."""

_CLOCK = r"([0-9]+:){0,2}[0-9]+(\.[0-9]+)?"


@dataclass(frozen=True)
class StylizeOptions:
    """Stylization of pictures, in the order of the command's flags."""

    style: tuple[str, ...] = option(
        (), "painting, .style file or preset:NAME; repeatable, every picture gets each"
    )
    style_weights: str = option("", "blend the styles instead: a weight for each, such as 0.7,0.3")
    mask: tuple[str, ...] = option(
        (),
        "where a style goes: white in a drawing, or what a cut-out shows; one for each --style, or "
        "all but the last, which gets the rest",
    )
    mask_feather: float = option(
        0.0, "pixels of the result over which a mask's edges fade", low=0, high=10_000
    )
    output: str = option(
        "", "file for one result, folder for several, - for standard output", short="-o"
    )
    model: str = option("adain-tiny", "name that normapps models list prints, or a model folder")
    method: str = option(
        AUTO,
        "what of the features is moved: means and variances (adain), or covariances too; "
        "auto as the model has it",
        choices=(AUTO, *METHODS),
    )
    alpha: float = option(1.0, "strength: 0 the photo, 1 the full style", low=0, high=1)
    detail: float | None = option(
        None,
        "share of the photo's own in the finest lines: 0 brush strokes alone, 1 no hatching; else "
        f"the model's ({DETAIL} of adain-tiny, 0 of others)",
        low=0,
        high=1,
    )
    size: int | None = option(
        None, "long side of the result, pixels; else the photo's own", low=1, high=MOST
    )
    style_size: int = option(
        512, "long side at which a painting is looked at, pixels", low=16, high=MOST
    )
    preserve_color: str = option(
        "none",
        "keep the photo's colours: its chroma (luma) or its palette (transport)",
        choices=("none", "luma", "transport"),
    )
    photo: bool = option(
        False, "stay a photo: take the painting's colours and light place by place, not its strokes"
    )
    color_only: bool = option(
        False, "take the painting's colours and change nothing else", also="--colour-only"
    )
    runtime: str = option(
        "torch",
        "what computes: onnx starts faster, on the CPU alone, and needs no torch",
        choices=("torch", "onnx"),
    )
    tile: str = option(
        "auto",
        "auto (large pictures only), or the side, 64 pixels or more, of the tiles a picture is cut "
        "into: less memory, same result",
        pattern=r"auto|6[4-9]|[7-9][0-9]|[1-9][0-9]{2,8}",
    )
    device: str = device_option()
    dtype: str = option(
        "auto",
        "precision of the network; auto is bfloat16 where the device has it",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = option(
        False, "compile for a CUDA device: a minute for each size of picture, faster after it"
    )
    seed: int = option(0, "for methods that draw random numbers; adain-tiny draws none", low=0)
    quality: int = option(92, "of JPEG, WebP and clips", low=1, high=100)
    max_pixels: int | None = option(None, "largest picture to open, for files you trust", low=1)
    fps: float | None = option(
        None, "clips: frames a second of the result; else the clip's own", low=0.01, high=1000
    )
    start: str | None = option(None, "seconds or H:M:S at which to begin in a clip", pattern=_CLOCK)
    end: str | None = option(None, "seconds or H:M:S at which to stop in a clip", pattern=_CLOCK)
    smooth: float = option(
        0.5,
        "clips: seconds over which the picture's statistics are averaged against flicker; 0 paints "
        "every frame by itself",
        low=0,
        high=3600,
    )
    codec: str = option("auto", "clips: how the result is encoded", choices=CLIP_CODECS)
    overwrite: bool = option(False, "replace files that exist")

    def __post_init__(self) -> None:
        validate(self)
        if not self.style:
            raise InputError("--style is missing; give a painting, a .style file or preset:NAME")
        if not self.output:
            raise InputError("-o is missing; name a file, a folder, or - for standard output")
        if self.runtime == "onnx":
            _check_onnx(self.device, self.dtype, self.method, self.compile)
            _check_no_masks(self.mask)
        if self.style_weights:
            _check_weights(self.style_weights, len(self.style))
        _check_masks(self)
        _check_mode(self)
        start, end = self.span
        if end is not None and end <= start:
            raise InputError(f"--end {self.end}: must come after --start {self.start or 0}")

    @property
    def span(self) -> tuple[float, float | None]:
        """Seconds of a clip at which to begin and to stop; None: at its end."""
        start = _seconds(self.start) if self.start else 0.0
        return start, None if self.end is None else _seconds(self.end)

    @property
    def tile_side(self) -> int | None:
        """The side of tiles in pixels; None: as the picture's size suggests."""
        return None if self.tile == "auto" else int(self.tile)

    @property
    def mode(self) -> str:
        """What becomes of a photo, of `MODES`."""
        return "photo" if self.photo else "color" if self.color_only else "paint"

    @property
    def is_one_look(self) -> bool:
        """Whether all styles together make one result: a blend, or each under its mask."""
        return bool(self.style_weights or self.mask)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights of a blend, scaled to a sum of 1; None where every pair is wanted."""
        if not self.style_weights:
            return None
        given = [float(part) for part in self.style_weights.split(",")]
        return tuple(weight / sum(given) for weight in given)


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total


def _check_onnx(device: str, dtype: str, method: str, compile: bool) -> None:
    if compile:
        raise InputError("--compile: --runtime onnx has nothing to compile; use --runtime torch")
    if method not in (AUTO, "adain"):
        raise InputError(f"--method {method}: --runtime onnx has adain alone; use --runtime torch")
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device}: --runtime onnx runs on the CPU; use --runtime torch")
    if dtype not in ("auto", "float32"):
        raise InputError(
            f"--dtype {dtype}: --runtime onnx computes in float32; use --runtime torch"
        )


def _check_no_masks(masks: Sequence[str]) -> None:
    if masks:
        raise InputError(f"--mask {masks[0]}: --runtime onnx has none; use --runtime torch")


def _check_masks(options: StylizeOptions) -> None:
    masks, styles = len(options.mask), len(options.style)
    if not masks:
        if options.mask_feather:
            raise InputError("--mask-feather: there is no --mask whose edges could fade; give one")
        return
    if options.style_weights:
        raise InputError("--mask and --style-weights: styles have places or are blended; drop one")
    if masks not in (styles - 1, styles):
        raise InputError(
            f"--mask: {masks} masks for {styles} styles; give one for each --style, or one less: "
            "the last style gets the rest"
        )


def _check_mode(options: StylizeOptions) -> None:
    if options.photo and options.color_only:
        raise InputError("--photo and --color-only: a photo is made in one way; drop one")
    flag = {"photo": "--photo", "color": "--color-only"}.get(options.mode)
    if flag and options.preserve_color != "none":
        raise InputError(
            f"{flag} and --preserve-color {options.preserve_color}: the colours are the "
            "painting's or the photo's; drop one"
        )
    if options.color_only and options.method != AUTO:
        raise InputError(
            f"--color-only and --method {options.method}: colours are moved in one way; drop one"
        )
    if options.photo and options.runtime == "onnx":
        raise InputError("--photo: --runtime onnx has no such mode; use --runtime torch")


def _check_weights(text: str, styles: int) -> None:
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"--style-weights {text!r}: give numbers with commas between, such as 0.7,0.3"
        ) from error
    if len(weights) != styles:
        raise InputError(
            f"--style-weights {text!r}: {len(weights)} weights for {styles} styles; "
            "give one for each --style"
        )
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise InputError(
            f"--style-weights {text!r}: give finite numbers of which none is negative and one not 0"
        )
