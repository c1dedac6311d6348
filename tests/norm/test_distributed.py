"""Synchronized moments: two processes are one process on the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from normapps.errors import InputError
from normapps.norm import BATCH, Moments, channel_groups
from normapps.norm.distributed import gather, is_joined
from normapps.norm.registry import create_norm

SIZES = (3, 5)
"""Samples of each process: not the same."""

UNEVEN = (("batch", (8, 0)), ("batch", (6, 1)), ("zca", (6, 1)), ("bin", (0, 6)))
UNEVEN += (("l1", (8, 0)), ("l1", (6, 2)), ("mean_only", (0, 6)), ("renorm", (6, 2)))
UNEVEN += (("switchable_whitening", (6, 1)), ("iebn", (2, 6)))
"""Layers, and the samples of each process."""


def _batch() -> Tensor:
    return torch.randn(sum(SIZES), 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1


def _gradient_of(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, y.numel()).reshape(y.shape).square()


def _uneven(rank: int) -> dict[str, Any]:
    """Two training steps of layers whose batches are too small in one process, or in both."""
    found: dict[str, Any] = {}
    for name, parts in UNEVEN:
        layer = create_norm(name, 4, sync=True, layout="2d")
        space = 1 if (name, parts) == ("batch", (6, 1)) else 2
        whole = _batch()[: sum(parts), :, :space, :space]
        x = whole.split(parts)[rank].clone().requires_grad_()
        y = layer(x)
        y.backward(_gradient_of(whole).split(parts)[rank])
        assert layer.weight.grad is not None
        found[f"{name} {parts}"] = [y.detach(), x.grad, layer.running_mean]
    for name, n in (("batch", 0), ("zca", 0), ("zca", 2), ("switchable", 0)):
        with pytest.raises(InputError, match=r"in training: \d sample") as error:
            create_norm(name, 4, sync=True)(torch.randn(n, 4, 1, 1))
        found[f"{name} {n}"] = str(error.value).split("training: ")[1]
    return found


def _in_process(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    if name == "uneven":
        torch.save(_uneven(rank), f"{folder}/{rank}.pt")
        distributed.destroy_process_group()
        return
    parts = _batch().split(SIZES)
    whole_gradient = _gradient_of(_batch()).split(SIZES)
    x = parts[rank].clone().requires_grad_()
    if name == "gather":
        found = gather(Moments.of(x, channel_groups(2), full=True))
        result = {"mean": found.mean, "cov": found.cov, "count": found.count}
        torch.save(result, f"{folder}/{rank}.pt")
    else:
        layer = create_norm(name, 4, sync=True)
        y = layer(x)
        y.backward(whole_gradient[rank])
        torch.save({"y": y, "grad": x.grad, **layer.state_dict()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def _run(folder: Path, name: str) -> list[dict[str, Any]]:
    multiprocessing.spawn(_in_process, (str(folder), name), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_alone_the_moments_are_what_they_were() -> None:
    moments = Moments.of(_batch(), BATCH)
    assert not is_joined()
    assert gather(moments) is moments


def test_gathered_moments_are_those_of_all_samples(tmp_path: Path) -> None:
    expected = Moments.of(_batch(), channel_groups(2), full=True)
    for found in _run(tmp_path, "gather"):
        torch.testing.assert_close(found["mean"], expected.mean)
        torch.testing.assert_close(found["cov"], expected.cov)
        torch.testing.assert_close(found["count"], expected.count)


@pytest.mark.parametrize("name", ["batch", "iternorm", "coloring"])
def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path, name: str) -> None:
    layer = create_norm(name, 4)
    x = _batch().requires_grad_()
    y = layer(x)
    y.backward(_gradient_of(y))
    found = _run(tmp_path, name)
    torch.testing.assert_close(torch.cat([each["y"] for each in found]), y)
    torch.testing.assert_close(torch.cat([each["grad"] for each in found]), x.grad)
    for key, value in layer.state_dict().items():
        if key not in ("weight", "bias"):  # parameters are the trainer's to synchronize
            for each in found:
                torch.testing.assert_close(each[key], value)


def test_batches_too_small_alone_are_enough_together_and_else_refused_alike(tmp_path: Path) -> None:
    first, second = _run(tmp_path, "uneven")
    for name, parts in UNEVEN:
        layer = create_norm(name, 4, layout="2d")
        space = 1 if (name, parts) == ("batch", (6, 1)) else 2
        x = _batch()[: sum(parts), :, :space, :space].clone().requires_grad_()
        y = layer(x)
        y.backward(_gradient_of(y))
        key = f"{name} {parts}"
        for index, expected in enumerate((y, x.grad)):
            torch.testing.assert_close(torch.cat([first[key][index], second[key][index]]), expected)
        torch.testing.assert_close(first[key][2], layer.running_mean)
        torch.testing.assert_close(second[key][2], layer.running_mean)
    for key in ("batch 0", "zca 0", "zca 2", "switchable 0"):
        assert first[key] == second[key]
    assert first["zca 2"].startswith("4 sample(s) a channel, needs 5")
