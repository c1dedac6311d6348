from __future__ import annotations

import os
import sys
import time

import pytest

from normapps.errors import InputError
from normapps.measure.process import measure_command

MIB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_the_peak_is_the_commands_own() -> None:
    ballast = bytearray(300 * MIB)  # a parent that is large itself
    small = measure_command(python("pass"))
    large = measure_command(python(f"x = bytearray({200 * MIB}); x[::4096] = x[::4096]; del x"))
    assert len(ballast) == 300 * MIB
    assert small.peak_bytes < 60 * MIB
    assert 200 * MIB < large.peak_bytes < 260 * MIB
    assert small.code == large.code == 0


def test_the_seconds_are_those_of_the_command() -> None:
    start = time.perf_counter()
    cost = measure_command(python("import time; time.sleep(0.2)"))
    assert 0.2 <= cost.seconds <= time.perf_counter() - start


def test_output_and_exit_code_come_back() -> None:
    code = "import os, sys; os.write(1, b'to stdout\\n'); os.write(2, b'to stderr\\n'); sys.exit(3)"
    cost = measure_command(python(code))
    assert cost.code == 3
    assert cost.output.splitlines() == ["to stdout", "to stderr"]


def test_a_command_that_takes_too_long_is_stopped() -> None:
    cost = measure_command(python("import time; time.sleep(30)"), timeout=0.2)
    assert cost.timed_out
    assert cost.code < 0
    assert cost.seconds < 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory so")
def test_memory_is_limited() -> None:
    cost = measure_command(python(f"bytearray({400 * MIB})"), max_bytes=200 * MIB)
    assert cost.code != 0
    assert "MemoryError" in cost.output
    assert not cost.timed_out


def test_the_environment_is_the_given_one() -> None:
    code = "import os; print(os.environ.get('NORMAPPS_PROBE'))"
    seen = measure_command(python(code), environment={**os.environ, "NORMAPPS_PROBE": "7"})
    assert seen.output.strip() == "7"


def test_a_missing_program_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^no-such-program: No such file or directory; give"):
        measure_command(["no-such-program"])
