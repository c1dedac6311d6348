"""Options of quantization-aware finetuning."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from normapps.errors import InputError, UsageError
from normapps.quant.finetune_options import QatOptions


def test_a_resumed_run_shares_what_decides_its_steps() -> None:
    fixed = set(QatOptions().fixed)
    assert {"steps", "weight_bits", "learn_ranges", "exclude", "temperature"} <= fixed
    assert not {"stop_after", "save_every", "device"} & fixed


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weight_bits": 1}, "--weight-bits 1: must be between 2 and 16"),
        ({"activation_bits": 17}, "--activation-bits 17: must be between 2 and 16"),
        ({"temperature": 0.0}, r"--temperature 0\.0: must be between 0\.1 and 100"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"label_weight": -1.0}, r"--label-weight -1\.0: must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        QatOptions(**settings)


def test_a_part_alone_cannot_learn() -> None:
    with pytest.raises(UsageError, match="--train norm: every layer is rounded, so all must learn"):
        QatOptions(train="norm")


def test_they_load_no_torch() -> None:
    code = "import sys, normapps.quant.finetune_options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
