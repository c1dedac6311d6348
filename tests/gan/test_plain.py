"""Networks of plain layers compute what those with normalized weights and populations do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normapps.errors import InputError
from normapps.gan import plain as module
from normapps.gan.normalization import normalize_discriminator_
from normapps.gan.plain import ColoringTable, plain
from normapps.gan.sampling import latents, standing_
from normapps.models.folder import build
from normapps.norm.weight import spectral_norm_

SMALL: dict[str, Any] = {"size": 28, "channels": 1, "latent": 6, "width": 8}


@pytest.mark.parametrize(
    ("norm", "classes", "folded", "left"),
    [("bn", 0, 2, 3), ("cbn", 3, 0, 5), ("self-mod", 3, 0, 5), ("wc", 3, 1, 0), ("wc", 0, 5, 0)],
)
def test_a_generator_becomes_plain(norm: str, classes: int, folded: int, left: int) -> None:
    generator = build("sngan-generator", SMALL | {"norm": norm, "num_classes": classes}, seed=0)
    standing_(generator, 64)
    generator.double().eval()
    for name, parameter in generator.named_parameters():
        if "class_" in name:  # else all classes would be one
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    z = latents(range(5), 6).double()
    inputs = (z, torch.tensor([2, 0, 1, 1, 2])) if classes else (z,)
    made = plain(generator, inputs)
    assert (made.folded, len(made.left)) == (folded, left)
    others = (latents([9], 6).double(), torch.tensor([1]))[: len(inputs)]
    with torch.no_grad():
        assert torch.allclose(made.model(*others), generator(*others), rtol=0, atol=1e-9)
    kinds = {type(each) for each in made.model.modules()}
    assert nn.ConvTranspose2d in kinds
    assert (ColoringTable in kinds) == (norm == "wc" and classes > 0)


@pytest.mark.parametrize("kind", ["sn", "ws", "none"])
def test_a_discriminator_becomes_plain(kind: str) -> None:
    network = build("sngan-discriminator", {"size": 28, "channels": 1, "width": 8}, seed=0)
    network = normalize_discriminator_(network.double(), kind, size=28).eval()
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    with torch.no_grad():
        wanted = network(x)
        made = plain(network, (x,)).model
        assert torch.allclose(made(x), wanted, rtol=1e-9, atol=1e-9)
        assert torch.equal(network(x), wanted)
    assert not any(parametrize.is_parametrized(each) for each in made.modules())
    assert any(parametrize.is_parametrized(each) for each in network.modules()) == (kind != "none")


def test_spectral_normalization_of_a_generator_is_baked_in() -> None:
    generator = build("sngan-generator", SMALL, seed=0)
    spectral_norm_(generator)
    standing_(generator, 64)
    z = latents(range(4), 6)
    made = plain(generator.eval(), (z,))
    with torch.no_grad():
        assert torch.allclose(made.model(z), generator(z), rtol=0, atol=1e-5)
    weight = made.model.get_submodule("blocks.0.shortcut").get_parameter("weight")
    assert torch.linalg.matrix_norm(weight.flatten(1).double(), 2).item() == pytest.approx(
        1, abs=1e-3
    )


def test_a_wrong_copy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = module.upsampling_kernel
    monkeypatch.setattr(module, "upsampling_kernel", lambda weight: 1.01 * kernel(weight))
    generator = build("sngan-generator", SMALL, seed=0).eval()
    with pytest.raises(InputError, match="made of plain layers, it differs by"):
        plain(generator, (latents(range(4), 6),))
