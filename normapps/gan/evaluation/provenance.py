"""What a score is a score of: without this line it means nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """How a score came about.

    One generator gave 14.2 against the training pictures and 21 against the test pictures; others
    moved as far with the resizer, the number of pictures, or the statistics of batch norms.

    Attributes:
        extractor: its name and whose weights.
        sha256: of its weights.
        real: where the real pictures come from, and which part of them.
        reals, fakes: numbers of real and of drawn pictures.
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
    real: str
    reals: int
    fakes: int
    compared: int
    resizer: str
    generator: str
    bn: str = ""
    average: str = ""
    stage: str = ""
    seed: int = 0

    def line(self, floor: str = "") -> str:
        """Return all of it in one line.

        Args:
            floor: what real pictures score against real ones, in words; empty if not measured.
        """
        said = (
            f"extractor {self.extractor} (sha256 {self.sha256[:8]})",
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
            f"floor {floor}" if floor else "floor not measured",
        )
        return "; ".join(filter(None, said))
