"""Stand-ins of what `gan train` writes: generators' model folders, a run with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normapps.engine.loop import CHECKPOINT
from normapps.engine.run import flatten, save_checkpoint
from normapps.files import write_text
from normapps.gan.networks import Shape, make_discriminator
from normapps.gan.options import TrainOptions
from normapps.gan.sampling import standing_
from normapps.models.folder import build, save_model
from normapps.norm.population import Population
from normapps.options import to_json

SMALL: dict[str, Any] = {"size": 28, "channels": 1, "latent": 6, "width": 4, "norm": "bn"}


def make_generator(folder: Path, classes: Sequence[str] = (), **changes: Any) -> Path:
    """Write an untrained generator with standing statistics, and others as those of training."""
    by_class = {"num_classes": len(classes), "norm": "cbn"} if classes else {}
    arguments = SMALL | by_class | changes
    generator = build("sngan-generator", arguments, seed=1)
    has_population = arguments["norm"] not in ("in", "none")
    standing_(generator, 32, seed=7)
    running = Population.of(generator) if has_population else None
    standing_(generator, 64, seed=8)
    save_model(
        folder,
        generator,
        builder="sngan-generator",
        arguments=arguments,
        preprocessing={"classes": list(classes)} if classes else None,
    )
    if running is not None:
        running.save(folder / "running.safetensors")
    return folder


def make_run(folder: Path, classes: Sequence[str] = (), **changes: Any) -> Path:
    """Write a run whose networks are as they were made."""
    options = TrainOptions(
        data="x", config="sngan-28", cond=bool(classes), width=4, d_width=8, latent=6, **changes
    ).resolved()
    shape = Shape(1, tuple(classes))
    make_generator(folder / "generator", classes)
    write_text(folder / "options.json", to_json(options))
    discriminator = make_discriminator(options, shape)
    told = {"step": 1, "identity": {"channels": 1, "classes": list(classes)}}
    (folder / CHECKPOINT).parent.mkdir()
    save_checkpoint(folder / CHECKPOINT, flatten("discriminator", discriminator.state_dict()), told)
    return folder
