"""Measuring a population: pooled numbers of float64, and a model that is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  the guard of timm
from normapps.errors import InputError
from normapps.norm.population.algebra import merge
from normapps.norm.population.measuring import MODES, measure
from normapps.norm.population.statistics import Population, apply_, population_layers

Found = dict[str, tuple[Tensor, Tensor, int]]
"""By layer: mean, biased variance, count."""


class Small(nn.Module):
    """Three batch norms, one of them in a branch; dropout; a layer that nothing calls."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 6, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(6, momentum=None)
        self.side = nn.Sequential(nn.Conv2d(6, 6, 3, stride=2), nn.BatchNorm2d(6))
        self.spare = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.bn3 = nn.BatchNorm1d(4)
        _scatter(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.bn1(self.conv1(x)).relu())
        x = self.bn2(self.conv2(x)).relu() + self.side(x)
        y: Tensor = self.bn3(self.head(x.mean((2, 3))))
        return y


def _scatter(model: nn.Module) -> None:
    """Give every population and affine values that are not the initial ones."""
    for module in model.modules():
        for name, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", 0.5)):
            value = getattr(module, name, None)
            if isinstance(getattr(module, "running_var", None), Tensor) and value is not None:
                nn.init.uniform_(value, low, 2.0)


def _batches(sizes: Sequence[int] = (5, 4, 7), side: int = 9) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(n, 3, side, side) * (i + 1) + i for i, n in enumerate(sizes)]


def _inputs(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """All inputs of each layer, (C, M), by a hook."""
    heard: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def hear(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            heard.setdefault(name, []).append(args[0].movedim(1, 0).flatten(1).clone())

        return hear

    layers = population_layers(model)
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    with torch.no_grad():
        for x in batches:
            model(x.double())
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts, 1) for name, parts in heard.items()}


def _reference(model: nn.Module, batches: Sequence[Tensor], mode: str) -> Found:
    """The definition of each mode, naively, in float64 on a copy."""
    model = copy.deepcopy(model).double().eval()
    if mode == "one-pass":
        for layer in population_layers(model).values():
            layer.train()
    inputs = _inputs(model, batches)
    if mode == "layerwise":
        for name in list(inputs):
            inputs = _inputs(model, batches)
            layer: Any = population_layers(model)[name]
            layer.running_mean.copy_(inputs[name].mean(1))
            layer.running_var.copy_(inputs[name].var(1))
    return {name: (x.mean(1), x.var(1, unbiased=False), x.shape[1]) for name, x in inputs.items()}


def _check(found: Population, expected: Found, tolerance: float = 1e-4) -> None:
    assert found.layers.keys() == expected.keys()
    for name, (mean, var, count) in expected.items():
        moments = found.layers[name]
        assert moments.count.tolist() == [count]
        torch.testing.assert_close(moments.var[0].double(), var, rtol=tolerance, atol=1e-9)
        error = (moments.mean[0].double() - mean).abs() / var.sqrt().clamp_min(1e-6)
        assert float(error.max()) < tolerance, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_mode_is_its_definition(mode: str, memory_format: torch.memory_format) -> None:
    model, batches = Small(), _batches()
    expected = _reference(model, batches, mode)
    found = measure(model, [x.contiguous(memory_format=memory_format) for x in batches], mode=mode)
    _check(found, expected)
    assert found.samples == 16
    assert found.unreached == ("spare",)
    assert list(found.layers) == ["bn1", "bn2", "side.1", "bn3"]
    assert {moments.var.dtype for moments in found.layers.values()} == {torch.float64}


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
@pytest.mark.parametrize("mode", ["one-pass", "fixed"])
def test_networks_of_timm(name: str, mode: str) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, drop_rate=0.2, drop_path_rate=0.2)
    batches = [torch.randn(n, 3, 64, 64) for n in (4, 3)]
    expected = _reference(model, batches, mode)
    _check(measure(model, batches, mode=mode), expected, 5e-3 if mode == "one-pass" else 1e-4)


