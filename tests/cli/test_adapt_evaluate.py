"""`normapps adapt evaluate` from end to end: a network trained on real digits, corrupted ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from normapps.adapt import evaluation
from normapps.cli.main import main
from normapps.models.folder import save_model
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn

Run = Callable[..., tuple[str, str]]
FACTORY = "normapps.models.small:small_cnn"
CUT = Preprocessing((8, 8), (8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, origin="digits")


def as_pictures(digits: np.ndarray) -> np.ndarray:
    """(N, 8, 8) 0…16 to (N, 8, 8, 3) uint8."""
    return np.repeat((digits * 15.9375).round().astype(np.uint8)[..., None], 3, -1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder, and a class folder of 240 digits that it was not trained on."""
    place = tmp_path_factory.mktemp("digits")
    data = load_digits()
    pictures, labels = as_pictures(data.images), torch.from_numpy(data.target)
    images = CUT.normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    torch.manual_seed(0)
    model = small_cnn().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        chosen = torch.randint(0, 1400, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    save_model(
        place / "model",
        model.eval(),
        builder="factory",
        arguments={"factory": FACTORY},
        preprocessing=CUT.to_json(),
    )
    for i in range(1450, 1690):
        folder = place / "test" / str(data.target[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[i]).save(folder / f"{i}.png")
    return place / "model", place / "test"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        chosen = ["normapps", "adapt", "evaluate", *map(str, arguments), "--device", "cpu"]
        monkeypatch.setattr("sys.argv", chosen)
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


def rows_by_name(facts: dict[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(row["domain"], row["method"], row["batch_size"]): row for row in facts["rows"]}


def test_batch_statistics_mend_a_contrast_that_broke_the_source(
    run: Run, trained: tuple[Path, Path]
) -> None:
    text, _ = run(
        *trained, "--corrupt", "contrast:4", "--methods", "source,adabn,prior", "--json",
        "--seeds", 2,
    )  # fmt: skip
    facts = json.loads(text)
    rows = rows_by_name(facts)
    clean, broken, mended = (
        rows[key]["accuracy"]["mean"]
        for key in (
            ("clean", "source", 50),
            ("contrast:4", "source", 50),
            ("contrast:4", "adabn", 50),
        )
    )
    assert clean > 0.85
    assert broken < clean - 0.3
    assert mended > broken + 0.3
    gain = rows["contrast:4", "adabn", 50]["gain"]
    assert gain["mean"] == pytest.approx(mended - broken)
    assert gain["low"] > 0.2
    assert facts["verdict"] == "recommended"
    assert all(row["pictures"] == 240 for row in facts["rows"])


def test_the_table_and_the_folder_tell_the_same(
    run: Run, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (
        *trained, "-o", out, "--limit", 60, "--batch-size", 1, "--batch-size", 20,
        "--methods", "adabn,histogram,fda,prior", "--references", trained[1], "--corrupt", "fog:2",
    )  # fmt: skip
    text, errors = run(*command)
    assert text.rstrip().endswith(str(out))
    assert "8×8 RGB" in errors
    for words in ("batches of 1, 60 pictures", "batches of 20, 60 pictures", "needs 2", "fog:2"):
        assert words in text
    report = json.loads((out / "report.json").read_text())
    rows = rows_by_name(report)
    assert rows["clean", "adabn", 1]["note"] == "needs 2"
    assert rows["clean", "source", 1]["accuracy"] == rows["clean", "source", 20]["accuracy"]
    share = rows["fog:2", "prior", 20]["accuracy"]
    assert f"{100 * share['mean']:.1f}  {100 * share['low']:.1f}–" in " ".join(text.split(" "))
    page = (out / "report.html").read_text()
    assert "fog:2" in page
    assert report["reason"] in text


def test_what_is_finished_is_not_computed_again(
    run: Run, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = evaluation.Bench.run

    def counted(self: Any, plan: Any, labels: Any, tick: Any) -> Any:
        done.append(f"{plan.method} {plan.domains[0]}")
        if len(done) == stop_at:
            raise KeyboardInterrupt
        return real(self, plan, labels, tick)

    monkeypatch.setattr(evaluation.Bench, "run", counted)
    command = (*trained, "--limit", 30, "--methods", "adabn,tent", "--corrupt", "contrast:3")
    stop_at = 4
    run(*command, "-o", tmp_path / "out", code=130)
    assert len((tmp_path / "out" / "cells.jsonl").read_text().splitlines()) == 1 + 3
    stop_at, done[:] = -1, []
    resumed = run(*command, "-o", tmp_path / "out", "--json")[0]
    assert done == ["source contrast:3", "adabn contrast:3", "tent contrast:3"]
    whole = run(*command, "--json")[0]
    for one, other in zip(json.loads(resumed)["rows"], json.loads(whole)["rows"], strict=True):
        for key in ("seconds", "peak_bytes"):
            one.pop(key), other.pop(key)
        assert one == other
    done[:] = []
    run(*command, "--methods", "ema", "-o", tmp_path / "out")
    assert done == ["ema clean", "ema contrast:3"]
    errors = run(*command, "--limit", 40, "-o", tmp_path / "out", code=1)[1]
    assert "holds an evaluation that differs in its pictures;" in errors
    run(*command, "--limit", 40, "-o", tmp_path / "out", "--overwrite")


def test_streams_go_on_without_a_reset_or_mix(run: Run, trained: tuple[Path, Path]) -> None:
    text, _ = run(
        *trained, "--stream", "continual,mixed,sorted", "--corrupt", "contrast:3", "--json",
        "--methods", "cumulative", "--limit", 100, "--batch-size", 20,
    )  # fmt: skip
    rows = json.loads(text)["rows"]
    assert {row["stream"] for row in rows} == {"continual", "mixed", "sorted"}
    assert len(rows) == 3 * 2 * 2
    assert not any(row["note"] for row in rows)
    source = {row["accuracy"]["mean"] for row in rows if row["method"] == "source"}
    assert len(source) == 2  # of each domain one, in whichever order


def test_without_labels_there_is_agreement_with_the_source(
    run: Run, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(trained[1].rglob("*.png"))[::4]:
        shutil.copy(path, flat)
    text, errors = run(trained[0], flat, "--methods", "adabn", "--stream", "shift,sorted")
    assert "no accuracy" in errors
    assert "% as source" in text
    assert "needs a label of every sample" in text
    assert "undecided: there are no labels" in text
    facts = json.loads(run(trained[0], flat, "--methods", "adabn", "--json")[0])
    rows = rows_by_name(facts)
    assert rows["clean", "source", 50]["agreement"] == 1
    assert 0.3 < rows["clean", "adabn", 50]["agreement"] <= 1
    assert rows["clean", "adabn", 50]["accuracy"] is None


def test_other_classes_are_no_labels(run: Run, trained: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[1], tmp_path / "some", ignore=shutil.ignore_patterns("7", "8", "9"))
    _, errors = run(trained[0], tmp_path / "some", "--methods", "source")
    assert "no accuracy: data has 7 classes, the model 10 outputs" in errors


def test_a_damaged_picture_is_named_and_left_out(
    run: Run, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained[1], tmp_path / "some")
    (tmp_path / "some" / "3" / "x.png").write_bytes(b"no picture")
    text, errors = run(trained[0], tmp_path / "some", "--methods", "source", code=1)
    assert "240 pictures" in text
    assert "error: " in errors
    assert "x.png" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--methods", "tnet"), 2, "unknown method 'tnet'; did you mean 'tent'?"),
        (("--corrupt", "fog:9"), 2, "give a severity from 1 to 5"),
        (("--methods", "fda"), 2, "--methods fda: give --references"),
        (("--methods", "fda", "--references", "nowhere"), 1, "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_ends_in_one_line(
    run: Run, trained: tuple[Path, Path], arguments: tuple[str, ...], code: int, message: str
) -> None:
    _, errors = run(*trained, *arguments, code=code)
    assert message in errors
    assert errors.strip().splitlines()[-1].startswith("error: ")


def test_a_file_in_place_of_the_folder_is_refused_before_any_work(
    run: Run, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("dear")
    _, errors = run(*trained, "-o", tmp_path / "out", code=1)
    assert errors.splitlines() == [
        f"error: {tmp_path / 'out'}: is a file, not a folder to write to"
    ]


def test_one_picture_is_enough_to_say_what_needs_more(
    run: Run, trained: tuple[Path, Path], photo_files: dict[str, Path]
) -> None:
    text, _ = run(trained[0], photo_files["coffee"], "--methods", "source,adabn,tent")
    assert "needs 2" in text
    assert "undecided" in text


@pytest.mark.shared
def test_real_photographs(run: Run, shared_dir: Path) -> None:
    tar = shared_dir / "data" / "imagenet_sample_1000.tar"
    text, _ = run(
        "test_resnet", tar, "--limit", 20, "--methods", "adabn", "--corrupt", "jpeg:5",
        "--batch-size", 10,
    )  # fmt: skip
    assert "jpeg:5" in text
