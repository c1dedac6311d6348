"""`normapps adapt run` and `undo` from end to end, on handwritten digits and odd cases."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from normapps.adapt.online.guard import Guard
from normapps.cli.main import main
from normapps.files import sha256
from normapps.models.load import open_model
from normapps.norm.population.measuring import measure
from normapps.norm.population.statistics import Population

Run = Callable[..., tuple[str, str]]

SHOWN = ("--size", 8, "--no-resize", "--mean", 0.5, "--std", 0.5, "--device", "cpu")
"""What digits go through."""

FILES = {
    *("model.json", "model.safetensors", "undo.safetensors"),
    *("population.safetensors", "report.json", "report.html"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", "adapt", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


def _write(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    for i, (each, label) in enumerate(zip(pixels, labels, strict=True)):
        file = folder / str(label) / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(file)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 200 digits as they are, `clean`, and as a bad scanner sees them, `faint`."""
    found = load_digits()
    pixels = (found.images[-200:] * 15.9).astype(np.uint8)
    place = tmp_path_factory.mktemp("digits")
    _write(place / "clean", pixels, found.target[-200:])
    _write(place / "faint", (80 + 0.4 * pixels).astype(np.uint8), found.target[-200:])
    return place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `adapting.digits`, trained on the other digits."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from adapting import digits as make
    finally:
        sys.path.pop(0)
    found = load_digits()
    x = torch.from_numpy(found.images[:-200] / 16).float().unsqueeze(1)
    y = torch.from_numpy(found.target[:-200])
    model, draw = make(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        chosen = torch.randint(len(x), (64,), generator=draw)
        loss = torch.nn.functional.cross_entropy(model((x[chosen] - 0.5) / 0.5), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(model.state_dict(), path)
    return path


def _report(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "report.json").read_text()))


