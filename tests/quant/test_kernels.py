"""What onnxruntime runs a file with, and what a processor says of itself."""

from pathlib import Path

import pytest
from onnx_networks import residual

from normapps.errors import InputError
from normapps.quant import kernels as module
from normapps.quant.kernels import float_operators, has_vnni, kernels


def test_a_float_file_is_float_throughout(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    counts = kernels(path)
    assert not any(name.startswith("Q") for name in counts)
    found = [each.split() for each in float_operators(path)]
    assert [name for _, name in found] == ["stem", "deep", "point", "head"]
    assert [op.removeprefix("Fused") for op, _ in found] == ["Conv", "Conv", "Conv", "Gemm"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"a\.onnx: onnxruntime cannot open it"):
        kernels(path)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("flags : fpu avx2 avx_vnni", True),
        ("flags : fpu avx2 amx_int8", True),
        ("flags : fpu sse4_2 avx2 avx512f", False),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("processor : 0\n", None),
    ],
)
def test_the_processors_flags_say_whether_it_saturates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, answer: bool | None
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(module, "_CPUINFO", file)
    assert has_vnni() is answer


def test_a_machine_without_cpuinfo_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "none")
    assert has_vnni() is None
