"""Sets of pictures as a network takes them: what is found, labels, limits, batches, bad files."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from normapps.data import pictures as module
from normapps.data.pictures import Pictures, batches
from normapps.errors import InputError, NormappsError
from normapps.models.preprocessing import Preprocessing

SMALL = Preprocessing((8, 8), (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
"""Keeps flat pictures flat, so that one can be told by its value."""


def png(value: int, size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, "PNG")
    return file.getvalue()


def make_folder(place: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def values(found: Pictures) -> list[int]:
    return [round(255 * found[i][0].mean().item()) for i in range(len(found))]


NESTED = {f"photo/{kind}/{i}.png": png(10 * i) for i, kind in enumerate("abcab")}


def test_class_folders_give_labels_at_any_depth(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", NESTED)
    tar = make_tar(tmp_path / "some.tar", NESTED)
    for place in (folder, tar, folder / "photo"):
        found = Pictures(place, SMALL)
        assert found.classes == ("a", "b", "c")
        assert found.labels == (0, 0, 1, 1, 2)
        assert values(found) == [0, 30, 10, 40, 20]
        image, label = found[3]
        assert (image.shape, image.dtype, label) == ((3, 8, 8), torch.float32, 1)
    assert Pictures(str(tar), SMALL).name(0) == "photo/a/0.png"


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.png"],
        ["one/a.png", "one/b.png"],
        ["train/a.png", "val/b.png"],
        ["Train/a.png", "Test/b.png"],
        ["dog/a.png", "cat/b.png", "c.png"],
        ["dog/a.png", "cat/b.png", "cat/more/c.png"],
    ],
)
def test_folders_that_are_no_classes_give_no_labels(tmp_path: Path, names: list[str]) -> None:
    found = Pictures(make_folder(tmp_path / "x", {name: png(1) for name in names}), SMALL)
    assert (found.labels, found.classes) == (None, ())
    assert found[0][1] == -1
    ((images, labels),) = batches(found, 9)
    assert (len(images), labels) == (len(names), None)


def test_a_split_beside_a_class_is_a_class(tmp_path: Path) -> None:
    files = {f"{name}/x.png": png(1) for name in ("train", "plane", "car")}
    assert Pictures(make_folder(tmp_path / "x", files), SMALL).classes == ("car", "plane", "train")


def test_one_picture_is_a_set_of_one(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(77))
    found = Pictures(tmp_path / "one.png", SMALL)
    assert (len(found), found.name(0), found.labels) == (1, "one.png", None)
    assert values(found) == [77]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A folder of pictures 0…4 for lists to name, one of them with a space in its name."""
    names = ["0.png", "1.png", "two words.png", "sub/3.PNG", "4.png"]
    return make_folder(tmp_path, {name: png(10 * i) for i, name in enumerate(names)})


