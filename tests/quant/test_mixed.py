"""Sensitivity finds the layer that int8 ruins, and the search leaves it float."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from normapps.engine.ort import open_session
from normapps.errors import InputError
from normapps.quant.calibration import measure_ranges
from normapps.quant.int8 import write_int8
from normapps.quant.layers import Node
from normapps.quant.mixed import Choice, Sensitivity, _Search, choose_float, sensitivity

Ranges = dict[str, tuple[float, float]]
BAD = "node_conv2"


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], f"node_{output}", **attributes)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five convolutions with ReLU6; in one, a channel's weights are a thousand times the others'.

    Its clip keeps what the channel gives in [0, 6], so that activations and the layers around it
    round as before, and per tensor all of its other weights round to 0.
    """
    draw = np.random.default_rng(0)
    values = {"zero": np.array(0.0), "six": np.array(6.0)}
    nodes, source = [], "image"
    for place, (width, out) in enumerate([(3, 16), (16, 16), (16, 16), (16, 16), (16, 16)]):
        weight = draw.standard_normal((out, width, 3, 3)) * math.sqrt(2 / (9 * width))
        if place == 2:
            weight[0] *= 1000
        values |= {f"{place}.weight": weight, f"{place}.bias": 0.1 * draw.standard_normal(out)}
        inputs = f"{source} {place}.weight {place}.bias"
        nodes.append(node("Conv", inputs, f"conv{place}", pads=[1] * 4))
        nodes.append(node("Clip", f"conv{place} zero six", f"clip{place}"))
        source = f"clip{place}"
    values["fc.weight"] = draw.standard_normal((6, 16))
    values["fc.bias"] = np.zeros(6)
    nodes += [
        node("GlobalAveragePool", source, "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc.weight fc.bias", "logits", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(each.astype(np.float32), name) for name, each in values.items()],
    )
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    (bias,) = (each for each in model.graph.initializer if each.name == "fc.bias")
    seen = open_session(model.SerializeToString()).run(images(draw, 64))[0]
    bias.CopyFrom(numpy_helper.from_array(-seen.mean(0), "fc.bias"))  # every class has its turn
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [images(draw, count) for count in (24, 0, 40)]


