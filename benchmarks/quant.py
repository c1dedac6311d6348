"""What quantization keeps and what it gains: accuracy step by step, time and size.

`quant.py study --shared ../shared --runs FOLDER` rounds EfficientNet-Lite0 and CIFAR's ResNets in
several ways, each a file that onnxruntime runs, does what FOLDER does not have yet and writes the
table of what there is into RESULTS.md. `quant.py latency --runs FOLDER` times five networks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import conditions, table, write_section
from slim_data import cifar_material, photographs
from torch import Tensor, nn

from normapps.allocator import keep_freed_memory
from normapps.data.pool import Pool
from normapps.engine.ort import open_session
from normapps.files import write_text
from normapps.graph.fold import fold_batchnorm
from normapps.measure.accuracy import accuracy
from normapps.measure.interval import Estimate
from normapps.models.load import OpenedModel, open_model
from normapps.models.onnx import to_onnx
from normapps.norm.moments import Moments
from normapps.quant.absorb import absorb_
from normapps.quant.calibration import measure_ranges
from normapps.quant.correction import correct_bias_
from normapps.quant.distill import distill
from normapps.quant.equalize import equalize_
from normapps.quant.int8 import write_int8
from normapps.quant.options import QuantizeOptions
from normapps.quant.quantize import quantize_model
from normapps.quant.reestimate import reestimate_
from normapps.quant.rescale import rescale_
from normapps.quant.statistics_ranges import statistics_ranges
from normapps.training.evaluation import PoolBatches, right_answers

CALIBRATED, JUDGED = {"photos": 128, "cifar": 512}, 2000
"""Pictures that calibrate, none of which judges; pictures of CIFAR's test part that judge."""

SPREAD = 1.0
"""Channels of a badly scaled network are multiplied by up to ten, or divided."""

TIMED = ("resnet18", "resnet50", "mobilenetv2_100", "tf_efficientnet_lite0", "regnety_004")

Result = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One way to an int8 network: steps before rounding, and what its ranges are of."""

    name: str
    per_channel: bool
    steps: tuple[str, ...] = ()
    ranges: str = "pictures"


RECIPES = (
    Recipe("per tensor", False),
    Recipe("+ equalization, ReLU6 replaced", False, ("replace",)),
    Recipe("+ equalization", False, ("equalize",)),
    Recipe("+ absorption", False, ("equalize", "absorb")),
    Recipe("+ bias correction", False, ("equalize", "absorb", "correct")),
    Recipe("+ re-estimation", False, ("equalize", "absorb", "correct", "reestimate")),
    Recipe("re-estimation alone", False, ("reestimate",)),
    Recipe("per channel", True),
    Recipe("+ bias correction ", True, ("correct",)),
    Recipe("+ re-estimation ", True, ("correct", "reestimate")),
    Recipe("per channel, equalized", True, ("equalize", "absorb", "correct")),
    Recipe("no data, per tensor", False, ("equalize", "absorb", "analytic"), "statistics"),
    Recipe("no data, per channel", True, (), "statistics"),
    Recipe("no data, per channel, distilled", True, (), "distilled"),
)


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network with pictures that calibrate and pictures that judge."""

    opened: OpenedModel
    calibration: PoolBatches
    judged: PoolBatches

    @property
    def inputs(self) -> Tensor:
        """The first two pictures that calibrate."""
        return next(iter(self.calibration))[:2]


def main() -> None:
    options = _arguments()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    TASKS[options.task](options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/quant"))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--skip", nargs="+", default=[], help="rows of the table, by name")
    parser.add_argument("--base", type=Path, help="model folder that lite0.py wrote")
    parser.add_argument("--timed", nargs="+", default=list(TIMED))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="do nothing, print what there is")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def study(options: argparse.Namespace) -> None:
    """Accuracy of the networks of the table, way by way."""
    for name in () if options.table else options.networks:
        network = NETWORKS[name](options)
        for spread in (0.0, SPREAD):
            folder = options.runs / name / ("badly scaled" if spread else "as trained")
            chosen = [each for each in RECIPES if each.name.strip() not in options.skip]
            _study(network, spread, folder, chosen, options.threads)
    _write_study(options)


def _study(
    network: Network, spread: float, folder: Path, recipes: Sequence[Recipe], threads: int
) -> None:
    if not spread:
        _once(folder / "float", lambda: {"accuracy": _told(_float_accuracy(network))})
    for recipe in recipes:
        place = folder / f"{recipe.name.strip()}, {'channel' if recipe.per_channel else 'tensor'}"
        _once(place, lambda r=recipe: _int8(network, r, spread, threads))


