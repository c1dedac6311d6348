"""Which scales a model has, and what is refused before a training begins."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from normapps.errors import InputError
from normapps.models.small import small_cnn
from normapps.slim.regularizer import ScaleRegularizer
from normapps.slim.scales import Scales, scale_layers, split_parameters


def names_of(model: nn.Module, **options: str) -> list[str]:
    return [layer.name for layer in scale_layers(model, **options)]


def test_layers_by_patterns() -> None:
    model = small_cnn(width=4)
    assert len(names_of(model)) == 5
    assert names_of(model, include="features.3") == ["features.3.norm"]
    assert names_of(model, exclude="features.[0-3]") == ["features.5.norm", "features.6.norm"]
    with pytest.raises(InputError, match=r"unknown norm layer 'feature\.3'"):
        scale_layers(model, include="feature.3")


def test_wrapped_models_and_layers_without_scales() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.LayerNorm(3))
    assert names_of(nn.DataParallel(model)) == ["0"]
    compiled = nn.Module()
    compiled._orig_mod = model  # as torch.compile has it, whose first use takes half a minute
    assert names_of(nn.DataParallel(compiled)) == ["0"]


def test_shared_layer_and_shared_scale_count_once() -> None:
    one, two = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    two.weight = one.weight
    assert names_of(nn.Sequential(one, nn.ReLU(), one, two)) == ["0"]


def test_no_batch_norm_is_one_line() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2)), nn.BatchNorm1d(2, affine=False)):
        with pytest.raises(InputError, match="no batch norm with a scale") as error:
            scale_layers(model)
        assert "\n" not in str(error.value)


def test_unknown_class_is_not_guessed() -> None:
    class Odd(nn.BatchNorm1d):
        pass

    with pytest.raises(InputError, match="Odd is not known here"):
        scale_layers(nn.Sequential(Odd(2), nn.BatchNorm1d(2)))


@pytest.mark.parametrize("shifts", [True, False])
def test_split_parameters_takes_each_once(shifts: bool) -> None:
    model = small_cnn(width=4)
    others, spared = split_parameters(model, 0.1, shifts=shifts)
    together = [*others["params"], *spared["params"]]
    assert {id(each) for each in together} == {id(each) for each in model.parameters()}
    assert len(together) == len(list(model.parameters()))
    assert (others["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(spared["params"]) == (10 if shifts else 5)


def test_decay_on_a_scale_is_named() -> None:
    model = small_cnn(width=4)
    optimizer = AdamW(model.parameters())
    match = r"'features\.0\.norm': weight has weight_decay 0\.01.*split_parameters"
    with pytest.raises(InputError, match=match):
        ScaleRegularizer(model, optimizer)


def test_decay_on_a_shift_counts_where_shifts_do() -> None:
    model = small_cnn(width=4)
    optimizer = SGD(split_parameters(model, 0.1, shifts=False), 0.1)
    ScaleRegularizer(model, optimizer).remove()
    with pytest.raises(InputError, match="bias has weight_decay"):
        ScaleRegularizer(model, optimizer, group=True)


def test_scale_outside_of_the_optimizer_is_named() -> None:
    model = small_cnn(width=4)
    optimizer = SGD(model.features[0].parameters(), 0.1)
    with pytest.raises(InputError, match=r"'features\.2\.norm': weight is not among"):
        ScaleRegularizer(model, optimizer)


def test_nan_is_named_by_layer_and_channel() -> None:
    model = small_cnn(width=4)
    with torch.no_grad():
        model.features[3].norm.weight[5] = float("nan")
    with pytest.raises(InputError, match=r"'features\.3\.norm': weight of channel 5 is nan"):
        ScaleRegularizer(model, SGD(model.parameters(), 0.1))


def test_vector_goes_there_and_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3).bfloat16())
    scales = Scales(scale_layers(model), [[0], [2, 4]], shifts=True)
    assert scales.members.tolist() == [[0, 5, 10, 10], [2, 4, 7, 9]]
    assert scales.sizes.tolist() == [1, 2]
    values = torch.arange(10) + 0.001
    lost = scales.write(values)
    assert torch.equal(lost[[0, 1, 5, 6]], torch.zeros(4))
    assert torch.equal(scales.read() + lost, values)
    assert model[1].bias.tolist() == [7, 8, 9]
    assert torch.equal(scales.scatter(scales.gather(values), values), values)


def test_the_quantile_is_of_groups_by_channels() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3))
    scales = Scales(scale_layers(model), [[0], [1, 2], [3], [4]])
    scales.write(torch.tensor([0.1, 0.3, 0.4, 0.8, 0.2]))
    assert scales.quantile(0.2) == pytest.approx(0.1)
    assert scales.quantile(0.4) == pytest.approx(0.2)
    assert scales.quantile(0.6) == pytest.approx(0.2)  # the next are two channels
    assert scales.quantile(0.8) == pytest.approx(0.5 / 2**0.5)
    assert scales.quantile(0.1) == 0


def test_the_last_channels_of_a_layer_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3))
    groups = [[0], [1, 2], [3], [4]]
    for shifts in (False, True):
        scales = Scales(scale_layers(model), groups, shifts=shifts)
        last = scales.emptying(torch.tensor([3.0, 2.0, 1.0, 4.0]))
        assert last.tolist() == [True, False, False, True]
        last = scales.emptying(torch.tensor([0.0, 5.0, 1.0, 0.0]))
        assert last.tolist() == [False, True, False, False]
