from __future__ import annotations

import copy
import math

import pytest
import torch
from rounding_networks import badly_scaled, damage_of, pictures
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.correction import correct_bias_
from normapps.quant.fake import fake_quantize_, output_axis
from normapps.quant.grid import integers, weight_grid
from normapps.quant.reestimate import reestimate_

LAYERS = ("stem.0", "depth.0", "group.0", "up.0")


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """(O, values) of each layer in float64."""
    twin, seen = copy.deepcopy(model).double(), {}
    for name in LAYERS:
        twin.get_submodule(name).register_forward_hook(
            lambda layer, args, out, name=name: seen.update({name: out})
        )
    with torch.no_grad():
        twin(x.double())
    return {name: each.transpose(0, 1).flatten(1) for name, each in seen.items()}


def test_rounded_layers_give_the_float_means_and_variances_again() -> None:
    model, statistics = badly_scaled()
    x = pictures(48, 2)
    wanted = outputs(model, x)
    reestimate_(model, statistics, [x], bits=4)  # on the grid already, as the weights now are
    found = outputs(model, x)
    for name in LAYERS:
        torch.testing.assert_close(found[name].mean(1), wanted[name].mean(1), rtol=0, atol=1e-5)
        torch.testing.assert_close(found[name].std(1), wanted[name].std(1), rtol=1e-4, atol=0)


def test_with_the_statistics_as_reference_they_are_what_layers_give() -> None:
    model, statistics = badly_scaled()
    x = 0.5 * pictures(48, 2) - 0.4  # another domain
    reestimate_(model, statistics, [x], bits=4, reference="statistics")
    found = outputs(model, x)
    for name in LAYERS:
        mean, var = statistics[name].mean[0].double(), statistics[name].var[0].double()
        torch.testing.assert_close(found[name].mean(1), mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[name].var(1, correction=0), var, rtol=1e-3, atol=0)


def test_one_layer_by_hand() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 1)
    weight, bias = layer.weight.detach().double(), layer.get_parameter("bias").detach().double()
    known = Moments(torch.zeros(1), torch.zeros(1, 4), torch.ones(1, 4), None, BATCH)
    x = pictures(8, 0)
    done = reestimate_(nn.Sequential(layer), {"0": known}, x.split(3), bits=4, per_channel=False)
    scale = weight.abs().max() / 7
    rounded = (weight / scale).round() * scale
    rows = x.double().transpose(0, 1).flatten(1)
    before, after = (w.flatten(1) @ rows + bias[:, None] for w in (weight, rounded))
    factor = before.std(1) / after.std(1)
    wanted = factor * (bias - after.mean(1)) + before.mean(1)
    torch.testing.assert_close(
        layer.weight.double(), rounded * factor.view(4, 1, 1, 1), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(layer.get_parameter("bias").double(), wanted, rtol=0, atol=2e-5)
    torch.testing.assert_close(done.layers[0].factor, factor, rtol=1e-4, atol=0)
    shift = after.mean(1) - before.mean(1)
    torch.testing.assert_close(done.layers[0].shift, shift, rtol=0, atol=1e-6)


def test_per_channel_the_integers_stay_and_scales_move() -> None:
    model, statistics = badly_scaled()
    layers = [name for name in LAYERS if name != "up.0"]  # whose groups share scales

    def grids() -> list[tuple[Tensor, Tensor]]:
        found = []
        for name in layers:
            layer = model.get_submodule(name)
            weight = layer.get_parameter("weight").detach()
            grid = weight_grid(weight, per_channel=True, axis=output_axis(layer))
            found.append((integers(weight, grid), grid.scale.flatten().double()))
        return found

    before = grids()
    done = reestimate_(model, statistics, pictures(64, 5).split(32))
    factors = {each.layer: each.factor for each in done.layers}
    for name, old, new in zip(layers, before, grids(), strict=True):
        assert torch.equal(old[0], new[0])
        torch.testing.assert_close(new[1], old[1] * factors[name], rtol=1e-6, atol=0)
        assert not torch.equal(old[1], new[1])


@pytest.mark.parametrize("per_channel", [False, True])
def test_re_estimation_shrinks_the_shift_and_the_error(per_channel: bool) -> None:
    model, statistics = badly_scaled()
    shift, error = damage_of(model, per_channel)
    batches = pictures(96, 5).split(32)
    done = reestimate_(model, statistics, batches, per_channel=per_channel)
    found_shift, found_error = damage_of(model, per_channel)
    assert found_shift < 0.5 * shift
    assert found_error < 0.8 * error
    assert [each.layer for each in done.layers] == list(LAYERS)
    assert done.skipped == (("head", "no batch norm was folded into it"),)
    correct_bias_(model, batches[0], statistics, per_channel=per_channel, batches=batches)
    assert damage_of(model, per_channel)[0] < 0.25 * shift


def test_a_dead_channel_stays_what_it_is() -> None:
    model, statistics = badly_scaled()
    weight, bias = (model.get_parameter(f"stem.0.{name}") for name in ("weight", "bias"))
    weight.data[3], bias.data[3] = 0, 0.7
    reestimate_(model, statistics, [pictures(16, 2)], per_channel=False)
    assert not bool(weight[3].any())
    assert float(bias.detach()[3]) == pytest.approx(0.7, abs=1e-6)


def test_a_channel_that_rounding_crushes_keeps_its_mean() -> None:
    model, statistics = badly_scaled()
    x = pictures(16, 2)
    model.get_parameter("stem.0.weight").data[5] *= 1e-4
    wanted = outputs(model, x)["stem.0"][5].mean()
    done = reestimate_(model, statistics, [x], per_channel=False)
    assert float(done.layers[0].factor[5]) == 1
    assert not bool(model.get_parameter("stem.0.weight")[5].any())
    found = outputs(model, x)["stem.0"][5]
    assert float(found.std()) == 0
    assert float(found[0]) == pytest.approx(float(wanted), abs=1e-6)


def test_a_layer_without_statistics_and_an_excluded_one_stay() -> None:
    model, statistics = badly_scaled()
    del statistics["group.0"]
    before = copy.deepcopy(model.state_dict())
    done = reestimate_(model, statistics, [pictures(16, 2)], exclude=["up"])
    assert dict(done.skipped).keys() == {"group.0", "head"}
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.rpartition(".")[0] for name in changed} == {"stem.0", "depth.0"}


