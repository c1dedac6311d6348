"""Options of `normapps slim prune` and `slim inspect`. Loads no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..models.options import PictureOptions
from ..options import device_option, flag, option

IMPORTANCES = ("scale", "l2", "random")
AMOUNTS = ("ratio", "target_flops", "target_params", "target_latency", "lossless")
"""Ways to say how much goes: exactly one of them."""

RATIO = 0.4
"""The share of channels that goes where nothing else is said."""


@dataclass(frozen=True)
class SelectOptions(PictureOptions):
    """Which channels go first, and which never.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    importance: str = option(
        "scale",
        "what a channel counts by: scale (of its batch norms, the paper), l2 (of its weights),"
        " random (to compare with)",
        choices=IMPORTANCES,
    )
    per_layer: bool = option(False, "the same share of every layer, not one threshold for all")
    min_channels: int = option(1, "channels that every layer keeps", low=1)
    round_to: int = option(1, "channels of a layer are a multiple of this, as 8", low=1)
    ignore: tuple[str, ...] = option((), "leave layers named like this pattern whole; repeatable")

    def rules(self) -> dict[str, Any]:
        """What every plan keeps to, as `normapps.slim.plan.plan` takes it."""
        names = ("per_layer", "min_channels", "round_to", "ignore")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PruneOptions(SelectOptions):
    """How a model is pruned, and what it is judged with.

    Raises:
        InputError: a value out of range, more than one way to say how much, or an option that
            would do nothing beside another; the line names the flags.
    """

    ratio: float | None = option(
        None, f"share of the channels that goes ({RATIO} unless you say how much)", low=0, high=0.99
    )
    target_flops: float | None = option(
        None, "share of the multiplications that stays, as 0.5", low=0.01, high=1
    )
    target_params: float | None = option(
        None, "share of the parameters that stays, as 0.5", low=0.01, high=1
    )
    target_latency: float | None = option(
        None, "share of the time a picture takes here that stays, as 0.7", low=0.01, high=1
    )
    lossless: bool = option(False, "only channels whose removal changes nothing")
    iterative: int = option(1, "steps to get there; channels are weighed anew in each", low=1)
    compensate: bool = option(
        True, "move what a removed channel gave on average, its shift, into what follows"
    )
    verify: bool = option(
        True, "prove that cutting equals silencing, and leave whole what cannot be cut"
    )
    data: str | None = option(
        None, "pictures to recalibrate and judge with; class folders give accuracy"
    )
    recalibrate: bool = option(True, "measure running statistics anew on --data, unless --lossless")
    batch_size: int = option(64, "pictures at a time", low=1)
    limit: int | None = option(None, "take this many pictures, evenly spread", low=1)
    latency: bool = option(True, "time both networks at batch 1 and 32")
    onnx: bool = option(
        False, "write model.onnx too, checked against torch; needs normapps[deploy]"
    )
    device: str = device_option()
    overwrite: bool = option(False, "replace an existing model folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [flag(name) for name in AMOUNTS if self._is_given(name)]
        if len(given) > 1:
            raise InputError(f"{' '.join(given)}: say how much in one way, not {len(given)}")
        if self.lossless:
            self._check_lossless()
        if self.data is None and self.limit is not None:
            raise InputError(f"--limit {self.limit}: there are no pictures; name them by --data")

    @property
    def amount(self) -> tuple[str, float]:
        """The way that says how much, a name of `AMOUNTS`, and its value, 1 for `lossless`."""
        for name in AMOUNTS:
            if self._is_given(name):
                return name, float(getattr(self, name))
        return "ratio", RATIO

    @property
    def is_default(self) -> bool:
        """Whether nothing says how much, so that `RATIO` counts."""
        return self.amount == ("ratio", RATIO) and self.ratio is None

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False  # a ratio of 0 is given

    def _check_lossless(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("importance", "per_layer", "iterative"):
            if getattr(self, name) != defaults[name]:
                raise InputError(
                    f"--lossless {flag(name)}: what is lossless is not chosen by importance;"
                    f" leave out {flag(name)}"
                )
        if not self.compensate:
            raise InputError(
                "--lossless --no-compensate: a constant is lost unless it moves into what follows;"
                " leave out --no-compensate"
            )
