"""Layers at inference as programs of torch.export: one program for all sizes of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from normapps.norm import create_norm

C = 6
LABELS = torch.tensor([0, 2, 1, 3, 3, 0])
OPTIONS: dict[str, dict[str, Any]] = {
    "zca": {"group_size": 3},
    "pca": {"group_size": 3},
    "group_whitening": {"num_groups": 3},
    "switchable_whitening": {"group_size": 3, "kinds": ("bw", "iw", "ln")},
    "conditional": {"num_classes": 4},
    "conditional_coloring": {"num_classes": 4},
    "self_modulated": {"latent_features": C},
    "spatial": {"condition_channels": 2, "hidden_channels": 4},
    "adalin": {"latent_features": C},
}
NAMES = ["batch", "instance", "group", "zca", "cholesky", "iternorm", "coloring"]
NAMES += ["switchable", "bin", "iln", "ibn", "pca", "group_whitening", "switchable_whitening"]
NAMES += ["diminishing", "memorized", "moving", "online", "prong"]
NAMES += ["frn", "mean_only", "l1", "top_k", "renorm", "iebn", "attentive"]
CONDITIONED = ["conditional", "conditional_coloring", "self_modulated", "spatial", "adalin"]
CONDITIONED += ["region"]
NAMES += CONDITIONED


def _given(name: str, samples: int) -> tuple[Tensor, ...]:
    """An activation and, where the layer needs one, a condition of so many samples."""
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, C, 5, 4, generator=generator)
    if name not in CONDITIONED:
        return (x,)
    if "num_classes" in OPTIONS.get(name, {}):
        return x, LABELS[:samples]
    shapes = {"spatial": (samples, 2, 5, 4), "region": (samples, 1, 5, 4)}
    return x, torch.rand(shapes.get(name, (samples, C)), generator=generator)


def _make(name: str) -> nn.Module:
    torch.manual_seed(0)
    layer = create_norm(name, C, layout="2d", **OPTIONS.get(name, {}))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    layer(*_given(name, 5))
    return layer.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_any_size_is_exported(name: str) -> None:
    """N = C too, which a comparison of shapes while exporting would have excluded."""
    layer, given = _make(name), _given(name, 4)
    batch = Dim("N", min=2, max=64)
    program = export(layer, given, dynamic_shapes=tuple({0: batch} for _ in given)).module()
    for samples in (2, 4, C):
        other = _given(name, samples)
        torch.testing.assert_close(program(*other), layer(*other))


@pytest.mark.census
@pytest.mark.parametrize("name", ["frn", "switchable_whitening", "group_whitening", "attentive"])
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    """Slow: those that measure at inference, too; what has eigenvectors exports when folded."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer, file = _make(name), tmp_path / "layer.onnx"
    torch.onnx.export(layer, _given(name, 4), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (x,) = _given(name, 4)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(x), rtol=1e-4, atol=1e-5)
