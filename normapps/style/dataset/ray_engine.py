"""The engine of Ray Data (extra `scale`): an actor a device, on one machine or a cluster's.

Every machine must see the data set, the styles and the folder of the results under the same paths.
The work is a text file that Ray reads piece by piece; what actors made comes back as rows, and
what one lost with its machine is made again by another.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, NormappsError
from .local import each, worker_count
from .options import DatasetOptions
from .painter import DatasetResult, Work
from .record import Outlet
from .tree import Item

_ROWS = 4
"""Pictures that an actor takes at a time on a CPU; on a GPU 8 times as many."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what matters comes as an exception
    "RAY_worker_niceness": "0",  # the actors are the job, not something beside it
    "RAY_prestart_worker_first_driver": "0",
}
"""Of a Ray that we start ourselves, unless the user's says otherwise."""


def require_ray() -> Any:
    """Return the module `ray`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs an extra; pip install 'normapps[scale]'") from error
    return ray


def paint_with_ray(
    options: DatasetOptions, places: tuple[str, str, str], works: Iterator[Work]
) -> Iterator[list[DatasetResult]]:
    """Do the work by actors; results come as they are done.

    Args:
        options: of the job.
        places: of the data set, the styles and the results, as the user named them.
        works: what to make; written to a file in the folder of the results first.
    """
    ray = require_ray()
    paths = tuple(_absolute(place) for place in places)
    tasks = Outlet(Path(paths[2]), options.part).staging / "tasks.jsonl"
    if not _write_tasks(tasks, works):
        return
    with _running(ray, options.workers):
        on_gpu = options.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        rows = ray.data.read_text(str(tasks)).map_batches(
            RayPainter,
            fn_constructor_args=(dataclasses.asdict(options), paths),
            batch_size=_ROWS * (8 if on_gpu else 1),
            concurrency=_actors(ray, options, on_gpu),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        for row in rows.iter_rows():
            yield [DatasetResult(**values) for values in json.loads(row["results"])]


class RayPainter:
    """What an actor holds: stylizer and styles, loaded once.

    Args:
        options: fields of `DatasetOptions`.
        places: absolute paths of the data set, the styles and the results.
    """

    def __init__(self, options: dict[str, Any], places: tuple[str, str, str]) -> None:
        from .job import open_painter

        self._painter = open_painter(DatasetOptions(**options), *places)
        device = self._painter.device
        self._workers = 1 if device.type == "cpu" else worker_count(None, device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the results of some lines of `tasks.jsonl`."""
        works = map(_work, batch["text"])
        made = each(self._painter.paint, works, self._workers)
        rows = [json.dumps([dataclasses.asdict(one) for one in results]) for results in made]
        return {"results": np.array(rows, dtype=object)}


def _absolute(place: str) -> str:
    """Actors work elsewhere: a path from the root; a preset as it is."""
    return os.path.abspath(place) if os.path.exists(place) else place


def _write_tasks(path: Path, works: Iterator[Work]) -> bool:
    """Write a line a picture; False where there is none."""
    with path.open("w", encoding="ascii") as file:
        for work in works:
            file.write(json.dumps([work.item.source, work.item.output, work.draws]) + "\n")
        return file.tell() > 0


def _work(line: str) -> Work:
    source, output, draws = json.loads(str(line))
    return Work(Item(source, output), tuple(draws))


@contextmanager
def _running(ray: Any, workers: int | None) -> Iterator[None]:
    """The cluster of `RAY_ADDRESS` or of the caller; else one of this machine, for as long."""
    ours = not ray.is_initialized()
    if ours:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _start(ray, workers)
    _silence(ray)
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        known = cause if isinstance(cause, NormappsError) else None
        reason = str(known or error).strip().splitlines()[-1]
        raise NormappsError(f"{'' if known else '--engine ray: '}{reason}") from error
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, workers: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        # only names and sizes pass through the object store
        options |= {"include_dashboard": False, "object_store_memory": 200_000_000}
        options |= {} if workers is None else {"num_cpus": workers + 1}
    ray.init(**options)


def _silence(ray: Any) -> None:
    """No bars and notices of Ray: the job has its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _actors(ray: Any, options: DatasetOptions, on_gpu: bool) -> int:
    """One a GPU, or one a core but for the one that reads the tasks; at least one."""
    if options.workers is not None:
        return options.workers
    found = ray.cluster_resources()
    return max(1, int(found["GPU"] if on_gpu else found["CPU"] - 1))
