"""What `slim.py` trains and judges on: CIFAR-10's JPEG copy, and a thousand photographs."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from normapps.data.pictures import Pictures
from normapps.data.pool import Pool
from normapps.files import atomic_path
from normapps.models.preprocessing import Preprocessing
from normapps.slim.material import Material


def cifar_material(shared: Path, runs: Path, judged: int | None = None) -> Material:
    """Return CIFAR-10, decoded once and kept in `runs`.

    Args:
        shared: where data/cifar10_jpeg.tar.xz is.
        runs: where the decoded pictures are kept.
        judged: pictures of the test part, evenly spread; None for all.
    """
    arrays = np.load(_decoded(shared / "data" / "cifar10_jpeg.tar.xz", runs / "cifar10.npz"))
    classes = tuple(arrays["classes"].tolist())
    pools = {}
    for part in ("train", "test"):
        images, labels = (torch.from_numpy(arrays[f"{kind}_{part}"]) for kind in "xy")
        rows = torch.arange(len(images))
        if part == "test" and judged is not None:
            rows = rows[:: max(1, len(images) // judged)][:judged]
        pools[part] = Pool(images[rows], labels[rows].long(), classes)
    return Material(pools["train"], pools["test"], classes)


def _decoded(archive: Path, place: Path) -> Path:
    if place.exists():
        return place
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    for part, name, picture in _members(archive):
        images[part].append(picture.transpose(2, 0, 1))
        names[part].append(name)
    classes = sorted(set(names["train"]))
    arrays = {f"x_{part}": np.stack(images[part]) for part in images}
    arrays |= {f"y_{part}": np.array([classes.index(n) for n in names[part]]) for part in names}
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(place) as temporary, temporary.open("wb") as file:
        np.savez(file, classes=np.array(classes), **arrays)
    return place


def _members(archive: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """The pictures of the archive, part/class/number.jpg, in its order."""
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                part, name, _ = member.name.split("/")
                yield part, name, np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))


def photographs(shared: Path, wanted: Preprocessing, first: int) -> tuple[Pool, Pool]:
    """Return the photographs for statistics, evenly spread, and the others to judge on."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(shared / "data" / "imagenet_sample_1000.tar") as tar:
            tar.extractall(folder, filter="data")
        files = sorted(Path(folder).rglob("*.jpg"))
        lines = [f"{file.relative_to(folder)} {index}" for index, file in enumerate(files)]
        place = Path(folder, "list.txt")
        place.write_text("\n".join(lines))
        pool = Pool.read(Pictures(place, wanted))
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    parts = (order[:first].sort().values, order[first:].sort().values)
    one, other = (Pool(*pool.batch(rows), pool.classes) for rows in parts)
    return one, other
