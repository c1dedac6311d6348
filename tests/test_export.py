"""Every kind of model as a file, and the file computes what torch does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError, UsageError
from normapps.export import PairStylizer, export_model
from normapps.export_options import ExportOptions
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.models.small import small_cnn

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a small network whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    model = small_cnn(channels=1, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    folder = tmp_path_factory.mktemp("cnn") / "m"
    arguments = {"channels": 1, "num_classes": 10}
    return save_model(folder, model, builder="small-cnn", arguments=arguments)


def _logits(folder: Path, x: Tensor) -> np.ndarray:
    from normapps.models.folder import load_model

    with torch.no_grad():
        return np.asarray(load_model(folder)(x).numpy())


def test_a_model_folder_becomes_onnx_with_its_preprocessing(cnn: Path, tmp_path: Path) -> None:
    options = ExportOptions(size=16, mean="0.25", std="0.5")
    report = export_model(cnn, tmp_path / "m.onnx", options)
    assert report.inputs == ((None, 1, 16, 16),)
    assert report.outputs == ((2, 10),)
    assert report.folded > 0
    assert not report.left
    assert 0 <= report.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, _logits(cnn, x), rtol=1e-4, atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["mean"]) == [0.25]
    assert json.loads(said["size"]) == [16, 16]
    assert str(cnn) in said["model"]
    assert said["num_classes"] == "10"


def test_a_fixed_batch_is_fixed_and_norms_stay_where_asked(cnn: Path, tmp_path: Path) -> None:
    options = ExportOptions(size=16, batch="3", fold=False)
    report = export_model(cnn, tmp_path / "m.onnx", options)
    assert report.inputs == ((3, 1, 16, 16),)
    assert report.folded == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == [3, 1, 16, 16]


def test_a_program_of_torch_export_runs_without_our_code(cnn: Path, tmp_path: Path) -> None:
    report = export_model(cnn, tmp_path / "m.pt2", ExportOptions(size=16))
    assert 0 <= report.difference < 1e-4
    kept = {"size": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=kept)
    assert json.loads(kept["size"]) == [16, 16]
    x = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = program.module()(x).numpy()
    np.testing.assert_allclose(found, _logits(cnn, x), rtol=1e-4, atol=1e-5)


def test_a_stylizer_takes_two_pictures_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    save_model(tmp_path / "s", network, builder="adain-tiny", arguments=arguments)
    report = export_model(tmp_path / "s", tmp_path / "s.onnx")
    assert report.inputs == ((None, 3, None, None), (1, 3, None, None))
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx")
    pair = torch.rand(3, 3, 40, 64), torch.rand(1, 3, 32, 48)
    names = [each.name for each in session.get_inputs()]
    assert names == ["content", "style"]
    found = session.run(None, dict(zip(names, (x.numpy() for x in pair), strict=True)))[0]
    with torch.no_grad():
        want = PairStylizer(network.eval())(*pair)
    np.testing.assert_allclose(found, want.numpy(), atol=1e-4)


def test_a_wrong_file_of_torch_export_is_not_kept(
    cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normapps.models import pt2

    monkeypatch.setattr(pt2, "relative", lambda wanted, found: float("nan"))
    with pytest.raises(InputError, match=r"m\.pt2: its outputs differ .* the file is not kept"):
        export_model(cnn, tmp_path / "m.pt2", ExportOptions(size=16, fold=False))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused_in_one_line(cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.onnx or \.pt2"):
        export_model(cnn, tmp_path / "m.tflite")
    for side in (8, 20):
        with pytest.raises(
            UsageError, match=rf"--size {side}: must be a multiple of 8, at least 16"
        ):
            export_model("adain-tiny", tmp_path / "s.onnx", ExportOptions(size=side))
    with pytest.raises(UsageError, match=r"--opset 18: .* is no ONNX"):
        export_model(cnn, tmp_path / "m.pt2", ExportOptions(opset=18))
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_model(cnn, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="--batch '0'"):
        ExportOptions(batch="0")
