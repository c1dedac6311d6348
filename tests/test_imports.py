"""Who imports whom, and what is not imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "kornia", "albumentations")


def _modules_after(code: str) -> set[str]:
    """The top-level names in `sys.modules` of a new process that ran the code."""
    code += "\nimport sys; print('\\0', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\0")[-1].split())  # what a command printed comes before


def _command(*arguments: str) -> str:
    return (
        f"import sys; sys.argv = {['normapps', *arguments]!r}\n"
        "from normapps.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )


def _imports(file: Path) -> Iterator[str]:
    """Absolute names of what a file imports anywhere, `from a import b` as `a` and `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(file, node)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = file.relative_to(REPOSITORY).with_suffix("").parts[: -node.level]
    return ".".join((*package, *filter(None, [node.module])))


def _files(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def test_importing_normapps_loads_nothing_heavy() -> None:
    loaded = _modules_after("import normapps; normapps.NormappsError")
    assert "normapps" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("models", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = _modules_after(_command(*arguments))
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("command", ["stylize", "style", "doctor", "slim", "models"])
def test_help_of_a_command_loads_no_torch(command: str) -> None:
    assert "torch" not in _modules_after(_command(command, "--help"))


def test_listing_models_loads_no_torch() -> None:
    assert "torch" not in _modules_after(_command("models", "list", "--json"))


def test_models_imports_no_timm_before_it_is_needed() -> None:
    assert not _modules_after("import normapps.models") & {"torch", "torchvision", "timm"}


def test_the_library_never_imports_the_command_line() -> None:
    for file in _files("normapps"):
        assert not [name for name in _imports(file) if name.startswith("normapps.cli")], file


def test_norm_stands_on_torch_alone() -> None:
    """And on safetensors to store a population; on how this package writes files, keeps memory."""
    allowed = {"torch", "normapps", "safetensors", *sys.stdlib_module_names}
    ours = ("normapps.norm", "normapps.errors", "normapps.files", "normapps.allocator")
    for file in _files("normapps/norm"):
        for name in _imports(file):
            assert name.split(".")[0] in allowed, f"{file}: {name}"
            if name.startswith("normapps."):
                assert name.startswith(ours), f"{file}: {name}"


def test_nothing_uses_what_torchvision_compiles() -> None:
    for folder in ("normapps", "cli"):
        for file in _files(folder):
            text = file.read_text(encoding="utf-8")
            assert "torch.ops.torchvision" not in text, file
            for name in _imports(file):
                assert not name.startswith(("torchvision.io", "torchvision.ops")), file


def test_torchvision_and_timm_are_imported_behind_the_guard() -> None:
    guarded = ("normapps.models", "..models", "...models", ".backends")
    for file in _files("normapps") + _files("cli"):
        if {"torchvision", "timm"} & {name.split(".")[0] for name in _imports(file)}:
            inside = file.is_relative_to(REPOSITORY / "normapps" / "models")
            assert inside or any(f"from {name}" in file.read_text() for name in guarded), file


def test_albumentations_never_asks_the_network() -> None:
    for file in _files("normapps") + _files("cli"):
        if "albumentations" in {name.split(".")[0] for name in _imports(file)}:
            text = file.read_text(encoding="utf-8")
            switch = text.find("NO_ALBUMENTATIONS_UPDATE")
            assert 0 <= switch < text.find("import albumentations"), file


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
