"""`normapps export`, and `normapps stylize --runtime onnx`, which loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.main import app
from normapps.errors import InputError
from normapps.style.job import stylize_files
from normapps.style.options import StylizeOptions
from normapps.style.stylizer import Stylizer

pytest.importorskip("onnxruntime")

_TELLS = (
    "\nimport sys\nheavy = {'torch', 'onnx', 'rich', 'pydantic', 'timm'} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
)


def _run(*arguments: str, check: str = "") -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.argv = {['normapps', *arguments]!r}\n"
        "from normapps.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, check=False
    )


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray, coffee: np.ndarray
) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(astronaut[:120, :150]).save("photos/a.png")
    Image.fromarray(astronaut[200:290, 100:180]).save("photos/b.png")
    Image.fromarray(coffee[::4, ::4]).save("wave.png")
    return tmp_path


def test_stylizing_on_onnxruntime_loads_no_torch_and_paints_the_same(here: Path) -> None:
    arguments = ("stylize", "photos", "--style", "wave.png", "--style", "preset:ink")
    done = _run(*arguments, "-o", "out", "--runtime", "onnx", "--quiet", check=_TELLS)
    assert done.returncode == 0, done.stderr
    stylizer = Stylizer.load(device="cpu", dtype="float32")
    options = StylizeOptions(style=("wave.png", "preset:ink"), output="torch", dtype="float32")
    results = list(stylize_files(options, ["photos"], stylizer=stylizer))
    assert len(results) == 4
    for result in results:
        found, want = (
            np.asarray(Image.open(Path(folder) / Path(result.output).name)).astype(int)
            for folder in ("out", "torch")
        )
        assert np.abs(found - want).max() <= 1
    again = _run(*arguments, "-o", "out", "--runtime", "onnx", "--json")
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()] == ["kept"] * 4
    other = _run(*arguments, "-o", "out", "--json")
    assert "with other options" in other.stderr + other.stdout


def test_a_picture_goes_through_a_pipe(here: Path) -> None:
    command = ["stylize", "-", "--style", "preset:ice", "-o", "-", "--runtime", "onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "normapps.cli.main", *command],
        input=Path("photos/a.png").read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    Path("o.png").write_bytes(done.stdout)
    assert Image.open("o.png").size == (150, 120)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"device": "cuda"}, "--device cuda: --runtime onnx runs on the CPU"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: --runtime onnx computes in float32"),
        ({"runtime": "onxn"}, "did you mean 'onnx'"),
    ],
)
def test_what_onnxruntime_has_not_is_refused(values: dict[str, str], line: str) -> None:
    chosen = {"runtime": "onnx"} | values
    with pytest.raises(InputError, match=line):
        StylizeOptions(style=("a",), output="o", **chosen)  # type: ignore[arg-type]


def test_the_command_writes_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    from normapps.models.folder import save_model
    from normapps.models.small import small_cnn

    arguments = {"channels": 1, "num_classes": 10}
    save_model("m", small_cnn(**arguments), builder="small-cnn", arguments=arguments)
    done = CliRunner().invoke(app, ["export", "m", "-o", "m.pt2", "--size", "16"])
    assert done.exit_code == 0, done.output
    assert "input: any×1×16×16" in done.stdout
    assert "differs from torch by" in done.stdout
    assert Path("m.pt2").is_file()
