"""Whether to use what a compression made: a function of numbers, so that all can be tested.

It is judged as a whole, the result against the network that was given: as good, within
`max_drop` in the 95 % interval of the paired difference (without labels: of the answers that
stay), and 1.05 times as fast at batch 1 or 8 as the best that was measured of the given network,
which is mostly ONNX Runtime and not torch. Where something was lost, the stage is named that lost
most.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ..measure.interval import Estimate
from ..measure.latency import Latency
from ..measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict
from ..quant.judgement import BROKEN, FASTER
from ..quant.latency import INT8 as FILE
from .chain import FINETUNED, INT8, PRUNED, SPARSE
from .judging import BASELINE, GIVEN, Network
from .sparsity import Zeros

_NEAR = 0.05
"""How far below its target the share of zeros may stay; what is missing is cut in use."""

RESULTS = (FILE, "slimmed")
"""What the result is called where it was timed; all others are the given network."""

_REMEDIES = {
    SPARSE: "more --sparse-steps, a smaller --sparse-lr, or a smaller --target-sparsity",
    PRUNED: "a greater --target-flops, or more --finetune-steps",
    INT8: "more --qat-steps, such as 200, or --no-int8",
}
_MORE = "more pictures that judge would decide it: --test PICTURES"
_WITHOUT_LABELS = "a greater --target-flops, or labelled pictures, which it could be finetuned with"


@dataclass(frozen=True)
class Evidence:
    """What is known of a compression.

    Attributes:
        networks: the given one first, or after the baseline; the result last.
        base: name of the network that the others were compared with.
        latencies: see `time_result`; empty where not measured.
        max_drop: accuracy, or share of the answers, that may be lost.
        is_random: MODEL has random weights, and nothing was trained.
        without_base: why the given network is not what the result is compared with.
        over_float: how many times as fast the int8 file is as the slimmed network in float32, both
            by ONNX Runtime; None where that was not measured.
        zeros: what the sparse training was for and came to; None without a target.
    """

    networks: tuple[Network, ...]
    base: str = GIVEN
    latencies: tuple[Latency, ...] = ()
    max_drop: float = 0.01
    is_random: bool = False
    without_base: str = ""
    over_float: float | None = None
    zeros: Zeros | None = None

    @property
    def first(self) -> Network:
        """The base: the given network, or another with an output a class."""
        return next(each for each in self.networks if each.name == self.base)

    @property
    def result(self) -> Network:
        """What the chain made."""
        return self.networks[-1]

    def speedups(self, batch: Latency) -> dict[str, float]:
        """How many times as fast the result is, by what ran the given network."""
        (name,) = (each for each in RESULTS if each in batch.times)
        others = [each for each in batch.times if each not in RESULTS]
        return {other: batch.speedup(name, other).median for other in others}

    @property
    def is_faster(self) -> bool | None:
        """Whether the result beats the given network however that runs; None if not measured."""
        least = [min(self.speedups(each).values()) for each in self.latencies]
        return max(least) >= FASTER if least else None


@dataclass(frozen=True)
class Loss:
    """The part of a chain that lost most.

    Attributes:
        stage: its name; pruning and what came after it to make it good count as one.
        points: change of the accuracy, or of the share of unchanged answers, in shares.
    """

    stage: str
    points: float

    def describe(self, with_labels: bool) -> str:
        """Say it in a sentence."""
        done = {
            SPARSE: "Sparse training",
            PRUNED: "Pruning, with what followed to make it good,",
            INT8: "Rounding to int8",
        }[self.stage]
        what = "points of accuracy" if with_labels else "% of the answers"
        return f"{done} lost most: {-100 * self.points:.1f} {what}."


def judge(evidence: Evidence) -> Verdict:
    """Say whether to use the result in the place of the given network, and why."""
    if evidence.is_random:
        return Verdict(
            NOT_RECOMMENDED,
            "The model has random weights and nothing was trained: load a checkpoint, or give"
            " labelled pictures.",
        )
    stage = evidence.result.stage
    if stage is None or not stage.is_finite:
        return Verdict(NOT_RECOMMENDED, "The result's outputs are not finite.")
    good = _quality(evidence)
    loss = worst(evidence)
    if good.verdict != RECOMMENDED and loss is not None:
        told = loss.describe(stage.accuracy is not None)
        good = Verdict(good.verdict, f"{good.reason} {told}")
    if evidence.base not in (GIVEN, BASELINE) and good.verdict == RECOMMENDED:
        good = Verdict(UNDECIDED, good.reason)
    return good if good.verdict == NOT_RECOMMENDED else _with_speed(evidence, good)


def worst(evidence: Evidence) -> Loss | None:
    """Return the part of the chain that lost most; None where none lost more than is allowed.

    What a later stage made good is not lost: a stage counts as the best that came of it.
    """
    shares = {each.name: _share(each) for each in evidence.networks if each.name != BASELINE}
    known = {name: share for name, share in shares.items() if share is not None}
    before = known.pop(GIVEN, None)
    losses = []
    for stage in (name for name in known if name != FINETUNED):
        best = max(list(known.values())[list(known).index(stage) :])
        if before is not None:
            losses.append(Loss(stage, best - before))
        before = best
    most = min(losses, key=lambda each: each.points, default=None)
    return most if most is not None and most.points < -evidence.max_drop else None


def next_step(evidence: Evidence, verdict: Verdict, out: Path, spec: str) -> str:
    """Return a sentence with what to do now; empty where nothing helps.

    Args:
        evidence, verdict: of the compression.
        out: its folder.
        spec: MODEL.
    """
    if evidence.is_random:
        return ""
    slow = evidence.over_float is not None and evidence.over_float < FASTER
    if slow and verdict.verdict != NOT_RECOMMENDED:
        command = f"normapps export {_folder(out, evidence.networks[-2].name)} -o model.onnx"
        return f"Int8 brings no speed here; the same network in float32 as a file: {command}"
    if verdict.verdict == RECOMMENDED:
        return _use(out, evidence.result.name)
    loss = worst(evidence)
    if loss is not None:
        more = f"; {_MORE}" if verdict.verdict == UNDECIDED else ""
        return f"To lose less, into another folder: {_remedy(evidence, loss)}{more}"
    return _without_loss(evidence, out, spec)


def _remedy(evidence: Evidence, loss: Loss) -> str:
    """Say what to give; more of the sparse training first, where that was too short."""
    zeros, usual, result = evidence.zeros, _REMEDIES[loss.stage], evidence.result.stage
    if loss.stage == PRUNED and (result is None or result.accuracy is None):
        return _WITHOUT_LABELS
    if loss.stage != PRUNED or zeros is None or zeros.found > zeros.wanted - _NEAR:
        return usual
    return (
        f"more --sparse-steps, as {100 * zeros.found:.0f} % of the scales came to 0 and the cut"
        f" took {100 * zeros.wanted:.0f} %; {usual}"
    )


def _without_loss(evidence: Evidence, out: Path, spec: str) -> str:
    if evidence.base not in (GIVEN, BASELINE):
        return (
            "To know what it cost, train without a penalty, with the same options of MODEL, and"
            f" give that as --baseline {_folder(out, 'plain/model', '-')}: normapps slim train"
            f" {shlex.quote(spec)} {_folder(out, 'pictures/train.txt')} --test"
            f" {_folder(out, 'pictures/test.txt')} --strength 0 -o {_folder(out, 'plain', '-')}"
        )
    if evidence.is_faster is False:
        return "Smaller is not faster here: a smaller --target-flops cuts more"
    if not evidence.latencies and _quality(evidence).verdict == RECOMMENDED:
        return "To know whether it is faster: the same command without --no-latency"
    return _MORE[:1].upper() + _MORE[1:]


def _folder(out: Path, name: str, joint: str = "/") -> str:
    inner = f"{name}/model" if name in (SPARSE, FINETUNED) else name
    return shlex.quote(f"{out}{joint}{inner}")


def _use(out: Path, name: str) -> str:
    folder = str(out / name / "model") if name in (SPARSE, FINETUNED) else str(out / name)
    if name == INT8:
        return f"Use it: normapps.OnnxModel({folder!r}).run(images)"
    return f"Use it: normapps.load_model({folder!r})"


def _share(network: Network) -> float | None:
    """Accuracy, or the share of the base's answers, which the base has all of."""
    stage = network.stage
    if stage is None:
        return None
    if stage.accuracy is not None:
        return stage.accuracy.mean
    return 1.0 if stage.same is None else stage.same.mean


