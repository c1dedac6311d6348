"""Comparisons of GANs: runs that are kept, runs that the watch stops, tables and verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401  (guard)
from normapps.engine.run import load_checkpoint
from normapps.errors import InputError, UsageError
from normapps.gan import compare as module
from normapps.gan.compare import Outcome, Scoring, compare
from normapps.gan.compare_options import CompareOptions, Variant
from normapps.gan.compare_report import (
    compare_report,
    judge,
    run_table,
    text_table,
    throughput,
    variant_table,
)
from normapps.gan.options import TrainOptions
from normapps.gan.run import open_run
from normapps.gan.train import train
from normapps.gan.watch import WatchError
from normapps.measure.report import RECOMMENDED, UNDECIDED, Figure, write_report


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits, 8×8, as a file of arrays."""
    from sklearn.datasets import load_digits

    found = load_digits()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = (found.images[:100] * 15).astype(np.uint8)
    np.savez(path, x_train=images, y_train=found.target[:100])
    return path


@pytest.fixture
def few(digits: Path) -> CompareOptions:
    return CompareOptions(
        data=str(digits), config="sngan-28", d_norms="none,sn", seeds=1, steps=2, batch_size=4,
        n_dis=1, width=2, d_width=2, latent=4, standing=8, sample_every=0, device="cpu",
        precision="float32",
    )  # fmt: skip


