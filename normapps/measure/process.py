"""What a command cost: seconds from start to end, and the most memory it held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Cost:
    """A finished command.

    Attributes:
        seconds: from start to end, loading included.
        peak_bytes: the most memory that was resident at once.
        code: the exit code; negative for a signal.
        timed_out: whether it was stopped because it took too long.
        output: what it printed, both streams.
    """

    seconds: float
    peak_bytes: int
    code: int
    timed_out: bool
    output: str


def measure_command(
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout: float = 0.0,
    max_bytes: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command to its end and measure it (Linux and macOS).

    Args:
        command: the program and its arguments.
        timeout: seconds after which it is stopped (0: never).
        max_bytes: allocations beyond this fail inside the command (0: no limit; Linux only).
        environment: the variables it sees; ours by default.

    Raises:
        InputError: no such program.
    """
    words = [os.fspath(word) for word in command]
    launcher = Path(__file__).with_name("launch.py")
    limits = [str(max_bytes), str(timeout)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(launcher), *limits, *words],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=True,
    )
    seconds, peak, code, timed_out = json.loads(done.stdout)
    if code == 127:
        raise InputError(f"{done.stderr.strip() or words[0]}; give a program that can be run")
    return Cost(seconds, peak, code, timed_out, done.stderr)
