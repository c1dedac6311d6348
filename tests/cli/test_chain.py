"""docs/quantization.md, 'From a pretrained network': slim prune, finetune, adapt run, quantize."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from normapps.cli.main import main

NAMES = {0: "2", 1: "10", 2: "9"}
"""Folders of the digits 0 to 2; in the order of their values these are not in the alphabet's."""


def command(patch: pytest.MonkeyPatch, *words: object) -> None:
    """Run a command in this process, as the shell would."""
    patch.setattr("sys.argv", ["normapps", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, words


def digits(root: Path, first: int, count: int, light: float = 1.0) -> Path:
    """Write class folders of `count` digits each, from the first-th on."""
    found = load_digits()
    for digit, name in NAMES.items():
        (root / name).mkdir(parents=True)
        for row in np.flatnonzero(found.target == digit)[first : first + count]:
            pixels = (found.images[row] * 15.9 * light).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(root / name / f"{row:04}.png")
    return root


def accuracies(folder: Path) -> list[float]:
    """Of every network that a report of `slim prune` or `quantize` tells of."""
    told = json.loads((folder / "report.json").read_text())
    return [each["accuracy"]["mean"] for each in told["stages"].values()]


def test_a_pruned_and_adapted_network_becomes_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command opens what the former wrote, and all judge by the names of the classes."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from normapps.models.load import open_model
    from normapps.models.onnx_folder import OnnxModel, read_onnx_manifest

    monkeypatch.setattr("normapps.measure.report.can_plot", lambda: False)
    photos, dark = digits(tmp_path / "photos", 0, 60), digits(tmp_path / "dark", 60, 60, 0.7)
    net, slim, tuned, adapted, int8 = (tmp_path / x for x in ("net", "slim", "tuned", "ad", "int8"))
    fit = ("--batch-size", 32, "--optimizer", "adam", "--device", "cpu", "--size", 8)
    small = "normapps.models.small:small_cnn"
    command(monkeypatch, "slim", "train", small, photos, "-o", net, "--steps", 60, "--lr", 0.01,
            "--strength", 0, *fit)  # fmt: skip
    command(monkeypatch, "slim", "prune", net / "model", "-o", slim, "--target-flops", 0.8,
            "--data", photos, "--no-latency", "--device", "cpu")  # fmt: skip
    command(monkeypatch, "slim", "finetune", slim, photos, "-o", tuned, "--steps", 30,
            *fit[:-2])  # fmt: skip
    command(monkeypatch, "adapt", "run", tuned / "model", dark, "-o", adapted, "--method", "prior",
            "--device", "cpu")  # fmt: skip
    command(monkeypatch, "quantize", adapted, "-o", int8, "--data", dark, "--no-latency",
            "--no-sensitivity", "--device", "cpu")  # fmt: skip
    assert accuracies(slim)[0] > 0.85
    assert min(accuracies(int8)) > 0.85
    assert open_model(adapted).classes == ("2", "9", "10")
    done = [dict(each) for each in read_onnx_manifest(int8).history]
    marks = ("trained", "pruned", "trained", "adapted", "quantized")
    assert [next((m for m in set(marks) if m in each), "") for each in done][-5:] == list(marks)
    model = OnnxModel(int8)
    right = [
        int(model.run(model.prepare([file])).argmax()) == number
        for number, name in enumerate(("2", "9", "10"))
        for file in sorted((dark / name).glob("*.png"))
    ]
    assert len(right) == 180
    assert np.mean(right) > 0.85