def _with_speed(evidence: Evidence, good: Verdict) -> Verdict:
    gain = _size(evidence)
    if not evidence.latencies:
        return Verdict(UNDECIDED, f"{gain}, but no time was measured here. {good.reason}")
    told = ", ".join(
        f"{' and '.join(f'{value:.2f} over {name}' for name, value in _named(evidence, each))}"
        f" at batch {each.batch_size}"
        for each in evidence.latencies
    )
    speed = f"times as fast as the given network: {told}"
    if evidence.over_float is not None and evidence.over_float < FASTER:
        speed += f"; int8 {evidence.over_float:.2f} times as fast as the slimmed one in float32"
    if not evidence.is_faster:
        return Verdict(NOT_RECOMMENDED, f"{gain}, but not faster here ({speed}). {good.reason}")
    return Verdict(good.verdict, f"{gain}, and faster here ({speed}). {good.reason}")


def _named(evidence: Evidence, batch: Latency) -> list[tuple[str, float]]:
    words = {"base": "torch", "onnxruntime": "ONNX Runtime"}
    return [(words.get(name, name), value) for name, value in evidence.speedups(batch).items()]


def _size(evidence: Evidence) -> str:
    before, after = evidence.first.footprint, evidence.result.footprint
    sizes = " → ".join(f"{each.bytes / 1e6:.3g}" for each in (before, after))
    macs = 100 * after.macs / max(before.macs, 1)
    share = 100 * after.bytes / max(before.bytes, 1)
    return f"{share:.0f} % of the bytes ({sizes} MB) and {macs:.0f} % of the multiplications"


