"""What an evaluation is made of: runs, each of one method over one order of the pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .evaluate_options import EvaluateOptions
from .online.streams import create_stream

Part = tuple[str, Tensor]
"""A domain and (n,) int64 positions of pictures in it."""


@dataclass(frozen=True)
class Run:
    """One method from a fresh state over one order.

    Attributes:
        stream: one of `ORDERS`.
        domains: what it goes through: one, but several for `continual` and `mixed`.
        method: its name.
        batch_size: pictures a batch.
        seed: of order, corruption and method.
    """

    stream: str
    domains: tuple[str, ...]
    method: str
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """What a run found in one domain.

    Attributes:
        run: its run.
        domain: which of the run's.
        predictions: class of every picture of the pool; empty where the method could not be run.
        entropy: mean over the pictures, in nats.
        seconds: of the method a picture, mean over the run.
        peak_bytes: the most memory of the process (on a GPU: of tensors) during the run; None
            where it cannot be measured.
        note: why there is nothing, in words; empty otherwise.
    """

    run: Run
    domain: str
    predictions: tuple[int, ...] = ()
    entropy: float = 0.0
    seconds: float = 0.0
    peak_bytes: int | None = None
    note: str = ""


def planned(options: EvaluateOptions) -> list[Run]:
    """List the runs that options ask for, so that neighbours share corrupted pictures."""
    domains = options.domains()
    found = []
    for seed in range(options.seed, options.seed + options.seeds):
        for stream in options.streams():
            is_whole = stream in ("continual", "mixed")
            for visited in [domains] if is_whole else [(domain,) for domain in domains]:
                for size in dict.fromkeys(options.batch_size):
                    for method in options.method_names():
                        found.append(Run(stream, visited, method, size, seed))
    return found


def batches_of(run: Run, count: int, labels: Tensor | None = None) -> list[list[Part]]:
    """Return the batches of a run, each as its parts by domain.

    Every picture comes once in every domain. A last batch of one picture joins the one before it,
    for all methods alike: batch statistics of one picture say nothing.

    Args:
        run: its stream, domains, batch size and seed count; not its method.
        count: pictures of the pool.
        labels: (count,) int64, for `sorted`.

    Raises:
        InputError: `sorted` without labels.
    """
    steps = create_stream(
        "one-shift" if run.stream == "shift" else run.stream,
        [count] * len(run.domains),
        run.batch_size,
        labels=None if labels is None else [labels] * len(run.domains),
        seed=run.seed,
        least=min(2, run.batch_size),
    )
    return [[(run.domains[k], indices) for k, _, indices in step.parts()] for step in steps]
