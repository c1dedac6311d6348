"""ICC profiles against the formulas: the profiles are written here from ICC.1:2001-04."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from normapps.data.color import srgb_profile
from normapps.data.images import Picture, read_image, to_picture

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
D50 = (0.9642, 1.0, 0.8249)
# Display P3 and sRGB primaries, adapted to D50 (CSS Color 4's published matrices).
P3_TO_XYZ = np.array(
    [
        [0.5151, 0.2920, 0.1571],
        [0.2412, 0.6922, 0.0666],
        [-0.0011, 0.0419, 0.7841],
    ]
)
SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def _text(kind: bytes, text: str) -> bytes:
    data = text.encode() + b"\0"
    if kind == b"text":
        return b"text" + bytes(4) + data
    return b"desc" + bytes(4) + struct.pack(">I", len(data)) + data + bytes(78)


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _text(b"desc", "test"), b"cprt": _text(b"text", "none"), **tags}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, device, space, connection)
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(map(_fixed, D50))
    header += bytes(128 - len(header))
    return header + struct.pack(">I", len(tags)) + table + body


def _matrix_profile(to_xyz: np.ndarray, gamma: float) -> bytes:
    """A display profile: RGB ** gamma, then a 3×3 matrix to XYZ under D50."""
    tags = {b"wtpt": _xyz(D50)}
    for channel, column in zip(b"rgb", to_xyz.T, strict=True):
        name = bytes([channel])
        tags[name + b"XYZ"] = _xyz(tuple(column))
        tags[name + b"TRC"] = _gamma(gamma)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def _grey_profile(gamma: float) -> bytes:
    """A grey display profile of one gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": _gamma(gamma)})


def _lut_profile(space: bytes, lightness: np.ndarray) -> bytes:
    """A device whose colours are neutral: L* (0…100) at the corners of its colour space."""
    ramp = struct.pack(">2H", 0, 65535)
    identity = struct.pack(">9i", *(round(x * 65536) for x in np.eye(3).ravel()))
    nodes = b"".join(
        struct.pack(">3H", round(value / 100 * 0xFF00), 0x8000, 0x8000)
        for value in lightness.ravel()
    )
    lut = b"mft2" + bytes(4) + struct.pack(">4B", lightness.ndim, 3, 2, 0) + identity
    lut += struct.pack(">2H", 2, 2) + ramp * lightness.ndim + nodes + ramp * 3
    device = b"prtr" if space == b"CMYK" else b"scnr"
    return _profile(device, space, b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": lut, b"A2B1": lut})


def _encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to sRGB levels 0…255 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curve * 255)


def _read(image: Image.Image, kind: str, **options: object) -> Picture:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return read_image(file)


