"""Options of `normapps translate`; loads no torch, the flags come from these classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from ...errors import InputError
from ...options import device_option, from_json, option, validate
from ..resuming import resumed_options

_FREE = (
    "device",
    "workers",
    "max_bytes",
    "save_every",
    "sample_every",
    "stop_after",
    "overwrite",
)
"""Options that a resumed run may change; --steps is none, the rate falls towards their end."""


@dataclass(frozen=True)
class FrameOptions:
    """What every training of a translator takes.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    steps: int = option(20000, "optimizer steps of the whole run", low=1)
    batch_size: int = option(4, "pictures a step, of each domain and process", low=1)
    size: int = option(64, "side of the pictures in training, pixels", low=16)
    lr: float = option(2e-4, "rate of Adam; falls to 0 over the second half", low=0)
    ema: float = option(0.999, "decay of the averaged weights that are kept", low=0, high=1)
    precision: str = option(
        "float32", "of the networks, by autocast", choices=("float32", "bfloat16")
    )
    device: str = device_option()
    seed: int = option(0, "of weights, order and augmentation", low=0)
    limit: int | None = option(None, "the most pictures of each domain", low=2)
    workers: int | None = option(None, "threads that decode (default: one a core, up to 8)", low=0)
    max_bytes: int = option(4_000_000_000, "memory that the pictures of a domain may take", low=1)
    save_every: int = option(200, "steps between checkpoints", low=1)
    sample_every: int = option(500, "steps between sample grids", low=1)
    stop_after: int = option(0, "stop after this many steps of this call (0: at the end)", low=0)
    overwrite: bool = option(False, "begin anew if the folder holds a run")

    def __post_init__(self) -> None:
        validate(self)
        if self.size % 4:
            raise InputError(f"--size {self.size}: must be a multiple of 4")

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the options that a resumed run must share."""
        return tuple(each.name for each in fields(self) if each.name not in _FREE)


Framed = TypeVar("Framed", bound=FrameOptions)


@dataclass(frozen=True)
class TranslateOptions(FrameOptions):
    """`translate train`: two domains without pairs.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    source: str = option("", "folder, zip or tar of pictures as they are given")
    target: str = option("", "folder, zip or tar of pictures as they are wanted")
    loss: str = option(
        "hinge",
        "between generator and discriminator; least-squares wants a lower --cycle-weight",
        choices=("hinge", "least-squares"),
    )
    cycle_weight: float = option(10.0, "weight of the way there and back (L1)", low=0)
    identity_weight: float = option(
        5.0, "weight of leaving pictures of the target as they are (L1)", low=0
    )
    sigma: str = option(
        "reshape",
        "spectral norm of the discriminators: reshape (the paper), conv, or a bound of it",
        choices=("reshape", "conv", "bound"),
    )
    width: int = option(32, "channels of the generator at full resolution", low=4)
    blocks: int = option(3, "residual blocks of the generator, of each of two kinds", low=1)
    d_width: int = option(48, "channels of the discriminator's first layer", low=4)
    skip: bool = option(
        True, "add to the picture; --no-skip draws it anew, for domains of other shapes"
    )
    flip: float = option(0.5, "augmentation: probability of mirroring", low=0, high=1)


@dataclass(frozen=True)
class TranslateRunOptions:
    """`translate run`: what is read, what is written.

    Raises:
        InputError: a value out of range, or no output; the line names the flag.
    """

    model: str = option("", "run of translate train, or a model folder", short="-m")
    output: str = option("", "file for one picture, folder for several", short="-o")
    back: bool = option(False, "of a run without pairs: from the target to the source")
    size: int | None = option(
        None,
        "bring the long side down to so many pixels first; else pictures keep their size",
        low=16,
    )
    seed: int = option(0, "of the latent, where a network of label maps has one", low=0)
    device: str = device_option()
    quality: int = option(92, "of JPEG and WebP", low=1, high=100)
    max_pixels: int | None = option(None, "largest picture to open, for files you trust", low=1)
    overwrite: bool = option(False, "replace files that exist")

    def __post_init__(self) -> None:
        validate(self)
        if not self.model:
            raise InputError("-m is missing; name a run of translate train, or a model folder")
        if not self.output:
            raise InputError("-o is missing; name a file or a folder")


@dataclass(frozen=True)
class TranslateEvaluateOptions:
    """`translate evaluate`: what is compared, and by what.

    Raises:
        InputError: a value out of range, or no model; the line names the flag.
    """

    model: str = option("", "run of translate train, or a model folder", short="-m")
    back: bool = option(False, "the way from the target to the source, which change places")
    source: str = option("", "pictures to translate (default: those of the training)")
    target: str = option("", "pictures as they are wanted (default: those of the training)")
    extractor: str = option("lite0", "what sees the pictures, as gan evaluate takes it")
    size: int | None = option(None, "side of the squares, pixels (default: the training's)", low=16)
    limit: int | None = option(None, "the most pictures of each", low=4)
    seed: int = option(0, "of the order", low=0)
    device: str = device_option()
    out: str = option("", "write the scores to this JSON file", short="-o")
    overwrite: bool = option(False, "replace an older report")

    def __post_init__(self) -> None:
        validate(self)
        if not self.model:
            raise InputError("-m is missing; name a run of translate train, or a model folder")


def check_kind(folder: Path, kind: type[FrameOptions]) -> None:
    """Refuse a folder that holds a run of something else.

    Raises:
        InputError: its `options.json` has an option that the class `kind` does not have.
    """
    try:
        saved = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # there is none, or reading it as options tells what is wrong with it
    if isinstance(saved, dict) and not saved.keys() <= {each.name for each in fields(kind)}:
        raise InputError(f"{folder}: holds a run of another kind; choose another -o")


def resumed(folder: Path, given: Framed, names: Sequence[str]) -> Framed:
    """Return the options with which a run goes on, see `resumed_options`.

    Args:
        folder: the run's.
        given: the options of this call.
        names: which of them were given, and not left at their defaults.

    Raises:
        InputError: the folder holds no run of these options.
        UsageError: an option that would make it another run, or `overwrite`.
    """
    if not (folder / "options.json").is_file():
        raise InputError(f"{folder}: holds no run to resume; leave --resume out to begin one")
    kind = type(given)
    check_kind(folder, kind)
    saved = from_json(kind, folder / "options.json")
    return resumed_options(saved, given, names, given.fixed)
