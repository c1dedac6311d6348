"""What training sees: pairs by seed, step and process, and VGG's look at each picture once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from normapps.errors import InputError
from normapps.models.vgg import Vgg19
from normapps.style.color import pair_colors
from normapps.style.draws import Draws, look
from normapps.style.losses import LAYERS
from normapps.style.options import TrainOptions


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder of six photographs and one of six paintings, each of one colour."""
    root = tmp_path_factory.mktemp("pictures")
    for kind, blue in (("contents", 0), ("styles", 200)):
        (root / kind).mkdir()
        for i in range(6):
            Image.new("RGB", (40, 32), (40 * i, 0, blue)).save(root / kind / f"{i}.png")
    return str(root / "contents"), str(root / "styles")


@pytest.fixture(scope="module")
def vgg() -> Vgg19:
    torch.manual_seed(0)
    return Vgg19(LAYERS[-1]).eval().requires_grad_(False)


@pytest.fixture
def options(places: tuple[str, str]) -> TrainOptions:
    return TrainOptions(
        contents=(places[0],), styles=(places[1],), hold_out=0, batch_size=4, reuse=2, crop=32,
        paint=2,
    )  # fmt: skip


def test_a_step_draws_the_same_pictures_whenever_it_comes(
    options: TrainOptions, vgg: Vgg19
) -> None:
    draws = Draws(options, vgg, pair_colors)
    known = [draws.batch(step) for step in range(4)]
    again, other = (
        Draws(options, vgg, pair_colors).batch(3),
        Draws(options, vgg, pair_colors, rank=1).batch(3),
    )
    for name in ("content", "style", "wanted_content"):
        assert torch.equal(getattr(known[3], name), getattr(again, name))
    assert all(map(torch.equal, known[3].wanted_style, again.wanted_style))
    assert not torch.equal(known[3].content, other.content)


def test_each_picture_serves_as_many_steps_as_asked_for(options: TrainOptions, vgg: Vgg19) -> None:
    draws = Draws(options, vgg, pair_colors)
    first, second, third = (draws.batch(step).content for step in range(3))
    assert torch.equal(first[2:], second[:2])
    assert torch.equal(second[2:], third[:2])


def test_vgg_looks_at_each_picture_once(
    options: TrainOptions, vgg: Vgg19, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    forward = Vgg19.forward

    def spy(self: Vgg19, image: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
        looked.append(len(image))
        return forward(self, image, layers)

    monkeypatch.setattr(Vgg19, "forward", spy)
    draws = Draws(options, vgg, pair_colors)
    for step in range(3):
        draws.batch(step)
    assert looked == [4, 4, 4, 4]  # two new photographs and paintings each; the first step two such


def test_features_belong_to_the_pictures_beside_them(options: TrainOptions, vgg: Vgg19) -> None:
    batch = Draws(options, vgg, pair_colors).batch(0)
    style, content = look(vgg, batch.style, 2), look(vgg, batch.content, 2)[-1]
    torch.testing.assert_close(content, batch.wanted_content, atol=1e-4, rtol=1e-4)
    for got, want in zip(batch.wanted_style, style, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_network_gets_photographs_in_their_paintings_colours(
    options: TrainOptions, vgg: Vgg19
) -> None:
    batch = Draws(options, vgg, pair_colors).batch(1)
    means = [x.mean((2, 3)) for x in (batch.shown, batch.style, batch.content)]
    assert (means[0] - means[1]).abs().max() < 0.02
    assert (means[0] - means[2]).abs().max() > 0.1
    plain = Draws(options, vgg, lambda content, style: content).batch(1)
    assert torch.equal(plain.shown, batch.content)


def test_pairs_change_from_step_to_step(options: TrainOptions, vgg: Vgg19) -> None:
    draws = Draws(replace(options, reuse=4), vgg, pair_colors)
    pairs: list[set[tuple[float, float]]] = []
    for step in range(6):
        batch = draws.batch(step)
        reds = [x[:, 0].mean((1, 2)).tolist() for x in (batch.content, batch.style)]
        pairs.append(set(zip(*reds, strict=True)))
    assert len(set.union(*pairs)) > 4 + 5  # more than one new pair a step


def test_batches_are_crops_in_range(options: TrainOptions, vgg: Vgg19) -> None:
    batch = Draws(options, vgg, pair_colors).batch(0)
    assert batch.content.shape == batch.style.shape == (4, 3, 64, 64)
    assert batch.wanted_style[0].shape == (4, 64, 32, 32)  # VGG sees it at half the size
    assert 0 <= batch.content.min() < batch.content.max() <= 1


def test_a_damaged_picture_is_named_and_another_drawn(
    options: TrainOptions, vgg: Vgg19, tmp_path: Path, places: tuple[str, str]
) -> None:
    for i in range(3):
        (tmp_path / f"bad{i}.png").write_bytes(b"not a picture")
    mixed = Draws(replace(options, contents=(places[0], str(tmp_path))), vgg, pair_colors)
    with pytest.warns(UserWarning, match=r"bad\d\.png"):
        blues = [mixed.batch(step).content[:, 2].max().item() for step in range(4)]
    assert max(blues) == 0  # photographs all the same, none of them damaged
    none = Draws(replace(options, contents=(str(tmp_path),)), vgg, pair_colors)
    with (
        pytest.warns(UserWarning, match="bad"),
        pytest.raises(InputError, match="10 pictures in a row"),
    ):
        none.batch(0)
