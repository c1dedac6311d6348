"""A small data set, paintings, and a network that is quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.style.dataset.job import stylize_dataset
from normapps.style.dataset.options import DatasetOptions
from normapps.style.dataset.painter import DatasetResult

Run = Callable[..., list[DatasetResult]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network that is small and paints with contrast."""
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    network.image.weight.data.mul_(4)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(
        folder, network, builder="adain-tiny", arguments={"width": 8, "deep": 8, "hidden": 4}
    )
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data set `data` and the paintings `art`, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat/a.jpg", "cat/a.png", "cat/b.png", "dog/a.jpg", "c.png")):
        _draw_picture(f"data/{name}", number)
    Path("data/cat/a.xml").write_text("<cat/>")
    Path("data/labels.csv").write_text("a.jpg,cat\n")
    for number, name in enumerate(("wave", "ink", "sun", "old/moon")):
        _draw_picture(f"art/{name}.png", 20 + number, (40, 30), brightest=60 * number + 60)
    return tmp_path


@pytest.fixture
def run(here: Path, model: Path) -> Run:
    """Run a job in this process; options by name."""

    def _run(
        out: str = "out", *, data: str = "data", styles: str = "art", **values: Any
    ) -> list[DatasetResult]:
        chosen = {"model": str(model), "device": "cpu", "cache": "cache", "workers": 2} | values
        return list(stylize_dataset(DatasetOptions(**chosen), data, styles, out))

    return _run


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., None]:
    """Write a picture of noise: path, seed, size, brightest value."""
    return _draw_picture


@pytest.fixture(scope="session")
def tree() -> Callable[[str], dict[str, bytes]]:
    """Every file below a folder but the record, with its bytes."""
    return _tree


def _draw_picture(
    path: str, seed: int, size: tuple[int, int] = (24, 16), brightest: int = 255
) -> None:
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, brightest + 1, shape, np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _tree(folder: str) -> dict[str, bytes]:
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if "stylize-dataset." not in name}
