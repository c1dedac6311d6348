"""What `normapps doctor` looks at: is this installation whole, and what mends it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from . import __version__
from .errors import InputError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EXTRAS = ("deploy", "report", "heic")
"""What a user may want beside the core; `dev` is for this repository's contributors."""

AGAIN = "install normapps again"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    `remedy` is what to do: where `ok` is False it mends, where it is True it adds something
    optional; empty where there is nothing to do.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at the whole installation: nothing is changed, and no network is asked."""
    return [
        _itself(),
        *_packages(),
        *_torch(),
        *(_extra(name) for name in EXTRAS),
        *_weights(),
        _temporary_folder(),
        _update_check(),
    ]


def _itself() -> Check:
    installed = _version("normapps")
    detail = f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    if installed == __version__:
        return Check("normapps", True, detail)
    return Check("normapps", False, f"{detail}; installed as {installed}", AGAIN)


def _packages() -> Iterator[Check]:
    for requirement in _requirements():
        found = _version(requirement.name)
        if found is None:
            yield Check(requirement.name, False, "not installed", _install(requirement))
        elif requirement.specifier.contains(found, prereleases=True):
            yield Check(requirement.name, True, found)
        else:
            detail = f"{found}, but {requirement.specifier} is needed"
            yield Check(requirement.name, False, detail, _install(requirement))


def _requirements(package: str = "normapps", extra: str = "") -> Iterator[Requirement]:
    """What a package needs here; with `extra`, what that extra adds."""
    from packaging.requirements import Requirement

    for line in (requires(package) if _version(package) else None) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        plain = marker is None or marker.evaluate({"extra": ""})
        if (extra and not plain and marker and marker.evaluate({"extra": extra})) or (
            not extra and plain
        ):
            yield requirement


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


def _torch() -> Iterator[Check]:
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        remedy = "pip install --force-reinstall torch torchvision"
        yield Check("torch loads", False, str(error), remedy)
    else:
        yield from (_torchvision(), _devices(), _threads())


def _torchvision() -> Check:
    """Torchvision names the one torch that it was built for; other pairs fail in odd ways."""
    wanted = [each.specifier for each in _requirements("torchvision") if each.name == "torch"]
    found = version("torch")
    if not wanted or wanted[0].contains(found, prereleases=True):
        return Check("torch and torchvision", True, f"they match; {_operators()}")
    detail = f"torchvision {version('torchvision')} is made for torch {wanted[0]}, not {found}"
    public = found.split("+", maxsplit=1)[0]
    remedy = f"pip install --upgrade torchvision 'torch=={public}'"
    return Check("torch and torchvision", False, detail, remedy)


def _operators() -> str:
    from .models.backends import operators

    return {
        "compiled": "compiled operators load",
        "declared": "compiled operators do not load with this build of torch, only their names "
        "are declared (nothing here uses them)",
        "absent": "torchvision is not found",
    }[operators()]


def _devices() -> Check:
    import torch

    names = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"cuda:{index} {properties.name} {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        names.append("mps")
    return Check("devices", True, ", ".join(names))


def _threads() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"torch computes with {torch.get_num_threads()} on {cores} usable cores"
    limit = os.environ.get("OMP_NUM_THREADS")
    return Check("threads", True, detail + (f" (OMP_NUM_THREADS={limit})" if limit else ""))


def _extra(name: str) -> Check:
    needed = list(_requirements(extra=name))
    missing = [each.name for each in needed if _version(each.name) is None]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check(f"extra {name}", True, f"without {', '.join(missing)}", remedy)
    detail = ", ".join(f"{each.name} {_version(each.name)}" for each in needed)
    return Check(f"extra {name}", True, detail)


def _weights() -> Iterator[Check]:
    from .models.folder import check_hashes, read_manifest
    from .models.shipped import list_shipped, shipped_folder

    if not list_shipped():
        yield Check("weights", False, "the package came without its networks", AGAIN)
    for name in list_shipped():
        try:
            check_hashes(shipped_folder(name), read_manifest(shipped_folder(name)))
        except InputError as error:
            yield Check(f"weights {name}", False, str(error), AGAIN)
        else:
            yield Check(f"weights {name}", True, "present, hashes true")


def _temporary_folder() -> Check:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"normapps")
        return Check("temporary folder", True, f"{tempfile.gettempdir()} is writable")
    except OSError as error:
        remedy = "point TMPDIR to a folder that can be written"
        return Check("temporary folder", False, f"cannot be written ({error})", remedy)


def _update_check() -> Check:
    state = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    detail = "NO_ALBUMENTATIONS_UPDATE=1: importing albumentations asks no network"
    if state != "1":
        detail = "normapps sets NO_ALBUMENTATIONS_UPDATE=1 before it imports albumentations"
    return Check("update check", True, detail)
