"""GANs on real data: which normalization, how quick, and the generator that ships.

    python benchmarks/gan.py study     none, sn, gn and wc on Fashion-MNIST, two seeds each
    python benchmarks/gan.py cifar     SNGAN for 32 pixels on CIFAR-10's JPEG copy
    python benchmarks/gan.py art       64 pixels and DiffAugment on PACS's paintings
    python benchmarks/gan.py speed     steps a second beside the usual implementation
    python benchmarks/gan.py publish RUN   the generator of a run to pretrained/sngan-fmnist

Does what --runs does not have yet and writes the table of what there is into RESULTS.md. A run that
is interrupted goes on where it stopped. Without a GPU `study` is short, and its table says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from results import conditions, table, write_section
from sngan_plain import PlainGan
from torch import Tensor

import normapps.models  # noqa: F401  (guard)
from normapps.data.pool import Pool
from normapps.engine.device import resolve_device
from normapps.engine.distributed import World
from normapps.files import sha256, write_text
from normapps.gan.compare import Outcome
from normapps.gan.compare_job import gan_compare, make_scoring
from normapps.gan.compare_options import CompareOptions, Variant
from normapps.gan.compare_report import run_table, score_names, variant_table
from normapps.gan.data import Draws
from normapps.gan.networks import Shape, make_networks
from normapps.gan.options import TrainOptions
from normapps.gan.run import Run, open_run
from normapps.gan.sampling import GENERATOR, grid, latents, open_generator, sample, standing_
from normapps.gan.train import train
from normapps.gan.trainer import GanTrainer
from normapps.gan.watch import Watch
from normapps.measure.report import Table, shown
from normapps.models.folder import MANIFEST, WEIGHTS, build
from normapps.options import flag

VARIANTS = (Variant("none"), Variant("sn"), Variant("gn"), Variant("sn", "wc"))
FULL: dict[str, Any] = {"steps": 20_000, "n_dis": 5, "score_every": 2500, "sample_every": 2500}
SHORT: dict[str, Any] = {"steps": 400, "n_dis": 1, "score_every": 100, "sample_every": 100}
"""What `study` trains for on a GPU, and on a CPU."""

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained" / "sngan-fmnist"
MOST_BYTES = 5_000_000
LEAST_GAIN = 10
"""Times by which an untrained generator's Fréchet distance must be larger."""

ART_STEPS, CIFAR_STEPS = 20_000, 50_000


