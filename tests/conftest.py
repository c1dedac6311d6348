"""Fixtures and marks of the whole suite: bundled photographs, `../shared`, GPU and census tests.

The photographs come with scikit-image and scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# A busy machine is no reason to fail: the suite holds no timed assertion.
settings.register_profile("normapps", deadline=None, print_blob=True)
settings.load_profile("normapps")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _drop_census(config, items)
    if not (SHARED / "README.md").is_file():
        _skip(items, "shared", f"needs the research data in {SHARED}, which is missing")
    if any("gpu" in item.keywords for item in items) and not _has_gpu():
        _skip(items, "gpu", "needs a CUDA device, and there is none")


def _drop_census(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "census" in (config.option.markexpr or ""):
        return
    dropped = [item for item in items if item.get_closest_marker("census")]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if not item.get_closest_marker("census")]


def _skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@functools.cache
def _photos() -> dict[str, np.ndarray]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "coffee", "chelsea", "rocket")
    photos = {name: np.ascontiguousarray(getattr(data, name)()) for name in names}
    photos.update(zip(("china", "flower"), load_sample_images().images, strict=True))
    return photos


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of research data beside the checkout; only for tests marked `shared`."""
    return SHARED


@pytest.fixture
def photos() -> dict[str, np.ndarray]:
    """Six photographs by name, (H, W, 3) uint8 sRGB, the test's own copies."""
    return {name: photo.copy() for name, photo in _photos().items()}


@pytest.fixture(scope="session")
def photo_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The six photographs as JPEG files, all in one folder; not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    files = {name: folder / f"{name}.jpg" for name in _photos()}
    for name, file in files.items():
        Image.fromarray(_photos()[name]).save(file, quality=92)
    return files


@pytest.fixture
def astronaut() -> np.ndarray:
    """A portrait, (512, 512, 3) uint8."""
    return _photos()["astronaut"].copy()


@pytest.fixture
def coffee() -> np.ndarray:
    """A cup on a table, (400, 600, 3) uint8."""
    return _photos()["coffee"].copy()


@pytest.fixture
def chelsea() -> np.ndarray:
    """A cat, (300, 451, 3) uint8: odd width."""
    return _photos()["chelsea"].copy()


@pytest.fixture
def rocket() -> np.ndarray:
    """A launch with much smooth sky, (427, 640, 3) uint8."""
    return _photos()["rocket"].copy()


@pytest.fixture
def china() -> np.ndarray:
    """A temple, (427, 640, 3) uint8."""
    return _photos()["china"].copy()


@pytest.fixture
def flower() -> np.ndarray:
    """A flower, (427, 640, 3) uint8."""
    return _photos()["flower"].copy()
