"""What a picture goes through before a network: resize, centre crop, normalize.

The arithmetic of timm's and torchvision's evaluation transforms, to the bit: Pillow's antialiased
filters on 8-bit pixels, their rounding of sizes and offsets, then float32. It is in two halves,
so that batches travel to the device as bytes.
Only tensors need torch: `to_array` does the same without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.picture import Picture
from ..errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STANDARD = "ImageNet standard"

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
MODES = ("center", "squash", "border", "crop")
_LONGEST = 32
"""Long side ÷ short side beyond which the ends are cut off before the resize, not after it."""


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to a network's input.

    Attributes:
        size: height and width of the result in pixels.
        resize: height and width that the picture is scaled to before the crop.
        mode: `center` scales until both sides of `resize` are covered, `squash` to just `resize`,
            `border` until it fits inside `resize`, on the mean colour, `crop` not at all; then the
            centre is cut.
        interpolation: a key of `INTERPOLATIONS`.
        mean: what is subtracted, a number a channel, of values in [0, 1].
        std: what the result is divided by, a number a channel.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
        origin: where the values come from, in words.

    Raises:
        InputError: a value that is none of these.
    """

    size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    mode: str = "center"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    origin: str = STANDARD

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.mode not in MODES:
            raise unknown("crop mode", self.mode, MODES)
        if len(self.size) != 2 or len(self.resize) != 2 or min(*self.size, *self.resize) < 1:
            raise InputError(f"size {self.size}, resize {self.resize}: two sides from 1 each")
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(
                f"{len(self.mean)} means and {len(self.std)} deviations do not fit "
                f"{self.channels} channels"
            )
        if not min(self.std, default=1) > 0:
            raise InputError(f"std {self.std}: must be greater than 0")

    @classmethod
    def of(cls, model: nn.Module, source: Mapping[str, Any] | None = None) -> Preprocessing:
        """Find out what a network expects.

        timm's networks carry it; torchvision's have it in their default weights, whose transforms
        are read without fetching them. Of any other network it is the ImageNet standard at
        224×224, and `origin` says so.

        Args:
            model: the network.
            source: builder and arguments, as `OpenedModel.source`; of a converted or slimmed
                network its base counts.
        """
        arguments = source["arguments"] if source else {}
        if source and source["builder"] in ("converted", "slimmed"):
            return cls.of(model, arguments["base"])
        if source and source["builder"] == "torchvision":
            return cls._of_torchvision(arguments["name"])
        if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
            kwargs = arguments.get("kwargs") or {}
            told = arguments.get("channels", _input_channels(model))
            channels = kwargs.get("in_chans", told)
            return cls._of_timm(model, channels)
        return cls()._with_channels(_input_channels(model))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make it of what `to_json` returned; what is missing has its default.

        Raises:
            InputError: an unknown name, or a value of another kind.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values.keys() - known:
            raise unknown("preprocessing value", name, known)
        try:
            chosen: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            return cls(**chosen)
        except TypeError as error:
            raise InputError(f"is no preprocessing ({error})") from error

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for `model.json`."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def describe(self) -> str:
        """Say it in one line."""
        ways = {
            "center": f"the centre of a picture scaled to {_scaled(self.resize)}",
            "squash": f"the centre of a picture squashed to {_sides(self.resize)}",
            "border": f"a picture fitted into {_sides(self.resize)} with a border",
            "crop": "the centre of a picture as it is",
        }
        kind = {3: "RGB", 1: "grey"}.get(self.channels, f"{self.channels} channels")
        numbers = (" ".join(f"{x:.4g}" for x in values) for values in (self.mean, self.std))
        return (
            f"{_sides(self.size)} {kind}, {ways[self.mode]}, {self.interpolation}, "
            "mean {}, std {} ({})".format(*numbers, self.origin)
        )

    def apply(self, picture: np.ndarray) -> Tensor:
        """Make a network's input of a picture.

        Args:
            picture: (H, W, 3) uint8 sRGB, of any size.

        Returns:
            (channels, height, width) float32.

        Raises:
            InputError: another shape or dtype, or a network that takes neither RGB nor grey.
        """
        return self.normalize(self.cut(picture))

    def to_array(self, picture: np.ndarray) -> np.ndarray:
        """Do what `apply` does, to the bit, without torch: (channels, height, width) float32."""
        mean, std = (
            np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std)
        )
        values = self._pixels(picture).astype(np.float32) / np.float32(255)
        return np.asarray((values - mean) / std)

    def cut(self, picture: np.ndarray) -> Tensor:
        """Do the first half of `apply`: (channels, height, width) uint8."""
        import torch

        return torch.from_numpy(self._pixels(picture))

    def _pixels(self, picture: np.ndarray) -> np.ndarray:
        if self.channels not in (1, 3):
            raise InputError(f"a network of {self.channels} input channels takes no pictures")
        image = Image.fromarray(np.ascontiguousarray(Picture(picture).pixels))
        if self.channels == 1:
            image = image.convert("L")
        pixels = np.asarray(self._crop(self._scale(image)))
        return pixels.reshape(*self.size, -1).transpose(2, 0, 1).copy()

    def normalize(self, cut: Tensor) -> Tensor:
        """Do the second half of `apply`, on whichever device `cut` is.

        Args:
            cut: (..., channels, height, width) uint8.

        Returns:
            float32 of the same shape.
        """
        import torch

        mean, std = (
            torch.tensor(values, device=cut.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return cut.to(torch.float32).div_(255).sub_(mean).div_(std)

    @classmethod
    def _of_timm(cls, model: nn.Module, channels: int) -> Preprocessing:
        import timm.data

        data: Any = timm.data  # of the versions that we allow, some have types and some none
        found = data.resolve_model_data_config(model)
        size = tuple(found["input_size"][-2:])
        given = cls(
            size=size,
            resize=tuple(math.floor(side / found["crop_pct"]) for side in size),
            mode=found["crop_mode"],
            interpolation=found["interpolation"],
            mean=tuple(found["mean"]),
            std=tuple(found["std"]),
            channels=len(found["mean"]),
            origin="timm",
        )
        return given._with_channels(channels)

    @classmethod
    def _of_torchvision(cls, name: str) -> Preprocessing:
        from torchvision.models import get_model_weights

        weights = getattr(get_model_weights(name), "DEFAULT", None)
        found: Any = weights.transforms() if weights else None
        # detection and segmentation keep the picture's own size, video has frames
        if weights is None or type(found).__name__ != "ImageClassification":
            return cls()
        return cls(
            size=_pair(found.crop_size),
            resize=_pair(found.resize_size),
            interpolation=found.interpolation.value,
            mean=tuple(found.mean),
            std=tuple(found.std),
            origin=f"torchvision, weights {weights.name}",
        )

    def _with_channels(self, channels: int) -> Preprocessing:
        """Give every channel the mean of the values, unless there are as many already."""
        if channels == self.channels:
            return self
        mean, std = ((sum(values) / len(values),) * channels for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=mean, std=std, channels=channels)

    def _scale(self, image: Image.Image) -> Image.Image:
        if self.mode == "crop":
            return image
        if self.mode == "center":
            image = _trimmed(image)
        width, height = self._scaled_size(*image.size)
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, rounded as torchvision and timm do."""
        wanted_height, wanted_width = self.resize
        if self.mode == "squash":
            return wanted_width, wanted_height
        if self.mode == "center" and wanted_height == wanted_width:
            long = int(wanted_width * max(width, height) / min(width, height))
            return (wanted_width, long) if width <= height else (long, wanted_width)
        ratios = height / wanted_height, width / wanted_width
        ratio = min(ratios) if self.mode == "center" else max(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _crop(self, image: Image.Image) -> Image.Image:
        """Cut the centre; where the picture is smaller, there is black, or the mean colour."""
        (height, width), (across, down) = self.size, image.size
        fill = [round(255 * x) if self.mode == "border" else 0 for x in self.mean]
        if across < width or down < height:
            larger = max(width, across), max(height, down)
            colour = tuple(fill) if self.channels > 1 else fill[0]
            canvas = Image.new(image.mode, larger, colour)
            canvas.paste(image, (max(0, width - across) // 2, max(0, height - down) // 2))
            image, (across, down) = canvas, larger
        left, top = round((across - width) / 2), round((down - height) / 2)
        return image.crop((left, top, left + width, top + height))


def _trimmed(image: Image.Image) -> Image.Image:
    """Cut the ends off a very long picture: the crop never sees them, the resize pays for them."""
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, width - left, height - top))


def _input_channels(model: nn.Module) -> int:
    """Channels of the first convolution; a stem that rearranges pixels first tells nothing."""
    from torch import nn

    convs = (m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    first = next(convs, None)
    return 1 if first is not None and first.in_channels == 1 else 3


def _pair(sides: Any) -> tuple[int, int]:
    """One side as `[side]`, or two, to height and width."""
    values = [int(side) for side in sides]
    return values[0], values[-1]


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _scaled(resize: tuple[int, int]) -> str:
    return f"short side {resize[0]}" if resize[0] == resize[1] else f"cover {_sides(resize)}"
