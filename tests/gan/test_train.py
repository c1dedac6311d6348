"""A run of `gan train`: exact resume, what lies in its folder, refusals, a full disk, processes."""

from __future__ import annotations

import errno
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.engine.run import Metrics, load_checkpoint
from normapps.errors import InputError
from normapps.gan import trainer, watch
from normapps.gan.evaluation import extractors
from normapps.gan.evaluation import scorer as scorers
from normapps.gan.opening import open_generator
from normapps.gan.options import TrainOptions
from normapps.gan.run import open_run
from normapps.gan.train import train
from normapps.gan.trainer import GanTrainer
from normapps.gan.watch import WatchError

CHECKPOINT = Path("checkpoint") / "latest.safetensors"

TINY = TrainOptions(
    config="sngan-28", width=4, d_width=4, latent=8, steps=6, batch_size=4, n_dis=2,
    save_every=2, sample_every=3, standing=32, device="cpu", precision="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits as .npz: 8×8 grey pictures of 0 to 255 and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    pictures = np.minimum(found.images * 16, 255).astype(np.uint8)[:200]
    np.savez(path, x_train=pictures, y_train=found.target[:200])
    return path


@pytest.fixture
def tiny(digits: Path) -> TrainOptions:
    return replace(TINY, data=str(digits))


def silent(line: str) -> None:
    """Say nothing."""


def same(one: Path, other: Path) -> bool:
    pair = [load_checkpoint(folder / CHECKPOINT) for folder in (one, other)]
    assert pair[0][0].keys() == pair[1][0].keys()
    assert len(pair[0][0]) > 50
    return pair[0][1] == pair[1][1] and all(
        torch.equal(value, pair[1][0][key]) for key, value in pair[0][0].items()
    )


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "images_per_s"} for x in lines]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"cond": True, "augment": "color,translation,cutout", "flip": True, "r1": 0.1},
        {"d_norm": "gn", "g_norm": "wc", "precision": "bfloat16"},
        {"loss": "wasserstein", "gp": 10.0, "d_norm": "none", "g_norm": "self-mod"},
        {"sigma": "conv", "g_norm": "in"},
        {"d_norm": "ws", "g_norm": "none", "loss": "non-saturating"},
    ],
)
def test_a_run_in_parts_is_the_run_in_one(
    change: dict[str, Any], tiny: TrainOptions, tmp_path: Path
) -> None:
    chosen, whole, parts = replace(tiny, **change), tmp_path / "whole", tmp_path / "parts"
    train(chosen, whole, say=silent)
    train(replace(chosen, stop_after=3), parts, say=silent)
    assert open_run(parts).done == 3
    assert not open_run(parts).is_finished
    train(chosen, parts, resume=True, say=silent)
    assert same(whole, parts)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 6
    for name in ("generator/model.safetensors", "samples/000006.png"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_ctrl_c_keeps_what_was_learnt(
    tiny: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GanTrainer.step

    def stopping(self: GanTrainer, number: int) -> dict[str, float]:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(GanTrainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "parts", say=silent)
    monkeypatch.undo()
    assert open_run(tmp_path / "parts").done == 3
    train(tiny, tmp_path / "parts", resume=True, say=silent)
    train(tiny, tmp_path / "whole", say=silent)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_the_folder_tells_all(tiny: TrainOptions, tmp_path: Path) -> None:
    train(replace(tiny, cond=True), tmp_path, say=silent)
    run = open_run(tmp_path)
    assert run.is_finished
    assert (run.options.width, run.options.gen_batch_size, run.options.g_norm) == (4, 8, "cbn")
    assert sorted(each.name for each in (tmp_path / "samples").iterdir()) == [
        "000001.png", "000003.png", "000006.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "samples" / "000006.png") as page:
        assert page.height == 10 * 30 - 2  # a row a class, its name to the left
        assert page.width > 8 * 30 - 2
    told = losses(tmp_path)
    assert [each["step"] for each in told] == [0, 1, 2, 3, 4, 5]
    assert told[0].keys() == {
        "step", "d_loss", "g_loss", "real", "fake", "d_grad", "g_grad", "spread",
    }  # fmt: skip
    opened = open_generator(tmp_path)
    assert opened.classes == tuple("0123456789")
    assert opened.manifest.history[0]["step"] == 6
    assert opened.manifest.history[0]["options"]["d_norm"] == "sn"
    discriminator = run.discriminator()
    kept = load_checkpoint(tmp_path / CHECKPOINT)[0]
    assert all(
        torch.equal(value, kept[f"discriminator.{name}"])
        for name, value in discriminator.state_dict().items()
    )


def test_the_kept_generator_has_averaged_weights_and_statistics_of_its_own(
    tiny: TrainOptions, tmp_path: Path
) -> None:
    """Parameters are the average's, standing statistics neither training's nor the initial ones."""
    train(tiny, tmp_path, say=silent)
    tensors = load_checkpoint(tmp_path / CHECKPOINT)[0]
    opened = open_generator(tmp_path)
    generator = opened.generator
    for name, value in generator.named_parameters():
        assert torch.equal(value, tensors[f"average.{name}"])
        assert not torch.equal(value, tensors[f"generator.{name}"])
    assert not any(name.startswith("average.") and "running" in name for name in tensors)
    name = "norm.running_mean"
    standing = generator.state_dict()[name].clone()
    assert not torch.equal(standing, tensors[f"generator.{name}"])
    assert float(standing.abs().max()) > 0
    with opened.use_("running"):
        assert torch.equal(generator.state_dict()[name], tensors[f"generator.{name}"])
    assert torch.equal(generator.state_dict()[name], standing)


def test_a_run_goes_on_with_its_own_options_and_pictures_only(
    tiny: TrainOptions, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(replace(tiny, stop_after=1), folder, say=silent)
    with pytest.raises(InputError, match=r"was started with --lr-g 0\.0002, not 0\.1"):
        train(replace(tiny, lr_g=0.1), folder, say=silent)
    other = tmp_path / "other.npz"
    with np.load(digits) as found:
        np.savez(other, x_train=255 - found["x_train"], y_train=found["y_train"])
    with pytest.raises(InputError, match="was started with pictures 200 of"):
        train(replace(tiny, data=str(other)), folder, say=silent)
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        train(tiny, tmp_path / "nothing", resume=True, say=silent)
    train(replace(tiny, lr_g=0.1, overwrite=True, steps=1), folder, say=silent)


@pytest.mark.parametrize("kind", ["errno", "safetensors"])
def test_a_full_disk_is_told_in_a_line_and_loses_nothing(
    kind: str, tiny: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Metrics, step: int, values: dict[str, float]) -> None:
        if step == 3:
            if kind == "errno":
                raise OSError(errno.ENOSPC, "No space left on device")
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        add(self, step, values)

    add = Metrics.add
    monkeypatch.setattr(Metrics, "add", full)
    with pytest.raises(
        InputError, match="the disk is full; make room, then `normapps gan train --resume"
    ):
        train(tiny, tmp_path / "parts", say=silent)
    monkeypatch.undo()
    assert open_run(tmp_path / "parts").done == 2
    train(tiny, tmp_path / "parts", resume=True, say=silent)
    train(tiny, tmp_path / "whole", say=silent)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_collapse_leaves_the_last_good_checkpoint(
    tiny: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 3 on all drawn pictures are one; after three such steps the run stops."""
    count, steps = [0], 20

    def falling(pictures: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return torch.tensor(0.5 if count[0] <= 3 else 0.0)

    monkeypatch.setattr(trainer, "spread", falling)
    monkeypatch.setattr(watch, "PATIENCE", 3)
    chosen = replace(tiny, steps=steps, save_every=1, sample_every=0)
    with pytest.raises(WatchError, match=r"collapsed.*; the last good checkpoint is .*latest"):
        train(chosen, tmp_path, say=silent)
    assert open_run(tmp_path).done == 3
    assert not (tmp_path / "checkpoint" / "good.safetensors").exists()
    assert not (tmp_path / "generator").exists()


def test_an_uneasy_watch_that_calms_down_keeps_no_second_checkpoint(
    tiny: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = [0]

    def wavering(pictures: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return torch.tensor(0.0 if count[0] in (3, 4) else 0.5)

    monkeypatch.setattr(trainer, "spread", wavering)
    train(replace(tiny, save_every=1), tmp_path, say=silent)
    assert sorted(each.name for each in (tmp_path / "checkpoint").iterdir()) == [
        "latest.safetensors", "previous.safetensors",
    ]  # fmt: skip


def test_pictures_are_decoded_once_and_refused_ones_leave_nothing(
    tiny: TrainOptions, tmp_path: Path
) -> None:
    places = tmp_path / "pictures", tmp_path / "run"
    places[0].mkdir()
    rng = np.random.default_rng(0)
    for number in range(1, 9):
        pixels = rng.integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(places[0] / f"{number}.png")
        if number == 1:
            with pytest.raises(InputError, match="at least"):
                train(replace(tiny, data=str(places[0])), places[1], say=silent)
            assert not places[1].exists()
    chosen = replace(tiny, data=str(places[0]), sample_every=0)
    train(replace(chosen, stop_after=1), places[1], say=silent)
    kept = places[1] / "pictures.safetensors"
    written = kept.stat().st_mtime_ns
    train(chosen, places[1], resume=True, say=silent)
    assert kept.stat().st_mtime_ns == written


def test_scores_of_the_averaged_generator_are_in_the_metrics(
    tiny: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def scorer(extractor: object, pool: object) -> Any:
        def score(generator: torch.nn.Module, standing: int) -> dict[str, float]:
            asked.append((extractor, standing, next(generator.parameters()).requires_grad))
            return {"fd": 7.0}

        return score

    monkeypatch.setattr(extractors, "open_extractor", lambda spec, device: (spec, device))
    monkeypatch.setattr(scorers, "Scorer", scorer)
    train(replace(tiny, score_every=4, extractor="x", sample_every=0), tmp_path, say=silent)
    assert asked == [(("x", "cpu"), 2000, False)]
    assert [each.get("fd") for each in losses(tmp_path)] == [None, None, None, 7.0, None, None]
