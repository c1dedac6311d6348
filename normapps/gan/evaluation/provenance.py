"""What a score is a score of: without this line it means nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Provenance:
    """How a score came about.

    One generator gave 14.2 against the training pictures and 21 against the test pictures; others
    moved as far with the resizer, the number of pictures, or the statistics of batch norms.

    Attributes:
        extractor: its name and whose weights.
        sha256: of its weights.
        features: numbers that it sees a picture as.
        real: where the real pictures come from, and which part of them.
        reals, fakes: numbers of real and of drawn pictures.
        held: how many of the real ones the floor takes in the place of drawn ones.
        compared: of each, how many the kernel distance, the neighbours and the classifier score
            saw at most.
        resizer: how they came to the extractor's size, in words.
        generator: what drew, or where the pictures lie.
        bn: statistics of its batch norms, in words; empty for pictures of a folder.
        average: whether its weights are an average over training, in words; empty if not known.
        stage: final, best or which step, in words; empty if not known.
        seed: of latents, classes, subsets.
    """

    extractor: str
    sha256: str
    features: int
    real: str
    reals: int
    fakes: int
    held: int
    compared: int
    resizer: str
    generator: str
    bn: str = ""
    average: str = ""
    stage: str = ""
    seed: int = 0

    @property
    def is_singular(self) -> bool:
        """Whether a covariance is singular, and so the Fréchet distance far too large."""
        return min(self.reals, self.fakes) <= self.features

    @property
    def has_singular_floor(self) -> bool:
        """Whether the same is true of the floor."""
        return min(self.held, self.reals - self.held) <= self.features

    def line(self, floor: str = "") -> str:
        """Return all of it in one line.

        Args:
            floor: what real pictures score against real ones, in words; empty if not measured.
        """
        said = (
            f"extractor {self.extractor} (sha256 {self.sha256[:8]}, {self.features:,} features)",
            f"{self.reals:,} real ({self.real})",
            f"{self.fakes:,} drawn ({self.generator})",
            f"{self.compared:,} of each for all but the Fréchet distance"
            if self.compared < max(self.reals, self.fakes)
            else "",
            f"resizer {self.resizer}",
            self.bn,
            self.average or ("" if not self.bn else "EMA not known"),
            self.stage or ("" if not self.bn else "final or best not known"),
            f"seed {self.seed}",
            f"floor {floor} ({self.held:,} real against the {self.reals - self.held:,} others)"
            if floor
            else "floor not measured",
        )
        return "; ".join(filter(None, said))


def place_words(place: str) -> str:
    """Return a path as a score tells it: of an absolute one no more than the last two parts."""
    path = Path(place)
    return f"…/{'/'.join(path.parts[-2:])}" if path.is_absolute() else place
