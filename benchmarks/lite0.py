"""EfficientNet-Lite0 with real ImageNet weights as a model folder: `lite0.py FOLDER` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from normapps.models.folder import save_model
from normapps.models.lite0 import open_lite0


def write(folder: Path) -> Path:
    """Write the network as a model folder, unless it is there."""
    if not (folder / "model.json").exists():
        opened = open_lite0()
        save_model(
            folder,
            opened.model,
            **opened.source,
            preprocessing=opened.preprocessing.to_json(),
            history=opened.history,
        )
    return folder


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