def _int8(network: Network, recipe: Recipe, spread: float, threads: int) -> Result:
    """Round a network by a recipe and ask the file."""
    model, done = fold_batchnorm(network.opened.model, network.inputs)
    statistics = done.statistics
    if spread:
        rescale_(model, network.inputs, seed=0, spread=spread, statistics=statistics)
    for step in recipe.steps:
        STEPS[step](model, statistics, network, recipe.per_channel)
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place, "float.onnx"), Path(place, "int8.onnx")
        to_onnx(model, network.inputs, source)
        ranges = RANGES[recipe.ranges](source, statistics, network)
        write_int8(source, target, ranges, per_channel=recipe.per_channel)
        found = {
            name: _told(_asked(path, network.judged, threads))
            for name, path in (("before", source), ("accuracy", target))
        }
        return found | {"bytes": [path.stat().st_size for path in (source, target)]}


def _equalize(
    model: nn.Module, statistics: dict[str, Moments], network: Network, per_channel: bool
) -> None:
    equalize_(model, network.inputs, statistics, relu6="scale")


def _replace(
    model: nn.Module, statistics: dict[str, Moments], network: Network, per_channel: bool
) -> None:
    equalize_(model, network.inputs, statistics, relu6="replace")


def _absorb(
    model: nn.Module, statistics: dict[str, Moments], network: Network, per_channel: bool
) -> None:
    absorb_(model, network.inputs, statistics)


def _analytic(
    model: nn.Module, statistics: dict[str, Moments], network: Network, per_channel: bool
) -> None:
    correct_bias_(model, network.inputs, statistics, per_channel=per_channel)


def _correct(
    model: nn.Module, statistics: dict[str, Moments], network: Network, per_channel: bool
) -> None:
    batches = network.calibration
    correct_bias_(model, network.inputs, statistics, per_channel=per_channel, batches=batches)


def _reestimate(
    model: nn.Module, statistics: dict[str, Moments], network: Network, per_channel: bool
) -> None:
    reestimate_(model, statistics, network.calibration, per_channel=per_channel)


STEPS = {
    "replace": _replace,
    "equalize": _equalize,
    "absorb": _absorb,
    "analytic": _analytic,
    "correct": _correct,
    "reestimate": _reestimate,
}


def _of_pictures(path: Path, statistics: dict[str, Moments], network: Network) -> Any:
    return measure_ranges(path, (batch.numpy() for batch in network.calibration))


def _of_statistics(path: Path, statistics: dict[str, Moments], network: Network) -> Any:
    known = {
        name: (moments.mean[0].numpy(), moments.var[0].sqrt().numpy())
        for name, moments in statistics.items()
    }
    wanted = network.opened.preprocessing
    shape = (8, *network.inputs.shape[1:])
    return statistics_ranges(path, known, shape, mean=wanted.mean, std=wanted.std)


def _of_distilled(path: Path, statistics: dict[str, Moments], network: Network) -> Any:
    _, _, height, width = network.inputs.shape
    made = distill(network.opened.model, 32, (height, width))
    return measure_ranges(path, (batch.numpy() for batch in made.images.split(16)))


RANGES = {"pictures": _of_pictures, "statistics": _of_statistics, "distilled": _of_distilled}


def _asked(path: Path, judged: PoolBatches, threads: int) -> Estimate:
    session = open_session(path, threads=threads)
    answers = [np.asarray(session.run(batch.numpy())[0]).argmax(1) for batch in judged]
    assert judged.pool.labels is not None, "the study's pictures have labels"
    right = torch.from_numpy(np.concatenate(answers)) == judged.pool.labels
    return accuracy(int(right.sum()), len(right))


def _float_accuracy(network: Network) -> Estimate:
    right = right_answers(network.opened.model, network.judged)
    return accuracy(int(right.sum()), len(right))


def _lite0(options: argparse.Namespace) -> Network:
    from normapps.models.lite0 import open_lite0 as published

    opened = open_model(options.base) if options.base else published()
    first, others = photographs(options.shared, opened.preprocessing, CALIBRATED["photos"])
    return _network(opened, first, others, 32)