def test_a_list_names_pictures_in_its_own_order(listed: Path) -> None:
    lines = ["# some", "", "  sub/3.PNG ", "0.png", "two words.png", str(listed / "1.png")]
    (listed / "list.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    found = Pictures(listed / "list.txt", SMALL)
    assert values(found) == [30, 0, 20, 10]
    assert found.name(0) == "sub/3.PNG"
    assert found.labels is None


@pytest.mark.parametrize("between", [" ", "\t", ",", ", ", " ; "])
def test_a_list_may_label(listed: Path, between: str) -> None:
    rows = [("4.png", "wild cat"), ("two words.png", "dog"), ("0.png", "wild cat")]
    (listed / "list.csv").write_text(
        "path,label\n" + "\n".join(f"{name}{between}{label}" for name, label in rows)
    )
    found = Pictures(listed / "list.csv", SMALL)
    assert values(found) == [40, 20, 0]
    assert found.classes == ("dog", "wild cat")
    assert found.labels == (1, 0, 1)


def test_whole_numbers_of_a_list_are_class_indices(listed: Path) -> None:
    (listed / "list.txt").write_text("0.png 10\n1.png 2\n4.png 2\n")
    found = Pictures(listed / "list.txt", SMALL)
    assert found.labels == (10, 2, 2)
    assert found.classes == tuple(str(i) for i in range(11))


def test_a_list_labels_all_or_none(listed: Path) -> None:
    (listed / "list.txt").write_text("0.png 10\n1.png\n")
    with pytest.raises(InputError, match=r"list\.txt: 1\.png has no label, others have"):
        Pictures(listed / "list.txt", SMALL)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    limit=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_a_limit_keeps_the_shares_of_the_classes(sizes: list[int], limit: int, seed: int) -> None:
    labels = np.repeat(range(len(sizes)), sizes)
    labels = np.random.default_rng(seed).permutation(labels).tolist()
    chosen = module.spread(labels, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(labels))
    counts = Counter(labels[i] for i in chosen)
    for label, size in enumerate(sizes):
        share = min(limit, len(labels)) * size / len(labels)
        assert share - 1 <= counts[label] <= share + 1
        if size * limit >= len(labels):
            assert counts[label] >= 1


def test_a_limit_reaches_every_class_of_a_folder(tmp_path: Path) -> None:
    files = {f"{kind}/{i:02}.png": png(i) for kind in "abcd" for i in range(10)}
    found = Pictures(make_folder(tmp_path / "x", files), SMALL, limit=8)
    assert found.labels == (0, 0, 1, 1, 2, 2, 3, 3)
    assert values(found) == [2, 7] * 4
    assert (
        Pictures(tmp_path / "x", SMALL, limit=1000).labels
        == (0,) * 10 + (1,) * 10 + (2,) * 10 + (3,) * 10
    )


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    return make_tar(tmp_path / "x.tar", {f"{i % 2}/{i:03}.png": png(2 * i) for i in range(100)})


@pytest.mark.parametrize("workers", [None, 0, 1, 5])
@pytest.mark.parametrize("size", [1, 7, 50, 100, 1000])
def test_batches_are_the_set_in_order(hundred: Path, size: int, workers: int | None) -> None:
    found = Pictures(hundred, SMALL)
    loader = batches(found, size, workers)
    expected = [found[i] for i in range(100)]
    for _ in range(2):
        parts = list(loader)
        assert len(parts) == len(loader) == -(-100 // size)
        assert {len(images) for images, _ in parts[:-1]} <= {size}
        assert torch.equal(torch.cat([x for x, _ in parts]), torch.stack([x for x, _ in expected]))
        labels = torch.cat([labels for _, labels in parts if labels is not None])
        assert labels.tolist() == [label for _, label in expected]
        assert labels.dtype == torch.int64


def test_batches_come_in_the_dtype_asked_for(hundred: Path) -> None:
    found = Pictures(hundred, SMALL)
    for (plain, _), (half, _) in zip(
        batches(found, 50), batches(found, 50, dtype=torch.bfloat16), strict=True
    ):
        assert plain.dtype == torch.float32
        assert torch.equal(half, plain.to(torch.bfloat16))


def test_a_seed_mixes_always_alike(hundred: Path) -> None:
    found = Pictures(hundred, SMALL)
    first, again, other = (
        torch.cat([x for x, _ in batches(found, 9, seed=seed)])[:, 0, 0, 0] for seed in (1, 1, 2)
    )
    plain = torch.stack([found[i][0][0, 0, 0] for i in range(100)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    assert torch.equal(first.sort()[0], plain.sort()[0])
    images, labels = next(iter(batches(found, 100, seed=3)))
    assert labels is not None
    number = (images[:, 0, 0, 0] * 255 / 2).round().long()
    assert torch.equal(labels, number % 2)


def test_torchs_own_loader_takes_the_set(hundred: Path) -> None:
    found = Pictures(hundred, SMALL)
    for ours, theirs in zip(
        batches(found, 30), torch.utils.data.DataLoader(found, 30), strict=True
    ):
        assert ours[1] is not None
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_bad_files_are_left_out_and_named(tmp_path: Path) -> None:
    good = png(9, (300, 300))
    files = {f"{i}.png": png(10 * i) for i in range(8)}
    files |= {"1.png": b"", "4.png": b"text", "5.png": good[:200]}
    (tmp_path / "list.txt").write_text("\n".join([*files, "gone.png"]))
    make_folder(tmp_path, files)
    found = Pictures(tmp_path / "list.txt", SMALL)
    loader = batches(found, 2)
    for _ in range(2):
        parts = [images for images, _ in loader]
        assert [len(images) for images in parts] == [1, 2, 2]
        seen = [round(255 * x.mean().item()) for images in parts for x in images]
        assert seen == [0, 20, 30, 60, 70]
        assert len(loader.failed) == 4
        for line, name in zip(loader.failed, ("1.png", "4.png", "5.png", "gone.png"), strict=True):
            assert line.startswith(str(tmp_path / name))
            assert "\n" not in line
    assert len(loader) == 5
    with pytest.raises(InputError, match=r"1\.png: is empty"):
        found[1]


def test_labels_stay_with_their_pictures_when_some_are_bad(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.png": png(i) for i, kind in enumerate("abc")}
    found = Pictures(make_folder(tmp_path / "x", files | {"b/1.png": b"no"}), SMALL)
    ((images, labels),) = batches(found, 9)
    assert labels is not None
    assert labels.tolist() == [0, 2]
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_bad_files_is_an_error(tmp_path: Path, workers: int) -> None:
    make_folder(tmp_path / "x", {f"{i}.jpg": b"no picture" for i in range(5)})
    loader = batches(Pictures(tmp_path / "x", SMALL), 2, workers)
    with pytest.raises(
        InputError, match=r"x: not one of 5 pictures can be read; the first: .*0\.jpg"
    ):
        list(loader)
    assert len(loader.failed) == 5


def test_whoever_stops_early_leaves_no_thread(hundred: Path) -> None:
    before = threading.active_count()
    iterator = iter(batches(Pictures(hundred, SMALL), 4, 3))
    next(iterator)
    assert threading.active_count() > before
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_more_is_decoded_ahead_than_two_batches(
    hundred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Pictures(hundred, SMALL)
    decoded: list[int] = []
    cut = found.cut
    monkeypatch.setattr(found, "cut", lambda index: decoded.append(index) or cut(index))
    iterator = iter(batches(found, 5, 2))
    for number in range(1, 8):
        next(iterator)
        assert len(decoded) <= 5 * number + 10
    iterator.close()  # type: ignore[attr-defined]


def test_pictures_of_every_kind_go_through(tmp_path: Path, chelsea: np.ndarray) -> None:
    rgb = Image.fromarray(chelsea)
    deep = np.linspace(0, 65535, 60 * 50).reshape(60, 50).astype(np.uint16)
    kinds = {
        "cmyk.jpg": rgb.convert("CMYK"),
        "grey.jpg": rgb.convert("L"),
        "alpha.png": rgb.convert("RGBA"),
        "grey_alpha.png": rgb.convert("LA"),
        "palette.gif": rgb.convert("P"),
        "deep.png": Image.fromarray(deep),
        "deep.tif": Image.fromarray(deep),
        "bits.png": rgb.convert("1"),
        "dot.png": Image.new("RGB", (1, 1), (255, 0, 0)),
        "long.png": Image.new("RGB", (5000, 1)),
        "wide.webp": rgb.resize((900, 40)),
        "big.jpg": rgb.resize((4000, 3000)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    for chosen in (Preprocessing(), Preprocessing(mean=(0.5,), std=(0.2,), channels=1)):
        loader = batches(Pictures(tmp_path, chosen), len(kinds))
        ((images, _),) = loader
        assert images.shape == (len(kinds), chosen.channels, 224, 224)
        assert images.isfinite().all()
        assert not loader.failed
    dot = Pictures(tmp_path / "dot.png", Preprocessing())[0][0]
    red = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert torch.allclose(dot, red[:, None, None].expand(3, 224, 224))


def test_what_cannot_be_a_set_is_one_clear_line(tmp_path: Path, hundred: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "other.bin").write_bytes(b"neither tar nor picture")
    for name, message in {
        "nowhere": "no such folder, archive, list or picture",
        "empty.txt": "holds no picture",
        "binary.txt": "cannot be read as a list of pictures",
        "other.bin": "not an uncompressed tar",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            Pictures(tmp_path / name, SMALL)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="--limit 0: must be at least 1"):
        Pictures(hundred, SMALL, limit=0)
    with pytest.raises(InputError, match="--batch-size 0: must be at least 1"):
        batches(Pictures(hundred, SMALL), 0)
    many = Preprocessing(mean=(0.5,) * 5, std=(1.0,) * 5, channels=5)
    with pytest.raises(InputError, match="3 channels or 1, the network takes 5"):
        Pictures(hundred, many)


@pytest.mark.shared
def test_real_sets_have_their_classes(shared_dir: Path) -> None:
    photo = Pictures(shared_dir / "data" / "pacs_photo.tar", Preprocessing(), limit=70)
    assert photo.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert photo.labels is not None
    assert set(photo.labels) == set(range(7))
    assert len(photo) == 70
    bsds = Pictures(shared_dir / "data" / "bsds300.tar", Preprocessing())
    assert (len(bsds), bsds.labels) == (300, None)
    assert Pictures(shared_dir / "data" / "imagenet_sample_1000.tar", SMALL).labels is None


def test_a_transform_sees_the_cut_picture_and_its_index(hundred: Path) -> None:
    seen: dict[int, tuple[tuple[int, ...], int]] = {}

    def mark(image: np.ndarray, index: int) -> np.ndarray:
        seen[index] = image.shape, int(image[0, 0, 0])
        return np.full_like(image, index)

    found = Pictures(hundred, SMALL, limit=10, transform=mark)
    images = torch.cat([x for x, _ in batches(found, 3)])
    assert (images[:, 0, 0, 0] * 255).round().tolist() == list(range(10))
    assert values(found) == list(range(10))
    plain = values(Pictures(hundred, SMALL, limit=10))
    assert [seen[i] for i in range(10)] == [((8, 8, 3), value) for value in plain]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_changes_the_shape_is_no_bad_picture(hundred: Path, workers: int) -> None:
    for wrong in (lambda image, _: image[:4], lambda image, _: image / 255):
        found = Pictures(hundred, SMALL, transform=wrong)
        with pytest.raises(NormappsError, match=r"it must keep both"):
            list(batches(found, 10, workers))


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    shards=st.integers(1, 5),
    seed=st.none() | st.integers(0, 3),
)
def test_shards_are_the_batches_of_the_whole(
    count: int, batch_size: int, shards: int, seed: int | None
) -> None:
    whole = module.batch_order(count, batch_size, seed)
    assert sorted(whole) == list(range(count))
    wanted = [tuple(whole[i : i + batch_size]) for i in range(0, count, batch_size)]
    found: list[tuple[int, ...]] = []
    for number in range(1, shards + 1):
        if shards > len(wanted):  # the first of them, too, would be of no use without the others
            with pytest.raises(InputError, match=f"--shard {number}/{shards}: needs {shards} "):
                module.batch_order(count, batch_size, seed, (number, shards))
            continue
        part = module.batch_order(count, batch_size, seed, (number, shards))
        found += [tuple(part[i : i + batch_size]) for i in range(0, len(part), batch_size)]
    assert sorted(found) == (sorted(wanted) if shards <= len(wanted) else [])


def test_a_shard_of_batches(tmp_path: Path) -> None:
    place = make_folder(tmp_path, {f"{i}.png": png(i) for i in range(7)})
    pictures = Pictures(place, SMALL)
    values = [
        [(images[:, 0, 0, 0] * 255).round().int().tolist() for images, _ in part]
        for part in (batches(pictures, 2, shard=(i, 2)) for i in (1, 2))
    ]
    assert values == [[[0, 1], [4, 5]], [[2, 3], [6]]]
