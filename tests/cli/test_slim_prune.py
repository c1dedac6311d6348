"""`normapps slim prune` and `inspect` from end to end: digits, odd cases, fresh processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normapps.cli.main import main
from normapps.models.folder import load_model
from normapps.models.load import open_model

Run = Callable[..., tuple[str, str]]

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "slimming.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SHOWN = ("--size", 8, "--no-resize", "--mean", 0.5, "--std", 0.5, "--device", "cpu")
"""What digits go through."""

FILES = {"model.json", "model.safetensors", "report.json", "report.html"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""
    monkeypatch.syspath_prepend(str(HERE))

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", "slim", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


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
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `adapting.digits`, trained on the other digits with L1 on its scales."""
    sys.path.insert(0, str(HERE))
    try:
        from adapting import digits as make
    finally:
        sys.path.pop(0)
    found = load_digits()
    x = (torch.from_numpy(found.images[:-200] / 16).float().unsqueeze(1) - 0.5) / 0.5
    y = torch.from_numpy(found.target[:-200])
    model, draw = make(), torch.Generator().manual_seed(0)
    scales = [model.norm1.weight, model.norm2.weight]
    for scale in scales:  # apart, so that one threshold takes some of both
        scale.data.uniform_(0.2, 2.0, generator=draw)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        chosen = torch.randint(len(x), (64,), generator=draw)
        loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # proximal: exact zeros
            for scale in scales:
                scale.copy_(scale.sign() * (scale.abs() - 2e-3).clamp_min(0))
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(model.state_dict(), path)
    return path


def _report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text()))


