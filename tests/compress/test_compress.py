"""The chain from end to end on digits: what is written, resumed, left out and refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normapps.compress import chain
from normapps.compress.compress import CompressReport, compress_model
from normapps.compress.options import CompressOptions
from normapps.errors import InputError, NormappsError
from normapps.models.folder import load_model, save_model
from normapps.models.onnx_folder import OnnxModel

FEW = CompressOptions(
    sparse_steps=60,
    finetune_steps=40,
    target_params=0.7,
    batch_size=16,
    int8=False,
    latency=False,
    device="cpu",
)
NONE = replace(FEW, sparse_steps=0, finetune_steps=0)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Time as few rounds as there may be, and draw no plots, of which others are the tests."""
    patch.setattr("normapps.measure.latency._MOST", 5)
    patch.setattr("normapps.measure.report.can_plot", lambda: False)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def run(spec: Path | str, data: Path, out: Path, options: CompressOptions) -> CompressReport:
    return compress_model(str(spec), str(data), out, options, say=lambda _: None)


def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text()))


def weights(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("model.safet*"))
    }


@pytest.fixture(scope="module")
def whole(digits: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all stages make."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out, said = tmp_path_factory.mktemp("whole") / "out", list[str]()
    options = replace(FEW, int8=True, latency=True)
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        report = compress_model(str(trained), str(digits), out, options, said.append)
    assert "90 pictures of 4 classes make the network, 30 judge it" in said
    assert report.result == out / "int8"
    return out


def test_from_a_network_to_an_int8_file(whole: Path, digits: Path) -> None:
    out = whole
    names = ["given", "sparse", "pruned", "finetuned", "int8"]
    facts = told(out)
    assert list(facts["stages"]) == names
    stages = [facts["stages"][name] for name in names]
    assert all(each["accuracy"]["count"] == each["pictures"] == 30 for each in stages)
    assert stages[0]["accuracy"]["mean"] > 0.85
    assert stages[4]["accuracy"]["mean"] > 0.7
    parameters = [each["parameters"] for each in stages]
    assert parameters[0] == parameters[1] > parameters[2] == parameters[3] == parameters[4]
    assert parameters[2] / parameters[0] == pytest.approx(0.7, abs=0.05)
    assert stages[4]["bytes"] == (out / "int8" / "model.onnx").stat().st_size
    assert stages[4]["macs"] == stages[2]["macs"] < stages[0]["macs"]
    assert set(facts["latency"]) == {"1", "8"}
    assert set(facts["latency"]["1"]["seconds"]) == {"torch", "onnxruntime", "int8"}
    assert set(facts["latency"]["1"]["speedup"]) == {"torch", "onnxruntime"}
    for each in names[1:]:
        assert (out / facts["stages"][each]["report"]).is_file()
        assert facts["stages"][each]["verdict"]
    page = (out / "report.html").read_text()
    assert facts["reason"] in page.replace("&#x27;", "'")
    model = OnnxModel(out / "int8")
    file = next((digits / "digit 2").glob("*.png"))
    assert model.run(model.prepare([file])).shape == (1, 4)
    # what judges does nothing else
    judges = set((out / "pictures" / "test.txt").read_text().split("\n")) - {""}
    makes = set((out / "pictures" / "train.txt").read_text().split("\n")) - {""}
    assert (len(judges), len(makes), judges & makes) == (30, 90, set())
    for name in ("sparse", "finetuned"):
        assert json.loads((out / name / "options.json").read_text())["test"].endswith("test.txt")
    quantized = json.loads((out / "int8" / "model.json").read_text())["options"]
    assert quantized["data"].endswith("pictures/train.txt")
    assert quantized["test"].endswith("pictures/test.txt")
    pruned = json.loads((out / "pruned" / "model.json").read_text())["history"][-1]
    assert pruned["data"].endswith("pictures/train.txt")


def test_the_accuracies_are_those_of_the_files(whole: Path, digits: Path) -> None:
    """Counted anew, picture by picture."""
    from normapps.data.pictures import Pictures
    from normapps.models.load import open_model

    facts = told(whole)
    folders = {"sparse": "sparse/model", "pruned": "pruned", "finetuned": "finetuned/model"}
    for name, folder in folders.items():
        opened = open_model(whole / folder)
        test = Pictures(whole / "pictures" / "test.txt", opened.preprocessing)
        right = 0
        with torch.no_grad():
            for i in range(len(test)):
                image, label = test[i]
                assert test.name(i).split("/")[-2] == f"digit {label}"
                right += int(opened.model(image[None]).argmax()) == label
        assert facts["stages"][name]["accuracy"]["mean"] == pytest.approx(right / 30)


def test_a_call_that_was_cut_off_goes_on_whether_within_a_stage_or_between_two(
    whole: Path, digits: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times: in either training, and before what follows them; the bytes are the same."""
    from normapps.slim.training import SupervisedTrainer

    step, out = SupervisedTrainer.step, tmp_path / "out"
    taken: list[int] = []

    def interrupted(self: SupervisedTrainer, number: int) -> dict[str, float]:
        taken.append(number)
        if len(taken) in (23, 60 + 12):
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedTrainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(trained, digits, out, FEW)
    assert not (out / "pruned").exists()
    for stage in ("pruned", "finetuned"):
        with monkeypatch.context() as patch:
            patch.setitem(chain._RUN, stage, cut_off)
            with pytest.raises(KeyboardInterrupt):
                run(trained, digits, out, FEW)
        assert not (out / stage).exists()
    before = (out / "sparse" / "report.html").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        run(trained, digits, out, FEW)
    assert not (out / "report.json").exists()
    run(trained, digits, out, replace(FEW, device="auto"))
    assert taken == [*range(60), *range(40)]
    assert (out / "sparse" / "report.html").stat().st_mtime_ns == before
    assert weights(out) == weights(whole)
    accuracies = [told(each)["stages"]["finetuned"]["accuracy"] for each in (out, whole)]
    assert accuracies[0] == accuracies[1]


def test_what_comes_after_a_stage_that_is_done_anew_is_done_anew(
    whole: Path, digits: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(trained, digits, out, replace(NONE, finetune_steps=3))
    shutil.rmtree(out / "pruned")
    stale = out / "finetuned" / "stale"
    stale.write_text("")
    run(trained, digits, out, replace(NONE, finetune_steps=3))
    assert not stale.exists()
    assert (out / "finetuned" / "model" / "model.json").is_file()


def test_without_labels_nothing_is_trained_and_that_is_said(
    digits: Path, trained: Path, tmp_path: Path
) -> None:
    place, said = tmp_path / "pictures", list[str]()
    place.mkdir()
    for number, file in enumerate(sorted(digits.rglob("*.png"))):
        shutil.copy(file, place / f"{number}.png")
    options = replace(FEW, target_params=None, target_flops=0.9)
    out = tmp_path / "out"
    compress_model(str(trained), str(place), out, options, said.append)
    assert any(line.startswith("Nothing is trained with labels") for line in said)
    facts = told(out)
    assert list(facts["stages"]) == ["given", "pruned"]
    assert "accuracy" not in facts["stages"]["pruned"]
    assert facts["stages"]["pruned"]["same"]["count"] == 30
    assert facts["stages"]["pruned"]["macs"] <= 0.9 * facts["stages"]["given"]["macs"]
    assert "has no labels" in facts["without_accuracy"]
    assert not (out / "sparse").exists()


def test_another_number_of_classes_starts_the_classifier_anew(
    digits: Path, trained: Path, tmp_path: Path
) -> None:
    for name in ("digit 0", "digit 1"):
        shutil.copytree(digits / name, tmp_path / "two" / name)
    said: list[str] = []
    options = replace(FEW, hold_out=2, sparse_steps=20, finetune_steps=5)
    data, out = str(tmp_path / "two"), tmp_path / "out"
    compress_model(str(trained), data, out, options, said.append)
    assert any("its classifier starts anew with 2 outputs" in line for line in said)
    facts = told(out)
    assert facts["base"] == "sparse"
    assert "accuracy" not in facts["stages"]["given"]
    assert facts["verdict"] != "recommended"
    assert "has 4 outputs and not these 2 classes" in facts["reason"]
    assert facts["stages"]["finetuned"]["difference"]["count"] == 30
    with pytest.raises(InputError, match="only sparse training makes a new classifier"):
        run(trained, tmp_path / "two", tmp_path / "x", replace(options, sparse_steps=0))
    with pytest.raises(InputError, match=r"--baseline .*: has 4 outputs, not 2"):
        run(trained, tmp_path / "two", tmp_path / "x", replace(options, baseline=str(trained)))
    assert not (tmp_path / "x").exists()
    options = replace(options, baseline=str(out / "finetuned" / "model"), latency=True)
    run(trained, tmp_path / "two", tmp_path / "x", options)
    facts = told(tmp_path / "x")
    assert facts["base"] == "baseline"
    assert list(facts["stages"])[:2] == ["baseline", "given"]
    assert facts["stages"]["finetuned"]["difference"]["mean"] == 0  # the same run again
    assert set(facts["latency"]["1"]["seconds"]) == {"base", "slimmed"}


def test_a_network_of_other_classes_is_not_what_the_result_is_compared_with(
    digits: Path, trained: Path, tmp_path: Path
) -> None:
    values = json.loads((trained / "model.json").read_text())
    history = [{"trained": "elsewhere", "classes": ["cat", "cow", "dog", "emu"]}]
    rest = {key: values[key] for key in ("builder", "arguments", "preprocessing")}
    net = save_model(tmp_path / "net", load_model(trained), **rest, history=history)
    with pytest.raises(InputError, match="was trained on the classes cat, cow, dog, emu, the pic"):
        run(net, digits, tmp_path / "out", replace(FEW, sparse_steps=0))
    run(net, digits, tmp_path / "out", replace(FEW, sparse_steps=2, finetune_steps=0))
    facts = told(tmp_path / "out")
    assert facts["base"] == "sparse"
    assert "tells cat, cow, dog, emu apart and not digit 0, digit 1" in facts["reason"]
    run(net, digits, tmp_path / "none", NONE)
    assert (
        "has the class 'digit 0', which is none of" in told(tmp_path / "none")["without_accuracy"]
    )


def test_other_options_models_and_pictures_are_refused_and_overwrite_begins_anew(
    digits: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(trained, digits, out, NONE)
    with pytest.raises(InputError, match=r"started with --target-params 0\.7, not 0\.5; give"):
        run(trained, digits, out, replace(NONE, target_params=0.5))
    with pytest.raises(InputError, match=r"was started with MODEL .*, not small; give that again"):
        run("small", digits, out, NONE)
    with pytest.raises(InputError, match=r"was started with DATA .*; give that again"):
        run(trained, digits / "digit 0", out, NONE)
    net = tmp_path / "net"
    shutil.copytree(trained, net)
    run(net, digits, tmp_path / "mine", NONE)
    other = load_model(net)
    next(iter(other.parameters())).data.mul_(2)
    values = json.loads((net / "model.json").read_text())
    save_model(net, other, builder=values["builder"], arguments=values["arguments"], overwrite=True)
    with pytest.raises(InputError, match="was started with other weights of"):
        run(net, digits, tmp_path / "mine", NONE)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="unknown model"):
        run("smal-cnm", digits, out, replace(NONE, overwrite=True))
    assert (out / "pruned" / "model.json").exists()  # a slip loses nothing
    run(trained, digits, out, replace(NONE, target_params=0.5, overwrite=True))
    assert (out / "notes.txt").read_text() == "mine"
    share = told(out)["stages"]["pruned"]["parameters"] / told(out)["stages"]["given"]["parameters"]
    assert share == pytest.approx(0.5, abs=0.05)


class Bare(nn.Module):
    """A classifier without any norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


def make_bare() -> nn.Module:
    return Bare()


def make_regressor() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Name a factory of this file as a MODEL."""
    import sys

    monkeypatch.setitem(sys.modules, "compress_models", sys.modules[__name__])
    return lambda name: f"compress_models:{name}"


def test_what_cannot_be_is_refused_before_anything_is_written(
    digits: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    importable: Callable[[str], str],
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="has no batch norm with scales"):
        run(importable("make_bare"), digits, out, FEW)
    with pytest.raises(InputError, match="is no classifier"):
        run(importable("make_regressor"), digits, out, replace(FEW, size=8))
    with pytest.raises(InputError, match="no such folder, archive, list or picture"):
        run(trained, tmp_path / "none", out, FEW)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        run(trained, tmp_path / "empty", out, FEW)
    assert not out.exists()

    def missing() -> None:
        raise NormappsError("ONNX needs the package onnx: install normapps[deploy]")

    monkeypatch.setattr("normapps.compress.compress.check_deploy", missing)
    with pytest.raises(NormappsError, match=r"install normapps\[deploy\]"):
        run(trained, digits, out, replace(FEW, int8=True))
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no compression"):
        run(trained, digits, out, replace(FEW, overwrite=True))
    with pytest.raises(InputError, match="is a file, not a folder"):
        run(trained, digits, out / "thesis.txt", FEW)
