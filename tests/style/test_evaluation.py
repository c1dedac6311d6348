from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from normapps.data.images import fit
from normapps.data.sources import PictureSource
from normapps.errors import InputError
from normapps.models.vgg import Vgg19
from normapps.style.evaluation import Report, Row, compare, evaluate, pairing
from normapps.style.quality import METRICS, score


@pytest.fixture
def sources(tmp_path: Path, photos: dict[str, np.ndarray]) -> tuple[PictureSource, PictureSource]:
    """Three contents and two styles of various sizes, some below the size of evaluation."""
    for kind, names in (("contents", ("astronaut", "rocket", "china")), ("styles", ("flower",))):
        (tmp_path / kind).mkdir()
        for i, name in enumerate(names):
            Image.fromarray(photos[name][: 60 + 20 * i, :90]).save(tmp_path / kind / f"{name}.png")
    Image.fromarray(photos["coffee"][:200, :150]).save(tmp_path / "styles" / "coffee.png")
    return PictureSource([str(tmp_path / "contents")]), PictureSource([str(tmp_path / "styles")])


def untouched(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    return content


def test_evaluate_scores_each_pair_at_one_size(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def inverted(content: np.ndarray, style: np.ndarray) -> np.ndarray:
        seen.append((content, style))
        return 255 - content

    told: list[tuple[int, Row]] = []
    report = evaluate(
        inverted, *sources, pairs=4, vgg=random_vgg, size=72, progress=lambda *now: told.append(now)
    )
    assert [max(x.shape) for pair in seen for x in pair] == [72] * 8
    for row, (content, style) in zip(report.rows, seen, strict=True):
        assert row.scores == score(255 - content, content, style, random_vgg)
        assert row.seconds > 0
    assert told == list(enumerate(report.rows, 1))
    names = [sources[0].name(c) for c, _ in pairing(3, 2, 4)]
    assert [row.content for row in report.rows] == names


def test_untouched_pictures_have_ssim_1_and_the_report_says_all(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    report = evaluate(untouched, *sources, pairs=3, vgg=random_vgg, size=64, seed=5)
    summary = report.summary()
    assert (summary["ssim"].mean, summary["ssim"].margin) == (1, 0)
    assert summary["rel_content"].mean == 0
    rel_style = [row.scores.rel_style for row in report.rows]
    assert summary["rel_style"].mean == pytest.approx(np.mean(rel_style))
    assert summary["rel_style"].low < min(rel_style) + np.ptp(rel_style)
    whole = json.loads(report.to_json())
    assert (whole["pairs"], whole["size"], whole["judged"], whole["seed"]) == (3, 64, 256, 5)
    assert whole["rows"][1]["content"] == report.rows[1].content
    assert whole["rows"][1]["rel_style"] == pytest.approx(rel_style[1], abs=1e-5)
    assert list(whole["summary"]) == list(METRICS)


def test_two_evaluations_give_the_same_numbers(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    def rows(report: Report) -> list[tuple[object, ...]]:
        return [(row.content, row.style, row.scores) for row in report.rows]

    runs = [evaluate(untouched, *sources, pairs=2, vgg=random_vgg, size=48) for _ in range(2)]
    assert rows(runs[0]) == rows(runs[1])


def test_an_interval_needs_two_pairs(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    with pytest.raises(InputError, match="1 pairs: an interval needs at least 2"):
        evaluate(untouched, *sources, pairs=1, vgg=random_vgg)


def test_an_output_of_another_size_is_refused(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    with pytest.raises(InputError, match="judged at its content's size"):
        evaluate(lambda c, s: c[:-1], *sources, pairs=2, vgg=random_vgg, size=48)


def test_pairing_uses_every_picture_before_any_again() -> None:
    pairs = pairing(7, 3, 21)
    assert set(Counter(c for c, _ in pairs).values()) == {3}
    assert set(Counter(s for _, s in pairs).values()) == {7}
    assert sorted(c for c, _ in pairs[:7]) == list(range(7))
    assert sorted(c for c, _ in pairs[7:14]) == list(range(7))
    assert pairs[:7] != pairs[7:14]


def test_pairing_depends_on_the_seed_and_fewer_pairs_are_the_first_of_more() -> None:
    assert pairing(40, 30, 50) == pairing(40, 30, 50)
    assert pairing(40, 30, 50) != pairing(40, 30, 50, seed=1)
    assert pairing(40, 30, 95)[:33] == pairing(40, 30, 33)


def test_a_picture_that_cannot_be_judged_costs_its_pair_only(
    tmp_path: Path,
    photos: dict[str, np.ndarray],
    sources: tuple[PictureSource, PictureSource],
    random_vgg: Vgg19,
) -> None:
    tmp_path = tmp_path / "mixed"
    tmp_path.mkdir()
    for i, name in enumerate(("coffee", "chelsea")):
        Image.fromarray(photos[name]).resize((96, 64)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"damaged")
    Image.new("RGB", (600, 12)).save(tmp_path / "3.png")
    source = PictureSource([str(tmp_path)])
    with pytest.warns(UserWarning, match="pair left out") as caught:
        report = evaluate(untouched, source, sources[1], pairs=4, vgg=random_vgg, size=64)
    assert len(caught) == 2
    assert sorted(row.content for row in report.rows) == ["0.png", "1.png"]


def test_too_few_pairs_that_can_be_judged_are_said(tmp_path: Path, random_vgg: Vgg19) -> None:
    (tmp_path / "bad.png").write_bytes(b"damaged")
    source = PictureSource([str(tmp_path)])
    with (
        pytest.warns(UserWarning, match=r"bad\.png"),
        pytest.raises(InputError, match="0 of 3 pairs could be judged"),
    ):
        evaluate(untouched, source, source, pairs=3, vgg=random_vgg, size=64)


def mean_color(pixels: np.ndarray) -> list[Tensor]:
    """A judge that sees two "features": the picture itself, and its squares."""
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]
    return [image, image.square()]


def test_methods_are_compared_on_the_same_pairs_as_if_each_were_alone(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    def inverted(content: np.ndarray, style: np.ndarray) -> np.ndarray:
        return 255 - content

    methods = {"inverted": inverted, "untouched": untouched}
    told: list[tuple[int, list[str]]] = []
    both = compare(
        methods, *sources, pairs=3, vgg=random_vgg, size=72, seed=2,
        progress=lambda done, rows: told.append((done, list(rows))),
    )  # fmt: skip
    assert told == [(done, list(methods)) for done in (1, 2, 3)]
    for name, stylize in methods.items():
        alone = evaluate(stylize, *sources, pairs=3, vgg=random_vgg, size=72, seed=2)
        assert [row.flat() for row in both[name].rows] == [row.flat() for row in alone.rows]
        assert [row.content for row in both[name].rows] == [row.content for row in alone.rows]
    assert both["inverted"].values("ssim") != both["untouched"].values("ssim")


def test_a_further_judge_measures_the_style_in_its_own_features(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def paler(content: np.ndarray, style: np.ndarray) -> np.ndarray:
        seen.append((content, style))
        return content // 2

    report = compare(
        {"paler": paler}, *sources, pairs=2, vgg=random_vgg, size=260, others={"mean": mean_color}
    )["paler"]
    for row, (content, style) in zip(report.rows, seen, strict=True):
        shown, wanted = (fit(x, 256) / 255 for x in (content // 2, style))
        distances = []
        for power in (1, 2):
            got, want = (
                np.concatenate([x.mean((0, 1)), np.sqrt(x.var((0, 1)) + 1e-5)])
                for x in (shown**power, wanted**power)
            )
            distances.append(((got - want) ** 2).sum() / (want**2).sum())
        assert row.others == {"mean": pytest.approx(np.mean(distances), rel=1e-9)}
    summary = report.summary()
    assert list(summary) == [*METRICS, "mean"]
    assert summary["mean"].mean == pytest.approx(np.mean(report.values("mean")))
    assert json.loads(report.to_json())["rows"][0]["mean"] > 0


def test_nothing_to_compare_is_said(
    sources: tuple[PictureSource, PictureSource], random_vgg: Vgg19
) -> None:
    with pytest.raises(InputError, match="no methods to compare"):
        compare({}, *sources, pairs=2, vgg=random_vgg)
