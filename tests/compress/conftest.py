"""Scikit-learn's digits 0 to 3 as PNG files in class folders, and a network trained on others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from normapps.models.folder import save_model
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn

SHAPE = {"num_classes": 4, "channels": 1, "size": 8, "width": 8}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, 30 pictures each."""
    found, root = load_digits(), tmp_path_factory.mktemp("digits")
    for label in range(4):
        (root / f"digit {label}").mkdir()
        for row in np.flatnonzero(found.target == label)[:30]:
            pixels = (found.images[row] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"digit {label}" / f"{row:04}.png")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    found = load_digits()
    rows = np.flatnonzero((found.target < 4) & (np.arange(len(found.target)) > 400))
    pixels = (found.images[rows] * 15.9).astype(np.uint8)
    x = torch.from_numpy(pixels).unsqueeze(1).float().div(255).sub(0.5).div(0.5)
    y = torch.from_numpy(found.target[rows])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_cnn(**SHAPE)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(80):
            chosen = torch.randint(len(x), (64,))
            loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    out = tmp_path_factory.mktemp("trained") / "net"
    return save_model(
        out,
        model.eval(),
        builder="small-cnn",
        arguments=SHAPE,
        preprocessing=Preprocessing.of(model).to_json(),
        history=[{"weights": "trained on digits"}],
    )
