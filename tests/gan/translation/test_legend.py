"""Label maps as files have them: ids and colours, palettes, what is unknown, what is no map."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normapps.errors import InputError
from normapps.gan.translation.legend import (
    NO_CLASS,
    LabelMap,
    Legend,
    LegendMaker,
    MapContent,
    read_map,
)

IDS = np.array([[0, 7], [7, 255], [0, 0]], np.uint8)
RGB = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 0, 255], [1, 2, 3]]], np.uint8)


def _saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def _indexed(ids: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.flatten().tolist())
    image.putpalette(colours)
    return image


def _content(codes: Any, kind: Any = "ids", palette: tuple[int, ...] = ()) -> MapContent:
    return LabelMap(kind, np.asarray(codes), palette).content("map.png")


def _learned(*codes: Any, kind: Any = "ids", ignored: tuple[str, ...] = ()) -> Legend:
    maker = LegendMaker(ignored)
    for each in codes:
        maker.add(_content(each, kind), "map.png")
    return maker.legend()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(IDS),
        Image.fromarray(IDS.astype(np.uint16)),
        Image.fromarray(np.dstack([IDS, IDS // 2])),
        _indexed(IDS, [0, 0, 0, 255, 0, 0] * 128),
    ],
    ids=lambda image: image.mode,
)
def test_ids_are_read_as_they_stand(image: Image.Image) -> None:
    found = read_map(_saved(image), "map.png")
    assert found.kind == "ids"
    np.testing.assert_array_equal(found.codes, IDS)


def test_ids_above_255_are_read(tmp_path: Any) -> None:
    ids = np.array([[1000, 65535]], np.uint16)
    np.testing.assert_array_equal(read_map(_saved(Image.fromarray(ids)), "m").codes, ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_as_numbers_without_their_alpha(mode: str) -> None:
    found = read_map(_saved(Image.fromarray(RGB).convert(mode)), "map.png")
    assert found.kind == "colours"
    np.testing.assert_array_equal(found.codes, [[0xFF0000, 0x0000FF], [0x0000FF, 0x010203]])


def test_an_orientation_does_not_turn_a_map() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_map(_saved(Image.fromarray(IDS), exif=exif), "m").codes.shape == (3, 2)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (_saved(Image.fromarray(RGB), "JPEG"), "m.jpg: a JPEG smears classes; save .* as PNG"),
        (io.BytesIO(b"nothing"), "m.jpg: is no picture; save label maps as PNG"),
        (io.BytesIO(_saved(Image.fromarray(IDS)).getvalue()[:50]), "m.jpg: cannot be read"),
        (_saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "m.jpg: a picture of mode CMYK"),
    ],
)
def test_what_is_no_map_is_refused_by_name(file: io.BytesIO, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_map(file, "m.jpg")


def test_a_photograph_is_no_label_map() -> None:
    codes = np.arange(300).reshape(15, 20)
    with pytest.raises(InputError, match=r"has 300 different colours; .* 255 at most"):
        LabelMap("colours", codes).content("photo.png")


def test_classes_are_the_codes_in_ascending_order_over_all_maps() -> None:
    legend = _learned([[40, 7]], [[7, 0]])
    assert legend.values == (0, 7, 40)
    np.testing.assert_array_equal(
        legend.indices(_content([[7, 40], [0, 7]]), "m"), [[1, 2], [0, 1]]
    )


def test_what_is_ignored_is_no_class() -> None:
    legend = _learned([[0, 5, 255]], ignored=("255",))
    assert legend.values == (0, 5)
    found = legend.indices(_content([[255, 5, 0]]), "m")
    np.testing.assert_array_equal(found, [[NO_CLASS, 1, 0]])
    coloured = _learned([[0xFF00FF, 1, 2]], kind="colours", ignored=("#ff00ff",))
    assert coloured.values == (1, 2)


@pytest.mark.parametrize("text", ["sky", "#zz", ""])
def test_an_ignored_that_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--ignore {text}: must be an id"):
        LegendMaker((text,))


def test_an_unknown_code_is_named() -> None:
    with pytest.raises(InputError, match=r"m.png: holds id 9 and 1 more, which no .* \(0, 7\)"):
        _learned([[0, 7]]).indices(_content([[9, 0, 12]]), "m.png")
    with pytest.raises(InputError, match=r"the colour #000009, which .* \(#000001, #ff0000\)"):
        _learned([[0xFF0000, 1]], kind="colours").indices(_content([[9]], "colours"), "m.png")


def test_ids_and_colours_do_not_mix() -> None:
    maker = LegendMaker()
    maker.add(_content([[0, 1]]), "a.png")
    with pytest.raises(InputError, match=r"b.png: is a map of colours, and a.png one of ids"):
        maker.add(_content([[0, 1]], "colours"), "b.png")
    with pytest.raises(
        InputError, match=r"b.png: is a map of colours, and the network was trained"
    ):
        maker.legend().indices(_content([[0, 1]], "colours"), "b.png")


def test_one_id_with_two_colours_is_refused_and_unused_colours_do_not_matter() -> None:
    maker = LegendMaker()
    maker.add(_content([[0, 1]], palette=(10, 20, 30)), "a.png")
    maker.add(_content([[0, 1]], palette=(10, 20, 99)), "b.png")
    with pytest.raises(InputError, match=r"c.png: its palette gives id 1 another colour"):
        maker.add(_content([[1, 2]], palette=(10, 21, 30)), "c.png")
    assert maker.legend().values == (0, 1)  # what was refused left nothing


def test_a_map_is_shown_in_its_own_colours_or_in_distinct_ones() -> None:
    maker = LegendMaker()
    maker.add(_content([[0, 2]], palette=(0x102030, 0, 0xFF0001)), "a.png")
    shown = maker.legend().picture(np.array([[0, 1, NO_CLASS]], np.uint8))
    np.testing.assert_array_equal(shown, [[[16, 32, 48], [255, 0, 1], [0, 0, 0]]])
    grey = _learned([list(range(20))])
    assert len(set(grey.shown)) == 20
    assert _learned([[5, 6]], kind="colours").shown == (5, 6)


def test_a_legend_survives_json() -> None:
    legend = _learned([[0, 5, 255]], ignored=("255",))
    assert Legend.from_json(json.loads(json.dumps(dataclasses.asdict(legend)))) == legend
    with pytest.raises(InputError, match="legend of label maps is damaged"):
        Legend.from_json({"kind": "ids"})


def test_one_class_is_too_few_and_256_too_many() -> None:
    with pytest.raises(InputError, match="the maps: 1 class in all"):
        _learned([[3, 3]])
    with pytest.raises(InputError, match="the maps: 256 different ids in all; 255 at most"):
        _learned([list(range(200))], [list(range(100, 256))])
