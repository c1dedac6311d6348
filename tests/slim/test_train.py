"""Sparse training: zeros come, the run resumes to the bit, and the report says what it is worth."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from normapps.engine.run import load_checkpoint
from normapps.errors import InputError, UsageError
from normapps.models.folder import load_model
from normapps.models.load import OpenedModel
from normapps.slim.fitting import Fitted
from normapps.slim.material import Material
from normapps.slim.regularizer import KINDS
from normapps.slim.train import train_sparse
from normapps.slim.train_options import PENALTIES, SparseOptions

CHECKPOINT = Path("checkpoint") / "latest.safetensors"
Make = Callable[..., OpenedModel]

PLAIN = SparseOptions(
    steps=20, batch_size=32, lr=0.1, warmup=0, crop=1.0, flip=0.0, jitter=0.1, shift=0.1,
    device="cpu", strength=0.1,
)  # fmt: skip


def same(one: Path, other: Path) -> bool:
    pair = [load_checkpoint(folder / CHECKPOINT) for folder in (one, other)]
    assert pair[0][0].keys() == pair[1][0].keys()
    return pair[0][1] == pair[1][1] and all(
        torch.equal(value, pair[1][0][key]) for key, value in pair[0][0].items()
    )


def scales(model: nn.Module) -> torch.Tensor:
    """γ of all batch norms."""
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    return torch.cat([each.weight.detach() for each in norms])


def run(make: Make, material: Material, options: SparseOptions, folder: Path) -> Fitted:
    return train_sparse(make(4), material, options, folder)


def test_the_options_name_the_penalties_that_there_are() -> None:
    assert PENALTIES == KINDS


def test_scales_become_zeros_and_the_report_counts_them(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    chosen = replace(PLAIN, steps=60, lr=0.3, strength=0.025)
    fitted = run(make_network, material, chosen, tmp_path)
    assert fitted.model is not None
    assert fitted.folder is not None
    gamma = scales(fitted.model)
    zeros = int((gamma == 0).sum())
    assert zeros > 5
    told = json.loads((tmp_path / "report.json").read_text())
    after = told["sparsity"]["after"]
    assert (after["channels"], after["zeros"]) == (len(gamma), zeros / len(gamma))
    assert told["sparsity"]["before"]["zeros"] == 0
    assert sum(each["zeros"] for each in told["layers"].values()) == zeros
    assert told["accuracy"]["compared_with"] == "the given network"
    assert told["accuracy"]["after"]["count"] == 200
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["zeros"] == zeros / len(gamma)
    again = load_model(fitted.folder)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), fitted.model(x))
    history = json.loads((fitted.folder / "model.json").read_text())["history"]
    assert history[-1]["penalty"] == "proximal"
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert fitted.verdict is not None
    assert fitted.verdict.verdict == told["verdict"] == "recommended"


def test_without_a_penalty_it_says_that_pruning_would_hurt(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    fitted = run(make_network, material, replace(PLAIN, strength=0.0, steps=10), tmp_path)
    assert fitted.verdict is not None
    assert fitted.verdict.verdict == "not recommended"
    assert "greater --strength" in fitted.verdict.reason


def test_a_network_whose_scales_are_all_gone_is_not_recommended(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    fitted = run(make_network, material, replace(PLAIN, strength=100.0, steps=2), tmp_path)
    assert fitted.verdict is not None
    assert fitted.verdict.verdict == "not recommended"
    assert "give a smaller --strength" in fitted.verdict.reason


def test_more_steps_are_asked_for_where_a_target_was_missed(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    chosen = replace(PLAIN, strength=1e-6, steps=2, target_sparsity=0.6)
    fitted = run(make_network, material, chosen, tmp_path)
    assert fitted.verdict is not None
    assert "--target-sparsity 0.6 was not reached: give more --steps" in fitted.verdict.reason
    assert fitted.then == ""


def test_a_target_is_met_and_the_report_tells_the_strength_and_the_next_command(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    chosen = replace(PLAIN, strength=1e-4, steps=200, target_sparsity=0.5, jitter=0.0, shift=0.0)
    fitted = train_sparse(make_network(8), material, chosen, tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["sparsity"]["after"]["zeros"] == pytest.approx(0.5, abs=0.02)
    assert told["accuracy"]["after"]["mean"] > 0.7
    assert all(each["zeros"] < each["channels"] for each in told["layers"].values())
    assert fitted.strength == told["strength"] != 1e-4
    assert fitted.folder is not None
    manifest = json.loads((fitted.folder / "model.json").read_text())
    assert manifest["history"][-1]["strength"] == fitted.strength
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["strength"] == fitted.strength
    command = f"normapps slim prune {fitted.folder} -o {tmp_path}-pruned --lossless"
    assert fitted.then == told["next"] == command
    assert command in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "more",
    [
        {"penalty": "proximal"},
        {"penalty": "proximal", "optimizer": "adam", "lr": 0.01, "group": True},
        {"penalty": "subgradient", "sync_norm": True},
        {"penalty": "polarization"},
        {"penalty": "proximal", "target_sparsity": 0.4, "flops_weighted": True},
    ],
)
def test_a_run_in_parts_is_the_run_in_one(
    more: dict[str, object], make_network: Make, material: Material, tmp_path: Path
) -> None:
    """Of every penalty, with the λ that --target-sparsity has found so far."""
    chosen = replace(PLAIN, steps=24, **more)  # type: ignore[arg-type]
    run(make_network, material, chosen, tmp_path / "whole")
    run(make_network, material, replace(chosen, stop_after=11), tmp_path / "parts")
    run(make_network, material, replace(chosen, stop_after=2), tmp_path / "parts")
    run(make_network, material, chosen, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    for name in ("metrics.jsonl", "report.json", "model/model.safetensors"):
        files = [(tmp_path / run / name).read_bytes() for run in ("whole", "parts")]
        # the report names the folder, in the command that comes next
        assert files[0] == files[1].replace(bytes(tmp_path / "parts"), bytes(tmp_path / "whole")), (
            name
        )


def test_each_penalty_leads_somewhere_else(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    found = {}
    for kind in ("none", *PENALTIES):
        more = {"strength": 0.0} if kind == "none" else {"penalty": kind}
        fitted = run(make_network, material, replace(PLAIN, **more), tmp_path / kind)  # type: ignore[arg-type]
        assert fitted.model is not None
        found[kind] = scales(fitted.model)
    sums = {kind: float(each.abs().sum()) for kind, each in found.items()}
    assert sums["proximal"] < 0.9 * sums["none"]
    assert sums["subgradient"] < 0.9 * sums["none"]
    assert float(found["polarization"].max()) <= 1
    assert float(found["polarization"].min()) >= 0
    assert len({round(each, 4) for each in sums.values()}) == 4


def test_only_scales_that_can_go_are_penalized(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    """The last layer's output here is the classifier's: its scale decides, nothing reads it on."""

    class Pinned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_network(4).model
            self.last = nn.BatchNorm1d(10)
            self.pretrained_cfg = self.inner.pretrained_cfg

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.last(self.inner(x))
            return scores

    torch.manual_seed(0)
    chosen = replace(PLAIN, strength=100.0, steps=2, lr=0.01)
    fitted = train_sparse(Pinned(), material, chosen, tmp_path)
    assert isinstance(fitted.model, Pinned)
    assert not scales(fitted.model).any()
    assert fitted.model.last.weight.abs().min() > 0.5
    told = json.loads((tmp_path / "report.json").read_text())
    assert not any("last" in name for name in told["layers"])


def test_a_new_classifier_is_compared_with_nothing(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    chosen = replace(PLAIN, steps=60, lr=0.3, strength=0.025)
    fresh = ("classifier.weight", "classifier.bias")
    fitted = train_sparse(make_network(4), material, chosen, tmp_path, fresh=fresh)
    assert fitted.verdict is not None
    assert "no network to compare with; give --baseline" in fitted.verdict.reason
    baseline = str(tmp_path / "model")
    chosen = replace(chosen, baseline=baseline)
    fitted = train_sparse(make_network(4), material, chosen, tmp_path / "other")
    assert fitted.score is not None
    assert fitted.score.difference is not None
    assert fitted.score.difference.mean == 0  # the same training again
    assert fitted.reference == f"baseline {baseline}"


def test_networks_without_scales_are_refused(material: Material, tmp_path: Path) -> None:
    bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(InputError, match="no batch norm"):
        train_sparse(bare, material, PLAIN, tmp_path)
    last = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with pytest.raises(InputError, match="no batch norm whose channels could be cut out"):
        train_sparse(last, material, PLAIN, tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_that_contradict_each_other_are_refused() -> None:
    assert SparseOptions(sr=True, s=1e-5).kind == "subgradient"
    assert SparseOptions(sr=True, s=1e-5).weight == 1e-5
    assert SparseOptions(strength=0.2).weight == 0.2
    with pytest.raises(UsageError, match="-sr is --penalty subgradient"):
        SparseOptions(sr=True, penalty="polarization")
    with pytest.raises(UsageError, match="reaches no exact zeros"):
        SparseOptions(sr=True, target_sparsity=0.5)
    with pytest.raises(UsageError, match="--group: is of --penalty proximal"):
        SparseOptions(group=True, penalty="subgradient")
    with pytest.raises(UsageError, match="--train head: leaves the scales"):
        SparseOptions(train="head")
    with pytest.raises(InputError, match="--penalty 'proximel': choose one of"):
        SparseOptions(penalty="proximel")


_TWO = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
from conftest import network
from normapps.engine.distributed import world
from normapps.slim.train import train_sparse
from normapps.slim.train_options import SparseOptions
material = torch.load({folder!r} + "/material.pt", weights_only=False)
folder, options = Path({folder!r}), {options!r}
def run(name, stop_after=0):
    chosen = replace(options, stop_after=stop_after)
    return train_sparse(network(4), material, chosen, folder / name)
with world(torch.device("cpu")):
    found = run("two")
    print(f"{{found.is_finished}} {{found.folder is not None}}\\n", end="")
    run("parts", 5)
    run("parts")
"""


