"""`normapps gan classifier`, from folders of pictures to a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.gan import app
from normapps.models.load import open_model

FEW = ["--size", "8", "--width", "2", "--batch-size", "4", "--steps", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits 0 and 1 as PNG files in class folders, 10 each."""
    from sklearn.datasets import load_digits

    found, root = load_digits(), tmp_path_factory.mktemp("digits")
    for label in range(2):
        (root / f"digit{label}").mkdir()
        for row in np.flatnonzero(found.target == label)[:10]:
            pixels = (found.images[row] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"digit{label}" / f"{row}.png")
    return root


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["classifier", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_it_stops_goes_on_and_says_how_good_it_is(pictures: Path, tmp_path: Path) -> None:
    given = ["--data", str(pictures), "--hold-out", "5", "-o", str(tmp_path), *FEW]
    code, _, said = run(*given, "--stop-after", "2")
    assert code == 0
    assert "stopped before the end" in said
    code, printed, _ = run(*given)
    assert code == 0
    assert printed.startswith("accuracy ")
    assert "on 4 test pictures" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "model")
    assert open_model(tmp_path / "model").classes == ("digit0", "digit1")
    code, printed, _ = run(*given, "--json")  # finished before: nothing is trained any more
    told = json.loads(printed)
    assert told["finished"]
    assert told["sha256"] == json.loads((tmp_path / "report.json").read_text())["sha256"]
