"""One schema for every layer of the registry: what each must do wherever it stands."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import Moments
from normapps.norm.layers.base import NormLayer
from normapps.norm.layers.transnorm import TransNorm
from normapps.norm.registry import NORMS, create_norm, list_norms

C = 6
ISSUE = {
    *("batch", "layer", "instance", "group", "position", "rms", "ghost"),
    *("iternorm", "zca", "cholesky", "coloring", "switchable", "bin", "ibn"),
    *("conditional", "adaptive", "self_modulated", "spatial", "adalin", "domain"),
    *("autodial", "transnorm", "domain_whitening"),
    *("frn", "mean_only", "l1", "top_k", "renorm", "pca", "group_whitening"),
    *("switchable_whitening", "region", "iebn", "attentive"),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "group": {"num_groups": 3},
    "iternorm": {"group_size": 3},
    "zca": {"group_size": 3},
    "cholesky": {"group_size": 3},
    "pca": {"group_size": 3},
    "group_whitening": {"num_groups": 3},
    "switchable_whitening": {"group_size": 3, "kinds": ("bw", "iw", "bn", "in", "ln")},
    "top_k": {"k": 5},
    "frn": {"learn_eps": True},
    "iebn": {"use_std": True},
    "prong": {"group_size": 3, "every": None},
    "conditional": {"num_classes": 4},
    "conditional_coloring": {"num_classes": 4},
    "self_modulated": {"latent_features": 5},
    "spatial": {"condition_channels": 2, "hidden_channels": 4},
    "adalin": {"latent_features": 5},
    "domain": {"num_domains": 3},
    "autodial": {"num_domains": 3, "alpha": 0.75},
    "transnorm": {"num_domains": 3},
    "domain_whitening": {"num_domains": 3, "group_size": 3},
}
FROM_ONE = ("diminishing", "memorized", "online", "prong")
"""Trained on one value a channel: what came before counts too."""

BANKS = ("domain", "autodial", "transnorm", "domain_whitening")
SHAPES = {"1d": (4, C, 10), "2d": (4, C, 5, 6), "3d": (4, C, 3, 4, 2), "tokens": (4, 9, C)}
WITHOUT_TOKENS = ("spatial",)


def _condition(name: str, x: Tensor, layout: str = "2d") -> Any:
    """A condition that fits the layer, or None for a layer that needs none."""
    generator = torch.Generator().manual_seed(7)
    n = x.shape[0]
    space = x.shape[2:] if layout != "tokens" else x.shape[1:-1]
    style = torch.randn(n, C, 12, generator=generator, dtype=torch.float32) * 2 + 1
    made: dict[str, Callable[[], Any]] = {
        "conditional": lambda: torch.arange(n) % 4,
        "conditional_coloring": lambda: torch.arange(n) % 4,
        "adaptive": lambda: Moments.of(style.to(torch.promote_types(x.dtype, torch.float32))),
        "self_modulated": lambda: torch.randn(n, 5, generator=generator).to(x.dtype),
        "spatial": lambda: torch.randn(n, 2, *space, generator=generator).to(x.dtype),
        "adalin": lambda: torch.randn(n, 5, generator=generator).to(x.dtype),
        "region": lambda: torch.rand(n, 1, *space, generator=generator).gt(0.4),
        **dict.fromkeys(BANKS, lambda: torch.arange(n) % 2),
    }
    return made[name]() if name in made else None


def _make(name: str, layout: str = "2d", **more: Any) -> NormLayer:
    torch.manual_seed(3)
    layer = create_norm(name, C, layout=layout, **OPTIONS.get(name, {}), **more)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():  # away from the start: each one matters
            parameter.add_(torch.randn_like(parameter) * 0.1)
            if key in ("gate", "rho"):  # inside, where a clamp has a derivative
                parameter.clamp_(0.1, 0.9)
            if key == "threshold":  # below 0, where a rectifier behind sees what is cut off
                parameter.sub_(0.7)
            if key == "alpha":
                parameter.clamp_(0.6, 0.9)
    return layer


def _run(layer: NormLayer, name: str, x: Tensor) -> Tensor:
    condition = _condition(name, x, layer.layout)
    return layer(x) if condition is None else layer(x, condition)


def _input(layout: str = "2d", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(SHAPES[layout], generator=generator) * 1.5 + 0.5).to(dtype)


def _layouts(name: str) -> list[str]:
    return [each for each in SHAPES if not (each == "tokens" and name in WITHOUT_TOKENS)]


every_layer = pytest.mark.parametrize("name", sorted(NORMS))
every_place = pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in sorted(NORMS) for layout in _layouts(name)]
)


def test_the_registry_has_the_layers_of_the_design() -> None:
    assert set(list_norms()) >= ISSUE


@every_place
def test_shape_and_dtype_stay(name: str, layout: str) -> None:
    layer, x = _make(name, layout), _input(layout)
    for training in (True, False):
        y = _run(layer.train(training), name, x)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert torch.isfinite(y).all()


@every_layer
def test_tokens_are_the_same_channels_elsewhere(name: str) -> None:
    if name in WITHOUT_TOKENS or name == "layer":  # whose tokens stand each by itself
        return
    x = _input("1d")
    expected = _run(_make(name, "1d"), name, x)
    found = _run(_make(name, "tokens"), name, x.movedim(1, -1))
    torch.testing.assert_close(found.movedim(-1, 1), expected, rtol=1e-5, atol=1e-5)


@every_layer
def test_channels_last_gives_the_same(name: str) -> None:
    x = _input()
    expected = _run(_make(name), name, x)
    found = _run(_make(name), name, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_layer
def test_gradcheck_in_training_and_inference(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, C, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = _make(name).double()
    _run(layer.train(), name, x)
    names = [key for key, _ in layer.named_parameters()]
    values = [each.detach().clone().requires_grad_() for each in layer.parameters()]
    condition = _condition(name, x)
    if isinstance(layer, TransNorm):  # its gain counts as a constant; a difference would see it
        gain = layer.gain(layer.population()) + torch.linspace(-0.1, 0.1, C)
        vars(layer)["gain"] = lambda _: gain

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        args = (x,) if condition is None else (x, condition)
        # buffers are copied, so that every call starts with the same population
        buffers = {key: each.clone() for key, each in layer.named_buffers()}
        state = dict(zip(names, parameters, strict=True)) | buffers
        y: Tensor = torch.func.functional_call(layer, state, args)
        return y

    for training in (True, False):
        if training and name == "online":  # whose gradient is another: see test_online.py
            continue
        layer.train(training)
        assert torch.autograd.gradcheck(forward, (x, *values), atol=1e-8, fast_mode=True)


@every_layer
def test_act_and_drop_follow(name: str) -> None:
    x = _input()
    bare = _run(_make(name).eval(), name, x)
    carrying = _make(name, act=nn.ReLU, drop=nn.Dropout(0.5))
    torch.testing.assert_close(_run(carrying.eval(), name, x), bare.relu())
    assert (_run(carrying.train(), name, x) == 0).float().mean() > 0.6
    assert not [key for key in carrying.state_dict() if key.startswith(("act", "drop"))]


@every_layer
def test_a_learnt_activation_keeps_its_key(name: str) -> None:
    assert "act.weight" in _make(name, act=nn.PReLU).state_dict()


@every_layer
def test_compiles_without_a_break(name: str) -> None:
    x = _input()
    for training in (True, False):
        expected_layer, layer = (_make(name).train(training) for _ in range(2))
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        given, reference = (x.clone().requires_grad_() for _ in range(2))
        found = _run_compiled(compiled, name, given)
        expected = _run(expected_layer, name, reference)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(given.grad, reference.grad)
        for mine, theirs in zip(layer.buffers(), expected_layer.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)


@every_layer
def test_torch_fx_sees_one_node(name: str) -> None:
    layer, x = _make(name).eval(), _input()
    if _condition(name, x) is not None:  # what a wrapper holds is no input of the graph
        return
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), layer))
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2
    torch.testing.assert_close(traced(x), layer(x.relu()))


@pytest.mark.census
@every_layer
def test_inductor_compiles_it(name: str) -> None:
    """Slow: minutes of C++ compilation for all."""
    x = _input()
    expected_layer, layer = (_make(name) for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    given, reference = (x.clone().requires_grad_() for _ in range(2))
    found, expected = _run_compiled(compiled, name, given), _run(expected_layer, name, reference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(given.grad, reference.grad, rtol=1e-3, atol=1e-3)


def _run_compiled(compiled: Any, name: str, x: Tensor) -> Tensor:
    condition = _condition(name, x)
    y: Tensor = compiled(x) if condition is None else compiled(x, condition)
    return y


@every_layer
def test_statistics_are_float32_under_autocast(name: str) -> None:
    x = _input() * 0.1 + 20  # a variance that bfloat16 cannot see beside this mean
    exact = _run(_make(name).double(), name, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = _run(_make(name), name, x)
    assert (found.double() - exact).abs().max() < 0.05 * exact.abs().max()


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    x = _input(dtype=dtype)
    found = _run(_make(name).to(dtype), name, x)
    assert found.dtype == dtype
    exact = _run(_make(name).double(), name, x.double())
    assert (found.double() - exact).abs().max() < 0.04 * exact.abs().max()


@every_layer
def test_state_dict_round_trip(name: str) -> None:
    x = _input()
    layer = _make(name)
    for shift in range(3):
        _run(layer, name, x + shift)
    fresh = create_norm(name, C, layout="2d", **OPTIONS.get(name, {}))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(_run(fresh.eval(), name, x), _run(layer.eval(), name, x))


@every_layer
def test_a_deep_copy_is_independent(name: str) -> None:
    x = _input()
    layer = _make(name)
    kept = copy.deepcopy(layer.state_dict())
    _run(copy.deepcopy(layer), name, x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, kept[key]), key


@every_layer
def test_inference_changes_no_buffer(name: str) -> None:
    layer = _make(name).eval()
    kept = copy.deepcopy(layer.state_dict())
    _run(layer, name, _input())
    for key, value in layer.state_dict().items():
        assert torch.equal(value, kept[key]), key


@every_layer
def test_samples_of_a_batch_do_not_mix_at_inference(name: str) -> None:
    x = _input()
    layer = _make(name)
    _run(layer, name, x)
    whole = _run(layer.eval(), name, x)
    condition = _condition(name, x)
    for index in range(len(x)):
        part = x[index : index + 1]
        if isinstance(condition, Moments):
            own = Moments(
                *(
                    each[index * 1 :][:1]
                    for each in (condition.count, condition.mean, condition.var)
                )
            )
            y = layer(part, own)
        else:
            y = layer(part) if condition is None else layer(part, condition[index : index + 1])
        torch.testing.assert_close(y, whole[index : index + 1], rtol=1e-4, atol=1e-5)


@every_layer
def test_frozen_is_inference_in_training(name: str) -> None:
    layer = _make(name)
    if not hasattr(layer, "frozen"):
        return
    x = _input()
    _run(layer, name, x)
    expected = _run(layer.eval(), name, x)
    kept = copy.deepcopy(layer.state_dict())
    layer.frozen = True
    torch.testing.assert_close(_run(layer.train(), name, x), expected)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, kept[key]), key


@every_layer
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    layer = _make(name)
    condition = _condition(name, _input())
    args = () if condition is None else (condition,)
    wrong = [torch.randn(4, C + 1, 5, 6), torch.randn(4, C, 5), torch.ones(4, C, 5, 6).long()]
    for x in wrong:
        with pytest.raises(InputError, match="needs") as error:
            layer(x, *args)
        assert "\n" not in str(error.value)


@every_layer
def test_too_few_samples_are_refused_in_training(name: str) -> None:
    x = torch.randn(1, C, 1, 1)
    measured_by_channel = ("position", "rms", "layer", "group", "group_whitening", "frn")
    if name in (*measured_by_channel, *FROM_ONE):
        assert torch.isfinite(_run(_make(name), name, x)).all()
        return
    if name in BANKS:  # a branch without samples takes its population, without asking
        assert torch.isfinite(_run(_make(name), name, x)).all()
        return
    with pytest.raises(InputError) as error:
        _run(_make(name), name, x)
    assert "\n" not in str(error.value)


@every_layer
def test_an_empty_batch_passes_where_none_is_measured(name: str) -> None:
    layer, x = _make(name), _input()[:0].requires_grad_()
    condition = _condition(name, _input()[:1] if name == "adaptive" else x)
    args = (x,) if condition is None else (x, condition)
    measures = hasattr(layer, "frozen")
    for training in (True, False):
        if training and measures:
            with pytest.raises(InputError, match=r"in training: 0 sample"):
                layer(*args)
            continue
        y = layer.train(training)(*args)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        y.sum().backward()
        assert all(torch.equal(each.grad, each * 0) for each in layer.parameters())


@every_layer
def test_bad_sizes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="num_features"):
        create_norm(name, 0, **OPTIONS.get(name, {}))
    with pytest.raises(InputError, match="unknown layout"):
        create_norm(name, C, layout="4d", **OPTIONS.get(name, {}))


@every_layer
def test_it_tells_its_place_in_the_taxonomy(name: str) -> None:
    place = NORMS[name].taxonomy
    assert all((place.partition, place.operation, place.recovery, place.paper))
    assert str(C) in repr(_make(name))


def test_names_are_found_by_pattern_and_mistakes_are_mended() -> None:
    assert list_norms("*norm") == ("iternorm", "renorm", "transnorm")
    assert list_norms("nothing*") == ()
    with pytest.raises(InputError, match="unknown norm 'bacth'; did you mean 'batch'"):
        create_norm("bacth", 4)
    with pytest.raises(InputError, match="unknown option of norm 'batch' 'epsilon'"):
        create_norm("batch", 4, epsilon=1e-3)
    with pytest.raises(InputError, match="norm 'domain' needs num_domains"):
        create_norm("domain", 4)
    for option in ({"eps": float("nan")}, {"momentum": "abc"}, {"affine": 1}, {"eps": None}):
        with pytest.raises(InputError, match="must be "):
            create_norm("batch", 4, **option)


def test_layers_are_what_torch_has() -> None:
    """Where a layer is torch's, its values are torch's to the bit."""
    x = _input()
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (create_norm("batch", C), nn.BatchNorm2d(C)),
        (create_norm("instance", C), nn.InstanceNorm2d(C, affine=True)),
        (create_norm("group", C, num_groups=3), nn.GroupNorm(3, C)),
        (create_norm("layer", C), nn.GroupNorm(1, C)),
        (create_norm("layer", C, layout="tokens"), nn.LayerNorm(C)),
        (create_norm("rms", C, layout="tokens"), nn.RMSNorm(C, eps=1e-6)),
        (create_norm("position", C, layout="tokens"), nn.LayerNorm(C)),
    ]
    for ours, theirs in pairs:
        given = _input("tokens") if getattr(ours, "layout", "") == "tokens" else x
        assert torch.equal(ours(given), theirs(given)), ours
        assert list(ours.state_dict()) == list(theirs.state_dict()), ours


def test_group_norm_in_its_limits() -> None:
    x = _input()
    layer = create_norm("layer", C)(x)
    torch.testing.assert_close(create_norm("group", C, num_groups=1)(x), layer)
    instance = create_norm("instance", C)(x)
    torch.testing.assert_close(create_norm("group", C, num_groups=C)(x), instance)


def test_group_norm_takes_the_largest_number_that_divides() -> None:
    sizes = itertools.product((6, 17, 24, 64), (4, 32))
    found = [create_norm("group", c, num_groups=n).num_groups for c, n in sizes]
    assert found == [3, 6, 1, 17, 4, 24, 4, 32]


def test_values_of_the_layers_that_measure_samples() -> None:
    """Against the formulas, in float64."""
    x = _input(dtype=torch.float64)

    def standardized(groups: Tensor, eps: float) -> Tensor:
        centred = groups - groups.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()

    last = x.movedim(1, -1)
    expected = {
        "layer": standardized(x.flatten(1), 1e-5).reshape(x.shape),
        "instance": standardized(x.flatten(2), 1e-5).reshape(x.shape),
        "group": standardized(x.reshape(4, 3, -1), 1e-5).reshape(x.shape),
        "position": standardized(last, 1e-5).movedim(-1, 1),
        "rms": (last / (last.square().mean(-1, keepdim=True) + 1e-6).sqrt()).movedim(-1, 1),
    }
    for name, value in expected.items():
        layer = _make(name).double()
        shape = (1, C, 1, 1)
        bias = 0 if layer.bias is None else layer.bias.reshape(shape)
        torch.testing.assert_close(layer(x), value * layer.weight.reshape(shape) + bias)
