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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from gan_card import publish_run
from gan_results import FAKES, conditions_of, publish, row, say, scored
from gan_study import study
from results import table
from sngan_plain import PlainGan
from torch import Tensor

from normapps.data.pool import Pool
from normapps.engine.device import resolve_device
from normapps.engine.distributed import World
from normapps.gan.data import Draws
from normapps.gan.networks import Shape, make_networks
from normapps.gan.options import TrainOptions
from normapps.gan.run import open_run
from normapps.gan.train import train
from normapps.gan.trainer import GanTrainer
from normapps.gan.watch import Watch

ART_STEPS, CIFAR_STEPS = 20_000, 50_000
ART_WIDTH = 512
SPEED_WIDTH = 64


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
    parser.add_argument(
        "--width", type=int, help=f"of the networks, else the recipe's; of speed {SPEED_WIDTH}"
    )
    parser.add_argument("--seeds", type=int, default=2, help="of study")
    parser.add_argument("--steps", type=int, help="of every training, else the recipe's")
    parser.add_argument("--fakes", type=int, help=f"drawn for a score; study's own, else {FAKES}")
    parser.add_argument("--extractor", help="that scores, else fmnist-cnn, of cifar and art lite0")
    parser.add_argument("--rounds", type=int, default=7, help="of speed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="of the trainings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


# Larger pictures


def cifar(options: argparse.Namespace) -> None:
    """SNGAN for 32 pixels as published, on CIFAR-10's JPEG copy."""
    chosen = TrainOptions(
        data=str(_cifar(options)), config="sngan-32", steps=options.steps or CIFAR_STEPS,
        width=options.width, d_width=options.width,
        batch_size=options.batch_size, device=options.device, precision=options.precision,
        save_every=1000, sample_every=2500,
    )  # fmt: skip
    told = "CIFAR-10, a lossy JPEG copy: compare with no figure of the lossless set."
    _train_and_score("cifar", "SNGAN for 32 px on CIFAR-10", told, chosen, options)


def art(options: argparse.Namespace) -> None:
    """64 pixels on two thousand paintings, for which the real ones are augmented, too."""
    chosen = TrainOptions(
        data=str(options.shared / "data" / "pacs_art_painting.tar"), config="sngan-64",
        steps=options.steps or ART_STEPS, width=options.width or ART_WIDTH,
        d_width=options.width or ART_WIDTH, n_dis=2, flip=True,
        augment="color,translation,cutout", batch_size=options.batch_size, device=options.device,
        precision=options.precision, save_every=1000, sample_every=2500,
    )  # fmt: skip
    told = "PACS's art paintings (2048), DiffAugment (color, translation, cutout), mirrored."
    _train_and_score("art", "SNGAN for 64 px on paintings", told, chosen, options)


def _train_and_score(
    name: str, title: str, told: str, chosen: TrainOptions, options: argparse.Namespace
) -> None:
    folder = options.runs / name
    train(chosen, folder, say=say)
    run = open_run(folder)
    scoring, trained, untrained = scored(run, "lite0", options)
    recipe = run.options
    body = [
        f"## {title}",
        f"{told} {run.done} of {run.steps} steps, {recipe.n_dis} discriminator steps of "
        f"{recipe.batch_size} pictures each, widths {recipe.width} and {recipe.d_width}, "
        f"{recipe.precision}.",
        "\n".join(f"- {line}" for line in scoring.lines),
        table(["generator", *trained], [row("trained", trained), row("untrained", untrained)]),
        conditions_of(options),
    ]
    publish(f"gan-{name}", body, options)


def _cifar(options: argparse.Namespace) -> Path:
    """The decoded set as an .npz that `gan train --data` takes."""
    from slim_data import cifar_material

    cifar_material(options.shared, options.runs)
    return Path(options.runs / "cifar10.npz")


# Speed


def speed(options: argparse.Namespace) -> None:
    """Time our step beside the usual one, in turn."""
    width = options.width or SPEED_WIDTH
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
        f"{2 * options.batch_size}, width {width} in both networks, grey at 28 px and RGB "
        "at 32. Plain: the same recipe as it is usually written (`benchmarks/sngan_plain.py`): "
        "torch's `spectral_norm`, upsampling then convolution, convolution then pooling, real and "
        f"fake in two passes, eager; both in the same precision. Median of {options.rounds} rounds "
        "in which the two take turns.",
        table(["pictures", "precision", "normapps", "plain", "ratio"], rows),
        conditions_of(options),
    ]
    publish("gan-speed", body, options)


def _timed(
    size: int, is_half: bool, device: torch.device, options: argparse.Namespace
) -> tuple[float, float]:
    """Seconds a step of ours and of the plain implementation."""
    channels, width = 1 if size == 28 else 3, options.width or SPEED_WIDTH
    recipe = TrainOptions(
        data="noise", config=f"sngan-{size}", width=width, d_width=width,
        batch_size=options.batch_size, steps=1_000_000,
    ).resolved()  # fmt: skip
    noise = torch.randint(256, (2048, channels, size, size), dtype=torch.uint8)
    feed = Draws(Pool(noise), options.batch_size, 0, World(), device)
    ours = GanTrainer(
        make_networks(recipe, Shape(channels), device), feed, recipe, Watch(1.0), World(), device,
        torch.bfloat16 if is_half else torch.float32,
    )  # fmt: skip
    plain = PlainGan(
        size, channels, recipe.latent, width, options.batch_size, recipe.n_dis,
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


TASKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "study": study,
    "cifar": cifar,
    "art": art,
    "speed": speed,
    "publish": publish_run,
}


if __name__ == "__main__":
    main()
