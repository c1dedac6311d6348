"""`normapps slim train`, `finetune` and `scratch`, from folders of pictures to model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from normapps.cli import slim_train
from normapps.errors import InputError, UsageError
from normapps.graph import trace_channels
from normapps.graph.surgery import slim_model
from normapps.models.folder import load_model, save_model
from normapps.models.load import open_model

MODEL = "normapps.models.small:small_cnn"
FEW = ["--size", "8", "--batch-size", "4", "--steps", "4", "--warmup", "0", "--device", "cpu"]

app = typer.Typer()
app.command("train")(slim_train.train)
app.command("finetune")(slim_train.finetune)
app.command("scratch")(slim_train.scratch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits 0, 1 and 2 as PNG files in class folders, 10 each."""
    from sklearn.datasets import load_digits

    found, root = load_digits(), tmp_path_factory.mktemp("digits")
    for label in range(3):
        (root / f"digit{label}").mkdir()
        for row in np.flatnonzero(found.target == label)[:10]:
            pixels = (found.images[row] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"digit{label}" / f"{row}.png")
    return root


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_train_prune_finetune_scratch(pictures: Path, tmp_path: Path) -> None:
    """The chain: each command's model folder is the next one's model."""
    sparse, cut = tmp_path / "sparse", tmp_path / "cut"
    given = ("train", MODEL, pictures, "-o", sparse, "--strength", "0.1", *FEW)
    code, said = run(*given, "--stop-after", "1")
    assert code == 0
    assert "stopped before the end" in said
    assert "classifier starts anew with 3 outputs" in said
    code, said = run(*given)
    assert code == 0
    assert str(sparse / "model") in said
    assert "% of the scales are 0" in said
    opened = open_model(sparse / "model")
    assert opened.preprocessing.size == (8, 8)
    assert opened.weights == "trained by slim train"
    assert not opened.is_random
    assert opened.history[-1]["classes"] == ["digit0", "digit1", "digit2"]
    _cut(sparse / "model", cut)
    code, said = run("finetune", cut, pictures, "-o", tmp_path / "fine", "--json", *FEW[2:])
    assert code == 0
    told = json.loads(said[said.index("{") :])
    assert told["finished"] is True
    assert {"accuracy", "verdict", "reason"} <= told.keys()
    code, said = run(
        "scratch", cut, pictures, "-o", tmp_path / "new", *FEW[2:], "--budget", "flops"
    )
    assert code == 0
    assert "the given network" in said
    shapes = [
        {k: v.shape for k, v in load_model(folder).state_dict().items()}
        for folder in (cut, tmp_path / "fine" / "model", tmp_path / "new" / "model")
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    for name in ("fine", "new", "sparse"):
        assert (tmp_path / name / "report.html").exists()
        assert (tmp_path / name / "metrics.jsonl").exists()


def _cut(folder: Path, out: Path) -> None:
    """Every other channel that can go is cut out."""
    opened = open_model(folder)
    graph = trace_channels(opened.model, torch.zeros(1, 3, 8, 8))
    keep = ~graph.free()
    keep[::2] = True
    model, edits = slim_model(opened.model, graph, keep)
    save_model(
        out, model, builder="slimmed", arguments={"base": dict(opened.source), **edits.arguments()},
        preprocessing=opened.preprocessing.to_json(), history=opened.history,
    )  # fmt: skip


def test_the_papers_flags(pictures: Path, tmp_path: Path) -> None:
    code, _ = run("train", MODEL, pictures, "-o", tmp_path, "-sr", "--s", "1e-3", *FEW)
    assert code == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["penalty"], told["strength"]) == ("subgradient", 1e-3)


def test_what_is_wrong_is_said_in_one_line(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and no training run"):
        run("train", MODEL, pictures, "-o", tmp_path, *FEW)
    with pytest.raises(InputError, match="has no labels"):
        run("train", MODEL, pictures / "digit0", "-o", tmp_path / "r", *FEW)
    with pytest.raises(InputError, match="no batch norm with a scale"):
        run("train", "timm/convnext_atto", pictures, "-o", tmp_path / "r", *FEW)
    with pytest.raises(UsageError, match="-sr is --penalty subgradient"):
        run("train", MODEL, pictures, "-o", tmp_path / "r", "-sr", "--penalty", "polarization")
    assert not (tmp_path / "r").exists()


def test_a_checkpoint_of_another_model_and_other_options_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    run("train", MODEL, pictures, "-o", tmp_path / "run", *FEW)
    with pytest.raises(InputError, match=r"was started with --strength 0\.0001, not 0\.5"):
        run("train", MODEL, pictures, "-o", tmp_path / "run", *FEW, "--strength", "0.5")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    with pytest.raises(InputError, match="does not fit"):
        run(
            "train", "timm/resnet10t", pictures, "-o", tmp_path / "r", "--checkpoint", weights, *FEW
        )
    few = tmp_path / "few"
    for name in ("digit0", "digit1"):
        shutil.copytree(pictures / name, few / name)
    with pytest.raises(InputError, match="was trained on the classes digit0, digit1, digit2"):
        run("finetune", tmp_path / "run" / "model", few, "-o", tmp_path / "f", *FEW[2:])
    code, _ = run(
        "train", MODEL, pictures, "-o", tmp_path / "run", *FEW, "--s", "0.5", "--overwrite"
    )
    assert code == 0
