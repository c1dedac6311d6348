"""A small random stylizer on both runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.style.onnx.files import write_runtime
from normapps.style.onnx.stylizer import OnnxStylizer
from normapps.style.stylizer import Stylizer

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with graphs of a float32 model folder, of a network that paints with contrast."""
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=12, hidden=4)
    network.image.weight.data.mul_(4)
    torch.nn.init.normal_(network.modulation.heads.weight, std=0.1)
    parent = tmp_path_factory.mktemp("model")
    arguments = {"width": 8, "deep": 12, "hidden": 4}
    save_model(parent / "bare", network, builder="adain-tiny", arguments=arguments)
    (parent / "bare" / "styles").mkdir()
    (parent / "bare" / "styles" / "mine.style").write_text("kept")
    assert write_runtime(parent / "bare", parent / "tiny") < 1e-4
    return parent / "tiny"


@pytest.fixture(scope="session")
def onnx(folder: Path) -> OnnxStylizer:
    return OnnxStylizer.load(folder)


@pytest.fixture(scope="session")
def torch_stylizer(folder: Path) -> Stylizer:
    return Stylizer.load(folder, device="cpu", dtype="float32")
