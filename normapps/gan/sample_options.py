"""Options of `normapps gan sample`, `interpolate`, `export` and `inspect`. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..options import device_option, option, validate

BN_MODES = ("standing", "running", "batch")
"""Which statistics a generator's batch norms draw with."""

GENERATOR_HELP = "A run of `gan train`, a model folder of a generator, or a shipped one's name."

MOST_SEEDS = 1_000_000
LARGEST_SEED = 2**63 - 1

_SEEDS = "numbers, as 0-7 or 3,9,20-30"


@dataclass(frozen=True)
class DrawOptions:
    """What a generator draws, and with which statistics.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    seeds: str = option("0-7", _SEEDS, pattern=r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
    classes: tuple[str, ...] = option(
        (),
        "class of a conditional generator, by name or number; repeatable; else all",
        also="--class",
    )
    bn: str = option(
        "standing",
        "statistics of its batch norms: standing (of many latents), running (of training), batch"
        " (of the pictures drawn together, on which each then depends)",
        choices=BN_MODES,
    )
    standing: int | None = option(
        None, "measure the standing statistics anew, over so many latents", low=2
    )
    truncation: float | None = option(
        None,
        "cut the latents off at ± this: likelier pictures, less varied (0.7 is usual); standing"
        " statistics are measured over such latents",
        low=0.01,
    )
    device: str = device_option()
    overwrite: bool = option(False, "replace existing files")

    def __post_init__(self) -> None:
        validate(self)
        read_seeds(self.seeds)
        check_statistics(self.bn, self.standing)

    @property
    def numbers(self) -> list[int]:
        """The seeds, in the order in which they were given."""
        return read_seeds(self.seeds)


@dataclass(frozen=True)
class SampleOptions(DrawOptions):
    """How what is drawn is laid out.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    scale: int | None = option(
        None, "times as large, pixel for pixel; 2 in a grid, 1 in single files", low=1, high=64
    )
    columns: int | None = option(
        None, "pictures a row of the grid; a class begins a new row", low=1, high=10_000
    )
    labels: bool = option(True, "write the names of the classes beside their rows")


@dataclass(frozen=True)
class InterpolateOptions(DrawOptions):
    """A way from seed to seed, as a grid or an animation.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    between: str = option(
        "seeds",
        "go from seed to seed; or, for each seed, from class to class",
        choices=("seeds", "classes"),
    )
    frames: int = option(8, "pictures from one to the next, its own counted", low=1, high=1000)
    loop: bool = option(False, "go on from the last one to the first")
    duration: int = option(80, "milliseconds a picture, of an animation", low=10, high=10_000)
    scale: int = option(2, "times as large, pixel for pixel", low=1, high=64)
    labels: bool = option(True, "write the names of the classes beside their rows")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.between == "seeds" and len(set(self.numbers)) < 2:
            raise InputError(f"--seeds {self.seeds}: a way needs two of them, as 0-3")


@dataclass(frozen=True)
class GanExportOptions:
    """How a generator becomes a file for another runtime.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    bn: str = option("standing", "statistics of its batch norms", choices=BN_MODES[:2])
    standing: int | None = option(
        None, "measure the standing statistics anew, over so many latents", low=2
    )
    discriminator: bool = option(False, "the discriminator of a run, not the generator", short="-d")
    fold: bool = option(True, "fold batch norms into the layers beside them")
    opset: int | None = option(None, "version of ONNX's operators", low=18)
    overwrite: bool = option(False, "replace an existing file")

    def __post_init__(self) -> None:
        validate(self)
        check_statistics(self.bn, self.standing)


@dataclass(frozen=True)
class InspectOptions:
    """Which networks of a run are looked at."""

    generator: bool = option(False, "the weights of the generator, too")


def check_statistics(bn: str, standing: int | None) -> None:
    """Refuse a number of latents for statistics that are not measured.

    Raises:
        InputError: `standing` beside another mode than `standing`.
    """
    if standing is not None and bn != "standing":
        raise InputError(f"--standing {standing} --bn {bn}: goes with --bn standing alone")


def read_seeds(text: str) -> list[int]:
    """Read `0-7` or `3,9,20-30`: each number, and each of a range with both ends.

    Raises:
        InputError: a range that runs backwards, a number too large, or too many of them.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise InputError(f"--seeds {part}: runs backwards; write {high}-{low}")
        if high > LARGEST_SEED:
            raise InputError(f"--seeds {part}: must be at most {LARGEST_SEED}")
        if len(found) + high - low >= MOST_SEEDS:
            raise InputError(f"--seeds {text}: more than {MOST_SEEDS:,}; draw them in parts")
        found += range(low, high + 1)
    return found


def choose_classes(wanted: Sequence[str], names: Sequence[str], count: int) -> list[int]:
    """Turn what `--class` was given into class numbers; all of them where it was not given.

    Args:
        wanted: names or numbers, a name before a number of the same digits.
        names: of the classes, in order; empty where none are known.
        count: of the classes; 0 where the generator has none, and then nothing may be wanted.

    Raises:
        InputError: the generator has no classes, or none of that name or number.
    """
    if wanted and not count:
        raise InputError(f"--class {wanted[0]}: the generator was trained without classes")
    return [_class(each, names, count) for each in wanted] or list(range(count))


def _class(text: str, names: Sequence[str], count: int) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < count:
        return int(text)
    known = f"{', '.join(names[:12])}{', …' if len(names) > 12 else ''}; or " if names else ""
    raise InputError(f"--class {text}: no such class; choose {known}a number from 0 to {count - 1}")
