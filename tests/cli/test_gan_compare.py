"""`normapps gan compare`, from pictures to one table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from normapps.cli.gan import app
from normapps.errors import UsageError

FEW = [
    "--config", "sngan-28", "--d-norms", "none,gn", "--seeds", "1", "--steps", "1", "--n-dis", "1",
    "--batch-size", "4", "--width", "2", "--d-width", "2", "--standing", "8", "--fakes", "50",
    "--sample-every", "0", "--device", "cpu",
]  # fmt: skip


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_it_prints_one_table_and_writes_the_report(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images = (load_digits().images[:120] * 15).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=images)
    out = tmp_path / "out"
    given = ["--data", tmp_path / "digits.npz", "-o", out, *FEW]
    code, printed, said = run(*given)
    assert code == 0
    head, *rows = printed.splitlines()[:3]
    scores = ["fd", "precision", "recall", "density", "coverage"]
    assert head.split() == ["norm", "seed", *scores, "images/s"]
    assert [row.split()[0] for row in rows] == ["none", "gn"]
    assert printed.splitlines()[-1] == str(out / "report.html")
    assert "gn, seed 0: fd " in said
    told = json.loads((out / "report.json").read_text())
    assert [each["norm"] for each in told["runs"]] == ["none", "gn"]
    assert f"{told['runs'][0]['scores']['1']['fd']:.4g}" in rows[0].split()
    assert told["scored"][0].startswith("Extractor fmnist-cnn, trained by gan classifier, sha256 ")
    assert str(tmp_path) not in " ".join(told["scored"])
    code, again, _ = run(*given, "--json")
    assert json.loads(again) == told


def test_a_norm_of_no_such_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown norm 'sm'; known: gn, none, sn, ws"):
        run("--data", "x", "--d-norms", "sm", "-o", tmp_path / "out")
