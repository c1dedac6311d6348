"""Start a command, wait for it, print what it cost as JSON; a program of its own (see `process`).

A process inherits its parent's peak memory until it replaces its program, and the kernel keeps that
number. So the command is started by this small interpreter, not by one that has torch in it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time


def main() -> None:
    """Run `launch.py BYTES SECONDS COMMAND…`, limits of 0 being none.

    The command's two streams go to stderr; stdout gets `[seconds, peak_bytes, code, timed_out]`.
    """
    memory, timeout, argv = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    stopped: list[bool] = []
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _become(argv, memory)

    def stop(number: int, frame: object) -> None:
        stopped.append(True)
        os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps([seconds, peak, os.waitstatus_to_exitcode(status), bool(stopped)]))


def _become(argv: list[str], memory: int) -> None:
    try:
        if memory:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        os.dup2(2, 1)
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


if __name__ == "__main__":
    main()
