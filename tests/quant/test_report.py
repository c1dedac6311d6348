"""The report of a quantization: every number in it, in words and in JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from normapps.measure.interval import Estimate
from normapps.measure.latency import Latency
from normapps.measure.report import write_report
from normapps.measure.stages import Stage
from normapps.measure.timing import Timing
from normapps.quant.judgement import Evidence, judge
from normapps.quant.latency import FLOAT, INT8, TORCH
from normapps.quant.layers import Node
from normapps.quant.mixed import Choice, Sensitivity
from normapps.quant.mixing import Mixture
from normapps.quant.report import Circumstances, quantize_report
from normapps.quant.steps import Step

A, B = (Node(f"node_{name}", "Conv", name, f"{name}.weight", f"{name}_out") for name in "ab")
SAME = Estimate(0.99, 0.97, 0.998, 300)
LOST = Estimate(-0.004, -0.009, 0.001, 300)
RIGHT = Estimate(0.8, 0.75, 0.84, 300)
EVIDENCE = Evidence(
    {FLOAT: 40_000_000, INT8: 10_000_000},
    (
        Stage("float", 300, True, RIGHT),
        Stage("int8", 300, True, RIGHT, LOST, SAME, logit_error=0.0512),
    ),
    (Latency(8, {TORCH: Timing((0.03,)), FLOAT: Timing((0.02,)), INT8: Timing((0.01,))}),),
    layers=(1, 2),
)
FACTS = Circumstances(
    model="timm net",
    preprocessing="224×224 RGB",
    data="here: 5 pictures calibrate, 300 others judge",
    without_accuracy="",
    options={"mixed": True},
    range_source="5 pictures (min-max)",
    steps=(Step("fold", "2 of 3 norm layers", {"clipped": {"x": math.nan}}),),
    left=(("norm3", "has an activation before it"),),
    layers=(A, B),
    mixture=Mixture(
        (Sensitivity(B, 0.25, 0.9), Sensitivity(A, 0.01, 1.0)),
        Choice(("node_b",), 0.005, ((0, 0.2), (1, 0.005))),
    ),
    float_operators=("Conv node_b",),
    ranges={"a_out": (-1.5, 2.5)},
    difference=3e-7,
    kernels={"QLinearConv": 1, "Conv": 1, "QuantizeLinear": 3},
    warnings=("no VNNI",),
    failed=("bad.png: is no picture",),
    following="Use it",
    seconds={"ranges": 1.2345, "ONNX": 123.4},
    peak_bytes=500_000_000,
)


def written(
    tmp_path: Path, evidence: Evidence, facts: Circumstances
) -> tuple[str, dict[str, object]]:
    write_report(tmp_path, quantize_report(evidence, judge(evidence), facts))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")

    def refuse(word: str) -> None:
        pytest.fail(f"{word} in report.json")

    return page, json.loads(text, parse_constant=refuse)


def test_people_find_every_number(tmp_path: Path) -> None:
    page, _ = written(tmp_path, EVIDENCE, FACTS)
    for words in (
        "timm net; 1 of 2 layers in int8, ranges from 5 pictures (min-max).",
        "Warning: no VNNI.",
        "Use it",
        "75.0",  # per cent gone
        "2.00 (2.00 to 2.00)",  # over onnxruntime
        "3.00 (3.00 to 3.00)",  # over torch
        "-0.4 (-0.9 to +0.1)",
        "2 of 3 norm layers",
        "has an activation before it",
        "Layers that stay in float32: b. On the pictures that calibrated 0.5 % are lost then, 20 %",
        "Computed in float32 here: Conv node_b.",
        "(int8 where it begins with Q): 3 QuantizeLinear, 1 QLinearConv, 1 Conv.",
        "bad.png: is no picture",
        "relative difference 3.0e-07",
    ):
        assert words in page, words
    assert "1.2345" not in page
    assert "data:image/png;base64," in page


def test_programs_find_every_number_and_no_nan(tmp_path: Path) -> None:
    _, found = written(tmp_path, EVIDENCE, FACTS)
    assert found["int8_layers"] == [1, 2]
    assert found["layers"] == {
        "node_a": {"op": "Conv", "module": "a", "int8": True, "error": 0.01, "agreement": 1.0},
        "node_b": {"op": "Conv", "module": "b", "int8": False, "error": 0.25, "agreement": 0.9},
    }
    assert found["mixed"] == {"float": ["node_b"], "loss": 0.005, "tried": [[0, 0.2], [1, 0.005]]}
    assert found["steps"] == {"fold": {"said": "2 of 3 norm layers", "clipped": {"x": None}}}
    assert found["ranges"] == {"a_out": [-1.5, 2.5]}
    assert found["kernels"] == {"QLinearConv": 1, "Conv": 1, "QuantizeLinear": 3}
    assert found["not_folded"] == [{"norm": "norm3", "why": "has an activation before it"}]
    assert found["bytes"] == {FLOAT: 40_000_000, INT8: 10_000_000}
    assert found["seconds"] == {"ranges": 1.2345, "ONNX": 123.4}
    assert found["next"] == "Use it"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    bare = replace(EVIDENCE, stages=(), latencies=(), not_judged="no logits")
    facts = replace(FACTS, data=None, without_accuracy="no logits", mixture=Mixture(), kernels={})
    page, found = written(tmp_path, bare, facts)
    assert "Not judged: no logits." in page
    assert "Not measured: --no-latency was given." in page
    assert "Sensitivity" not in page
    assert "What ONNX Runtime runs" not in page
    assert found["latency"] == found["stages"] == {}
    assert found["mixed"] is None
    assert found["data"] is None
