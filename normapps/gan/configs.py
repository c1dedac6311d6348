"""Named recipes of `gan train`: sizes, widths and lengths. Loads no torch.

Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks, appendix B.4 and the
authors' configurations: all share Adam (2·10⁻⁴, betas 0 and 0.9), five discriminator steps, 64
pictures a discriminator step and 128 a generator step. 28 px is ours, made like 32.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import unknown


@dataclass(frozen=True)
class Config:
    """One recipe: side of the pictures, channels of generator and discriminator, steps.

    The widths are what the builders of `models.sngan` take: at 28 and 32 px of every block, beyond
    of the widest, and then multiples of `divisor` and `d_divisor`.
    """

    size: int
    width: int
    d_width: int
    steps: int
    divisor: int = 1
    d_divisor: int = 1


CONFIGS = {
    "sngan-28": Config(28, 256, 128, 50_000),
    "sngan-32": Config(32, 256, 128, 50_000),
    "sngan-48": Config(48, 512, 1024, 50_000, 8, 16),
    "sngan-64": Config(64, 1024, 1024, 100_000, 16, 16),
    "sngan-128": Config(128, 1024, 1024, 450_000, 16, 16),
}
"""Recipe by name."""


def config(name: str) -> Config:
    """Return a recipe.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    if name not in CONFIGS:
        raise unknown("config", name, CONFIGS)
    return CONFIGS[name]
