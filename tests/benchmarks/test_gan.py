"""The benchmark of GANs: the plain implementation is the same network, the card's command too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import normapps.models  # noqa: F401  (guard)
from normapps.gan.options import TrainOptions
from normapps.models.sngan import sngan_discriminator, sngan_generator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_the_plain_networks_are_ours(size: int, channels: int) -> None:
    """What is timed computes the same: the same pictures and logits of the same weights."""
    from sngan_plain import Discriminator, Generator

    ours = sngan_generator(size=size, channels=channels, latent=16, width=8).double().eval()
    plain = Generator(size, channels, 16, 8).double().eval()
    plain.load_state_dict(ours.state_dict())
    z = torch.randn(3, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(z), ours(z))
    judge = sngan_discriminator(size=size, channels=channels, width=8).double()
    other = Discriminator(channels, 8).double().eval()
    for name, parameter in judge.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "weight":  # spectrally normalized, as trained: the quotient is the weight
            parameter.data.copy_(other.get_submodule(layer).weight)
        else:
            parameter.data.copy_(other.get_parameter(name))
    x = torch.randn(3, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(other(x), judge(x))


def test_a_plain_step_changes_both_networks() -> None:
    from sngan_plain import PlainGan

    gan = PlainGan(28, 1, 8, 4, 2, 2, 10, torch.device("cpu"), is_half=False)
    before = [each.clone() for each in gan.generator.parameters()]
    judged = [each.clone() for each in gan.discriminator.parameters()]
    taken = iter(torch.randn(2, 2, 1, 28, 28))
    gan.step(0, taken)
    assert next(taken, None) is None  # n_dis batches, no more
    for old, new in ((before, gan.generator), (judged, gan.discriminator)):
        assert any(not torch.equal(a, b) for a, b in zip(old, new.parameters(), strict=True))


def test_the_command_of_a_card_trains_the_same() -> None:
    from gan_card import command

    options = TrainOptions(
        data="fashion-mnist", config="sngan-28", width=64, d_width=64, steps=20_000, flip=True
    ).resolved()
    assert command(options) == (
        "normapps gan train --data fashion-mnist --config sngan-28 --steps 20000 --width 64"
        " --d-width 64 --flip -o RUN"
    )
