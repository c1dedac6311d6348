"""Paired training: what is kept nears the truth; a resumed run is the same to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import write_pairs
from torch import Tensor

from normapps.engine.distributed import World
from normapps.engine.run import load_checkpoint
from normapps.errors import InputError, UsageError
from normapps.gan.translation.paired import PairPool, read_pairs, to_network
from normapps.gan.translation.paired_options import PairedOptions
from normapps.gan.translation.paired_train import train_paired
from normapps.gan.translation.spade_trainer import PairedTask, feature_distance
from normapps.models.folder import load_model, read_manifest
from normapps.models.spade import one_hot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 40, 16)


@pytest.fixture
def options(places: tuple[Path, Path]) -> PairedOptions:
    return PairedOptions(
        maps=str(places[0]), target=str(places[1]), size=16, ups=2, width=4, hidden=4, d_width=4,
        scales=1, batch_size=4, steps=4, sample_every=2, device="cpu", ema=0.9, lr=2e-3, d_lr=2e-3,
    )  # fmt: skip


@pytest.fixture
def pool(options: PairedOptions) -> PairPool:
    return read_pairs(options.maps, options.target, size=16)


def _same(first: Path, second: Path) -> bool:
    ours, theirs = (
        load_checkpoint(f / "checkpoint" / "latest.safetensors") for f in (first, second)
    )
    return (
        ours[1] == theirs[1]
        and ours[0].keys() == theirs[0].keys()
        and all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])
    )


def _quiet(line: str) -> None: ...


def test_trained_is_nearer_to_the_truth_than_untrained_and_follows_the_map(
    options: PairedOptions, pool: PairPool
) -> None:
    """On pairs that were kept out."""
    torch.manual_seed(0)
    chosen = replace(options, width=8, hidden=8, d_width=8, batch_size=8, lr=4e-3, steps=60)
    task = PairedTask(chosen, pool, World(), CPU)
    before = task.distance()
    for step in range(60):
        torch.manual_seed(step)
        task.step(step)
    assert task.distance() < 0.4 * before
    made, real = task.draw(task.held.maps), to_network(task.held.pictures)
    other = task.draw(task.held.maps.roll(1, 0))
    assert (made - real).abs().mean() < 0.6 * (other - real).abs().mean()


def test_a_run_leaves_grids_metrics_and_a_generator(
    options: PairedOptions, pool: PairPool, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = train_paired(options, tmp_path / "run", said.append)
    assert said == ["40 pairs of 16×16, 3 classes, ids"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0].keys() == {"step", "d", "adversarial", "features", "distance"}
    grids = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert grids == ["000002.png", "000004.png"]
    manifest = read_manifest(folder)
    assert manifest.preprocessing["legend"]["values"] == [0, 1, 2]
    assert manifest.history[0]["held_out"] == 4
    # what is published draws what the last grid shows: divided weights, measured statistics
    grid = np.asarray(Image.open(tmp_path / "run" / "samples" / "000004.png"))
    assert grid.shape == (4 * 16, 3 * 16, 3)
    held = pool.split(10)[1]
    made = load_model(folder)(one_hot(held.maps, 3))
    shown = torch.from_numpy(grid[:, 16:32].copy()).reshape(4, 16, 16, 3).permute(0, 3, 1, 2)
    assert (made - to_network(shown)).abs().max() < 1.01 / 127.5
    np.testing.assert_array_equal(
        grid[:, 32:].reshape(4, 16, 16, 3).transpose(0, 3, 1, 2), held.pictures
    )
    np.testing.assert_array_equal(grid[:16, :16], pool.legend.picture(held.maps[0].numpy()))


@pytest.mark.parametrize("latent", [0, 3])
def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_bit(
    options: PairedOptions, latent: int, tmp_path: Path
) -> None:
    chosen = replace(options, latent=latent)
    whole = train_paired(chosen, tmp_path / "whole", _quiet)
    for part in (1, 2, 0):
        parts = train_paired(replace(chosen, stop_after=part), tmp_path / "parts", _quiet)
    assert _same(tmp_path / "whole", tmp_path / "parts")
    assert read_manifest(whole).sha256 == read_manifest(parts).sha256
    for name in ("metrics.jsonl", "samples/000002.png", "samples/000004.png"):
        first, second = (tmp_path / run / name for run in ("whole", "parts"))
        assert first.read_bytes() == second.read_bytes()


def test_other_pairs_or_options_are_refused_when_resuming(
    options: PairedOptions, tmp_path: Path
) -> None:
    maps, pictures = write_pairs(tmp_path / "data", 6, 16)
    chosen = replace(options, maps=str(maps), target=str(pictures), stop_after=1)
    train_paired(chosen, tmp_path / "run", _quiet)
    with pytest.raises(InputError, match="was started with --hidden 4, not 8"):
        train_paired(replace(chosen, hidden=8), tmp_path / "run", _quiet)
    (pictures / "000.png").write_bytes((pictures / "001.png").read_bytes())
    with pytest.raises(InputError, match=f"--maps {maps}, --target .* hold other pairs"):
        train_paired(chosen, tmp_path / "run", _quiet)


def test_without_held_out_pairs_the_samples_are_of_the_training(
    options: PairedOptions, pool: PairPool
) -> None:
    task = PairedTask(replace(options, hold_out=0), pool, World(), CPU)
    assert len(task.train) == len(task.held) == 40
    assert task.grid().shape == (3, 8 * 16, 3 * 16)


def test_the_average_is_drawn_with_statistics_of_its_own(
    options: PairedOptions, pool: PairPool
) -> None:
    """Standing statistics: of what its first layer sees over all maps, in float64."""
    task = PairedTask(options, pool, World(), CPU)
    for step in range(2):
        task.step(step)
    task.measure_()
    average = task.averages["generator"]
    layer: Any = average.get_submodule("blocks.0.norm_0")
    seen = average.get_submodule("start")(one_hot(task.train.maps[:, ::4, ::4], 3)).double()
    np.testing.assert_allclose(layer.running_mean, seen.mean((0, 2, 3)).detach(), atol=1e-6)
    np.testing.assert_allclose(
        layer.running_var, seen.var((0, 2, 3), unbiased=True).detach(), rtol=1e-5
    )


def test_rates_are_two_and_fall_over_the_second_half(
    options: PairedOptions, pool: PairPool
) -> None:
    task = PairedTask(replace(options, lr=1e-3, d_lr=4e-3), pool, World(), CPU)
    assert [task.rate("generator", step) for step in range(4)] == [1e-3, 1e-3, 1e-3, 5e-4]
    assert [task.rate("judge", step) for step in (0, 3)] == pytest.approx([4e-3, 2e-3])


def test_the_generator_alone_moves_with_its_loss_and_the_judge_with_its_own(
    options: PairedOptions, pool: PairPool
) -> None:
    """No rate for one: its weights stay, and the other's move."""
    for still, moved, chosen in (
        ("judge", "generator", replace(options, d_lr=0.0)),
        ("generator", "judge", replace(options, lr=0.0)),
    ):
        task = PairedTask(replace(chosen, batch_size=8), pool, World(), CPU)
        before = {name: _weights(task, name) for name in (still, moved)}
        task.step(0)
        assert torch.equal(_weights(task, still), before[still])
        assert not torch.equal(_weights(task, moved), before[moved])


