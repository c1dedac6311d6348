"""Layers that mix a batch's moments with its samples': the batch may lie in two processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn

from normapps.norm.registry import create_norm

NAMES = ("switchable", "bin", "ibn")
SIZES = (3, 1)
"""Samples of each process: not the same, and one alone would be few."""


def _layer(name: str, sync: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = create_norm(name, 4, sync=sync).double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter)
    return layer


def _input() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(SIZES), 4, 3, dtype=torch.float64, generator=generator) * 2 + 1


def _gradient() -> Tensor:
    return torch.linspace(-1, 1, _input().numel(), dtype=torch.float64).reshape(4, 4, 3).square()


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    results = {}
    for name in NAMES:
        layer = _layer(name, sync=True)
        x = _input().split(SIZES)[rank].clone().requires_grad_()
        y = layer(x)
        y.backward(_gradient().split(SIZES)[rank])
        grads = {key: each.grad for key, each in layer.named_parameters()}
        results[name] = {"y": y.detach(), "x": x.grad, **grads, **dict(layer.named_buffers())}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(_in_process, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in NAMES:
        layer, x = _layer(name, sync=False), _input().requires_grad_()
        y = layer(x)
        y.backward(_gradient())
        found = [each[name] for each in ranks]
        torch.testing.assert_close(torch.cat([each["y"] for each in found]), y.detach())
        torch.testing.assert_close(torch.cat([each["x"] for each in found]), x.grad)
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(found[0][key] + found[1][key], parameter.grad)
        for key, buffer in layer.named_buffers():
            for each in found:
                torch.testing.assert_close(each[key], buffer)