def _quality(evidence: Evidence) -> Verdict:
    stage, most = evidence.result.stage, evidence.max_drop
    ahead = f"{evidence.without_base} " if evidence.base not in (GIVEN, BASELINE) else ""
    if stage is not None and stage.difference is not None:
        return _by_labels(stage.difference, most, evidence.base, ahead)
    if stage is not None and stage.same is not None:
        return _without_labels(stage.same, most, evidence.base, ahead)
    return Verdict(UNDECIDED, f"{ahead}The result was not compared with any network.")


def _by_labels(difference: Estimate, most: float, base: str, ahead: str) -> Verdict:
    low, mean, high = (100 * each for each in (difference.low, difference.mean, difference.high))
    found = (
        f"{ahead}Against the {base} network accuracy changes by {mean:+.1f} points (95 %:"
        f" {low:+.1f} to {high:+.1f}) on {difference.count} labelled pictures"
    )
    allowed = "1 point" if most == 0.01 else f"{100 * most:g} points"
    if difference.low >= -most:
        return Verdict(RECOMMENDED, f"{found}.")
    if difference.high >= -most:
        return Verdict(UNDECIDED, f"{found}, too few to tell whether it lost more than {allowed}.")
    return Verdict(NOT_RECOMMENDED, f"{found}, more than the {allowed} of --max-drop.")


def _without_labels(same: Estimate, most: float, base: str, ahead: str) -> Verdict:
    found = (
        f"{ahead}{100 * same.mean:.1f} % of {same.count} pictures get the answer of the {base}"
        f" network (95 %: {100 * same.low:.1f} to {100 * same.high:.1f})"
    )
    if same.low >= 1 - most:
        return Verdict(RECOMMENDED, f"{found}, so accuracy cannot have changed by more.")
    if same.high < BROKEN:
        return Verdict(NOT_RECOMMENDED, f"{found}: too many changed, whichever were right.")
    if same.high >= 1 - most:
        few = f"too few to tell whether more than {100 * most:g} % changed"
        return Verdict(UNDECIDED, f"{found}: {few}.")
    return Verdict(UNDECIDED, f"{found}, and there are no labels to tell which are right.")
