from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normapps.errors import InputError
from normapps.style.dataset import ray_engine
from normapps.style.dataset.job import stylize_dataset
from normapps.style.dataset.options import DatasetOptions
from normapps.style.dataset.painter import DatasetResult, Work
from normapps.style.dataset.ray_engine import RayPainter
from normapps.style.dataset.record import Outlet
from normapps.style.dataset.tree import Item

Run = Callable[..., list[DatasetResult]]
Tree = Callable[[str], dict[str, bytes]]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra scale"
)


def test_an_actor_makes_what_the_job_makes(run: Run, tree: Tree, model: Path) -> None:
    run("whole", num_styles=2)
    options = DatasetOptions(model=str(model), device="cpu", cache="cache", num_styles=2)
    outlet = Outlet(Path("out"), (1, 1))
    outlet.staging.mkdir(parents=True)
    names = ("cat/a.png", "c.png")
    works = iter([Work(Item(name, name), (1,)) for name in names])
    tasks = outlet.staging / "tasks.jsonl"
    assert ray_engine._write_tasks(tasks, works)
    lines = np.array(tasks.read_text().splitlines(), dtype=object)
    tasks.unlink()
    rows = RayPainter(dataclasses.asdict(options), ("data", "art", "out"))({"text": lines})
    found = [DatasetResult(**one) for row in rows["results"] for one in json.loads(row)]
    assert sorted(result.output for result in found) == ["2/c.png", "2/cat/a.png"]
    assert tree("out") == {f"2/{name}": tree("whole")[f"2/{name}"] for name in sorted(names)}


def test_names_pass_through_the_list_of_tasks(tmp_path: Path) -> None:
    names = ["a b.png", "new\nline.png", "ümlaut.png", "raw\udcff.png"]
    path = tmp_path / "tasks.jsonl"
    works = [Work(Item(name, name), (0, 2)) for name in names]
    assert ray_engine._write_tasks(path, iter(works))
    assert [ray_engine._work(line) for line in path.read_text().splitlines()] == works
    assert not ray_engine._write_tasks(path, iter(()))


def test_without_ray_the_error_says_what_to_install(here: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray needs an extra; pip install 'normapps\[s"):
        stylize_dataset(DatasetOptions(engine="ray"), "data", "art", "out")
    assert not Path("out").exists()


@needs_ray
def test_ray_killed_and_resumed_gives_the_same_bytes(
    here: Path, run: Run, model: Path, tree: Tree, draw_picture: Callable[..., None]
) -> None:
    for number in range(120):
        draw_picture(f"data/many/{number}.png", 100 + number, (96, 64))
    Path("data/cat/bad.jpg").write_text("no picture")
    command = [sys.executable, "-m", "normapps.cli.main", "stylize-dataset", "data", "art", "out"]
    flags = ["--model", str(model), "--device", "cpu", "--cache", "cache", "--alpha", "0.5,1"]
    job = subprocess.Popen(
        [*command, *flags, "--engine", "ray", "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while job.poll() is None and not _lines("out"):
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    by_ray = _lines("out")
    assert 0 < by_ray < 125
    time.sleep(0.5)  # its actors end when they miss it
    results = run(alpha="0.5,1", engine="ray", workers=1)
    assert [result.source for result in results if result.error] == ["cat/bad.jpg"]
    assert len(results) <= 126 - by_ray
    run("whole", alpha="0.5,1")
    assert tree("out") == tree("whole")


def _lines(out: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in Path(out).glob("*manifest.jsonl"))
