"""`adapt universal`: train several tasks on one network, each alone, and say what each costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..data.pool import Pool
from ..engine.device import resolve_device
from ..engine.distributed import World, world
from ..measure.report import (
    NOT_RECOMMENDED,
    RECOMMENDED,
    UNDECIDED,
    Report,
    Section,
    Table,
    Verdict,
    write_report,
)
from ..models.load import OpenedModel
from ..training.classes import match_classes, split, with_classes
from ..training.evaluation import Score
from ..training.opening import Progress, open_for, read_pool
from .training.publishing import points
from .training.train import Trained, train_domains
from .universal import TaskCost, UniversalNetwork, is_shareable, task_cost, task_network
from .universal_options import UniversalOptions

_TOLERANCE = 0.01
"""How much accuracy a shared network may lose against its baseline and still be recommended."""


@dataclass(frozen=True)
class Task:
    """What became of one task.

    Attributes:
        name: its name.
        classes: number of its classes.
        pictures: number it was trained on.
        score: on its test set.
        cost: what it needs for itself.
        folder: its model folder.
    """

    name: str
    classes: int
    pictures: int
    score: Score
    cost: TaskCost
    folder: Path


@dataclass(frozen=True)
class Universal:
    """What `adapt_universal` made.

    Attributes:
        tasks: those that are finished.
        verdict: what is advised; None before all are.
        network: the tasks as one network; None with `--train all`, which shares nothing, of a
            network that has other norm layers than batch norms, in processes other than the
            first, and before all are finished.
    """

    tasks: tuple[Task, ...] = ()
    verdict: Verdict | None = None
    network: UniversalNetwork | None = None


def adapt_universal(
    spec: str,
    folder: Path,
    options: UniversalOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
    ready: Callable[[], object] | None = None,
) -> Universal:
    """Train tasks on one frozen network (Bilen & Vedaldi 2017), one after the other.

    Each is a run of its own in `folder/NAME`, with a plain model folder `folder/NAME/model`; a
    repeated call goes on where the last one stopped and adds tasks that are new. The report says
    what each task gets right and what it costs.

    Args:
        spec: the pretrained network, as `open_model` takes it.
        folder: of the runs.
        options: tasks and recipe.
        say: told what was opened and read, a line each.
        progress: told of every picture that is read.
        ready: called when a task is read and its steps begin.

    Raises:
        InputError: a model, pictures or folder that cannot be used.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    opened = open_for(spec, options, say)
    done: list[Task] = []
    models: dict[str, torch.nn.Module] = {}
    with world(resolve_device(options.device)) as here:
        for name in options.tasks:
            say(f"task {name}")
            train, test = _pools(name, opened, options, say, progress)
            if ready is not None:
                ready()
            trained, classes = _train(name, opened, train, test, options, folder)
            if not trained.is_finished:
                return Universal(tuple(done))
            if here.is_main:
                models[name] = trained.models[0]
                cost, where = task_cost(models[name]), trained.folders[0]
                done.append(Task(name, classes, len(train), trained.scores[0], cost, where))
        return _finish(done, models, opened, options, folder, here)


def _pools(
    name: str,
    opened: OpenedModel,
    options: UniversalOptions,
    say: Callable[[str], object],
    progress: Progress | None,
) -> tuple[Pool, Pool]:
    """A task's pictures to train and to measure on, numbered by one list of classes."""
    places = [options.tasks[name], *filter(None, [options.tests.get(name)])]
    pools = [read_pool(place, opened, options, say, progress) for place in places]
    matched = match_classes([(places[0], pools[0])], list(zip(places[1:], pools[1:], strict=True)))
    for line in matched.said:
        say(line)
    if matched.others:
        return matched.sources[0], matched.others[0]
    return split(matched.sources[0], options.hold_out)


