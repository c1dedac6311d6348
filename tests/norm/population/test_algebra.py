"""Mixing, merging and comparing populations, against the formulas in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from normapps.errors import InputError
from normapps.norm import BATCH, Moments, channel_groups
from normapps.norm.population.algebra import distance, layer_means, merge, mix
from normapps.norm.population.measuring import measure
from normapps.norm.population.statistics import Population, apply_

X = [torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in (2, 3, 5)]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 4), nn.BatchNorm2d(2))
    nn.init.uniform_(model[0].running_mean, -1, 1)
    nn.init.uniform_(model[0].running_var, 0.5, 2)
    return model


MODEL = _model()
SOURCE, TARGET = Population.of(MODEL), measure(MODEL, X, mode="fixed")


@pytest.mark.parametrize("rule", ["linear", "pooled"])
@given(n=st.floats(0, 1e4), samples=st.one_of(st.none(), st.floats(0.5, 1e4)))
def test_prior_mixing_is_the_papers_formula(rule: str, n: float, samples: float | None) -> None:
    found = mix(SOURCE, TARGET, n, samples=samples, rule=rule)
    m = 10 if samples is None else samples
    for name, theirs in TARGET.layers.items():
        mine, count = SOURCE.layers[name], float(theirs.count)
        unbiased = theirs.var * count / (count - 1)
        a, b = n / (n + m), m / (n + m)
        mean = a * mine.mean.double() + b * theirs.mean
        var = a * mine.var.double() + b * unbiased
        if rule == "pooled":
            var = var + a * b * (mine.mean.double() - theirs.mean).square()
        torch.testing.assert_close(found.layers[name].mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.layers[name].var, var, rtol=1e-12, atol=0)
        assert found.layers[name].count.tolist() == [0]
    assert found.samples is None


def test_no_prior_is_the_target_and_no_sample_the_source() -> None:
    model, expected = _model(), _model()
    apply_(model, mix(SOURCE, TARGET, 0))
    apply_(expected, TARGET)
    assert torch.equal(model[2].running_var, expected[2].running_var)
    apply_(model, mix(SOURCE, TARGET, 16, samples=0))
    assert torch.equal(model[0].running_var, MODEL[0].running_var)


def test_the_last_small_batch_gets_its_small_share() -> None:
    batch, rest = measure(MODEL, [X[2]], mode="fixed"), measure(MODEL, [X[0]], mode="fixed")
    shift = [
        (mix(SOURCE, each, 16).layers["0"].mean - SOURCE.layers["0"].mean)
        / (each.layers["0"].mean - SOURCE.layers["0"].mean)
        for each in (batch, rest)
    ]
    torch.testing.assert_close(shift[0].flatten(), torch.full((3,), 5 / 21).double())
    torch.testing.assert_close(shift[1].flatten(), torch.full((3,), 2 / 18).double())


def test_a_covariance_is_mixed_as_it_is() -> None:
    def full(mean: float, cov: Tensor, count: float) -> Moments:
        var = cov.diagonal(dim1=1, dim2=2).clone()
        return Moments(torch.tensor([count]), torch.full((1, 2), mean), var, cov, channel_groups(2))

    a = torch.tensor([[[2.0, 0.5], [0.5, 1.0]]])
    b = torch.tensor([[[1.0, -0.2], [-0.2, 3.0]]])
    one = replace(SOURCE, layers={"w": full(1.0, a, 0)})
    two = replace(SOURCE, layers={"w": full(2.0, b, 4)}, samples=4)
    found = mix(one, two, 12, rule="pooled").layers["w"].cov
    assert found is not None
    expected = 0.75 * a + 0.25 * b + 0.75 * 0.25
    torch.testing.assert_close(found, expected.double())


def test_mixing_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match="has no sample count: give samples="):
        mix(TARGET, SOURCE, 16)
    for n, samples in ((-1, 4), (1, -4), (0, 0), (float("inf"), 1), (float("nan"), 1)):
        with pytest.raises(InputError, match="neither may be negative, nor both 0"):
            mix(SOURCE, TARGET, n, samples=samples)
    for bad in (None, "16"):
        with pytest.raises(InputError, match=r"^(None|'16') samples: give a number$"):
            mix(SOURCE, TARGET, bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown rule 'linaer'; did you mean 'linear'"):
        mix(SOURCE, TARGET, 1, rule="linaer")
    other = _model()
    nn.init.ones_(other[1].weight)
    with pytest.raises(InputError, match=r"^1\.weight differs"):
        mix(Population.of(other), TARGET, 1)


def test_merging_needs_counts_and_one_model() -> None:
    with pytest.raises(InputError, match="no populations to merge"):
        merge([])
    for part in (SOURCE, mix(SOURCE, TARGET, 1)):
        with pytest.raises(InputError, match="without counts"):
            merge([TARGET, part])
    other = _model()
    nn.init.ones_(other[1].weight)
    with pytest.raises(InputError, match=r"^1\.weight differs"):
        merge([TARGET, measure(other, X)])


def test_parts_measured_under_different_statistics_do_not_merge() -> None:
    model = _model()
    first = measure(model, X[:1], mode="fixed")
    second = measure(model, X[1:2], mode="fixed")
    assert (merge([first, second]).mode, merge([first, second]).based_on) == (
        "fixed",
        first.based_on,
    )
    with apply_(model, second):
        other = measure(model, X[2:], mode="fixed")
    with pytest.raises(InputError, match="mode fixed while the model had different running stat"):
        merge([first, second, other])
    with pytest.raises(InputError, match="parts measured in modes fixed and one-pass"):
        merge([first, measure(model, X)])
    merge([first, replace(other, mode=None, based_on=None)])  # as far as is known
    parts = [measure(model, X[:1])]
    with apply_(model, second):
        parts.append(measure(model, X[1:]))
    assert merge(parts).mode == "one-pass"  # which does not look at them


def test_what_is_mixed_was_measured_in_no_mode() -> None:
    found = mix(SOURCE, TARGET, 1)
    assert found.mode is found.based_on is SOURCE.mode is SOURCE.based_on is None


def test_a_layer_that_some_parts_reached_is_merged_of_those() -> None:
    layers = {"0": TARGET.layers["0"]}
    part = replace(TARGET, layers=layers, unreached=("2",))
    found = merge([part, TARGET])
    assert found.unreached == ()
    assert float(found.layers["0"].count) == 2 * float(TARGET.layers["0"].count)
    assert torch.equal(found.layers["2"].var, TARGET.layers["2"].var)
    assert merge([part, part]).unreached == ("2",)


def _population(mean: Tensor, var: Tensor) -> Population:
    moments = Moments(torch.zeros(1), mean[None], var[None], None, BATCH)
    return replace(SOURCE, layers={"a": moments}, samples=None)


def test_distance_is_the_symmetric_divergence() -> None:
    torch.manual_seed(0)
    means, variances = torch.randn(2, 5).double(), torch.rand(2, 5).double() + 0.1
    a, b = (_population(mean, var) for mean, var in zip(means, variances, strict=True))
    found = distance(a, b, eps=0.0)["a"]
    normals = [Normal(*each) for each in zip(means, variances.sqrt(), strict=True)]
    expected = kl_divergence(*normals) + kl_divergence(*normals[::-1])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(distance(b, a, eps=0.0)["a"], expected)


def test_a_dead_channel_is_at_a_finite_distance() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    dead, alive = _population(zero, torch.tensor([0.0, 1.0])), _population(zero, one)
    assert distance(dead, dead)["a"].tolist() == [0, 0]
    found = distance(dead, alive)["a"]
    assert torch.isfinite(found).all()
    assert found[0] > 1e4 > found[1] == 0


def test_a_model_is_at_no_distance_from_what_was_applied() -> None:
    model = _model()
    apply_(model, TARGET)
    assert max(layer_means(distance(Population.of(model), TARGET)).values()) < 1e-12


def test_the_full_divergence_is_that_of_the_gaussians() -> None:
    torch.manual_seed(0)

    def make() -> tuple[Population, MultivariateNormal]:
        root, mean = torch.randn(2, 3, 3).double(), torch.randn(2, 3).double()
        cov = root @ root.mT + 0.1 * torch.eye(3)
        var = cov.diagonal(dim1=1, dim2=2).clone()
        moments = Moments(torch.zeros(2).double(), mean, var, cov, channel_groups(3))
        return replace(SOURCE, layers={"w": moments}), MultivariateNormal(mean, cov)

    (a, p), (b, q) = make(), make()
    expected = kl_divergence(p, q) + kl_divergence(q, p)
    torch.testing.assert_close(distance(a, b, full=True, eps=0.0)["w"], expected)
    assert distance(a, b)["w"].shape == (6,)
    assert distance(a, a, full=True)["w"].tolist() == pytest.approx([0, 0], abs=1e-12)


def test_layers_come_in_the_order_of_their_distance() -> None:
    values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0]), "c": torch.tensor([0.5])}
    assert list(layer_means(values).items()) == [("b", 4.0), ("a", 1.5), ("c", 0.5)]


def test_other_layers_are_not_compared() -> None:
    only = replace(TARGET, layers={"0": TARGET.layers["0"]})
    with pytest.raises(InputError, match="layer '2' is in one of the two populations only"):
        distance(TARGET, only)
    assert list(distance(TARGET, replace(only, unreached=("2",)))) == ["0"]
    a, b = _population(torch.zeros(2), torch.ones(2)), _population(torch.zeros(3), torch.ones(3))
    with pytest.raises(InputError, match="layer 'a' differs in shape"):
        distance(a, b)
