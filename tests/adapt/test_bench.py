"""One method over one order: its answers are those of the method, by hand, batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.bench import Bench
from normapps.adapt.methods import create_method
from normapps.adapt.runs import Run, batches_of
from normapps.data.appearance import match_histogram
from normapps.data.corruptions import corrupt
from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import small_cnn

SMALL = Preprocessing((8, 8), (8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = small_cnn(5, width=4)
    model.train()
    for _ in range(3):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


@pytest.fixture
def pool(photos: dict[str, np.ndarray]) -> Pool:
    parts = [photos["china"][8 * i : 8 * i + 8, 100:108] for i in range(23)]
    return Pool(torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous())


def no_tick() -> None:
    pass


def by_hand(model: nn.Module, pool: Pool, run: Run) -> dict[str, Tensor]:
    """The protocol in a plain loop."""
    online = create_method(run.method, model)
    logits = {name: torch.zeros(len(pool), 5) for name in run.domains}
    for parts in batches_of(run, len(pool)):
        pictures = []
        for domain, indices in parts:
            for i in indices.tolist():
                plain = pool.images[i].permute(1, 2, 0).numpy()
                if domain != "clean":
                    name, severity = domain.split(":")
                    plain = corrupt(plain, name, int(severity), (run.seed, i))
                pictures.append(torch.from_numpy(plain.copy()).permute(2, 0, 1))
        answers = online((torch.stack(pictures).float() / 255 - 0.5) / 0.25)
        for (domain, indices), part in zip(
            parts, answers.split([len(indices) for _, indices in parts]), strict=True
        ):
            logits[domain][indices] = part
    return logits


@pytest.mark.parametrize("method", ["source", "adabn", "prior", "ema", "cumulative", "tent"])
@pytest.mark.parametrize(
    ("stream", "domains"),
    [("shift", ("fog:3",)), ("continual", ("clean", "fog:3")), ("mixed", ("clean", "fog:3"))],
)
def test_cells_are_the_methods_answers(
    method: str, stream: str, domains: tuple[str, ...], model: nn.Module, pool: Pool
) -> None:
    run = Run(stream, domains, method, 5, 3)
    ticks: list[int] = []
    cells = Bench(model, pool, SMALL).run(run, None, lambda: ticks.append(1))
    wanted = by_hand(model, pool, run)
    assert [cell.domain for cell in cells] == list(domains)
    assert len(ticks) == len(batches_of(run, len(pool)))
    for cell in cells:
        assert not cell.note
        assert cell.predictions == tuple(wanted[cell.domain].argmax(1).tolist())
        shares = wanted[cell.domain].double().softmax(1)
        assert cell.entropy == pytest.approx(float(-(shares * shares.log()).sum(1).mean()), 1e-5)
        assert cell.seconds > 0


def test_a_run_leaves_the_model_as_it_was(model: nn.Module, pool: Pool) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bench = Bench(model, pool, SMALL)
    first = bench.run(Run("shift", ("clean",), "tent", 8, 0), None, no_tick)
    again = bench.run(Run("shift", ("clean",), "tent", 8, 0), None, no_tick)
    assert first[0].predictions == again[0].predictions
    assert first[0].entropy == again[0].entropy
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_histograms_are_matched_before_the_model(
    model: nn.Module, pool: Pool, coffee: np.ndarray
) -> None:
    bench = Bench(model, pool, SMALL, (coffee,))
    (cell,) = bench.run(Run("shift", ("clean",), "histogram", 8, 0), None, no_tick)
    changed = [match_histogram(x.permute(1, 2, 0).numpy(), coffee) for x in pool.images]
    inputs = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        wanted = model((inputs - 0.5) / 0.25).argmax(1)
    assert cell.predictions == tuple(wanted.tolist())


def test_what_cannot_be_run_says_why(model: nn.Module, pool: Pool) -> None:
    bench = Bench(model, pool, SMALL)
    (cell,) = bench.run(Run("shift", ("clean",), "adabn", 1, 0), None, no_tick)
    assert (cell.note, cell.predictions) == ("needs 2", ())
    (cell,) = bench.run(Run("sorted", ("clean",), "source", 8, 0), None, no_tick)
    assert "needs a label of every sample" in cell.note
    bare = Bench(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), pool, SMALL)
    (cell,) = bare.run(Run("shift", ("clean",), "adabn", 8, 0), None, no_tick)
    assert "no normalization layer" in cell.note
    (cell,) = bare.run(Run("shift", ("clean",), "source", 8, 0), None, no_tick)
    assert not cell.note


class _Exploding(nn.Module):
    """Finite on the first picture alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits if len(x) == 1 else logits / 0


def test_outputs_that_are_not_finite_are_no_answers(pool: Pool) -> None:
    bench = Bench(_Exploding().eval(), pool, SMALL, (pool.images[0].permute(1, 2, 0).numpy(),))
    (cell,) = bench.run(Run("shift", ("clean",), "source", 8, 0), None, no_tick)
    assert "NaN or infinite" in cell.note
    (cell,) = bench.run(Run("shift", ("clean",), "fda", 8, 0), None, no_tick)
    assert cell.note == "its outputs became not finite"
    broken = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    nn.init.constant_(broken[1].weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite on the first picture"):
        Bench(broken, pool, SMALL)


def test_memory_is_that_of_the_run(model: nn.Module, pool: Pool) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel does not let go of the peak")
    held = 400_000_000
    run = Run("shift", ("clean",), "source", 8, 0)
    plain, greedy = Bench(model, pool, SMALL), Bench(_Greedy(model, held).eval(), pool, SMALL)
    first, peak, last = (
        each.run(run, None, no_tick)[0].peak_bytes for each in (plain, greedy, plain)
    )
    assert first is not None
    assert peak is not None
    assert last is not None
    assert peak > first + 0.9 * held
    assert last < peak - 0.9 * held


class _Greedy(nn.Module):
    """Takes and gives back memory beside its work."""

    def __init__(self, model: nn.Module, held: int) -> None:
        super().__init__()
        self.model, self.held = model, held

    def forward(self, x: Tensor) -> Tensor:
        ballast = torch.ones(self.held, dtype=torch.uint8)
        logits: Tensor = self.model(x) * ballast[0]
        return logits
