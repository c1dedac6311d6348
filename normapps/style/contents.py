"""Which contents of a job are pictures and which are clips; loads no torch, and little else."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ..data.clips import CLIP_SUFFIXES
from ..data.inputs import STDIO, find_inputs, is_folder_output
from ..errors import InputError, UsageError
from .stylize_options import StylizeOptions

CLIP_ONLY = ("fps", "start", "end", "smooth", "codec")
"""Options that are for clips alone."""


def sort_contents(options: StylizeOptions, contents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell pictures from clips, by their suffixes.

    A folder gives its pictures; one that holds clips alone gives those.

    Returns:
        The contents with pictures and those with clips; a glob may be among both.

    Raises:
        UsageError: both, and an output that is no folder; or an option for clips and no clip.
    """
    clips = [each for each in contents if _holds_clips(each)]
    pictures = [each for each in contents if each not in clips or _is_mixed(each)]
    if clips and pictures and not is_folder_output(options.output, 1):
        raise UsageError(
            f"-o {options.output}: pictures and clips together need a folder; name one, -o out/"
        )
    if not clips:
        _check_unused(options)
    return pictures, clips


def _holds_clips(content: str) -> bool:
    if Path(content).is_dir():
        return not _finds(content, None) and _finds(content, CLIP_SUFFIXES)
    if _is_pattern(content):
        return _finds(content, CLIP_SUFFIXES)
    return Path(content).suffix.lower() in CLIP_SUFFIXES


def _is_mixed(content: str) -> bool:
    return _is_pattern(content) and _finds(content, None)


def _is_pattern(content: str) -> bool:
    return content != STDIO and glob.has_magic(content) and not os.path.lexists(content)


def _finds(content: str, suffixes: Sequence[str] | None) -> bool:
    try:
        return bool(find_inputs([content], **({"suffixes": suffixes} if suffixes else {})))
    except InputError:
        return False


def _check_unused(options: StylizeOptions) -> None:
    for name in CLIP_ONLY:
        default = StylizeOptions.__dataclass_fields__[name].default
        if getattr(options, name) != default:
            raise UsageError(f"--{name}: is for clips, and no clip is given")
