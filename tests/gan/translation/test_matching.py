"""Which map belongs to which picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from normapps.gan.translation.matching import Pair, match


def test_names_without_suffixes_and_folders_pair() -> None:
    pairs, lines = match(["maps/b.png", "maps/a.png"], ["jpg/a.jpg", "jpg/b.jpeg"])
    assert pairs == [Pair("a", 1, 0), Pair("b", 0, 1)]
    assert lines == []


def test_where_names_repeat_folders_count() -> None:
    pairs, lines = match(["x/1.png", "y/1.png"], ["y/1.jpg", "x/1.jpg", "z/1.jpg"])
    assert pairs == [Pair("x/1", 0, 1), Pair("y/1", 1, 0)]
    assert lines == ["z/1.jpg: there is no map called 'z/1'; left out"]


def test_a_line_for_each_without_a_partner() -> None:
    pairs, lines = match(["a.png", "b.png"], ["b.jpg", "c.jpg"])
    assert pairs == [Pair("b", 1, 0)]
    assert lines == [
        "a.png: there is no picture called 'a'; left out",
        "c.jpg: there is no map called 'c'; left out",
    ]


def test_two_files_of_one_name_are_told() -> None:
    pairs, lines = match(["a.png"], ["a.jpg", "a.png"])
    assert pairs == [Pair("a", 0, 0)]
    assert lines == ["a.png: a.jpg has the same name; left out"]


@given(st.lists(st.text("abc", min_size=1, max_size=3)), st.lists(st.text("abc", min_size=1)))
def test_every_file_is_in_a_pair_or_in_a_line(maps: list[str], pictures: list[str]) -> None:
    pairs, lines = match([f"{each}.png" for each in maps], [f"{each}.jpg" for each in pictures])
    assert 2 * len(pairs) + len(lines) == len(maps) + len(pictures)
    for pair in pairs:
        assert maps[pair.label_map] == pictures[pair.picture] == pair.name
