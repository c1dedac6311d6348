"""Training over domains: that it learns, resumes to the bit, and leaves ordinary networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401  (guard)
from normapps.adapt.training.methods import METHODS
from normapps.adapt.training.options import RecipeOptions
from normapps.adapt.training.train import Trained, train_domains
from normapps.data.pool import Pool
from normapps.engine.run import load_checkpoint
from normapps.errors import InputError
from normapps.models.folder import build, load_model, save_model
from normapps.models.load import OpenedModel
from normapps.models.preprocessing import Preprocessing
from normapps.norm.convert.converter import convert_norm

CHECKPOINT = Path("checkpoint") / "latest.safetensors"


def network(width: int = 8, seed: int = 0) -> OpenedModel:
    arguments = {"num_classes": 10, "channels": 1, "size": 8, "width": width}
    model = build("small-cnn", arguments, seed=seed).eval()
    source = {"builder": "small-cnn", "arguments": arguments}
    wanted = Preprocessing.of(model, source)
    return OpenedModel(model, wanted, source, True, "small-cnn", "random weights (seed 0)")


def same(one: Path, other: Path) -> bool:
    pair = [load_checkpoint(folder / CHECKPOINT) for folder in (one, other)]
    assert pair[0][0].keys() == pair[1][0].keys()
    return pair[0][1] == pair[1][1] and all(
        torch.equal(value, pair[1][0][key]) for key, value in pair[0][0].items()
    )


def first(pool: Pool) -> torch.Tensor:
    assert pool.labels is not None
    return pool.labels[:200]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_parts_is_the_run_in_one(
    method: str, options: RecipeOptions, source: Pool, target: Pool, held: Pool, tmp_path: Path
) -> None:
    """Also in the middle of a stage, at its end, and after it; every method."""
    options = replace(options, method=method)

    def run(name: str, **more: int) -> Trained:
        chosen = replace(options, **more)
        return train_domains(network(4), [source], [target], chosen, tmp_path / name, tests=[held])

    whole = run("whole")
    assert run("parts", stop_after=1).verdict is None
    assert not (tmp_path / "parts" / "model").exists()
    run("parts", stop_after=1)
    run("parts", stop_after=1)
    parts = run("parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    for name in ("metrics.jsonl", "report.json", "model/model.safetensors"):
        files = [(tmp_path / run / name).read_bytes() for run in ("whole", "parts")]
        assert files[0] == files[1], name
    assert whole.scores[0].right.equal(parts.scores[0].right)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_folder_opens_as_what_was_trained(
    method: str, options: RecipeOptions, source: Pool, target: Pool, held: Pool, tmp_path: Path
) -> None:
    chosen = replace(options, method=method)
    opened = network(4)
    before = {key: value.clone() for key, value in opened.model.state_dict().items()}
    result = train_domains(opened, [source], [target], chosen, tmp_path, tests=[held])
    again = load_model(result.folders[0])
    x = opened.preprocessing.normalize(held.images[:50])
    with torch.no_grad():
        assert torch.equal(again(x), result.models[0].eval()(x))
        assert not torch.equal(again(x), opened.model(x))
    assert all(torch.equal(before[key], opened.model.state_dict()[key]) for key in before)
    known = {"ibn", "bin", "dwt"}
    if method not in known:  # the shape is the network's own: strictly its keys
        opened.model.load_state_dict(result.models[0].state_dict(), strict=True)
        assert [type(each) for each in again.modules()] == [
            type(each) for each in opened.model.modules()
        ]
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["targets"][0]["accuracy"]["count"] == len(held)
    assert told["verdict"] in ("recommended", "not recommended", "undecided")


def test_dsbn_adapts_where_the_source_fails(
    options: RecipeOptions, source: Pool, target: Pool, held: Pool, tmp_path: Path
) -> None:
    chosen = replace(options, steps=40, batch_size=64, jitter=0.0, shift=0.0, lr=0.2)
    plain = train_domains(network(), [source], [target], chosen, tmp_path / "s", tests=[held])
    dsbn = replace(
        chosen, method="dsbn", steps=80, stage_steps=40, baseline=str(tmp_path / "s" / "model")
    )
    result = train_domains(network(), [source], [target], dsbn, tmp_path / "d", tests=[held])
    (score,) = result.scores
    assert score.difference is not None
    assert score.difference.low > 0.3
    assert result.verdict is not None
    assert result.verdict.verdict == "recommended"
    assert score.baseline == plain.scores[0].accuracy


def test_adabn_is_compared_with_the_network_before(
    options: RecipeOptions, source: Pool, target: Pool, held: Pool, tmp_path: Path
) -> None:
    plain = train_domains(network(4), [source], [target], options, tmp_path / "s", tests=[held])
    chosen = replace(options, method="adabn")
    result = train_domains(network(4), [source], [target], chosen, tmp_path / "a", tests=[held])
    assert result.scores[0].before is not None
    assert torch.equal(result.scores[0].before, plain.scores[0].right)
    weights = [dict(each.models[0].named_parameters()) for each in (plain, result)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_each_of_several_targets_gets_a_model(
    options: RecipeOptions, source: Pool, target: Pool, held: Pool, tmp_path: Path
) -> None:
    chosen = replace(options, method="dsbn", validate_every=2)
    result = train_domains(
        network(4), [source, held], [target, source], chosen, tmp_path, names=("far", "near")
    )
    assert [folder.name for folder in result.folders] == ["model-far", "model-near"]
    states = [load_model(folder).state_dict() for folder in result.folders]
    shared = {key for key in states[0] if torch.equal(states[0][key], states[1][key])}
    assert any("conv" in key for key in shared)
    assert not any("running" in key for key in shared)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"accuracy/far", "accuracy/near"} <= set(lines[1])
    assert "accuracy/far" not in lines[0]


def test_one_model_for_all_targets_where_none_is_looked_at(
    options: RecipeOptions, source: Pool, target: Pool, held: Pool, tmp_path: Path
) -> None:
    result = train_domains(network(4), [source], [target, held], options, tmp_path)
    assert [folder.name for folder in result.folders] == ["model"]
    assert [each.name for each in result.scores] == ["target", "target-2"]


def test_bfloat16_trains_weights_in_float32(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    chosen = replace(options, method="dsbn", precision="bfloat16")
    result = train_domains(network(4), [source], [target], chosen, tmp_path / "half")
    train_domains(
        network(4), [source], [target], replace(chosen, precision="float32"), tmp_path / "f"
    )
    assert all(p.dtype == torch.float32 for p in result.models[0].parameters())
    assert not same(tmp_path / "half", tmp_path / "f")


def test_a_target_without_labels_is_trained_on_and_not_measured(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    chosen = replace(options, method="dsbn")
    bare = Pool(target.images)
    result = train_domains(network(4), [source], [bare], chosen, tmp_path / "bare")
    assert result.scores == ()
    assert result.verdict is not None
    assert "No target has labels" in result.verdict.reason
    train_domains(network(4), [source], [target], chosen, tmp_path / "told")
    assert same(tmp_path / "bare", tmp_path / "told")  # labels of a target do not matter


def test_what_does_not_fit_is_refused(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    dsbn = replace(options, method="dsbn")
    with pytest.raises(InputError, match="--method dsbn: needs the target's pictures"):
        train_domains(network(4), [source], [], dsbn, tmp_path)
    with pytest.raises(InputError, match="2 test sets for 1 targets"):
        train_domains(network(4), [source], [target], dsbn, tmp_path, tests=[target] * 2)
    assert source.labels is not None
    two = source.labels < 2
    few = Pool(source.images[two], source.labels[two], source.classes)
    with pytest.raises(InputError, match="has 10 outputs, the sources 2 classes"):
        train_domains(network(4), [few], [target], dsbn, tmp_path)
    with pytest.raises(InputError, match="source 0: has no labels"):
        train_domains(network(4), [target, Pool(source.images)][1:], [target], dsbn, tmp_path)
    wide = Pool(nn.functional.pad(target.images, (0, 1)), target.labels, target.classes)
    with pytest.raises(InputError, match="bring all to one shape"):
        train_domains(network(4), [source], [wide], dsbn, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_with_its_own_weights_pictures_and_recipe_only(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    started = replace(options, stop_after=1)
    train_domains(network(4), [source], [target], started, tmp_path)
    with pytest.raises(InputError, match=r"was started with weights [0-9a-f]{16}, not"):
        train_domains(network(4, seed=1), [source], [target], options, tmp_path)
    with pytest.raises(InputError, match="was started with pictures"):
        train_domains(network(4), [source, source], [target], options, tmp_path)
    assert source.labels is not None
    others = Pool(255 - source.images, source.labels, source.classes)
    with pytest.raises(InputError, match=r"was started with pictures \['700 of"):
        train_domains(network(4), [others], [target], options, tmp_path)
    shuffled = Pool(source.images, source.labels.flip(0), source.classes)
    with pytest.raises(InputError, match=r"was started with pictures \['700 of"):
        train_domains(network(4), [shuffled], [target], options, tmp_path)
    opened = network(4)
    other = replace(opened, preprocessing=replace(opened.preprocessing, mean=(0.1,)))
    with pytest.raises(InputError, match="was started with preprocessing"):
        train_domains(other, [source], [target], options, tmp_path)
    with pytest.raises(InputError, match=r"was started with --lr 0\.1, not 0\.2"):
        train_domains(network(4), [source], [target], replace(options, lr=0.2), tmp_path)


@pytest.mark.parametrize("method", ["autodial", "bin", "dwt"])
def test_the_head_alone_learns(
    method: str, options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    """Nothing that the method puts into the norm layers does."""
    chosen = replace(options, method=method, train="head", steps=1)
    train_domains(network(4), [source], [target], chosen, tmp_path)
    start, _ = load_checkpoint(tmp_path / CHECKPOINT)
    chosen = replace(chosen, lr=0.0)
    train_domains(network(4), [source], [target], chosen, tmp_path / "still")
    still, _ = load_checkpoint(tmp_path / "still" / CHECKPOINT)
    changed = {key for key, value in start.items() if not torch.equal(value, still[key])}
    learnt = {key.rpartition("classifier.")[2] for key in changed if key.startswith("network")}
    assert learnt == {"weight", "bias"}
    assert not [key for key in start if key.endswith(".2.momentum_buffer")]


def test_adabn_without_statistics_is_refused_before_it_trains(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="no layer with running statistics"):
        train_domains(plain, [source], [target], replace(options, method="adabn"), tmp_path)


@pytest.mark.parametrize("method", ["ibn", "bin", "dsbn", "dwt"])
def test_a_network_that_was_converted_before_is_not_converted_over(
    method: str, options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    converted = convert_norm(network(4).model, "switchable")
    with pytest.raises(InputError, match=r"no batch norm that could become|is SwitchableNorm"):
        train_domains(converted, [source], [target], replace(options, method=method), tmp_path)


def test_a_baseline_of_other_classes_is_refused_before_the_run(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    arguments = {"num_classes": 3, "channels": 1, "size": 8, "width": 4}
    model = build("small-cnn", arguments, seed=0)
    save_model(tmp_path / "other", model, builder="small-cnn", arguments=arguments)
    chosen = replace(options, baseline=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"--baseline .*other has 3 outputs, the sources 10"):
        train_domains(network(4), [source], [target], chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "told"), [("source", "held-out pictures"), ("adabn", "the training pictures")]
)
def test_what_was_measured_on_is_said(
    method: str, told: str, options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    """A target that the method never looked at is held out, whole as it is."""
    chosen = replace(options, method=method, steps=1)
    train_domains(network(4), [source], [target], chosen, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["measured_on"] == told


def test_a_loss_that_is_not_finite_stops_the_run(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the loss is not finite"):
        train_domains(network(4), [source], [target], replace(options, lr=1e38, steps=9), tmp_path)
    assert not (tmp_path / "model").exists()


_TWO = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
from conftest import digits
from test_train import network
from normapps.adapt.training.options import RecipeOptions
from normapps.adapt.training.train import train_domains
from normapps.engine.distributed import world
folder, options = Path({folder!r}), {options!r}
source, target = digits(0, 200), digits(700, 900, pale=True)
def run(name, stop_after=0):
    chosen = replace(options, stop_after=stop_after)
    return train_domains(network(4), [source], [target], chosen, folder / name)
with world(torch.device("cpu")):
    print(f"folders {{len(run('whole').folders)}}\\n", end="")
    run("parts", 2)
    run("parts")
"""


def test_two_processes_train_one_network_and_resume_it(
    options: RecipeOptions, source: Pool, target: Pool, tmp_path: Path
) -> None:
    """torchrun with gloo: gradients averaged, files of the first process only, exact resume."""
    chosen = replace(options, method="dsbn", steps=4, stage_steps=2, lr=0.05)
    script = tmp_path / "script.py"
    here = str(Path(__file__).parent)
    script.write_text(_TWO.format(here=here, options=chosen, folder=str(tmp_path)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["folders 0", "folders 1"]
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == 4
    few = [Pool(each.images[:200], first(each), each.classes) for each in (source, target)]
    train_domains(network(4), few[:1], few[1:], chosen, tmp_path / "alone")
    assert not same(tmp_path / "alone", tmp_path / "whole")