def test_everything_is_taken_back_to_the_bit() -> None:
    model, statistics = badly_scaled()
    model.train()
    before, known = copy.deepcopy(model.state_dict()), dict(statistics)
    with reestimate_(model, statistics, [pictures(16, 2)], activations={"head": (0.0, 3.0)}):
        assert not torch.equal(model.get_parameter("up.0.weight"), before["up.0.weight"])
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert statistics == known
    assert all(module.training for module in model.modules())


def test_it_needs_one_reading_only() -> None:
    model, statistics = badly_scaled()
    reestimate_(model, statistics, iter(pictures(32, 2).split(16)))
    first = copy.deepcopy(model.state_dict())
    model, statistics = badly_scaled()
    reestimate_(model, statistics, [{"image": x} for x in pictures(32, 2).split(16)])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in first.items())


def test_what_cannot_be_re_estimated_is_said_and_nothing_changes() -> None:
    model, statistics = badly_scaled()
    before, x = copy.deepcopy(model.state_dict()), pictures(4, 0)
    with pytest.raises(InputError, match="unknown reference 'flaot'; did you mean 'float'"):
        reestimate_(model, statistics, [x], reference="flaot")
    with pytest.raises(InputError, match="no statistics: no batch norm"):
        reestimate_(model, {}, [x])
    with pytest.raises(InputError, match="no batches to compare"):
        reestimate_(model, statistics, [])
    with pytest.raises(InputError, match=r"layer 'stem\.0': activations are not finite"):
        reestimate_(model, statistics, [x, torch.full_like(x, math.nan)])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_one_sample_has_no_variance() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    known = Moments(torch.zeros(1), torch.zeros(1, 4), torch.ones(1, 4), None, BATCH)
    with pytest.raises(InputError, match="layer '0': all pictures together give one value"):
        reestimate_(model, {"0": known}, [torch.zeros(1, 3)])
    with fake_quantize_(model):
        assert model(torch.zeros(1, 3)).shape == (1, 4)
