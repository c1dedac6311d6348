"""One process is a world of its own; two are tested with the training."""

from __future__ import annotations

import pytest
import torch

from normapps.engine.distributed import world


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with world(torch.device("cpu")) as here:
        assert (here.rank, here.size, here.is_main) == (0, 1, True)
        here.barrier()
        value = torch.tensor(3.0)
        assert here.mean(value) is value
    assert not torch.distributed.is_initialized()


def test_a_group_is_joined_averages_and_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    calls: list[str] = []
    fake = torch.distributed
    monkeypatch.setattr(fake, "init_process_group", calls.append)
    monkeypatch.setattr(fake, "destroy_process_group", lambda: calls.append("left"))
    monkeypatch.setattr(fake, "get_rank", lambda: 0)
    monkeypatch.setattr(fake, "get_world_size", lambda: 2)
    monkeypatch.setattr(fake, "all_reduce", lambda x: x.add_(5.0))
    monkeypatch.setattr(fake, "barrier", lambda: calls.append("barrier"))
    with world(torch.device("cpu")) as here:
        here.barrier()
        value = torch.tensor(3.0)
        assert here.mean(value).item() == 4.0
        assert value.item() == 3.0
    assert calls == ["gloo", "barrier", "left"]
