"""`normapps adapt universal`: digits and their halves as tasks of one frozen network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from normapps.adapt.universal import UniversalNetwork
from normapps.adapt.universal_job import adapt_universal
from normapps.adapt.universal_options import UniversalOptions
from normapps.cli.adapt import app
from normapps.errors import InputError, UsageError
from normapps.models.load import load_model, open_model

MODEL = "normapps.models.small:small_cnn"
FEW = ["--size", "8", "--no-resize", "--batch-size", "32", "--warmup", "0", "--device", "cpu"]
FEW += ["--flip", "0", "--crop", "1", "--jitter", "0", "--lr", "0.05"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Class folders: which of five digits, and whether one is round."""
    root, found = tmp_path_factory.mktemp("tasks"), load_digits()
    kept = [i for i in range(len(found.target)) if found.target[i] < 5][:250]
    for i in kept:
        pixels = np.repeat((found.images[i] * 15).astype(np.uint8)[..., None], 3, 2)
        digit = int(found.target[i])
        kind = "round" if digit in (0, 2, 3) else "straight"
        for place in (root / "digits" / str(digit), root / "shapes" / kind):
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return root / "digits", root / "shapes"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["universal", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_tasks_share_a_network_and_cost_little(places: tuple[Path, Path], tmp_path: Path) -> None:
    digits, shapes = places
    out = tmp_path / "run"
    given = (MODEL, "--task", f"digits={digits}", "-o", out, "--steps", "60", *FEW)
    code, said = run(*given, "--stop-after", "2")
    assert code == 0
    assert "stopped before the end" in said
    assert run(*given)[0] == 0
    first = (out / "digits" / "model" / "model.safetensors").read_bytes()
    code, said = run(*given, "--task", f"shapes={shapes}")  # a task more
    assert code == 0
    assert "parameters of its own (" in said
    assert "undecided: There is nothing to compare with" in said
    assert (out / "digits" / "model" / "model.safetensors").read_bytes() == first

    told = json.loads((out / "report.json").read_text())
    accuracies = {each["name"]: each["accuracy"]["mean"] for each in told["tasks"]}
    assert accuracies["digits"] > 0.6  # of five
    assert accuracies["shapes"] > 0.7
    cost = told["tasks"][0]["cost"]
    assert told["tasks"][0]["own_parameters"] == cost["norm"] + cost["head"]
    assert told["tasks"][0]["own_parameters"] < 0.05 * cost["shared"]

    models = {name: load_model(out / name / "model") for name in ("digits", "shapes")}
    network = UniversalNetwork(models).eval()  # everything else is the same to the bit
    x = torch.rand(4, 3, 8, 8)
    both = network(x, torch.tensor([0, 1, 1, 0]))
    assert {name: tuple(each.shape) for name, each in both.items()} == {
        "digits": (2, 5),
        "shapes": (2, 2),
    }
    assert open_model(out / "shapes" / "model").history[-1]["classes"] == ["round", "straight"]


def test_parts_and_a_baseline(places: tuple[Path, Path], tmp_path: Path) -> None:
    digits, _ = places
    task = (MODEL, "--task", f"digits={digits}", "--test", f"digits={digits}", "--steps", "20")
    before = open_model(MODEL).model.state_dict()
    for part in ("all", "head"):
        code, _ = run(*task, "-o", tmp_path / part, "--train", part, *FEW)
        assert code == 0
    after = load_model(tmp_path / "head" / "digits" / "model").state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"classifier.weight", "classifier.bias"}  # not even the statistics
    code, said = run(*task, "-o", tmp_path / "norm", "--baseline", tmp_path / "all", "--json", *FEW)
    assert code == 0
    told = json.loads(said[said.index("{") :])
    assert "digits differs most from the baseline" in told["reason"]
    assert told["finished"]


def test_tasks_on_layer_norms_are_networks_of_their_own(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    """There are no banks of layer norms, so one network of all tasks is not made."""
    options = UniversalOptions(
        task=(f"digits={places[0]}",), steps=1, batch_size=4, warmup=0, device="cpu", limit=100
    )
    found = adapt_universal("test_vit", tmp_path, options, say=lambda line: None)
    assert found.network is None
    assert found.verdict is not None
    assert (tmp_path / "report.json").exists()
    told = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert told["measured_on"] == "held-out pictures"


_TWO = """
from pathlib import Path
from normapps.adapt.universal_job import adapt_universal
from normapps.adapt.universal_options import UniversalOptions
options = UniversalOptions(
    task=("digits={digits}", "shapes={shapes}"), steps=2, stop_after=1, batch_size=4, warmup=0,
    device="cpu", size=8,
)
found = adapt_universal({model!r}, Path({out!r}), options, say=lambda line: None)
print(f"tasks {{len(found.tasks)}}\\n", end="")
"""


def test_two_processes_stop_at_the_same_task(places: tuple[Path, Path], tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "run"
    digits, shapes = places
    script.write_text(_TWO.format(digits=digits, shapes=shapes, model=MODEL, out=str(out)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tasks 0"] * 2
    assert not (out / "shapes").exists()


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="--task is missing"):
        UniversalOptions()
    with pytest.raises(InputError, match=r"--task digits: must be NAME=PLACE"):
        UniversalOptions(task=("digits",))
    with pytest.raises(InputError, match=r"--task \.\./x=a: must be NAME=PLACE"):
        UniversalOptions(task=("../x=a",))
    with pytest.raises(InputError, match="--task a: is given twice"):
        UniversalOptions(task=("a=x", "a=y"))
    with pytest.raises(UsageError, match=r"--test b=…: there is no --task b"):
        UniversalOptions(task=("a=x",), test=("b=y",))
