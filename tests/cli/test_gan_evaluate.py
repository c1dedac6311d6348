"""`normapps gan evaluate`, from a generator's folder to a table and a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from normapps.cli.gan import app
from normapps.errors import InputError
from normapps.models.folder import build, save_model

SEES = {"num_classes": 5, "channels": 1, "size": 28, "width": 2}
DRAWS = {"size": 28, "channels": 1, "latent": 6, "width": 4}


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def given(tmp_path: Path) -> list[str | Path]:
    from sklearn.datasets import load_digits

    np.savez(tmp_path / "digits.npz", x_train=(load_digits().images[:90] * 15).astype(np.uint8))
    for name, builder, arguments in (("sees", "small-cnn", SEES), ("g", "sngan-generator", DRAWS)):
        network = build(builder, arguments, seed=0)
        save_model(tmp_path / name, network, builder=builder, arguments=arguments)
    return [
        tmp_path / "g", "--data", tmp_path / "digits.npz", "--extractor", tmp_path / "sees",
        "--fakes", "40", "--subset-size", "20", "--splits", "2", "--device", "cpu",
    ]  # fmt: skip


def test_it_prints_scores_with_their_provenance_and_writes_a_report(
    tmp_path: Path, given: list[str | Path]
) -> None:
    code, printed, said = run(*given, "-o", tmp_path / "out")
    assert code == 0
    assert "90 pictures of 28×28 grey" in said
    lines = printed.splitlines()
    assert lines[0].split("  ")[0] == "score"
    assert lines[1].startswith("Fréchet distance")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert f"{told['scores']['fd']:.4g}" in lines[1]
    assert f"{told['floor']['fd']:.4g}" in lines[1]
    assert told["line"] in printed
    for part in ("sha256", "90 real", "40 drawn", "resizer", "standing", "EMA not known", "floor"):
        assert part in told["line"]
    assert str(tmp_path) not in told["line"]  # a reader of scores knows no path of this machine
    assert "FID" not in printed.upper().replace("INCEPTION:FILE", "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "real against real" in page
    assert told["line"].replace("'", "&#x27;") in page


def test_a_file_gets_every_number_and_is_not_replaced_unasked(
    tmp_path: Path, given: list[str | Path]
) -> None:
    out = tmp_path / "scores.json"
    code, printed, _ = run(*given, "-o", out, "--json", "--metric", "kernel", "--no-floor")
    assert code == 0
    told = json.loads(out.read_text())
    assert told == json.loads(printed)
    assert told["scores"].keys() == {"kd", "kd_std"}
    assert told["floor"] is None
    with pytest.raises(InputError, match="--overwrite"):
        run(*given, "-o", out)


def test_fewer_pictures_than_features_are_told_beside_the_number(
    given: list[str | Path],
) -> None:
    given[given.index("40")] = "8"  # as many as features
    given[given.index("20")] = "8"
    code, printed, said = run(*given)
    assert code == 0
    assert "(too few pictures)" in printed.splitlines()[1]
    assert "8 pictures for 8 features: the covariance is singular" in said


def test_a_generator_that_is_none_is_refused(tmp_path: Path, given: list[str | Path]) -> None:
    with pytest.raises(InputError, match="is no generator but a small-cnn"):
        run(tmp_path / "sees", *given[1:])
