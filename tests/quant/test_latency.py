"""Networks that take turns: every name at every batch size, on equal terms."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from onnx_networks import SIZE, residual
from torch import Tensor, nn

from normapps.quant.latency import FLOAT, TORCH, measure_latency


class Watched(nn.Module):
    """Remembers what it was shown, and how."""

    shown: ClassVar[list[tuple[tuple[int, ...], bool, bool, bool]]] = []

    def forward(self, x: Tensor) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.shown.append((tuple(x.shape), last, self.training, torch.is_grad_enabled()))
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual(tmp_path_factory.mktemp("onnx") / "net.onnx")


def test_all_take_turns_at_every_batch_size(path: Path) -> None:
    model = Watched().train()
    Watched.shown.clear()
    found = measure_latency(model, {FLOAT: path}, (3, SIZE, SIZE), batch_sizes=(1, 3), seconds=0.05)
    assert [each.batch_size for each in found] == [1, 3]
    for each in found:
        assert set(each.times) == {TORCH, FLOAT}
        assert len({len(times.seconds) for times in each.times.values()}) == 1
        assert all(second > 0 for times in each.times.values() for second in times.seconds)
    assert {shape for shape, *_ in Watched.shown} == {(1, 3, SIZE, SIZE), (3, 3, SIZE, SIZE)}
    # inference, without gradients, in torch's faster layout
    assert {tuple(how) for _, *how in Watched.shown} == {(True, False, False)}
    assert model.training
