"""Who trains and who judges: never one picture both, whatever the labels are called."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.compress.options import CompressOptions
from normapps.compress.split import (
    TEST,
    TRAIN,
    Entry,
    Split,
    _held_out,
    plan_split,
    read_split,
    write_split,
)
from normapps.data.labels import class_numbers, model_classes
from normapps.data.pictures import Pictures
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn

GREY = Preprocessing.of(small_cnn(4, 1, 8, 4))
NONE = CompressOptions(sparse_steps=0, finetune_steps=0)


def plan(data: Path, options: CompressOptions | None = None, outputs: int = 4) -> Split:
    return plan_split(str(data), options or CompressOptions(), GREY, outputs)


def test_every_nth_of_each_class_judges_and_the_lists_say_so(digits: Path, tmp_path: Path) -> None:
    split = plan(digits, CompressOptions(hold_out=5))
    train, test = ({each.path for each in part} for part in (split.train, split.test))
    assert train | test == {str(file) for file in digits.rglob("*.png")}
    assert not train & test
    assert Counter(each.label for each in split.test) == {f"digit {i}": 6 for i in range(4)}
    assert split.classes == ("digit 0", "digit 1", "digit 2", "digit 3")
    assert plan(digits, CompressOptions(hold_out=5)) == split
    assert plan(digits, CompressOptions(hold_out=5, seed=1)).test != split.test
    write_split(split, tmp_path)
    assert read_split(tmp_path) == split
    for name, entries in ((TRAIN, split.train), (TEST, split.test)):
        found = Pictures(tmp_path / name, GREY)
        assert found.labels is not None
        words = [found.classes[label] for label in found.labels]
        assert words == [each.label for each in entries]
        assert [found.name(i) for i in range(len(found))] == [each.path for each in entries]


@given(st.lists(st.integers(0, 5), min_size=8, max_size=60), st.integers(2, 6), st.integers(0, 9))
def test_holding_out_takes_one_of_n_and_leaves_each_class_one(
    labels: list[int], every: int, seed: int
) -> None:
    entries = [Entry(f"{i}.png", str(label)) for i, label in enumerate(labels)]
    try:
        train, test = _held_out(entries, every, seed, "data")
    except InputError:
        # only the last of n sorted pictures could judge, and is the only one of its class
        assert len(entries) // every <= sum(n == 1 for n in Counter(labels).values())
        return
    assert sorted(train + test, key=entries.index) == entries
    assert len(test) <= len(entries) // every
    assert len(test) >= len(entries) // every - sum(n == 1 for n in Counter(labels).values())
    kept = Counter(each.label for each in train)
    assert set(kept) == {each.label for each in entries}


def test_unreadable_pictures_are_named_once_and_left_out(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "some")
    broken = tmp_path / "some" / "digit 1" / "0000.png"
    broken.write_bytes(b"no picture")
    split = plan(tmp_path / "some")
    (line,) = split.failed
    assert str(broken) in line
    assert str(broken) not in {each.path for each in (*split.train, *split.test)}
    for file in (tmp_path / "some").rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(InputError, match="not one of 121 pictures can be read"):
        plan(tmp_path / "some")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_pictures_of_an_archive_are_unpacked(digits: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "above").mkdir()
    shutil.copytree(digits, tmp_path / "above" / "all")
    place = Path(shutil.make_archive(str(tmp_path / "digits"), kind, tmp_path / "above", "all"))
    split = plan(place)
    assert not (tmp_path / "out").exists()
    write_split(split, tmp_path / "out")
    folders = plan(digits)
    assert [each.label for each in split.test] == [each.label for each in folders.test]
    found, wanted = Pictures(tmp_path / "out" / TEST, GREY), Pictures(digits, GREY)
    names = {wanted.name(i): i for i in range(len(wanted))}
    for i in range(len(found)):
        assert found.labels is not None
        own = names[found.name(i).removeprefix("unpacked/all/")]
        assert torch.equal(found.cut(i), wanted.cut(own))


def test_numbers_of_folders_get_the_order_that_training_gives_them(
    digits: Path, tmp_path: Path
) -> None:
    """Folders 2, 9, 10 are classes 0, 1, 2 of three outputs, not 10, 2, 9 and not eleven."""
    for number, name in enumerate(("2", "9", "10")):
        shutil.copytree(digits / f"digit {number}", tmp_path / "some" / name)
    for options in (CompressOptions(), NONE):
        split = plan(tmp_path / "some", options, outputs=3)
        assert split.classes == ("2", "9", "10")
        assert all(Path(each.path).parent.name == each.label for each in split.train)
    write_split(split, tmp_path / "out")
    listed = Pictures(tmp_path / "out" / TRAIN, GREY)
    assert model_classes(listed, 3) == (("2", "9", "10"), "")
    assert class_numbers(listed, split.classes)[[2, 9, 10]].tolist() == [0, 1, 2]


def test_where_nothing_trains_labels_count_only_as_the_models_classes(
    digits: Path, tmp_path: Path
) -> None:
    split = plan(digits, NONE)
    assert split.is_labelled
    assert {each.label for each in split.test} == {f"digit {i}" for i in range(4)}
    split = plan(digits, NONE, outputs=7)
    assert split.without_accuracy == "data has 4 classes, the model 7 outputs"
    assert {each.label for each in (*split.train, *split.test)} == {""}
    places = tmp_path / "list.txt"
    files = sorted(digits.rglob("*.png"))
    places.write_text("".join(f"{file} {5 + i % 2}\n" for i, file in enumerate(files)))
    split = plan(places, NONE, outputs=7)
    assert {each.label for each in split.test} == {"5", "6"}
    assert plan(digits / "digit 0", NONE).without_accuracy.endswith("or a list would give")


def test_other_pictures_may_judge_but_never_the_same(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "digit 3", tmp_path / "test" / "digit 3")
    shutil.copytree(digits / "digit 1", tmp_path / "test" / "digit 1")
    split = plan(digits, CompressOptions(test=str(tmp_path / "test")))
    assert len(split.train) == 120
    assert Counter(each.label for each in split.test) == {"digit 1": 30, "digit 3": 30}
    with pytest.raises(InputError, match="what trains must not judge"):
        plan(digits, CompressOptions(test=str(digits)))
    (tmp_path / "test" / "digit 1").rename(tmp_path / "test" / "digit x")
    with pytest.raises(InputError, match="has no class 'digit x'"):
        plan(digits, CompressOptions(test=str(tmp_path / "test")))
    with pytest.raises(InputError, match=r"has no labels, and .* has; give labelled ones"):
        plan(digits, CompressOptions(test=str(tmp_path / "test" / "digit 3")))


def test_too_few_pictures_or_classes_are_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 pictures are too few to hold 1 of 4 out"):
        plan(digits / "digit 0", CompressOptions(limit=3))
    places = tmp_path / "list.txt"
    files = (digits / "digit 0").glob("*.png")
    places.write_text("".join(f"{file} zero\n" for file in files))
    with pytest.raises(InputError, match="has one class; a classifier needs two"):
        plan(places)


def test_a_split_that_was_not_written_to_its_end_is_none(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text("x.png\n")
    assert read_split(tmp_path) is None
    (tmp_path / "split.json").write_text('{"train": [')
    with pytest.raises(InputError, match=r"split\.json: cannot be read .* --overwrite"):
        read_split(tmp_path)
