"""Options of `normapps norm analyze`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, unknown
from ..models.options import PictureOptions
from ..options import device_option, option

ANALYSES = (
    "conditioning",
    "propagation",
    "scale-invariance",
    "stochasticity",
    "gap",
    "scales",
    "predictiveness",
)


@dataclass(frozen=True)
class AnalyzeOptions(PictureOptions):
    """What is looked at in a network, on how many pictures.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    what: str = option(",".join(ANALYSES), "analyses, with commas between")
    limit: int = option(256, "take this many pictures, evenly spread", low=2)
    batch_size: int = option(32, "pictures a batch, of which batch norms take statistics", low=2)
    sizes: str = option("2,4,8,16,32", "batch sizes for the stochasticity, with commas between")
    draws: int = option(8, "random batches for each of these sizes and pictures", low=2)
    lr: float = option(0.1, "learning rate η whose steps are looked at", low=1e-12, high=1e6)
    weight_decay: float = option(1e-4, "λ of the equilibrium √(2ηλ)", low=0, high=1)
    tau: float = option(0.01, "τ, below which the scale of a channel is small", low=0)
    rows: int = option(12, "layers that each table shows, those that stand out", low=1)
    device: str = device_option()
    overwrite: bool = option(False, "replace an existing report")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.analyses:
            if name not in ANALYSES:
                raise InputError(f"--what: {unknown('analysis', name, ANALYSES)}")
        if not self.analyses:
            raise InputError(f"--what {self.what!r}: name one or more of {', '.join(ANALYSES)}")
        if not self.batch_sizes or min(self.batch_sizes) < 2:
            raise InputError(f"--sizes {self.sizes}: must be whole numbers from 2, as 2,8,32")

    @property
    def analyses(self) -> tuple[str, ...]:
        """The analyses that are asked for, each once."""
        return tuple(dict.fromkeys(filter(None, map(str.strip, self.what.split(",")))))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes as numbers, rising; empty where one is none."""
        parts = [part.strip() for part in self.sizes.split(",")]
        return tuple(sorted(set(map(int, parts)))) if all(map(str.isdecimal, parts)) else ()
