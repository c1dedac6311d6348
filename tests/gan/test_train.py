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
from normapps.gan.options import TrainOptions
from normapps.gan.run import open_run
from normapps.gan.sampling import open_generator
from normapps.gan.train import train
from normapps.gan.trainer import GanTrainer

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
        assert page.size == (8 * 30 - 2, 8 * 30 - 2)
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
    with pytest.raises(InputError, match="the disk is full; make room, then `gan train --resume"):
        train(tiny, tmp_path / "parts", say=silent)
    monkeypatch.undo()
    assert open_run(tmp_path / "parts").done == 2
    train(tiny, tmp_path / "parts", resume=True, say=silent)
    train(tiny, tmp_path / "whole", say=silent)
    assert same(tmp_path / "whole", tmp_path / "parts")
