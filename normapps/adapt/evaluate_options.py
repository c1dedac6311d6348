"""Options of `normapps adapt evaluate`. Loads no torch, and numpy only when used."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, unknown
from ..models.options import PictureOptions
from ..options import device_option, option

CLEAN = "clean"
"""The pictures as they are, among the domains."""

BASELINES = ("histogram", "fda")
"""Methods that change the pictures and leave the model as it is."""

METHOD_NAMES = (
    *("source", "adabn", "prior", "ema", "cumulative"),
    *("tent", "eata", "sar", "cotta", "rotta", "lame"),
    *BASELINES,
)
"""What `--methods` takes: the registry of `adapt.methods`, which would load torch, and these."""

ORDERS = ("shift", "continual", "mixed", "sorted")


@dataclass(frozen=True)
class EvaluateOptions(PictureOptions):
    """Which methods are compared, on what, and in which order the pictures come.

    Raises:
        InputError: a value out of range or a name that is not known; the line names the flag.
    """

    methods: tuple[str, ...] = option(
        ("source", "adabn", "prior", "tent"),
        f"methods, with commas or repeated, or all: {' '.join(METHOD_NAMES)}",
    )
    corrupt: tuple[str, ...] = option(
        (), "a corruption and its severity, 1 to 5, such as gaussian_noise:3, or all:3; repeatable"
    )
    clean: bool = option(True, "evaluate the pictures as they are, too")
    batch_size: tuple[int, ...] = option((50,), "pictures a batch; repeatable", low=1)
    stream: tuple[str, ...] = option(
        ("shift",),
        "shift: a reset before each corruption; continual: one after the other; mixed: within the "
        "batches; sorted: by label; with commas or repeated",
    )
    seeds: int = option(1, "runs with another order and other noise each", low=1)
    references: str | None = option(
        None, "pictures whose look histogram and fda take over: folder, tar, ZIP, list or file"
    )
    limit: int | None = option(None, "take this many pictures, evenly spread", low=1)
    device: str = device_option()
    dtype: str = option(
        "float32", "precision of the network", choices=("auto", "float32", "bfloat16", "float16")
    )
    overwrite: bool = option(False, "begin anew where -o holds another evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.streams()
        for name in self.method_names():
            if name in BASELINES and self.references is None:
                raise InputError(f"--methods {name}: give --references, pictures to look like")
        if not self.batch_size:
            raise InputError("--batch-size: give at least one")
        if not self.domains():
            raise InputError("--no-clean: nothing is left to evaluate; give --corrupt")

    def method_names(self) -> tuple[str, ...]:
        """Return the methods asked for, `source` first, to which the others are compared.

        Raises:
            InputError: an unknown name; the nearest is suggested.
        """
        found = {"source": None}
        for name in _listed(self.methods):
            if name != "all" and name not in METHOD_NAMES:
                raise unknown("method", name, METHOD_NAMES)
            known = [n for n in METHOD_NAMES if n not in BASELINES or self.references is not None]
            found |= dict.fromkeys(known if name == "all" else [name])
        return tuple(found)

    def streams(self) -> tuple[str, ...]:
        """Return the orders asked for.

        Raises:
            InputError: an unknown name; the nearest is suggested.
        """
        found = dict.fromkeys(_listed(self.stream))
        for name in found:
            if name not in ORDERS:
                raise unknown("stream", name, ORDERS)
        if not found:
            raise InputError(f"--stream: choose of {', '.join(ORDERS)}")
        return tuple(found)

    def domains(self) -> tuple[str, ...]:
        """Return what is done to the pictures: `CLEAN`, and corruptions as `name:severity`.

        Raises:
            InputError: an unknown name (the nearest is suggested), or no severity from 1 to 5.
        """
        from ..data.corruptions import CORRUPTIONS, parse_corruption

        found: dict[str, None] = {CLEAN: None} if self.clean else {}
        for text in _listed(self.corrupt):
            name, colon, severity = text.partition(":")
            names = list(CORRUPTIONS) if name == "all" else [name]
            for each in names:
                parse_corruption(f"{each}{colon}{severity}")
                found[f"{each}:{severity}"] = None
        return tuple(found)


def _listed(texts: tuple[str, ...]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]
