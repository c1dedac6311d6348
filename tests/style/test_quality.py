from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from normapps.data.images import fit, resize
from normapps.errors import InputError
from normapps.models.vgg import Vgg19
from normapps.style.losses import LAYERS
from normapps.style.quality import JUDGED, METRICS, Scores, relative_distance, score, ssim


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def numpy_features(vgg: Vgg19, pixels: np.ndarray) -> list[np.ndarray]:
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].float()
    return [x[0].double().flatten(1).numpy() for x in vgg(image, LAYERS)]


def moments(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x.mean(1), np.sqrt(x.var(1) + 1e-5)])


@pytest.mark.parametrize("sigma", [3, 30])
@pytest.mark.parametrize("name", ["rocket", "chelsea"])
def test_ssim_is_that_of_scikit_image(
    photos: dict[str, np.ndarray], name: str, sigma: float
) -> None:
    photo, other = photos[name], noisy(photos[name], sigma)
    grey = [pixels @ np.array([0.299, 0.587, 0.114]) for pixels in (photo, other)]
    want = structural_similarity(
        *grey, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(other, photo) == pytest.approx(want, abs=1e-9)


def test_ssim_refuses_other_sizes(chelsea: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"one size of at least 11 a side"):
        ssim(chelsea, chelsea[:-1])
    with pytest.raises(InputError, match=r"\(10, 451\)"):
        ssim(chelsea[:10], chelsea[:10])


def test_relative_distance_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    output, content = rng.random((2, 3, 4, 5)), rng.random((2, 3, 4, 5))
    got = relative_distance(torch.from_numpy(output), torch.from_numpy(content))
    want = [((o - c) ** 2).sum() / (c**2).sum() for o, c in zip(output, content, strict=True)]
    assert got.tolist() == pytest.approx(want)


def test_score_follows_its_definitions(random_vgg: Vgg19, photos: dict[str, np.ndarray]) -> None:
    output, content = photos["coffee"][:80, :96], photos["rocket"][:80, :96]
    style = photos["flower"][100:164, 100:190]
    got = score(output, content, style, random_vgg)
    o, c, s = (numpy_features(random_vgg, pixels) for pixels in (output, content, style))
    assert got.rel_content == pytest.approx(((o[-1] - c[-1]) ** 2).sum() / (c[-1] ** 2).sum(), 1e-4)
    styles = [
        ((moments(a) - moments(b)) ** 2).sum() / (moments(b) ** 2).sum()
        for a, b in zip(o, s, strict=True)
    ]
    assert got.rel_style == pytest.approx(np.mean(styles), 1e-4)
    grams = [(a @ a.T / a.shape[1], b @ b.T / b.shape[1]) for a, b in zip(o, s, strict=True)]
    frobenius = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in grams]
    assert got.rel_gram == pytest.approx(np.mean(frobenius), 1e-4)
    assert got.ssim == ssim(output, content)
    assert tuple(field.name for field in dataclasses.fields(Scores)) == METRICS


def test_the_untouched_photo_keeps_its_content_and_the_style_has_its_own(
    random_vgg: Vgg19, china: np.ndarray, flower: np.ndarray
) -> None:
    photo, painting = china[:120, :120], flower[100:220, 100:220]
    untouched = score(photo, photo, painting, random_vgg)
    assert (untouched.ssim, untouched.rel_content) == (1, 0)
    assert untouched.rel_style > 0.01
    replaced = score(painting, photo, painting, random_vgg)
    assert (replaced.rel_style, replaced.rel_gram) == (0, 0)
    assert replaced.ssim < 0.5
    assert replaced.rel_content > 0.01


def test_vgg_judges_large_pictures_reduced_but_ssim_and_lattice_do_not(
    random_vgg: Vgg19, astronaut: np.ndarray, rocket: np.ndarray
) -> None:
    photo, painting = astronaut[100:148], rocket[200:240]
    grid = photo.copy()
    grid[::4, ::4] = 255 - (255 - grid[::4, ::4]) // 2
    native = score(grid, photo, painting, random_vgg)
    small = [resize(x, JUDGED, 24) for x in (grid, photo)]
    reduced = score(*small, resize(painting, JUDGED, 16), random_vgg)
    own = {"lattice": 0, "ssim": 0}
    assert dataclasses.replace(native, **own) == dataclasses.replace(reduced, **own)
    assert native.ssim == ssim(grid, photo) != reduced.ssim
    clean = score(photo, photo, painting, random_vgg)
    assert native.lattice > 0.3 > 3 * clean.lattice


def test_score_leaves_the_judge_as_it_was(random_vgg: Vgg19, coffee: np.ndarray) -> None:
    judge = Vgg19("relu4_1").train()
    pixels = coffee[:40, :40]
    score(pixels, pixels, pixels, judge)
    assert judge.training


def test_score_refuses_what_it_cannot_judge(random_vgg: Vgg19, coffee: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"output is 599×400, its content 600×400"):
        score(coffee[:, 1:], coffee, coffee, random_vgg)
    thin = coffee[:24]
    with pytest.raises(InputError, match=r"style of 600×24 is too thin"):
        score(coffee, coffee, thin, random_vgg)
    with pytest.raises(InputError, match=r"content of 600×24 is too thin"):
        score(thin, thin, coffee, random_vgg)


@pytest.mark.parametrize(("side", "size"), [(300, (200, 300)), (900, (600, 900))])
def test_fit_scales_to_the_long_side(coffee: np.ndarray, side: int, size: tuple[int, int]) -> None:
    assert fit(coffee, side).shape == (*size, 3)


def test_fit_keeps_a_pixel_of_the_short_side() -> None:
    assert fit(np.zeros((1, 900, 3), np.uint8), 100).shape == (1, 100, 3)
