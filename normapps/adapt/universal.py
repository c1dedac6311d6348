"""Universal networks: one frozen network, with norm layers and a classifier for each task.

Bilen & Vedaldi 2017: convolutions are shared by all tasks, batch norms (statistics, scale and
shift) belong to one. A task costs its norm layers and its classifier; it is trained alone, without
the others noticing; several tasks run in one batch, and each can be taken out as a plain network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..models.classifier import classifier_name
from ..norm.convert.sites import find_sites
from ..norm.domain import DomainModel
from ..norm.nesting import detached_copy
from ..training.parts import batch_norms, free_


class TaskCost(NamedTuple):
    """Numbers that a task needs for itself, and parameters that all tasks share."""

    norm: int
    head: int
    statistics: int
    shared: int

    @property
    def share(self) -> float:
        """A task's own parameters as a share of the whole network's."""
        own = self.norm + self.head
        return own / (own + self.shared)


class UniversalNetwork(nn.Module):
    """Several tasks on one network: `network(x, "digits")`, or a task for each sample.

    Everything is frozen but the norm layers and the classifiers.

    Args:
        models: by task, plain networks that differ in their batch norms and their classifier
            alone, such as `task_network` makes and training changes. They are copied.

    Attributes:
        tasks: their names; a task's number is its position.
        network: the shared network, a `DomainModel`.

    Raises:
        InputError: no network, one without batch norms or linear classifier, or weights that
            should be shared and differ, those of other norm layers included; the first is named.

    Example:
        >>> network = UniversalNetwork({"digits": digits, "clothes": clothes})
        >>> logits = network(images, "digits")
        >>> both = network(images, torch.tensor([0, 1, 1]))  # {"digits": (1, 10), "clothes": …}
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not models:
            raise InputError("no task: give at least one network")
        self.tasks = tuple(models)
        first = next(iter(models.values()))
        self._head = classifier_name(first)
        for name, model in models.items():
            _linear(model, self._head)
            _check_shared(first, model, self._head, f"{self.tasks[0]} and {name}")
        shared = detached_copy(first)
        heads = [detached_copy(model.get_submodule(self._head)) for model in models.values()]
        shared.set_submodule(self._head, _Heads(heads))
        self.network = DomainModel(shared, len(models), copy=False)
        for index, model in enumerate(models.values()):
            self.network.load_domain(index, model)
        self.requires_grad_(False)
        for part in (*self.network.banks().values(), self._heads):
            part.requires_grad_(True)

    def forward(self, x: Tensor, task: str | int | Tensor) -> Tensor | dict[str, Tensor]:
        """Return the logits of a task, or of each task's samples.

        Args:
            x: (N, ...) inputs.
            task: name or number of one for all samples: logits (N, C) come back. Or (N,) int64
                numbers, one a sample: a dictionary comes back, by the name of each task (n, C),
                its samples in their order.

        Raises:
            InputError: an unknown task, or not one a sample.
        """
        if isinstance(task, Tensor) and task.dim():
            self._check_tasks(task, len(x))
            with self._heads.choosing(task):
                whole = self.network(x, task)
            return {
                name: whole[task == index][:, : self._heads.widths[index]]
                for index, name in enumerate(self.tasks)
            }
        index = self.index(int(task) if isinstance(task, Tensor) else task)
        with self._heads.choosing(index):
            logits: Tensor = self.network(x, index)
        return logits

    @property
    def _heads(self) -> _Heads:
        return cast(_Heads, self.network.model.get_submodule(self._head))

    def index(self, task: str | int) -> int:
        """Return a task's number.

        Raises:
            InputError: there is no such task.
        """
        if isinstance(task, str):
            if task not in self.tasks:
                raise unknown("task", task, self.tasks)
            return self.tasks.index(task)
        if not 0 <= task < len(self.tasks):
            raise InputError(f"task {task}: must be 0 … {len(self.tasks) - 1}")
        return task

    def _check_tasks(self, task: Tensor, count: int) -> None:
        if task.dtype != torch.int64 or task.shape != (count,):
            raise InputError(
                f"tasks {tuple(task.shape)} {task.dtype}: must be ({count},) torch.int64, one a"
                " sample"
            )
        if count:
            self.index(int(task.min())), self.index(int(task.max()))

    def export(self, task: str | int) -> nn.Module:
        """Return a task's plain network: the classes and keys it came with, in inference mode.

        Raises:
            InputError: an unknown task.
        """
        index = self.index(task)
        plain = self.network.export(index)
        plain.set_submodule(self._head, detached_copy(self._heads.heads[index]))
        return plain.eval().requires_grad_(True)

    def cost(self, task: str | int) -> TaskCost:
        """Return what a task costs.

        Raises:
            InputError: an unknown task.
        """
        return task_cost(self.export(task))


