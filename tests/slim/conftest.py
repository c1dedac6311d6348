"""Scikit-learn's digits, 8×8: as pools, as PNG files in class folders, and networks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import normapps.models  # noqa: F401  (guard)
from normapps.data.pool import Pool
from normapps.models.folder import build
from normapps.models.load import OpenedModel
from normapps.models.preprocessing import Preprocessing
from normapps.slim.material import Material

CLASSES = tuple("0123456789")


def digits(first: int, last: int) -> Pool:
    """Some of the digits, (M, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images[first:last] * 15).astype(np.uint8))[:, None]
    return Pool(images, torch.from_numpy(found.target[first:last].astype(np.int64)), CLASSES)


def network(width: int = 8, seed: int = 0, classes: int = 10) -> OpenedModel:
    """A small network of random weights, and where it comes from."""
    arguments = {"num_classes": classes, "channels": 1, "size": 8, "width": width}
    model = build("small-cnn", arguments, seed=seed).eval()
    source = {"builder": "small-cnn", "arguments": arguments}
    wanted = Preprocessing.of(model, source)
    return OpenedModel(model, wanted, source, False, "small-cnn", f"seed {seed}")


@pytest.fixture(scope="session")
def make_network() -> Callable[..., OpenedModel]:
    return network


@pytest.fixture(scope="session")
def material() -> Material:
    return Material.of(digits(0, 300), digits(300, 500))


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 4 digits, 12 pictures each."""
    root, pool = tmp_path_factory.mktemp("digits"), digits(0, 400)
    assert pool.labels is not None
    for label in range(4):
        folder = root / f"digit{label}"
        folder.mkdir()
        for row in torch.nonzero(pool.labels == label).flatten().tolist()[:12]:
            Image.fromarray(pool.images[row, 0].numpy()).save(folder / f"{row}.png")
    return root
