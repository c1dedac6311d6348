"""Options of `normapps quantize`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..models.options import PictureOptions
from ..options import device_option, flag, option

ONNXRUNTIME, TORCHAO = BACKENDS = ("onnxruntime", "torchao")
RANGES = ("min-max", "percentile", "mse")


@dataclass(frozen=True)
class QuantizeOptions(PictureOptions):
    """How a network is quantized, and what it is judged with.

    Raises:
        InputError: a value out of range, neither pictures nor `--data-free`, or an option that
            would do nothing beside another; the line names the flags.
    """

    data: str | None = option(
        None,
        "pictures: some calibrate, the others judge, and class folders give accuracy; with"
        " --data-free all of them judge",
    )
    test: str | None = option(
        None, "other pictures to judge with; then none of --data does, and all may calibrate"
    )
    data_free: bool = option(
        False, "take the ranges from the batch norms' statistics, without any picture"
    )
    distill: int = option(
        0,
        "with --data-free: make so many pictures that match the statistics, for the ranges",
        low=0,
    )
    backend: str = option(
        ONNXRUNTIME,
        "what runs the int8 network: onnxruntime, or torch.compile by torchao",
        choices=BACKENDS,
    )
    per_channel: bool = option(
        True, "a scale for each output channel of a weight, or one for it all", no="--per-tensor"
    )
    ranges: str = option(
        "min-max",
        "how pictures give ranges: all that was seen, a percentile of it, or the least square"
        " error",
        choices=RANGES,
    )
    calibration: int = option(
        128, "pictures for the ranges, half of --data at most where it judges, too", low=1
    )
    equalize: bool | None = option(
        None,
        "even out the ranges of channels, and absorb large biases (unless --per-channel: its"
        " weights do not need it, badly scaled activations do)",
    )
    relu6: str = option(
        "scale",
        "of --equalize: scale its bound channel by channel (exact, but computed in float: half as"
        " fast), replace it by ReLU (another function), or keep it, and its channels as they are",
        choices=("scale", "replace", "keep"),
    )
    bias_correction: bool = option(True, "take back what rounded weights shift on average")
    bn_reestimate: bool = option(
        False, "measure the batch norms' statistics anew behind rounded weights, on --data"
    )
    finetune: int = option(
        0, "steps of training with rounded weights, taught by the float network on --data", low=0
    )
    mixed: bool = option(False, "leave layers in float32 until less than --max-drop is lost")
    sensitivity: bool = option(
        True, "try every layer alone in int8, for the report (not by torchao)"
    )
    max_drop: float = option(
        0.01, "accuracy, or share of the answers, that may be lost", low=0, high=1
    )
    reduce_range: bool = option(
        False, "weights of 7 bits, for processors without VNNI, where 8 may overflow"
    )
    batch_size: int = option(32, "pictures at a time", low=1)
    limit: int | None = option(None, "take this many pictures, evenly spread", low=2)
    latency: bool = option(True, "time torch, ONNX Runtime and int8 at batch 1 and 8")
    device: str = device_option()
    overwrite: bool = option(False, "replace an existing folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None and not self.data_free:
            raise InputError(
                "no --data: name pictures to calibrate with, or take ranges without any by"
                " --data-free"
            )
        if self.distill and not self.data_free:
            raise InputError(f"--distill {self.distill}: is a way of --data-free; give that too")
        if self.data_free and self.ranges != "min-max" and not self.distill:
            raise InputError(
                f"--ranges {self.ranges} --data-free: statistics give one range; add --distill N"
            )
        for name in ("bn_reestimate", "finetune"):
            if getattr(self, name) and not self.calibrates:
                raise InputError(f"{flag(name)} --data-free: needs pictures to learn from")
        if self.mixed and not self.calibrates and not self.distill:
            raise InputError("--mixed --data-free: needs pictures to try; add --distill N")
        if self.test is not None and not self.calibrates:
            raise InputError(
                f"--test {self.test}: nothing calibrates, so all of --data judges; give that alone"
            )
        if self.backend == TORCHAO:
            self._check_torchao()
        if self.data is None and self.limit is not None:
            raise InputError(f"--limit {self.limit}: there are no pictures; name them by --data")

    def _check_torchao(self) -> None:
        if self.mixed:
            raise InputError(
                "--mixed --backend torchao: layers are tried by onnxruntime only; leave one out"
            )
        if self.data_free and not self.distill:
            raise InputError(
                "--data-free --backend torchao: ranges need pictures there; add --distill N"
            )

    @property
    def calibrates(self) -> bool:
        """Whether some of the pictures give ranges."""
        return self.data is not None and not self.data_free

    @property
    def equalizes(self) -> bool:
        """Whether ranges are evened out: where nothing is said, with one scale a weight."""
        return not self.per_channel if self.equalize is None else self.equalize
