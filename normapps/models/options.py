"""Options of every command that takes a MODEL: which weights it gets, what it is shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..options import option, validate

if TYPE_CHECKING:
    from .load import OpenedModel
    from .preprocessing import Preprocessing

MODEL_HELP = (
    "A model folder, a timm name, torchvision/NAME, package.module:factory, or a shipped network."
)


@dataclass(frozen=True)
class ModelOptions:
    """Where a model's weights come from; without any they are random, and that is said.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    pretrained: bool = option(False, "take the published weights (downloaded if not cached)")
    checkpoint: Path | None = option(None, "weight file to load: safetensors or PyTorch")
    num_classes: int | None = option(None, "outputs of the classifier", low=1)
    seed: int = option(0, "seed of random weights", low=0)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class PictureOptions(ModelOptions):
    """What a picture goes through, where the model's own preprocessing is not the right one.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    mean: str | None = option(
        None, "mean to subtract, in [0, 1], one or a channel, as 0.485,0.456,0.406"
    )
    std: str | None = option(None, "deviation to divide by, one or a channel, as 0.229,0.224,0.225")
    size: int | None = option(
        None, "side of the network's input in pixels", low=1, also="--input-size"
    )
    resize: bool = option(True, "scale pictures before their centre is cut")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            _numbers(name, getattr(self, name))


def preprocessing_of(opened: OpenedModel, options: PictureOptions) -> Preprocessing:
    """Return the preprocessing of a model with what the options change of it.

    A new `--size` scales pictures in the same proportion as before; one number of `--mean` or
    `--std` counts for all channels; with `--no-resize` the centre is cut from pictures as they are.

    Raises:
        InputError: as many numbers as the model has no channels, or a deviation that is not
            greater than 0.
    """
    own = opened.preprocessing
    changes: dict[str, Any] = {}
    for name in ("mean", "std"):
        if values := _numbers(name, getattr(options, name)):
            changes[name] = _a_channel(name, values, own.channels)
    if options.size is not None:
        side = options.size
        changes["size"] = side, side
        changes["resize"] = tuple(
            max(side, round(whole * side / cut))
            for whole, cut in zip(own.resize, own.size, strict=True)
        )
    if not options.resize:
        changes["mode"] = "crop"
    return dataclasses.replace(own, **changes, origin=_origin(own, changes)) if changes else own


def _origin(own: Preprocessing, changes: dict[str, Any]) -> str:
    flags = {"mean": "--mean", "std": "--std", "size": "--size", "mode": "--no-resize"}
    given = [flags[name] for name in changes if name in flags]
    parts = own.origin.replace(",", " ").split()
    return f"{own.origin}, {' '.join(given)}" if not set(given) <= set(parts) else own.origin


def _a_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise InputError(
            f"--{name}: {len(values)} numbers for {channels} channels; give one, or {channels}"
        )
    return values if len(values) == channels else values * channels


def _numbers(name: str, text: str | None) -> tuple[float, ...]:
    """The numbers of an option, none where it is not given."""
    if text is None:
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--{name} {text!r}: must be numbers, as 0.485,0.456,0.406") from error
    low = 0.0 if name == "std" else -100.0
    if not all(low < value < 100 for value in values):
        wanted = "greater than 0" if name == "std" else "of values in [0, 1]"
        raise InputError(f"--{name} {text!r}: must be {wanted}, as 0.485,0.456,0.406")
    return values
