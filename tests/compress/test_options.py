from __future__ import annotations

import subprocess
import sys

import pytest

from normapps.compress.options import CompressJob, CompressOptions
from normapps.errors import InputError, UsageError


def test_how_much_is_said_in_one_way() -> None:
    assert CompressOptions().amount == {"target_flops": 0.6}
    assert CompressOptions(target_params=0.5).amount == {"target_params": 0.5}
    assert CompressOptions(ratio=0.0).amount == {"ratio": 0.0}
    with pytest.raises(InputError, match="--target-flops --ratio: say how much in one way, not 2"):
        CompressOptions(target_flops=0.5, ratio=0.5)


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="--strength --target-sparsity"):
        CompressOptions(strength=1.0, target_sparsity=0.5)
    with pytest.raises(UsageError, match="--strength --sparse-steps 0: there is no sparse"):
        CompressOptions(strength=1.0, sparse_steps=0)
    with pytest.raises(UsageError, match="--qat-steps 5 --no-int8"):
        CompressOptions(qat_steps=5, int8=False)


def test_a_later_call_may_change_the_device_and_what_is_timed() -> None:
    fixed = set(CompressJob(model="m", data="d").fixed)
    assert not fixed & {"device", "latency", "overwrite", "model", "data", "weights"}
    assert {"seed", "size", "sparse_steps", "max_drop", "checkpoint"} <= fixed


def test_the_options_load_no_torch() -> None:
    code = "import sys, normapps.compress.options; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
