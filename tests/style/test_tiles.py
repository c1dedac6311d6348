"""Tiles cover a picture exactly once; padding reflects; coverage counts true pixels."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.style.tiles import coverage, pad_to_stride, tiles

sizes = st.integers(1, 12).map(lambda n: 8 * n)


@given(sizes, sizes, sizes, st.sampled_from([0, 8, 24]))
def test_inner_parts_cover_every_pixel_once(h: int, w: int, side: int, margin: int) -> None:
    seen, image = torch.zeros(h, w), torch.arange(h * w).view(1, 1, h, w)
    for tile in tiles(h, w, side, margin):
        top, bottom, left, right = tile.inner
        seen[top:bottom, left:right] += 1
        assert torch.equal(tile.crop(tile.cut(image)), image[..., top:bottom, left:right])
        assert min(tile.outer) >= 0
        assert tile.outer[0] == max(0, top - margin)
        assert tile.outer[3] == min(w, right + margin)
    assert bool((seen == 1).all())


@given(st.integers(1, 40), st.integers(1, 40))
def test_padding_is_numpys_reflection(h: int, w: int) -> None:
    image = torch.arange(3 * h * w).view(1, 3, h, w)
    got = pad_to_stride(image, 8, 16)
    height, width = (max(16, -(-n // 8) * 8) for n in (h, w))
    want = image.numpy()
    for axis, (old, new) in enumerate(((h, height), (w, width)), 2):
        widths = [(0, 0)] * 4
        widths[axis] = (0, new - old)
        want = np.pad(want, widths, mode="reflect" if old > 1 else "edge")
    assert np.array_equal(got.numpy(), want)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8]))
def test_coverage_is_the_mean_of_a_mask(h: int, w: int, stride: int) -> None:
    height, width = (-(-n // 8) * 8 for n in (h, w))
    mask = torch.zeros(1, 1, height, width)
    mask[..., :h, :w] = 1
    want = torch.nn.functional.avg_pool2d(mask, stride)
    assert torch.allclose(coverage((h, w), (0, height, 0, width), stride), want)
