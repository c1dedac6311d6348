from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import GifImagePlugin, Image, ImageFile

from normapps.data.images import (
    SUFFIXES,
    Picture,
    encode_image,
    read_image,
    to_picture,
    with_pixels,
    write_image,
)
from normapps.errors import InputError

LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "WEBP": {"lossless": True}}


def _bytes(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def _random(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _error(source: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what comes in -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (64, 65)])
def test_a_lossless_file_gives_its_pixels(kind: str, size: tuple[int, int]) -> None:
    pixels = _random(*size)
    picture = read_image(_bytes(Image.fromarray(pixels), kind, **LOSSLESS[kind]))
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.pixels.dtype == np.uint8
    assert (picture.alpha, picture.format, picture.notes, picture.icc) == (None, kind, (), None)


def test_a_jpeg_photo_is_what_pillow_decodes(photo_files: dict[str, Path]) -> None:
    for file in photo_files.values():
        with Image.open(file) as image:
            np.testing.assert_array_equal(read_image(file).pixels, np.asarray(image))


def test_a_path_a_string_and_a_stream_are_read_alike(photo_files: dict[str, Path]) -> None:
    file = photo_files["chelsea"]
    expected = read_image(file).pixels
    np.testing.assert_array_equal(read_image(str(file)).pixels, expected)
    with file.open("rb") as stream:
        np.testing.assert_array_equal(read_image(stream).pixels, expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read(tmp_path: Path) -> None:
    pixels = _random(4, 5)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    data = _bytes(Image.fromarray(pixels), "PNG").getvalue()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    np.testing.assert_array_equal(read_image(pipe).pixels, pixels)
    writer.join()


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    pixels = _random(3, 4)
    Image.fromarray(pixels).save(tmp_path / "x.heic", "PNG")
    picture = read_image(tmp_path / "x.heic")
    assert picture.format == "PNG"
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize(("kind", "options"), [*LOSSLESS.items(), ("JPEG", {"quality": 100})])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(
    kind: str, options: dict[str, object], orientation: int
) -> None:
    if kind == "BMP":
        return  # has no metadata
    upright = np.full((32, 48, 3), 128, np.uint8)
    upright[:16, :16], upright[:16, 32:], upright[16:, :16] = 255, 0, 60
    stored = {  # how a camera held that way stores the scene
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    picture = read_image(_bytes(image, kind, exif=exif, **options))
    assert picture.size == (48, 32)
    assert np.abs(picture.pixels.astype(int) - upright).max() <= (2 if kind == "JPEG" else 0)


def test_alpha_is_turned_with_the_picture() -> None:
    alpha = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    rgba = np.dstack((_random(3, 4), alpha))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_image(_bytes(Image.fromarray(rgba), "PNG", exif=exif))
    np.testing.assert_array_equal(picture.alpha, np.rot90(alpha, -1))
    np.testing.assert_array_equal(picture.pixels, np.rot90(rgba[..., :3], -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"])
def test_broken_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    pixels = _random(8, 8)
    file = _bytes(Image.fromarray(pixels), "PNG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(file).pixels, pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_taken_and_said(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    file = _bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = read_image(file)
    assert picture.notes == ("first of 3 frames",)
    assert (picture.pixels == (255, 0, 0)).all()


def test_a_phones_jpeg_with_a_preview_is_a_jpeg_without_a_note() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    picture = read_image(_bytes(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert (picture.format, picture.notes) == ("JPEG", ())
    assert (np.abs(picture.pixels.astype(int) - (255, 0, 0)) <= 2).all()


def test_an_animation_whose_later_frames_are_cut_gives_its_first(tmp_path: Path) -> None:
    frames = [Image.fromarray(_random(40, 40, seed)).quantize(64) for seed in range(3)]
    data = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]).getvalue()
    picture = read_image(io.BytesIO(data[: len(data) * 3 // 4]))
    expected = np.asarray(frames[0].convert("RGB"))
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.notes[0].startswith("first of")


def test_frames_that_cannot_be_counted_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise EOFError("no more images in GIF file")

    file = _bytes(Image.fromarray(_random(4, 4)), "GIF")
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "n_frames", property(fail))
    assert read_image(file).notes == ("first of several frames",)


def test_an_open_pillow_image_is_converted_and_left_alone() -> None:
    image = Image.new("LA", (3, 2), (100, 50))
    image.info["icc_profile"] = b"broken"
    picture = to_picture(image)
    assert (picture.pixels == 100).all()
    assert (picture.alpha == 50).all()
    assert picture.format == ""
    assert image.mode == "LA"
    assert image.info == {"icc_profile": b"broken"}


def test_heic_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert _error(path) == f"{path}: HEIC needs an extra; pip install 'normapps[heic]'"


class _StubHeif(ImageFile.ImageFile):
    """Stands in for pillow-heif: one grey 2×1 picture."""

    format = "HEIF"

    def _open(self) -> None:
        self._mode = "L"
        self._size = (2, 1)
        self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 12, ("L", 0, 1))]


def test_heic_with_the_extra_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def register_heif_opener() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (_StubHeif, lambda prefix: True))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    stub = types.SimpleNamespace(register_heif_opener=register_heif_opener)
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    picture = read_image(io.BytesIO(b"\0\0\0\x18ftypheic\x07\x09"))
    assert picture.format == "HEIF"
    np.testing.assert_array_equal(picture.pixels, [[[7] * 3, [9] * 3]])


# --- what is refused -----------------------------------------------------------------------


def test_missing_folder_and_empty_are_one_line_each(tmp_path: Path) -> None:
    missing, empty = tmp_path / "no.jpg", tmp_path / "empty.jpg"
    empty.touch()
    assert _error(missing) == f"{missing}: does not exist; check the spelling"
    assert _error(tmp_path) == f"{tmp_path}: is a folder, not a picture; name a file in it"
    assert _error(empty) == f"{empty}: is empty; take another copy"
    assert _error(empty / "x.jpg").startswith(f"{empty}/x.jpg: cannot be opened (Not a directory)")
    assert "cannot be opened" in _error("nul\0.jpg")


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (2, 2)).save(path)

    def refuse(*_: object) -> None:  # the superuser may read everything, so chmod proves nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert _error(path) == f"{path}: may not be read; change its permissions"


@pytest.mark.parametrize(
    "text", [b"hello, this is no picture at all", b"%!PS-Adobe-3.0 EPSF", b"x"]
)
def test_what_is_no_picture_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(text)
    message = _error(path)
    assert message.startswith(f"{path}: is not a picture that can be read; use one of .jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(
    tmp_path: Path, chelsea: np.ndarray, kind: str, kept: float
) -> None:
    data = _bytes(Image.fromarray(chelsea), kind).getvalue()
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * kept)])
    message = _error(path)
    assert message.startswith(f"{path}: is ")
    assert "damaged" in message


def test_a_tiff_that_pillow_decodes_wrongly_is_refused() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack((ramp, ramp, ramp)), **planes)
    file.seek(0)
    assert _error(file) == (
        "stream: has 16-bit colours in separate uncompressed planes; save it again as PNG"
    )
    compressed = io.BytesIO()
    tifffile.imwrite(compressed, np.stack((ramp, ramp.T, ramp)), compression="zlib", **planes)
    compressed.seek(0)
    np.testing.assert_array_equal(read_image(compressed).pixels[..., 1], ramp.T >> 8)


