"""Batch norm of ours against torch's, to the bit, and what torch's cannot do."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import Moments, standardize
from normapps.norm.layers.batch import BatchNorm, BatchNorm2d
from normapps.norm.registry import create_norm

TORCH = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
SHAPES = {"1d": (4, 3, 7), "2d": (4, 3, 5, 6), "3d": (4, 3, 2, 3, 4)}


def _steps(shape: tuple[int, ...], count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * (i + 1) + i for i in range(count)]


@pytest.mark.parametrize("layout", TORCH)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_it_is_torchs_layer_to_the_bit(layout: str, affine: bool, tracked: bool) -> None:
    options = {"affine": affine, "track_running_stats": tracked, "momentum": 0.3, "eps": 1e-3}
    ours = create_norm("batch", 3, layout=layout, **options)
    theirs = TORCH[layout](3, **options)
    assert isinstance(ours, TORCH[layout])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training, x in itertools.product((True, False), _steps(SHAPES[layout])):
        ours.train(training)
        theirs.train(training)
        assert torch.equal(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_two_axes_are_one_dimensional() -> None:
    x = torch.randn(8, 3)
    assert torch.equal(create_norm("batch", 3, layout="1d")(x), nn.BatchNorm1d(3)(x))


def test_without_momentum_all_batches_weigh_the_same() -> None:
    ours, theirs = BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    batches = _steps(SHAPES["2d"])
    for x in batches:
        assert torch.equal(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    mean = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(ours.running_mean, mean)


def test_the_generic_path_agrees_with_the_kernel() -> None:
    """`moments` and `standardize` are what `sync` computes with; the kernel is torch's."""
    x = _steps(SHAPES["2d"])[1]
    ours, theirs = BatchNorm2d(3), BatchNorm2d(3)
    found = standardize(x, ours.moments(x), ours.eps)
    torch.testing.assert_close(found, theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == 1
    population = ours.eval().moments(x)
    assert torch.equal(population.mean[0], ours.running_mean)
    torch.testing.assert_close(standardize(x, population, ours.eps), theirs.eval()(x))


def test_sync_in_one_process_is_the_kernel() -> None:
    x = _steps(SHAPES["2d"])[1]
    assert torch.equal(BatchNorm2d(3, sync=True)(x), nn.BatchNorm2d(3)(x))


def test_without_a_bias() -> None:
    layer = BatchNorm2d(3, bias=False)
    assert list(dict(layer.named_parameters())) == ["weight"]
    x = _steps(SHAPES["2d"])[1]
    assert torch.equal(layer(x), nn.BatchNorm2d(3)(x))


def test_one_value_a_channel_is_refused_in_training_only() -> None:
    layer, x = create_norm("batch", 3), torch.randn(1, 3, 1, 1)
    with pytest.raises(InputError, match=r"1 sample.* a channel, needs 2; .*drop_last"):
        layer(x)
    assert layer.num_batches_tracked == 0
    assert torch.isfinite(layer.eval()(x)).all()


def test_frozen_survives_train() -> None:
    layer, x = BatchNorm2d(3), _steps(SHAPES["2d"])[1]
    layer(x)
    layer.frozen = True
    layer.train()
    assert torch.equal(layer(x), layer.eval()(x))
    assert layer.num_batches_tracked == 1


def test_population_of_a_layer_that_has_none() -> None:
    with pytest.raises(InputError, match="tracks no population"):
        BatchNorm(3, track_running_stats=False).population()


def test_fold_into_a_convolution_as_torch_does() -> None:
    conv, norm = nn.Conv2d(3, 5, 3), BatchNorm2d(5)
    x = torch.randn(4, 3, 8, 8)
    for _ in range(3):
        norm(conv(x))
    fused = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
    torch.testing.assert_close(fused(x), norm(conv(x)), rtol=1e-4, atol=1e-5)


def test_a_population_in_half_precision_is_used_in_float32() -> None:
    layer = BatchNorm2d(3).to(torch.bfloat16)
    assert layer.eval().population().mean.dtype == torch.float32
    assert isinstance(layer.population(), Moments)


def test_without_a_population_one_sample_is_refused_at_inference_too() -> None:
    layer = create_norm("batch", 4, track_running_stats=False).eval()
    with pytest.raises(InputError, match=r"without a population: 1 sample.*track_running_stats"):
        layer(torch.randn(1, 4))
