from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from normapps.data.color import srgb_profile
from normapps.data.images import (
    WRITE_SUFFIXES,
    Picture,
    encode_image,
    read_image,
    writable_format,
    write_image,
    write_notes,
)
from normapps.errors import InputError


def _picture(height: int = 20, width: int = 30, **options: object) -> Picture:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels, **options)


def _half_alpha(height: int = 20, width: int = 30) -> np.ndarray:
    return np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width)


@pytest.mark.parametrize("suffix", [*WRITE_SUFFIXES, ".JPG", ".Png"])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, astronaut: np.ndarray) -> None:
    path = tmp_path / "new" / "folder" / f"x{suffix}"
    write_image(Picture(astronaut), path)
    with Image.open(path) as image:
        assert image.format == writable_format(path)
        assert image.size == (512, 512)
        seen = np.asarray(image.convert("RGB")).astype(float)
    bound = {"JPEG": 3, "WEBP": 5, "GIF": 12}.get(writable_format(path), 0)
    assert np.abs(seen - astronaut).mean() <= bound


@pytest.mark.parametrize("name", ["x", "x.jp2", "x.txt"])
def test_an_unknown_suffix_lists_the_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"use one of \.jpg .* or end it in / for a folder"):
        write_image(_picture(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already; --overwrite replaces it"):
        write_image(_picture(), path)
    assert path.read_bytes() == b"mine"
    write_image(_picture(), path, overwrite=True)
    np.testing.assert_array_equal(read_image(path).pixels, _picture().pixels)


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"mine")

    def fail(_: Image.Image, file: io.BytesIO, *__: object, **___: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match=r"x\.png: cannot be written \(No space left on device\)"):
        write_image(_picture(), path, overwrite=True)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_is_size(format: str, coffee: np.ndarray) -> None:
    sizes = [len(encode_image(Picture(coffee), format, quality=q)) for q in (20, 60, 95)]
    assert sizes[0] * 1.5 < sizes[1] < sizes[2] / 1.5


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_has_its_range(quality: int) -> None:
    with pytest.raises(InputError, match=f"--quality {quality}: must be between 1 and 100"):
        encode_image(_picture(), "jpeg", quality=quality)


@pytest.mark.parametrize(
    ("suffix", "size", "limit"),
    [(".webp", (1, 16384), 16383), (".jpg", (65501, 1), 65500), (".gif", (1, 65536), 65535)],
)
def test_a_size_that_the_format_cannot_hold_is_one_line(
    tmp_path: Path, suffix: str, size: tuple[int, int], limit: int
) -> None:
    path = tmp_path / f"x{suffix}"
    with pytest.raises(InputError) as caught:
        write_image(_picture(*size), path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {size[1]}×{size[0]} is more than the {limit} pixels a side")
    assert message.endswith("write .png or .tif")
    assert "\n" not in message
    fits = tuple(min(side, limit) for side in size)
    write_image(_picture(*fits), path)
    assert read_image(path).size == fits[::-1]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_the_profile_is_srgb_or_none(tmp_path: Path, suffix: str) -> None:
    plain, profiled = tmp_path / f"plain{suffix}", tmp_path / f"profiled{suffix}"
    write_image(_picture(), plain)
    write_image(_picture(icc=srgb_profile()), profiled)
    with Image.open(plain) as image:
        assert image.info.get("icc_profile") is None
    with Image.open(profiled) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_put_back_unchanged(tmp_path: Path, suffix: str) -> None:
    picture = _picture(alpha=_half_alpha())
    path = tmp_path / f"x{suffix}"
    write_image(picture, path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image)[..., 3], picture.alpha)
        np.testing.assert_array_equal(np.asarray(image)[..., :3], picture.pixels)
    assert write_notes(picture, suffix) == ()


def test_webp_keeps_alpha(tmp_path: Path) -> None:
    picture = _picture(alpha=_half_alpha())
    write_image(picture, tmp_path / "x.webp")
    back = read_image(tmp_path / "x.webp")
    np.testing.assert_array_equal(back.alpha, picture.alpha)


def test_bmp_and_jpeg_lay_transparency_on_white_and_say_so(tmp_path: Path) -> None:
    picture = _picture(alpha=_half_alpha())
    part = picture.alpha[..., None] / 255
    expected = picture.pixels * part + 255 * (1 - part)
    flat = np.rint(expected).astype(np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.jpg", quality=100, subsampling=0)
    reference = {".bmp": flat, ".jpg": np.asarray(Image.open(tmp_path / "flat.jpg"))}
    for suffix in (".bmp", ".jpg"):
        write_image(picture, tmp_path / f"x{suffix}", quality=100)
        back = read_image(tmp_path / f"x{suffix}")
        assert back.alpha is None
        np.testing.assert_array_equal(back.pixels, reference[suffix])
        assert write_notes(picture, suffix)[0].endswith("has no transparency: laid on white")


def test_opaque_alpha_is_no_loss() -> None:
    opaque = _picture(alpha=np.full((20, 30), 255, np.uint8))
    assert write_notes(opaque, "jpeg") == ()
    assert write_notes(_picture(), "jpeg") == ()


def test_gif_cuts_alpha_at_one_half_and_says_so(tmp_path: Path) -> None:
    picture = _picture(alpha=_half_alpha())
    write_image(picture, tmp_path / "x.gif")
    back = read_image(tmp_path / "x.gif")
    np.testing.assert_array_equal(back.alpha, np.where(picture.alpha < 128, 0, 255))
    assert write_notes(picture, "gif") == (
        "GIF holds 256 colours: the picture is dithered",
        "GIF pixels are transparent or not: alpha cut at one half",
    )
    assert len(write_notes(_picture(), "gif")) == 1


def test_a_gif_of_few_colours_keeps_them(tmp_path: Path) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    write_image(Picture(colours.repeat(8, axis=0).repeat(8, axis=1)), tmp_path / "x.gif")
    seen = read_image(tmp_path / "x.gif").pixels[4::8, 4::8]
    assert np.abs(seen.astype(int) - colours).max() <= 4


@pytest.mark.parametrize("format", ["JPEG", "jpg", ".png", "WebP", "tiff", "tif", "BMP", "gif"])
def test_bytes_are_those_of_the_file(tmp_path: Path, format: str) -> None:
    picture = _picture(icc=srgb_profile())
    path = tmp_path / f"x.{format.lower().lstrip('.')}"
    write_image(picture, path)
    assert encode_image(picture, format) == path.read_bytes()
    assert encode_image(picture, format) == encode_image(picture, format)


def test_an_unknown_format_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"cannot write \.xyz; use one of"):
        encode_image(_picture(), "xyz")


def test_high_quality_jpeg_keeps_coloured_edges() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    errors = []
    for quality in (89, 90):
        back = read_image(io.BytesIO(encode_image(Picture(stripes), "jpeg", quality=quality)))
        errors.append(np.abs(back.pixels.astype(float) - stripes).mean())
    assert errors[1] < errors[0] / 3
