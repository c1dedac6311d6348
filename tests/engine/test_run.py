"""Checkpoints, optimizer state, metrics and averages of a run."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normapps.engine.run import (
    Metrics,
    StopRequest,
    has_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    update_average,
)
from normapps.errors import InputError


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_goes_on_as_if_never_stopped(fused: bool, layout: torch.memory_format) -> None:
    x, models = torch.rand(2, 4, 6, 6), []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Conv2d(4, 5, 3).to(memory_format=layout))  # type: ignore[call-overload]
    first, second = (torch.optim.Adam(m.parameters(), lr=0.1, fused=fused) for m in models)
    _steps(models[0], first, x, 4)
    _steps(models[1], second, x, 2)
    kept = {name: tensor.contiguous().clone() for name, tensor in optimizer_tensors(second).items()}
    third = torch.optim.Adam(models[1].parameters(), lr=0.1, fused=fused)
    restore_optimizer(third, kept)
    _steps(models[1], third, x, 2)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_comes_back_and_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "latest.safetensors"
    assert not has_checkpoint(path)
    for step in (1, 2):
        save_checkpoint(path, {"x": torch.full((2, 2), float(step))}, {"step": step})
    assert has_checkpoint(path)
    tensors, values = load_checkpoint(path)
    assert values == {"step": 2}
    assert torch.equal(tensors["x"], torch.full((2, 2), 2.0))
    path.unlink()
    assert load_checkpoint(path)[1] == {"step": 1}


def test_no_readable_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "latest.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="no checkpoint that can be read"):
        load_checkpoint(path)


def test_metrics_of_a_resumed_run_repeat_no_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in range(4):
        metrics.add(step, {"loss": float(step)})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a line cut off by a crash
    again = Metrics(tmp_path, step=2)
    again.add(2, {"loss": 9.0})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0.0), (1, 1.0), (2, 9.0)]


def test_metrics_need_no_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    metrics = Metrics(tmp_path)
    metrics.add(0, {"loss": 1.0})
    metrics.close()
    assert not (tmp_path / "tensorboard").exists()


def test_the_average_follows_and_soon_forgets_its_start() -> None:
    average, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(average.weight)
    nn.init.ones_(model.weight)
    update_average(average, model, 0.9, step=0)
    assert average.weight.item() == pytest.approx(0.9)
    nn.init.zeros_(average.weight)
    update_average(average, model, 0.9, step=10_000)
    assert average.weight.item() == pytest.approx(0.1)


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with StopRequest() as stop:
            assert not stop.requested
            assert signal.getsignal(signal.SIGINT) is before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
