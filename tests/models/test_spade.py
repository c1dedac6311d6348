"""SPADE's networks: what the map does at every position, sizes, norms of the weights, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.folder import load_model, save_model
from normapps.models.spade import (
    MapDiscriminator,
    SpadeBlock,
    SpadeGenerator,
    one_hot,
    spade_generator,
)
from normapps.norm.layers.spatial import SpatialNorm
from normapps.norm.weight import remove_spectral_norm_

SMALL: dict[str, Any] = {"classes": 3, "size": 16, "width": 4, "ups": 2, "hidden": 4}


def _awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every SPADE something to say: they start as their base normalization."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, SpatialNorm):
            weight = layer.change.weight
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return network


def _maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))


def _spade(x: Tensor, label_map: Tensor, layer: SpatialNorm, act: bool) -> Tensor:
    """Park et al. 2019, eq. 1, as written: instance moments, γ and β of the map."""
    mean = x.mean((2, 3), keepdim=True)
    normal = (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    small = label_map[..., :: label_map.shape[2] // x.shape[2], :: label_map.shape[3] // x.shape[3]]
    hidden = F.relu(F.conv2d(small, layer.hidden.weight, layer.hidden.bias, padding=1))
    gamma, beta = F.conv2d(hidden, layer.change.weight, padding=1).chunk(2, 1)
    assert layer.weight is not None
    assert layer.bias is not None
    gamma = gamma + layer.weight[:, None, None]
    y = normal * gamma + beta + layer.bias[:, None, None]
    return torch.where(y > 0, y, 0.2 * y) if act else y


@pytest.mark.parametrize("outputs", [4, 6])
def test_a_block_is_the_papers_figure(outputs: int) -> None:
    torch.manual_seed(0)
    block = SpadeBlock(4, outputs, 3, 5, "instance").double()
    _awake(block)
    x, label_map = torch.randn(2, 4, 6, 8).double(), one_hot(_maps(2, 12, 16), 3).double()
    middle = F.conv2d(
        _spade(x, label_map, block.norm_0, True), block.conv_0.weight, block.conv_0.bias, padding=1
    )
    deep = F.conv2d(
        _spade(middle, label_map, block.norm_1, True),
        block.conv_1.weight,
        block.conv_1.bias,
        padding=1,
    )
    short = x
    if outputs != 4:
        short = F.conv2d(_spade(x, label_map, block.norm_s, False), block.conv_s.weight)
    torch.testing.assert_close(block(x, label_map), short + deep, rtol=1e-10, atol=1e-10)


def test_one_hot_has_no_channel_for_what_is_no_class() -> None:
    made = one_hot(torch.tensor([[[0, 2, 255]]]), 3)
    expected = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0]], np.float32)
    np.testing.assert_array_equal(made[0, :, 0].numpy(), expected)


@pytest.mark.parametrize("latent", [0, 5])
@pytest.mark.parametrize("shape", [(16, 16), (8, 20), (4, 4)])
def test_any_size_that_the_stride_divides_is_drawn(latent: int, shape: tuple[int, int]) -> None:
    generator = spade_generator(**SMALL, latent=latent).eval()
    z = torch.randn(2, latent) if latent else None
    picture = generator(one_hot(_maps(2, *shape), 3), z)
    assert picture.shape == (2, 3, *shape)
    assert bool((picture.abs() <= 1).all())


def test_channels_double_towards_the_start_up_to_eight_widths() -> None:
    generator = SpadeGenerator(3, size=64, width=4, ups=5, hidden=4)
    assert [block.conv_1.out_channels for block in generator.blocks] == [32, 32, 32, 16, 8, 4]
    assert generator.stride == 32


def test_a_latent_varies_the_picture_and_the_map_still_decides() -> None:
    torch.manual_seed(0)
    generator = _awake(spade_generator(**SMALL, latent=4, base="instance"))
    label_map, z = one_hot(_maps(1, 16, 16), 3), torch.randn(2, 4)
    first, second = (generator(label_map, each[None]) for each in z)
    assert (first - second).abs().max() > 1e-2
    other = generator(label_map.flip(-1), z[:1])
    assert (first - other).abs().max() > 1e-2


def test_the_map_is_seen_where_it_changes_and_not_elsewhere() -> None:
    generator = _awake(spade_generator(**{**SMALL, "size": 64, "ups": 1})).eval()
    maps = _maps(1, 64, 64)
    changed = maps.clone()
    changed[0, 0, 0] = (maps[0, 0, 0] + 1) % 3
    first, second = generator(one_hot(maps, 3)), generator(one_hot(changed, 3))
    is_moved = (first - second).abs().amax((0, 1)) > 0
    assert bool(is_moved[:8, :8].any())
    assert not bool(is_moved[40:, 40:].any())  # measured statistics: no position reaches all others


def test_maps_of_one_class_give_different_pictures_by_the_modulation_alone() -> None:
    """Normalized by their own moments, constant features are 0 whichever class made them."""
    torch.manual_seed(0)
    generator = spade_generator(**SMALL, base="instance")
    flat = [one_hot(torch.full((1, 16, 16), index), 3) for index in range(2)]

    def apart() -> float:
        blocks = [generator.get_submodule("blocks.0")(torch.full((1, 16, 6, 6), 1.0 + i), each)
                  for i, each in enumerate(flat)]  # fmt: skip
        main = [each - (1.0 + i) for i, each in enumerate(blocks)]  # without the shortcut
        return float((main[0] - main[1]).detach().abs().max())

    assert apart() < 1e-5
    _awake(generator)
    assert apart() > 1e-2


def test_the_blocks_weights_have_spectral_norm_one_and_the_baked_network_is_the_same() -> None:
    torch.manual_seed(0)
    generator = _awake(spade_generator(**SMALL)).eval()
    label_map = one_hot(_maps(2, 16, 16), 3)
    expected = generator(label_map)
    block: Any = generator.get_submodule("blocks.1")
    for conv in (block.conv_0, block.conv_1, block.conv_s):
        sigma = np.linalg.norm(conv.weight.detach().flatten(1).double().numpy(), 2)
        assert sigma == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(block.norm_0.hidden.weight.detach().flatten(1).numpy(), 2) != 1
    remove_spectral_norm_(generator)
    plain = spade_generator(**SMALL, spectral=False).eval()
    plain.load_state_dict(generator.state_dict())
    torch.testing.assert_close(plain(label_map), expected)


def test_a_model_folder_of_it_opens_again(tmp_path: Path) -> None:
    arguments = {**SMALL, "latent": 2}
    model = _awake(spade_generator(**arguments)).eval()
    save_model(tmp_path / "m", model, builder="spade-generator", arguments=arguments)
    label_map, z = one_hot(_maps(1, 16, 16), 3), torch.randn(1, 2)
    torch.testing.assert_close(load_model(tmp_path / "m")(label_map, z), model(label_map, z))


def test_the_discriminator_sees_picture_and_map_at_each_scale() -> None:
    torch.manual_seed(0)
    judge = MapDiscriminator(3, width=4, layers=3, scales=2)
    picture, label_map = torch.randn(2, 3, 32, 32), one_hot(_maps(2, 32, 32), 3)
    found = judge(picture, label_map)
    assert [[each.shape[1] for each in scale] for scale in found] == [[4, 8, 16, 1]] * 2
    assert [scale[0].shape[-1] for scale in found] == [17, 9]
    for changed in (judge(-picture, label_map), judge(picture, label_map.flip(-1))):
        for scale, other in zip(found, changed, strict=True):
            assert (scale[-1] - other[-1]).abs().max() > 1e-3


def test_the_discriminators_judgement_of_a_picture_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    judge = MapDiscriminator(3, width=4).eval()
    picture, label_map = torch.randn(3, 3, 32, 32), one_hot(_maps(3, 32, 32), 3)
    alone, together = judge(picture[:1], label_map[:1]), judge(picture, label_map)
    torch.testing.assert_close(alone[0][-1], together[0][-1][:1])


def test_all_but_the_last_convolution_of_the_discriminator_are_spectrally_normalized() -> None:
    judge = MapDiscriminator(3, width=4)
    names = {
        name.split(".parametrizations")[0]
        for name, _ in judge.named_parameters()
        if "original" in name
    }
    convs = {name for name, each in judge.named_modules() if isinstance(each, nn.Conv2d)}
    assert convs - names == {"critics.0.score", "critics.1.score"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": 0}, "classes 0: must be at least 1"),
        ({"latent": -1}, "latent -1: must be at least 0"),
        ({"size": 18}, "size 18: must be a multiple of 4"),
        ({"base": "layer"}, "unknown base 'layer'"),
    ],
)
def test_numbers_that_do_not_fit_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        spade_generator(**{**SMALL, **wrong})


@pytest.mark.parametrize("shape", [(1, 3, 16, 18), (1, 2, 16, 16), (3, 16, 16)])
def test_a_map_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be \(N, 3, H, W\) with H and W multiples of 4"):
        spade_generator(**SMALL)(torch.zeros(shape))


def test_a_missing_or_wrong_latent_is_refused() -> None:
    generator = spade_generator(**SMALL, latent=4)
    label_map = one_hot(_maps(2, 16, 16), 3)
    with pytest.raises(InputError, match=r"latent is none; it must be \(2, 4\)"):
        generator(label_map)
    with pytest.raises(InputError, match=r"latent is \(1, 4\); it must be \(2, 4\)"):
        generator(label_map, torch.zeros(1, 4))
