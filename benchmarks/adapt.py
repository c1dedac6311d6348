"""Adaptation by training on real data: MNIST ↔ USPS, PACS, and universal networks.

`adapt.py digits|pacs|universal --shared ../shared --runs FOLDER` trains what FOLDER does not have
yet, one run a method, direction and seed, and writes the table of what there is into RESULTS.md.
A run that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from normapps.adapt.training.options import RecipeOptions
from normapps.adapt.training.train import train_domains
from normapps.adapt.universal import TaskCost, task_cost, task_network
from normapps.allocator import keep_freed_memory
from normapps.data.pictures import Pictures
from normapps.data.pool import Pool
from normapps.files import write_text
from normapps.models.load import open_model
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn
from normapps.training.classes import with_classes

METHODS = ("source", "adabn", "dsbn", "autodial", "dwt", "transnorm", "ibn", "bin", "mixstyle")
STAGES = {"dsbn": 2}
"""Methods that take the recipe's steps more than once."""


@dataclass(frozen=True)
class Direction:
    """Sources, target and what accuracy is measured on."""

    name: str
    sources: tuple[Pool, ...]
    target: Pool
    test: Pool


def main() -> None:
    options = _arguments()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    TASKS[options.task](options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/adapt"))
    clothes = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--clothes", type=Path, default=clothes, help="Fashion-MNIST's files")
    parser.add_argument("--base", type=Path, help="model folder that lite0.py wrote")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every run, else the recipe's")
    parser.add_argument("--size", type=int, default=112, help="side of PACS pictures")
    parser.add_argument("--only", nargs="+", help="directions by name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def digits(options: argparse.Namespace) -> None:
    """MNIST ↔ USPS with a small network of batch norms."""
    data = options.shared / "data"
    mnist, usps = (_digits(data / f"{name}.npz") for name in ("mnist", "usps"))
    directions = [
        Direction("MNIST → USPS", (mnist[0],), usps[0], usps[1]),
        Direction("USPS → MNIST", (usps[0],), mnist[0], mnist[1]),
    ]

    def network(seed: int) -> tuple[Any, tuple[str, ...]]:
        torch.manual_seed(seed)
        return small_cnn(10, channels=1), ()

    recipe = {"steps": 500, "batch_size": 64, "lr": 0.05, "crop": 0.8, "shift": 0.1, "flip": 0.0}
    recipe["jitter"] = 0.0
    own = {"dsbn": {"entropy_weight": 0.3, "diversity_weight": 0.3}}
    _compare("digits", "MNIST ↔ USPS", directions, network, recipe, own, options)


def pacs(options: argparse.Namespace) -> None:
    """PACS, from the real ImageNet weights of EfficientNet-Lite0."""
    from normapps.models.lite0 import PREPROCESSING, open_lite0

    size = (options.size, options.size)
    wanted = replace(PREPROCESSING, size=size, resize=size, mode="squash")
    pools = {
        name: _part(options.shared / "data" / f"pacs_{file}.tar", wanted)
        for name, file in (("photo", "photo"), ("art", "art_painting"), ("cartoon", "cartoon"))
    }

    def direction(sources: Sequence[str], target: str) -> Direction:
        everything = pools[target]
        return Direction(
            f"{'+'.join(sources)} → {target}",
            tuple(pools[name] for name in sources),
            everything,
            everything,
        )

    directions = [
        direction(["photo"], "art"),
        direction(["photo"], "cartoon"),
        direction(["art", "photo"], "cartoon"),
    ]

    def network(seed: int) -> tuple[Any, tuple[str, ...]]:
        base = open_model(options.base) if options.base else open_lite0()
        opened, fresh = with_classes(base, 7, seed)
        return replace(opened, preprocessing=wanted), fresh

    recipe = {"steps": 150, "batch_size": 24, "lr": 0.01, "head_lr": 5.0, "crop": 0.7}
    recipe |= {"warmup": 20, "jitter": 0.3}
    own = {"dsbn": {"entropy_weight": 0.1, "diversity_weight": 0.1}}
    _compare("pacs", "PACS", directions, network, recipe, own, options)


def universal(options: argparse.Namespace) -> None:
    """A network of MNIST, frozen, with USPS and clothes as further tasks."""
    data, runs = options.shared / "data", options.runs / "universal"
    tasks = {"USPS": _digits(data / "usps.npz")}
    if (clothes := _clothes(options.clothes)) is not None:
        tasks["Fashion-MNIST"] = clothes
    recipe = {"method": "source", "steps": options.steps or 500, "lr": 0.05, "crop": 0.9}
    recipe |= {"flip": 0.0, "jitter": 0.0, "device": options.device}
    torch.manual_seed(0)
    mnist = _digits(data / "mnist.npz")
    base = _trained(small_cnn(10, channels=1), mnist, recipe, runs / "MNIST")
    for name, pools in tasks.items():
        for part in ("norm", "head", "all"):
            for seed in range(options.seeds):
                model = task_network(base, 10, trained=part, seed=seed)
                folder, own = runs / name / part / str(seed), {"train": part, "seed": seed}
                _trained(model, pools, recipe | own, folder, task_cost(model))
    _write_universal(runs, list(tasks), recipe, options)


def _trained(
    model: nn.Module,
    pools: tuple[Pool, Pool],
    recipe: dict[str, Any],
    folder: Path,
    cost: TaskCost | None = None,
) -> nn.Module:
    """Train on the first pool and measure on the second; a finished run is done again at once."""
    train, test = pools
    done = train_domains(model, [train], [test], RecipeOptions(**recipe), folder, tests=[test])
    found = done.scores[0].accuracy
    own = {} if cost is None else cost._asdict()
    write_text(folder / "result.json", json.dumps({"accuracy": found.mean, "cost": own}))
    print(folder, f"{found.mean:.4f}", flush=True)
    return done.models[0]


def _write_universal(
    runs: Path, tasks: list[str], recipe: dict[str, Any], options: argparse.Namespace
) -> None:
    from results import conditions, table, write_section

    rows = []
    for part, words in (
        ("norm", "norm layers, classifier"),
        ("head", "classifier"),
        ("all", "all"),
    ):
        cost = next(_results(runs / tasks[0] / part))["cost"]
        whole = cost["norm"] + cost["head"] + cost["shared"]
        own = {"norm": cost["norm"] + cost["head"], "head": cost["head"], "all": whole}[part]
        cells = [_cell(runs / name, part) for name in tasks]
        rows.append([words, f"{own:,} ({100 * own / whole:.1f} %)", *cells])
    body = "\n\n".join(
        [
            "## Universal networks: accuracy of a further task, %",
            "A small network trained on MNIST; each task trains what the row says, the rest is"
            f" frozen. Mean ± standard deviation (number of seeds). Recipe: {_words(recipe)}.",
            table(["trained", "own parameters of a task", *tasks], rows),
            conditions(("normapps", "torch")),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section("adapt-universal", body)


def _compare(
    name: str,
    title: str,
    directions: Sequence[Direction],
    network: Callable[[int], tuple[Any, tuple[str, ...]]],
    recipe: dict[str, Any],
    own: dict[str, dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Train what is missing; `own` is what a method has else than the common recipe."""
    recipe = recipe | {"device": options.device, "precision": options.precision}
    if options.steps:
        recipe["steps"] = options.steps
    for seed in range(options.seeds):
        for direction in directions:
            for method in options.methods:
                chosen = not options.only or direction.name in options.only
                folder = options.runs / name / direction.name / method / str(seed)
                if options.table or not chosen or (folder / "result.json").exists():
                    continue
                steps = recipe["steps"] * STAGES.get(method, 1)
                ours = own.get(method, {}) | {"method": method, "seed": seed, "steps": steps}
                _run(direction, *network(seed), recipe | ours, folder)
    _write_table(name, title, directions, recipe, own, options)


def _run(
    direction: Direction, model: Any, fresh: tuple[str, ...], recipe: dict[str, Any], folder: Path
) -> None:
    start = time.perf_counter()
    done = train_domains(
        model,
        direction.sources,
        [direction.target],
        RecipeOptions(**recipe),
        folder,
        tests=[direction.test],
        fresh=fresh,
    )
    score = done.scores[0]
    seconds = time.perf_counter() - start
    found = score.accuracy
    result = {"accuracy": found.mean, "count": found.count, "seconds": round(seconds, 1)}
    if score.baseline is not None:  # adabn's network before its statistics is source only
        result["source"] = score.baseline.mean
    write_text(folder / "result.json", json.dumps(result))
    print(folder, result, flush=True)


def _write_table(
    name: str,
    title: str,
    directions: Sequence[Direction],
    recipe: dict[str, Any],
    own: dict[str, dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    from results import conditions, table, write_section

    rows = []
    for method in METHODS:
        cells = [_cell(options.runs / name / each.name, method) for each in directions]
        if set(cells) != {"–"}:
            rows.append([method, *cells])
    told = [_words(recipe), *(f"{method}: {_words(each)}" for method, each in own.items())]
    body = "\n\n".join(
        [
            f"## {title}: accuracy on the target, %",
            "Mean over seeds ± standard deviation (number of seeds). dsbn takes the steps twice,"
            f" once a stage. Recipe: {'; '.join(told)}.",
            table(["method", *(each.name for each in directions)], rows),
            conditions(("normapps", "torch", "timm")),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section(f"adapt-{name}", body)


def _words(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "device")


def _cell(folder: Path, method: str) -> str:
    found = [100 * float(each["accuracy"]) for each in _results(folder / method)]
    if not found and method == "source":
        found = [100 * float(each["source"]) for each in _results(folder / "adabn")]
    if not found:
        return "–"
    spread = f" ± {stdev(found):.1f}" if len(found) > 1 else ""
    return f"{fmean(found):.1f}{spread} ({len(found)})"


def _results(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*/result.json")):
        yield json.loads(path.read_text())


def _digits(path: Path) -> tuple[Pool, Pool]:
    """Training and test part, (M, 1, 28, 28)."""
    arrays = np.load(path)
    made = []
    for part in ("train", "test"):
        images = torch.from_numpy(arrays[f"x_{part}"])[:, None].float()
        if images.shape[-1] != 28:
            images = F.interpolate(images, (28, 28), mode="bilinear", align_corners=False)
        labels = torch.from_numpy(arrays[f"y_{part}"]).long()
        classes = tuple(map(str, range(10)))
        made.append(Pool(images.round().clamp(0, 255).to(torch.uint8), labels, classes))
    return made[0], made[1]


def _clothes(place: Path) -> tuple[Pool, Pool] | None:
    """Fashion-MNIST as Debian's package has it; None without."""
    if not place.is_dir():
        return None
    made = []
    for part in ("train", "t10k"):
        with gzip.open(place / f"{part}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        with gzip.open(place / f"{part}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        whole = torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64))
        made.append(Pool(*whole, tuple(map(str, range(10)))))
    return made[0], made[1]


def _part(place: Path, wanted: Preprocessing) -> Pool:
    return Pool.read(Pictures(place, wanted))


TASKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "digits": digits,
    "pacs": pacs,
    "universal": universal,
}


if __name__ == "__main__":
    main()
