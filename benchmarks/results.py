"""RESULTS.md: one section a benchmark, between markers, each saying where and of what it is."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from normapps.files import write_text

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(name: str, body: str, path: Path = RESULTS) -> None:
    """Put `body` between the markers of `name`, in place of what stood there.

    A name that the file does not have yet is added at its end.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"{begin}\n{body.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section, text)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(path, text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; all columns but the first are aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(packages: Sequence[str], device: str = "cpu") -> str:
    """Say on what machine, with which versions, of which commit and when: one line."""
    import torch

    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    where = f"{_processor()}, {os.cpu_count()} cores, {_memory()}"
    if device.startswith("cuda"):
        where += f", {torch.cuda.get_device_name(device)}"
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{where}; {platform.system()}, Python {platform.python_version()}, {versions}, "
        f"{torch.get_num_threads()} threads; commit {_commit()}; {today}."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> str:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.0f} GiB"


def _commit() -> str:
    """Short hash, with a + where tracked files other than the results differ from it."""
    if not (head := _git("rev-parse", "--short", "HEAD")):
        return "unknown"
    changed = [line for line in _git("diff", "--name-only", "HEAD").split() if line]
    return head + "+" * any(not name.endswith(RESULTS.name) for name in changed)


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
