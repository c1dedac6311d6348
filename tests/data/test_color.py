from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from normapps.data.color import fill_hidden
from normapps.data.images import Picture, read_image, to_picture

RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def _read(image: Image.Image, kind: str, **options: object) -> Picture:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return read_image(file)


def _read_tiff(values: np.ndarray, **options: object) -> Picture:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    file.seek(0)
    return read_image(file)


def _read_png16(values: np.ndarray) -> Picture:
    return read_image(io.BytesIO(cv2.imencode(".png", values)[1].tobytes()))


def _png(header: bytes, rows: list[bytes], chunks: dict[bytes, bytes]) -> io.BytesIO:
    """A PNG made by hand; `header` is bit depth and colour type."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    width = chunks.pop(b"width", b"\4")[0]
    parts = [b"\x89PNG\r\n\x1a\n"]
    parts.append(chunk(b"IHDR", struct.pack(">II", width, len(rows)) + header + bytes(3)))
    parts += [chunk(kind, data) for kind, data in chunks.items()]
    parts.append(chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    return io.BytesIO(b"".join(parts) + chunk(b"IEND", b""))


def _assert_grey(picture: Picture, levels: np.ndarray) -> None:
    np.testing.assert_array_equal(picture.pixels, np.stack([levels] * 3, axis=-1))


# --- modes ---------------------------------------------------------------------------------


def test_one_bit_becomes_black_and_white() -> None:
    bits = np.eye(9, 7, dtype=bool)
    picture = _read(Image.fromarray(bits), "PNG")
    _assert_grey(picture, np.where(bits, 255, 0))
    assert picture.alpha is None


def test_grey_and_palette_are_their_colours() -> None:
    _assert_grey(_read(Image.fromarray(GREYS), "PNG"), GREYS)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREYS)
    image.putpalette(palette.tobytes())
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        np.testing.assert_array_equal(_read(image, kind).pixels, palette[GREYS])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"compression": "zlib"},
        {"compression": "zlib", "byteorder": ">"},
        {"tile": (16, 16)},
    ],
)
def test_a_16_bit_grey_ramp_keeps_its_high_byte(options: dict[str, object]) -> None:
    values = RAMP.astype(">u2") if "byteorder" in options else RAMP
    _assert_grey(_read_tiff(values, **options), RAMP // 256)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_a_16_bit_ramp_with_white_as_zero_is_inverted(options: dict[str, object]) -> None:
    inverted = _read_tiff(RAMP, photometric="miniswhite", **options)
    _assert_grey(inverted, 255 - RAMP // 256)


def test_16_bit_png_grey_and_rgb_agree() -> None:
    _assert_grey(_read_png16(RAMP), RAMP // 256)
    _assert_grey(_read_png16(np.stack((RAMP, RAMP, RAMP), axis=-1)), RAMP // 256)
    bgr = np.stack((RAMP, RAMP.T, RAMP[::-1]), axis=-1)
    expected = np.stack((RAMP[::-1], RAMP.T, RAMP), axis=-1) // 256
    np.testing.assert_array_equal(_read_png16(bgr).pixels, expected)


def test_16_bit_png_with_alpha_keeps_both() -> None:
    alpha = RAMP.T | 0x0100
    picture = _read_png16(np.dstack((RAMP, RAMP, RAMP, alpha)))
    _assert_grey(picture, RAMP // 256)
    np.testing.assert_array_equal(picture.alpha, alpha // 256)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_rgb_tiff_keeps_its_high_byte(compression: str | None) -> None:
    values = np.stack((RAMP, RAMP.T, RAMP[::-1]), axis=-1)
    picture = _read_tiff(values, photometric="rgb", compression=compression)
    np.testing.assert_array_equal(picture.pixels, values // 256)


def test_8_bit_tiff_with_white_as_zero_is_inverted() -> None:
    _assert_grey(_read_tiff(GREYS, photometric="miniswhite"), 255 - GREYS)


def test_12_bit_tiff_uses_all_its_bits() -> None:
    file = io.BytesIO()
    values = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    packed = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(16, 16, 2), axis=-1)
    strip = np.packbits(packed[..., 4:].reshape(16, -1), axis=-1).tobytes()
    tags = [(256, 3, 16), (257, 3, 16), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200)]
    tags += [(277, 3, 1), (278, 3, 16), (279, 4, len(strip))]
    file.write(struct.pack("<2sHIH", b"II", 42, 8, len(tags)))
    for tag, kind, value in tags:
        file.write(struct.pack("<HHII", tag, kind, 1, value))
    file.write(bytes(200 - file.tell()) + strip)
    file.seek(0)
    _assert_grey(read_image(file), values // 16)


def test_signed_16_bit_uses_its_positive_half() -> None:
    _assert_grey(_read_tiff((RAMP // 2).astype(np.int16)), RAMP // 256)


def test_a_dark_16_bit_picture_stays_dark() -> None:
    _assert_grey(_read_tiff((GREYS).astype(np.uint16)), np.zeros((16, 16)))


def test_32_bit_integers_are_scaled_by_what_they_hold() -> None:
    _assert_grey(_read_tiff(GREYS.astype(np.uint32)), GREYS)
    _assert_grey(_read_tiff(RAMP.astype(np.int32)), RAMP // 256)
    for values in (RAMP.astype(np.uint32) << 16, RAMP.astype(np.int32) * 1000 - 7):
        picture = _read_tiff(values)
        low, high = int(values.min()), int(values.max())
        _assert_grey(picture, np.rint((values.astype(float) - low) * 255 / (high - low)))
        assert picture.notes == (f"values {low} to {high} stretched to black to white",)


def test_floats_from_0_to_1_are_black_to_white() -> None:
    values = (GREYS / 255).astype(np.float32)
    picture = _read_tiff(values)
    _assert_grey(picture, GREYS)
    assert picture.notes == ()
    _assert_grey(_read_tiff(values, photometric="miniswhite"), 255 - GREYS)


def test_other_floats_are_stretched_and_said() -> None:
    values = (GREYS / 10 - 3).astype(np.float32)
    picture = _read_tiff(values)
    _assert_grey(picture, GREYS)
    assert picture.notes == ("values -3 to 22.5 stretched to black to white",)
    assert (_read_tiff(np.full((2, 2), 7, np.float32)).pixels == 0).all()


def test_floats_that_are_not_finite_become_black_and_are_said() -> None:
    values = (GREYS / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    picture = _read_tiff(values)
    _assert_grey(picture, np.where(np.isfinite(values), GREYS, 0))
    assert picture.notes == ("values that are not finite became black",)
    assert (_read_tiff(np.full((2, 2), np.nan, np.float32)).pixels == 0).all()
    wide = _read_tiff(np.array([[np.nan, 0, 510]], np.float32))
    _assert_grey(wide, np.array([[0, 0, 255]]))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_made_by_hand_is_ink_on_paper(kind: str) -> None:
    inks = np.array([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 128)], np.uint8)
    patches = inks.repeat(16, axis=0)[None].repeat(16, axis=0)
    options = {"quality": 100} if kind == "JPEG" else {}
    picture = _read(Image.fromarray(patches, "CMYK"), kind, **options)
    part = inks.astype(float) / 255
    expected = 255 * (1 - part[:, :3]) * (1 - part[:, 3:])
    seen = picture.pixels[8, 8::16].astype(float)
    assert np.abs(seen - expected).max() <= 2
    assert picture.notes == ("CMYK without a colour profile: its colours are a guess",)
    assert picture.icc is None


def test_ycbcr_and_lab_are_converted() -> None:
    colours = np.array([[(200, 30, 40), (20, 180, 60), (250, 250, 250)]], np.uint8)
    ycbcr = to_picture(Image.fromarray(colours).convert("YCbCr"))
    assert np.abs(ycbcr.pixels.astype(int) - colours).max() <= 2
    from skimage.color import rgb2lab

    # skimage works under D65, where neutral colours have the same L* as under D50.
    greys = np.array([[(0, 0, 0), (119, 119, 119), (255, 255, 255)]], np.uint8)
    lightness = rgb2lab(greys)[..., 0]
    # TIFF stores a* and b* as signed bytes, and so does Pillow with its sign bit turned.
    lab = np.dstack((np.rint(lightness * 2.55), np.zeros((1, 3)), np.zeros((1, 3))))
    file = io.BytesIO()
    tifffile.imwrite(file, lab.astype(np.uint8), photometric="cielab")
    file.seek(0)
    assert np.abs(read_image(file).pixels.astype(int) - greys).max() <= 2


# --- transparency --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_rgba_is_kept_aside(kind: str) -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(1, 256, (9, 7, 4), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = _read(Image.fromarray(rgba), kind, **options)
    np.testing.assert_array_equal(picture.pixels, rgba[..., :3])
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_is_kept_aside(kind: str) -> None:
    alpha = GREYS.T | 1
    picture = _read(Image.fromarray(np.dstack((GREYS, alpha)), "LA"), kind)
    _assert_grey(picture, GREYS)
    np.testing.assert_array_equal(picture.alpha, alpha)


def test_premultiplied_modes_are_divided() -> None:
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 128)).convert("RGBa")
    picture = to_picture(image)
    assert np.abs(picture.pixels.astype(int) - (200, 100, 50)).max() <= 1
    assert (picture.alpha == 128).all()
    grey = to_picture(Image.new("LA", (2, 2), (200, 128)).convert("La"))
    assert np.abs(grey.pixels.astype(int) - 200).max() <= 1
    assert (grey.alpha == 128).all()


def test_palette_transparency_of_every_kind() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for options in ({"transparency": 1}, {"transparency": bytes((255, 0, 255))}):
        picture = _read(image, "PNG", **options)
        assert picture.alpha.tolist() == [[255, 0, 255]]
        assert picture.pixels[0, 0].tolist() == [255, 0, 0]
        assert picture.pixels[0, 2].tolist() == [0, 0, 255]
    assert _read(image, "PNG", transparency=bytes((9, 8, 7))).alpha.tolist() == [[9, 8, 7]]
    assert _read(image, "GIF", transparency=1).alpha.tolist() == [[255, 0, 255]]
    with_alpha = image.convert("PA")
    assert to_picture(with_alpha).alpha.tolist() == [[255, 255, 255]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_colour_key_is_transparent_at_every_depth(depth: int) -> None:
    values = [0, 1, 0, 1]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    file = _png(bytes((depth, 0)), [row], {b"tRNS": struct.pack(">H", 1)})
    assert read_image(file).alpha.tolist() == [[255, 0, 255, 0]]


@pytest.mark.parametrize("depth", [8, 16])
def test_an_rgb_colour_key_is_transparent(depth: int) -> None:
    scale = 257 if depth == 16 else 1
    colours = [(10, 20, 30), (200, 20, 30), (10, 20, 30), (10, 20, 31)]
    code = ">3H" if depth == 16 else ">3B"
    row = b"".join(struct.pack(code, *(value * scale for value in colour)) for colour in colours)
    key = struct.pack(">3H", *(value * scale for value in colours[0]))
    picture = read_image(_png(bytes((depth, 2)), [row], {b"tRNS": key}))
    assert picture.alpha.tolist() == [[0, 255, 0, 255]]
    assert picture.pixels[0, 1].tolist() == [200, 20, 30]


def test_the_colour_under_transparent_pixels_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    rgba = rng.integers(0, 256, (12, 10, 4), dtype=np.uint8)
    rgba[..., 3] = np.where(rng.random((12, 10)) < 0.4, 0, 200)
    other = np.where(rgba[..., 3:] == 0, np.uint8(77), rgba)
    other[..., 3] = rgba[..., 3]
    first, second = (_read(Image.fromarray(x), "PNG") for x in (rgba, other))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    shown = rgba[..., 3] > 0
    np.testing.assert_array_equal(first.pixels[shown], rgba[shown][:, :3])
    mean = rgba[shown][:, :3].astype(float).mean(axis=0)
    assert np.abs(first.pixels.reshape(-1, 3).mean(axis=0) - mean).max() < 0.5


def test_a_picture_that_is_all_transparent_is_white() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert (fill_hidden(pixels, np.zeros((2, 2), np.uint8)) == 255).all()
    assert fill_hidden(pixels, np.ones((2, 2), np.uint8)) is pixels


def test_a_profile_that_the_file_cannot_give_is_ignored_and_said() -> None:
    data = {b"iCCP": b"name\0\0not deflated"}
    file = _png(bytes((8, 0)), [bytes(4)], data)
    assert read_image(file).notes[0].startswith("colour profile ignored (")
