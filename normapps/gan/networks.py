"""The networks of a run, made from its options: generator, its average, discriminator."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ..engine.device import place
from ..engine.loop import step_seed
from ..models.folder import build
from ..norm.weight.spectral_operator import Sigma
from .normalization import normalize_discriminator_
from .options import TrainOptions

GENERATOR, DISCRIMINATOR = "sngan-generator", "sngan-discriminator"
"""Builders of `normapps.models`."""


@dataclass(frozen=True)
class Shape:
    """What the pictures say about the networks: channels, and names of the classes to learn."""

    channels: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Networks:
    """Generator, discriminator and the generator's average.

    Attributes:
        generator: (N, latent) and labels (N,) or None to pictures (N, C, S, S) in [−1, 1].
        discriminator: pictures and labels to logits (N,).
        average: a generator of which only the parameters count; see `engine.run.update_average`.
    """

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module


def generator_arguments(options: TrainOptions, shape: Shape) -> dict[str, Any]:
    """Return what the generator's builder is called with; `options` are resolved."""
    return {
        "size": options.size,
        "channels": shape.channels,
        "latent": options.latent,
        "width": options.width,
        "num_classes": len(shape.classes),
        "norm": options.g_norm,
    }


def make_networks(options: TrainOptions, shape: Shape, device: torch.device) -> Networks:
    """Make the networks with the weights of `options.seed`, in training mode on a device.

    Args:
        options: resolved.
        shape: of the pictures.
        device: where they go, channels_last.

    Raises:
        InputError: options that a builder refuses.
    """
    generator = build(
        GENERATOR, generator_arguments(options, shape), seed=step_seed(options.seed, 0, 2)
    )
    place(generator, device)
    discriminator = make_discriminator(options, shape, device)
    average = copy.deepcopy(generator).requires_grad_(False)
    return Networks(generator.train(), discriminator.train(), average.train())


def make_discriminator(
    options: TrainOptions, shape: Shape, device: torch.device | None = None
) -> nn.Module:
    """Make the discriminator, normalized as `options.d_norm` says, in training mode."""
    plain = place(_discriminator(options, shape), device or torch.device("cpu"))
    return normalize_discriminator_(
        plain, options.d_norm, sigma=cast(Sigma, options.sigma), size=options.size
    ).train()


def plain_networks(generator: nn.Module, options: TrainOptions) -> tuple[nn.Module, nn.Module]:
    """Make generator and discriminator without values or parametrizations, in training mode.

    On the device "meta": for calls with weights from elsewhere (`torch.func.functional_call`).

    Args:
        generator: a generator of the run, which tells channels and classes.
        options: resolved.
    """
    told: Any = generator
    shape = Shape(told.channels, tuple(str(label) for label in range(told.num_classes)))
    judge = _discriminator(options, shape)
    return copy.deepcopy(generator).to("meta").train(), judge.to("meta").train()


def _discriminator(options: TrainOptions, shape: Shape) -> nn.Module:
    arguments = {
        "size": options.size,
        "channels": shape.channels,
        "width": options.d_width,
        "num_classes": len(shape.classes),
    }
    return build(DISCRIMINATOR, arguments, seed=step_seed(options.seed, 0, 3))