def two_processes(script: Path) -> str:
    """Run a script as torchrun does, without a third process; return what both say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in ("0", "1"):
        each = {**place, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        started.append(
            subprocess.Popen(
                [sys.executable, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1", **each},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    ended = [each.communicate() for each in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return "".join(said for said, _ in ended)


def test_two_processes_are_one_of_twice_the_batch(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    """The scales of all processes reach the same zeros; resumed, the same to the bit."""
    chosen = replace(PLAIN, jitter=0.0, shift=0.0, batch_size=16, sync_norm=True, steps=12)
    chosen = replace(chosen, strength=0.06, lr=0.3)
    torch.save(material, tmp_path / "material.pt")
    script = tmp_path / "script.py"
    here = str(Path(__file__).parent)
    script.write_text(_TWO.format(here=here, options=chosen, folder=str(tmp_path)))
    said = two_processes(script)
    assert sorted(said.splitlines()) == ["True False", "True True"]
    assert same(tmp_path / "two", tmp_path / "parts")
    one = run(make_network, material, replace(chosen, batch_size=32), tmp_path / "one").model
    assert one is not None
    found = scales(load_model(tmp_path / "two" / "model"))
    assert int((found == 0).sum()) > 5
    assert torch.equal(found == 0, scales(one) == 0)
    assert torch.allclose(found, scales(one), rtol=1e-2, atol=1e-3)
