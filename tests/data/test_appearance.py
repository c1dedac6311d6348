"""The look of another picture: histograms, low frequencies, and which reference is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.exposure import match_histograms

from normapps.data.appearance import Appearance, fourier_transfer, match_histogram
from normapps.data.pictures import Pictures
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing


def test_histograms_are_matched_as_scikit_image_does(
    astronaut: np.ndarray, coffee: np.ndarray
) -> None:
    image = astronaut[:200, :150]
    found = match_histogram(image, coffee)
    wanted = match_histograms(image.astype(float), coffee.astype(float), channel_axis=-1)
    assert np.abs(found - wanted).max() < 1
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    for c in range(3):
        quantiles = np.linspace(0.05, 0.95, 19)
        ours, theirs = (np.quantile(x[..., c], quantiles) for x in (found, coffee))
        assert np.abs(ours - theirs).max() <= 8
        assert np.abs(np.quantile(image[..., c], quantiles) - theirs).max() > 20


def low_frequencies_replaced(image: np.ndarray, reference: np.ndarray, reach: int) -> np.ndarray:
    """The paper's formula with a Fourier matrix in place of the FFT."""
    height, width = image.shape
    left, right = (np.exp(-2j * np.pi * np.outer(range(n), range(n)) / n) for n in (height, width))
    ours, theirs = left @ image @ right, left @ reference @ right
    for u in range(-reach, reach + 1):
        for v in range(-reach, reach + 1):
            ours[u, v] *= abs(theirs[u, v]) / abs(ours[u, v])
    found = left.conj() @ ours @ right.conj() / (height * width)
    assert np.abs(found.imag).max() < 1e-8
    return np.clip(found.real, 0, 255)


@pytest.mark.parametrize(("beta", "reach"), [(0.0, 0), (0.05, 1), (0.1, 3), (0.25, 8)])
def test_low_amplitudes_are_the_references(
    astronaut: np.ndarray, coffee: np.ndarray, beta: float, reach: int
) -> None:
    image, reference = astronaut[100:132, 200:240], coffee[100:132, 200:240]
    found = fourier_transfer(image, reference, beta)
    for c in range(3):
        wanted = low_frequencies_replaced(image[..., c], reference[..., c], reach)
        assert np.abs(found[..., c] - wanted).max() < 0.501


def test_beta_0_gives_the_references_mean(astronaut: np.ndarray, coffee: np.ndarray) -> None:
    image = np.clip(astronaut, 60, 190)
    found = fourier_transfer(image, np.clip(coffee, 100, 150), 0)
    assert np.abs(found.mean((0, 1)) - np.clip(coffee, 100, 150).mean((0, 1))).max() < 1
    assert np.abs((found - image.astype(float)).std((0, 1))).max() < 0.5


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    beta=st.floats(0, 0.5),
)
def test_a_picture_keeps_its_own_look(height: int, width: int, channels: int, beta: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    assert np.array_equal(match_histogram(image, image), image)
    assert np.array_equal(fourier_transfer(image, image, beta), image)


@pytest.mark.parametrize("kind", ["histogram", "fda"])
@pytest.mark.parametrize("channels", [1, 3])
def test_references_may_have_another_size(
    kind: str, channels: int, astronaut: np.ndarray, coffee: np.ndarray
) -> None:
    image, reference = astronaut[:50, :70, :channels], coffee[:, :, :channels]
    found = Appearance(kind, [reference])(image, 0)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert np.abs(found.mean() - reference.mean()) < np.abs(image.mean() - reference.mean())


@pytest.mark.parametrize("kind", ["histogram", "fda"])
def test_a_reference_is_drawn_by_seed_and_index(kind: str) -> None:
    references = [np.full((4, 4, 3), value, np.uint8) for value in (20, 90, 160, 230)]
    image = np.full((4, 4, 3), 128, np.uint8)
    drawn = {
        seed: [int(Appearance(kind, references, seed)(image, i)[0, 0, 0]) for i in range(200)]
        for seed in (0, 1)
    }
    assert drawn[0] == [int(Appearance(kind, references)(image, i)[0, 0, 0]) for i in range(200)]
    assert drawn[0] != drawn[1]
    counts = Counter(drawn[0])
    assert set(counts) == {20, 90, 160, 230}
    assert min(counts.values()) > 25


def test_pictures_take_it_as_a_transform(
    tmp_path: Path, coffee: np.ndarray, china: np.ndarray
) -> None:
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    chosen = Preprocessing((40, 60), (40, 60), mode="squash")
    plain = Pictures(tmp_path, chosen).cut(0).numpy().transpose(1, 2, 0)
    look = Appearance("histogram", [china])
    found = Pictures(tmp_path, chosen, transform=look).cut(0).numpy().transpose(1, 2, 0)
    assert np.array_equal(found, match_histogram(plain, china))


def test_bad_arguments_are_refused(coffee: np.ndarray) -> None:
    with pytest.raises(InputError, match="appearance 'fad': choose one of histogram, fda"):
        Appearance("fad", [coffee])
    with pytest.raises(InputError, match="fda: needs at least one reference"):
        Appearance("fda", [])
    with pytest.raises(InputError, match="seed -1: must be"):
        Appearance("fda", [coffee], -1)
    for beta in (-0.1, 0.6):
        with pytest.raises(InputError, match=f"beta {beta}: must be between 0 and 0.5"):
            fourier_transfer(coffee, coffee, beta)
        with pytest.raises(InputError, match=f"beta {beta}: must be between 0 and 0.5"):
            Appearance("fda", [coffee], beta=beta)
    for change in (match_histogram, fourier_transfer):
        with pytest.raises(InputError, match="reference has 1 channels, the image 3"):
            change(coffee, coffee[..., :1])
        with pytest.raises(InputError, match=r"reference is \(400, 600\) uint8; it must be"):
            change(coffee, coffee[..., 0])
        with pytest.raises(InputError, match=r"image is \(400, 600, 3\) float64; it must be"):
            change(coffee / 255, coffee)
