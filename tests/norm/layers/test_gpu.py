"""Every layer on a GPU: the same values as on the CPU, also in half precision and compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normapps.norm import Moments
from normapps.norm.condition import ConditionalLayer
from normapps.norm.registry import NORMS, create_norm

pytestmark = pytest.mark.gpu

C = 32
NEEDED = {
    "conditional": {"num_classes": 4},
    "self_modulated": {"latent_features": 5},
    "spatial": {"condition_channels": 2},
    "adalin": {"latent_features": 5},
    "domain": {"num_domains": 2},
    "autodial": {"num_domains": 2},
    "transnorm": {"num_domains": 2},
    "domain_whitening": {"num_domains": 2},
}


def _condition(name: str, x: Tensor) -> object:
    generator = torch.Generator().manual_seed(2)
    n = len(x)
    latent = torch.randn(n, 5, generator=generator).to(x.device)
    made = {
        "conditional": torch.arange(n, device=x.device) % 4,
        "adaptive": Moments.of(x.float().flip(0) * 2),
        "region": torch.rand(n, 1, 4, 4, generator=generator).gt(0.4).to(x.device),
        "spatial": torch.randn(n, 2, 4, 4, generator=generator).to(x.device),
        **dict.fromkeys(
            ("domain", "autodial", "transnorm", "domain_whitening"),
            torch.arange(n, device=x.device) % 2,
        ),
    }
    return made.get(name, latent)


def _run(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    conditional = isinstance(layer, ConditionalLayer)
    y: Tensor = layer(x, _condition(name, x)) if conditional else layer(x)
    return y


def _pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = create_norm(name, C, layout="2d", **NEEDED.get(name, {}))
    x = torch.randn(16, C, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 + 1
    return layer, copy.deepcopy(layer).cuda(), x


@pytest.mark.parametrize("name", sorted(NORMS))
def test_values_and_gradients_are_the_cpus(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    layer, there, x = _pair(name)
    given = [x.clone().requires_grad_(), x.cuda().requires_grad_()]
    results = [_run(each, name, part) for each, part in zip((layer, there), given, strict=True)]
    torch.testing.assert_close(results[1].cpu(), results[0], rtol=1e-3, atol=1e-3)
    for result in results:
        (result**3).mean().backward()
    torch.testing.assert_close(given[1].grad.cpu(), given[0].grad, rtol=1e-2, atol=1e-4)
    found = _run(there.eval(), name, x.cuda()).cpu()
    torch.testing.assert_close(found, _run(layer.eval(), name, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(NORMS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    layer, there, x = _pair(name)
    x = x * 0.1 + 5
    with torch.autocast("cuda", dtype):
        found = _run(there, name, x.cuda())
    expected = _run(layer.double(), name, x.double())
    error = (found.double().cpu() - expected).abs().max()
    assert error < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", sorted(NORMS))
def test_it_never_waits_for_the_gpu(name: str) -> None:
    _, there, x = _pair(name)
    x = x.cuda()
    _run(there, name, x)  # cuBLAS and cuSOLVER make their handles
    condition = _condition(name, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there(x, condition) if isinstance(there, ConditionalLayer) else there(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", sorted(NORMS))
def test_inductor_compiles_it(name: str) -> None:
    _, there, x = _pair(name)
    expected = _run(copy.deepcopy(there), name, x.cuda())
    compiled = torch.compile(there, fullgraph=True)
    condition = _condition(name, x.cuda())
    conditional = isinstance(there, ConditionalLayer)
    found = compiled(x.cuda(), condition) if conditional else compiled(x.cuda())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
