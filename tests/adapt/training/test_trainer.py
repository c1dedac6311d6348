"""A trainer's steps: which optimizer, which terms."""

from __future__ import annotations

from dataclasses import replace

import torch

from normapps.adapt.training.methods import make_method
from normapps.adapt.training.options import RecipeOptions
from normapps.adapt.training.sampling import Feed
from normapps.adapt.training.trainer import Trainer
from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.models.small import small_cnn


def test_momentum_and_adam_are_what_they_are_called(options: RecipeOptions) -> None:
    pool = Pool(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 0]))
    kinds = []
    for name in ("sgd", "adam"):
        chosen = replace(options, optimizer=name)
        method = make_method(small_cnn(3, 1, 8, 4), 1, 0, chosen)
        feed = Feed([pool], [], chosen, lambda x: x.float())
        trainer = Trainer(method, feed, chosen, World(), torch.device("cpu"), {})
        kinds.append(type(trainer.optimizer))
        assert set(trainer.step(0)) == {"source", "total", "grad_norm"}
    assert kinds == [torch.optim.SGD, torch.optim.AdamW]
