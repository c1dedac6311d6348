"""The package: its names come when they are used, and functions are not hidden by their modules."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import normapps.adapt


def test_importing_it_loads_no_torch() -> None:
    code = "import normapps.adapt, sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", normapps.adapt.__all__)
def test_every_name_is_there_whatever_was_imported_before(name: str) -> None:
    module = importlib.import_module(f"normapps.adapt.{normapps.adapt._LAZY[name]}")
    found = getattr(normapps.adapt, name)
    assert not isinstance(found, ModuleType)
    assert found is getattr(module, name)


def test_names_that_are_none() -> None:
    with pytest.raises(AttributeError, match=r"module 'normapps\.adapt' has no attribute 'adabm'"):
        normapps.adapt.adabm  # noqa: B018
