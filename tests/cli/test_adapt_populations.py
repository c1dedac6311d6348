"""`normapps adapt mix` and `merge` from end to end, with shards of `norm stats`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from normapps.cli.main import main
from normapps.files import sha256
from normapps.models.load import open_model
from normapps.norm.population.statistics import Population

Run = Callable[..., tuple[str, str]]
MODEL = "test_resnet"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


@pytest.fixture
def parts(run: Run, photo_files: dict[str, Path], tmp_path: Path) -> list[Path]:
    """The statistics of five photographs: as a whole, and in two shards."""
    place = tmp_path / "pictures"
    place.mkdir()
    for name in ("astronaut", "coffee", "chelsea", "rocket", "china"):
        shutil.copy(photo_files[name], place)
    found = []
    for shard in ("1/1", "1/2", "2/2"):
        out = tmp_path / f"part{shard.replace('/', '-')}.safetensors"
        words = ("--mode", "fixed", "--size", 64, "--batch-size", 2, "--device", "cpu")
        run("norm", "stats", MODEL, place, "-o", out, *words, "--shard", shard)
        found.append(out)
    return found


def test_merged_shards_are_the_whole(run: Run, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "population.safetensors"
    shown, _ = run("adapt", "merge", *parts[1:], "-o", out)
    assert shown.splitlines()[0].startswith("5 pictures in 2 parts")
    assert shown.splitlines()[-1] == str(out)
    whole, merged = Population.load(parts[0]), Population.load(out)
    assert (merged.samples, merged.mode, merged.based_on) == (5, "fixed", whole.based_on)
    assert list(merged.layers) == list(whole.layers)
    for name, moments in whole.layers.items():
        assert torch.equal(merged.layers[name].count, moments.count)
        # float64 of the same batches, pooled in another order
        torch.testing.assert_close(merged.layers[name].mean, moments.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(merged.layers[name].var, moments.var, rtol=1e-12, atol=1e-14)
    facts = json.loads(run("adapt", "merge", *parts[1:], "-o", out, "--overwrite", "--json")[0])
    assert facts["pictures"] == 5


def test_what_does_not_merge_is_refused(run: Run, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "population.safetensors"
    for words, message in (
        ((parts[1], parts[1]), "is given twice"),
        ((parts[1], tmp_path / "none"), "none: no such population file"),
    ):
        _, errors = run("adapt", "merge", *words, "-o", out, code=1)
        assert message in errors
        assert errors.count("\n") == 1
        assert not out.exists()
    other = tmp_path / "other.safetensors"
    Population.of(open_model("test_resnet", seed=1).model).save(other)
    assert (
        "other.safetensors: does not know its number of pictures"
        in run(*("adapt", "merge", parts[1], other, "-o", out), code=1)[1]
    )
    out.write_text("mine")
    assert "--overwrite" in run("adapt", "merge", *parts[1:], "-o", out, code=1)[1]
    assert out.read_text() == "mine"


@pytest.mark.parametrize("rule", ["linear", "pooled"])
def test_a_mixture_has_the_formulas_values(
    run: Run, parts: list[Path], tmp_path: Path, rule: str
) -> None:
    out = tmp_path / "out"
    words = ("--prior", 3, "--rule", rule)
    shown, _ = run("adapt", "mix", MODEL, *parts[1:], "-o", out, *words)
    assert "5 pictures; 37.5% of the statistics stay the model's own" in shown
    own = open_model(MODEL).model.state_dict()
    found = load_file(out / "model.safetensors")
    tensors = [load_file(part) for part in parts[1:]]
    for name in Population.load(parts[0]).layers:
        means = [own[f"{name}.running_mean"].double()]
        variances = [own[f"{name}.running_var"].double()]
        for each in tensors:
            count = each[f"{name}/count"].double()
            means.append(each[f"{name}/mean"].double().flatten())
            variances.append(each[f"{name}/var"].double().flatten() * count / (count - 1))
        samples = [3.0, *(float(Population.load(part).samples or 0) for part in parts[1:])]
        shares = [count / sum(samples) for count in samples]
        mean = sum(share * each for share, each in zip(shares, means, strict=True))
        var = sum(share * each for share, each in zip(shares, variances, strict=True))
        if rule == "pooled":
            var = var + sum(
                share * (each - mean) ** 2 for share, each in zip(shares, means, strict=True)
            )
        got = found[f"{name}.running_mean"].double(), found[f"{name}.running_var"].double()
        torch.testing.assert_close(got[0], mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(got[1], var, rtol=1e-6, atol=1e-7)


def test_a_mixture_can_be_undone(run: Run, parts: list[Path], tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    run("adapt", "mix", MODEL, parts[0], "-o", plain, "--prior", 1)
    run("adapt", "undo", plain)
    run("adapt", "mix", plain, parts[0], "-o", out, "--prior", 0)
    assert sha256(out / "model.safetensors") != sha256(plain / "model.safetensors")
    run("adapt", "undo", out)
    assert sha256(out / "model.safetensors") == sha256(plain / "model.safetensors")
    wanted, found = open_model(MODEL).model.state_dict(), open_model(out).model.state_dict()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_what_does_not_mix_is_refused(run: Run, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, errors = run("adapt", "mix", MODEL, parts[0], "-o", out, "--seed", 1, code=1)
    assert "part1-1.safetensors: " in errors
    assert "another model or other weights" in errors
    assert errors.count("\n") == 1
    mixed = tmp_path / "mixed"
    facts = json.loads(run("adapt", "mix", MODEL, parts[0], "-o", mixed, "--json")[0])
    assert facts["samples"] == 5
    again = mixed / "population.safetensors"
    assert "is a mixture" in run("adapt", "mix", MODEL, again, "-o", out, code=1)[1]
    assert "--overwrite" in run("adapt", "mix", MODEL, parts[0], "-o", mixed, code=1)[1]
    assert not out.exists()