def _lattice() -> np.ndarray:
    steps = np.array([0, 40, 90, 128, 180, 220, 255], np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(7, -1, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_display_p3_becomes_the_srgb_of_the_formulas(kind: str) -> None:
    colours = _lattice()
    profile = _matrix_profile(P3_TO_XYZ, 2.2)
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = _read(Image.fromarray(colours), kind, icc_profile=profile, **options)
    linear = (colours / 255) ** 2.2 @ P3_TO_XYZ.T @ np.linalg.inv(SRGB_TO_XYZ).T
    error = np.abs(picture.pixels - _encode_srgb(linear))
    assert error.max() <= 1
    assert (linear < 0).any(axis=-1).sum() > 20  # colours that sRGB does not have are clipped
    assert np.abs(picture.pixels.astype(int) - colours).max() > 20
    assert picture.notes == ()
    assert picture.icc == srgb_profile()


def test_an_srgb_profile_leaves_every_pixel() -> None:
    colours = _lattice()
    picture = _read(Image.fromarray(colours), "PNG", icc_profile=srgb_profile())
    np.testing.assert_array_equal(picture.pixels, colours)
    assert picture.icc == srgb_profile()


def test_a_profile_applies_under_alpha_and_to_palettes() -> None:
    profile = _matrix_profile(P3_TO_XYZ, 2.2)
    colours = _lattice()
    expected = _read(Image.fromarray(colours), "PNG", icc_profile=profile).pixels
    rgba = np.dstack((colours, np.full(colours.shape[:2], 100, np.uint8)))
    picture = _read(Image.fromarray(rgba), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert (picture.alpha == 100).all()
    some = colours[:, :32]
    palette = Image.fromarray(some).quantize(256, Image.Quantize.FASTOCTREE)
    exact = _read(palette.convert("RGB"), "PNG", icc_profile=profile).pixels
    paletted = _read(palette, "PNG", icc_profile=profile).pixels
    np.testing.assert_array_equal(paletted, exact)


def test_a_grey_profile_is_applied_to_grey_also_with_alpha() -> None:
    profile = _grey_profile(1.0)
    expected = _encode_srgb(GREYS / 255)
    picture = _read(Image.fromarray(GREYS), "PNG", icc_profile=profile)
    assert np.abs(picture.pixels - expected[..., None]).max() <= 1
    with_alpha = Image.fromarray(np.dstack((GREYS, np.full_like(GREYS, 9))), "LA")
    picture = _read(with_alpha, "PNG", icc_profile=profile)
    assert np.abs(picture.pixels - expected[..., None]).max() <= 1
    file = io.BytesIO()
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    tifffile.imwrite(file, deep, iccprofile=profile)
    file.seek(0)
    expected = _encode_srgb(deep // 256 / 255)
    assert np.abs(read_image(file).pixels - expected[..., None]).max() <= 1


def test_an_rgb_profile_on_grey_is_applied_as_to_rgb() -> None:
    profile = _matrix_profile(SRGB_TO_XYZ, 1.0)
    picture = _read(Image.fromarray(GREYS), "PNG", icc_profile=profile)
    assert np.abs(picture.pixels - _encode_srgb(GREYS / 255)[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_cmyk_profile_decides_the_colours(kind: str) -> None:
    corners = np.linspace(100, 10, 16).reshape(2, 2, 2, 2)  # L* at (C, M, Y, K)
    inks = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1)]
    patches = np.array(inks, np.uint8).repeat(16, axis=0)[None].repeat(16, axis=0) * 255
    options = {"quality": 100} if kind == "JPEG" else {}
    profile = _lut_profile(b"CMYK", corners)
    picture = _read(Image.fromarray(patches, "CMYK"), kind, icc_profile=profile, **options)
    seen = picture.pixels[8, 8::16]
    lightness = np.array([corners[ink] for ink in inks])
    expected = _encode_srgb(((lightness + 16) / 116) ** 3)
    assert np.abs(seen - expected[:, None].astype(int)).max() <= (2 if kind == "JPEG" else 1)
    assert picture.icc == srgb_profile()
    assert picture.notes == ()


def test_a_scanners_grey_black_becomes_black() -> None:
    corners = np.full((2, 2, 2), 60.0)
    corners[0, 0, 0], corners[1, 1, 1] = 20, 100
    colours = np.array([[(0, 0, 0), (255, 0, 0), (255, 255, 255)]], np.uint8)
    profile = _lut_profile(b"RGB ", corners)
    picture = _read(Image.fromarray(colours), "PNG", icc_profile=profile)
    luminance = ((np.array([20, 60, 100]) + 16) / 116) ** 3
    black = luminance[0]
    expected = _encode_srgb((luminance - black) / (1 - black))
    assert np.abs(picture.pixels[0] - expected[:, None]).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile at all", b"", srgb_profile()[:200]])
def test_a_broken_profile_is_ignored_and_said(profile: bytes) -> None:
    image = Image.fromarray(_lattice())
    image.info["icc_profile"] = profile
    picture = to_picture(image)
    np.testing.assert_array_equal(picture.pixels, _lattice())
    assert len(picture.notes) == 1
    assert picture.notes[0].startswith("colour profile ignored (")
    assert picture.icc is None


def test_a_profile_of_another_kind_is_ignored_and_said() -> None:
    picture = _read(Image.fromarray(_lattice()), "PNG", icc_profile=_grey_profile(2.2))
    np.testing.assert_array_equal(picture.pixels, _lattice())
    assert picture.notes == ("colour profile ignored (a profile for GRAY does not fit RGB pixels)",)


def test_the_srgb_profile_is_valid_and_the_same_every_time() -> None:
    first = srgb_profile()
    srgb_profile.cache_clear()
    assert srgb_profile() == first
    profile = ImageCms.ImageCmsProfile(io.BytesIO(first))
    assert profile.profile.xcolor_space == "RGB "
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    assert profile.profile.creation_date.year == 1999
