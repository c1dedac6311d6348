"""The translator's networks against a plain re-implementation, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.folder import BUILDERS, load_model, save_model
from normapps.models.translator import (
    AdalinGenerator,
    adalin_generator,
    normalize_by,
    patch_discriminator,
)
from normapps.norm.moments import Moments
from normapps.norm.weight import spectral_norm_


def scattered(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter another value, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.4 * noise - 0.1)
    return network


def reference(state: dict[str, Tensor], x: Tensor, blocks: int, skip: bool) -> Tensor:
    """The generator written out: reflected convolutions, moments by hand, γ and β from the mean."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        p = weight.shape[-1] // 2
        padded = F.pad(x, (p, p, p, p), mode="reflect")
        return F.conv2d(padded, weight, state.get(f"{name}.bias"), stride)

    def standard(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        var = x.var(axes, unbiased=False, keepdim=True)
        return (x - x.mean(axes, keepdim=True)) / (var + 1e-5).sqrt()

    def norm(x: Tensor, name: str, change: Tensor | None = None) -> Tensor:
        scale, shift = (state[f"{name}.{part}"][None] for part in ("weight", "bias"))
        y = standard(x, (2, 3))
        if f"{name}.rho" in state:
            rho = state[f"{name}.rho"].clamp(0, 1)[:, None, None]
            y = rho * y + (1 - rho) * standard(x, (1, 2, 3))
        if change is not None:
            by, to = (change @ state[f"{name}.change.weight"].T).chunk(2, 1)
            scale, shift = scale + by, shift + to
        return y * scale[..., None, None] + shift[..., None, None]

    h = x
    for number, stride in enumerate((1, 2, 2)):
        h = norm(conv(h, f"encoder.{number}.conv", stride), f"encoder.{number}.norm").relu()
    for number in range(blocks):
        at = f"before.{number}"
        inner = norm(conv(h, f"{at}.first"), f"{at}.first_norm").relu()
        h = h + norm(conv(inner, f"{at}.second"), f"{at}.second_norm")
    z = h.mean((2, 3))
    for layer in ("latent.0", "latent.2"):
        z = (z @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).relu()
    for number in range(blocks):
        at = f"after.{number}"
        inner = norm(conv(h, f"{at}.first"), f"{at}.first_norm", z).relu()
        h = h + norm(conv(inner, f"{at}.second"), f"{at}.second_norm", z)
    for number in range(2):
        wide = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = norm(conv(wide, f"decoder.{number}.conv"), f"decoder.{number}.norm").relu()
    change = conv(h, "image")
    return x + change if skip else change.tanh()


@pytest.mark.parametrize("skip", [True, False])
def test_generator_is_what_is_written_out(skip: bool) -> None:
    network = scattered(adalin_generator(3, 4, 2, skip).double())
    x = torch.rand(2, 3, 20, 32, dtype=torch.float64) * 2 - 1
    wanted = reference(dict(network.state_dict()), x, 2, skip)
    torch.testing.assert_close(network(x), wanted, rtol=1e-9, atol=1e-9)


def test_modulation_comes_from_the_picture_itself() -> None:
    """Each sample has its own γ and β: a batch gives what its pictures give alone."""
    network = scattered(adalin_generator(3, 4, 1, skip=False).double())
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    alone = torch.cat([network(each[None]) for each in x])
    torch.testing.assert_close(network(x), alone, rtol=1e-10, atol=1e-10)
    latents: list[Tensor] = []
    network.get_submodule("latent").register_forward_hook(lambda _, __, out: latents.append(out))
    network(x)
    assert (latents[0].std(0) > 0).any()


def test_an_untrained_generator_that_adds_changes_nothing() -> None:
    x = torch.rand(1, 3, 24, 16) * 2 - 1
    assert torch.equal(adalin_generator(width=8, blocks=1)(x), x)


def test_without_skip_pictures_are_within_their_range() -> None:
    network = scattered(adalin_generator(1, 4, 1, skip=False))
    out = network(100 * torch.randn(2, 1, 16, 16))
    assert out.shape == (2, 1, 16, 16)
    assert out.abs().max() <= 1


def test_every_parameter_learns() -> None:
    network = scattered(adalin_generator(3, 4, 1))
    network(torch.rand(2, 3, 16, 16)).square().mean().backward()
    dead = [n for n, each in network.named_parameters() if each.grad is None or not each.grad.any()]
    assert dead == []


def test_the_default_is_light() -> None:
    count = sum(each.numel() for each in adalin_generator().parameters())
    assert count == 2_197_411
    assert sum(each.numel() for each in patch_discriminator().parameters()) == 746_018


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 16, 18), (1, 3, 12, 16), (3, 16, 16)])
def test_a_picture_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="generator got"):
        adalin_generator(3, 4, 1)(torch.zeros(shape))


@pytest.mark.parametrize("name", ["channels", "width", "blocks"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} 0: must be at least 1"):
        adalin_generator(**{name: 0})


@settings(max_examples=20)
@given(st.integers(0, 2**30), st.sampled_from(["encoder.1", "decoder.0"]))
def test_norms_by_known_moments_are_the_layers(seed: int, name: str) -> None:
    torch.manual_seed(seed)
    network = scattered(adalin_generator(3, 4, 1).double(), seed)
    norm = network.get_submodule(name).norm
    x = 3 * torch.randn(2, 8, 5, 6, dtype=torch.float64) + 1
    found = normalize_by(norm, x, Moments.of(x))
    torch.testing.assert_close(found, norm(x), rtol=1e-9, atol=1e-9)
    part = normalize_by(norm, x[:, :, :2], Moments.of(x))
    torch.testing.assert_close(part, norm(x)[:, :, :2], rtol=1e-9, atol=1e-9)


def test_discriminator_judges_patches_at_each_scale() -> None:
    network = patch_discriminator(3, 4, 2, 3).double()
    x = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    maps = network(x)
    assert [tuple(each.shape) for each in maps] == [(2, 1, 8, 12), (2, 1, 4, 6), (2, 1, 2, 3)]
    half = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    second = network.get_submodule("scales.1")(half)
    torch.testing.assert_close(maps[1], second, rtol=1e-10, atol=1e-12)


def test_a_patch_sees_its_surroundings_only() -> None:
    network = patch_discriminator(3, 4, 2, 1).double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    network(x)[0][0, 0, 0, 0].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen[0, 0]
    assert not seen[16:].any()
    assert not seen[:, 16:].any()


def test_spectral_norm_goes_onto_every_layer() -> None:
    network = patch_discriminator(3, 8, 2, 2)
    spectral_norm_(network)
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(each.weight.detach().flatten(1), 2).item() for each in layers]
    assert len(norms) == 6
    assert norms == pytest.approx([1.0] * 6, abs=2e-2)


@pytest.mark.parametrize("name", ["channels", "width", "layers", "scales"])
def test_discriminators_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} 0"):
        patch_discriminator(**{name: 0})


def test_folders_open_as_the_network_that_was_saved(tmp_path: Path) -> None:
    assert {"adalin-generator", "patch-discriminator"} <= set(BUILDERS)
    network = scattered(adalin_generator(3, 4, 1, skip=False))
    arguments = {"width": 4, "blocks": 1, "skip": False}
    save_model(tmp_path / "m", network, builder="adalin-generator", arguments=arguments)
    again = load_model(tmp_path / "m")
    assert isinstance(again, AdalinGenerator)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