def main() -> None:
    options = _arguments()
    torch.set_num_threads(options.threads)
    TASKS[options.task](options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("run", nargs="?", type=Path, help="of `publish`: the run")
    parser.add_argument("--data", default="fashion-mnist", help="of study and publish")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/gan"))
    parser.add_argument("--width", type=int, default=64, help="of study and speed")
    parser.add_argument("--seeds", type=int, default=2, help="of study")
    parser.add_argument("--steps", type=int, help="of every training, else the recipe's")
    parser.add_argument("--fakes", type=int, default=10_000, help="pictures drawn for a score")
    parser.add_argument("--extractor", help="that scores, else fmnist-cnn, of cifar and art lite0")
    parser.add_argument("--rounds", type=int, default=7, help="of speed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="of the trainings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


# Study


def study(options: argparse.Namespace) -> None:
    """Compare normalizations on Fashion-MNIST."""
    is_short = resolve_device(options.device).type == "cpu"
    recipe = dict(SHORT if is_short else FULL)
    if options.steps:
        every = max(1, options.steps // 4)
        recipe |= {"steps": options.steps, "score_every": every, "sample_every": every}
    chosen = CompareOptions(
        data=options.data, config="sngan-28", width=options.width, d_width=options.width,
        seeds=options.seeds, extractor=options.extractor or "fmnist-cnn", fakes=options.fakes,
        batch_size=options.batch_size, device=options.device, precision=options.precision, **recipe,
    )  # fmt: skip
    folder = options.runs / "study"
    found = gan_compare(folder, chosen, variants=VARIANTS, say=_say)
    pages = _grids(found.outcomes, folder)
    body = [
        "## GANs on Fashion-MNIST by normalization",
        f"SNGAN for 28 px, width {options.width} in both networks, {chosen.steps} steps, "
        f"{chosen.n_dis} discriminator steps of {chosen.batch_size} pictures each, hinge loss, "
        f"seeds 0 to {chosen.seeds - 1}. {_SHORTENED if is_short else ''}"
        "none, sn, gn: what the discriminator is normalized by; sn-wc: sn, and whitening and "
        "colouring in the place of the generator's batch norms.",
        "\n".join(f"- {line}" for line in found.report.lead[1:]),
        _markdown(variant_table(found.outcomes)),
        _markdown(run_table(found.outcomes)),
        f"{score_names(found.outcomes)[0] if score_names(found.outcomes) else 'Score'} by step, "
        "mean over the seeds; curves of the losses are in the runs' report.html:",
        _by_step(found.outcomes),
        f"Verdict of `gan compare`: {found.report.verdict.reason}.",
        *([f"Pictures: {', '.join(pages)}."] if pages else []),
        conditions(("normapps", "torch"), str(resolve_device(options.device))),
    ]
    _publish("gan-study", body, options)


_SHORTENED = (
    "**Shortened**: made without a GPU, so far too short to rank the norms; 20 000 steps with 5 "
    "discriminator steps each are the full length. "
)


def _grids(outcomes: list[Outcome], folder: Path) -> list[str]:
    """Write a page of 64 pictures a run, of the same seeds; return the paths."""
    paths = []
    for each in outcomes:
        if (each.folder / GENERATOR / MANIFEST).is_file():
            opened = open_generator(each.folder)
            pictures = sample(opened.generator, latents(range(64), opened.latent))
            path = folder / f"{each.folder.name}.png"
            grid(pictures, columns=16, scale=2).save(path)
            paths.append(path.name)
    return paths


def _by_step(outcomes: list[Outcome]) -> str:
    steps = sorted({step for each in outcomes for step in each.scores})
    rows = []
    for variant in dict.fromkeys(each.variant for each in outcomes):
        runs = [each.scores for each in outcomes if each.variant == variant]
        cells = []
        for step in steps:
            values = [next(iter(run[step].values())) for run in runs if step in run]
            cells.append(shown(sum(values) / len(values)) if values else "–")
        rows.append([variant.name, *cells])
    return table(["norm", *map(str, steps)], rows)


def _markdown(found: Table) -> str:
    return table(list(found.columns), [[shown(each) for each in row] for row in found.rows])


# Larger pictures


def cifar(options: argparse.Namespace) -> None:
    """SNGAN for 32 pixels as published, on CIFAR-10's JPEG copy."""
    chosen = TrainOptions(
        data=str(_cifar(options)), config="sngan-32", steps=options.steps or CIFAR_STEPS,
        batch_size=options.batch_size, device=options.device, precision=options.precision,
        save_every=1000, sample_every=2500,
    )  # fmt: skip
    told = "CIFAR-10, a lossy JPEG copy: compare with no figure of the lossless set."
    _train_and_score("cifar", "SNGAN for 32 px on CIFAR-10", told, chosen, options)


def art(options: argparse.Namespace) -> None:
    """64 pixels on two thousand paintings, for which the real ones are augmented, too."""
    chosen = TrainOptions(
        data=str(options.shared / "data" / "pacs_art_painting.tar"), config="sngan-64",
        steps=options.steps or ART_STEPS, width=512, d_width=512, n_dis=2, flip=True,
        augment="color,translation,cutout", batch_size=options.batch_size, device=options.device,
        precision=options.precision, save_every=1000, sample_every=2500,
    )  # fmt: skip
    told = "PACS's art paintings (2048), DiffAugment (color, translation, cutout), mirrored."
    _train_and_score("art", "SNGAN for 64 px on paintings", told, chosen, options)


def _train_and_score(
    name: str, title: str, told: str, chosen: TrainOptions, options: argparse.Namespace
) -> None:
    folder = options.runs / name
    train(chosen, folder, say=_say)
    run = open_run(folder)
    compared = _scored_by(chosen, options, options.extractor or "lite0")
    scoring = make_scoring(compared, _say)
    trained, untrained = (scoring.score(each) for each in (run.generator(), _untrained(folder)))
    recipe = run.options
    body = [
        f"## {title}",
        f"{told} {run.done} of {run.steps} steps, {recipe.n_dis} discriminator steps of "
        f"{recipe.batch_size} pictures each, widths {recipe.width} and {recipe.d_width}, "
        f"{recipe.precision}.",
        "\n".join(f"- {line}" for line in scoring.lines),
        table(["generator", *trained], [_row("trained", trained), _row("untrained", untrained)]),
        conditions(("normapps", "torch"), str(resolve_device(options.device))),
    ]
    _publish(f"gan-{name}", body, options)


def _cifar(options: argparse.Namespace) -> Path:
    """The decoded set as an .npz that `gan train --data` takes."""
    from slim_data import cifar_material

    cifar_material(options.shared, options.runs)
    return Path(options.runs / "cifar10.npz")


def _scored_by(chosen: TrainOptions, options: argparse.Namespace, extractor: str) -> CompareOptions:
    return CompareOptions(
        data=chosen.data, config=chosen.config, width=chosen.width, d_width=chosen.d_width,
        d_norms="sn", extractor=extractor, fakes=options.fakes, device=options.device,
    )  # fmt: skip


def _untrained(folder: Path) -> torch.nn.Module:
    """The generator that a run began with but for the seed, in its place."""
    opened = open_generator(folder)
    generator = build(opened.manifest.builder, opened.manifest.arguments, seed=0).eval()
    standing_(generator)
    return generator


def _row(name: str, values: Any) -> list[str]:
    return [name, *(shown(float(each)) for each in values.values())]


# Speed


def speed(options: argparse.Namespace) -> None:
    """Time our step beside the usual one, in turn."""
    device = resolve_device(options.device)
    rows = []
    for size in (28, 32):
        for precision in ("float32", "bfloat16"):
            ours, theirs = _timed(size, precision == "bfloat16", device, options)
            rates = f"{1 / ours:.3g}", f"{1 / theirs:.3g}", f"{theirs / ours:.2f}×"
            rows.append([f"{size} px", precision, *rates])
            print(rows[-1], flush=True)
    body = [
        "## Training steps a second",
        f"A step is 5 discriminator steps of {options.batch_size} pictures and a generator step of "
        f"{2 * options.batch_size}, width {options.width} in both networks, grey at 28 px and RGB "
        "at 32. Plain: the same recipe as it is usually written (`benchmarks/sngan_plain.py`): "
        "torch's `spectral_norm`, upsampling then convolution, convolution then pooling, real and "
        f"fake in two passes, eager; both in the same precision. Median of {options.rounds} rounds "
        "in which the two take turns.",
        table(["pictures", "precision", "normapps", "plain", "ratio"], rows),
        conditions(("normapps", "torch"), str(device)),
    ]
    _publish("gan-speed", body, options)


def _timed(
    size: int, is_half: bool, device: torch.device, options: argparse.Namespace
) -> tuple[float, float]:
    """Seconds a step of ours and of the plain implementation."""
    channels = 1 if size == 28 else 3
    recipe = TrainOptions(
        data="noise", config=f"sngan-{size}", width=options.width, d_width=options.width,
        batch_size=options.batch_size, steps=1_000_000,
    ).resolved()  # fmt: skip
    noise = torch.randint(256, (2048, channels, size, size), dtype=torch.uint8)
    feed = Draws(Pool(noise), options.batch_size, 0, World(), device)
    ours = GanTrainer(
        make_networks(recipe, Shape(channels), device), feed, recipe, Watch(1.0), World(), device,
        torch.bfloat16 if is_half else torch.float32,
    )  # fmt: skip
    plain = PlainGan(
        size, channels, recipe.latent, options.width, options.batch_size, recipe.n_dis,
        recipe.steps or 1, device, is_half,
    )  # fmt: skip
    batches = _endless(feed)
    steps: tuple[Callable[[int], object], ...] = (
        ours.step,
        lambda index: plain.step(index, batches),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    warm = 2 if device.type == "cpu" else 20
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        for index in range(warm + options.rounds):
            for which in (0, 1) if index % 2 else (1, 0):
                taken = _seconds(lambda w=which, i=index: steps[w](i), device)
                if index >= warm:
                    seconds[which].append(taken)
    return median(seconds[0]), median(seconds[1])


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work; the device has nothing to do before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _nothing() -> None: ...


def _endless(feed: Draws) -> Iterator[Tensor]:
    index = 0
    while True:
        yield feed.batch(index)[0]
        index += 1


# The generator that ships


def publish(options: argparse.Namespace) -> None:
    """Copy the generator of a run to pretrained/sngan-fmnist, if it is good and small enough."""
    if options.run is None:
        raise SystemExit("publish: name the run, such as runs/gan/study/sn-0")
    run = open_run(options.run)
    scoring = make_scoring(
        _scored_by(run.options, options, options.extractor or "fmnist-cnn"), _say
    )
    trained, untrained = (
        scoring.score(each) for each in (run.generator(), _untrained(options.run))
    )
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


def card(run: Run, folder: Path, trained: Any, untrained: Any, lines: tuple[str, ...]) -> str:
    """Return the card of a shipped generator, Markdown."""
    names = list(trained)
    scores = table(["generator", *names], [_row("this one", trained), _row("untrained", untrained)])
    entry = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["history"][-1]
    count = sum(each.numel() for each in run.generator().parameters())
    return f"""# {folder.name}

A generator of Fashion-MNIST's clothes, 28×28 grey. {count:,} parameters; its discriminator was
normalized by `--d-norm {run.options.d_norm}`.

## Architecture
`sngan-generator` (`normapps/models/sngan.py`): SNGAN's residual generator (Miyato et al. 2018) for
28 pixels, width {run.options.width}; latents of {run.options.latent} numbers, z ~ N(0, I).
Parameters averaged over training (decay {run.options.ema:g}), batch norms with standing statistics
of {entry["standing"]:,} latents; `running.safetensors` has those of training, for `--bn running`.

## Use
    normapps gan sample -m {folder.name} --seeds 0-63 -o grid.png

## Data
Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence), the 60,000 pictures to learn from, as in
Debian's `dataset-fashion-mnist`. No picture is part of the package.

## Recipe
    {_command(run.options)}

torch {entry["torch"]}, {entry["step"]} steps.

## Measured
{chr(10).join(f"- {line}" for line in lines)}

{scores}

sha256 of `{WEIGHTS}`:
`{sha256(folder / WEIGHTS)}`

## Licence
Apache-2.0, as the package.

## Limits
- Small grey pictures of ten kinds of clothes, and nothing else; without classes to choose from.
- The scores are of our own extractor and no FID: compare with nothing but the same extractor, hash
  and protocol.
"""


def _command(options: TrainOptions) -> str:
    """The command that trains such a run: what differs from the defaults."""
    plain = TrainOptions(config=options.config, batch_size=options.batch_size)
    usual = vars(plain.resolved()) | {"config": "sngan-32", "batch_size": 64}
    skipped = ("data", "device", "stop_after", "overwrite", "save_every", "sample_every")
    words = [f"--data {Path(options.data).name}"]
    for name, value in vars(options).items():
        if name not in skipped and value != usual[name]:
            words.append(f"{flag(name)} {value}" if value is not True else flag(name))
    return f"normapps gan train {' '.join(words)} -o RUN"


def _publish(name: str, parts: list[str], options: argparse.Namespace) -> None:
    body = "\n\n".join(parts)
    print(body)
    if not options.dry_run:
        write_section(name, body)


def _say(line: str) -> None:
    print(line, flush=True)


TASKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "study": study,
    "cifar": cifar,
    "art": art,
    "speed": speed,
    "publish": publish,
}


if __name__ == "__main__":
    main()
