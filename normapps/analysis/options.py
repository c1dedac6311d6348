"""Options of `normapps norm convert` and `normapps norm stats`. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..models.options import ModelOptions, PictureOptions
from ..options import device_option, option

MODES = ("one-pass", "layerwise", "fixed")


@dataclass(frozen=True)
class ConvertOptions(ModelOptions):
    """Which layers of a model become which.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    to: str = option("", "layer to put in, a name of `norm list`, or torch to go back")
    match: str = option(
        "batch", "which layers are replaced: batch, layer, group, instance, rms, all, or a name"
    )
    include: tuple[str, ...] = option((), "only module names like this pattern; repeatable")
    exclude: tuple[str, ...] = option((), "no module names like this pattern; repeatable")
    set: tuple[str, ...] = option((), "an option of the layer, as group_size=16; repeatable")
    init: str = option(
        "carry", "keep scales, shifts and statistics, or start anew", choices=("carry", "default")
    )
    overwrite: bool = option(False, "replace an existing model folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.to:
            raise InputError("--to: name the layer to put in, such as --to iternorm")
        layer_options(self.set)


@dataclass(frozen=True)
class StatsOptions(PictureOptions):
    """How the statistics of data are measured in a model.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    mode: str = option(
        "one-pass",
        "one-pass: batch statistics flow on; layerwise: layer by "
        "layer, exact and slow; fixed: under the model's own",
        choices=MODES,
    )
    batch_size: int = option(32, "pictures measured at a time", low=1)
    limit: int | None = option(None, "take this many pictures, evenly spread", low=1)
    shard: str = option(
        "1/1",
        "i/n, from 1/n to n/n: one of n parts of the pictures, for `adapt merge`",
        pattern=r"[0-9]+/[0-9]+",
    )
    rows: int = option(15, "layers that the table shows, those that differ most", low=1)
    device: str = device_option()
    dtype: str = option(
        "float32",
        "precision of the network; statistics are float32 anyway",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    overwrite: bool = option(False, "replace an existing file")

    def __post_init__(self) -> None:
        super().__post_init__()
        number, shards = self.part
        if not 1 <= number <= shards:
            raise InputError(f"--shard {self.shard}: must be from 1/{shards} to {shards}/{shards}")
        if shards > 1 and self.mode == "layerwise":
            raise InputError(
                f"--shard {self.shard} --mode layerwise: a part's layers would stand on its own"
                " statistics; use --mode fixed, whose parts merge exactly"
            )

    @property
    def part(self) -> tuple[int, int]:
        """The shard as (number, of how many)."""
        number, _, shards = self.shard.partition("/")
        return int(number), int(shards)


_NOT_TEXT = ("device", "dtype", "process_group")


def layer_options(texts: tuple[str, ...]) -> Mapping[str, Any]:
    """Read `name=value` texts; values are JSON where they can be, else text.

    Raises:
        InputError: a text without `=`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set {text}: must be name=value, such as group_size=16")
        if name in _NOT_TEXT:
            raise InputError(f"--set {text}: {name} follows the layer that is replaced")
        found[name.replace("-", "_")] = _value(value)
    return found


def _value(text: str) -> Any:
    words = {"True": True, "False": False, "None": None}
    try:
        return words[text] if text in words else json.loads(text)
    except ValueError:
        return text
