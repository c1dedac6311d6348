"""Graphs that point into the weights: small, hashed, and of the same weights by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from normapps.errors import InputError
from normapps.models.folder import load_model, read_manifest, save_model
from normapps.models.shipped import shipped_folder
from normapps.models.small import small_cnn
from normapps.style.onnx.files import write_runtime
from normapps.style.onnx.stylizer import DECODER, ENCODER


def test_the_graphs_hold_no_weights_but_point_to_them(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for name in (ENCODER, DECODER):
        graph = onnx.load(folder / name, load_external_data=False).graph
        external = [each for each in graph.initializer if each.external_data]
        assert len(external) >= 6
        held = sum(len(each.raw_data) for each in graph.initializer)
        assert held < 8 * 12 * 32 * 9  # the one convolution that is written anew
    assert set(read_manifest(folder).sha256) == {"model.safetensors", ENCODER, DECODER}
    load_model(folder)  # which checks the hashes


@pytest.mark.parametrize("name", [ENCODER, DECODER])
def test_no_folder_of_a_machine_is_in_the_shipped_graphs(name: str) -> None:
    content = (shipped_folder("adain-tiny") / name).read_bytes()
    for trace in (b"/normapps", b"site-packages", b".py"):
        assert trace not in content
    assert len(content) < 50_000


def test_the_shipped_encoder_is_the_shipped_network(astronaut: np.ndarray) -> None:
    """Weights in half precision, cast when the file is opened."""
    shipped = shipped_folder("adain-tiny")
    pixels = astronaut[:64, :104].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(shipped / ENCODER, providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": pixels})
    network = load_model(shipped)
    with torch.inference_mode():
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        want = network.encode(image)  # type: ignore[operator]
    for value, other in zip(found, want, strict=True):
        np.testing.assert_allclose(value, other.numpy(), atol=1e-4)


def test_a_new_folder_is_a_copy_and_nothing_is_replaced_unasked(folder: Path) -> None:
    bare = folder.with_name("bare")
    assert {each.name for each in bare.iterdir()} == {"model.safetensors", "model.json", "styles"}
    assert (folder / "styles" / "mine.style").read_text() == "kept"
    with pytest.raises(InputError, match="tiny: exists already"):
        write_runtime(bare, folder)
    with pytest.raises(InputError, match=r"encoder\.onnx: exists already"):
        write_runtime(folder, folder)


def test_another_network_is_no_stylizer(tmp_path: Path) -> None:
    arguments = {"channels": 1, "num_classes": 10}
    save_model(tmp_path / "m", small_cnn(**arguments), builder="small-cnn", arguments=arguments)
    with pytest.raises(InputError, match="holds no stylization network"):
        write_runtime(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
