"""Distances before and after translation, under a small network that is given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.errors import InputError, UsageError
from normapps.gan.translation.evaluate import evaluate_translation
from normapps.gan.translation.options import TranslateEvaluateOptions
from normapps.models.folder import build, save_model
from normapps.models.translator import adalin_generator


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark pictures, light ones, an extractor, and translators that lighten them or leave them."""
    root = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 160)):
        (root / name).mkdir()
        for number in range(40):
            pixels = rng.integers(level - 40, level + 40, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    arguments = {"num_classes": 3, "width": 2}
    network = build("small-cnn", arguments, seed=0)
    preprocessing = {"size": [16, 16], "resize": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3}
    save_model(
        root / "judge",
        network,
        builder="small-cnn",
        arguments=arguments,
        preprocessing=preprocessing,
    )
    places = {"size": 16, "source": str(root / "dark"), "target": str(root / "light")}
    for name, change in (("lightens", 100 / 127.5), ("leaves", 0.0)):
        generator = adalin_generator(3, 4, 1)
        torch.nn.init.constant_(generator.get_parameter("image.bias"), change)
        save_model(
            root / name,
            generator,
            builder="adalin-generator",
            arguments={"width": 4, "blocks": 1},
            preprocessing=places,
            history=[{"step": 3, "steps": 5, "ema": 0.9}],
        )
    return root


def chosen(place: Path, name: str) -> TranslateEvaluateOptions:
    return TranslateEvaluateOptions(
        model=str(place / name), extractor=str(place / "judge"), device="cpu"
    )


def test_a_translator_that_does_its_work_comes_nearer(place: Path) -> None:
    found = evaluate_translation(chosen(place, "lightens"), lambda _: None)
    before, after, floor = (side.frechet for side in (found.before, found.after, found.floor))
    assert before is not None
    assert after is not None
    assert floor is not None
    assert after < 0.1 * before
    assert floor < 0.1 * before
    line = found.line()
    assert f"floor fd {floor:.4g}, kd " in line
    assert "40 real" in line
    assert "40 drawn" in line
    assert "EMA 0.9" in line
    assert "step 3 of 5" in line


def test_what_is_left_as_it_is_scores_as_before(place: Path) -> None:
    found = evaluate_translation(chosen(place, "leaves"), lambda _: None)
    assert found.after == found.before


def test_domains_may_be_named(place: Path) -> None:
    """Against its own domain a picture is at no distance."""
    same = replace(chosen(place, "leaves"), target=str(place / "dark"))
    found = evaluate_translation(same, lambda _: None)
    assert found.before.frechet == pytest.approx(0, abs=1e-6)


def test_the_report_is_written_once(place: Path, tmp_path: Path) -> None:
    options = replace(chosen(place, "lightens"), out=str(tmp_path / "r.json"), limit=20)
    found = evaluate_translation(options, lambda _: None)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["after"]["fd"] == found.after.frechet
    assert report["provenance"]["fakes"] == 20
    with pytest.raises(InputError, match="exists already; --overwrite"):
        evaluate_translation(options, lambda _: None)


def test_a_folder_that_tells_nothing_needs_to_be_told(place: Path, tmp_path: Path) -> None:
    arguments = {"width": 4, "blocks": 1}
    generator = adalin_generator(3, **arguments)
    save_model(tmp_path / "m", generator, builder="adalin-generator", arguments=arguments)
    options = replace(chosen(place, "leaves"), model=str(tmp_path / "m"))
    with pytest.raises(InputError, match=r"--size: .* does not tell"):
        evaluate_translation(options, lambda _: None)
    with pytest.raises(UsageError, match="--source is missing"):
        evaluate_translation(replace(options, size=16), lambda _: None)
