"""The classifier that GANs are scored by: it learns, resumes to the bit, and refuses in a line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import normapps.models  # noqa: F401  (guard)
from normapps.data.datasets import find_dataset
from normapps.data.idx import find_idx
from normapps.data.pool import Pool
from normapps.engine.run import load_checkpoint
from normapps.errors import InputError, UsageError
from normapps.files import sha256
from normapps.gan.classifier import gan_classifier, train_classifier
from normapps.gan.classifier_options import ClassifierOptions
from normapps.gan.data import read_pool
from normapps.measure.accuracy import accuracy
from normapps.models.load import open_model
from normapps.models.shipped import card, shipped_folder

CHECKPOINT = Path("checkpoint") / "latest.safetensors"
PLAIN = ClassifierOptions(
    steps=60, batch_size=32, width=4, lr=0.02, warmup=5, size=8, device="cpu", save_every=7
)


def digits(first: int, last: int, classes: tuple[str, ...] = tuple("0123456789")) -> Pool:
    """Some of scikit-learn's digits, (M, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images[first:last] * 15).astype(np.uint8))[:, None]
    return Pool(images, torch.from_numpy(found.target[first:last].astype(np.int64)), classes)


def test_it_learns_and_leaves_a_model_folder(tmp_path: Path) -> None:
    test = digits(1000, 1300)
    found = train_classifier(digits(0, 1000), test, PLAIN, tmp_path)
    assert found.folder == tmp_path / "model"
    assert found.accuracy is not None
    assert found.accuracy.mean > 0.6
    opened = open_model(found.folder)
    assert opened.classes == tuple("0123456789")
    assert not opened.is_random
    # counted by hand: scaled to [−1, 1], the highest logit
    x = test.images.double() / 127.5 - 1
    with torch.no_grad():
        right = int((opened.model.double()(x).argmax(1) == test.labels).sum())
    assert found.accuracy == accuracy(right, 300)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["accuracy"] == found.accuracy.mean
    assert told["sha256"] == found.sha256 == sha256(found.folder / "model.safetensors")


def test_a_run_resumed_is_the_same_to_the_bit(tmp_path: Path) -> None:
    chosen = replace(PLAIN, steps=12, shift=0.1, validate_every=4)
    pools = digits(0, 200), digits(200, 260)
    train_classifier(*pools, chosen, tmp_path / "whole")
    stopped = train_classifier(*pools, replace(chosen, stop_after=5), tmp_path / "parts")
    assert (stopped.is_finished, stopped.folder) == (False, None)
    found = train_classifier(*pools, chosen, tmp_path / "parts")
    assert found.is_finished
    states = [load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts")]
    assert states[0][1] == states[1][1]
    assert states[0][0].keys() == states[1][0].keys()
    for key, value in states[0][0].items():
        assert torch.equal(value, states[1][0][key]), key
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert "accuracy" in json.loads(lines[0].splitlines()[3])


def test_other_pictures_or_options_are_refused(tmp_path: Path) -> None:
    chosen = replace(PLAIN, steps=4, stop_after=2)
    test = digits(200, 230)
    train_classifier(digits(0, 100), test, chosen, tmp_path)
    with pytest.raises(InputError, match=r"was started with pictures 100 of .*, not 90 of"):
        train_classifier(digits(0, 90), test, chosen, tmp_path)
    with pytest.raises(InputError, match="was started with --width 4, not 5"):
        train_classifier(digits(0, 100), test, replace(chosen, width=5), tmp_path)
    wide = Pool(torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(InputError, match=r"\(1, 9, 9\), not \(1, 8, 8\)"):
        train_classifier(digits(0, 100), wide, chosen, tmp_path)
    for given, line in (
        ({"train": "head"}, "fresh weights must all be trained"),
        ({"test": "t", "hold_out": 5}, "give one of the two"),
        ({"channels": 2}, "choose 0, 1 or 3"),
    ):
        with pytest.raises(UsageError, match=line):
            ClassifierOptions(**given)


def test_classes_of_the_test_set_are_matched_by_name(tmp_path: Path) -> None:
    chosen = replace(PLAIN, steps=30)
    plain, turned = digits(1000, 1200), digits(1000, 1200, tuple("9876543210"))
    assert turned.labels is not None
    other = Pool(turned.images, 9 - turned.labels, turned.classes)
    found = train_classifier(digits(0, 1000), other, chosen, tmp_path / "other")
    assert found == replace(
        train_classifier(digits(0, 1000), plain, chosen, tmp_path / "plain"),
        folder=tmp_path / "other" / "model",
    )


def _class_folders(root: Path, first: int, last: int) -> Path:
    pool = digits(first, last)
    assert pool.labels is not None
    for row, label in enumerate(pool.labels.tolist()):
        if label < 3:
            (root / f"digit{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pool.images[row, 0].numpy()).save(root / f"digit{label}" / f"{row}.png")
    return root


def test_folders_of_pictures_are_held_out_or_measured_on_others(tmp_path: Path) -> None:
    said: list[str] = []
    data = _class_folders(tmp_path / "data", 0, 200)
    chosen = replace(PLAIN, steps=5, data=str(data), hold_out=4)
    held = gan_classifier(tmp_path / "held", chosen, said.append)
    assert held.accuracy is not None
    assert any("8×8 grey" in line for line in said)
    count = len(list(data.rglob("*.png")))
    assert held.accuracy.count == count // 4
    with pytest.raises(InputError, match="has no folder 'test'"):
        gan_classifier(tmp_path / "none", replace(chosen, hold_out=0), said.append)
    test = _class_folders(tmp_path / "test", 200, 300)
    given = gan_classifier(
        tmp_path / "given", replace(chosen, hold_out=0, test=str(test)), said.append
    )
    assert given.accuracy is not None
    assert given.accuracy.count == len(list(test.rglob("*.png")))


def test_the_shipped_network_is_small_and_is_what_its_card_says() -> None:
    folder = shipped_folder("fmnist-cnn")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 500_000
    opened = open_model("fmnist-cnn")
    assert len(opened.classes) == 10
    assert (opened.preprocessing.channels, opened.preprocessing.size) == (1, (28, 28))
    digest = sha256(folder / "model.safetensors")
    assert digest in card("fmnist-cnn")
    told = json.loads((folder / "model.json").read_text())["history"][-1]["accuracy"]
    assert told > 0.92
    assert f"{100 * told:.2f} %" in card("fmnist-cnn")
    with safe_open(folder / "model.safetensors", "pt") as file:
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert dtypes == {"F32", "I64"}


def _has_fashion() -> bool:
    try:
        return find_idx(find_dataset("fashion-mnist"), "test") is not None
    except InputError:
        return False


@pytest.mark.skipif(not _has_fashion(), reason="needs Debian's dataset-fashion-mnist")
def test_the_shipped_network_knows_fashion() -> None:
    """Its accuracy is recomputed where the data are: 2000 of the test pictures."""
    opened = open_model("fmnist-cnn")
    test = read_pool("fashion-mnist", size=28, conditional=True, split="test", say=lambda _: None)
    assert test.labels is not None
    with torch.no_grad():
        answers = opened.model(test.images[:2000].float() / 127.5 - 1).argmax(1).tolist()
    right = [
        opened.classes[answer] == test.classes[label]
        for answer, label in zip(answers, test.labels[:2000].tolist(), strict=True)
    ]
    assert sum(right) > 0.91 * 2000
