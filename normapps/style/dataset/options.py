"""Options of `normapps stylize-dataset`; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ...options import device_option, option, validate
from ..stylize_options import AUTO, METHODS


@dataclass(frozen=True)
class DatasetOptions:
    """Stylization of a data set, in the order of the command's flags."""

    num_styles: int = option(
        1, "styles a picture; several give complete trees 1/, 2/ … in OUT", low=1
    )
    seed: int = option(0, "of the hash that draws style and strength of every picture", low=0)
    alpha: str = option("1", "strength 0 to 1, or LO,HI: drawn anew for every picture")
    method: str = option(
        AUTO,
        "how the style's statistics are given to the features; auto as the model has it",
        choices=(AUTO, *METHODS),
    )
    model: str = option("adain-tiny", "shipped model, or a folder that style train wrote")
    size: int | None = option(
        None, "long side of the results, pixels; else the pictures' own", low=1
    )
    style_size: int = option(512, "long side at which a painting is looked at, pixels", low=16)
    preserve_color: str = option(
        "none",
        "keep the photo's colours: its chroma (luma) or its palette (transport)",
        choices=("none", "luma", "transport"),
    )
    format: str = option("keep", "format of the results", choices=("keep", "jpg", "png"))
    quality: int = option(92, "of JPEG and WebP", low=1, high=100)
    copy: tuple[str, ...] = option(
        (), "pattern of pictures to copy as they are, such as '*_mask.png'; repeatable"
    )
    limit: int | None = option(None, "take this many pictures, evenly spread", low=1)
    shard: str = option(
        "1/1", "i/n, from 1/n to n/n: one of n parts of the pictures", pattern=r"[0-9]+/[0-9]+"
    )
    resume: bool = option(True, "keep what an earlier run of the same options finished")
    overwrite: bool = option(False, "make everything anew, whatever OUT holds")
    engine: str = option(
        "local", "local: threads of this process; ray: an actor a device", choices=("local", "ray")
    )
    workers: int | None = option(
        None, "pictures worked on at a time (ray: actors); one a core, or for a GPU up to 8", low=1
    )
    cache: str = option("", "folder of measured styles; by default in the user's cache")
    device: str = device_option()
    dtype: str = option(
        "auto",
        "precision of the network; auto is bfloat16 where the device has it",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_pixels: int | None = option(None, "largest picture to open, for files you trust", low=1)

    def __post_init__(self) -> None:
        validate(self)
        number, shards = self.part
        if not 1 <= number <= shards:
            raise InputError(f"--shard {self.shard}: give i/n with i from 1 to n, such as 1/8")
        if self.engine == "ray" and ":" in self.device:
            raise InputError(f"--device {self.device}: Ray gives every actor its GPU; give cuda")
        low, high = self.alphas
        if not 0 <= low <= high <= 1:
            raise InputError(f"--alpha {self.alpha}: must be within 0 and 1, the lower first")

    @property
    def part(self) -> tuple[int, int]:
        """The shard as (number, of how many)."""
        number, _, shards = self.shard.partition("/")
        return int(number), int(shards)

    @property
    def alphas(self) -> tuple[float, float]:
        """The least and the greatest strength.

        Raises:
            InputError: what was given is no number and no two numbers.
        """
        low, _, high = self.alpha.partition(",")
        try:
            return float(low), float(high or low)
        except ValueError as error:
            raise InputError(
                f"--alpha {self.alpha!r}: give a number, or two such as 0.3,1"
            ) from error
