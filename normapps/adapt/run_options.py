"""Options of `normapps adapt run`, `adapt mix` and `adapt merge`. Loads no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import InputError
from ..models.options import ModelOptions, PictureOptions
from ..options import device_option, flag, option

STATISTICS = ("adabn", "prior", "ema", "cumulative")
"""Methods that change running statistics and nothing else."""

STREAMS = ("tent", "eata", "sar", "cotta", "rotta")
"""Methods that adapt by gradients to one batch after the other."""

_MODES = ("one-pass", "layerwise", "fixed")
_ONLY_FOR = {
    "prior": ("prior", "tent", "eata", "sar"),
    "momentum": ("ema",),
    "mode": ("adabn", "prior"),
    "weight": STATISTICS,
    "guard": STREAMS,
}
"""Options that only some methods have: elsewhere they would be ignored in silence."""


@dataclass(frozen=True)
class AdaptOptions(PictureOptions):
    """How a model is adapted to pictures.

    Raises:
        InputError: a value out of range, or an option that the method does not have; the line
            names the flag.
    """

    method: str = option("adabn", "how to adapt", choices=(*STATISTICS, *STREAMS))
    prior: float | None = option(
        None,
        "samples that the model's own statistics count for (prior: 16; tent, eata, sar: 0, which"
        " one picture a batch needs to be more)",
        low=0,
    )
    layers: tuple[str, ...] = option((), "only norm layers named like this pattern; repeatable")
    weight: float = option(1.0, "share of the new statistics", low=0, high=1)
    momentum: float | None = option(
        None, "weight of a batch (ema; 0.1), from 0 to 1", low=0, high=1
    )
    mode: str | None = option(
        None,
        "what layers normalize with while the data is measured: one-pass (each batch with its own;"
        " the default from 2 pictures a batch), layerwise (exact, slow), fixed (the model's own)",
        choices=_MODES,
    )
    guard: bool = option(
        False,
        "let a stream method stop where it does harm, and answer as the model did before; costs one"
        " more forward pass",
    )
    batch_size: int = option(64, "pictures at a time", low=1)
    limit: int | None = option(None, "take this many pictures, evenly spread", low=1)
    seed: int = option(0, "seed of random weights, of the pictures' order, of methods", low=0)
    device: str = device_option()
    dtype: str = option(
        "float32",
        "precision of the network",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    overwrite: bool = option(False, "replace an existing model folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, methods in _ONLY_FOR.items():
            if getattr(self, name) != defaults[name] and self.method not in methods:
                several = f"{', '.join(methods[:-1])} or " if len(methods) > 1 else ""
                raise InputError(
                    f"{flag(name)}: is an option of --method {several}{methods[-1]},"
                    f" {self.method} has none"
                )
        self.check_batch(self.batch_size, f"--batch-size {self.batch_size}")

    def check_batch(self, pictures: int, what: str) -> None:
        """Refuse what would give every picture its own statistics; `what` names the cause.

        Raises:
            InputError: one picture a batch, with a method that normalizes each batch by itself.
        """
        if pictures > 1 or self.method not in ("adabn", "prior"):
            return
        chosen = self.mode or ("one-pass" if self.method == "adabn" else "fixed")
        if chosen == "one-pass":
            raise InputError(
                f"{what}: --method {self.method} in mode one-pass would normalize every picture by"
                " itself, which is not the data's statistics; give more, or --mode fixed, or"
                " --method prior"
            )

    def mode_for(self, pictures: int) -> str:
        """The mode to measure with, where a batch has so many pictures."""
        return self.mode or ("one-pass" if pictures > 1 else "fixed")


@dataclass(frozen=True)
class MixOptions(ModelOptions):
    """How populations are mixed with a model's own.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    prior: float = option(16.0, "samples that the model's own statistics count for", low=0)
    rule: str = option(
        "linear",
        "linear: variances as the paper mixes them; pooled: with the variance between the means",
        choices=("linear", "pooled"),
    )
    overwrite: bool = option(False, "replace an existing model folder")


@dataclass(frozen=True)
class MergeOptions:
    """How populations are merged."""

    overwrite: bool = option(False, "replace an existing file")
