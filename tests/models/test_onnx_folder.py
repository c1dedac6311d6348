"""Folders that onnxruntime runs: opened without torch, and every fault is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import normapps
from normapps.errors import InputError
from normapps.models.folder import load_model, save_model
from normapps.models.load import open_model
from normapps.models.onnx import to_onnx
from normapps.models.onnx_folder import OnnxManifest, OnnxModel, check_onnx_target, save_onnx
from normapps.models.preprocessing import Preprocessing

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PREPROCESSING = Preprocessing(
    (8, 10), (9, 12), "center", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
)


class Net(nn.Module):
    """Features first, logits second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(x).relu().mean((2, 3))
        return features, self.head(features)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    to_onnx(Net(), torch.randn(2, 3, 8, 10), path)
    return path.read_bytes()


@pytest.fixture
def folder(network: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "net.onnx"
    file.write_bytes(network)
    manifest = OnnxManifest(
        "a net", {}, (3, 8, 10), output=1, num_classes=4, preprocessing=PREPROCESSING.to_json()
    )
    return save_onnx(tmp_path / "out", file, manifest)


def test_pictures_get_the_answers_that_torch_gives(folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = normapps.OnnxModel(folder, threads=1)
    images = model.prepare([tmp_path / "a.png", pixels[::-1]])
    for one in (str(tmp_path / "a.png"), tmp_path / "a.png", pixels):
        np.testing.assert_array_equal(model.prepare(one), images[:1])
    wanted = torch.stack([PREPROCESSING.apply(each) for each in (pixels, pixels[::-1])])
    np.testing.assert_array_equal(images, wanted.numpy())  # to the bit
    with torch.no_grad():
        logits = Net()(wanted)[1].numpy()
    np.testing.assert_allclose(model.run(images), logits, rtol=1e-4, atol=1e-6)
    assert model.manifest.num_classes == 4
    with pytest.raises(InputError, match=r"images are \(8, 10\); they must be \(N, 3, 8, 10\)"):
        model.run(images[0, 0])
    with pytest.raises(InputError, match="no pictures given"):
        model.prepare([])


def test_a_picture_beyond_the_limit_names_no_flag_that_is_not_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a\.png: 1600 pixels .* limit of 1000; make it smaller"):
        normapps.OnnxModel(folder, threads=1).prepare(tmp_path / "a.png")


def test_it_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, numpy, normapps\n"
        f"model = normapps.OnnxModel({str(folder)!r})\n"
        "x = model.prepare([numpy.zeros((20, 20, 3), numpy.uint8)])\n"
        "print(model.run(x).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "(1, 4) False", done.stderr


def test_grey_networks_get_grey_pictures() -> None:
    grey = Preprocessing((8, 8), (8, 8), mean=(0.5,), std=(0.25,), channels=1)
    pixels = np.random.default_rng(1).integers(0, 256, (19, 8, 3), np.uint8)
    np.testing.assert_array_equal(grey.to_array(pixels), grey.apply(pixels).numpy())


def test_torch_says_what_such_a_folder_is(folder: Path) -> None:
    for opens in (load_model, open_model):
        with pytest.raises(InputError, match=r"is an ONNX model.*normapps\.OnnxModel\('.*out'\)"):
            opens(folder)


def test_damaged_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    manifest = folder / "model.json"
    said = json.loads(manifest.read_text())
    for values, line in (
        ({"format": "normapps-model"}, r'"format" is not "normapps-onnx"'),
        ({"version": 2}, "version 2 is not 1"),
        ({"input_size": 3}, '"input_size" is missing or is no list'),
        ({"sha256": {}}, "lists no sha256 of model.onnx"),
    ):
        manifest.write_text(json.dumps(said | values))
        with pytest.raises(InputError, match=line):
            OnnxModel(folder)
    manifest.write_text("[]")
    with pytest.raises(InputError, match="is no ONNX model"):
        OnnxModel(folder)
    manifest.write_text(json.dumps(said))
    with open(folder / "model.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="damaged or changed"):
        OnnxModel(folder)
    with pytest.raises(InputError, match="no such folder"):
        OnnxModel(tmp_path / "nowhere")


def test_an_older_folder_stays_unless_it_may_go(
    folder: Path, network: bytes, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="exists already"):
        check_onnx_target(folder)
    (folder / "mine.txt").write_text("mine")
    file = tmp_path / "net.onnx"
    file.write_bytes(network)
    manifest = OnnxManifest("another", {}, (3, 8, 10), output=1)

    def fail(_: Path) -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        save_onnx(folder, file, manifest, overwrite=True, complete=fail)
    assert OnnxModel(folder).manifest.name == "a net"
    file.write_bytes(network)
    save_onnx(folder, file, manifest, overwrite=True)
    assert OnnxModel(folder).manifest.name == "another"
    assert (folder / "mine.txt").read_text() == "mine"


def test_the_network_itself_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "float"
    opened = open_model("normapps.models.small:small_cnn")
    save_model(out, opened.model, **opened.source)
    with pytest.raises(InputError, match="is no ONNX folder, and so is not replaced"):
        check_onnx_target(out, overwrite=True)
