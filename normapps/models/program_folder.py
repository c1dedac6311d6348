"""Folders of int8 programs that torch compiles: `model.pt2` and a versioned `model.json`.

Whoever gets such a folder needs torch and torchao, and not the network's code:

    model = normapps.ProgramModel("resnet18-int8")
    images = model.prepare(["cat.jpg", "dog.jpg"])
    classes = model.run(images).argmax(1)  # compiles when it is first called
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from .folder import PROGRAM_FORMAT, verify
from .onnx_folder import NETWORKS, RunModel, read_onnx_manifest


class ProgramModel(RunModel):
    """An int8 network in a folder, compiled by torch for the CPU.

    Where there is no C++ compiler it runs operator by operator, and warns that this is slow.

    Args:
        folder: that `normapps quantize --backend torchao` wrote, of a source that is trusted; its
            hash is checked.
        is_compiled: compile it; None: where there is a C++ compiler.

    Raises:
        NormappsError: torchao is not installed.
        InputError: the folder is missing, damaged, of another kind or of a newer version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, is_compiled: bool | None = None) -> None:
        from .program import Program, why_not_compiled

        manifest = read_onnx_manifest(folder, PROGRAM_FORMAT, "int8 program")
        network = Path(folder) / NETWORKS[PROGRAM_FORMAT]
        verify(network, manifest.sha256[network.name])
        why = why_not_compiled() if is_compiled is None else ""
        if why:
            warnings.warn(f"{network}: runs slower than float32: {why}", stacklevel=2)
        super().__init__(manifest, Program(network, is_compiled=is_compiled))