def _train(
    name: str,
    opened: OpenedModel,
    train: Pool,
    test: Pool,
    options: UniversalOptions,
    folder: Path,
) -> tuple[Trained, int]:
    classes = len(train.classes)
    given, _ = with_classes(opened, classes, options.seed)
    model = task_network(given.model, classes, trained=options.train, seed=options.seed)
    fresh = tuple(
        key for key, each in model.state_dict().items() if not _same(each, given.model, key)
    )
    trained = train_domains(
        replace(given, model=model),
        [train],
        [test],
        options.recipe(name),
        folder / name,
        tests=[test],
        names=(name,),
        fresh=fresh,
        overwrite=options.overwrite,
    )
    return trained, classes


def _same(value: torch.Tensor, model: torch.nn.Module, key: str) -> bool:
    return torch.equal(value, model.state_dict()[key])


def _finish(
    tasks: list[Task],
    models: dict[str, torch.nn.Module],
    opened: OpenedModel,
    options: UniversalOptions,
    folder: Path,
    here: World,
) -> Universal:
    if not here.is_main:
        return Universal()
    verdict = judge(tasks, options)
    write_report(folder, _report(tasks, verdict, opened, options))
    can_share = options.train != "all" and all(map(is_shareable, models.values()))
    network = UniversalNetwork(models) if can_share else None
    return Universal(tuple(tasks), verdict, network)


def judge(tasks: list[Task], options: UniversalOptions) -> Verdict:
    """Say whether to share the network, by the differences from the baseline."""
    differences = {each.name: each.score.difference for each in tasks}
    known = {name: each for name, each in differences.items() if each is not None}
    if not known:
        return Verdict(
            UNDECIDED,
            "There is nothing to compare with: train the same tasks with --train all into another"
            " folder, and give it as --baseline.",
        )
    name, worst = min(known.items(), key=lambda item: item[1].mean)
    words = (
        f"{name} differs most from the baseline: {100 * worst.mean:+.1f} points (95 %:"
        f" {100 * worst.low:+.1f} to {100 * worst.high:+.1f})"
    )
    if worst.low >= -_TOLERANCE:
        return Verdict(RECOMMENDED, f"No task loses more than a point; {words}.")
    if worst.high < -_TOLERANCE:
        return Verdict(NOT_RECOMMENDED, f"A task loses more than a point; {words}.")
    return Verdict(UNDECIDED, f"More test pictures would tell; {words}.")


def _report(
    tasks: list[Task], verdict: Verdict, opened: OpenedModel, options: UniversalOptions
) -> Report:
    rows = [
        [
            each.name,
            str(each.classes),
            str(each.pictures),
            *map(points, (each.score.accuracy, each.score.baseline, each.score.difference)),
            f"{own_parameters(each, options):,}",
            f"{100 * own_share(each, options):.2f}",
        ]
        for each in tasks
    ]
    columns = ["task", "classes", "pictures", "accuracy, %", "baseline, %", "difference"]
    table = Table(
        [*columns, "own parameters", "own, % of the network"],
        rows,
        "Accuracy with 95 % intervals (Wilson; the difference paired). Own parameters are what a"
        " task needs for itself; the others it shares with all tasks.",
    )
    numbers = {
        "train": options.train,
        "tasks": [
            {
                "name": each.name,
                "classes": each.classes,
                "pictures": each.pictures,
                "accuracy": asdict(each.score.accuracy),
                "baseline": each.score.baseline and asdict(each.score.baseline),
                "difference": each.score.difference and asdict(each.score.difference),
                "own_parameters": own_parameters(each, options),
                "cost": each.cost._asdict(),
                "model": f"{each.name}/model",
            }
            for each in tasks
        ],
    }
    lead = [f"{opened.describe()}; --train {options.train}, {options.steps} steps a task."]
    return Report("adapt universal", verdict, [Section("Tasks", [table])], numbers, lead)


def own_parameters(task: Task, options: UniversalOptions) -> int:
    """Return how many parameters a task needs for itself."""
    cost = task.cost
    whole = cost.norm + cost.head + cost.shared
    return {"norm": cost.norm + cost.head, "head": cost.head, "all": whole}[options.train]


def own_share(task: Task, options: UniversalOptions) -> float:
    """Return the same as a share of the network's parameters."""
    cost = task.cost
    return own_parameters(task, options) / (cost.norm + cost.head + cost.shared)
