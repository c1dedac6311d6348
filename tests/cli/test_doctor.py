"""The doctor finds what is off and says what mends it, and asks no network."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normapps import doctor
from normapps.cli.main import app
from normapps.doctor import Check
from normapps.models import backends, shipped
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model


def _only(checks: list[Check], name: str) -> Check:
    (check,) = (check for check in checks if check.name == name)
    return check


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that the doctor believes to be installed, over the true ones."""
    pretended: dict[str, str | None] = {}

    def look(package: str) -> str | None:
        return pretended[package] if package in pretended else true(package)

    true = doctor._version
    monkeypatch.setattr(doctor, "_version", look)
    return pretended


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped network of the test's own."""
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    folder = tmp_path / "pretrained" / "adain-mini"
    save_model(folder, AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)
    monkeypatch.setattr(shipped, "_root", lambda: tmp_path / "pretrained")
    return folder


def test_this_installation_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the doctor asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    checks = doctor.examine()
    assert [check for check in checks if not check.ok] == []
    assert _only(checks, "numpy").detail == version("numpy")
    assert "cpu" in _only(checks, "devices").detail
    assert any(check.name.startswith("weights ") for check in checks)


def test_every_core_dependency_is_looked_at() -> None:
    names = {check.name for check in doctor._packages()}
    assert {"torch", "torchvision", "timm", "kornia", "pillow", "typer", "rich"} <= names
    assert not names & {"pytest", "onnx", "matplotlib"}


def test_an_old_or_missing_package_is_off(versions: dict[str, str | None]) -> None:
    versions |= {"pillow": "9.0", "rich": None}
    checks = list(doctor._packages())
    old, missing = _only(checks, "pillow"), _only(checks, "rich")
    assert (old.ok, old.detail) == (False, "9.0, but >=12.3 is needed")
    assert old.remedy == "pip install 'pillow>=12.3'"
    assert (missing.ok, missing.detail) == (False, "not installed")
    assert _only(checks, "numpy").ok


def test_a_stale_installation_is_off(versions: dict[str, str | None]) -> None:
    versions["normapps"] = "0.0.1"
    check = doctor._itself()
    assert not check.ok
    assert "installed as 0.0.1" in check.detail


def test_torch_and_torchvision_must_match(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(package: str) -> str:
        return {"torch": "2.10.0+cpu"}.get(package) or version(package)

    monkeypatch.setattr(doctor, "version", pretend)
    check = doctor._torchvision()
    assert not check.ok
    assert "is made for torch " in check.detail
    assert check.detail.endswith("not 2.10.0+cpu")
    assert "'torch==2.10.0'" in check.remedy


@pytest.mark.parametrize(
    ("state", "text"),
    [("compiled", "operators load"), ("declared", "do not load"), ("absent", "is not found")],
)
def test_the_state_of_the_operators_is_told(
    monkeypatch: pytest.MonkeyPatch, state: str, text: str
) -> None:
    monkeypatch.setattr(backends, "operators", lambda: state)
    check = doctor._torchvision()
    assert check.ok
    assert text in check.detail


def test_a_torch_that_does_not_load_is_off_and_ends_no_examination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = doctor._torch()
    assert (check.name, check.ok) == ("torch loads", False)
    assert "pip install" in check.remedy


def test_a_missing_extra_is_offered_but_not_off(versions: dict[str, str | None]) -> None:
    versions |= {"onnx": None, "onnxruntime": None, "onnxscript": "0.1"}
    check = doctor._extra("deploy")
    assert check.ok
    assert check.detail == "without onnx, onnxruntime"
    assert check.remedy == "pip install onnx onnxruntime"


def test_a_present_extra_shows_its_versions(versions: dict[str, str | None]) -> None:
    versions["matplotlib"] = "3.99"
    assert doctor._extra("report") == Check("extra report", True, "matplotlib 3.99")


def test_the_extras_are_those_of_the_package() -> None:
    for name in doctor.EXTRAS:
        assert list(doctor._requirements(extra=name)), name


def test_weights_are_checked_by_their_hash(weights: Path) -> None:
    assert [check.ok for check in doctor._weights()] == [True]
    with (weights / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    (check,) = doctor._weights()
    assert (check.name, check.ok) == ("weights adain-mini", False)
    assert "damaged or changed" in check.detail


def test_no_weights_at_all_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_root", lambda: tmp_path)
    assert [check.ok for check in doctor._weights()] == [False]


def test_a_temporary_folder_that_cannot_be_written_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor._temporary_folder().ok
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    check = doctor._temporary_folder()
    assert not check.ok
    assert "TMPDIR" in check.remedy


def test_threads_tell_the_limit_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert doctor._threads().detail.endswith("(OMP_NUM_THREADS=3)")


@pytest.mark.parametrize(("value", "text"), [("1", "asks no network"), (None, "normapps sets")])
def test_the_update_check_is_told(
    monkeypatch: pytest.MonkeyPatch, value: str | None, text: str
) -> None:
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    if value:
        monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", value)
    assert text in doctor._update_check().detail


GOOD = [Check("python", True, "3.11"), Check("extra heic", True, "without it", "pip install it")]
BAD = [*GOOD, Check("weights", False, "damaged", "install again")]


@pytest.mark.parametrize(("checks", "code"), [(GOOD, 0), (BAD, 1)])
def test_the_command_exits_with_1_where_something_is_off(
    monkeypatch: pytest.MonkeyPatch, checks: list[Check], code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == code
    assert "→ pip install it" in shown.output
    assert ("1 of 3 checks off" if code else "all is well") in shown.output
    printed = CliRunner().invoke(app, ["doctor", "--json"])
    assert printed.exit_code == code
    read = json.loads(printed.stdout)
    assert [Check(**entry) for entry in read] == checks