def test_frozen_layers_are_measured_and_normalize_with_it() -> None:
    from timm.layers import FrozenBatchNormAct2d
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    frozen = copy.deepcopy(plain)
    frozen[0], frozen[1], frozen[3] = FrozenBatchNormAct2d(3), nn.Identity(), FrozenBatchNorm2d(5)
    found = measure(frozen, _batches())
    _check(found, _reference(plain, _batches(), "one-pass"))


def test_layerwise_is_found_again_in_fixed_mode() -> None:
    model, batches = Small(), _batches()
    found = measure(model, batches, mode="layerwise")
    with apply_(model, found):
        again = measure(model, batches, mode="fixed")
    for name, moments in found.layers.items():
        torch.testing.assert_close(again.layers[name].mean, moments.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again.layers[name].var, moments.var, rtol=1e-5, atol=0)


def test_layerwise_leaves_the_forward_pass_early() -> None:
    model, passes = Small(), []
    model.head.register_forward_pre_hook(lambda *_: passes.append(1))
    measure(model, _batches((4, 4)), mode="layerwise")
    assert len(passes) == 3  # the pass that finds the order, and bn3's two batches


class Shared(nn.Module):
    """One batch norm in two places, one of them with the channels in another resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.BatchNorm2d(3)
        self.b = self.a
        _scatter(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(x[:, :, ::2] * 2 + 1) + self.a(x)[:, :, ::2]
        return y


@pytest.mark.parametrize("mode", MODES)
def test_a_shared_layer_pools_its_calls(mode: str) -> None:
    batches = _batches((4, 2), side=4)
    found = measure(Shared(), batches, mode=mode)
    calls = [part for x in batches for part in (x, x[:, :, ::2] * 2 + 1)]
    values = torch.cat([x.double().movedim(1, 0).flatten(1) for x in calls], 1)
    expected = values.mean(1), values.var(1, unbiased=False), values.shape[1]
    _check(found, {"a": expected})


class Whitening(nn.Module):
    """A layer that whitens pairs of channels, as far as a measurement sees one."""

    running_mean: Tensor
    running_cov: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_cov", torch.eye(2).repeat(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, _, *space = x.shape
        centred = (x - self.running_mean.view(1, 4, 1, 1)).reshape(n, 2, 2, -1)
        lower = torch.linalg.cholesky(self.running_cov)
        y = torch.linalg.solve_triangular(lower.unsqueeze(0), centred, upper=False)
        return y.reshape(n, 4, *space)


def test_whitening_layers_have_their_covariance_measured() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Whitening(), nn.BatchNorm2d(4)).eval()
    x = torch.randn(8, 3, 5, 5)
    found = measure(model, [x[:3], x[3:]], mode="fixed")
    rows = model[0](x).detach().double().movedim(1, 0).flatten(1)
    for group in range(2):
        pair = rows[2 * group : 2 * group + 2]
        cov = torch.cov(pair, correction=0)
        assert found.layers["1"].cov is not None
        torch.testing.assert_close(found.layers["1"].cov[group].double(), cov, rtol=1e-5, atol=1e-6)
    once = measure(model, [x])  # whitened by itself: what follows has variance 1
    torch.testing.assert_close(once.layers["2"].var.float(), torch.ones(1, 4), rtol=1e-3, atol=0)
    with apply_(model, found) as undo:
        assert torch.equal(model[1].running_cov, found.layers["1"].cov.float())
        undo()
        assert torch.equal(model[1].running_cov, torch.eye(2).repeat(2, 1, 1))


class Tokens(nn.Module):
    """A layer with its channels on the last axis."""

    layout = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_tokens_have_their_channels_last() -> None:
    x = torch.randn(3, 7, 4)
    found = measure(Tokens(), [x]).layers[""]
    expected = x.double().flatten(0, 1).var(0, unbiased=False)
    torch.testing.assert_close(found.var[0].double(), expected, rtol=1e-5, atol=0)
    assert found.count.tolist() == [21]


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a measurement must leave alone; tensors by identity and by value."""
    state: dict[str, Any] = {"grad": torch.is_grad_enabled(), "rng": torch.get_rng_state().tolist()}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        state[name] = (id(value), value.tolist(), value.requires_grad, value._version)
    for name, module in model.named_modules():
        hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
        state[f"{name} module"] = (module.training, getattr(module, "momentum", None), hooks)
    return state