def _resnet(name: str, file: str) -> Callable[[argparse.Namespace], Network]:
    def load(options: argparse.Namespace) -> Network:
        weights = options.shared / "weights" / "cifar_resnets" / file
        opened = open_model(f"normapps.models.cifar:{name}", checkpoint=weights)
        material = cifar_material(options.shared, options.runs, JUDGED)
        rows = torch.arange(0, len(material.train), len(material.train) // CALIBRATED["cifar"])
        images, labels = material.train.batch(rows[: CALIBRATED["cifar"]])
        return _network(opened, Pool(images, labels, material.classes), material.test, 128)

    return load


def _network(opened: OpenedModel, first: Pool, others: Pool, batch_size: int) -> Network:
    normalize, device = opened.preprocessing.normalize, torch.device("cpu")
    calibration = PoolBatches(first, normalize, batch_size, device, seed=0)
    return Network(opened, calibration, PoolBatches(others, normalize, batch_size, device))


NETWORKS: dict[str, Callable[[argparse.Namespace], Network]] = {
    "ResNet-20": _resnet("resnet20", "resnet20-12fca82f.th"),
    "ResNet-56": _resnet("resnet56", "resnet56-4bfd9763.th"),
    "EfficientNet-Lite0": _lite0,
}


def latency(options: argparse.Namespace) -> None:
    """Time and size of networks as torch runs them, as onnxruntime does, and in int8."""
    for name in () if options.table else options.timed:
        _once(options.runs / "latency" / name, lambda n=name: _timed(n))
    _write_latency(options)


def _timed(name: str) -> Result:
    with tempfile.TemporaryDirectory() as place:
        options = QuantizeOptions(data_free=True)
        done = quantize_model(f"timm/{name}", Path(place, "out"), options, say=lambda _: None)
        times = {
            str(each.batch_size): {key: time.median for key, time in each.times.items()}
            | {"faster": each.speedup("int8", "onnxruntime").median}
            for each in done.evidence.latencies
        }
        return {"bytes": dict(done.evidence.sizes), "times": times}


def _once(folder: Path, work: Callable[[], Result]) -> None:
    """Do what a folder does not have the result of."""
    place = folder / "result.json"
    if not place.exists():
        result = work()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(result))
        print(folder, result, flush=True)


def _told(found: Estimate) -> list[float]:
    return [found.mean, found.low, found.high, found.count]


# Tables


def _write_study(options: argparse.Namespace) -> None:
    columns = [(name, kind) for name in NETWORKS for kind in ("as trained", "badly scaled")]
    rows = [["float", *(_cell(options.runs / n / "as trained" / "float") for n, _ in columns)]]
    for recipe in RECIPES:
        way = f"{recipe.name.strip()}, {'channel' if recipe.per_channel else 'tensor'}"
        rows.append([recipe.name, *(_cell(options.runs / n / k / way) for n, k in columns)])
    body = "\n\n".join(
        [
            "## Quantization, step by step",
            "Accuracy in % of int8 files in onnxruntime (weights and activations of 8 bits), with"
            " half the 95 % interval (Wilson). + adds a step to the row above;"
            " ReLU6 keeps its bound, a channel (scale), but for one row. Badly scaled: the"
            " same function, its channels multiplied and divided by up to"
            f" {10**SPREAD:g} (`rescale_`), seed 0. Ranges: of {CALIBRATED['photos']} photographs"
            f" or {CALIBRATED['cifar']} pictures of CIFAR-10's training part, from the least value"
            " to the largest, or of no data. The photographs' source is not known: no ImageNet"
            " figure; CIFAR is a JPEG copy, on which these networks lose about ten points.",
            table(["", *(f"{n}, {k}" for n, k in columns)], rows),
            conditions(("normapps", "torch", "timm", "onnxruntime")),
        ]
    )
    _publish("quant-study", body, options)


def _write_latency(options: argparse.Namespace) -> None:
    rows = []
    for name in options.timed:
        found = _result(options.runs / "latency" / name)
        if found is not None:
            rows.append([name, *_sizes(found["bytes"]), *_times(found["times"])])
    head = ["network", "float MB", "int8 MB"]
    head += [f"{what}, {size}" for size in (1, 8) for what in ("torch", "float", "int8", "gain")]
    body = "\n\n".join(
        [
            "## Int8 and float: time and size",
            "Milliseconds a call at batch 1 and 8, 224 × 224, all cores, taken in turns, medians:"
            " torch in float32 (channels_last), onnxruntime in float32 and in int8; gain is the"
            " median ratio of the last two. Random weights, ranges of statistics: only time and"
            " size are measured.",
            table(head, rows),
            conditions(("normapps", "torch", "timm", "onnxruntime")),
        ]
    )
    _publish("quant-latency", body, options)


def _sizes(found: dict[str, int]) -> Iterator[str]:
    return (f"{found[name] / 1e6:.1f}" for name in ("onnxruntime", "int8"))


def _times(found: dict[str, dict[str, float]]) -> Iterator[str]:
    for times in found.values():
        for name in ("torch", "onnxruntime", "int8"):
            yield f"{1e3 * times[name]:.1f}"
        yield f"{times['faster']:.2f}×"


def _result(folder: Path) -> Result | None:
    place = folder / "result.json"
    return json.loads(place.read_text()) if place.exists() else None


def _cell(folder: Path) -> str:
    found = _result(folder)
    if found is None:
        return "–"
    mean, low, high, _ = found["accuracy"]
    return f"{100 * mean:.1f} ± {50 * (high - low):.1f}"


def _publish(name: str, body: str, options: argparse.Namespace) -> None:
    print(body)
    if not options.dry_run:
        write_section(name, body)


TASKS: dict[str, Callable[[argparse.Namespace], None]] = {"study": study, "latency": latency}


if __name__ == "__main__":
    main()
