from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.engine.capture import Captured, Compiled, CudaRecorder, capture_


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Recorder:
    """Runs functions on the CPU as a CUDA graph would: into the memory of their first result."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, function: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        result = function()

        def replay() -> Any:
            self.replayed += 1
            for own, new in zip(flat(result), flat(function()), strict=True):
                own.copy_(new)
            return result

        return replay


def flat(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [x for part in nested for x in flat(part)]


def combine(x: Tensor, films: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    out = x
    for scale, shift in films:
        out = out * scale + shift
    return out, [out.sum(), x + 1]


def arguments(seed: int, size: int = 3) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    x, a, b, c, d = (torch.randn(2, size, generator=generator) for _ in range(5))
    return x, [(a, b), (c, d)]


@pytest.mark.parametrize("inference", [False, True])
def test_a_replay_gives_what_the_function_gives(inference: bool) -> None:
    record = Recorder()
    captured = Captured(combine, record)
    with torch.inference_mode() if inference else contextlib.nullcontext():
        got = [captured(*arguments(seed)) for seed in range(4)]
    assert (record.recorded, record.replayed) == (1, 3)
    for seed, result in enumerate(got):  # later replays left earlier results alone
        want = combine(*arguments(seed))
        assert isinstance(result, tuple)
        assert isinstance(result[1], list)
        for one, other in zip(flat(result), flat(want), strict=True):
            assert torch.equal(one, other)


def test_what_is_recorded_within_inference_mode_serves_without() -> None:
    captured = Captured(combine, Recorder())
    with torch.inference_mode():
        captured(*arguments(0))
        captured(*arguments(1))
    assert torch.equal(captured(*arguments(2))[0], combine(*arguments(2))[0])
    with torch.inference_mode():
        assert torch.equal(captured(*arguments(3))[0], combine(*arguments(3))[0])


def test_each_shape_dtype_and_layout_has_its_recording_from_the_second_time_on() -> None:
    record = Recorder()
    captured = Captured(lambda x: x * 2, record)
    image = torch.rand(2, 3, 4, 4)
    kinds = [
        image, image[:1], image.double(), image.contiguous(memory_format=torch.channels_last),
    ]  # fmt: skip
    for x in kinds:
        captured(x)
    assert record.recorded == 0
    for _ in range(2):
        for x in kinds:
            out = captured(x)
            assert torch.equal(out, x * 2)
            assert out.stride() == (x * 2).stride()
    assert (record.recorded, record.replayed) == (4, 8)


def test_the_structure_of_the_arguments_counts() -> None:
    record = Recorder()
    captured = Captured(lambda parts: parts[0], record)
    x, y = torch.ones(2), torch.zeros(2)
    for _ in range(2):
        assert torch.equal(captured([x, [y]]), x)
        assert torch.equal(captured([[x], y])[0], x)
    assert record.recorded == 2


def test_only_so_many_shapes_are_remembered() -> None:
    record = Recorder()
    captured = Captured(lambda x: x + 1, record, most=2)
    for size in (1, 1, 2, 2, 1, 3, 3):  # 2 is the one that was not wanted for longest
        captured(torch.zeros(size))
    assert record.recorded == 3
    captured(torch.zeros(1))
    captured(torch.zeros(3))
    assert record.recorded == 3
    captured(torch.zeros(2))
    captured(torch.zeros(2))
    assert record.recorded == 4


def test_at_once_records_when_a_shape_first_comes() -> None:
    record = Recorder()
    captured = Captured(lambda x: x + 1, record, at_once=True)
    assert captured(torch.zeros(2)).tolist() == [1, 1]
    assert (record.recorded, record.replayed) == (1, 1)


def test_gradients_and_large_inputs_are_left_to_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Recorder()
    captured = Captured(lambda x: x.square(), record, at_once=True)
    x = torch.ones(2, requires_grad=True)
    with torch.enable_grad():
        captured(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2]
    monkeypatch.setattr("normapps.engine.capture._LARGEST", 15)
    captured(torch.ones(4))
    assert record.recorded == 0
    captured(torch.ones(3))
    assert record.recorded == 1


def test_a_recording_that_fails_is_said_once_and_the_function_goes_on() -> None:
    tried = 0

    def fail(function: Callable[[], Any]) -> Callable[[], Any]:
        nonlocal tried
        tried += 1
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    captured = Captured(lambda x: x + 1, fail)
    with pytest.warns(UserWarning, match="not permitted") as caught:
        got = [captured(torch.zeros(size)).tolist() for size in (2, 2, 2, 3, 3)]
    assert got == [[1, 1]] * 3 + [[1, 1, 1]] * 2
    assert tried == 1
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "CUDA graphs: cannot (RuntimeError: operation not permitted); runs without them"
    )


def test_threads_take_turns() -> None:
    meet = threading.Barrier(2)

    def record(function: Callable[[], Any]) -> Callable[[], Any]:
        result = function()

        def replay() -> Any:
            with contextlib.suppress(threading.BrokenBarrierError):
                meet.wait(0.1)  # were the other thread in here too, both would have the same input
            result.copy_(function())
            return result

        return replay

    captured = Captured(lambda x: x * 3, record, at_once=True)
    got: dict[int, float] = {}

    def work(value: int) -> None:
        with torch.no_grad():
            got[value] = captured(torch.tensor([float(value)])).item()

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {1: 3, 2: 6}


def test_a_compiler_that_fails_is_said_once_and_the_function_goes_on() -> None:
    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor) -> Tensor:
            raise ValueError("no compiler")

        return call

    compiled = Compiled(lambda x: x + 1, broken)
    with pytest.warns(UserWarning, match=r"--compile: cannot \(ValueError: no compiler\)") as said:
        assert [compiled(torch.zeros(1)).item() for _ in range(3)] == [1, 1, 1]
    assert len(said) == 1


def test_a_compiled_function_is_what_runs() -> None:
    compiled = Compiled(lambda x: x + 1, lambda function: lambda x: function(x) * 10)
    assert compiled(torch.zeros(1)).item() == 10


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.layer(x))
        return y, y.sum(1)

    def forward(self, x: Tensor) -> Tensor:
        y, total = self.encode(x)
        return y * total[:, None]


def test_on_a_cpu_a_network_stays_as_it_is() -> None:
    network = Network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture_(network, ("encode",), torch.device("cpu"))
    assert "encode" not in vars(network)
    with pytest.warns(UserWarning, match="--compile: is for a CUDA device, not cpu"):
        capture_(network, ("encode",), torch.device("cpu"), compile=True)
    with pytest.warns(UserWarning, match="--compile: is for adain-tiny; goes on uncompiled"):
        capture_(network, (), torch.device("cuda"), compile=True)
    assert "encode" not in vars(network)


@pytest.mark.parametrize("compile_", [False, True])
def test_a_network_calls_what_replays_its_method(
    monkeypatch: pytest.MonkeyPatch, compile_: bool
) -> None:
    record, compiled = Recorder(), []
    monkeypatch.setattr("normapps.engine.capture.CudaRecorder", lambda device: record)
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    network = Network()
    x = torch.rand(3, 4)
    want = network(x)
    keys = list(network.state_dict())
    capture_(network, ("encode",), torch.device("cuda"), compile=compile_)
    for _ in range(3):
        assert torch.equal(network(x), want)
    assert (record.recorded, record.replayed) == ((1, 3) if compile_ else (1, 2))
    assert len(compiled) == compile_
    assert list(network.state_dict()) == keys


@pytest.mark.gpu
def test_cuda_graphs_replay_a_network() -> None:
    device = torch.device("cuda")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).to(device)
    captured = Captured(network.forward, CudaRecorder(device))
    images = [torch.rand(1, 3, size, size, device=device) for size in (32, 48, 32, 32, 48, 48)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = [captured(x) for x in images]
    assert sum(x is not None for x in captured._known.values()) == 2
    for x, out in zip(images, got, strict=True):
        torch.testing.assert_close(out, network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_what_waits_for_the_device_runs_without_a_graph() -> None:
    captured = Captured(lambda x: x * x.sum().item(), CudaRecorder(torch.device("cuda")))
    x = torch.ones(2, device="cuda")
    with pytest.warns(UserWarning, match="CUDA graphs: cannot"):
        assert [captured(x).tolist() for _ in range(3)] == [[2, 2]] * 3
