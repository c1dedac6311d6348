"""Moments in numpy against float64 sums, and against torch's."""

from __future__ import annotations

import numpy as np
import torch

from normapps.norm import INSTANCE, Moments
from normapps.norm import mix as mix_torch
from normapps.style.onnx.moments import Level, adain, mix, numbers_of


def _features(seed: int, shape: tuple[int, ...] = (1, 5, 6, 7)) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.standard_normal(shape) * 3 + 10).astype(np.float32)


def test_they_are_mean_and_biased_variance() -> None:
    x = _features(0)
    level, wide = Level.of(x), x.astype(np.float64).reshape(5, -1)
    assert level.count == 42
    np.testing.assert_allclose(level.mean, wide.mean(1), rtol=1e-6)
    np.testing.assert_allclose(level.var, wide.var(1), rtol=1e-5)
    np.testing.assert_allclose(level.std(0.5), np.sqrt(wide.var(1) + 0.5), rtol=1e-5)


def test_weights_count_positions() -> None:
    x, weight = _features(1), np.random.default_rng(2).random((6, 7), np.float32)
    level = Level.of(x, weight)
    share = weight.astype(np.float64) / weight.sum(dtype=np.float64)
    mean = (x[0].astype(np.float64) * share).sum((1, 2))
    np.testing.assert_allclose(level.mean, mean, rtol=1e-6)
    want = (np.square(x[0] - mean[:, None, None]) * share).sum((1, 2))
    np.testing.assert_allclose(level.var, want, rtol=1e-5)
    assert abs(level.count - weight.sum()) < 1e-4


def test_merged_parts_equal_the_whole() -> None:
    x = _features(3)
    merged = Level.of(x[..., :2]).merge(Level.of(x[..., 2:]))
    whole = Level.of(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(merged.var, whole.var, rtol=1e-5)


def test_mixing_is_torchs() -> None:
    xs = [_features(seed) for seed in (4, 5)]
    found = mix([Level.of(x) for x in xs], (0.3, 0.7))
    parts = [Moments.of(torch.from_numpy(x), INSTANCE) for x in xs]
    want = mix_torch(parts, (0.3, 0.7), "std")
    np.testing.assert_allclose(found.mean, want.mean[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.var, want.var[0].numpy(), rtol=1e-5)
    assert found.count == float(want.count[0])


def test_adain_gives_the_wanted_moments() -> None:
    x, other = _features(6), _features(7) * 2 + 1
    scale, shift = adain(Level.of(x), Level.of(other))
    found = Level.of(x * scale + shift)
    np.testing.assert_allclose(found.mean, Level.of(other).mean, rtol=1e-5)
    np.testing.assert_allclose(found.var, Level.of(other).var, rtol=1e-4)


def test_numbers_are_means_and_deviations_of_both_levels() -> None:
    fine, coarse = Level.of(_features(8)), Level.of(_features(9, (1, 3, 4, 4)))
    numbers = numbers_of((fine, coarse))
    assert numbers.shape == (1, 16)
    np.testing.assert_allclose(numbers[0, 5:10] ** 2, fine.var + 1e-5, rtol=1e-5)
    np.testing.assert_array_equal(numbers[0, 10:13], coarse.mean)
