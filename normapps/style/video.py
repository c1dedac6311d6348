"""Stylizing clips: frames in order with one style, and one moving average of their moments.

A clip is painted in segments that are kept when the work is interrupted; the same job, run again,
goes on after the last of them and gives the same frames as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import identify
from ..data.picture import Picture, fitted_size
from ..data.timeline import Timeline
from ..data.video import Clip, Frame, FrameReader, probe
from ..data.video_write import Encoding, choose_codec, join, segment_file
from ..errors import InputError
from ..files import atomic_path, check_writable
from .contents import CLIP_ONLY
from .job import EXPECTED, PictureResult, StylizeJob, explain, load_painter
from .looks import Painter
from .moving import MovingMoments
from .plan import Plan, Task
from .stylize_options import StylizeOptions
from .video_parts import Mark, Parts
from .video_plan import plan_clips

SEGMENT = 64
"""Frames of a segment."""

Watch = Callable[[str, int], None]
"""Told of every painted frame: the result's path, and how many frames this run has to paint."""


def stylize_clips(
    options: StylizeOptions,
    contents: Sequence[str],
    *,
    stylizer: Painter | None = None,
    watch: Watch | None = None,
) -> ClipJob:
    """Prepare the stylization of clips; going through the job does the work.

    Args:
        options: what `normapps stylize` takes as flags.
        contents: files, globs or folders with clips.
        stylizer: a loaded one; otherwise options decide which is loaded.
        watch: told of every frame.

    Raises:
        UsageError: outputs that do not fit the results, or options that do not go with clips.
        InputError: PyAV is missing, no clip, no such style or model, or a folder that cannot be
            written.
    """
    plan = plan_clips(options, contents)
    return ClipJob(options, plan, stylizer or load_painter(options), watch)


class ClipJob(StylizeJob):
    """Clips to be stylized, as `stylize_clips` prepared them; go through it once.

    Attributes:
        watch: told of every frame, or None.
    """

    def __init__(
        self, options: StylizeOptions, plan: Plan, stylizer: Painter, watch: Watch | None = None
    ) -> None:
        super().__init__(options, plan, stylizer)
        self.watch = watch

    def _do(self, tasks: Sequence[Task]) -> Iterator[PictureResult]:
        for task in tasks:
            yield self._standing(task) or self._make_clip(task)

    def _make_clip(self, task: Task) -> PictureResult:
        start = time.perf_counter()
        try:
            work = self._work(task)
            kept = work.parts.last().painted
            self._paint_on(task, work)
            notes = (*work.notes(kept, bool(self._options.smooth)), *work.join())
            result = replace(
                self._result(task),
                width=work.encoding.width,
                height=work.encoding.height,
                seconds=round(time.perf_counter() - start, 4),
                notes=notes,
            )
            self._record(task, result, self._identity(work.source))
        except EXPECTED as error:
            return self._fail(task, explain(error, task))
        work.parts.remove()
        return result

    def _work(self, task: Task) -> _Work:
        source, target, options = task.source.path, task.target, self._options
        if source is None or target is None:
            raise InputError(f"{task.content}: clips are read from and written to files")
        check_writable(target, options.overwrite)
        clip, timeline = probe(source), _timeline(options)
        width, height = clip.width, clip.height
        if options.size:
            width, height = fitted_size(width, height, options.size)
        encoding = Encoding(
            codec=choose_codec(target, options.codec),
            quality=options.quality,
            width=max(2, width - width % 2),
            height=max(2, height - height % 2),
            rate=timeline.rate or clip.rate,
            time_base=timeline.time_base(clip),
            aspect=clip.aspect,
        )
        is_cut = (width, height) != (encoding.width, encoding.height)
        parts = Parts(target, source, self._recipe(task))
        return _Work(source, target, clip, timeline, encoding, is_cut, parts, options.overwrite)

    def _paint_on(self, task: Task, work: _Work) -> None:
        """Paint what the segments that are there do not hold."""
        begun = mark = work.parts.last()
        reader = work.reader(begun)
        moving = MovingMoments(self._options.smooth) if self._options.smooth else None
        if moving and begun.state:
            moving.restore(begun.state)
        shown = work.timeline.show(reader, work.clip, begun.tick)
        left = work.timeline.frames(work.clip) - begun.painted
        while first := next(shown, None):
            with segment_file(work.parts.segment(work.parts.number), work.encoding) as segment:
                for frame, stamps in chain([first], islice(shown, SEGMENT - 1)):
                    pixels = self._paint_frame(task, frame, moving)
                    for pts in stamps:
                        segment.add(pixels, pts)
                    mark = Mark(frame.pts, stamps.stop, mark.painted + 1)
                    if self.watch:
                        self.watch(task.output, max(left, mark.painted - begun.painted))
            damaged = begun.damaged + reader.damaged
            mark = replace(mark, damaged=damaged, state=moving.state() if moving else {})
            work.parts.finish(mark)
        if not mark.painted:
            raise InputError(f"{work.source}: no frames between --start and --end")

    def _paint_frame(self, task: Task, frame: Frame, moving: MovingMoments | None) -> np.ndarray:
        if moving is None:
            return self._paint(task, Picture(frame.pixels)).pixels
        moving.begin(float(frame.time))
        return self._paint(task, Picture(frame.pixels), steady=moving).pixels

    def _identity(self, source: Path) -> dict[str, Any]:
        return {} if self._plan.manifest is None else identify(source)

    def _recipe(self, task: Task) -> dict[str, Any]:
        chosen = {name: getattr(self._options, name) for name in CLIP_ONLY}
        return super()._recipe(task) | chosen


@dataclass(frozen=True)
class _Work:
    """One clip, its result, and how the one becomes the other."""

    source: Path
    target: Path
    clip: Clip
    timeline: Timeline
    encoding: Encoding
    is_cut: bool
    parts: Parts
    overwrite: bool

    def reader(self, mark: Mark) -> FrameReader:
        start, end = self.timeline.start, self.timeline.end
        return FrameReader(self.source, start=start, end=end, after=mark.pts)

    def join(self) -> tuple[str, ...]:
        """Put the finished segments and the sound together; return notes."""
        with atomic_path(self.target, overwrite=self.overwrite) as temporary:
            return join(
                self.parts.segments(),
                temporary,
                sound=self.source,
                start=self.timeline.start,
                end=self.timeline.end,
                origin=self.clip.origin,
            )

    def notes(self, kept: int, is_smooth: bool) -> tuple[str, ...]:
        """What the user should know of the clip and its frames, a phrase each."""
        mark = self.parts.last()
        notes = [*self.clip.notes, *["cut to an even size"] * self.is_cut]
        if kept:
            notes.append(f"went on after frame {kept}")
        if mark.damaged:
            notes.append(f"{mark.damaged} damaged frame{'s' * (mark.damaged > 1)} left out")
        cuts = int(mark.state["numbers"][2]) if is_smooth else 0
        if cuts:
            notes.append(f"{cuts} change{'s' * (cuts > 1)} of scene")
        return tuple(notes)


def _timeline(options: StylizeOptions) -> Timeline:
    """The exact values of what the user typed in decimals."""
    start, end = (None if each is None else Fraction(str(each)) for each in options.span)
    rate = None if options.fps is None else Fraction(str(options.fps))
    return Timeline(start or Fraction(0), end, rate)
