"""The generator that ships, judged by the classifier that ships: no data set is needed."""

from __future__ import annotations

import torch
from torch import nn

from normapps.gan.opening import open_generator
from normapps.gan.sampling import latents, sample
from normapps.models.folder import build, load_model, read_manifest
from normapps.models.shipped import resolve_model

EACH = 20


def _recognized(generator: nn.Module, classes: tuple[str, ...]) -> float:
    """Share of drawn pictures that the classifier takes for the class they were drawn for."""
    folder = resolve_model("fmnist-cnn")
    known = tuple(read_manifest(folder).history[-1]["classes"])
    wanted = torch.arange(len(classes)).repeat_interleave(EACH)
    z = latents(range(len(wanted)), 128)
    drawn = sample(generator, z, wanted).float() / 127.5 - 1
    with torch.no_grad():
        answers = load_model(folder)(drawn).argmax(1)
    right = [known[int(a)] == classes[int(w)] for a, w in zip(answers, wanted, strict=True)]
    return sum(right) / len(right)


def test_shipped_generator_draws_what_it_is_asked_for() -> None:
    opened = open_generator("sngan-fmnist")
    arguments = read_manifest(resolve_model("sngan-fmnist")).arguments
    untrained = build("sngan-generator", arguments, seed=0).eval()

    share, chance = (_recognized(each, opened.classes) for each in (opened.generator, untrained))

    assert share > 0.65
    assert chance < 0.3
