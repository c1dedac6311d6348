"""Two processes: networks, vectors and statistics in step, and exact resume, of both kinds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shapes import write_pairs

from normapps.gan.translation.options import TranslateOptions
from normapps.gan.translation.paired_options import PairedOptions
from normapps.gan.translation.train import train_unpaired

_SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from normapps.engine.distributed import world
from normapps.gan.translation.options import TranslateOptions
from normapps.gan.translation.paired_options import PairedOptions
from normapps.gan.translation.paired_train import train_paired
from normapps.gan.translation.train import train_unpaired
folder = Path({folder!r})
with world(torch.device("cpu")):
    for name, train, options in (
        ("unpaired", train_unpaired, {unpaired!r}),
        ("paired", train_paired, {paired!r}),
    ):
        train(options, folder / name / "whole", lambda line: None)
        for part in (2, 0):
            parts = folder / name / "parts"
            train(replace(options, stop_after=part), parts, lambda line: None)
"""


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "latest.safetensors")


def same(first: Path, second: Path) -> bool:
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory: pytest.TempPathFactory) -> TranslateOptions:
    maps, pictures = write_pairs(tmp_path_factory.mktemp("data"), 12, 16)
    return TranslateOptions(
        source=str(maps), target=str(pictures), size=16, width=4, blocks=1, d_width=4,
        batch_size=2, steps=4, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(unpaired: TranslateOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of both kinds, by two processes that gloo connects, as under torchrun."""
    folder = tmp_path_factory.mktemp("runs")
    paired = PairedOptions(
        maps=unpaired.source, target=unpaired.target, size=16, ups=2, width=4, hidden=4, d_width=4,
        scales=1, batch_size=2, steps=4, device="cpu",
    )  # fmt: skip
    script = folder / "script.py"
    script.write_text(_SCRIPT.format(folder=str(folder), unpaired=unpaired, paired=paired))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared = {**os.environ, **place, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("kind", ["unpaired", "paired"])
def test_a_resumed_run_of_two_is_the_same_to_the_bit(runs: Path, kind: str) -> None:
    assert same(runs / kind / "whole", runs / kind / "parts")
    assert len((runs / kind / "parts" / "metrics.jsonl").read_text().splitlines()) == 4


def test_both_halves_of_the_batches_count(
    runs: Path, unpaired: TranslateOptions, tmp_path: Path
) -> None:
    """Not what the first process would learn alone."""
    train_unpaired(replace(unpaired, steps=4), tmp_path / "one", lambda line: None)
    assert not same(runs / "unpaired" / "whole", tmp_path / "one")
