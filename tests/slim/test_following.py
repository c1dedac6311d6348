"""The command that comes after sparse training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from normapps.slim.following import next_command, next_section
from normapps.slim.sparsity import LayerScales, Sparsity


def scales(*values: float) -> Sparsity:
    return Sparsity((LayerScales("norm", torch.tensor(values)),))


@pytest.mark.parametrize(
    ("values", "amount"),
    [((0.0, 0.001, 0.5, 1.0), "--lossless"), ((0.001, 0.002, 0.5, 1.0), "--ratio 0.5")],
)
def test_what_is_useless_is_cut(values: tuple[float, ...], amount: str) -> None:
    command = next_command(Path("my run/model"), scales(*values))
    assert command == f"normapps slim prune 'my run/model' -o 'my run-pruned' {amount}"
    assert command in next_section(command)[0].parts


@pytest.mark.parametrize("values", [(0.5, 1.0), (0.0, 0.0)])
def test_nothing_to_cut_is_no_command(values: tuple[float, ...]) -> None:
    assert next_command(Path("run/model"), scales(*values)) == ""
    assert next_section("") == []


def test_a_network_without_a_folder_is_cut_by_no_command() -> None:
    assert next_command(None, scales(0.0, 1.0)) == ""
