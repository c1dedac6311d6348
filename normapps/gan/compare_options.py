"""Options of `gan compare`; loads no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any

from ..errors import UsageError, unknown
from ..options import flag, option, validate
from .evaluation.options import EXTRACTOR_HELP
from .options import D_NORMS, FREE, G_NORMS, TrainOptions

_OWN = ("d_norms", "g_norms", "seeds", "extractor", "fakes", "score_every")
_LIST = r"[a-z-]+(,[a-z-]+)*"


def _as(name: str) -> Any:
    """The same option as in `gan train`."""
    (found,) = (each for each in fields(TrainOptions) if each.name == name)
    return dataclasses.field(default=found.default, metadata=found.metadata)


@dataclass(frozen=True)
class Variant:
    """One way to normalize the two networks, by the names that `gan train` takes."""

    d_norm: str
    g_norm: str = "auto"

    @property
    def name(self) -> str:
        """As tables and folders call it: `sn`, or `sn-wc` with a generator's norm of its own."""
        return self.d_norm if self.g_norm == "auto" else f"{self.d_norm}-{self.g_norm}"


@dataclass(frozen=True)
class CompareOptions:
    """Which normalizations are compared, on what, by which recipe and score.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: a normalization twice, or options that contradict each other.
    """

    data: str = _as("data")
    d_norms: str = option("none,sn,gn", f"of {', '.join(D_NORMS)}, with commas", pattern=_LIST)
    g_norms: str = option("auto", f"of {', '.join(G_NORMS)}, with commas", pattern=_LIST)
    seeds: int = option(2, "runs of each", low=1)
    seed: int = option(0, "of the first run; the others count on", low=0)
    extractor: str = option("fmnist-cnn", EXTRACTOR_HELP)
    fakes: int = option(10_000, "pictures that are drawn for a score", low=2)
    score_every: int = option(0, "steps between scores, for a curve (0: only at the end)", low=0)
    config: str = _as("config")
    cond: bool = _as("cond")
    split: str = _as("split")
    channels: int = _as("channels")
    limit: int | None = _as("limit")
    steps: int | None = _as("steps")
    batch_size: int = _as("batch_size")
    gen_batch_size: int | None = _as("gen_batch_size")
    n_dis: int = _as("n_dis")
    lr_g: float = _as("lr_g")
    lr_d: float = _as("lr_d")
    loss: str = _as("loss")
    gp: float = _as("gp")
    r1: float = _as("r1")
    sigma: str = _as("sigma")
    width: int | None = _as("width")
    d_width: int | None = _as("d_width")
    latent: int = _as("latent")
    augment: str = _as("augment")
    flip: bool = _as("flip")
    ema: float = _as("ema")
    precision: str = _as("precision")
    compile: bool = _as("compile")
    device: str = _as("device")
    save_every: int = _as("save_every")
    sample_every: int = _as("sample_every")
    standing: int = _as("standing")
    workers: int | None = _as("workers")
    max_bytes: int = _as("max_bytes")

    def __post_init__(self) -> None:
        validate(self)
        if not self.data:
            raise UsageError("--data: is missing; give a folder of pictures, or fashion-mnist")
        for variant in self.variants:
            self.recipe(variant, self.seed)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every discriminator's norm with every generator's.

        Raises:
            UsageError: one of them twice, or of no such name.
        """
        d_norms = _names("d_norms", self.d_norms, D_NORMS)
        g_norms = _names("g_norms", self.g_norms, G_NORMS)
        return tuple(Variant(d_norm, g_norm) for g_norm in g_norms for d_norm in d_norms)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the options that a comparison continued must share."""
        free = {*FREE, "d_norms", "g_norms", "seeds"} - {"data"}
        return tuple(each.name for each in fields(self) if each.name not in free)

    def recipe(self, variant: Variant, seed: int) -> TrainOptions:
        """Return the options of one run.

        Raises:
            UsageError: options that contradict each other.
        """
        shared = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in _OWN and each.name != "seed"
        }
        if variant.d_norm != "sn":
            shared["sigma"] = "reshape"
        return TrainOptions(**shared, d_norm=variant.d_norm, g_norm=variant.g_norm, seed=seed)


def _names(field: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise UsageError(f"{flag(field)}: {unknown('norm', name, known)}")
        if names.count(name) > 1:
            raise UsageError(f"{flag(field)} {text}: {name} stands there twice")
    return names
