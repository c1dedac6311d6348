"""SNGAN's networks: published sizes, channel tables, whole passes against plain functions."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.folder import load_model, save_model
from normapps.models.sngan import (
    GENERATORS,
    PAPER_WIDTHS,
    SnganDiscriminator,
    SnganGenerator,
    sngan_discriminator,
    sngan_generator,
)
from normapps.models.sngan_blocks import DiscriminatorBlock, GeneratorBlock
from normapps.norm.weight import spectral_norm_

SIZES = tuple(GENERATORS)


def _parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def test_they_have_the_published_numbers_of_parameters() -> None:
    assert _parameters(sngan_generator()) == 4_276_739
    assert round(_parameters(sngan_discriminator()) / 1e6, 2) == 1.05
    # the projection adds an embedding of the classes, conditional norm 2·C scales a class more
    conditional = sngan_discriminator(num_classes=10)
    assert _parameters(conditional) - _parameters(sngan_discriminator()) == 10 * 128
    added = _parameters(sngan_generator(num_classes=10, norm="cbn")) - 4_276_739
    assert added == 6 * 2 * 256 * 9  # six norms in the blocks; the last one stays unconditional


def _channels(network: nn.Module) -> list[tuple[int, int]]:
    kinds = (GeneratorBlock, DiscriminatorBlock)
    blocks = [each for each in network.modules() if isinstance(each, kinds)]
    return [(each.conv1.in_channels, each.conv2.out_channels) for each in blocks]


@pytest.mark.parametrize(
    ("size", "bottom", "generator", "discriminator"),
    [
        (32, 4, [256] * 4, [3, *[128] * 4]),
        # mimicry's; the paper's STL-10 networks (table 4, figure 8) are not in the authors' code
        (48, 6, [512, 256, 128, 64], [3, 64, 128, 256, 512, 1024]),
        (64, 4, [1024, 512, 256, 128, 64], [3, 64, 128, 256, 512, 1024]),
        (128, 4, [1024, 1024, 512, 256, 128, 64], [3, 64, 128, 256, 512, 1024, 1024]),
    ],
)
def test_the_channels_are_those_of_the_public_code(
    size: int, bottom: int, generator: list[int], discriminator: list[int]
) -> None:
    widths = PAPER_WIDTHS[size]
    with torch.device("meta"):
        g = sngan_generator(size, width=widths[0])
        d = sngan_discriminator(size, width=widths[1])
    assert _channels(g) == list(pairwise(generator))
    assert _channels(d) == list(pairwise(discriminator))
    assert g.linear.out_features == bottom**2 * generator[0]
    pooling = [each.is_pooling for each in d.blocks if isinstance(each, DiscriminatorBlock)]
    plain = {32: 2, 48: 1, 64: 0, 128: 1}[size]  # blocks at the end that keep the size
    assert pooling == [True] * (len(pooling) - plain) + [False] * plain
    # the hidden features of a discriminator's block are as wide as its input, but of the first
    assert [each.conv1.out_channels for each in d.blocks] == [
        discriminator[1],
        *discriminator[1:-1],
    ]
    assert (d.linear.bias is None) == (size == 32)


def _conv(layer: nn.Module, x: Tensor, padding: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=padding)  # type: ignore[arg-type]


def _up(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _plain_generator(g: SnganGenerator, z: Tensor) -> Tensor:
    def norm(layer: nn.Module, x: Tensor) -> Tensor:
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        return F.batch_norm(x, None, None, weight, bias, True, eps=2e-5)

    x = g.linear(z).reshape(len(z), -1, g.bottom, g.bottom)
    for block in g.blocks:
        assert isinstance(block, GeneratorBlock)
        h = _conv(block.conv1, _up(norm(block.norm1, x).relu()))
        h = _conv(block.conv2, norm(block.norm2, h).relu())
        x = h + _conv(block.shortcut, _up(x), padding=0)
    return torch.tanh(_conv(g.conv, norm(g.norm, x).relu()))


def _plain_discriminator(d: SnganDiscriminator, x: Tensor, y: Tensor | None) -> Tensor:
    for index, block in enumerate(d.blocks):
        assert isinstance(block, DiscriminatorBlock)
        h = _conv(block.conv2, _conv(block.conv1, x.relu() if index else x).relu())
        keeps = isinstance(block.shortcut, nn.Identity)
        h = h + (x if keeps else _conv(block.shortcut, x, padding=0))
        x = F.avg_pool2d(h, 2) if block.is_pooling else h
    h = x.relu().sum((2, 3))
    logits = d.linear(h)[:, 0]
    return logits if y is None or d.embedding is None else logits + (h * d.embedding(y)).sum(1)


def _same_gradients(network: nn.Module, fast: Tensor, plain: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    leaves = [x, *network.parameters()]
    towards = torch.linspace(-1, 1, fast.numel(), dtype=torch.float64).reshape(fast.shape)
    ours = torch.autograd.grad((fast * towards).sum(), leaves)
    theirs = torch.autograd.grad((plain * towards).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-8, atol=1e-8 * (1 + float(other.abs().max()))
        )


@pytest.mark.parametrize("size", SIZES)
def test_a_generator_is_the_plain_one(size: int) -> None:
    torch.manual_seed(0)
    g = sngan_generator(size, latent=5, width=16).double()
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    pictures = g(z)
    assert pictures.shape == (3, 3, size, size)
    assert float(pictures.detach().abs().max()) <= 1
    _same_gradients(g, pictures, _plain_generator(g, z), z)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_normalized", [False, True])
def test_a_discriminator_is_the_plain_one_also_spectrally_normalized(
    size: int, is_normalized: bool
) -> None:
    torch.manual_seed(0)
    d = sngan_discriminator(size, channels=1, width=16, num_classes=3).double()
    if is_normalized:
        spectral_norm_(d)
    x = torch.rand(2, 1, size, size, dtype=torch.float64).mul(2).sub(1).requires_grad_()
    y = torch.tensor([2, 0])
    logits = d(x, y)
    assert logits.shape == (2,)
    _same_gradients(d, logits, _plain_discriminator(d, x, y), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_makes_pictures_of_its_size_and_judges_them(channels: int) -> None:
    for size in SIZES:
        g = sngan_generator(size, channels, latent=4, width=16).eval()
        d = sngan_discriminator(size, channels, width=16).eval()
        with torch.no_grad():
            pictures = g(torch.randn(2, 4))
            assert pictures.shape == (2, channels, size, size)
            assert d(pictures).shape == (2,)
        assert (g.size, g.channels, g.latent, g.num_classes) == (size, channels, 4, 0)


@pytest.mark.parametrize("norm", ["cbn", "wc", "self-mod"])
def test_the_class_decides_in_every_norm_that_knows_classes(norm: str) -> None:
    torch.manual_seed(0)
    g = sngan_generator(28, 1, latent=4, width=8, num_classes=3, norm=norm)
    with torch.no_grad():
        for path, each in g.named_parameters():
            if any(part in path for part in ("norm1", "norm2", "embedding")):
                each.add_(torch.randn_like(each) / 3)
    g.eval()
    z = torch.randn(1, 4).expand(3, 4)
    with torch.no_grad():
        one, two, again = g(z, torch.tensor([0, 1, 0]))
    assert float((one - two).abs().max()) > 1e-3
    torch.testing.assert_close(one, again)


def test_self_modulation_takes_the_latent_plus_the_class() -> None:
    g = sngan_generator(28, 1, latent=4, width=8, num_classes=3, norm="self-mod").eval()
    assert g.embedding is not None
    z, y = torch.randn(2, 4), torch.tensor([1, 2])
    with torch.no_grad():
        got = g(z, y)
        g.embedding.weight.add_(1)
        torch.testing.assert_close(g(z - 1, y), got, rtol=1e-4, atol=1e-4)


def test_the_projection_is_an_inner_product_with_the_class() -> None:
    d = sngan_discriminator(28, 1, width=8, num_classes=2)
    x = torch.rand(1, 1, 28, 28).expand(2, 1, 28, 28)
    assert d.embedding is not None
    seen: list[Tensor] = []
    d.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        first, second = d(x, torch.tensor([0, 1]))
        between = (d.embedding.weight[1] - d.embedding.weight[0]) @ seen[0][0]
    torch.testing.assert_close(second - first, between, rtol=1e-4, atol=1e-4)


def test_the_initial_weights_have_the_authors_gains() -> None:
    torch.manual_seed(0)
    for network in (sngan_generator(32, width=64), sngan_discriminator(32, width=64)):
        for path, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            weight, area = layer.weight.detach(), layer.weight[0, 0].numel()
            gain = math.sqrt(2) if ".conv" in path else 1.0
            bound = gain * math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * area))
            assert 0.9 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6), path
            assert layer.bias is None or not layer.bias.detach().any(), path


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_logits_are_summed_in_float32_under_autocast(precision: torch.dtype) -> None:
    d = sngan_discriminator(28, 1, width=8)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        logits = d(torch.rand(2, 1, 28, 28))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(("norm", "classes"), [("bn", 0), ("cbn", 3)])
def test_a_generator_compiles_into_one_graph(norm: str, classes: int) -> None:
    g = sngan_generator(28, 1, latent=4, width=8, num_classes=classes, norm=norm)
    z, y = torch.randn(4, 4), torch.arange(4) % 3 if classes else None
    compiled = torch.compile(g, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, y), g(z, y), rtol=1e-4, atol=1e-4)


def test_a_normalized_discriminator_compiles_into_one_graph() -> None:
    d = sngan_discriminator(28, 1, width=8, num_classes=3)
    spectral_norm_(d)
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 1])
    compiled = torch.compile(d, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), d(x, y), rtol=1e-4, atol=1e-4)


def test_model_folders_of_them_open_again(tmp_path: Path) -> None:
    arguments = {"size": 28, "channels": 1, "latent": 4, "width": 8}
    g = sngan_generator(28, 1, latent=4, width=8).eval()
    save_model(tmp_path / "g", g, builder="sngan-generator", arguments=arguments)
    d = sngan_discriminator(28, 1, width=8, num_classes=2).eval()
    arguments = {"size": 28, "channels": 1, "width": 8, "num_classes": 2}
    save_model(tmp_path / "d", d, builder="sngan-discriminator", arguments=arguments)
    z = torch.randn(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "g")(z), g(z), rtol=0, atol=0)
        y = torch.tensor([0, 1])
        torch.testing.assert_close(load_model(tmp_path / "d")(g(z), y), d(g(z), y))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 30}, "size 30: must be one of 28, 32, 48, 64, 128"),
        ({"size": 64, "width": 24}, "width 24: must be a multiple of 16"),
        ({"width": 0}, "width 0"),
        ({"latent": 0}, "latent 0: must be at least 1"),
        ({"channels": 0}, "channels 0: must be at least 1"),
        ({"num_classes": -1}, "num_classes -1: must be at least 0"),
        ({"norm": "cbn"}, "norm 'cbn' needs classes"),
        ({"norm": "bn", "num_classes": 3}, "norm 'bn' knows no classes; take one of cbn,"),
        ({"norm": "batch"}, "unknown generator norm 'batch'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        sngan_generator(**arguments)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_refused() -> None:
    g = sngan_generator(28, 1, latent=4, width=8)
    d = sngan_discriminator(28, 1, width=8, num_classes=2)
    with pytest.raises(InputError, match=r"latents of \(2, 5\): must be \(N, 4\)"):
        g(torch.zeros(2, 5))
    with pytest.raises(InputError, match="no classes: leave the labels out"):
        g(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match=r"pictures of \(2, 1, 32, 32\): must be \(N, 1, 28, 28\)"):
        d(torch.zeros(2, 1, 32, 32))
    with pytest.raises(InputError, match="has 2 classes: give labels"):
        d(torch.zeros(2, 1, 28, 28))
