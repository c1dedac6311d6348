"""Training without pairs: exact resume, refusals, two processes, and that it learns."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.engine.run import Metrics
from normapps.errors import InputError, UsageError
from normapps.gan.translation.options import TranslateOptions
from normapps.gan.translation.train import run_training, train_unpaired
from normapps.gan.translation.trainer import UnpairedTask
from normapps.gan.translation.unpaired import Domains, to_floats
from normapps.models.folder import load_model, read_manifest

CPU = torch.device("cpu")
TINY = TranslateOptions(
    size=16, steps=6, batch_size=2, width=4, blocks=1, d_width=4, device="cpu", sample_every=3
)


def blobs(count: int, colour: tuple[int, int, int], seed: int) -> Tensor:
    """Pictures of a bright square on a ground of one colour: (count, 3, 18, 18) uint8."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, 3, 18, 18), np.uint8)
    pictures[:] = np.array(colour, np.uint8)[:, None, None]
    for picture in pictures:
        top, left = rng.integers(0, 10, 2)
        picture[:, top : top + 8, left : left + 8] = 230
    noise = rng.integers(-6, 7, pictures.shape)
    return torch.from_numpy((pictures + noise).clip(0, 255).astype(np.uint8))


BLUE, RED = (40, 60, 140), (150, 60, 40)
DOMAINS = Domains(Pool(blobs(24, BLUE, 0)), Pool(blobs(20, RED, 1)))


def go(options: TranslateOptions, folder: Path, domains: Domains = DOMAINS) -> Path:
    return run_training(options, folder, partial(UnpairedTask, options, domains))


def checkpoint(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "latest.safetensors")


