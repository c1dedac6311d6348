"""Slimming on real data: CIFAR-10's networks, and EfficientNet-Lite0 without any training.

`slim.py cifar|lite0 --shared ../shared --runs FOLDER` does what FOLDER does not have yet and writes
the table of what there is into RESULTS.md. A run that is interrupted goes on where it stopped.

`cifar` starts from published weights that never saw JPEG pictures and trains them shortly, as one
CPU core can; `cifar --full` trains from fresh weights, as the papers do, which takes a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results import conditions, table, write_section
from slim_data import cifar_material, photographs
from torch import Tensor, nn

from normapps.data.pool import Pool
from normapps.engine.device import resolve_device
from normapps.files import write_text
from normapps.graph import trace_channels
from normapps.measure.accuracy import accuracy
from normapps.measure.interval import Estimate
from normapps.models.load import OpenedModel, open_model
from normapps.norm.nesting import detached_copy
from normapps.slim.compensation import noise
from normapps.slim.cutting import cut_networks
from normapps.slim.finetune import finetune
from normapps.slim.fitting import Fitted, Recipe, fit
from normapps.slim.importance import importance
from normapps.slim.material import Material
from normapps.slim.plan import plan
from normapps.slim.recalibration import recalibrate_
from normapps.slim.sparsity import measure_sparsity, prunable_scales
from normapps.slim.train import train_sparse
from normapps.slim.train_options import FinetuneOptions, SparseOptions, SupervisedOptions
from normapps.training.evaluation import PoolBatches, right_answers

RATIOS, LITE0_RATIOS = (0.4, 0.6, 0.7), (0.1, 0.2, 0.3)
STAGES = ("pruned", "compensated", "recalibrated", "finetuned")
RECALIBRATED_ON = {"cifar": 2000, "lite0": 300}
"""Pictures that statistics are measured on; none of them is judged on."""
RECIPE = {"weight_decay": 1e-4, "crop": 1.0, "shift": 0.125, "jitter": 0.0}
"""The usual augmentation of CIFAR: shifted by up to four pixels, mirrored half of the time."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """How a network of the CIFAR table is trained.

    Attributes:
        spec: MODEL.
        weights: published ones to begin with, in ../shared/weights; None: fresh ones.
        steps: of the base, of sparse training, of finetuning after pruning.
        lr: of the first two; a quarter of it for the third.
        strength: λ of sparse training, which is searched from there where there is a target.
        target: share of the scales that sparse training is to bring to 0.
        batch_size: pictures a step.
    """

    spec: str
    weights: str | None
    steps: tuple[int, int, int]
    lr: float
    strength: float
    batch_size: int = 64
    target: float | None = None


_SPEC, _RESNETS = "normapps.models.cifar:", "cifar_resnets/"
_LONG = (12000, 12000, 4000)
"""About 61 rounds over the pictures in batches of 256, and 20 of finetuning."""
REDUCED = {
    "ResNet-20": Network(
        f"{_SPEC}resnet20",
        f"{_RESNETS}resnet20-12fca82f.th",
        (800, 1200, 300),
        0.02,
        1e-3,
        target=0.5,
    ),
    "ResNet-56": Network(
        f"{_SPEC}resnet56",
        f"{_RESNETS}resnet56-4bfd9763.th",
        (160, 600, 100),
        0.02,
        1e-3,
        target=0.5,
    ),
}
FULL = {
    "VGG-19": Network(f"{_SPEC}vgg19_bn", None, _LONG, 0.1, 2e-4, 256),
    "ResNet-56": Network(f"{_SPEC}resnet56", None, _LONG, 0.1, 1e-4, 256),
    "DenseNet-40": Network(f"{_SPEC}densenet40", None, _LONG, 0.1, 1e-4, 256),
}


def main() -> None:
    options = _arguments()
    torch.set_num_threads(options.threads)
    TASKS[options.task](options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/slim"))
    parser.add_argument("--full", action="store_true", help="train from fresh weights, on a GPU")
    parser.add_argument("--networks", nargs="+", help="of the CIFAR table, by name")
    parser.add_argument(
        "--pictures", type=int, help="of the test part (default: 3000; --full: all)"
    )
    parser.add_argument("--steps", type=int, help="of every training, else the recipe's")
    parser.add_argument("--base", type=Path, help="model folder that lite0.py wrote")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="do nothing, print what there is")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def cifar(options: argparse.Namespace) -> None:
    """Train, prune, compensate, recalibrate and finetune the networks of the table."""
    networks = FULL if options.full else REDUCED
    runs = options.runs / ("cifar-full" if options.full else "cifar")
    if not options.table:
        judged = options.pictures or (None if options.full else 3000)
        material = cifar_material(options.shared, options.runs, judged)
        for name in options.networks or networks:
            _train_and_prune(networks[name], material, runs / name, options)
    _write_cifar(networks, runs, options)


def _train_and_prune(
    network: Network, material: Material, folder: Path, options: argparse.Namespace
) -> None:
    steps = [options.steps or each for each in network.steps]
    recipe = RECIPE | {"device": options.device, "precision": options.precision}
    recipe |= {"batch_size": network.batch_size, "lr": network.lr}
    checkpoint = network.weights and options.shared / "weights" / network.weights
    opened = open_model(network.spec, checkpoint=checkpoint)
    given = PoolBatches(material.test, opened.preprocessing.normalize, 200, torch.device("cpu"))
    if network.weights:
        _once(folder / "given", lambda: {"accuracy": _told(_judged(opened.model, given))})
    _once(folder / "base", lambda: _plain(opened, material, folder / "base", recipe, steps[0]))
    # published weights first learn what JPEG pictures look like, and then to be sparse
    begun = open_model(folder / "base" / "model") if network.weights else opened
    _once(
        folder / "sparse",
        lambda: _sparse(begun, material, folder / "sparse", recipe, steps[1], network),
    )
    sparse = open_model(folder / "sparse" / "model")
    chosen = FinetuneOptions(**recipe | {"lr": network.lr / 4, "steps": steps[2]})
    for ratio in RATIOS:
        place = folder / f"{ratio:g}"
        _once(place, lambda p=place, r=ratio: _cut_and_finetune(sparse, material, r, p, chosen))


def _plain(
    opened: OpenedModel, material: Material, folder: Path, recipe: dict[str, Any], steps: int
) -> Result:
    chosen = SupervisedOptions(**recipe, steps=steps)
    return {"accuracy": _score(fit(opened, material, chosen, folder, Recipe("slim train")))}


def _sparse(
    opened: OpenedModel,
    material: Material,
    folder: Path,
    recipe: dict[str, Any],
    steps: int,
    network: Network,
) -> Result:
    chosen = SparseOptions(
        **recipe,
        steps=steps,
        strength=network.strength,
        target_sparsity=network.target,
        group=True,
    )
    done = train_sparse(opened, material, chosen, folder)
    model = open_model(folder / "model").model
    graph = trace_channels(model, torch.zeros(1, *material.test.images.shape[1:]))
    zeros = measure_sparsity(model, prunable_scales(graph)).zeros
    return {"accuracy": _score(done), "zeros": zeros}


def _cut_and_finetune(
    sparse: OpenedModel, material: Material, ratio: float, folder: Path, chosen: FinetuneOptions
) -> Result:
    device, normalize = resolve_device(chosen.device), sparse.preprocessing.normalize
    some = _spread(material.train, RECALIBRATED_ON["cifar"])
    train = PoolBatches(some, normalize, 200, device, seed=0)  # mixed: the set is sorted by class
    test = PoolBatches(material.test, normalize, 200, device)
    result, model = prune(sparse.model, ratio, train, lambda each: _judged(each, test), device)
    done = finetune(model, material, chosen, folder / "finetuned")
    return result | {"finetuned": _score(done)}


def prune(
    model: nn.Module,
    ratio: float,
    pictures: Iterable[Tensor],
    judge: Callable[[nn.Module], Estimate],
    device: torch.device,
) -> tuple[Result, nn.Module]:
    """Prune by scale at one global threshold; measure raw, compensated and recalibrated.

    Args:
        model: stays as it is.
        ratio: share of the channels that goes.
        pictures: batches of inputs to recalibrate on.
        judge: measures accuracy.
        device: where all of it runs.

    Returns:
        What was measured, and the recalibrated network.
    """
    whole = detached_copy(model).to(device)
    first = next(iter(pictures))[:1]
    graph = trace_channels(whole, first)
    chosen = plan(graph, importance(whole, graph), ratio=ratio)
    cut = cut_networks(whole, graph, chosen.keep, first, noise(first))
    recalibrated = detached_copy(cut.result.model)
    recalibrate_(recalibrated, pictures)
    networks = dict(zip(STAGES, (cut.plain, cut.result.model, recalibrated), strict=False))
    kept = cut.result.keep
    result = {"ratio": chosen.reached["ratio"], "difference": cut.result.difference}
    result |= {"left": list(cut.result.left), "macs": graph.macs(kept) / graph.macs()}
    result["parameters"] = graph.parameters(kept) / graph.parameters()
    return result | {name: _told(judge(each)) for name, each in networks.items()}, recalibrated


def lite0(options: argparse.Namespace) -> None:
    """EfficientNet-Lite0: what pruning costs a network that was never trained to be sparse."""
    runs = options.runs / "lite0"
    if not options.table:
        from normapps.models.lite0 import open_lite0 as published

        opened = open_model(options.base) if options.base else published()
        measured, judged = photographs(
            options.shared, opened.preprocessing, RECALIBRATED_ON["lite0"]
        )
        device = resolve_device(options.device)
        first = PoolBatches(measured, opened.preprocessing.normalize, 100, device, seed=0)
        second = PoolBatches(judged, opened.preprocessing.normalize, 50, device)
        whole = detached_copy(opened.model).to(device)
        _once(runs / "given", lambda: {"accuracy": _told(_judged(whole, second))})
        for ratio in LITE0_RATIOS:
            _once(
                runs / f"{ratio:g}",
                lambda r=ratio: prune(whole, r, first, lambda m: _judged(m, second), device)[0],
            )
    _write_lite0(runs, options)


def _judged(model: nn.Module, batches: PoolBatches) -> Estimate:
    right = right_answers(model.to(batches.device), batches)
    return accuracy(int(right.sum()), len(right))


def _score(done: Fitted) -> list[float]:
    assert done.score is not None, "a run of one process that was not stopped has a score"
    return _told(done.score.accuracy)


def _told(found: Estimate) -> list[float]:
    return [found.mean, found.low, found.high, found.count]


def _spread(pool: Pool, count: int) -> Pool:
    rows = torch.arange(0, len(pool), max(1, len(pool) // count))[:count]
    images, labels = pool.batch(rows)
    return Pool(images, labels, pool.classes)


def _once(folder: Path, work: Callable[[], Result]) -> None:
    """Do what a folder does not have the result of."""
    place = folder / "result.json"
    if not place.exists():
        result = work()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(result))
        print(folder, result, flush=True)


# Tables


def _write_cifar(networks: dict[str, Network], runs: Path, options: argparse.Namespace) -> None:
    rows, trained = [], []
    for name, network in networks.items():
        found = {each: _result(runs / name / each) for each in ("given", "base", "sparse")}
        if found["sparse"] is not None:
            cells = [_cell(found[each], "accuracy") for each in ("given", "base", "sparse")]
            zeros = f"{100 * found['sparse']['zeros']:.1f} %"
            steps = " / ".join(str(options.steps or each) for each in network.steps)
            size = f"{steps} × {network.batch_size}"
            trained.append([name, *cells, zeros, _penalty(network), size])
            rows += _ratio_rows(name, runs / name, RATIOS)
    begin, told = "from fresh weights", "Base and sparse start from the same fresh weights."
    if not options.full:
        begin = "published weights, trained on shortly"
        told = "Base starts from the weights as published (given), sparse training from the base."
    body = [
        f"## Slimming on CIFAR-10: {begin}",
        "The set is a lossy JPEG copy, on which networks of the lossless set lose about ten points:"
        " compare with nothing but the rows here. Sparse training is proximal, on scale and shift"
        f" together. {told} Steps: of base / sparse / finetuning × pictures a step. Accuracy in %"
        " with half the 95 % interval.",
        table(
            ["network", "given", "base", "sparse", "zero scales", "λ or target", "steps"], trained
        ),
        "Channels are chosen by one threshold on all scales, then nothing else (pruned), β moved"
        f" on (compensated), statistics measured on {RECALIBRATED_ON['cifar']} training pictures"
        " (recalibrated), trained on (finetuned). MACs and parameters are what stays. Oracle: the"
        " largest relative difference to the silenced network.",
        table(_HEAD, rows),
        conditions(("normapps", "torch"), options.device),
    ]
    _publish("slim-cifar-full" if options.full else "slim-cifar", body, options)


def _penalty(network: Network) -> str:
    return f"{network.strength:g}" if network.target is None else f"{network.target:.0%} zeros"


def _write_lite0(runs: Path, options: argparse.Namespace) -> None:
    given = _result(runs / "given")
    body = [
        "## Slimming EfficientNet-Lite0 without training",
        f"1000 photographs, one a class, of a source that is not known: no ImageNet figure."
        f" Statistics are measured on {RECALIBRATED_ON['lite0']} of them, accuracy (%, with half"
        f" the 95 % interval) on the others; before: {_cell(given, 'accuracy')}. Nothing made"
        " these scales sparse, so that no channel can go for nothing.",
        table(
            _HEAD[:-1], [row[:-1] for row in _ratio_rows("EfficientNet-Lite0", runs, LITE0_RATIOS)]
        ),
        conditions(("normapps", "torch", "timm"), options.device),
    ]
    _publish("slim-lite0", body, options)


_HEAD = ("network", "ratio", "MACs", "parameters", "oracle", *STAGES)


def _ratio_rows(name: str, runs: Path, ratios: Sequence[float]) -> list[list[str]]:
    rows = []
    for ratio in ratios:
        found = _result(runs / f"{ratio:g}")
        if found is not None:
            sizes = [f"{100 * found[each]:.0f} %" for each in ("macs", "parameters")]
            cells = [_cell(found, stage) for stage in STAGES]
            rows.append(
                [name, f"{100 * ratio:.0f} %", *sizes, f"{found['difference']:.0e}", *cells]
            )
    return rows


def _result(folder: Path) -> Result | None:
    place = folder / "result.json"
    return json.loads(place.read_text()) if place.exists() else None


def _cell(found: Result | None, name: str) -> str:
    if found is None or name not in found:
        return "–"
    mean, low, high, _ = found[name]
    return f"{100 * mean:.1f} ± {50 * (high - low):.1f}"


def _publish(name: str, parts: list[str], options: argparse.Namespace) -> None:
    body = "\n\n".join(parts)
    print(body)
    if not options.dry_run:
        write_section(name, body)


TASKS: dict[str, Callable[[argparse.Namespace], None]] = {"cifar": cifar, "lite0": lite0}


if __name__ == "__main__":
    main()
