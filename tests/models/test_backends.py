"""torchvision and timm import in every installation once normapps.models is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from normapps.models import backends

USE = """
import normapps.models
import timm, torch, torchvision, torchvision.models, torchvision.transforms.v2
with torch.no_grad():
    assert timm.create_model("test_resnet").eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
from normapps.models.backends import operators
print(operators(), torchvision.extension._has_ops())
"""
FAILED_BEFORE = """
try:
    import torchvision
except RuntimeError:
    pass
"""
NO_LIBRARY = """
import torch
def load_library(path):
    raise OSError(f"{path}: cannot open shared object file")
torch.ops.load_library = load_library
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timm_and_torchvision_import_after_models() -> None:
    assert _run(USE) in ("compiled True", "declared False")


def test_they_import_where_the_library_does_not_load_and_an_import_failed_before() -> None:
    assert _run(NO_LIBRARY + FAILED_BEFORE + USE) == "declared False"


def test_without_the_guard_the_import_fails_where_the_library_does_not_load() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_LIBRARY + "import torchvision"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "torchvision::" in done.stderr


def test_the_guard_is_set_once() -> None:
    backends.guard()
    backends.guard()
    assert sum(isinstance(finder, backends._Guard) for finder in sys.meta_path) == 1


def test_only_the_remains_of_a_failed_import_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_declare_missing", lambda: None)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.part", ModuleType("torchvision.part"))
    backends._Guard().find_spec("torchvision", None)  # a reload: the package is there
    assert "torchvision.part" in sys.modules
    monkeypatch.delitem(sys.modules, "torchvision")
    backends._Guard().find_spec("something_else", None)
    assert "torchvision.part" in sys.modules
    backends._Guard().find_spec("torchvision", None)
    assert "torchvision.part" not in sys.modules


def test_no_torchvision_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_package", lambda: None)
    assert backends.operators() == "absent"
    assert backends._libraries() == []


def test_every_name_of_the_compiled_library_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision 0.28 has `_C`, 0.29 `_C_stable`; to declare what loads would end the process."""
    spec = ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(backends, "_package", lambda: spec)
    for name in ("_C.so", "_C_stable.cpython-311-x86_64-linux-gnu.so", "_C.py", "image.so"):
        (tmp_path / name).touch()
    assert [path.name.split(".")[0] for path in backends._libraries()] == ["_C", "_C_stable"]
