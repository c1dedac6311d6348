"""Digits of 8×8 pixels as a source, and digits on grey paper, with little contrast, as a target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.adapt.training.options import RecipeOptions
from normapps.data.pool import Pool

CLASSES = tuple("0123456789")


def digits(first: int, last: int, *, pale: bool = False) -> Pool:
    """Some of scikit-learn's digits, (M, 1, 8, 8); on grey paper as another domain."""
    from sklearn.datasets import load_digits

    found = load_digits()
    values = found.images[first:last] * 15
    values = 150 + 0.3 * values if pale else values
    images = torch.from_numpy(values.astype(np.uint8))[:, None]
    return Pool(images, torch.from_numpy(found.target[first:last].astype(np.int64)), CLASSES)


@pytest.fixture(scope="session")
def source() -> Pool:
    return digits(0, 700)


@pytest.fixture(scope="session")
def target() -> Pool:
    return digits(700, 1400, pale=True)


@pytest.fixture(scope="session")
def held() -> Pool:
    return digits(1400, 1797, pale=True)


@pytest.fixture
def options() -> RecipeOptions:
    return RecipeOptions(
        method="source", steps=4, batch_size=16, lr=0.1, warmup=2, crop=1.0, flip=0.0, jitter=0.1,
        shift=0.1, device="cpu", save_every=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of class folders of each domain, 4 classes of 6 pictures."""
    root = tmp_path_factory.mktemp("digits")
    for name, pale in (("plain", False), ("pale", True)):
        pool = digits(0, 400, pale=pale)
        assert pool.labels is not None
        for label in range(4):
            folder = root / name / f"digit{label}"
            folder.mkdir(parents=True)
            for row in torch.nonzero(pool.labels == label).flatten().tolist()[:6]:
                Image.fromarray(pool.images[row, 0].numpy()).save(folder / f"{row}.png")
    return root / "plain", root / "pale"
