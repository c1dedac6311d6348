"""What is declared, built and installed is what lies in the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import normapps

REPOSITORY = Path(__file__).resolve().parent.parent
MAPPED = {"normapps.cli": "cli", "normapps.pretrained": "pretrained"}
SHIPPED = (".safetensors", ".json", ".md", ".style")


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def _packages_in_the_tree() -> set[str]:
    found = set()
    for name, folder in {"normapps": "normapps", **MAPPED}.items():
        for file in (REPOSITORY / folder).rglob("__init__.py"):
            below = file.parent.relative_to(REPOSITORY / folder).parts
            found.add(".".join((name, *below)))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel built from a copy of the tree."""
    copy = tmp_path_factory.mktemp("wheel") / "source"
    copy.mkdir()
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / file, copy)
    for folder in ("normapps", *MAPPED.values()):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=ignored)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = (copy / "dist").glob("normapps-*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_the_list_of_packages_equals_the_tree() -> None:
    assert set(_pyproject()["tool"]["setuptools"]["packages"]) == _packages_in_the_tree()


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in ("normapps", *MAPPED.values()):
        for file in (REPOSITORY / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_the_version_is_one() -> None:
    assert _pyproject()["project"]["version"] == normapps.__version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {normapps.__version__} " in changelog


def test_the_console_script_is_main() -> None:
    from normapps.cli.main import main

    (script,) = entry_points(group="console_scripts", name="normapps")
    assert script.load() is main


def test_the_wheel_maps_the_two_folders(wheel: set[str]) -> None:
    assert {"normapps/cli/main.py", "normapps/pretrained/__init__.py"} <= wheel
    assert not any(name.split("/")[0] in ("cli", "pretrained", "tests") for name in wheel)


def test_the_wheel_holds_every_module_and_the_type_marker(wheel: set[str]) -> None:
    ours = {"normapps": "normapps"} | {MAPPED[name]: name.replace(".", "/") for name in MAPPED}
    for folder, inside in ours.items():
        for file in (REPOSITORY / folder).rglob("*.py"):
            assert f"{inside}/{file.relative_to(REPOSITORY / folder).as_posix()}" in wheel
    assert "normapps/py.typed" in wheel


def test_the_wheel_holds_the_weights_with_cards_and_styles(wheel: set[str]) -> None:
    shipped = [path for path in (REPOSITORY / "pretrained").rglob("*") if path.suffix in SHIPPED]
    assert shipped
    for path in shipped:
        assert f"normapps/{path.relative_to(REPOSITORY).as_posix()}" in wheel


def test_the_wheel_holds_the_licence(wheel: set[str]) -> None:
    licences = {name.rsplit("/", 1)[-1] for name in wheel if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_a_shipped_network_has_model_weights_and_card() -> None:
    for manifest in (REPOSITORY / "pretrained").glob("*/model.json"):
        names = {file.name for file in manifest.parent.iterdir()}
        assert {"model.safetensors", "model.json", "README.md"} <= names
        assert "-" in manifest.parent.name  # a name that can never be taken for a module
