"""The steps of `normapps stylize PHOTO --style PAINTING -o OUT`, one after the other and timed.

Run as `stages.py PHOTO PAINTING OUT MODEL` in a fresh process; prints [[step, seconds], …].
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    photo, painting, out, model = sys.argv[1:]
    steps: list[tuple[str, float]] = []
    last = time.perf_counter()

    def done(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps.append((step, now - last))
        last = now

    import normapps.cli.main

    done("import of the command line")
    import torch  # noqa: F401

    done("import of torch")
    import normapps.style.job  # noqa: F401
    from normapps.data.images import read_image, write_image
    from normapps.style.stylizer import Stylizer

    done("import of the rest")
    stylizer = Stylizer.load(model, device="cpu")
    done("loading the network")
    content, style = read_image(photo), read_image(painting)
    done("reading two JPEGs")
    encoded = stylizer.style(style)
    done("encoding the style")
    result = stylizer(content, encoded)
    done("painting")
    write_image(result, out, overwrite=True)
    done("writing the JPEG")
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