def same(first: Path, second: Path) -> bool:
    a, b = checkpoint(first), checkpoint(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `TINY` in one go."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    go(TINY, folder)
    return folder


def test_a_run_leaves_models_metrics_and_grids(whole: Path) -> None:
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [each["step"] for each in metrics] == list(range(6))
    assert set(metrics[0]) == {"step", "d", "adversarial", "cycle", "identity"}
    assert metrics[0]["cycle"] == metrics[0]["identity"] == 0  # untrained, nothing is changed
    assert metrics[5]["cycle"] > 0
    sizes = [Image.open(whole / "samples" / f"{step:06d}.png").size for step in (3, 6)]
    assert sizes == [(2 * 3 * 16 + 8, 6 * 16)] * 2
    for name in ("generator", "generator-back"):
        manifest = read_manifest(whole / name)
        assert manifest.preprocessing["size"] == 16
        assert manifest.history[0]["step"] == 6
        average = {
            key: each for key, each in checkpoint(whole).items() if f"average.{name}." in key
        }
        model = load_model(whole / name)
        for key, value in model.state_dict().items():
            assert torch.equal(value, average[f"average.{name}.{key}"])
    first, second = (load_model(whole / name) for name in ("generator", "generator-back"))
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize("loss", ["least-squares", "hinge"])
def test_a_stopped_run_goes_on_to_the_bit(whole: Path, tmp_path: Path, loss: str) -> None:
    chosen = replace(TINY, loss=loss)
    other = whole
    if loss != TINY.loss:
        other = tmp_path / "whole"
        go(chosen, other)
    for _ in range(3):
        go(replace(chosen, stop_after=2, save_every=1), tmp_path / "parts")
    assert same(tmp_path / "parts", other)
    told = [(place / "metrics.jsonl").read_text() for place in (tmp_path / "parts", other)]
    assert told[0] == told[1]


def test_interrupted_by_a_signal_it_goes_on_to_the_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = UnpairedTask.step

    def signalled(task: UnpairedTask, step: int) -> dict[str, float]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return take(task, step)

    monkeypatch.setattr(UnpairedTask, "step", signalled)
    with pytest.raises(KeyboardInterrupt):
        go(TINY, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "generator")
    assert manifest.history[0]["step"] == 3
    monkeypatch.undo()
    go(TINY, tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    go(replace(TINY, seed=1, steps=2), tmp_path / "run")
    first = [
        json.loads((place / "metrics.jsonl").read_text().splitlines()[0])["d"]
        for place in (whole, tmp_path / "run")
    ]
    assert first[0] != first[1]


def test_a_run_is_not_continued_as_another(tmp_path: Path) -> None:
    go(replace(TINY, stop_after=1), tmp_path / "run")
    with pytest.raises(InputError, match="--width 4, not 8"):
        go(replace(TINY, width=8), tmp_path / "run")
    swapped = Domains(DOMAINS.target, DOMAINS.source)
    with pytest.raises(InputError, match="--source : holds other pictures"):
        go(TINY, tmp_path / "run", swapped)
    begun = go(replace(TINY, width=8, stop_after=1, overwrite=True), tmp_path / "run", swapped)
    assert read_manifest(begun).arguments["width"] == 8
    assert read_manifest(begun).history[0]["step"] == 1


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(replace(TINY, stop_after=2), tmp_path / "run")
    before = checkpoint(tmp_path / "run")
    monkeypatch.setattr(UnpairedTask, "_weighted", lambda _, terms: terms["cycle"] * float("nan"))
    judge = "normapps.gan.translation.trainer.discriminator_loss"
    monkeypatch.setattr(judge, lambda *given: torch.tensor(float("nan"), requires_grad=True))
    monkeypatch.setattr(UnpairedTask, "change", lambda *given: None)
    with pytest.raises(InputError, match="step 2: the loss is not finite"):
        go(TINY, tmp_path / "run")
    after = checkpoint(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; .* --resume -o"),
        (RuntimeError("CUDA out of memory. Tried …"), "out of memory; .* smaller --batch-size"),
    ],
)
def test_what_the_machine_lacks_is_told_in_a_line(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    go(replace(TINY, stop_after=2), tmp_path / "run")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Metrics, "add", fail)
    with pytest.raises(InputError, match=said):
        go(TINY, tmp_path / "run")
    monkeypatch.undo()
    go(TINY, tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_bfloat16_trains(tmp_path: Path) -> None:
    go(replace(TINY, precision="bfloat16", steps=2), tmp_path / "run")
    kept = checkpoint(tmp_path / "run")
    assert all(each.dtype == torch.float32 for each in kept.values())
    assert all(bool(each.isfinite().all()) for each in kept.values())


def test_what_is_missing_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--source is missing"):
        train_unpaired(replace(TINY, target="b"), tmp_path / "run")
    with pytest.raises(UsageError, match="--target is missing"):
        train_unpaired(replace(TINY, source="a"), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear to me")
    with pytest.raises(InputError, match="is not empty and no training run"):
        train_unpaired(replace(TINY, source="a", target="b"), tmp_path / "full")


def test_a_run_of_other_options_is_refused_before_any_picture_is_read(
    whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"started with --source .* --overwrite to begin"):
        train_unpaired(replace(TINY, source="none", target="none", width=8), whole)
    with pytest.raises(InputError, match="none: no such folder"):
        train_unpaired(replace(TINY, source="none", target="none", overwrite=True), whole)


def test_discriminators_stay_normalized() -> None:
    """One power iteration a step follows the weights: what is judged by has norms near 1."""
    task = UnpairedTask(TINY, DOMAINS, World(), CPU)
    for step in range(8):
        task.step(step)
    for name in ("judge-target", "judge-source"):
        for layer in task.networks[name].modules():
            if isinstance(layer, torch.nn.Conv2d):
                matrix = layer.weight.detach().flatten(1)
                assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=0.1)


def test_trained_beats_untrained() -> None:
    """Grounds become red, and back blue; the bright squares stay where they were."""
    torch.manual_seed(0)
    chosen = replace(TINY, steps=40, lr=6e-3, batch_size=4, width=6, d_width=16, ema=0.9)
    task = UnpairedTask(chosen, DOMAINS, World(), CPU)
    for step in range(chosen.steps):
        task.step(step)
    pictures, wanted = (
        to_floats(each.images[..., :16, :16]) for each in (DOMAINS.source, DOMAINS.target)
    )
    with torch.no_grad():
        made = task.averages["generator"](pictures)
        back = task.averages["generator-back"](made)
    far, near = ((x.mean((0, 2, 3)) - wanted.mean((0, 2, 3))).norm() for x in (pictures, made))
    assert near < 0.35 * far
    assert (back - pictures).abs().mean() < 0.5 * (made - pictures).abs().mean()
    square = pictures.mean(1) > 0.6
    assert made.mean(1)[square].mean() > made.mean(1)[~square].mean() + 0.5