def _weights(task: PairedTask, name: str) -> Tensor:
    return torch.cat([each.detach().flatten().clone() for each in task.networks[name].parameters()])


def test_feature_matching_leaves_out_the_logits_and_pulls_at_one_side() -> None:
    ours = [[torch.zeros(2, 1, requires_grad=True), torch.full((3,), 5.0), torch.tensor(9.0)]] * 2
    theirs = [
        [torch.ones(2, 1, requires_grad=True), torch.full((3,), 2.0), torch.tensor(0.0)],
        [torch.full((2, 1), 3.0), torch.full((3,), 5.0), torch.tensor(0.0)],
    ]
    loss = feature_distance(ours, theirs)
    assert loss.item() == pytest.approx(((1 + 3) + (3 + 0)) / 2)
    loss.backward()
    assert ours[0][0].grad is not None
    assert theirs[0][0].grad is None


@pytest.mark.parametrize("base", ["batch", "instance"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_base_and_precision_takes_a_step(
    options: PairedOptions, pool: PairPool, base: str, precision: str
) -> None:
    task = PairedTask(replace(options, base=base, precision=precision), pool, World(), CPU)
    values = task.step(0)
    assert all(np.isfinite(list(values.values())))
    assert task.grid().dtype == torch.uint8


def test_places_must_be_named_and_sizes_must_fit(options: PairedOptions, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--maps is missing"):
        train_paired(replace(options, maps=""), tmp_path / "run")
    with pytest.raises(InputError, match="--size 20: must be a multiple of 16, 2 to the --ups 4"):
        PairedOptions(size=20)
    assert not (tmp_path / "run").exists()


def test_what_was_left_out_is_told(options: PairedOptions, tmp_path: Path) -> None:
    maps, pictures = write_pairs(tmp_path / "data", 30, 16)
    for path in sorted(pictures.iterdir())[5:]:
        path.unlink()
    said: list[str] = []
    chosen = replace(options, maps=str(maps), target=str(pictures), steps=1)
    train_paired(chosen, tmp_path / "run", said.append)
    assert len(said) == 22
    assert said[-2:] == ["and 5 more left out", "5 pairs of 16×16, 3 classes, ids"]
