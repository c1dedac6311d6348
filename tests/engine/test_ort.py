"""ONNX files run by onnxruntime: values, names, and what is refused in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from normapps.engine.ort import open_session
from normapps.errors import InputError, NormappsError


def scaling(path: Path, factor: float = 2.0, inputs: int = 1) -> Path:
    """A file that multiplies (batch, 3) by a factor, with as many inputs as wanted."""
    names = ["x", "other"][:inputs]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in names]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "z")]
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    nodes = [
        helper.make_node("Mul", [names[0] if names else "factor", "factor"], ["y"]),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "scaling", values, outputs, [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_runs_batches_of_any_size_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    path = scaling(tmp_path / "a.onnx")
    for session in (open_session(path), open_session(path.read_bytes(), threads=1)):
        assert session.input_name == "x"
        assert session.input_shape == (None, 3)
        assert session.output_names == ("y", "z")
        for batch in (1, 5):
            x = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
            y, z = session.run(x)
            np.testing.assert_array_equal(y, 2 * x)
            np.testing.assert_array_equal(z, -2 * x)


def test_gives_the_outputs_asked_for_in_their_order(tmp_path: Path) -> None:
    session = open_session(scaling(tmp_path / "a.onnx"))
    x = np.ones((2, 3), dtype=np.float32)
    (z,) = session.run(x, ["z"])
    np.testing.assert_array_equal(z, -2 * x)


def test_takes_arrays_that_do_not_lie_in_order(tmp_path: Path) -> None:
    session = open_session(scaling(tmp_path / "a.onnx"))
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    np.testing.assert_array_equal(session.run(x)[0], 2 * x)


def test_writes_the_graph_that_onnxruntime_made(tmp_path: Path) -> None:
    open_session(scaling(tmp_path / "a.onnx"), optimized=tmp_path / "b.onnx")
    assert {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node} == {"Mul", "Neg"}


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_batch_that_does_not_fit_names_file_and_shape(tmp_path: Path) -> None:
    session = open_session(scaling(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match=r"a\.onnx.*float32 \(2, 4\)") as error:
        session.run(np.ones((2, 4), dtype=np.float32))
    one_line(error)
    with pytest.raises(InputError, match=r"a\.onnx.*float64"):
        session.run(np.ones((2, 3)))


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x07\x12\x04junk"])
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.onnx") as error:
        open_session(path)
    one_line(error)
    with pytest.raises(InputError, match="ONNX model"):
        open_session(content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx: no such file"):
        open_session(tmp_path / "none.onnx")


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_file_must_have_one_input(tmp_path: Path, inputs: int) -> None:
    with pytest.raises(InputError, match="must have one input"):
        open_session(scaling(tmp_path / "a.onnx", inputs=inputs))


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NormappsError, match=r"normapps\[deploy\]"):
        open_session(b"")


def test_loads_no_torch() -> None:
    code = "import sys, normapps.engine.ort; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
