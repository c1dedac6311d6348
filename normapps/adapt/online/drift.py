"""How far the layers that follow a stream are from the source model's statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...norm.moments import Moments
from ...norm.partition import BATCH
from ...norm.population.algebra import distance, layer_means
from ...norm.population.fingerprint import Fingerprint
from ...norm.population.statistics import Population
from .configuration import streaming_layers


def moments_of(source: nn.Module) -> dict[str, Moments]:
    """Return the running moments of a network's layers by name; those of diagonal layers alone."""
    found = {}
    for name, layer in source.named_modules():
        mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1:
            found[name] = _stored(mean, var, torch.zeros(1))
    return found


def distances(model: nn.Module, known: dict[str, Moments]) -> dict[str, float]:
    """Return how far each layer's stream is from what is known of the source, in nats.

    The symmetric KL divergence between Gaussians, see `normapps.norm.distance`, its mean over a
    layer's channels. Of layers of rule `ema`, the running moments are the stream's.

    Args:
        model: as `configure_model` returns it. Layers that saw nothing are left out.
        known: as `moments_of` returns it.
    """
    layers = {}
    for name, layer in streaming_layers(model).items():
        if layer.rule == "ema" and layer.running_mean is not None and layer.running_var is not None:
            layers[name] = _stored(layer.running_mean, layer.running_var, torch.zeros(1))
        elif bool(layer.seen_count):
            layers[name] = _stored(layer.seen_mean, layer.seen_var, layer.seen_count)
    names = [name for name in layers if name in known]
    nobody = Fingerprint(())
    stream = Population({name: layers[name] for name in names}, nobody)
    source = Population({name: known[name] for name in names}, nobody)
    return layer_means(distance(stream, source))


def _stored(mean: Tensor, var: Tensor, count: Tensor) -> Moments:
    rows = [each.detach().double().cpu() for each in (count, mean[None], var[None])]
    return Moments(rows[0], rows[1], rows[2], None, BATCH)
