from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from normapps.measure.interval import Estimate
from normapps.measure.latency import Latency
from normapps.measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED
from normapps.measure.stages import Stage
from normapps.measure.timing import Timing
from normapps.quant.judgement import Evidence, judge, next_step
from normapps.quant.latency import FLOAT, INT8, TORCH

SIZES = {FLOAT: 46_800_000, INT8: 11_700_000}


def timed(*speeds: float) -> tuple[Latency, ...]:
    """Latencies at batch 1, 8, … where int8 is so many times as fast as onnxruntime."""
    return tuple(
        Latency(8**i, {TORCH: Timing((9.0,)), FLOAT: Timing((speed,)), INT8: Timing((1.0,))})
        for i, speed in enumerate(speeds)
    )


def same(mean: float, low: float, high: float) -> tuple[Stage, ...]:
    estimate = Estimate(mean, low, high, 500)
    return Stage("float", 500, True), Stage("int8", 500, True, same=estimate)


def labelled(mean: float, low: float, high: float) -> tuple[Stage, ...]:
    stages = same(0.97, 0.95, 0.98)
    return stages[0], replace(stages[1], difference=Estimate(mean, low, high, 500))


GOOD = labelled(-0.001, -0.006, 0.004)


@pytest.mark.parametrize(
    ("evidence", "verdict", "words"),
    [
        (
            Evidence(SIZES, GOOD, timed(3.0, 2.5)),
            RECOMMENDED,
            "25 % of the size (46.8 → 11.7 MB), and faster here (times as fast as float32 in ONNX"
            " Runtime: 3.00 at batch 1, 2.50 at batch 8). Accuracy changes by -0.1 points"
            " (95 %: -0.6 to +0.4) on 500 labelled pictures.",
        ),
        (Evidence(SIZES, GOOD, timed(0.9, 1.2)), RECOMMENDED, "1.20 at batch 8"),
        (Evidence(SIZES, GOOD, timed(0.95, 1.04)), NOT_RECOMMENDED, "but not faster here"),
        (Evidence(SIZES, GOOD), UNDECIDED, "no time was measured"),
        (
            Evidence(SIZES, labelled(-0.05, -0.07, -0.03), timed(3.0)),
            NOT_RECOMMENDED,
            "more than the 1 point of --max-drop",
        ),
        (
            Evidence(SIZES, labelled(-0.05, -0.07, -0.03), timed(3.0), max_drop=0.08),
            RECOMMENDED,
            "-5.0 points",
        ),
        (Evidence(SIZES, labelled(-0.01, -0.03, 0.01), timed(3.0)), UNDECIDED, "too few to tell"),
        (Evidence(SIZES, same(0.998, 0.991, 1.0), timed(3.0)), RECOMMENDED, "cannot have changed"),
        (Evidence(SIZES, same(0.99, 0.97, 0.995), timed(3.0)), UNDECIDED, "too few to tell"),
        (Evidence(SIZES, same(0.95, 0.93, 0.97), timed(3.0)), UNDECIDED, "no labels to tell"),
        (Evidence(SIZES, same(0.6, 0.5, 0.7), timed(3.0)), NOT_RECOMMENDED, "did damage"),
        (Evidence(SIZES, (), timed(3.0)), UNDECIDED, "The answers were not judged: no pictures"),
        (Evidence(SIZES, GOOD, timed(3.0), is_random=True), NOT_RECOMMENDED, "random weights"),
        (
            Evidence(SIZES, (GOOD[0], replace(GOOD[1], is_finite=False)), timed(3.0)),
            NOT_RECOMMENDED,
            "not finite",
        ),
    ],
)
def test_every_verdict(evidence: Evidence, verdict: str, words: str) -> None:
    found = judge(evidence)
    assert found.verdict == verdict
    assert words in found.reason


def test_what_comes_next() -> None:
    def said(evidence: Evidence) -> str:
        return next_step(evidence, judge(evidence), Path("out"), "my net")

    fast = timed(3.0)
    assert said(Evidence(SIZES, GOOD, fast)) == ("Use it: normapps.OnnxModel('out').run(images)")
    assert "normapps export 'my net' -o model.onnx" in said(Evidence(SIZES, GOOD, timed(0.9)))
    assert "add --data PICTURES" in said(Evidence(SIZES, (), fast))
    poor = Evidence(SIZES, same(0.95, 0.93, 0.97), fast, unused=("--mixed", "--finetune 200"))
    assert said(poor) == "What may keep more of the answers: --mixed, --finetune 200"
    assert said(replace(poor, unused=())) == ""
    few = replace(poor, stages=labelled(0.0, -0.03, 0.03))
    assert said(few) == "For a verdict: more pictures by --data or --test"
    assert said(replace(few, latencies=())).endswith("or --test and leave out --no-latency")
    assert said(Evidence(SIZES, GOOD)) == "For a verdict: leave out --no-latency"
    assert "to compile" not in said(Evidence(SIZES, GOOD, not_timed="nothing to compile"))
    dense = Evidence(SIZES, (), fast, not_judged="no logits", opened_by="ProgramModel")
    assert "compare the outputs of normapps.ProgramModel" in said(dense)
    slow = Evidence(SIZES, GOOD, timed(0.9), slows="--relu6 keep")
    assert said(slow) == "What may make it faster: --relu6 keep"
    assert said(replace(poor, is_random=True)) == ""
