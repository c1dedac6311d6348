"""Statistics of real photographs in a model: right values, right order, one bad file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.analysis.options import StatsOptions
from normapps.analysis.statistics import measure_statistics, shifts
from normapps.data.images import read_image
from normapps.errors import InputError
from normapps.models.load import open_model
from normapps.norm.population.algebra import merge
from normapps.norm.population.statistics import Population

MODEL = "test_resnet"


@pytest.fixture
def folder(photo_files: dict[str, Path], tmp_path: Path) -> Path:
    for file in photo_files.values():
        target = tmp_path / "pictures" / file.stem[0] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path / "pictures"


def test_the_first_layer_has_the_statistics_of_its_input(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "population.safetensors"
    options = StatsOptions(batch_size=4, device="cpu")
    report = measure_statistics(MODEL, str(folder), out, options, say=said.append)
    assert report.pictures == 6
    assert not report.failed
    assert "random weights" in said[0]
    assert "160×160" in said[1]
    found = Population.load(out)
    opened = open_model(MODEL)
    batch = torch.stack(
        [opened.preprocessing.apply(read_image(file).pixels) for file in folder.rglob("*.jpg")]
    )
    seen: list[torch.Tensor] = []
    first = opened.model.get_submodule(next(iter(found.layers)))
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    with torch.no_grad():
        opened.model(batch)
    torch.testing.assert_close(
        next(iter(found.layers.values())).mean[0].double(),
        seen[0].mean((0, 2, 3)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_largest_shift_comes_first(folder: Path, tmp_path: Path) -> None:
    options = StatsOptions(batch_size=6, device="cpu")
    out = tmp_path / "population.safetensors"
    report = measure_statistics(MODEL, str(folder), out, options, say=lambda _: None)
    means = [shift.mean for shift in report.shifts]
    assert means == sorted(means, reverse=True)
    assert all(shift.worst >= shift.mean >= 0 for shift in report.shifts)
    own = Population.of(open_model(MODEL).model)
    assert len(report.shifts) == len(own.layers)
    assert all(shift.worst == 0 for shift in shifts(own, own))


def test_one_bad_picture_is_named_and_the_rest_measured(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(folder / "a" / "pixel.png")
    out = tmp_path / "population.safetensors"
    options = StatsOptions(batch_size=3, device="cpu")
    report = measure_statistics(MODEL, str(folder), out, options, say=lambda _: None)
    assert report.pictures == 7
    assert len(report.failed) == 1
    assert "broken.jpg" in report.failed[0]
    assert out.exists()


def test_a_file_is_not_overwritten_and_nothing_is_left_behind(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "population.safetensors"
    out.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        measure_statistics(MODEL, str(folder), out, StatsOptions(), say=lambda _: None)
    assert out.read_text() == "mine"
    out.unlink()
    with pytest.raises(InputError, match="no such"):
        measure_statistics(MODEL, str(folder / "none"), out, StatsOptions(), say=lambda _: None)
    assert not out.exists()


def test_progress_counts_layers_when_layer_by_layer(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    options = StatsOptions(mode="layerwise", batch_size=3, limit=6, device="cpu")
    measure_statistics(
        MODEL,
        str(folder),
        tmp_path / "population.safetensors",
        options,
        say=lambda _: None,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] <= seen[-1][1]


def test_half_precision_measures_the_same(folder: Path, tmp_path: Path) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.safetensors"
        options = StatsOptions(dtype=dtype, batch_size=6, device="cpu")
        measure_statistics(MODEL, str(folder), out, options, say=lambda _: None)
        found.append(next(iter(Population.load(out).layers.values())))
    assert found[1].mean.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found[1].var, found[0].var, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("mode", ["fixed", "one-pass"])
def test_shards_merge_to_the_whole(folder: Path, tmp_path: Path, mode: str) -> None:
    found = {}
    for shard in ("1/1", "1/2", "2/2"):
        out = tmp_path / "population.safetensors"
        options = StatsOptions(shard=shard, mode=mode, batch_size=2, device="cpu", overwrite=True)
        measure_statistics(MODEL, str(folder), out, options, say=lambda _: None)
        found[shard] = Population.load(out)
    whole, merged = found["1/1"], merge([found["1/2"], found["2/2"]])
    assert (found["1/2"].samples, found["2/2"].samples, merged.samples) == (4, 2, 6)
    assert merged.fingerprint == whole.fingerprint
    for name, moments in whole.layers.items():
        # float64 of the same batches, pooled in another order
        torch.testing.assert_close(merged.layers[name].mean, moments.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(merged.layers[name].var, moments.var, rtol=1e-12, atol=1e-14)
