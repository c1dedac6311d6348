"""The claims of the normalization tutorial, measured on digits and Gaussians in minutes.

Every part trains or looks at small networks, seed by seed, and says what was seen: a plot under
docs/images/tutorial, its section of docs/tutorial.md, the summary in docs/normalization.md, and the
table of RESULTS.md. A part whose sentence the figures do not bear out is not written.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import textwrap
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tutorial_alternatives import ALTERNATIVES
from tutorial_common import Part, Report, summarized
from tutorial_conditioning import CONDITIONING, INPUTS
from tutorial_invariance import INVARIANCE
from tutorial_proximal import PROXIMAL
from tutorial_rates import RATE_TUNING
from tutorial_weights import WEIGHTS
from tutorial_whitening import GROUPS, STOCHASTICITY

PARTS: dict[str, Part] = {
    "conditioning": CONDITIONING,
    "inputs": INPUTS,
    "proximal": PROXIMAL,
    "invariance": INVARIANCE,
    "rates": RATE_TUNING,
    "stochasticity": STOCHASTICITY,
    "groups": GROUPS,
    "alternatives": ALTERNATIVES,
    "weights": WEIGHTS,
}

Results = dict[str, dict[str, float]]
"""The figures of a part and seed, by "part/seed"."""

DOCS = Path(__file__).resolve().parents[1] / "docs"
IMAGES = DOCS / "images" / "tutorial"


def main() -> None:
    options = _arguments()
    results = _measured(options)
    found = {name: _report(name, results, options.seeds) for name in PARTS}
    reports = {name: each for name, each in found.items() if each is not None}
    for name in options.parts:
        print(_body(name, reports[name]), "\n")
        if options.plots is not None:
            _draw(name, reports[name], options.plots)
    if not options.dry_run:
        _write(reports, results, options)
    said = [(name, each) for name in options.parts for each in reports[name].claims]
    if unborne := [f"{name}: {each.text}" for name, each in said if not each.holds]:
        raise SystemExit("\n".join(["not borne out, and not written:", *unborne]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    state = Path(tempfile.gettempdir()) / "normapps-tutorial.json"
    parser.add_argument("--state", type=Path, default=state, help="what is done; kept at the end")
    parser.add_argument("--again", action="store_true", help="measure the parts once more")
    parser.add_argument("--plots", type=Path, help="a folder for the plots, too")
    parser.add_argument("--dry-run", action="store_true", help="print, write no document")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    if unknown := [each for each in options.parts if each not in PARTS]:
        parser.error(f"unknown part '{unknown[0]}'; there are {', '.join(PARTS)}")
    return options


def _measured(options: argparse.Namespace) -> Results:
    """The figures by part and seed; what an earlier run left in the state file is not repeated."""
    results: Results = {}
    if options.state.exists():
        results = json.loads(options.state.read_text())
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.parts]
    missing = [each for each in wanted if options.again or f"{each[0]}/{each[1]}" not in results]
    failed: list[BaseException] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        running = {pool.submit(_measure, *each): each for each in missing}
        for done in as_completed(running):
            name, seed = running[done]
            if (error := done.exception()) is not None:
                failed.append(error)
                continue
            results[f"{name}/{seed}"] = done.result()
            options.state.write_text(json.dumps(results))
            print(f"{name}, seed {seed}: {done.result()['seconds']:.0f} s", flush=True)
    if failed:  # after the others, which are kept
        raise failed[0]
    return results


def _measure(name: str, seed: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    start = time.process_time()
    return {**PARTS[name].measure(seed), "seconds": time.process_time() - start}


def _report(name: str, results: Results, seeds: int) -> Report | None:
    """What a part says, where all its seeds are done."""
    rows = [results.get(f"{name}/{seed}") for seed in range(seeds)]
    found = [each for each in rows if each is not None]
    return PARTS[name].report(summarized(found)) if len(found) == seeds else None


def _write(reports: Mapping[str, Report], results: Results, options: argparse.Namespace) -> None:
    """Write the documents and plots; what is not borne out stays as it was."""
    from results import conditions, write_section

    where = conditions(("normapps", "torch", "scikit-learn"))
    for name in options.parts:
        report, title = reports[name], PARTS[name].title
        if not report.is_borne_out:
            continue
        _draw(name, report, IMAGES)
        write_section(f"tutorial-{name}", _body(name, report), DOCS / "tutorial.md")
        seconds = sum(results[f"{name}/{seed}"]["seconds"] for seed in range(options.seeds))
        text = (
            f"`python benchmarks/tutorial.py {name} --seeds {options.seeds}`: means and 95 % "
            f"intervals, geometric where in brackets; {seconds:.0f} s of processor time."
        )
        body = [f"## Tutorial: {title}", _wrapped(text), report.table, where]
        write_section(f"tutorial-{name}", "\n\n".join(body))
    if len(reports) == len(PARTS) and all(each.is_borne_out for each in reports.values()):
        write_section("tutorial", _summary(reports), DOCS / "normalization.md")


def _draw(name: str, report: Report, folder: Path) -> None:
    from PIL import Image

    from normapps.measure.plots import render

    folder.mkdir(parents=True, exist_ok=True)
    drawn = Image.open(io.BytesIO(render(report.plot))).convert("RGB")
    small = drawn.quantize(128, dither=Image.Dither.NONE)
    small.save(folder / f"{name}.png", optimize=True)


def _body(name: str, report: Report) -> str:
    said = " ".join(each.text for each in report.claims)
    picture = f"![{report.caption}](images/tutorial/{name}.png)"
    title = f"## {PARTS[name].title}"
    return "\n\n".join([title, _wrapped(report.setting), picture, _wrapped(said), report.table])


def _summary(reports: Mapping[str, Report]) -> str:
    """The first sentence of each part."""
    lines = [
        f"- [{part.title}](tutorial.md#{part.title.lower().replace(' ', '-')}): "
        f"{reports[name].claims[0].text}"
        for name, part in PARTS.items()
    ]
    return "\n".join(_wrapped(line, "  ") for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    main()