def images(draw: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3, 8, 8): one colour each, and noise."""
    colour = draw.standard_normal((count, 3, 1, 1), np.float32)
    return 3 * colour + draw.standard_normal((count, 3, 8, 8), np.float32)


@pytest.fixture(scope="module")
def ranges(network: Path, batches: list[np.ndarray]) -> Ranges:
    return measure_ranges(network, batches)


@pytest.fixture(scope="module")
def order(network: Path, ranges: Ranges, batches: list[np.ndarray]) -> tuple[Sensitivity, ...]:
    return sensitivity(network, ranges, batches, per_channel=False)


def test_the_ruined_layer_is_the_most_sensitive_by_far(order: tuple[Sensitivity, ...]) -> None:
    assert order[0].node.name == BAD
    assert order[0].node.module == "2"
    assert order[0].error > 5 * order[1].error
    assert order[0].agreement < 0.8 < min(each.agreement for each in order[1:])
    assert [each.error for each in order] == sorted((each.error for each in order), reverse=True)
    assert len(order) == 6


def test_errors_are_those_of_onnxruntime(
    network: Path,
    ranges: Ranges,
    batches: list[np.ndarray],
    order: tuple[Sensitivity, ...],
    tmp_path: Path,
) -> None:
    others = [each.node.name for each in order[1:]]
    write_int8(network, tmp_path / "one.onnx", ranges, per_channel=False, exclude=others)
    images = np.concatenate(batches)
    before, after = (
        open_session(each).run(images)[0].astype(np.float64)
        for each in (network, tmp_path / "one.onnx")
    )
    apart = math.sqrt(float(((after - before) ** 2).sum() / (before**2).sum()))
    assert order[0].error == pytest.approx(apart, rel=1e-3)
    same = np.mean([int(a.argmax()) == int(b.argmax()) for a, b in zip(before, after, strict=True)])
    assert order[0].agreement == pytest.approx(float(same))


def test_per_channel_rounds_the_same_layer_well(
    network: Path, ranges: Ranges, batches: list[np.ndarray], order: tuple[Sensitivity, ...]
) -> None:
    told: list[tuple[int, int]] = []
    found = sensitivity(network, ranges, batches, progress=lambda *each: told.append(each))
    bad = next(each for each in found if each.node.name == BAD)
    assert bad.error < 0.2 * order[0].error
    assert told == [(each, 6) for each in range(1, 7)]


def test_only_the_ruined_layer_stays_float(
    network: Path, ranges: Ranges, batches: list[np.ndarray], order: tuple[Sensitivity, ...]
) -> None:
    found = choose_float(network, ranges, batches, order, max_drop=0.2, per_channel=False)
    assert found.exclude == (BAD,)
    assert found.loss <= 0.2
    assert found.tried[0][0] == 0
    assert found.tried[0][1] > 0.2
    assert dict(found.tried)[1] == found.loss


def test_a_generous_limit_leaves_nothing_float(
    network: Path, ranges: Ranges, batches: list[np.ndarray], order: tuple[Sensitivity, ...]
) -> None:
    found = choose_float(network, ranges, batches, order, max_drop=1, per_channel=False)
    assert found == Choice((), found.loss, ((0, found.loss),))


def test_labels_make_the_loss_that_of_accuracy(
    network: Path, ranges: Ranges, batches: list[np.ndarray], order: tuple[Sensitivity, ...]
) -> None:
    """Answers of the float network as labels: as without; the int8 network's: a gain."""
    logits = open_session(network).run(np.concatenate(batches))[0]
    options: dict[str, Any] = {"max_drop": 0.2, "per_channel": False}
    plain = choose_float(network, ranges, batches, order, **options)
    right = choose_float(network, ranges, batches, order, labels=logits.argmax(1), **options)
    assert right.exclude == plain.exclude
    assert [each for _, each in right.tried] == pytest.approx([each for _, each in plain.tried])
    wrong = choose_float(network, ranges, batches, order, labels=logits.argmin(1), **options)
    assert wrong.exclude == ()  # int8 cannot be worse than a network that is never right
    assert wrong.loss <= 0


@given(total=st.integers(1, 60), data=st.data())
def test_the_search_finds_the_smallest_count_in_logarithmic_time(
    total: int, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(0, total))
    search = _Search(lambda count: 1.0 if count < needed else 0.0, total, None)
    assert search.smallest(0.5) == needed
    assert len(search.losses) <= 2 + 2 * max(needed, 1).bit_length()
    assert total not in search.losses  # all float needs no measurement


def test_an_order_of_another_network_is_refused(
    network: Path, ranges: Ranges, batches: list[np.ndarray], order: tuple[Sensitivity, ...]
) -> None:
    other = Sensitivity(Node("else", "Conv", None, "w", "y"), 0.0, 1.0)
    with pytest.raises(InputError, match=r"net.onnx: the order is of another network"):
        choose_float(network, ranges, batches, [*order[1:], other], max_drop=0.1)


def test_no_images_are_refused(network: Path, ranges: Ranges) -> None:
    with pytest.raises(InputError, match="no images to compare on"):
        sensitivity(network, ranges, [np.zeros((0, 3, 8, 8), np.float32)])


def test_a_limit_and_labels_that_cannot_be_are_refused(
    network: Path, ranges: Ranges, batches: list[np.ndarray], order: tuple[Sensitivity, ...]
) -> None:
    with pytest.raises(InputError, match=r"max_drop 1.5: must be from 0 to 1"):
        choose_float(network, ranges, batches, order, max_drop=1.5)
    with pytest.raises(InputError, match=r"labels of \(3,\): must be \(64,\)"):
        choose_float(network, ranges, batches, order, max_drop=0.1, labels=np.zeros(3, int))