METHODS = ["adabn", "prior", "ema", "cumulative", "tent", "eata", "sar", "cotta", "rotta"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_an_ordinary_model_and_judges_it(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    words = (digits / "faint", "-o", out, "--method", method, "--checkpoint", checkpoint, *SHOWN)
    more = () if method != "ema" else ("--momentum", 0.5)
    shown, errors = run("run", "adapting:digits", *words, "--batch-size", 50, *more)
    assert shown.splitlines()[-1] == str(out)
    assert "8×8 grey" in errors
    assert {file.name for file in out.iterdir()} == FILES
    report = _report(out)
    assert f"{report['verdict']}: {report['reason']}" in shown
    accuracy = report["accuracy"]
    assert isinstance(accuracy, dict)
    assert accuracy["before"]["mean"] < 0.5  # the scanner is really bad
    assert accuracy["before"]["low"] <= accuracy["before"]["mean"] <= accuracy["before"]["high"]
    if method not in ("cotta", "rotta"):  # slow by design
        assert report["verdict"] == "recommended"
        assert accuracy["after"]["mean"] > accuracy["before"]["mean"] + 0.2
    assert ("online" in accuracy) == (method in METHODS[4:])
    # strictly into the architecture, and the same answers as the report counts
    model = open_model(out).model
    plain = open_model("adapting:digits").model
    plain.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    x, y = _as_tensor(digits / "faint")
    with torch.no_grad():
        right = float((model(x).argmax(1) == y).double().mean())
        assert torch.equal(model(x), plain.eval()(x))
    assert right == pytest.approx(accuracy["after"]["mean"])


def test_a_guard_advises_and_stops(
    run: Run,
    digits: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--method", "tent", "--checkpoint", checkpoint, "--guard", "--batch-size", 50, *SHOWN)
    shown, _ = run("run", "adapting:digits", digits / "clean", "-o", tmp_path / "same", *words)
    assert "the guard: Do not adapt: the stream's statistics are" in " ".join(shown.split())
    strict = functools.partialmethod(Guard.__init__, most_drift=1e-9)  # what no method can hold
    monkeypatch.setattr(Guard, "__init__", strict)
    shown, _ = run("run", "adapting:digits", digits / "clean", "-o", tmp_path / "kept", *words)
    assert "not recommended: Adapting was stopped" in " ".join(shown.split())
    kept = load_file(tmp_path / "kept" / "model.safetensors")
    for name, value in load_file(checkpoint).items():
        assert torch.equal(kept[name], value), name


def test_tent_takes_a_prior_with_one_picture_a_batch(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = ("--method", "tent", "--checkpoint", checkpoint, "--batch-size", 1, *SHOWN)
    place = digits / "faint"
    _, errors = run("run", "adapting:digits", place, "-o", tmp_path / "no", *words, code=1)
    assert "tent, eata and sar take prior=16" in errors.splitlines()[-1]
    run("run", "adapting:digits", place, "-o", tmp_path / "out", *words, "--prior", 16)
    assert _report(tmp_path / "out")["options"]["prior"] == 16.0  # type: ignore[index]


def _as_tensor(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    files = sorted(place.rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    y = torch.tensor([int(file.parent.name) for file in files])
    return (pixels.float().div(255).unsqueeze(1) - 0.5) / 0.5, y


def test_adabn_is_measure_and_the_report_has_its_numbers(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", checkpoint, "--batch-size", 200, *SHOWN, "--json")
    shown, _ = run("run", "adapting:digits", digits / "faint", "-o", out, *words)
    report = json.loads(shown)
    assert report == _report(out)
    model = open_model("adapting:digits", checkpoint=checkpoint).model.double()
    x, _ = _as_tensor(digits / "faint")
    wanted = measure(model, [x.double()])
    found = Population.load(out / "population.safetensors")
    assert (found.samples, found.mode) == (200, "one-pass")
    state = load_file(out / "model.safetensors")
    for name, moments in wanted.layers.items():
        # float32 behind two layers, in deviations of the channel
        deviation = moments.var[0].sqrt()
        for mean in (found.layers[name].mean[0], state[f"{name}.running_mean"]):
            assert float(((mean - moments.mean[0]).abs() / deviation).max()) < 1e-4
        torch.testing.assert_close(found.layers[name].var, moments.var, rtol=1e-4, atol=0)
    assert list(report["distance"]) == ["norm1", "norm2"]
    first = report["distance"]["norm1"]
    assert first["before"] > 1
    assert first["after"] < 0.01
    assert first["before"] > 10 * first["halves"]
    names = [f"{layer}.{key}" for layer in found.layers for key in ("running_mean", "running_var")]
    assert sorted(report["changed"]) == sorted(names)
    assert report["seconds"]["decoding"] > 0
    assert report["memory"]["peak_bytes"] > 50_000_000
    assert report["agreement"]["top1"] < 1
    shares = [report["answers"][when]["largest_share"] for when in ("before", "after")]
    assert shares[1] < 0.3 < shares[0]  # all pictures got one class


def test_on_the_models_own_pictures_nothing_is_recommended(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for method in ("adabn", "prior", "tent"):
        out = tmp_path / method
        words = ("--checkpoint", checkpoint, "--method", method, *SHOWN)
        run("run", "adapting:digits", digits / "clean", "-o", out, *words)
        assert _report(out)["verdict"] in ("undecided", "not recommended")


def test_without_labels_the_distance_judges(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    verdicts = {}
    for kind in ("clean", "faint"):
        (tmp_path / kind).mkdir()
        for file in (digits / kind).rglob("*.png"):
            shutil.copy(file, tmp_path / kind)
        out = tmp_path / f"{kind}-out"
        words = ("--checkpoint", checkpoint, *SHOWN)
        shown, _ = run("run", "adapting:digits", tmp_path / kind, "-o", out, *words)
        assert "accuracy is not measured:" in shown
        assert "has no labels" in shown
        verdicts[kind] = _report(out)["verdict"]
    assert verdicts == {"clean": "not recommended", "faint": "recommended"}


def test_undo_is_exact(run: Run, digits: Path, checkpoint: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    words = ("--checkpoint", checkpoint, *SHOWN)
    # with weight 0 the folder has the original's bytes
    run("run", "adapting:digits", digits / "faint", "-o", plain, *words, "--weight", 0)
    for method in ("adabn", "tent"):
        given = ("--method", method, "--overwrite")
        run("run", plain, digits / "faint", "-o", out, *given, "--device", "cpu")
        assert sha256(out / "model.safetensors") != sha256(plain / "model.safetensors")
        shown, _ = run("undo", out)
        assert "tensors are as they were" in shown
        assert sha256(out / "model.safetensors") == sha256(plain / "model.safetensors")
        manifest = json.loads((out / "model.json").read_text())
        assert manifest["sha256"]["model.safetensors"] == sha256(plain / "model.safetensors")
        assert manifest["history"][-1] == {"undone": method}
        assert manifest["history"][-2]["adapted"] == method
        open_model(out)
        assert "nothing to undo" in run("undo", out, code=1)[1]


def test_undo_of_a_changed_folder_is_refused(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", checkpoint, *SHOWN)
    run("run", "adapting:digits", digits / "faint", "-o", out, *words)
    state = load_file(out / "model.safetensors")
    state["head.bias"] += 1
    save_file(state, out / "model.safetensors", {"format": "pt"})
    manifest = json.loads((out / "model.json").read_text())
    manifest["sha256"]["model.safetensors"] = sha256(out / "model.safetensors")
    (out / "model.json").write_text(json.dumps(manifest))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    _, errors = run("undo", out, code=1)
    assert errors.count("\n") == 1
    assert "other tensors than those of the adaptation have changed since" in errors
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    (out / "undo.safetensors").write_bytes(b"no tensors")
    assert "undo.safetensors: is damaged" in run("undo", out, code=1)[1]


def test_an_existing_folder_is_refused_before_any_work(
    run: Run, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr("normapps.adapt.run.open_by", lambda *a, **k: pytest.fail("opened"))
    _, errors = run("run", "adapting:digits", digits / "faint", "-o", out, code=1)
    assert "exists already; --overwrite replaces it" in errors
    assert (
        "is no model folder"
        in run(*("run", "adapting:digits", digits / "faint", "-o", out, "--overwrite"), code=1)[1]
    )
    assert (out / "notes.txt").read_text() == "mine"


def test_a_damaged_picture_among_good_ones_is_named(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    place, out = tmp_path / "digits", tmp_path / "out"
    shutil.copytree(digits / "faint", place)
    (place / "3" / "broken.png").write_bytes(b"no picture")
    words = ("--checkpoint", checkpoint, *SHOWN)
    shown, errors = run("run", "adapting:digits", place, "-o", out, *words, code=1)
    assert errors.splitlines()[-1].startswith("error: ")
    assert "broken.png" in errors.splitlines()[-1]
    assert shown.splitlines()[-1] == str(out)
    report = _report(out)
    assert report["pictures"] == 200
    assert "broken.png" in str(report["failed"])
    assert "broken.png" in (out / "report.html").read_text()


def test_layers_and_weight_are_chosen(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", checkpoint, *SHOWN, "--layers", "norm1", "--weight", 0.5)
    run("run", "adapting:digits", digits / "faint", "-o", out, *words)
    assert _report(out)["changed"] == ["norm1.running_mean", "norm1.running_var"]
    assert Population.load(out / "population.safetensors").unreached == ("norm2",)
    _, errors = run(
        *("run", "adapting:digits", digits / "faint", "-o", tmp_path / "o", *words[:-2]),
        *("--layers", "bn*"),
        code=1,
    )
    assert "bn*" in errors.splitlines()[-1]


def test_half_precision_keeps_what_did_not_change(
    run: Run, digits: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", checkpoint, *SHOWN, "--dtype", "bfloat16")
    run("run", "adapting:digits", digits / "faint", "-o", out, *words)
    before, after = load_file(checkpoint), load_file(out / "model.safetensors")
    assert all(value.dtype == before[key].dtype for key, value in after.items())
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert before.keys() - same == {
        f"norm{i}.running_{kind}" for i in (1, 2) for kind in ("mean", "var")
    }


def test_a_model_that_returns_a_dict(run: Run, digits: Path, tmp_path: Path) -> None:
    for method in ("adabn", "tent"):
        out = tmp_path / method
        words = ("--method", method, *SHOWN)
        run("run", "adapting:talkative", digits / "faint", "-o", out, *words)
        assert _report(out)["classes"] == 10


@pytest.mark.parametrize("method", ["adabn", "tent"])
def test_frozen_batch_norms_are_adapted(
    run: Run, digits: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    run("run", "adapting:frozen", digits / "faint", "-o", out, "--method", method, *SHOWN)
    changed = _report(out)["changed"]
    assert isinstance(changed, list)
    keys = ["running_mean", "running_var"] + ["weight", "bias"] * (method == "tent")
    assert sorted(changed) == sorted(f"norm{i}.{key}" for i in (1, 2) for key in keys)


def test_only_layer_norms_are_adapted_by_gradients(run: Run, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--method", "tent", *SHOWN)
    shown, _ = run("run", "adapting:layers", digits / "faint", "-o", out, *words)
    assert "no population.safetensors: the model keeps no running statistics" in shown
    assert {file.name for file in out.iterdir()} == FILES - {"population.safetensors"}
    assert set(_report(out)["changed"]) == {  # type: ignore[call-overload]
        f"norm{i}.norm.{key}" for i in (1, 2) for key in ("weight", "bias")
    }


def test_classes_that_do_not_fit_are_said_and_the_rest_is_done(
    run: Run, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--num-classes", 7, *SHOWN)
    shown, _ = run("run", "adapting:digits", digits / "faint", "-o", out, *words)
    assert "accuracy is not measured: data has 10 classes, the model 7 outputs" in shown
    assert _report(out)["accuracy"] == {"not_measured": "data has 10 classes, the model 7 outputs"}


def test_random_weights_are_not_recommended(run: Run, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--size", 32, "--limit", 8, "--device", "cpu")
    shown, _ = run("run", "test_resnet", digits / "faint", "-o", out, *words)
    assert "not recommended: The model has random weights" in shown


def _one_picture(folder: Path) -> Path:
    folder.mkdir()
    Image.new("L", (8, 8), 100).save(folder / "a.png")
    return folder


def test_one_picture(run: Run, tmp_path: Path) -> None:
    place, out = _one_picture(tmp_path / "one"), tmp_path / "out"
    _, errors = run("run", "adapting:digits", place, "-o", out, *SHOWN, code=1)
    assert "--mode fixed, or --method prior" in errors.splitlines()[-1]
    assert not out.exists()
    for more in (("--mode", "fixed"), ("--method", "prior")):
        run("run", "adapting:digits", place, "-o", out, *SHOWN, *more, "--overwrite")
        assert _report(out)["verdict"] == "undecided"


def _nan_checkpoint(path: Path, checkpoint: Path) -> Path:
    state = load_file(checkpoint)
    state["norm2.running_var"][3] = float("nan")
    save_file(state, path)
    return path


ODD = {
    "no norm layers": ("adapting:plain", (), "has no norm layers, so there is nothing to adapt"),
    "only layer norms": (
        "adapting:layers",
        (),
        "has no running statistics for --method adabn to change, its 2 norm layers are LayerNorm;"
        " --method tent or sar",
    ),
    "wrong size": ("adapting:picky", (), "fails on pictures of 8×8 (AssertionError: Input height"),
    "no logits": ("adapting:mute", (), "no logits are in it"),
    "batch size 1": ("adapting:digits", ("--batch-size", 1), "--mode fixed, or --method prior"),
    "wrong option": ("adapting:digits", ("--method", "ema", "--prior", 4), "--prior: is an"),
    "wrong mean": ("adapting:digits", ("--mean", "1,2"), "--mean: 2 numbers for 1 channels"),
    "unknown model": ("resnet81", (), "did you mean 'resnet18'"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_cases_are_one_line_and_leave_nothing(
    run: Run, digits: Path, tmp_path: Path, case: str
) -> None:
    model, words, message = ODD[case]
    usage = case in ("batch size 1", "wrong option")
    given = SHOWN if case != "wrong mean" else SHOWN[:3]
    _, errors = run(
        *("run", model, digits / "faint", "-o", tmp_path / "out", *given, *words),
        code=2 if usage else 1,
    )
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert errors.splitlines()[-1] == lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, errors = run("run", "adapting:digits", tmp_path / "empty", "-o", tmp_path / "out", code=1)
    assert "empty: holds no picture" in errors.splitlines()[-1]
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]


def test_a_checkpoint_with_nan_is_named_before_anything_else(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    path = _nan_checkpoint(tmp_path / "nan.safetensors", checkpoint)
    words = ("--checkpoint", path, *SHOWN)
    _, errors = run(
        "run", "adapting:digits", tmp_path / "none", "-o", tmp_path / "out", *words, code=1
    )
    assert errors.splitlines() == [
        f"error: {path}: norm2.running_var is not finite in 1 of 16 values; the weights are"
        " damaged, take another checkpoint"
    ]
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_nothing(
    run: Run, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("normapps.adapt.run.write_report", fail)
    run("run", "adapting:digits", digits / "faint", "-o", tmp_path / "out", *SHOWN, code=130)
    assert list(tmp_path.iterdir()) == []
