from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.engine.ort import Session
from normapps.errors import InputError
from normapps.models.program import Program, open_compiled, open_network, why_not_compiled

pytest.importorskip("torchao")


class Pair(nn.Module):
    """Two outputs, which tell the pictures apart."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum((1, 2, 3)), 2 * x.mean((2, 3))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("program") / "net.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Pair(), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=shapes)
    torch.export.save(program, file)
    return file


def _pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 4, 4), np.float32)


def _check(program: Program, count: int) -> None:
    x = _pictures(count)
    sums, means = program.run(x)
    assert np.allclose(sums, x.sum((1, 2, 3)), atol=1e-5)
    assert np.allclose(means, 2 * x.mean((2, 3)), atol=1e-6)
    (only,) = program.run(x, ["1"])
    assert np.array_equal(only, means)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Batch sizes that a stand-in for torch.compile saw, and whether weights were frozen."""
    calls: list[tuple[int, bool]] = []

    def compile_(module: Any, **_: object) -> Any:
        def run(batch: Tensor) -> Any:
            calls.append((len(batch), torch._inductor.config.freezing))
            return module(batch)

        return run

    monkeypatch.setattr("torch.compile", compile_)
    monkeypatch.setattr("normapps.models.program.why_not_compiled", lambda: "")
    return calls


@pytest.mark.parametrize("count", [1, 2, 5])
def test_without_a_compiler_batches_are_run_whole(path: Path, count: int) -> None:
    program = Program(path, is_compiled=False)
    assert program.output_names == ("0", "1")
    _check(program, count)


def test_compiled_programs_see_two_batch_sizes(path: Path, called: list[tuple[int, bool]]) -> None:
    program = Program(path)
    assert program.is_compiled
    for count, sizes in {1: [1], 2: [8], 8: [8], 9: [8, 1], 19: [8, 8, 8]}.items():
        called.clear()
        _check(program, count)
        assert [size for size, _ in called] == 2 * sizes


def test_weights_are_frozen_while_it_compiles(path: Path, called: list[tuple[int, bool]]) -> None:
    program = Program(path)
    for count in (1, 3, 1, 3):
        program.run(_pictures(count))
    assert called == [(1, True), (8, True), (1, False), (8, False)]


def test_what_does_not_compile_runs_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, called: list[tuple[int, bool]]
) -> None:
    program, why = open_compiled(path, (3, 4, 4))
    assert (program.is_compiled, why) == (True, "")
    assert called == [(1, True), (8, True)]

    def failing(module: Any, **_: object) -> Any:
        def run(batch: Tensor) -> Any:
            raise RuntimeError("no\nsuch kernel")

        return run

    monkeypatch.setattr("torch.compile", failing)
    program, why = open_compiled(path, (3, 4, 4))
    assert not program.is_compiled
    assert "net.pt2: torch cannot run a batch" in why
    assert "RuntimeError: no such kernel" in why
    _check(program, 3)
    monkeypatch.setattr("normapps.models.program.why_not_compiled", lambda: "because")
    program, why = open_compiled(path, (3, 4, 4))
    assert (program.is_compiled, why) == (False, "because")


def test_a_compiler_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "mycc"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", f"{compiler} -O2")
    assert why_not_compiled() == ""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_not_compiled() == (
        "torch.compile needs a C++ compiler, and there is no no-such-compiler"
    )
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert "there is no g++" in why_not_compiled()


def test_what_is_no_program_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pt2: no such file"):
        Program(tmp_path / "gone.pt2")
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.pt2: is no program of torch\.export") as error:
        Program(broken)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"cannot run a batch of float32 \(2, 1, 4, 4\)"):
        Program(path, is_compiled=False).run(np.zeros((2, 1, 4, 4), np.float32))


def test_networks_are_opened_by_their_suffix(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(path, is_compiled=False)
    assert open_network(program) is program
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert isinstance(open_network(path), Program)
    session = Session("x", None, "x", (None,), ())
    monkeypatch.setattr("normapps.models.program.open_session", lambda file, threads: session)
    assert open_network(tmp_path / "net.onnx", threads=1) is session
