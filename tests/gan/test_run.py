"""What a run folder opens, and with which options it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normapps.errors import InputError, UsageError
from normapps.gan.options import TrainOptions
from normapps.gan.run import open_run, resumed
from normapps.gan.train import train
from normapps.norm.weight import inspect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, stopped after two."""
    import numpy as np

    place = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(place / "noise.npz", x_train=pictures, y_train=np.arange(30) % 3)
    options = TrainOptions(
        data=str(place / "noise.npz"), config="sngan-28", width=4, d_width=4, latent=8, steps=3,
        batch_size=4, n_dis=1, standing=8, device="cpu", cond=True, sample_every=0, stop_after=2,
    )  # fmt: skip
    return train(options, place / "run", say=lambda line: None)


def test_a_run_tells_how_far_it_came(folder: Path) -> None:
    run = open_run(str(folder))
    assert (run.done, run.steps, run.is_finished) == (2, 3, False)
    assert (run.shape.channels, run.shape.classes) == (1, ("0", "1", "2"))
    assert run.options.g_norm == "cbn"
    assert not (folder / "samples").exists()


def test_its_networks_open(folder: Path) -> None:
    run = open_run(folder)
    generator, discriminator = run.generator(), run.discriminator()
    assert not generator.training
    assert not discriminator.training
    with torch.no_grad():
        pictures = generator(torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1]))
        logits = discriminator(pictures, torch.tensor([0, 1, 2, 0, 1]))
    assert pictures.shape == (5, 1, 28, 28)
    assert logits.shape == (5,)
    assert bool(logits.isfinite().all())
    assert len(inspect(discriminator)) > 8
    assert not any(each.is_stale for each in inspect(discriminator))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run of gan train, it has no options\.json"):
        open_run(tmp_path)
    (tmp_path / "options.json").write_text('{"penalty": "l1"}')
    with pytest.raises(InputError, match=r"options\.json: does not fit TrainOptions"):
        open_run(tmp_path)
    (tmp_path / "options.json").write_text("{}")
    assert open_run(tmp_path).done == 0
    with pytest.raises(InputError, match="has no checkpoint"):
        open_run(tmp_path).discriminator()
    with pytest.raises(InputError, match="has no checkpoint to resume from"):
        resumed(tmp_path, TrainOptions(), [])


def test_a_resumed_run_takes_its_saved_options_but_for_stop_after(folder: Path) -> None:
    saved = open_run(folder).options
    assert saved.stop_after == 2
    assert resumed(folder, TrainOptions(), []) == replace(saved, stop_after=0)
    given = TrainOptions(stop_after=1, save_every=7, steps=3, lr_g=0.5)
    taken = resumed(folder, given, ["stop_after", "save_every", "steps"])
    assert taken == replace(saved, stop_after=1, save_every=7)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lr_g", 0.1, r"--resume --lr-g 0\.1: the run was started with 0\.0002"),
        ("steps", 9, "--resume --steps 9: the run was started with 3"),
        ("d_norm", "gn", "--resume --d-norm gn: the run was started with sn"),
        ("cond", False, "--resume --cond False: the run was started with True"),
        ("overwrite", True, "--resume --overwrite: contradict"),
    ],
)
def test_a_resumed_run_refuses_other_options_by_name(
    name: str, value: object, said: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        resumed(folder, TrainOptions(**{name: value}), [name])