def test_a_kind_of_tiff_that_pillow_does_not_know_says_what_to_do() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((4, 5, 3), np.float32), photometric="rgb")
    file.seek(0)
    assert "damaged TIFF or of an unsupported kind; save it again as PNG" in _error(file)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_one_line(kind: str, data: st.DataObject) -> None:
    image = Image.fromarray(_random(9, 11))
    content = bytearray(_bytes(image, kind).getvalue())
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        content[place] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            shape = read_image(io.BytesIO(bytes(content))).pixels.shape
        except InputError as error:
            shape = (*str(error).splitlines(), "and", 3)
    assert len(shape) == 3
    assert shape[2] == 3


def test_an_out_of_memory_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    file = _bytes(Image.new("RGB", (2, 2)), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert _error(file) == "stream: needs more memory than there is; make it smaller first"


@pytest.mark.parametrize("factor", [1.5, 3])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pillows_pixel_limit_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, kind: str
) -> None:
    path = tmp_path / "big"
    Image.new("RGB", (30, 20)).save(path, kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(600 / factor))
    with warnings.catch_warnings(record=True) as caught:
        message = _error(path)
    assert message == (
        f"{path}: 600 pixels are more than the limit of {int(600 / factor)}; "
        "if you trust the file, --max-pixels 600 reads it"
    )
    assert not caught
    assert read_image(path, max_pixels=600).size == (30, 20)
    assert int(600 / factor) == Image.MAX_IMAGE_PIXELS


