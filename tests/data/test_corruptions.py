"""Corruptions: every one changes more with severity, repeats with its seed, takes every size."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from normapps.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    corrupt,
    parse_corruption,
)
from normapps.data.pictures import Pictures
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing

NAMES = sorted(CORRUPTIONS)


@pytest.fixture
def photo(coffee: np.ndarray) -> np.ndarray:
    """A cup, (224, 224, 3) uint8."""
    return np.asarray(Image.fromarray(coffee[:, 100:500]).resize((224, 224)))


@pytest.mark.parametrize("name", NAMES)
def test_severities_move_further_and_further_away(name: str, photos: dict[str, np.ndarray]) -> None:
    cuts = [np.asarray(Image.fromarray(photo).resize((224, 224))) for photo in photos.values()]
    signal, structure = np.empty((2, len(cuts), 5))
    for i, cut in enumerate(cuts):
        for k, severity in enumerate(SEVERITIES):
            found = corrupt(cut, name, severity, (0, i))
            signal[i, k] = peak_signal_noise_ratio(cut, found)
            structure[i, k] = structural_similarity(cut, found, channel_axis=2)
    if name == "fog":  # its brightness is chance, and 3 and 4 are nearly alike on some photo
        assert (np.diff(structure.mean(0)) < -0.005).all()
        return
    assert (np.diff(signal.mean(0)) < -0.1).all()
    for each, other in zip(signal, structure, strict=True):
        assert (np.diff(each) < 0).all() or (np.diff(other) < 0).all()


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_one_seed_makes_the_same_bytes(name: str, severity: int, photo: np.ndarray) -> None:
    before = photo.copy()
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = corrupt(photo, name, severity, (3, 7))
    assert np.array_equal(photo, before)
    assert first.tobytes() == corrupt(photo, name, severity, (3, 7)).tobytes()
    assert first.dtype == np.uint8
    assert first.shape == photo.shape
    assert np.array_equal(state, np.random.get_state()[1])
    drawn = {
        "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise",
        "motion_blur", "snow", "rain", "fog",
    }  # fmt: skip
    for seed in ((3, 8), (4, 7)):
        assert np.array_equal(corrupt(photo, name, severity, seed), first) is (name not in drawn)


@settings(max_examples=12)
@given(
    height=st.sampled_from([1, 3, 8, 33, 90]),
    width=st.sampled_from([1, 2, 8, 31, 120]),
    channels=st.sampled_from([1, 3]),
    severity=st.sampled_from(SEVERITIES),
    flat=st.sampled_from([None, 0, 255]),
)
def test_every_size_and_grey_are_taken(
    height: int, width: int, channels: int, severity: int, flat: int | None
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    if flat is not None:
        image[:] = flat
    for name in NAMES:
        found = corrupt(image, name, severity, 1)
        assert (found.shape, found.dtype) == (image.shape, np.uint8), name


@pytest.mark.parametrize("name", NAMES)
def test_a_large_picture_is_taken(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 1000, 3), np.uint8)
    found = corrupt(image, name, 5, 0)
    assert found.shape == image.shape
    assert not np.array_equal(found, image)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_picture_is_changed_and_not_wiped_out(name: str, photo: np.ndarray) -> None:
    small = np.asarray(Image.fromarray(photo).resize((32, 32)))
    mild, strong = (corrupt(small, name, severity, 0).astype(float) for severity in (1, 5))
    assert np.abs(strong - small).mean() > 2
    assert np.abs(mild - small).mean() > 0.5
    assert np.corrcoef(mild.ravel(), small.ravel())[0, 1] > 0.7


def test_a_thread_changes_nothing(photo: np.ndarray) -> None:
    jobs = [(name, 4, (0, i)) for i, name in enumerate(NAMES)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: corrupt(photo, *job), jobs))
    for image, job in zip(found, jobs, strict=True):
        assert np.array_equal(image, corrupt(photo, *job))


@pytest.mark.parametrize(
    ("severity", "spread"), list(zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True))
)
def test_gaussian_noise_has_its_deviation(severity: int, spread: float) -> None:
    grey = np.full((300, 300, 3), 128, np.uint8)
    found = (corrupt(grey, "gaussian_noise", severity).astype(float) - 128) / 255
    inside = (np.abs(found) < 0.2).mean()  # the share of a normal distribution, unclipped there
    assert abs(inside - np.vectorize(_within)(0.2 / spread)) < 0.01
    assert abs(found.mean()) < 0.005


def _within(x: float) -> float:
    import math

    return math.erf(x / math.sqrt(2))


def test_shot_noise_counts_photons() -> None:
    for value, severity, photons in ((0.5, 1, 60), (0.2, 3, 12)):
        grey = np.full((300, 300, 3), round(255 * value), np.uint8)
        found = corrupt(grey, "shot_noise", severity).astype(float) / 255
        assert abs(found.mean() - value) < 0.005
        assert abs(found.var() / (value / photons) - 1) < 0.05


def test_impulses_are_as_many_as_said() -> None:
    grey = np.full((300, 300, 3), 100, np.uint8)
    for severity, share in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        found = corrupt(grey, "impulse_noise", severity)
        assert abs((found != 100).mean() - share) < 0.005
        assert abs((found == 255).mean() - share / 2) < 0.005
        assert set(np.unique(found)) == {0, 100, 255}


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "gaussian_blur"])
def test_a_blur_keeps_a_flat_picture_and_the_mean(name: str, photo: np.ndarray) -> None:
    for severity in SEVERITIES:
        assert (corrupt(np.full_like(photo, 77), name, severity) == 77).all()
        point = np.zeros((224, 224, 1), np.uint8)
        point[100:124, 100:124] = 255
        assert abs(corrupt(point, name, severity).mean() / point.mean() - 1) < 0.01


def test_gaussian_blur_is_scikit_images(photo: np.ndarray) -> None:
    wanted = gaussian(photo / 255, 3, mode="nearest", channel_axis=-1, truncate=4)
    assert np.abs(corrupt(photo, "gaussian_blur", 3) / 255 - wanted).max() < 0.003


def test_defocus_spreads_a_point_over_a_disk() -> None:
    point = np.zeros((225, 225, 1), np.uint8)
    point[108:117, 108:117] = 255  # 9 × 9
    found = corrupt(point, "defocus_blur", 5).astype(float)[..., 0]
    rows, columns = np.nonzero(found > 0.5)
    assert abs(np.hypot(rows - 112, columns - 112).max() - 10 - 4 * 2**0.5) < 3
    assert abs(found[112, 112] / 255 - 81 / (np.pi * 100)) < 0.01


def test_motion_smears_one_way_within_45_degrees() -> None:
    point = np.zeros((225, 225, 1), np.uint8)
    point[110:115, 110:115] = 255
    for seed in range(10):
        found = corrupt(point, "motion_blur", 5, seed).astype(float)[..., 0]
        rows, columns = np.indices(found.shape) - 112.0
        centre = np.array([(found * rows).sum(), (found * columns).sum()]) / found.sum()
        assert 5 < np.hypot(*centre) < 20
        assert abs(centre[1]) >= abs(centre[0]) - 0.5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_hsvs(severity: int, photo: np.ndarray) -> None:
    hsv = rgb2hsv(photo)
    bright = hsv.copy()
    bright[..., 2] = np.clip(hsv[..., 2] + severity / 10, 0, 1)
    assert np.abs(corrupt(photo, "brightness", severity) / 255 - hsv2rgb(bright)).max() < 0.004
    factor, amount = ((1.4, 0), (2, 0), (3, 0.05), (5, 0.1), (20, 0.2))[severity - 1]
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + amount, 0, 1)
    assert np.abs(corrupt(photo, "saturate", severity) / 255 - hsv2rgb(hsv)).max() < 0.004


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_about_the_mean(severity: int, photo: np.ndarray) -> None:
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    x = photo.astype(np.float64)
    wanted = (x - x.mean((0, 1))) * factor + x.mean((0, 1))
    assert np.abs(corrupt(photo, "contrast", severity) - wanted).max() < 0.51


def test_jpeg_and_pixelate_are_pillows(photo: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=15)
    assert np.array_equal(corrupt(photo, "jpeg", 3), np.asarray(Image.open(file)))
    box = Image.Resampling.BOX
    wanted = Image.fromarray(photo).resize((56, 56), box).resize((224, 224), box)
    assert np.array_equal(corrupt(photo, "pixelate", 5), np.asarray(wanted))


def test_fog_has_no_frame_and_keeps_the_maximum(photo: np.ndarray) -> None:
    black = np.zeros((224, 224, 3), np.uint8)
    black[112, 112] = 255
    edges, insides = [], []
    for seed in range(40):
        found = corrupt(black, "fog", 5, seed).astype(float)
        assert found.max() <= 255
        edges.append(np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]]).mean())
        insides.append(found.mean())
    assert abs(np.mean(edges) / np.mean(insides) - 1) < 0.1


def test_a_transform_draws_anew_for_each_picture(photo: np.ndarray, tmp_path: Path) -> None:
    noise = Corruption("gaussian_noise", 3, seed=5)
    assert np.array_equal(noise(photo, 2), corrupt(photo, "gaussian_noise", 3, (5, 2)))
    assert not np.array_equal(noise(photo, 2), noise(photo, 3))
    for name in ("a.png", "b.png"):
        Image.fromarray(photo).save(tmp_path / name)
    found = Pictures(tmp_path, Preprocessing((224, 224), (224, 224)), transform=noise)
    assert np.array_equal(found.cut(1).numpy().transpose(1, 2, 0), noise(photo, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian_noise:3", r"unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'\?"),
        ("fog", r"'fog': give a severity from 1 to 5, such as fog:3"),
        ("fog:6", r"'fog:6': give a severity from 1 to 5"),
        ("fog:2.5", r"'fog:2.5': give a severity"),
    ],
)
def test_what_is_no_corruption_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_corruption(text)


def test_a_corruption_is_read() -> None:
    assert parse_corruption("motion_blur:5") == ("motion_blur", 5)


def test_bad_arguments_are_refused(photo: np.ndarray) -> None:
    for image in (photo[..., :2], photo[..., 0], photo / 255, photo[:0]):
        with pytest.raises(InputError, match=r"must be \(H, W, 3\) or \(H, W, 1\) uint8"):
            corrupt(image, "fog", 3)
    for severity in (0, 6):
        with pytest.raises(InputError, match=f"severity {severity} of fog: must be"):
            corrupt(photo, "fog", severity)
        with pytest.raises(InputError, match=f"severity {severity} of fog: must be"):
            Corruption("fog", severity)
    with pytest.raises(InputError, match="seed -1: must be whole numbers from 0"):
        corrupt(photo, "fog", 3, -1)
    with pytest.raises(InputError, match="seed -1: must be whole numbers from 0"):
        Corruption("fog", 3, -1)


def test_albumentations_asks_no_network_and_comes_late() -> None:
    code = (
        "import sys, urllib.request as r, numpy as np\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "r.build_opener = r.urlopen = refuse\n"
        "import normapps.data.corruptions as c, normapps.data.appearance as a\n"
        "assert not {'albumentations', 'kornia', 'torch'} & set(sys.modules)\n"
        "x = np.zeros((8, 8, 3), np.uint8)\n"
        "c.corrupt(x, 'zoom_blur', 1); a.match_histogram(x, x)\n"
        "assert 'albumentations' in sys.modules\n"
    )
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)
