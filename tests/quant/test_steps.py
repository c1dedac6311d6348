"""Steps before rounding: their order, what each row says, and who teaches the finetuning."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.measure.clock import Clock
from normapps.norm.nesting import detached_copy
from normapps.quant import steps
from normapps.quant.clip import ChannelClip
from normapps.quant.finetune import Finetuning
from normapps.quant.options import QuantizeOptions
from normapps.quant.pictures import Seen
from normapps.quant.steps import Prepared, fold, transform

CPU = torch.device("cpu")


def network(activation: type[nn.Module] = nn.ReLU6, norm: bool = True) -> nn.Module:
    """Two convolutions of very different channels and a classifier."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6) if norm else nn.Identity() for _ in range(2)]
    for each in norms:
        if isinstance(each, nn.BatchNorm2d):
            each.weight.data = torch.logspace(-2, 1, 6)
            each.bias.data.fill_(0.5)
            each.running_var = torch.rand(6) + 0.5
    body = [nn.Conv2d(3, 6, 3), norms[0], activation(), nn.Conv2d(6, 6, 3), norms[1], activation()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


class Shown:
    """Pictures that calibrate, as `transform` asks for them."""

    calibrating = 4

    def calibration(self) -> Any:
        yield torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def prepared(model: nn.Module) -> Prepared:
    return fold(model, torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(2)))


def run(found: Prepared, seen: Any = None, **how: Any) -> dict[str, str]:
    """What the steps said, by name, in order."""
    options = QuantizeOptions(**({"data": "here"} if seen else {"data_free": True}), **how)
    transform(found, options, seen, CPU, Clock())
    return {step.name: step.said for step in found.steps}


def test_folding_says_how_many_and_where_to() -> None:
    found = prepared(network())
    (step,) = found.steps
    assert step.said.startswith("2 of 2 norm layers: 2 into the layer before; the outputs")
    assert step.numbers["folded"] == {"after": 2}
    assert not found.is_changed
    assert set(found.statistics) == {"0", "3"}


def test_equalization_tells_the_price_of_a_bound_a_channel() -> None:
    said = run(prepared(network()), per_channel=False)
    assert list(said) == ["fold", "equalization", "absorption", "bounds", "bias correction"]
    assert said["bounds"].startswith("2 ReLU6 with a bound for each channel now, which is computed")
    assert said["bounds"].endswith("--per-channel needs none")
    assert run(prepared(network()), equalize=True)["bounds"].endswith("--no-equalize needs none")
    kept = prepared(network())
    said = run(kept, per_channel=False, relu6="keep")
    clips = sum(isinstance(each, ChannelClip) for each in kept.model.modules())
    assert said["bounds"].startswith(f"{clips} ReLU6")  # absorbed, which shifts a bound
    assert "bounds" not in run(prepared(network(nn.ReLU)), per_channel=False)
    plain = prepared(network())
    assert list(run(plain)) == ["fold", "bias correction"]
    assert sum(isinstance(each, nn.ReLU6) for each in plain.model.modules()) == 2


def test_replaced_clips_say_what_they_clipped() -> None:
    said = run(prepared(network()), per_channel=False, relu6="replace")["equalization"]
    assert "2 ReLU6 replaced by ReLU, which clipped" in said


def test_reasons_are_grouped() -> None:
    said = run(prepared(network(nn.SiLU)), per_channel=False)["equalization"]
    assert "left as they are: channels of 3 layers (2: aten.silu takes them; 1: an output" in said
    assert steps._reasons([("a", "x"), ("b", "x")]) == "2 layers (x)"
    many = [(f"{i}", word) for i, word in enumerate("aabbcde")]
    assert steps._reasons(many) == "7 layers (2: a; 2: b; 1: c; 2: others)"


@pytest.mark.parametrize("seen", [None, Shown()])
def test_bias_correction_says_what_it_went_by(seen: Seen | None) -> None:
    said = run(prepared(network()), seen)["bias correction"]
    assert said.startswith("3 layers (3 by pictures)" if seen else "2 layers (")
    assert "by pictures" in said if seen else "left as they are: 1 layer (" in said


def test_without_statistics_and_pictures_nothing_is_corrected() -> None:
    found = prepared(network(norm=False))
    before = {name: each.clone() for name, each in found.model.state_dict().items()}
    assert run(found)["bias correction"].startswith("left out: no norm was folded")
    assert not found.is_changed
    assert all(torch.equal(each, before[name]) for name, each in found.model.state_dict().items())
    assert "absorption" not in run(prepared(network(norm=False)), per_channel=False)


def test_finetuning_comes_last_and_the_network_as_it_was_given_teaches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teachers: list[nn.Module] = []

    def finetune(model: nn.Module, batches: Any, options: Any, *, teacher: nn.Module) -> Finetuning:
        assert next(iter(batches)).shape == (4, 3, 9, 9)
        teachers.append(teacher)
        done = Finetuning()
        done.losses = (0.5, 0.25)
        return done

    monkeypatch.setattr(steps, "finetune_", finetune)
    found = prepared(network())
    given = detached_copy(found.model)
    said = run(found, Shown(), per_channel=False, bn_reestimate=True, finetune=2, relu6="replace")
    last = ["re-estimation", "bias correction", "finetuning"]
    assert list(said) == ["fold", "equalization", "absorption", *last]
    assert "2 steps with rounded weights" in said["finetuning"]
    assert "0.5 → 0.25 nats" in said["finetuning"]
    x: Tensor = next(Shown().calibration())
    with torch.no_grad():
        assert torch.equal(teachers[0](x), given(x))
        assert not torch.allclose(found.model(x), given(x))


def test_re_estimation_tells_the_largest_change_in_per_cent() -> None:
    found = prepared(network())
    said = run(found, Shown(), bn_reestimate=True)["re-estimation"]
    factors = next(step for step in found.steps if step.name == "re-estimation").numbers["factors"]
    assert f"change by up to {100 * (max(factors.values()) - 1):.2g} %" in said
    assert Counter(each.partition(".")[0] for each in factors) == Counter("03")
