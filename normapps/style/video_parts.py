"""The work folder of a clip: finished segments, and after each what the next frames depend on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.manifest import identify, is_same
from ..data.video_write import SEGMENT_SUFFIX
from ..errors import InputError
from ..files import atomic_path, write_text

_VERSION = 1


@dataclass(frozen=True)
class Mark:
    """Where a clip stands after a segment.

    Attributes:
        pts: time stamp of the last frame painted, None before the first.
        tick: number of the next frame under a fixed rate.
        painted: frames painted so far.
        damaged: packets of the clip so far that could not be decoded.
        state: of the moving moments.
    """

    pts: int | None = None
    tick: int = 0
    painted: int = 0
    damaged: int = 0
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Parts:
    """The segments of one result, in a hidden folder beside it.

    What stands there from an earlier run is kept if it was made of the same clip in the same way;
    otherwise it is removed.

    Args:
        target: the result.
        source: the clip.
        recipe: all that decides how the result looks, JSON values.
    """

    def __init__(self, target: Path, source: Path, recipe: Mapping[str, Any]) -> None:
        self.folder = target.with_name(f".{target.name}.parts")
        made = {"version": _VERSION, "recipe": json.loads(json.dumps(recipe))}
        known = self._known()
        is_ours = is_same(source, known.pop("source", {})) and known == made
        if not is_ours:
            shutil.rmtree(self.folder, ignore_errors=True)
            made["source"] = identify(source)
            write_text(self.folder / "job.json", json.dumps(made, indent=2) + "\n")
        self._finished = 0
        while self._is_finished(self._finished):
            self._finished += 1

    @property
    def number(self) -> int:
        """Number of the segment that is to be made next, from 0."""
        return self._finished

    def segment(self, number: int) -> Path:
        """Where a segment lies."""
        return self.folder / f"{number:06d}{SEGMENT_SUFFIX}"

    def segments(self) -> list[Path]:
        """The finished segments in order."""
        return [self.segment(number) for number in range(self._finished)]

    def finish(self, mark: Mark) -> None:
        """Count the next segment, whose file is there, as finished."""
        numbers = {
            each.name: getattr(mark, each.name)
            for each in dataclasses.fields(mark)
            if each.name != "state"
        }
        with atomic_path(self._mark_path(self._finished)) as temporary:
            save_file(dict(mark.state), temporary, {"mark": json.dumps(numbers)})
        self._finished += 1

    def last(self) -> Mark:
        """Where the clip stands after the finished segments.

        Raises:
            InputError: the file that says so is damaged.
        """
        if not self._finished:
            return Mark()
        path = self._mark_path(self._finished - 1)
        try:
            with safe_open(path, "pt") as file:
                numbers = json.loads(file.metadata()["mark"])
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path}: damaged; remove {self.folder} to begin anew") from error
        return Mark(**numbers, state=state)

    def remove(self) -> None:
        """Remove the folder, when the result is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _is_finished(self, number: int) -> bool:
        return self.segment(number).is_file() and self._mark_path(number).is_file()

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