class Counter:
    """A score that tells how often it was asked: the mean of the last convolution's weights."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, generator: nn.Module) -> Mapping[str, float]:
        self.asked += 1
        weight = generator.get_parameter("conv.weight")
        return {"fd": float(weight.mean().detach()), "asked": float(self.asked)}


def outcome(
    norm: str, seed: int, value: float, folder: Path = Path("none"), stopped: str = ""
) -> Outcome:
    return Outcome(Variant(norm), seed, folder, {1: {"fd": value, "recall": 0.5}}, stopped)


def test_every_variant_gets_every_seed_and_is_scored(few: CompareOptions, tmp_path: Path) -> None:
    counter = Counter()
    found = compare(replace(few, seeds=2), tmp_path, Scoring(counter), say=lambda _: None)
    assert [(each.variant.name, each.seed) for each in found] == [
        ("none", 0), ("sn", 0), ("none", 1), ("sn", 1),
    ]  # fmt: skip
    assert counter.asked == 4
    for each in found:
        run = open_run(each.folder)
        assert run.options.d_norm == each.variant.d_norm
        assert run.options.seed == each.seed
        weight = run.generator().get_parameter("conv.weight")
        assert each.final["fd"] == float(weight.mean().detach())
    assert len({each.final["fd"] for each in found}) == 4


def test_what_is_there_is_kept_and_more_is_added(few: CompareOptions, tmp_path: Path) -> None:
    counter = Counter()
    first = compare(few, tmp_path, Scoring(counter), say=lambda _: None)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    more = replace(few, seeds=2, d_norms="none,sn,ws")
    found = compare(more, tmp_path, Scoring(counter), say=lambda _: None)
    assert counter.asked == 2 + 4
    assert found[:2] == first
    assert {path: path.stat().st_mtime_ns for path in files} == files
    with pytest.raises(InputError, match="was started with --steps 2, not 3"):
        compare(replace(few, steps=3), tmp_path, Scoring(counter), say=lambda _: None)


def test_an_interrupted_comparison_ends_like_one_that_was_not(
    few: CompareOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(few, d_norms="sn", steps=4, score_every=2)
    scoring = Scoring(Counter(), on_the_way=lambda generator: {"fd": 7.0})
    whole = compare(chosen, tmp_path / "whole", scoring, say=lambda _: None)
    assert sorted(whole[0].scores) == [2, 4]
    assert whole[0].scores[2] == {"fd": 7.0}
    assert whole[0].final.keys() == {"fd", "asked"}

    def interrupted(options: TrainOptions, folder: Path, **rest: object) -> Path:
        train(replace(options, stop_after=3), folder, say=lambda _: None)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(chosen, tmp_path / "parts", Scoring(Counter()), say=lambda _: None)
    parts = compare(chosen, tmp_path / "parts", Scoring(Counter()), say=lambda _: None)
    assert sorted(parts[0].scores) == [4]  # step 2 went by unscored
    assert parts[0].final["fd"] == whole[0].final["fd"]
    states = [
        load_checkpoint(each[0].folder / "checkpoint" / "latest.safetensors")[0]
        for each in (whole, parts)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_run_that_diverged_is_a_row(
    few: CompareOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def diverging(options: TrainOptions, folder: Path, **rest: object) -> Path:
        asked.append(options.d_norm)
        if options.d_norm == "none":
            raise WatchError("step 7: the generator has collapsed")
        return train(options, folder, say=lambda _: None)

    monkeypatch.setattr(module, "train", diverging)
    said: list[str] = []
    for _ in range(2):  # the second time nothing is trained
        found = compare(few, tmp_path, Scoring(Counter()), say=said.append)
    assert asked == ["none", "sn"]
    assert found[0].stopped == "step 7: the generator has collapsed"
    assert not found[0].final
    assert "none, seed 0: stopped: step 7: the generator has collapsed" in said
    rows = run_table(found).rows
    assert rows[0][2:4] == ["—", "—"]
    assert rows[0][-1] == "stopped at step 7: the generator has collapsed"
    assert rows[1][-1] == ""
    assert rows[1][2] == found[1].final["fd"]
    assert judge(found).verdict == UNDECIDED
    assert variant_table(found).rows[0] == ["none", "—", "—", "—", "0 of 1"]


def test_the_verdict_wants_runs_that_do_not_overlap() -> None:
    apart = [outcome("sn", 0, 3.0), outcome("sn", 1, 4.0)]
    apart += [outcome("gn", 0, 5.0), outcome("gn", 1, 9.0)]
    assert judge(apart).verdict == RECOMMENDED
    assert (
        judge(apart).reason == "sn: each of its runs is ahead in fd: sn 3.5 (3 … 4); gn 7 (5 … 9)"
    )
    assert [row[0:4] for row in variant_table(apart).rows] == [
        ["sn", 3.5, 3.0, 4.0], ["gn", 7.0, 5.0, 9.0],
    ]  # fmt: skip
    mixed = [*apart, outcome("ws", 0, 3.5), outcome("ws", 1, 20.0)]
    assert judge(mixed).verdict == UNDECIDED
    assert "overlap" in judge(mixed).reason
    once = [outcome("sn", 0, 3.0), outcome("gn", 0, 5.0)]
    assert "Give two seeds" in judge(once).reason
    assert "Every run was stopped" in judge([outcome("gn", 0, 1.0, stopped="step 3: x")]).reason


def test_the_report_has_the_table_and_the_curves(few: CompareOptions, tmp_path: Path) -> None:
    chosen = replace(few, seeds=2)
    found = []
    for seed in range(2):
        for place, norm in enumerate(("none", "sn")):
            folder = tmp_path / f"{norm}-{seed}"
            folder.mkdir()
            lines = [
                {"step": i, "d_loss": i + 10 * seed + 100 * place, "images_per_s": i}
                for i in range(250)
            ]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
            scores = {100: {"fd": 9.0 - place}, 250: {"fd": 5.0 - place + seed}}
            found.append(Outcome(Variant(norm), seed, folder, scores))
    report = compare_report(chosen, found, Scoring(Counter(), ("Extractor E.",)))
    assert report.lead[1] == "Extractor E."
    figures = [part for each in report.sections for part in each.parts if isinstance(part, Figure)]
    by_step, d_loss = (each.plot for each in figures)
    assert by_step.series == {"none": [9.0, 5.5], "sn": [8.0, 4.5]}  # type: ignore[union-attr]
    # three steps a point, the mean over two seeds
    assert d_loss.series["none"][0] == pytest.approx(1 + 5)  # type: ignore[union-attr]
    assert d_loss.series["sn"][-1] == pytest.approx(249 + 105)  # type: ignore[union-attr]
    assert throughput(found[0]) == 125
    write_report(tmp_path, report)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["runs"][3]["scores"] == {"100": {"fd": 8.0}, "250": {"fd": 5.0}}
    assert told["options"]["seeds"] == 2
    page = (tmp_path / "report.html").read_text()
    assert "By normalization" in page
    assert "Extractor E." in page


def test_the_text_table_is_aligned() -> None:
    lines = text_table(run_table([outcome("sn", 0, 3.14159), outcome("none", 12, 10.0)]))
    assert lines.splitlines() == [
        "norm  seed     fd  recall  images/s",
        "sn       0  3.142     0.5         —",
        "none    12     10     0.5         —",
    ]


def test_options_are_those_of_training(few: CompareOptions) -> None:
    recipe = few.recipe(Variant("gn", "wc"), 3)
    assert (recipe.d_norm, recipe.g_norm, recipe.seed, recipe.width) == ("gn", "wc", 3, 2)
    assert few.variants == (Variant("none"), Variant("sn"))
    both = replace(few, g_norms="bn,wc", sigma="conv")
    assert [each.name for each in both.variants] == ["none-bn", "sn-bn", "none-wc", "sn-wc"]
    assert [both.recipe(each, 0).sigma for each in both.variants[:2]] == ["reshape", "conv"]
    for given, line in (
        ({"d_norms": "sn,spectral"}, "unknown norm 'spectral'"),
        ({"d_norms": "sn,sn"}, "sn stands there twice"),
        ({"g_norms": "cbn"}, "add --cond"),
        ({"data": ""}, "--data: is missing"),
    ):
        with pytest.raises(UsageError, match=line):
            replace(few, **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--seeds 0"):
        replace(few, seeds=0)