class _Failing(nn.Module):
    """Raises in its second forward pass."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
def test_the_model_is_left_alone(mode: str, error: BaseException | None) -> None:
    model = Small().train()
    model.bn1.eval()
    model.bn2.weight.requires_grad_(False)
    model.drop = model.drop if error is None else _Failing(error)  # type: ignore[assignment]
    before, batches = _state(model), _batches()
    torch.manual_seed(0)
    before["rng"] = torch.get_rng_state().tolist()
    if error is None:
        measure(model, batches, mode=mode)
    else:
        with pytest.raises(type(error)):
            measure(model, batches, mode=mode)
    assert _state(model) == before


@pytest.mark.parametrize("mode", ["one-pass", "fixed"])
def test_half_precision_is_measured_in_float32(mode: str) -> None:
    model, batches = Small().bfloat16(), _batches()
    found = measure(model, batches, mode=mode)  # float32 batches are cast
    expected = _batches()
    rows = torch.cat(
        [model.conv1(x.bfloat16()).double().movedim(1, 0).flatten(1) for x in expected], 1
    )
    torch.testing.assert_close(
        found.layers["bn1"].var[0].double(), rows.detach().var(1, unbiased=False), rtol=1e-5, atol=0
    )


def test_autocast_is_measured_in_float32() -> None:
    model, batches = Small(), _batches()
    with torch.autocast("cpu", torch.bfloat16):
        found = measure(model, batches, mode="fixed")
        rows = [model.conv1(x).double().movedim(1, 0).flatten(1) for x in batches]
    expected = torch.cat(rows, 1).detach().var(1, unbiased=False)
    torch.testing.assert_close(found.layers["bn1"].var[0].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x],
        lambda x: {"image": x, "label": 1},
        lambda x: {"pixel_values": x},
        lambda x: x.double(),
    ],
)
def test_kinds_of_batches(wrap: Callable[[Tensor], Any]) -> None:
    model = Small()
    expected = measure(model, _batches())
    found = measure(model, [wrap(x) for x in _batches()])
    assert torch.equal(found.layers["bn3"].var, expected.layers["bn3"].var)


def test_the_limit_cuts_the_last_batch_and_progress_counts() -> None:
    model, batches, seen = Small(), _batches(), []
    found = measure(model, batches, mode="fixed", limit=7, progress=seen.append)
    expected = measure(model, [batches[0], batches[1][:2]], mode="fixed")
    assert found.samples == sum(seen) == 7
    assert torch.equal(found.layers["bn3"].var, expected.layers["bn3"].var)


def _nan() -> list[Tensor]:
    batches = _batches()
    batches[1][0, 0, 0, 0] = float("nan")
    return batches


BAD: dict[str, tuple[nn.Module, Any, dict[str, Any], str]] = {
    "no layer": (nn.Conv2d(3, 3, 1), _batches(), {}, "Conv2d has no layer with running statistics"),
    "mode": (Small(), _batches(), {"mode": "layer"}, "unknown mode 'layer'; did you mean"),
    "limit": (Small(), _batches(), {"limit": 0}, "limit 0: must be at least 1"),
    "empty": (Small(), [], {}, "the loader gave no inputs"),
    "empty layerwise": (Small(), [], {"mode": "layerwise"}, "the loader gave no inputs"),
    "batch": (Small(), [{"label": 1}], {}, "a batch of dict without inputs"),
    "nan": (Small(), _nan(), {}, "layer 'bn1': activations are not finite"),
    "nan fixed": (Small(), _nan(), {"mode": "fixed"}, "layer 'bn1': activations are not finite"),
    "no tensors": (nn.ReLU(), _batches(), {}, "ReLU has no layer with running statistics"),
    "all empty": (Small(), [torch.zeros(0, 3, 9, 9)], {}, "the loader gave no inputs"),
    "one": (Small(), _batches((1, 4)), {}, "layer 'bn3': the first batch, of one input, gives one"),
    "limit 1": (Small(), _batches(), {"limit": 1}, r"one input \(limit 1\), gives .* mode='fixed'"),
    "one fixed": (Small(), _batches((1,)), {"mode": "fixed"}, "layer 'bn3': all inputs together"),
    "generator": (Small(), iter(_batches()), {"mode": "layerwise"}, "gone after one pass"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_that_names_the_place(case: str) -> None:
    model, loader, options, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        measure(model, loader, **options)
    assert "\n" not in str(caught.value)


def test_batches_of_one_are_enough_without_batch_statistics() -> None:
    found = measure(Small(), _batches((1, 1, 1)), mode="fixed")
    assert found.layers["bn3"].count.tolist() == [3]


def _pooling() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.BatchNorm2d(3))


@pytest.mark.parametrize("limit", [None, 12])
def test_a_last_batch_of_one_is_normalized_with_what_was_measured(limit: int | None) -> None:
    model, batches = _pooling(), _batches((5, 6, 1 if limit is None else 4))
    found = measure(model, batches, limit=limit)
    a, b, c = (x.double().mean((2, 3)) for x in (batches[0], batches[1], batches[2][:1]))
    before = torch.cat([a, b])
    normalized = [
        (x - like.mean(0)) / (like.var(0, correction=0) + 1e-5).sqrt()
        for x, like in ((a, a), (b, b), (c, before))
    ]
    second = torch.cat(normalized)
    assert found.samples == found.layers["2"].count.tolist()[0] == 12
    torch.testing.assert_close(found.layers["2"].mean[0], second.mean(0), rtol=0, atol=1e-6)
    expected = second.var(0, correction=0)
    torch.testing.assert_close(found.layers["2"].var[0], expected, rtol=1e-5, atol=0)


def test_empty_batches_are_skipped() -> None:
    batches, seen = _batches(), []
    nothing = batches[0][:0]
    for mode in MODES:
        found = measure(Small(), [nothing, *batches, nothing], mode=mode, progress=seen.append)
        _same(found, measure(Small(), batches, mode=mode), 1e-12)
    assert 0 not in seen


def test_statistics_too_large_for_half_precision_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half().eval()
    x = 500 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    message = (
        r"^layer '0': a statistic of \d\.\d+e\+05 is more than float16 holds \(65504\): .*float32$"
    )
    with pytest.raises(InputError, match=message):
        measure(model, [x])
    with pytest.raises(InputError, match=message):
        measure(model, [x], mode="layerwise")
    before = _state(model)
    with pytest.raises(InputError, match=message):
        apply_(model, measure(model, [x], mode="fixed"))
    assert _state(model) == before
    assert float(measure(model.float(), [x]).layers["0"].var.max()) > 2e5


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_and_what_it_is_based_on_are_kept(mode: str) -> None:
    model = Small()
    found = measure(model, _batches(), mode=mode)
    assert found.mode == mode
    assert (found.based_on is not None) == (mode == "fixed")
    with apply_(model, found):
        assert measure(model, _batches(), mode=mode).based_on != found.based_on or mode != "fixed"
    assert measure(model, _batches((2,)), mode=mode).based_on == found.based_on


def test_layers_that_are_only_borrowed_are_reported() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            bn = self.bn
            return nn.functional.batch_norm(x, bn.running_mean, bn.running_var)

    with pytest.raises(InputError, match="comes to none of its 1 layers"):
        measure(Around(), _batches())


def test_shards_in_fixed_mode_merge_to_the_whole() -> None:
    model, batches = Small(), _batches((5, 4, 7, 2, 6))
    whole = measure(model, batches, mode="fixed")
    shards = [
        measure(model, part, mode="fixed") for part in (batches[:2], batches[2:3], batches[3:])
    ]
    _same(merge(shards), whole, 1e-6)


def test_one_pass_is_the_same_for_the_same_batches_only() -> None:
    model, batches = Small(), _batches((6, 4, 8))
    whole = measure(model, batches)
    _same(merge([measure(model, [x]) for x in reversed(batches)]), whole, 1e-6)
    joined = torch.cat(batches)
    others = measure(model, [joined[:9], joined[9:]])
    assert not torch.allclose(others.layers["bn3"].var, whole.layers["bn3"].var, rtol=1e-3)
    torch.testing.assert_close(  # the first layer has the same inputs whatever the batches
        others.layers["bn1"].var, whole.layers["bn1"].var, rtol=1e-5, atol=0
    )


def _same(found: Population, expected: Population, tolerance: float) -> None:
    assert found.samples == expected.samples
    assert found.layers.keys() == expected.layers.keys()
    for name, moments in expected.layers.items():
        mine = found.layers[name]
        assert torch.equal(mine.count, moments.count)
        torch.testing.assert_close(mine.var, moments.var, rtol=tolerance, atol=0)
        assert float(((mine.mean - moments.mean) / moments.std()).abs().max()) < tolerance


SHARES = ((0, 1, 2), (3,), ())
"""Which batches each process has."""


def _measure_in_process(rank: int, folder: str, shares: Sequence[Sequence[int]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares)
    )
    batches = _batches((5, 4, 7, 2))
    mine = [batches[i] for i in shares[rank]]
    for mode in MODES:
        found = measure(Small(), mine, mode=mode, sync=True)
        found.save(f"{folder}/{mode}-{rank}.safetensors")
        _fail_in_process(rank, folder, mode)
    torch.distributed.destroy_process_group()


def _fail_in_process(rank: int, folder: str, mode: str) -> None:
    """Fail in one of the processes, in several ways, and write down what each raises."""
    layerwise = mode == "layerwise"
    model = Small()
    if rank == 1:
        model.drop = _Failing(RuntimeError("broken\nin two lines"))  # type: ignore[assignment]
    cases = {
        "nan": (Small(), _nan() if rank == 1 else _batches()),
        "broken": (model, _batches()),
        "batch": (Small(), [{}] if rank == 2 else iter(_batches()) if layerwise else _batches()),
        "one": (_pooling(), _batches((1,) if rank == 1 else (4,))),
    }
    for case, (failing, loader) in cases.items():
        try:
            measure(failing, loader, mode=mode, sync=True)
            said = "nothing"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        Path(f"{folder}/{mode}-{case}-{rank}.txt").write_text(said)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The populations that processes with unequal numbers of batches, one with none, found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_measure_in_process, (str(folder), SHARES), len(SHARES))
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_processes_together_are_one_process(processes: Path, mode: str) -> None:
    expected = measure(Small(), _batches((5, 4, 7, 2)), mode=mode)
    for rank in range(len(SHARES)):
        found = Population.load(processes / f"{mode}-{rank}.safetensors")
        _same(found, expected, 1e-5 if mode == "layerwise" else 1e-6)
        assert found.unreached == ("spare",)


NAN = "InputError: process 1: layer 'bn1': activations are not finite"
FAILURES = {
    "nan": dict.fromkeys(MODES, NAN),
    "broken": dict.fromkeys(MODES, "InputError: process 1: RuntimeError: broken"),
    "batch": {
        "one-pass": "InputError: process 2: a batch of dict without inputs",
        "fixed": "InputError: process 2: a batch of dict without inputs",
        "layerwise": "InputError: process 0: layerwise measuring reads the loader once a layer",
    },
    "one": {
        "one-pass": "InputError: process 1: layer '1': the first batch, of one input",
        "fixed": "nothing",
        "layerwise": "nothing",
    },
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", FAILURES)
def test_an_error_in_one_process_is_raised_in_all(processes: Path, mode: str, case: str) -> None:
    for rank in range(len(SHARES)):
        said = (processes / f"{mode}-{case}-{rank}.txt").read_text()
        if case == "broken" and rank == 1:
            assert said == "RuntimeError: broken\nin two lines"
        else:
            assert said.startswith(FAILURES[case][mode])
            assert "\n" not in said
