"""The user's own models by name: a folder of model folders, and how models get there.

A model is added from a model folder, or from weight files of the classic stylizers, which are
converted; either may be downloaded first. Whatever is added is kept as safetensors with hashes,
and its `model.json` says of which files, with their hashes, it was made. Listing needs no torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from ..files import sha256 as digest_of
from ..files import write_text
from .folder import (
    MANIFEST,
    check_hashes,
    check_target,
    read_manifest,
    replaced_folder,
    save_model,
    verify,
)
from .shipped import CARD, list_shipped

if TYPE_CHECKING:
    from .download import Progress

VARIABLE = "NORMAPPS_MODELS"
"""The environment's variable that names the folder."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def store_root() -> Path:
    """Return the folder of the user's models, which need not exist.

    `NORMAPPS_MODELS`, else `normapps/models` in the folder for a user's data: `XDG_DATA_HOME`, by
    default `~/.local/share`, on Windows `LOCALAPPDATA`.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME"
    base = os.environ.get(variable) or "~/.local/share"
    return Path(base).expanduser() / "normapps" / "models"


def list_stored() -> tuple[str, ...]:
    """Return the names of the user's models, sorted."""
    found = (path.parent.name for path in store_root().glob(f"*/{MANIFEST}"))
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def stored_folder(name: str) -> Path:
    """Return the model folder of one of the user's models.

    Raises:
        InputError: there is none of that name; the nearest one is suggested.
    """
    if name not in list_stored():
        raise unknown("model", name, list_stored())
    return store_root() / name


def add_model(
    name: str,
    files: Sequence[str | os.PathLike[str]],
    *,
    sha256: Sequence[str] = (),
    method: str = "",
    overwrite: bool = False,
    source: Sequence[str] = (),
) -> Path:
    """Keep a model under a name.

    Args:
        name: small letters, digits, `.`, `_` and `-`; not that of a shipped model.
        files: a model folder; or encoders and decoders of WCT or AdaIN, as files or folders of
            them (see `vgg_files`), read without running code in them.
        sha256: what the weight files must have, in order; of a model folder its `model.json`.
        method: the default map of a model made of weight files; see `vgg_files.read_cascade`.
        overwrite: replace one of that name.
        source: where the files were downloaded from, to be kept in the model's history.

    Returns:
        The model folder.

    Raises:
        InputError: a name that cannot be, files that are no such model, another number of hashes
            than of files, or a file that does not have its hash.
    """
    target = _target(name, overwrite)
    folders = [Path(file) for file in files if (Path(file) / MANIFEST).is_file()]
    if not folders:
        return _convert(target, files, sha256, method, overwrite, source)
    if len(files) > 1 or method:
        raise InputError(f"{folders[0]}: is a whole model; add it alone and without a method")
    for expected in _matched(sha256, 1):
        verify(folders[0] / MANIFEST, expected)
    check_hashes(folders[0], read_manifest(folders[0]))
    if folders[0].resolve() == target.resolve():
        raise InputError(f"{folders[0]}: is the model '{name}' already")
    with replaced_folder(target) as temporary:
        shutil.copytree(folders[0], temporary, dirs_exist_ok=True)
    return target


def pull_model(
    name: str,
    urls: Sequence[str] = (),
    *,
    sha256: Sequence[str] = (),
    method: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Download weight files and keep them as a model.

    Args:
        name: as in `add_model`.
        urls: `https://` or `file://`, one a file. None: those that a model of this name was pulled
            from before, which is replaced, and the files must be the same again.
        sha256: one for each URL, 64 hexadecimal digits.
        method, overwrite: as in `add_model`.
        progress: called while a file is read.

    Raises:
        InputError: no URL is known, one cannot be read, or as in `add_model`.
    """
    from .download import download, file_name

    if not urls:
        urls, sha256 = _recorded(name)
        overwrite = True
    _target(name, overwrite)
    _matched(sha256, len(urls))
    with tempfile.TemporaryDirectory(prefix="normapps-") as temporary:
        files = []
        for i, url in enumerate(urls):
            files.append(Path(temporary) / f"{i:02d}" / file_name(url))
            files[-1].parent.mkdir()
            download(url, files[-1], progress)
        return add_model(
            name, files, sha256=sha256, method=method, overwrite=overwrite, source=urls
        )


def remove_model(name: str) -> Path:
    """Delete one of the user's models and return where it was.

    Raises:
        InputError: there is none of that name, or it cannot be deleted.
    """
    folder = stored_folder(name)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be deleted ({error.strerror})") from error
    return folder


def _target(name: str, overwrite: bool) -> Path:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"model name {name!r}: use small letters, digits, '.', '_' and '-', such as wct16"
        )
    if name in list_shipped():
        raise InputError(f"model name '{name}': is that of a shipped model; choose another")
    target = store_root() / name
    check_target(target, overwrite)
    return target


def _matched(hashes: Sequence[str], files: int) -> Sequence[str]:
    if hashes and len(hashes) != files:
        raise InputError(f"--sha256: {len(hashes)} for {files} files; give one for each, in order")
    for value in hashes:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise InputError(f"--sha256 {value!r}: must be 64 hexadecimal digits")
    return hashes


def _convert(
    target: Path,
    files: Sequence[str | os.PathLike[str]],
    hashes: Sequence[str],
    method: str,
    overwrite: bool,
    source: Sequence[str],
) -> Path:
    from .vgg_files import read_cascade, weight_files

    found = weight_files(files)
    for file, expected in zip(found, _matched(hashes, len(found)), strict=bool(hashes)):
        verify(file, expected)
    network, arguments = read_cascade(found, method)
    kept = [{"name": file.name, "sha256": digest_of(file)} for file in found]
    history = [{"added": "normapps models add", "files": kept, "urls": list(source)}]
    return save_model(
        target,
        network,
        builder="vgg-cascade",
        arguments=arguments,
        history=history,
        overwrite=overwrite,
        complete=lambda folder: write_text(folder / CARD, _card(target.name, arguments, kept)),
    )


def _card(name: str, arguments: dict[str, Any], files: Sequence[dict[str, str]]) -> str:
    """What `models show` prints of a converted model."""
    layers, rows = (
        ", ".join(arguments["layers"]),
        [f"| {f['name']} | {f['sha256']} |" for f in files],
    )
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A classic stylizer on VGG-19, with levels at {layers}; method {arguments['method']}.",
            "Converted from these files; their licence is whatever their authors say.",
            "",
            "| file | sha256 |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _recorded(name: str) -> tuple[list[str], list[str]]:
    """URLs and hashes that a model was pulled with."""
    if name not in list_stored():
        raise InputError(
            f"model '{name}': no address is known; name its files by --from URL, or add them by "
            f"normapps models add {name} FILE…"
        )
    values = json.loads((store_root() / name / MANIFEST).read_text(encoding="utf-8"))
    for step in values.get("history", ()):
        if isinstance(step, dict) and step.get("urls"):
            return list(step["urls"]), [file["sha256"] for file in step["files"]]
    raise InputError(f"model '{name}': was not pulled; name its files by --from URL")