def _as_tensor(place: Path) -> tuple[Tensor, Tensor]:
    files = sorted(place.rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    y = torch.tensor([int(file.parent.name) for file in files])
    return (pixels.float().div(255).unsqueeze(1) - 0.5) / 0.5, y


def _right(model: nn.Module, place: Path) -> float:
    x, y = _as_tensor(place)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def test_a_pruned_model_is_smaller_judged_and_what_the_report_says(
    run: Run, digits: Path, sparse: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", sparse, "--data", digits, *SHOWN, "--ratio", 0.25)
    shown, errors = run("prune", "adapting:digits", "-o", out, *words)
    assert shown.splitlines()[-1] == str(out)
    assert "8×8 grey" in errors
    assert {file.name for file in out.iterdir()} == FILES
    report = _report(out)
    assert f"{report['verdict']}: {report['reason']}" in shown
    base = open_model("adapting:digits", checkpoint=sparse).model
    model = load_model(out)
    for name, network in (("base", base), ("recalibrated", model)):
        found = report["stages"][name]["accuracy"]
        assert found["mean"] == pytest.approx(_right(network, digits))
        assert found["low"] <= found["mean"] <= found["high"]
    assert list(report["stages"]) == ["base", "pruned", "compensated", "recalibrated"]
    # counted here, not by the graph
    parameters = [sum(each.numel() for each in net.parameters()) for net in (base, model)]
    assert report["size"]["parameters"] == parameters
    kept = [model.get_submodule(name).num_features for name in ("norm1", "norm2")]
    assert report["size"]["channels"] == [24, sum(kept)]
    assert sum(kept) == 18
    macs = 64 * 9 * (1 * kept[0] + kept[0] * kept[1]) + 4 * kept[1] * 10
    assert report["size"]["macs"] == [64 * 9 * (8 + 128) + 640, macs]
    assert report["layers"]["body"]["channels"] == [16, kept[1]]
    assert report["difference"] <= 1e-5
    assert set(report["latency"]) == {"1", "32"}


def test_what_was_kept_has_the_largest_scales(run: Run, sparse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", sparse, *SHOWN, "--ratio", 0.25, "--no-latency")
    run("prune", "adapting:digits", "-o", out, *words, "--no-compensate")
    base, model = load_file(sparse), load_model(out)
    scales = torch.cat([base[f"norm{i}.weight"].abs() for i in (1, 2)])
    wanted = scales.sort(descending=True).values[:18]
    kept = torch.cat([model.get_submodule(f"norm{i}").weight.detach().abs() for i in (1, 2)])
    assert torch.equal(kept.sort(descending=True).values, wanted)
    assert _report(out)["choice"]["threshold"] == pytest.approx(
        float(scales.sort(descending=True).values[18])
    )
    assert _report(out)["compensation"] is None


LOAD = """
import sys, torch
sys.path.insert(0, {here!r})
from normapps import load_model
x = torch.load({x!r}, weights_only=True)
with torch.no_grad():
    torch.save([load_model(folder)(x) for folder in {folders!r}], {y!r})
"""


def _in_a_fresh_process(folders: list[Path], x: Tensor, place: Path) -> list[Tensor]:
    torch.save(x, place / "x.pt")
    values = {"here": str(HERE), "x": str(place / "x.pt"), "y": str(place / "y.pt")}
    code = LOAD.format(folders=[str(each) for each in folders], **values)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Tensor] = torch.load(place / "y.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of timm's smallest networks, their scales and shifts randomized."""
    place, found = tmp_path_factory.mktemp("uneven"), {}
    for name in ("test_resnet", "test_efficientnet"):
        model, draw = open_model(name).model, torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value, span in ((module.weight, 1.0), (module.bias, 0.3)):
                    value.data.uniform_(-0.05 * span, span, generator=draw)
        found[name] = place / f"{name}.safetensors"
        save_file(model.state_dict(), found[name])
    return found


def _snippet() -> str:
    """What the page says for those without normapps."""
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    (found,) = [block for block in blocks if "def load_pruned" in block]
    return str(found)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_fresh_process_and_one_without_normapps_read_the_same_bits(
    run: Run, uneven: dict[str, Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", uneven[name], "--size", 64, "--no-latency", "--device", "cpu")
    run("prune", name, "-o", out, *words)
    again = tmp_path / "again"  # a pruned folder is a model as any other
    run("prune", out, "-o", again, "--ratio", 0.2, "--no-latency", "--device", "cpu")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    names: dict[str, Any] = {}
    exec(compile(_snippet(), str(PAGE), "exec"), names)
    fresh = _in_a_fresh_process([out, again], x, tmp_path)
    for folder, most, found in ((out, 0.75, fresh[0]), (again, 0.95, fresh[1])):
        before, after = _report(folder)["size"]["macs"]
        assert after < most * before
        with torch.no_grad():
            wanted = load_model(folder)(x)
            assert torch.equal(names["load_pruned"](folder)(x), wanted)
        assert torch.equal(found, wanted)
    sizes = [_report(folder)["size"]["parameters"] for folder in (out, again)]
    assert sizes[0][1] == sizes[1][0] > sizes[1][1]


def test_the_snippet_needs_no_normapps() -> None:
    assert set(re.findall(r"^(?:import|from) (\w+)", _snippet(), re.MULTILINE)) == {
        *("json", "pathlib", "timm", "torch", "safetensors")
    }


def _refused(run: Run, *words: object, code: int = 1) -> str:
    """The one line that a command ends with."""
    _, errors = run(*words, code=code)
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_what_cannot_be_pruned_is_refused_in_a_line(run: Run, sparse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rest = ("-o", out, *SHOWN)
    assert "has no batch norm with scales" in _refused(run, "prune", "adapting:plain", *rest)
    line = _refused(run, "prune", "adapting:digits", *rest)
    assert "scales are all equal" in line
    assert "--importance l2" in line
    line = _refused(run, "prune", "adapting:opaque", *rest, "--importance", "l2")
    assert "no channel of this network may go" in line
    words = ("adapting:digits", "--checkpoint", sparse, *rest)
    line = _refused(run, "prune", *words, "--target-flops", 0.01)
    assert re.search(r"--target-flops 0.01: cannot be met; the nearest is 0\.\d+", line)
    assert "--lossless finds no channel" in _refused(run, "prune", *words, "--lossless")
    line = _refused(run, "prune", *words, "--ignore", "nrom1")
    assert "did you mean 'norm1'?" in line
    wrong = ("small-cnn-of-nobody", "--checkpoint", sparse, *rest)
    assert "unknown model" in _refused(run, "prune", *wrong)
    line = _refused(run, "prune", "test_resnet", "--checkpoint", sparse, "-o", out)
    assert str(sparse) in line
    assert not out.exists()


def test_options_that_contradict_each_other_are_wrong_usage(run: Run, tmp_path: Path) -> None:
    words = ("prune", "adapting:digits", "-o", tmp_path / "out", *SHOWN)
    for more in (
        ("--ratio", 0.4, "--target-flops", 0.5),
        ("--ratio", 1.5),
        ("--lossless", "--importance", "l2"),
        ("--lossless", "--no-compensate"),
        ("--limit", 5),
        ("--importance", "scales"),
    ):
        assert str(more[0]) in _refused(run, *words, *more, code=2)


def test_a_folder_in_the_way_and_a_damaged_one_are_refused(
    run: Run, sparse: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", sparse, "-o", out, *SHOWN, "--no-latency", "--ratio", 0.25)
    run("prune", "adapting:digits", *words)
    before = (out / "model.safetensors").read_bytes()
    assert "exists already" in _refused(run, "prune", "adapting:digits", *words)
    assert (out / "model.safetensors").read_bytes() == before
    (out / "undo.safetensors").write_text("of an older model")
    run("prune", "adapting:digits", *words, "--overwrite")
    assert {file.name for file in out.iterdir()} == FILES
    (out / "model.safetensors").write_bytes(before[:-4] + b"oops")
    line = _refused(run, "prune", out, "-o", tmp_path / "again", *SHOWN)
    assert "damaged or changed" in line
    assert not (tmp_path / "again").exists()


def test_the_ways_to_say_how_much(run: Run, sparse: Path, tmp_path: Path) -> None:
    words = ("adapting:digits", "--checkpoint", sparse, *SHOWN, "--no-latency")
    for name, flag, aim in (
        ("macs", "--target-flops", 0.6),
        ("parameters", "--target-params", 0.7),
    ):
        out = tmp_path / name
        run("prune", *words, "-o", out, flag, aim)
        before, after = _report(out)["size"][name]
        assert 0 < after <= aim * before
    out = tmp_path / "steps"
    _, errors = run("prune", *words, "-o", out, "--iterative", 3, "--importance", "l2")
    assert "--ratio 0.4: the default" in errors
    assert _report(out)["size"]["channels"] == [24, 15]
    out = tmp_path / "wide"
    run("prune", *words, "-o", out, "--round-to", 4, "--min-channels", 8, "--per-layer")
    model = load_model(out)
    kept = [model.get_submodule(name).num_features for name in ("norm1", "norm2")]
    assert kept == [8, 12]


def test_what_is_lossless_changes_no_answer(run: Run, sparse: Path, tmp_path: Path) -> None:
    """Of two dead channels one is silent, and one says something to a zero-padded layer."""
    state = load_file(sparse)
    state["norm1.weight"][[2, 5]] = 0
    state["norm1.bias"][2], state["norm1.bias"][5] = -1.0, 1.0
    state["norm2.weight"][3], state["norm2.bias"][3] = 0, 2.0  # read by a linear layer
    path, out = tmp_path / "dead.safetensors", tmp_path / "out"
    save_file(state, path)
    words = ("--checkpoint", path, "-o", out, *SHOWN, "--no-latency", "--lossless")
    run("prune", "adapting:digits", *words)
    model = load_model(out)
    assert model.get_submodule("norm1").num_features == 7
    assert model.get_submodule("norm2").num_features == 15
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    base = open_model("adapting:digits", checkpoint=path).model
    with torch.no_grad():
        torch.testing.assert_close(model(x), base(x), rtol=1e-5, atol=1e-5)


def test_random_weights_are_said(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--size", 32, "--importance", "l2", "--no-latency")
    _, errors = run("prune", "test_resnet", "-o", out, *words)
    assert "random weights (seed 0): give --pretrained or --checkpoint" in errors
    assert _report(out)["verdict"] == "not recommended"
    assert "random weights" in _report(out)["reason"]


def test_onnx_stands_beside_the_model(run: Run, sparse: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    words = ("--checkpoint", sparse, "-o", out, *SHOWN, "--no-latency", "--ratio", 0.25, "--onnx")
    shown, _ = run("prune", "adapting:digits", *words)
    assert "[torch.onnx]" not in shown
    assert {file.name for file in out.iterdir()} == FILES | {"model.onnx"}
    assert _report(out)["onnx_difference"] < 1e-5
    session = onnxruntime.InferenceSession(out / "model.onnx")
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, load_model(out)(x).numpy(), rtol=1e-4, atol=1e-5)


def test_inspect_shows_what_could_go(run: Run, sparse: Path) -> None:
    words = ("inspect", "adapting:digits", "--checkpoint", sparse, "--size", 8)
    shown, _ = run(*words)
    assert "24 of 24 channels could go" in shown
    facts = json.loads(run(*words, "--json")[0])
    assert [step["ratio"] for step in facts["steps"]] == [i / 10 for i in range(1, 10)]
    for step in facts["steps"]:
        assert step["channels"] == 24 - round(step["gone"] * 24)
        assert step["gone"] <= step["ratio"] + 1e-9
        assert step["narrowest"][1] >= 1
    macs = [step["macs"] for step in facts["steps"]]
    assert macs == sorted(macs, reverse=True)
    assert facts["size"]["macs"] == 64 * 9 * (8 + 128) + 640
    line = _refused(run, "inspect", "adapting:plain", "--size", 8)
    assert "no batch norm with scales" in line


def test_damaged_weights_are_not_inspected(run: Run, sparse: Path, tmp_path: Path) -> None:
    state = load_file(sparse)
    name = next(key for key, value in state.items() if value.ndim == 4)
    state[name][0] = float("nan")
    save_file(state, tmp_path / "damaged.safetensors")
    for command in (("inspect",), ("prune", "-o", tmp_path / "out")):
        words = ("adapting:digits", "--checkpoint", tmp_path / "damaged.safetensors")
        line = _refused(run, *command, *words, "--input-size", 8)
        assert f"{name} is not finite in 72 of 1152 values" in line


def test_what_answers_without_logits_is_said(
    run: Run, digits: Path, sparse: Path, tmp_path: Path
) -> None:
    words = ("--checkpoint", sparse, "-o", tmp_path / "out", *SHOWN, "--no-latency")
    line = _refused(run, "prune", "adapting:mute", *words)
    assert "returns a SimpleNamespace, in which no tensor is found" in line
    shown, _ = run("prune", "adapting:boxed", *words, "--data", digits, "--limit", 20)
    assert "The answers were not judged: the model returns" in " ".join(shown.split())


def test_pictures_that_cannot_be_read_are_named(
    run: Run, digits: Path, sparse: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mixed"
    for file in sorted(digits.rglob("*.png"))[::10]:
        copy = place / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken = sorted(place.rglob("*.png"))[0]
    broken.write_bytes(b"no picture")
    out = tmp_path / "out"
    words = ("--checkpoint", sparse, "-o", out, *SHOWN, "--no-latency", "--data", place)
    _, errors = run("prune", "adapting:digits", *words, code=1)
    assert broken.name in errors.splitlines()[-1]
    assert len(_report(out)["failed"]) == 1