def task_network(
    model: nn.Module, num_classes: int, *, trained: str = "norm", seed: int = 0
) -> nn.Module:
    """Return a copy of a network for a new task: a new classifier, and only its own part free.

    Args:
        model: pretrained; its classifier is a linear layer.
        num_classes: of the task.
        trained: one of `TRAINED`; the rest does not require a gradient.
        seed: of the new classifier, uniform in ±1/√features as torch makes it.

    Raises:
        InputError: no classifier is found, or no norm layer to train.
    """
    made = detached_copy(model)
    name = classifier_name(made)
    old = _linear(made, name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    made.set_submodule(name, head.to(old.weight.device, old.weight.dtype))
    free_(made, trained)
    return made


def task_cost(model: nn.Module) -> TaskCost:
    """Return what a plain network costs as one task of several."""
    head = {id(each) for each in model.get_submodule(classifier_name(model)).parameters()}
    modules = [site.module for site in find_sites(model)]
    norm = {id(each): each.numel() for module in modules for each in module.parameters()}
    statistics = sum(each.numel() for module in modules for each in module.buffers())
    sizes = {id(each): each.numel() for each in model.parameters()}
    own = sum(size for key, size in sizes.items() if key in head)
    return TaskCost(
        sum(norm.values()), own, statistics, sum(sizes.values()) - own - sum(norm.values())
    )


class _Heads(nn.Module):
    """The classifiers of all tasks in the place of one."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = [int(head.out_features) for head in heads]  # type: ignore[arg-type]
        self._task: int | Tensor | None = None

    @contextmanager
    def choosing(self, task: int | Tensor) -> Iterator[None]:
        """Answer for a task, or for a task a sample, within a block."""
        self._task = task
        try:
            yield
        finally:
            self._task = None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C), in a mixed batch those of narrower tasks filled up with −∞."""
        if isinstance(self._task, int):
            logits: Tensor = self.heads[self._task](x)
            return logits
        if self._task is None:
            raise InputError("a universal network needs a task: call it as network(x, task)")
        found = x.new_full((len(x), max(self.widths)), -torch.inf)
        for index, head in enumerate(self.heads):
            rows = (self._task == index).nonzero().flatten()
            found[rows, : self.widths[index]] = head(x[rows]).to(found.dtype)
        return found


def _linear(model: nn.Module, name: str) -> nn.Linear:
    """A network's classifier.

    Raises:
        InputError: it is no linear layer, or there is nothing of the name.
    """
    found = dict(model.named_modules()).get(name)
    if not isinstance(found, nn.Linear):
        raise InputError(f"the classifier '{name}' is {type(found).__name__}, not a linear layer")
    return found


def is_shareable(model: nn.Module) -> bool:
    """Return whether all of a network's norm layers are batch norms, of which tasks have banks."""
    return len(batch_norms(model)) == len(find_sites(model)) > 0


def _check_shared(first: nn.Module, other: nn.Module, head: str, tasks: str) -> None:
    """Check that two networks differ in batch norms and classifier alone."""
    names = batch_norms(other)
    banks = [site for site in find_sites(other) if site.name in names]
    own = tuple(f"{name}." for site in banks for name in site.names)
    mine, theirs = first.state_dict(), other.state_dict()
    for key in dict.fromkeys((*mine, *theirs)):
        if key.startswith((*own, f"{head}.")) and key in mine and key in theirs:
            continue
        if key not in mine or key not in theirs or not _equal(mine[key], theirs[key]):
            raise InputError(
                f"'{key}' of {tasks} differs, and tasks share everything but batch norms and"
                f" classifier '{head}': train them with --train norm or head"
            )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.cpu(), b.cpu()))