def test_max_pixels_may_lower_the_limit_too() -> None:
    file = _bytes(Image.new("RGB", (30, 20)), "PNG")
    assert "600 pixels are more than the limit of 599" in _error(file, max_pixels=599)


def test_a_tile_of_a_tiff_obeys_the_raised_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = _random(64, 64)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file.seek(0)
    np.testing.assert_array_equal(read_image(file, max_pixels=5000).pixels, pixels)


def test_the_default_limit_is_pillows() -> None:
    file = io.BytesIO()
    Image.new("1", (20000, 10000)).save(file, "PNG")
    file.seek(0)
    assert "200000000 pixels are more than the limit of 89478485" in _error(file)


def test_threads_do_not_see_each_others_limit() -> None:
    big = _bytes(Image.new("L", (400, 400)), "PNG").getvalue()
    before = Image.MAX_IMAGE_PIXELS
    refused = []

    def read(limit: int) -> None:
        for _ in range(20):
            try:
                read_image(io.BytesIO(big), max_pixels=limit)
            except InputError:
                refused.append(limit)

    threads = [threading.Thread(target=read, args=(limit,)) for limit in (100, 200000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [100] * 20
    assert before == Image.MAX_IMAGE_PIXELS


# --- Picture -------------------------------------------------------------------------------


def test_with_pixels_keeps_alpha_profile_and_notes() -> None:
    alpha = np.full((2, 3), 9, np.uint8)
    picture = Picture(_random(2, 3), alpha, "PNG", ("a note",), b"profile")
    other = with_pixels(picture, _random(2, 3, seed=1))
    assert other.alpha is alpha
    assert (other.format, other.notes, other.icc) == ("PNG", ("a note",), b"profile")
    np.testing.assert_array_equal(other.pixels, _random(2, 3, seed=1))
    with pytest.raises(InputError, match="3×3 do not fit a picture of 3×2"):
        with_pixels(picture, _random(3, 3))


def test_every_suffix_that_is_written_is_read(tmp_path: Path, chelsea: np.ndarray) -> None:
    for suffix in SUFFIXES[:8]:
        write_image(Picture(chelsea), tmp_path / f"x{suffix}")
        assert read_image(tmp_path / f"x{suffix}").size == (451, 300)


def test_images_load_no_torch() -> None:
    code = (
        "import sys; import normapps.data.images, normapps.data.inputs; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_round_trip_through_bytes_keeps_every_bit(astronaut: np.ndarray) -> None:
    alpha = np.arange(512, dtype=np.uint16).astype(np.uint8)[None].repeat(512, axis=0) | 1
    for kind in ("png", "tif"):
        back = read_image(io.BytesIO(encode_image(Picture(astronaut, alpha), kind)))
        np.testing.assert_array_equal(back.pixels, astronaut)
        np.testing.assert_array_equal(back.alpha, alpha)


def test_a_real_heic_file_is_read(tmp_path: Path, coffee: np.ndarray) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    heif.from_pillow(Image.fromarray(coffee)).save(tmp_path / "a.heic", quality=95)
    picture = read_image(tmp_path / "a.heic")
    assert picture.pixels.shape == coffee.shape
    assert np.abs(picture.pixels.astype(int) - coffee).mean() < 4
