"""`normapps quantize --backend torchao` from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch._dynamo.utils import counters

import normapps
from normapps.cli.main import main
from normapps.models.folder import load_model, save_model
from normapps.models.onnx_folder import OnnxManifest, save_onnx
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn
from normapps.quant.options import QuantizeOptions
from normapps.quant.quantize import QuantizeReport, quantize_model

pytest.importorskip("torchao")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SHAPE = {"num_classes": 10, "channels": 1, "size": 8, "width": 8}
OPTIONS = {"backend": "torchao", "device": "cpu", "latency": False}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 60 digits."""
    found = load_digits()
    place = tmp_path_factory.mktemp("digits")
    pixels = (found.images[-60:] * 15.9).astype(np.uint8)
    for i, (each, label) in enumerate(zip(pixels, found.target[-60:], strict=True)):
        file = place / str(label) / f"{i:04}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(each).save(file)
    return place


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a small network that saw some digits, so that its statistics are real."""
    torch.manual_seed(0)
    model = small_cnn(**SHAPE)
    x = torch.from_numpy(load_digits().images[:512]).unsqueeze(1).float() / 8 - 1
    y = torch.from_numpy(load_digits().target[:512])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return save_model(
        tmp_path_factory.mktemp("network") / "net",
        model.eval(),
        builder="small-cnn",
        arguments=SHAPE,
        preprocessing=Preprocessing.of(model).to_json(),
        history=[{"weights": "trained on digits"}],
    )


def _run(network: Path, out: Path, **options: Any) -> QuantizeReport:
    chosen = QuantizeOptions(**{**OPTIONS, **options})
    return quantize_model(str(network), out, chosen, lambda _: None)


@pytest.fixture(scope="module")
def quantized(network: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "out"
    return _run(network, out, data=str(digits), calibration=20).folder


def _report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text()))


def test_a_program_is_written_and_judged(quantized: Path) -> None:
    names = {file.name for file in quantized.iterdir()}
    assert names == {"model.pt2", "model.json", "report.json", "report.html"}
    report = _report(quantized)
    assert report["int8_layers"] == [6, 6]
    assert not report["float_operators"]
    stage = report["stages"]["int8"]
    assert stage["pictures"] == 40
    assert stage["same"]["mean"] > 0.9
    assert 0 < stage["logit_error"] < 0.2
    assert report["verdict"] == "undecided"
    assert "no time was measured here." in report["reason"]
    assert report["bytes"]["int8"] == (quantized / "model.pt2").stat().st_size
    manifest = json.loads((quantized / "model.json").read_text())
    assert manifest["format"] == "normapps-program"
    assert list(manifest["sha256"]) == ["model.pt2"]
    assert manifest["options"]["backend"] == "torchao"
    assert manifest["history"][-1]["torchao"]
    text = (quantized / "report.html").read_text()
    assert "Computed in float32" not in text


def test_the_folder_answers_as_the_network(quantized: Path, network: Path, digits: Path) -> None:
    files = sorted(digits.rglob("*.png"))
    model = normapps.ProgramModel(quantized, is_compiled=False)
    x = model.prepare(files)
    found = model.run(x)
    with torch.no_grad():
        wanted = load_model(network)(torch.from_numpy(x)).numpy()
    assert found.shape == wanted.shape == (60, 10)
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.9
    assert 1e-4 < np.abs(found - wanted).max() < 0.2 * np.abs(wanted).max()
    with pytest.raises(normapps.InputError, match=r"images are \(1, 3, 8, 8\)"):
        model.run(np.zeros((1, 3, 8, 8), np.float32))


def test_another_kind_of_folder_is_named(quantized: Path, network: Path, tmp_path: Path) -> None:
    with pytest.raises(normapps.InputError, match=r"normapps\.ProgramModel\("):
        load_model(quantized)
    with pytest.raises(normapps.InputError, match="is no ONNX model"):
        normapps.OnnxModel(quantized)
    with pytest.raises(normapps.InputError, match="is no int8 program"):
        normapps.ProgramModel(network)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.json").write_text((quantized / "model.json").read_text())
    (broken / "model.pt2").write_bytes(b"no program")
    with pytest.raises(normapps.InputError, match=r"model\.pt2"):
        normapps.ProgramModel(broken)


def test_images_are_distilled_and_a_folder_changes_its_kind(
    quantized: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, older = tmp_path / "out", tmp_path / "older.onnx"
    older.write_bytes(b"ONNX")
    save_onnx(out, older, OnnxManifest("older", {}, (1, 8, 8)))
    assert (out / "model.onnx").is_file()
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = _run(network, out, data_free=True, distill=4, latency=True, overwrite=True)
    assert not (out / "model.onnx").exists()
    assert "4 images distilled" in done.facts.range_source
    assert done.verdict.verdict == "undecided"
    assert "there is no no-such-compiler" in done.verdict.reason
    assert not done.evidence.latencies
    assert "there is no no-such-compiler" in (out / "report.html").read_text()
    with pytest.warns(UserWarning, match="runs slower than float32: .* no-such-compiler"):
        model = normapps.ProgramModel(out)
    assert model.run(np.zeros((3, 1, 8, 8), np.float32)).shape == (3, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "d", "--mixed"), "--mixed --backend torchao"),
        (("--data-free",), "--data-free --backend torchao: ranges need pictures"),
    ],
)
def test_what_torchao_does_not_do_is_refused(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = str(tmp_path / "out")
    command = ["normapps", "quantize", "net", "-o", place, "--backend", "torchao", *words]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert said in line


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("normapps.models.program.find_spec", None, r"install normapps\[torchao\]"),
        ("platform.machine", "aarch64", "this is aarch64; use --backend onnxruntime"),
    ],
)
def test_a_machine_without_torchao_is_said_before_any_work(
    name: str, value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, lambda *_: value)
    with pytest.raises(normapps.NormappsError, match=said):
        _run(tmp_path / "no-such-model", tmp_path / "out", data=str(tmp_path))


@pytest.mark.census
def test_a_compiled_program_is_timed(network: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counters.clear()
    _run(network, out, data=str(digits), calibration=20, latency=True)
    found = counters["inductor"]  # for both batch sizes: the kernels are those of int8
    assert found["qconv_weight_prepack_matcher_count"] == 2 * 5
    assert found["qlinear_weight_prepack_matcher_count"] == 2
    report = _report(out)
    for size in ("1", "8"):
        assert set(report["latency"][size]["seconds"]) == {"torch", "onnxruntime", "int8"}
    assert "compiling" in report["seconds"]
    files = sorted(digits.rglob("*.png"))[:11]
    compiled, eager = (normapps.ProgramModel(out, is_compiled=each) for each in (True, False))
    x = compiled.prepare(files)
    wanted = eager.run(x)
    assert np.abs(compiled.run(x) - wanted).max() < 0.02 * np.abs(wanted).max()
    assert np.abs(compiled.run(x[:1]) - wanted[:1]).max() < 0.02 * np.abs(wanted).max()
