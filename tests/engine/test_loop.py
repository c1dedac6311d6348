"""The training loop: exact resume, what stops it, and which folders it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normapps.engine.loop import CHECKPOINT, Loop, step_seed
from normapps.engine.run import load_checkpoint
from normapps.errors import InputError
from normapps.options import option, validate


@dataclass(frozen=True)
class Options:
    """Options of a run that trains nothing."""

    width: int = option(4, "a width", low=1)
    places: tuple[str, ...] = option((), "places")

    def __post_init__(self) -> None:
        validate(self)


@dataclass
class Walk:
    """A random walk with momentum, which no step can leave out or take twice unnoticed."""

    place: Tensor = field(default_factory=lambda: torch.zeros(3))
    speed: float = 0.0
    fail_at: int = -1
    interrupt_at: int = -1

    def step(self, step: int) -> dict[str, float]:
        if step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        self.speed = 0.5 * self.speed + torch.rand(()).item()
        self.place = 0.9 * self.place + torch.randn(3) * self.speed
        loss = float("nan") if step == self.fail_at else self.place.sum().item()
        return {"loss": loss, "speed": self.speed}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"place": self.place}, {"speed": self.speed}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.place, self.speed = tensors["place"], values["speed"]


def _run(folder: Path, steps: int = 6, walk: Walk | None = None, **more: Any) -> Walk:
    walk = walk or Walk()
    Loop(folder, Options(), steps, seed=3, **more).run(walk)
    return walk


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_in_parts_is_the_run_in_one(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    _run(tmp_path / "parts", stop_after=2)
    _run(tmp_path / "parts", stop_after=1)
    parts = _run(tmp_path / "parts")
    assert torch.equal(whole.place, parts.place)
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert texts[0] == texts[1]
    assert [line["step"] for line in _lines(tmp_path / "parts")] == list(range(6))
    files = [(tmp_path / name / CHECKPOINT).read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_crash_repeats_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    with pytest.raises(InputError, match=r"step 5: the loss is not finite.*--lr"):
        _run(tmp_path / "crash", walk=Walk(fail_at=5), save_every=2)
    assert load_checkpoint(tmp_path / "crash" / CHECKPOINT)[1]["step"] == 4
    assert [line["step"] for line in _lines(tmp_path / "crash")] == [0, 1, 2, 3, 4]
    assert torch.equal(_run(tmp_path / "crash").place, whole.place)
    assert _lines(tmp_path / "crash") == _lines(tmp_path / "whole")


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "parts", walk=Walk(interrupt_at=2))
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT)[1]["step"] == 3
    assert torch.equal(_run(tmp_path / "parts").place, whole.place)


def test_a_damaged_checkpoint_falls_back_to_the_previous(tmp_path: Path) -> None:
    _run(tmp_path, steps=4, save_every=2)
    latest = tmp_path / CHECKPOINT
    latest.write_bytes(latest.read_bytes()[:50])
    assert torch.equal(_run(tmp_path).place, _run(tmp_path / "whole").place)


def test_what_comes_after_a_step_sees_how_many_are_done(tmp_path: Path) -> None:
    seen: list[int] = []
    loop = Loop(tmp_path, Options(), 3)
    loop.run(Walk(), after=seen.append)
    assert seen == [1, 2, 3]
    assert loop.is_finished
    half = Loop(tmp_path / "half", Options(), 3, stop_after=1)
    half.run(Walk())
    assert half.done == 1
    assert not half.is_finished


def test_a_finished_run_takes_no_more_steps(tmp_path: Path) -> None:
    before = _run(tmp_path)
    assert torch.equal(_run(tmp_path).place, before.place)
    assert len(_lines(tmp_path)) == 6


def test_a_run_is_not_continued_as_another(tmp_path: Path) -> None:
    Loop(tmp_path, Options(places=("a", "b")), 2, fixed=("width", "places")).run(Walk())
    with pytest.raises(InputError, match="with --places a, b, not c; give that again, or"):
        Loop(tmp_path, Options(places=("c",)), 2, fixed=("width", "places"))
    Loop(tmp_path, Options(places=("c",)), 2, fixed=("width",))


def test_a_restart_forgets_the_run(tmp_path: Path) -> None:
    Loop(tmp_path, Options(), 2, fixed=("width",), seed=3).run(Walk())
    (tmp_path / "report.json").write_text("{}")
    Loop(tmp_path, Options(width=5), 3, fixed=("width",), seed=3, restart=True).run(Walk())
    assert not (tmp_path / "report.json").exists()  # of the run before
    assert json.loads((tmp_path / "options.json").read_text())["width"] == 5
    assert [line["step"] for line in _lines(tmp_path)] == [0, 1, 2]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and no training run"):
        Loop(tmp_path, Options(), 1, restart=True)
    with pytest.raises(InputError, match=r"thesis\.txt: is a file"):
        Loop(tmp_path / "thesis.txt", Options(), 1)
    (tmp_path / "options.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"options\.json"):
        Loop(tmp_path, Options(), 1, restart=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _run(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_of_steps_and_processes_differ() -> None:
    seeds = {step_seed(*each) for each in [(0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


_TWO = """
import signal, sys
from pathlib import Path
import torch
from normapps.engine.distributed import world
from normapps.engine.loop import Loop
sys.path.insert(0, {here!r})
from test_loop import Options, Walk
with world(torch.device("cpu")) as here:
    walk = Walk(interrupt_at=2 if here.rank == 1 else -1)
    try:
        Loop(Path({folder!r}), Options(), 6, seed=3, here=here).run(walk)
    except KeyboardInterrupt:
        Path({folder!r} + f".stopped{{here.rank}}").touch()
"""


def test_two_processes_stop_together_and_the_first_writes(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(_TWO.format(here=str(Path(__file__).parent), folder=str(folder)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"run.stopped{rank}").exists() for rank in (0, 1))
    lines = _lines(folder)
    assert [line["step"] for line in lines] == [0, 1, 2]
    alone = Walk()
    Loop(tmp_path / "alone", Options(), 6, seed=3).run(alone)
    assert lines[0]["loss"] != _lines(tmp_path / "alone")[0]["loss"]  # the mean of both
