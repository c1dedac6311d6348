"""Write the photographs that scikit-image bundles as JPEG files: `python photos.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from skimage import data

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def main(folder: Path) -> None:
    """Write each photograph as `FOLDER/<name>.jpg`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
