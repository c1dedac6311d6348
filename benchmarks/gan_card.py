"""`gan.py publish`: the generator of a run becomes `pretrained/sngan-fmnist`, with its card."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from gan_results import REPOSITORY, row, scored
from results import table

from normapps.files import sha256, write_text
from normapps.gan.opening import GENERATOR
from normapps.gan.options import TrainOptions
from normapps.gan.run import Run, open_run
from normapps.models.folder import MANIFEST, WEIGHTS
from normapps.options import flag

SHIPPED = REPOSITORY / "pretrained" / "sngan-fmnist"
MOST_BYTES = 5_000_000
LEAST_GAIN = 10
"""Times by which an untrained generator's Fréchet distance must be larger."""


def publish_run(options: argparse.Namespace) -> None:
    """Copy the generator of a run to pretrained/sngan-fmnist, if it is good and small enough."""
    if options.run is None:
        raise SystemExit("publish: name the run, such as runs/gan/study/sn-0")
    run = open_run(options.run)
    scoring, trained, untrained = scored(run, "fmnist-cnn", options)
    first = next(iter(trained))
    print({"trained": dict(trained), "untrained": dict(untrained)})
    if LEAST_GAIN * trained[first] > untrained[first]:
        raise SystemExit(
            f"{options.run}: {first} {trained[first]:.4g}, untrained {untrained[first]:.4g}: "
            f"less than {LEAST_GAIN} times better; train on"
        )
    size = sum(file.stat().st_size for file in (options.run / GENERATOR).iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"{options.run}: {size / 1e6:.1f} MB; take a smaller --width")
    if options.dry_run:
        return
    SHIPPED.mkdir(parents=True, exist_ok=True)
    for file in (options.run / GENERATOR).iterdir():
        shutil.copy(file, SHIPPED / file.name)
    write_text(SHIPPED / "README.md", card(run, SHIPPED, trained, untrained, scoring.lines))
    print(SHIPPED)


def card(
    run: Run,
    folder: Path,
    trained: Mapping[str, float],
    untrained: Mapping[str, float],
    lines: tuple[str, ...],
) -> str:
    """Return the card of a shipped generator, Markdown."""
    names = list(trained)
    scores = table(["generator", *names], [row("this one", trained), row("untrained", untrained)])
    entry = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["history"][-1]
    count = sum(each.numel() for each in run.generator().parameters())
    classes = ", ".join(run.shape.classes)
    drawn = f" `--class` chooses one of {classes}." if classes else ""
    return f"""# {folder.name}

A generator of Fashion-MNIST's clothes, 28×28 grey. {count:,} parameters; its discriminator was
normalized by `--d-norm {run.options.d_norm}`.

## Architecture
`sngan-generator` (`normapps/models/sngan.py`): SNGAN's residual generator (Miyato et al. 2018) for
28 pixels, width {run.options.width}; latents of {run.options.latent} numbers, z ~ N(0, I).{drawn}
Parameters averaged over training (decay {run.options.ema:g}), batch norms with standing statistics
of {entry["standing"]:,} latents; `running.safetensors` has those of training, for `--bn running`.

## Use
    normapps gan sample -m {folder.name} --seeds 0-63 -o grid.png

## Data
Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence), the 60,000 pictures to learn from, as in
Debian's `dataset-fashion-mnist`. No picture is part of the package.

## Recipe
    {command(run.options)}

torch {entry["torch"]}, {entry["step"]} steps.

## Measured
{chr(10).join(f"- {line}" for line in lines)}

{scores}

sha256 of `{WEIGHTS}`:
`{sha256(folder / WEIGHTS)}`

## Licence
Apache-2.0, as the package.

## Limits
- Small grey pictures of ten kinds of clothes, and nothing else.
- The scores are of our own extractor and no FID: compare with nothing but the same extractor, hash
  and protocol.
"""


def command(options: TrainOptions) -> str:
    """The command that trains such a run: what differs from the defaults."""
    plain = TrainOptions(config=options.config, batch_size=options.batch_size)
    usual = vars(plain.resolved()) | {"config": "sngan-32", "batch_size": 64}
    skipped = ("data", "device", "stop_after", "overwrite", "save_every", "sample_every")
    words = [f"--data {Path(options.data).name}"]
    for name, value in vars(options).items():
        if name not in skipped and value != usual[name]:
            words.append(f"{flag(name)} {value}" if value is not True else flag(name))
    return f"normapps gan train {' '.join(words)} -o RUN"
