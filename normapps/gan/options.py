"""Options of `gan train`; loads no torch, the flags come from these."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

from ..errors import UsageError
from ..options import device_option, option, validate
from .configs import CONFIGS, config

LOSSES = ("hinge", "non-saturating", "wasserstein")
D_NORMS = ("sn", "gn", "ws", "none")
SIGMAS = ("reshape", "conv", "bound")
G_NORMS = ("auto", "bn", "cbn", "self-mod", "wc", "in", "none")

FREE = (
    "data",
    "device",
    "workers",
    "max_bytes",
    "compile",
    "save_every",
    "sample_every",
    "score_every",
    "extractor",
    "standing",
    "stop_after",
    "overwrite",
)
"""Options that a resumed run may change: none of them changes what a step learns. Other pictures
behind `data` are noticed by themselves."""


@dataclass(frozen=True)
class TrainOptions:
    """What a GAN learns from, and how.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: options that contradict each other.
    """

    data: str = option("", "pictures: a folder, .zip, .tar, IDX files, .npz, or fashion-mnist")
    config: str = option("sngan-32", "the recipe", choices=tuple(CONFIGS))
    cond: bool = option(False, "learn the classes: one folder a class, or a set with labels")
    split: str = option("train", "which part of a set that has parts", choices=("train", "test"))
    channels: int = option(0, "1 grey, 3 colour, 0 as the pictures are", low=0, high=3)
    limit: int | None = option(None, "the most pictures", low=1)
    steps: int | None = option(None, "generator steps of the whole run (default: config's)", low=1)
    batch_size: int = option(64, "real pictures a discriminator step and process", low=2)
    gen_batch_size: int | None = option(
        None, "pictures a generator step and process (default: twice --batch-size)", low=2
    )
    n_dis: int = option(5, "discriminator steps a generator step", low=1)
    lr_g: float = option(2e-4, "rate of the generator's Adam at the start, falling to 0", low=0)
    lr_d: float = option(2e-4, "the discriminator's", low=0)
    loss: str = option("hinge", "what the two play for", choices=LOSSES)
    gp: float = option(0.0, "weight of the gradient penalty; 10 is usual with wasserstein", low=0)
    r1: float = option(0.0, "weight of the penalty on the gradient at real pictures", low=0)
    d_norm: str = option(
        "sn", "discriminator: spectral, gradient, weight standardization", choices=D_NORMS
    )
    sigma: str = option(
        "reshape", "with --d-norm sn, the norm of: reshaped kernel, convolution, bound of it",
        choices=SIGMAS,
    )  # fmt: skip
    g_norm: str = option("auto", "generator; auto is bn, with --cond cbn", choices=G_NORMS)
    width: int | None = option(None, "channels of the generator (default: config's)", low=1)
    d_width: int | None = option(None, "channels of the discriminator (default: config's)", low=1)
    latent: int = option(128, "numbers that a picture is drawn from", low=1)
    augment: str = option(
        "", "DiffAugment, for few pictures: any of color,translation,cutout",
        pattern=r"((color|translation|cutout)(,(?=.)|$))*",
    )  # fmt: skip
    flip: bool = option(False, "mirror every other real picture")
    ema: float = option(0.999, "decay of the averaged generator, which is what is kept", low=0,
                        high=1)  # fmt: skip
    precision: str = option(
        "auto", "of both networks, by autocast; auto is bfloat16 where the device computes in it",
        choices=("auto", "float32", "bfloat16"),
    )  # fmt: skip
    compile: bool = option(False, "compile both networks, on a GPU (torch.compile)")
    device: str = device_option()
    seed: int = option(0, "of weights, latents, order and augmentation", low=0)
    save_every: int = option(500, "steps between checkpoints", low=1)
    sample_every: int = option(500, "steps between grids in samples/ (0: none)", low=0)
    score_every: int = option(0, "steps between scores in metrics.jsonl (0: none)", low=0)
    extractor: str = option("lite0", "what --score-every sees by, as `gan evaluate` takes it")
    standing: int = option(10_000, "pictures behind the kept generator's statistics", low=2)
    workers: int | None = option(None, "threads that decode (default: one a core, up to 8)", low=0)
    max_bytes: int = option(4_000_000_000, "memory that the pictures may take", low=1)
    stop_after: int = option(0, "stop after this many steps of this call (0: at the end)", low=0)
    overwrite: bool = option(False, "start the run anew if the folder holds one")

    def __post_init__(self) -> None:
        validate(self)
        chosen = config(self.config)
        _check_width("--width", self.width, chosen.divisor, self.config)
        _check_width("--d-width", self.d_width, chosen.d_divisor, self.config)
        if self.channels == 2:
            raise UsageError("--channels 2: choose 0, 1 or 3")
        if self.g_norm == "cbn" and not self.cond:
            raise UsageError("--g-norm cbn: is a norm by class; add --cond")
        if self.loss == "wasserstein" and self.d_norm == "none" and not self.gp:
            raise UsageError("--loss wasserstein --d-norm none: nothing bounds it; add --gp 10")
        if self.sigma != "reshape" and self.d_norm != "sn":
            raise UsageError(f"--sigma {self.sigma}: belongs to --d-norm sn, not {self.d_norm}")

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return config(self.config).size

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the options that a resumed run must share."""
        return tuple(each.name for each in fields(self) if each.name not in FREE)

    def resolved(self) -> Self:
        """Return the same with every value that the recipe leaves to `config` written out."""
        chosen = config(self.config)
        return replace(
            self,
            steps=self.steps or chosen.steps,
            width=self.width or chosen.width,
            d_width=self.d_width or chosen.d_width,
            gen_batch_size=self.gen_batch_size or 2 * self.batch_size,
            g_norm=("cbn" if self.cond else "bn") if self.g_norm == "auto" else self.g_norm,
        )


def _check_width(name: str, width: int | None, divisor: int, recipe: str) -> None:
    if width is not None and width % divisor:
        raise UsageError(f"{name} {width}: must be a multiple of {divisor} with --config {recipe}")
