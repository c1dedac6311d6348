"""What the command line does with errors, interrupts and readers that have gone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from normapps import InputError, NormappsError, UsageError, __version__
from normapps.cli import main as command_line

LISTED = [
    *("stylize", "stylize-dataset", "doctor", "style", "norm", "adapt", "slim"),
    *("gan", "translate", "quantize", "compress", "export", "models"),
]
"""The commands, in the order of `--help`."""

RUN = [sys.executable, "-c", "from normapps.cli.main import main; main()"]


def _exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, arguments: tuple[str, ...] = ()
) -> int:
    """The exit code of `main` where the only command raises the error."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def fail(count: int = 0) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", app)
    monkeypatch.setattr(sys, "argv", ["normapps", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NormappsError("went wrong"), 1),
        (InputError("went wrong"), 1),
        (UsageError("went wrong"), 2),
    ],
)
def test_our_errors_are_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: NormappsError,
    code: int,
) -> None:
    monkeypatch.delenv("NORMAPPS_DEBUG", raising=False)
    assert _exit_code(monkeypatch, error) == code
    assert capsys.readouterr() == ("", "error: went wrong\n")


def test_a_message_of_two_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _exit_code(monkeypatch, InputError("a.png: bad\n  header"))
    assert capsys.readouterr().err == "error: a.png: bad header\n"


def test_a_warning_is_one_line_without_the_code() -> None:
    warns = "import warnings; warnings.warn('--compile: is for\\n a CUDA device')"
    code = f"from normapps.cli import main as m\ndef app(): {warns}\nm.app = app; m.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: --compile: is for a CUDA device\n"


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debugging_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, shown: bool
) -> None:
    monkeypatch.setenv("NORMAPPS_DEBUG", value)
    assert _exit_code(monkeypatch, InputError("went wrong")) == 1
    written = capsys.readouterr().err
    assert ("Traceback" in written) is shown
    assert written.endswith("error: went wrong\n")


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _exit_code(monkeypatch, KeyboardInterrupt()) == 130


def test_wrong_flags_exit_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(monkeypatch, NormappsError(), ("--count", "many")) == 2
    assert "--count" in capsys.readouterr().err


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        _exit_code(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize("arguments", [["--help"], ["models", "list", "--json"]])
def test_a_reader_that_has_gone_causes_no_message(arguments: list[str]) -> None:
    process = subprocess.Popen([*RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, written = process.communicate()
    assert written == b""


def test_the_version() -> None:
    done = subprocess.run([*RUN, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"normapps {__version__}\n"


def test_without_arguments_there_is_help() -> None:
    done = subprocess.run(RUN, capture_output=True, text=True, check=False)
    assert "Usage:" in done.stdout + done.stderr


def test_every_command_can_be_asked_for_help() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom normapps.cli.main import app\n"
        f"for name in {LISTED!r}:\n"
        "    done = CliRunner().invoke(app, [name, '--help'])\n"
        "    assert done.exit_code == 0 and f' {name} ' in done.stdout, (name, done.output)\n"
        "heavy = {'torch', 'pydantic', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_is_listed_with_one_whole_line() -> None:
    done = subprocess.run([*RUN, "--help"], capture_output=True, text=True, check=True)
    listed = done.stdout.split("Commands:\n")[1].splitlines()
    names = [line.split()[0] for line in listed]
    assert names == LISTED
    assert not any(line.endswith("...") for line in listed), done.stdout


def test_what_was_made_is_not_searched_when_python_ends() -> None:
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"  # called in reverse order
        "from normapps.cli.main import main\n"
        "import sys; sys.argv = ['normapps', '--version']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) > 1000
