from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from normapps.errors import InputError
from normapps.style.dataset.tree import walk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _names(root: Path, *args: object) -> dict[str, str]:
    folders = walk(root, *args)  # type: ignore[arg-type]
    return {item.source: item.output for folder in folders for item in folder.pictures}


def test_names_are_kept_and_the_order_is_sorted(root: Path) -> None:
    _touch(root, "b/z.JPEG", "b/a.png", "a/x.webp", "top.jpg", ".hidden.png", ".git/x.png")
    assert list(_names(root).items()) == [
        (name, name) for name in ("top.jpg", "a/x.webp", "b/a.png", "b/z.JPEG")
    ]


def test_what_is_no_picture_is_to_be_copied(root: Path) -> None:
    _touch(root, "a/x.jpg", "a/x.xml", "a/x_mask.png", "masks/x.png", "labels.csv")
    folders = list(walk(root, "keep", ("*_mask.png", "masks/*")))
    assert [item.source for each in folders for item in each.pictures] == ["a/x.jpg"]
    others = [other for each in folders for other in each.others]
    assert others == ["labels.csv", "a/x.xml", "a/x_mask.png", "masks/x.png"]


@pytest.mark.parametrize(
    ("format", "outputs"),
    [
        ("keep", ["a.bmp", "a.heic→a-heic.jpg", "a.jpg", "a.png"]),
        ("png", ["a.bmp→a-bmp.png", "a.heic→a-heic.png", "a.jpg→a-jpg.png", "a.png"]),
        ("jpg", ["a.bmp→a-bmp.jpg", "a.heic→a-heic.jpg", "a.jpg", "a.png→a-png.jpg"]),
    ],
)
def test_a_name_never_collides(root: Path, format: str, outputs: list[str]) -> None:
    _touch(root, "a.jpg", "a.png", "a.bmp", "a.heic")
    found = _names(root, format)
    assert [k if k == v else f"{k}→{v}" for k, v in found.items()] == outputs
    assert len({name.casefold() for name in found.values()}) == 4


def test_a_new_name_gives_way_to_annotations_folders_and_case(root: Path) -> None:
    _touch(root, "a.bmp", "A.PNG", "b.bmp", "b.png/x.txt", "c.bmp", "c_mask.png")
    found = _names(root, "png", ("*_mask.png",))
    assert found["a.bmp"] == "a-bmp.png"
    assert found["b.bmp"] == "b-bmp.png"
    assert found["c.bmp"] == "c.png"


def test_linked_folders_are_followed_and_a_circle_is_refused(root: Path, tmp_path: Path) -> None:
    _touch(tmp_path, "else/x.jpg", "data/y.jpg")
    (root / "link").symlink_to(tmp_path / "else")
    assert set(_names(root)) == {"y.jpg", "link/x.jpg"}
    (root / "circle").symlink_to(root)
    with pytest.raises(InputError, match="circle: links to a folder that it lies in; remove"):
        _names(root)


@pytest.mark.parametrize("folder", ["", "made/"])
def test_results_are_no_data_set(root: Path, folder: str) -> None:
    _touch(root, "a.jpg", f"{folder}stylize-dataset.json")
    with pytest.raises(InputError, match=r"stylize-dataset\.json: .* holds results of stylize-d"):
        _names(root)


def test_broken_links_are_files_and_pipes_are_left_out(root: Path) -> None:
    """Whoever opens a pipe waits for ever."""
    _touch(root, "a.jpg", "b.png/x.jpg")
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "pipe.txt")
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    folders = list(walk(root))
    assert [item.source for folder in folders for item in folder.pictures] == [
        *("a.jpg", "gone.jpg", "b.png/x.jpg")
    ]
    assert [folder.others for folder in folders] == [("loop",), ()]


def test_a_folder_that_is_missing(root: Path) -> None:
    with pytest.raises(InputError, match="data: cannot be searched"):
        _names(root)


def test_memory_is_that_of_one_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk looks into a folder only when it comes to it."""
    _touch(root, "a/x.jpg", "b/y.jpg")
    seen: list[str] = []
    listed: Callable[[Path], object] = __import__(
        "normapps.style.dataset.tree", fromlist=["_listed"]
    )._listed
    monkeypatch.setattr(
        "normapps.style.dataset.tree._listed",
        lambda place: (seen.append(place.name), listed(place))[1],
    )
    folders = walk(root)
    next(folders), next(folders)
    assert seen == ["data", "a"]
