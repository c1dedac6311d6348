"""What counts as a clip; apart from `video`, so that a job of pictures need not import it."""

from __future__ import annotations

CLIP_WRITE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
"""Containers that can be written."""

CLIP_SUFFIXES = (
    *CLIP_WRITE_SUFFIXES,
    *(".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp"),
)
"""What counts as a clip, in lower case."""
