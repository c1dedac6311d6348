"""What makes the algebra quick: one pass, no wait for the device, one graph for the compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normapps.norm import (
    BATCH,
    INSTANCE,
    LAYER,
    POSITION,
    Moments,
    Partition,
    adain,
    barycenter,
    channel_groups,
    color,
    ghost,
    groups,
    merge,
    mix,
    standardize,
    transport,
    whiten,
)
from normapps.norm.matrix import covariance, multiply

ALL = [BATCH, INSTANCE, LAYER, POSITION, groups(3), ghost(2), channel_groups(3)]
by_kind = pytest.mark.parametrize("partition", ALL, ids=lambda partition: partition.kind)


class _Passes(TorchDispatchMode):
    """Collects the operations that make a new tensor of a given number of elements."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # in no_grad a view's base is not recorded: tell views by their schema
        makes = not any(each.alias_info for each in func._schema.returns)
        if makes and isinstance(result, Tensor) and result.numel() == self.elements:
            self.seen.append(func.name())
        return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adain_with_known_moments_is_one_multiply_add(memory_format: torch.memory_format) -> None:
    content = torch.rand(2, 3, 8, 6).to(memory_format=memory_format)
    own, style = Moments.of(content), Moments.of(torch.rand(1, 3, 4, 4))
    with _Passes(content.numel()) as passes:
        adain(content, style, own=own, alpha=0.5)
    assert passes.seen == ["aten::addcmul"]


@by_kind
def test_standardize_is_one_multiply_add(partition: Partition) -> None:
    x = torch.rand(4, 6, 8, 5).to(memory_format=torch.channels_last)
    moments = Moments.of(x, partition)
    with _Passes(x.numel()) as passes:
        standardize(x, moments)
    assert passes.seen == ["aten::addcmul"]


@pytest.mark.parametrize("partition", [BATCH, channel_groups(3)], ids=lambda each: each.kind)
def test_covariance_and_product_copy_nothing(partition: Partition) -> None:
    x = torch.rand(4, 6, 8, 5)
    last = x.to(memory_format=torch.channels_last)
    number, width, _ = partition.shape(x.shape)
    matrix = torch.rand(number, width, width)
    for given in (x, last):
        with _Passes(x.numel()) as passes:
            multiply(given, partition, matrix)
        # groups of channels_last have to be put between each other again
        apart = given is last and partition != BATCH
        seen = [name for name in passes.seen if name != "aten::_unsafe_view"]
        assert seen == ["aten::bmm", *["aten::clone"] * apart]
        with _Passes(x.numel()) as passes:
            covariance(given, partition)
        assert passes.seen == ["aten::sub.Tensor"]


def _moments(x: Tensor) -> Moments:
    return Moments.of(x, full=True, weight=x[:, :1].abs())


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adain": lambda x, y: adain(x, Moments.of(y)),
    "region": lambda x, y: adain(x, _moments(y)),
    "diagonal": lambda x, y: transport(x, _moments(x), _moments(y), "diagonal"),
    "zca": lambda x, y: transport(x, _moments(x), _moments(y), "zca"),
    "cholesky": lambda x, y: transport(x, _moments(x), _moments(y), "cholesky"),
    "ot": lambda x, y: transport(x, _moments(x), _moments(y), "ot", alpha=0.5),
    "whiten and color": lambda x, y: color(whiten(x, _moments(x)), _moments(y)),
    "merge": lambda x, y: adain(x, merge([_moments(x), _moments(y)]).diagonal()),
    "mix": lambda x, y: adain(x, mix([_moments(x), _moments(y)], [0.5, 0.5], "std")),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)


@every_operation
def test_nothing_waits_for_the_device(name: str) -> None:
    # on the meta device there are no values: whoever asks for one raises
    x, y = torch.empty(2, 6, 8, 5, device="meta"), torch.empty(2, 6, 4, 4, device="meta")
    with pytest.raises(RuntimeError):
        bool((x < 0).any())
    assert OPERATIONS[name](x, y).shape == x.shape


def test_a_barycenter_waits_for_nothing() -> None:
    parts = [_moments(torch.empty(1, 6, 8, 5, device="meta")) for _ in range(3)]
    assert barycenter(parts, [1, 1, 1], iterations=2).mean.device.type == "meta"


@every_operation
def test_the_compiler_sees_one_graph(name: str) -> None:
    operation = OPERATIONS[name]
    torch._dynamo.reset()
    compiled = torch.compile(operation, fullgraph=True, backend="eager", dynamic=True)
    for size in (8, 5):
        inputs = [torch.rand(2, 6, size, 7, dtype=torch.float64) for _ in range(2)]
        found = []
        for function in (operation, compiled):
            x, y = (each.clone().requires_grad_() for each in inputs)
            out = function(x, y)
            out.square().sum().backward()
            found.append((out.detach(), x.grad, y.grad))
        for eager, graph in zip(*found, strict=True):
            torch.testing.assert_close(graph, eager)


@by_kind
def test_every_partition_compiles_to_one_graph(partition: Partition) -> None:
    def standardized(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return standardize(x, Moments.of(x, partition, full=True))

    torch._dynamo.reset()
    compiled = torch.compile(standardized, fullgraph=True, backend="eager", dynamic=True)
    x = torch.rand(4, 6, 8, 5)
    torch.testing.assert_close(compiled(x), standardized(x))


def test_the_algebra_needs_torch_alone() -> None:
    code = (
        "import sys, normapps.norm\n"
        "print([name for name in ('torchvision', 'timm', 'kornia', 'PIL') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
