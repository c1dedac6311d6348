"""ONNX files: any batch, compared with torch, and either right or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError, NormappsError
from normapps.models import onnx as module
from normapps.models.onnx import to_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Net(nn.Module):
    """Two outputs, one of them in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.conv(x)).relu()
        return {"logits": self.head(features.mean((2, 3))), "features": features}


def _inputs(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 10, generator=torch.Generator().manual_seed(count))


def _net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_file_takes_any_batch_and_answers_as_torch_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net, path = _net(), tmp_path / "net.onnx"
    worst = to_onnx(net, _inputs(1), path)  # one picture is enough
    assert capfd.readouterr() == ("", "")
    assert net.training  # as it was
    assert 0 <= worst < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    net.eval()
    for count in (1, 2, 5):
        x = _inputs(count)
        with torch.no_grad():
            wanted = net(x)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for value, other in zip(found, wanted.values(), strict=True):
            np.testing.assert_allclose(value, other.numpy(), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._run
    monkeypatch.setattr(module, "_run", lambda path, x: [each + 1 for each in run(path, x)])
    with pytest.raises(InputError, match=r"net.onnx: onnxruntime's outputs differ from torch's by"):
        to_onnx(_net(), _inputs(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(InputError, match=r"Odd: torch\.onnx cannot export it") as error:
        to_onnx(Odd(), _inputs(), tmp_path / "net.onnx")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    line = r"Bessel: torch\.onnx cannot export it \(ONNX has no operator for prims\.bessel_j0\); go"
    with pytest.raises(InputError, match=line):
        to_onnx(Bessel(), _inputs(), tmp_path / "net.onnx", remedy="go on without")


def test_what_depends_on_values_is_shown_as_it_stands_in_the_code(tmp_path: Path) -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x * 2
            return x

    line = r"depends on values: 'if x.sum\(\) > 0:', test_onnx.py line \d+\)"
    with pytest.raises(InputError, match=line):
        to_onnx(Choosy(), _inputs(), tmp_path / "net.onnx")


def test_without_the_extra_there_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NormappsError, match=r"package onnx: install normapps\[deploy\]"):
        to_onnx(_net(), _inputs(), tmp_path / "net.onnx")


def test_an_older_file_stays_unless_it_may_go(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        to_onnx(_net(), _inputs(), path)
    assert path.read_text() == "mine"
