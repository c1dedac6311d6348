"""`normapps quantize` from end to end: digits, odd cases, a fresh process without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import normapps
from normapps.cli.main import main
from normapps.models.folder import load_model, read_manifest, save_model
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn
from normapps.quant.options import QuantizeOptions
from normapps.quant.quantize import quantize_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Run = Callable[..., tuple[str, str]]

HERE = Path(__file__).parent
FILES = {"model.onnx", "model.json", "report.json", "report.html"}
SHAPE = {"num_classes": 10, "channels": 1, "size": 8, "width": 8}
BRIEF = ("--device", "cpu", "--no-latency")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""
    monkeypatch.syspath_prepend(str(HERE))

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", "quantize", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


def _refused(run: Run, *words: object, code: int = 1) -> str:
    """The one line that a command ends with."""
    _, errors = run(*words, code=code)
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 200 digits."""
    found = load_digits()
    place = tmp_path_factory.mktemp("digits")
    pixels = (found.images[-200:] * 15.9).astype(np.uint8)
    for i, (each, label) in enumerate(zip(pixels, found.target[-200:], strict=True)):
        file = place / str(label) / f"{i:04}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(each).save(file)
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a small network trained on the other digits."""
    found = load_digits()
    torch.manual_seed(0)
    model = small_cnn(**SHAPE)
    x = torch.from_numpy((found.images[:-200] * 15.9).astype(np.uint8)).unsqueeze(1)
    x = (x.float() / 255 - 0.5) / 0.5
    y = torch.from_numpy(found.target[:-200])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        chosen = torch.randint(len(x), (64,))
        loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = tmp_path_factory.mktemp("trained") / "net"
    save_model(
        out,
        model.eval(),
        builder="small-cnn",
        arguments=SHAPE,
        preprocessing=Preprocessing.of(model).to_json(),
        history=[{"weights": "trained on digits"}],
    )
    return out


def _report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text()))


@pytest.fixture(scope="module")
def quantized(trained: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the network, timed and judged."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    options = QuantizeOptions(data=str(digits), calibration=50, device="cpu")
    said: list[str] = []
    report = quantize_model(str(trained), out, options, said.append)
    assert report.folder == out
    assert f"{digits}: 50 pictures calibrate, 150 others judge" in said
    return out


def test_an_int8_network_is_judged_beside_the_float_one(quantized: Path) -> None:
    assert {file.name for file in quantized.iterdir()} == FILES
    report = _report(quantized)
    assert report["int8_layers"] == [6, 6]
    assert report["steps"]["fold"]["folded"] == {"after": 5}
    assert report["bytes"]["int8"] == (quantized / "model.onnx").stat().st_size
    assert report["bytes"]["int8"] < 0.6 * report["bytes"]["onnxruntime"]
    for size in ("1", "8"):
        assert set(report["latency"][size]["seconds"]) == {"torch", "onnxruntime", "int8"}
    stage = report["stages"]["int8"]
    assert stage["pictures"] == 150
    assert stage["same"]["mean"] > 0.95
    assert 0 < stage["logit_error"] < 0.2
    layers = report["layers"].values()
    assert all(each["int8"] and 0 < each["error"] < 0.2 for each in layers)
    assert not report["float_operators"]
    assert report["mixed"] is None
    accuracies = [report["stages"][name]["accuracy"]["mean"] for name in ("float", "int8")]
    assert accuracies[0] > 0.85
    assert abs(accuracies[0] - accuracies[1]) < 0.05
    manifest = json.loads((quantized / "model.json").read_text())
    assert manifest["verdict"] == report["verdict"]
    assert manifest["source"]["builder"] == "small-cnn"
    assert manifest["options"]["per_channel"] is True
    names = [set(each) & {"weights", "quantized"} for each in manifest["history"]]
    assert names == [{"weights"}, {"quantized"}]
    assert (manifest["num_classes"], manifest["input_size"]) == (10, [1, 8, 8])
    with pytest.raises(normapps.InputError, match="is an ONNX model"):
        normapps.load_model(quantized)


def test_it_answers_without_torch(
    quantized: Path, trained: Path, digits: Path, tmp_path: Path
) -> None:
    files = sorted(digits.rglob("*.png"))
    code = (
        "import sys, numpy, normapps\n"
        f"model = normapps.OnnxModel({str(quantized)!r})\n"
        f"x = model.prepare({[str(file) for file in files]!r})\n"
        f"numpy.save({str(tmp_path / 'logits.npy')!r}, model.run(x))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    answers = np.load(tmp_path / "logits.npy").argmax(1)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])[:, None]
    with torch.no_grad():
        x = torch.from_numpy(pixels).float().div(255).sub(0.5).div(0.5)
        wanted = load_model(trained)(x).argmax(1).numpy()
    assert (answers == wanted).mean() > 0.95


def test_without_pictures_the_same_file_comes_every_time(
    run: Run, trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    _, errors = run(trained, "-o", out, "--data-free", "--data", digits, *BRIEF)
    assert "200 pictures judge" in errors
    report = _report(out)
    assert report["ranges_from"] == "the batch norms' statistics"
    assert report["stages"]["int8"]["same"]["mean"] > 0.9
    monkeypatch.setattr("normapps.quant.quantize.has_vnni", lambda: False)
    shown, errors = run(trained, "-o", alone, "--data-free", *BRIEF)
    assert "The answers were not judged: no pictures were given" in " ".join(shown.split())
    assert _report(alone)["verdict"] == "undecided"
    assert (alone / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert "warning: this processor has no VNNI" in errors
    assert "--reduce-range" in _report(alone)["warnings"][0]


def test_images_are_distilled_for_the_ranges(
    run: Run, trained: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(trained, "-o", out, "--data-free", "--distill", 8, "--data", digits, *BRIEF)
    report = _report(out)
    assert report["ranges_from"] == "8 images distilled from the batch norms (min-max)"
    assert report["stages"]["int8"]["same"]["mean"] > 0.9


def test_all_steps_are_told_and_an_unreadable_picture_is_named(
    run: Run, trained: Path, digits: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mixed"
    for file in sorted(digits.rglob("*.png"))[::5]:
        copy = place / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken = sorted(place.rglob("*.png"))[0]
    broken.write_bytes(b"no picture")
    out = tmp_path / "out"
    words = ("--data", place, "--finetune", 2, "--bias-correction", "--ranges", "mse")
    shown, errors = run(trained, "-o", out, *words, *BRIEF, "--reduce-range", "--json", code=1)
    assert errors.splitlines()[-1] == f"error: {json.loads(shown)['failed'][0]}"
    assert broken.name in errors.splitlines()[-1]
    report = _report(out)
    assert report == json.loads(shown)
    assert "19 pictures calibrate, 20 others judge" in report["data"]
    assert list(report["steps"]) == ["fold", "bias correction", "finetuning"]
    assert len(report["steps"]["finetuning"]["losses"]) == 2
    assert len(report["steps"]["bias correction"]["shifts"]) == 6
    assert report["ranges_from"] == "19 pictures (mse)"


@pytest.fixture(scope="module")
def spread(trained: Path) -> Path:
    """The same function with a channel a thousand times as wide as its neighbours."""
    model, manifest = load_model(trained), read_manifest(trained)
    norm, reader = (model.get_submodule(f"features.{name}") for name in ("2.norm", "3.conv"))
    with torch.no_grad():
        norm.get_parameter("weight")[0] *= 1000
        norm.get_parameter("bias")[0] *= 1000
        reader.get_parameter("weight")[:, 0] /= 1000
    folder = trained.with_name("spread")
    return save_model(
        folder,
        model,
        builder=manifest.builder,
        arguments=manifest.arguments,
        preprocessing=manifest.preprocessing,
        history=manifest.history,
    )


def test_what_one_scale_crushes_stays_float_or_is_equalized(
    run: Run, spread: Path, digits: Path, tmp_path: Path
) -> None:
    words = (spread, "--data", digits, "--calibration", 50, "--per-tensor", *BRIEF)
    plain = ("--no-equalize", "--no-bias-correction")
    found = {}
    for name, more in {
        "naive": (*plain, "--no-sensitivity"),
        "mixed": (*plain, "--mixed", "--max-drop", 0.02),
        "equalized": ("--no-sensitivity",),
    }.items():
        run(*words, "-o", tmp_path / name, *more)
        found[name] = _report(tmp_path / name)
    errors = {name: each["stages"]["int8"]["logit_error"] for name, each in found.items()}
    assert errors["naive"] > 0.3
    assert errors["mixed"] < 0.15
    assert errors["equalized"] < 0.15
    mixed = found["mixed"]
    kept = [each["module"] for each in mixed["layers"].values() if not each["int8"]]
    assert "features.2.conv" in kept
    assert mixed["int8_layers"] == [6 - len(kept), 6]
    assert len(mixed["mixed"]["float"]) == len(kept) == len(mixed["float_operators"])
    assert mixed["mixed"]["loss"] <= 0.02
    assert list(found["equalized"]["steps"]) == [
        "fold",
        "equalization",
        "absorption",
        "bias correction",
    ]
    assert found["equalized"]["steps"]["equalization"]["factors"]["features.2.conv"] > 10


def test_random_weights_are_said_and_not_recommended(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, errors = run("test_resnet", "-o", out, "--data-free", "--size", 32, *BRIEF)
    assert "random weights (seed 0): give --pretrained or --checkpoint" in errors
    assert _report(out)["verdict"] == "not recommended"
    assert "random weights" in _report(out)["reason"]


def test_what_cannot_be_quantized_is_refused_in_a_line(
    run: Run, trained: Path, digits: Path, tmp_path: Path
) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    line = _refused(run, trained, "-o", out, "--data", empty, *BRIEF)
    assert f"{empty}: holds no picture" in line
    one = tmp_path / "one.png"
    Image.new("L", (8, 8)).save(one)
    assert "has one picture" in _refused(run, trained, "-o", out, "--data", one, *BRIEF)
    data = ("-o", out, "--data", digits, "--limit", 4, *BRIEF)
    assert "unknown model" in _refused(run, "small-cnn-of-nobody", *data)
    line = _refused(run, "adapting:bessel", *data, "--size", 8)
    assert "ONNX has no operator for prims.bessel_j0" in line
    line = _refused(run, "adapting:pools", *data, "--size", 8)
    assert "factory adapting:pools: has no convolution or linear layer" in line
    assert "normapps-" not in line
    assert not out.exists()


def test_options_that_contradict_each_other_are_wrong_usage(run: Run, tmp_path: Path) -> None:
    for more in ((), ("--data", "d", "--distill", 4), ("--data-free", "--limit", 5)):
        line = _refused(run, "adapting:digits", "-o", tmp_path / "out", *more, code=2)
        assert "--data" in line


def test_a_folder_in_the_way_is_refused_before_any_work(
    run: Run, quantized: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(quantized, out)
    (out / "mine.txt").write_text("mine")
    assert "exists already" in _refused(run, "no-such-model", "-o", out, "--data-free")
    run(trained, "-o", out, "--data-free", *BRIEF, "--overwrite", "--per-tensor", "--no-equalize")
    assert (out / "model.onnx").read_bytes() != (quantized / "model.onnx").read_bytes()
    assert {file.name for file in out.iterdir()} == FILES | {"mine.txt"}
    line = _refused(run, trained, "-o", trained, "--data-free", *BRIEF, "--overwrite")
    assert "is no ONNX folder, and so is not replaced" in line
    assert "is an ONNX model" in _refused(run, out, "-o", tmp_path / "x", "--data-free", *BRIEF)


def test_a_missing_extra_is_said_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = _refused(run, "no-such-model", "-o", tmp_path / "out", "--data-free", *BRIEF)
    assert "install normapps[deploy]" in line


def test_what_answers_without_logits_is_not_judged(run: Run, digits: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "out", "--data", digits, "--limit", 8, "--size", 8, *BRIEF)
    shown, _ = run("adapting:boxed", *words)
    assert "The answers were not judged: the model returns" in " ".join(shown.split())


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['normapps', 'quantize', '--help']\n"
        "from normapps.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert "--per-channel / --per-tensor" in done.stdout


def test_other_pictures_judge_and_all_of_the_data_may_calibrate(
    run: Run, trained: Path, digits: Path, tmp_path: Path
) -> None:
    """Classes are numbered by name: fives and nines alone are judged as fives and nines."""
    rest, judges = tmp_path / "rest.txt", tmp_path / "judges.csv"
    files = sorted(digits.rglob("*.png"))
    wanted = [file for file in files if file.parent.name in ("5", "9")][::2]
    names = {file: f"digit {file.parent.name}" for file in files}
    lines = [f"{file}\t{names[file]}\n" for file in files if file not in wanted]
    rest.write_text("".join(lines))
    judges.write_text("".join(f"{file},{names[file]}\n" for file in wanted))
    words = ("--data", rest, "--test", judges, "--no-sensitivity")
    _, errors = run(trained, "-o", tmp_path / "out", *words, *BRIEF)
    many = min(128, len(lines))
    assert f"{many} pictures calibrate; {judges}: {len(wanted)} pictures judge" in errors
    stage = _report(tmp_path / "out")["stages"]["float"]
    assert stage["pictures"] == len(wanted)
    assert stage["accuracy"]["mean"] > 0.8
    judges.write_text(f"{wanted[0]} digit x\n{wanted[1]} digit 9\n")
    said = _refused(run, trained, "-o", tmp_path / "new", *words, *BRIEF)
    assert "has no class 'digit x'; give both the same classes" in said
    judges.write_text(f"{wanted[0]}\n{wanted[1]}\n")
    run(trained, "-o", tmp_path / "new", *words, *BRIEF)
    assert "has no labels" in _report(tmp_path / "new")["without_accuracy"]
