"""Every branch of the verdict, from numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normapps.compress.judgement import Evidence, judge, next_step, worst
from normapps.compress.judging import Network
from normapps.compress.sparsity import Zeros
from normapps.measure.latency import Latency
from normapps.measure.stages import Prediction, compare
from normapps.measure.timing import Timing
from normapps.slim.latency import Footprint

COUNT = 1000


def answers(right: int, *, is_labelled: bool = True) -> Prediction:
    """Logits of two classes; of `COUNT` pictures of class 0 the first `right` are right."""
    logits = torch.zeros(COUNT, 2)
    logits[:right, 0] = 1
    logits[right:, 1] = 1
    return Prediction(logits, torch.zeros(COUNT, dtype=torch.int64) if is_labelled else None)


def chain(*right: int, names: tuple[str, ...] = (), is_labelled: bool = True) -> Evidence:
    names = names or ("given", "sparse", "pruned", "finetuned", "int8")[: len(right)]
    base = answers(right[0], is_labelled=is_labelled)
    networks = [Network(names[0], Footprint(100, 1000, 4_000_000), compare(names[0], base))]
    for name, each in zip(names[1:], right[1:], strict=True):
        stage = compare(name, answers(each, is_labelled=is_labelled), base)
        networks.append(Network(name, Footprint(50, 600, 800_000), stage))
    return Evidence(tuple(networks), names[0], timed(4.0, 2.0, 1.0))


def timed(torch_: float, onnx: float, int8: float) -> tuple[Latency, ...]:
    seconds = {"torch": torch_, "onnxruntime": onnx, "int8": int8}
    times = {name: Timing((each, each, each)) for name, each in seconds.items()}
    return (Latency(1, times), Latency(8, times))


def test_as_good_smaller_and_faster_is_recommended() -> None:
    found = chain(900, 900, 898, 899, 899)
    verdict = judge(found)
    assert verdict.verdict == "recommended"
    assert verdict.reason.startswith("20 % of the bytes (4 → 0.8 MB) and 60 % of the multiplic")
    assert "4.00 over torch and 2.00 over ONNX Runtime at batch 1" in verdict.reason
    assert "Against the given network accuracy changes by -0.1 points" in verdict.reason
    assert (
        next_step(found, verdict, Path("o"), "net")
        == "Use it: normapps.OnnxModel('o/int8').run(images)"
    )


def test_a_result_that_only_torch_is_slower_than_is_not_recommended() -> None:
    """What ONNX Runtime makes of the given network is to be beaten, too."""
    found = replace(chain(900, 900, 900, 900, 900), latencies=timed(4.0, 1.0, 1.0))
    verdict = judge(found)
    assert verdict.verdict == "not recommended"
    assert "but not faster here" in verdict.reason
    assert "Smaller is not faster here" in next_step(found, verdict, Path("o"), "net")
    untimed = replace(found, latencies=())
    verdict = judge(untimed)
    assert (verdict.verdict, "no time was measured" in verdict.reason) == ("undecided", True)
    assert next_step(untimed, verdict, Path("o"), "net").endswith("without --no-latency")


@pytest.mark.parametrize(
    ("right", "stage", "words"),
    [
        ((900, 700, 500, 690, 690), "sparse", "Sparse training lost most: 20.0 points"),
        ((900, 895, 500, 700, 695), "pruned", "Pruning, with what followed to make it good, lost"),
        ((900, 895, 890, 895, 700), "int8", "Rounding to int8 lost most: 19.5 points"),
        ((900, 100, 690, 700, 700), "sparse", "Sparse training lost most: 20.0 points"),
    ],
)
def test_the_stage_that_lost_most_is_named(right: tuple[int, ...], stage: str, words: str) -> None:
    found = chain(*right)
    verdict = judge(found)
    assert verdict.verdict == "not recommended"
    assert "more than the 1 point of --max-drop" in verdict.reason
    assert words in verdict.reason
    loss = worst(found)
    assert loss is not None
    assert loss.stage == stage
    hint = {"sparse": "--sparse-steps", "pruned": "--target-flops", "int8": "--qat-steps"}[stage]
    assert hint in next_step(found, verdict, Path("o"), "net")


def test_channels_that_were_cut_in_use_call_for_more_sparse_training() -> None:
    found = replace(chain(900, 895, 500, 700, 695), zeros=Zeros(0.4, 0.03))
    following = next_step(found, judge(found), Path("o"), "net")
    words = "more --sparse-steps, as 3 % of the scales came to 0 and the cut took 40 %; a greater"
    assert words in following
    reached = replace(found, zeros=Zeros(0.4, 0.38))
    assert "--sparse-steps" not in next_step(reached, judge(reached), Path("o"), "net")


def test_a_loss_that_is_made_good_is_none() -> None:
    found = chain(900, 100, 200, 899, 898)
    assert worst(found) is None
    assert judge(found).verdict == "recommended"


def test_few_pictures_decide_nothing() -> None:
    found = replace(chain(900, 880, 885, 892, 891), max_drop=0.012)
    verdict = judge(found)
    assert verdict.verdict == "undecided"
    assert "too few to tell whether it lost more than 1.2 points" in verdict.reason
    assert "--test PICTURES" in next_step(found, verdict, Path("o"), "net")


@pytest.mark.parametrize(
    ("same", "verdict", "words"),
    [
        (1000, "recommended", "so accuracy cannot have changed by more"),
        (990, "undecided", "too few to tell whether more than 1 % changed"),
        (960, "undecided", "no labels to tell which are right"),
        (600, "not recommended", "too many changed"),
    ],
)
def test_without_labels_unchanged_answers_count(same: int, verdict: str, words: str) -> None:
    found = chain(1000, same, same, names=("given", "pruned", "int8"), is_labelled=False)
    said = judge(found)
    assert said.verdict == verdict
    assert words in said.reason
    if same < 900:
        assert "Pruning, with what followed to make it good, lost most: 40.0 %" in said.reason
        following = next_step(found, said, Path("o"), "net")
        assert "labelled pictures" in following
        assert "--finetune-steps" not in following  # without labels there is no such stage


def test_without_a_network_to_compare_with_nothing_is_recommended() -> None:
    found = chain(900, 900, 899, 899, names=("sparse", "pruned", "finetuned", "int8"))
    given = Network("given", Footprint(100, 1000, 4_000_000))
    why = "The given network has 1000 outputs."
    found = replace(found, networks=(given, *found.networks), without_base=why)
    verdict = judge(found)
    assert verdict.verdict == "undecided"
    assert f"{why} Against the sparse network accuracy changes" in verdict.reason
    following = next_step(found, verdict, Path("o"), "net")
    assert "--baseline o-plain/model: normapps slim train net o/pictures/train.txt" in following
    bad = chain(900, 500, 600, 600, names=("sparse", "pruned", "finetuned", "int8"))
    bad = replace(bad, networks=(given, *bad.networks), without_base=why)
    assert judge(bad).verdict == "not recommended"


def test_random_weights_and_broken_outputs_are_not_recommended() -> None:
    found = chain(900, 900, names=("given", "pruned"))
    assert "random weights" in judge(replace(found, is_random=True)).reason
    assert (
        next_step(found, judge(found), Path("o"), "net")
        == "Use it: normapps.load_model('o/pruned')"
    )
    stage = found.result.stage
    assert stage is not None
    broken = replace(found.result, stage=replace(stage, is_finite=False))
    verdict = judge(replace(found, networks=(found.first, broken)))
    assert verdict.reason == "The result's outputs are not finite."


def test_int8_that_brings_no_speed_is_told_beside_the_same_network_in_float() -> None:
    found = replace(chain(900, 900, 900, 900, 900), over_float=0.9)
    verdict = judge(found)
    assert "int8 0.90 times as fast as the slimmed one in float32" in verdict.reason
    following = next_step(found, verdict, Path("o"), "net")
    assert following.endswith("normapps export o/finetuned/model -o model.onnx")
