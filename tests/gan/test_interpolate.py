"""Ways between latents against numpy's arithmetic; grids and animations, frame by frame."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from normapps.errors import InputError
from normapps.gan.interpolate import interpolate, slerp, way
from normapps.gan.opening import open_generator
from normapps.gan.pages import grid
from normapps.gan.sample_options import InterpolateOptions
from normapps.gan.sampling import latents, sample

sys.path.insert(0, str(Path(__file__).parent))
from gan_runs import make_generator

CPU = {"device": "cpu"}


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_slerp_turns_evenly_and_its_length_moves_evenly(seed: int, t: float) -> None:
    a, b = np.random.default_rng(seed).standard_normal((2, 9)).astype(np.float32)
    got = slerp(torch.from_numpy(a), torch.from_numpy(b), torch.tensor([t]))[0].double().numpy()

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.arccos(np.clip(x @ y / np.linalg.norm(x) / np.linalg.norm(y), -1, 1)))

    x, y = a.astype(np.float64), b.astype(np.float64)
    length = (1 - t) * np.linalg.norm(x) + t * np.linalg.norm(y)
    assert np.linalg.norm(got) == pytest.approx(length, rel=1e-5)
    assert angle(x, got) == pytest.approx(t * angle(x, y), abs=2e-3)
    assert angle(got, y) == pytest.approx((1 - t) * angle(x, y), abs=2e-3)


def test_the_ends_are_the_latents_themselves() -> None:
    a, b = latents([0, 1], 16)
    ends = slerp(a, b, torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, torch.stack([a, b]))


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
def test_parallel_opposite_and_zero_go_straight(factor: float) -> None:
    a = latents([0], 8)[0]
    middle = slerp(a, factor * a, torch.tensor([0.25]))[0]
    assert torch.allclose(middle, a * (0.75 + 0.25 * factor), atol=1e-6)


def test_a_way_passes_every_latent() -> None:
    z = latents([4, 5, 6], 8)
    there = way(z, 5)
    assert there.shape == (11, 8)
    assert torch.equal(there[::5], z)
    assert torch.equal(there[7], slerp(z[1], z[2], torch.tensor([2 / 5], dtype=torch.float64))[0])
    round_ = way(z, 5, loop=True)
    assert round_.shape == (15, 8)
    assert torch.equal(round_[:10], there[:10])
    assert torch.equal(round_[10], z[2])
    assert torch.equal(round_[11], slerp(z[2], z[0], torch.tensor([1 / 5], dtype=torch.float64))[0])


@pytest.mark.parametrize("loop", [False, True])
def test_the_grid_has_a_row_a_stretch(tmp_path: Path, loop: bool) -> None:
    folder = make_generator(tmp_path / "g", ("bag", "boot"))
    options = InterpolateOptions(seeds="0-2", frames=2, scale=1, loop=loop, labels=False, **CPU)
    report = interpolate(folder, tmp_path / "way.png", options)
    opened = open_generator(folder)
    z = way(latents([0, 1, 2], 6), 2)
    whole = [sample(opened.generator, z, torch.full((5,), label)) for label in (0, 1)]
    if loop:
        back = way(latents([2, 0], 6), 2)[1:]
        for label in (0, 1):
            more = sample(opened.generator, back, torch.full((2,), label))
            whole[label] = torch.cat([whole[label], more])
    rows = [each[start : start + 3] for each in whole for start in range(0, len(each) - 1, 2)]
    wanted = np.asarray(grid(torch.cat(rows), 3))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "way.png")), wanted)
    assert report.classes == ("bag", "boot")
    assert report.size == wanted.shape[::-1]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_a_frame_a_step(tmp_path: Path, channels: int) -> None:
    folder = make_generator(tmp_path / "g", channels=channels)
    options = InterpolateOptions(seeds="3,1", frames=3, loop=True, scale=1, duration=50, **CPU)
    drawn = sample(open_generator(folder).generator, way(latents([3, 1], 6), 3, loop=True))
    for name, error in (("way.gif", 0 if channels == 1 else 40), ("way.webp", 40)):
        interpolate(folder, tmp_path / name, options)
        with Image.open(tmp_path / name) as file:
            assert file.info["loop"] == 0
            frames = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(file)]
            assert file.info["duration"] == 50
        wanted = drawn.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        assert len(frames) == 6
        assert np.abs(np.stack(frames).astype(int) - wanted.astype(int)).mean() <= error


def test_what_makes_no_way_is_refused(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "g")
    with pytest.raises(InputError, match="--seeds 3,3: a way needs two of them"):
        InterpolateOptions(seeds="3,3")
    (tmp_path / "way.gif").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already; --overwrite"):
        interpolate(folder, tmp_path / "way.gif", InterpolateOptions(**CPU))
    assert (tmp_path / "way.gif").read_bytes() == b"mine"
    with pytest.raises(InputError, match=r"cannot write \.mp4"):
        interpolate(folder, tmp_path / "way.mp4", InterpolateOptions(**CPU))
