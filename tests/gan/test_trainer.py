"""The steps of a GAN, against the equations; what stays fixed in them; compiling; processes."""

from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.func import functional_call

from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.engine.run import load_checkpoint
from normapps.gan.compiling import compile_, make_graphs, try_, use_, weights_of
from normapps.gan.networks import plain_networks
from normapps.gan.options import TrainOptions
from normapps.gan.train import Job
from normapps.gan.trainer import GanTrainer
from normapps.gan.watch import WatchError
from normapps.norm.weight import inspect

CPU = torch.device("cpu")
TINY = TrainOptions(
    config="sngan-28", width=4, d_width=4, latent=8, steps=4, batch_size=4, n_dis=2,
    device="cpu", precision="float32",
)  # fmt: skip


def pictures(count: int = 32) -> Pool:
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=drawn)
    return Pool(images, torch.arange(count) % 3, ("a", "b", "c"))


def trainer(**change: Any) -> GanTrainer:
    options = replace(TINY, **change).resolved()
    return Job(options, pictures(), World(), CPU, lambda line: None).trainer


def test_two_steps_are_those_of_the_equations() -> None:
    """Hinge, Adam (0, 0.9), a rate that falls to 0, five lines a step; no norm in D, BN in G."""
    found = trainer(d_norm="none", ema=0.5, lr_g=1e-3, lr_d=2e-3)
    networks = copy.deepcopy(found.networks)
    g, d, average = networks.generator, networks.discriminator, networks.average
    adam_g = torch.optim.Adam(g.parameters(), betas=(0.0, 0.9), foreach=False)
    adam_d = torch.optim.Adam(d.parameters(), betas=(0.0, 0.9), foreach=False)
    for step in range(2):
        torch.manual_seed(step)
        told = found.step(step)
        torch.manual_seed(step)
        adam_g.param_groups[0]["lr"] = 1e-3 * (1 - step / 4)
        adam_d.param_groups[0]["lr"] = 2e-3 * (1 - step / 4)
        losses = []
        for turn in range(2):
            real = found.feed.batch(2 * step + turn)[0]
            fake = g(torch.randn(4, 8)).detach()
            loss = F.relu(1 - d(real)).mean() + F.relu(1 + d(fake)).mean()
            losses.append(loss.item())
            adam_d.zero_grad()
            loss.backward()
            adam_d.step()
        loss = -d(g(torch.randn(8, 8))).mean()
        adam_g.zero_grad()
        loss.backward()
        adam_g.step()
        keep = min(0.5, (1 + step) / (10 + step))
        for kept, new in zip(average.parameters(), g.parameters(), strict=True):
            kept.data = keep * kept.data + (1 - keep) * new.data
        assert told["d_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert told["g_loss"] == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
    for ours, theirs in ((found.networks.discriminator, d), (found.networks.generator, g),
                         (found.networks.average, average)):  # fmt: skip
        near = agreeing(ours, theirs)
        assert near > 0.995, near


def agreeing(ours: nn.Module, theirs: nn.Module) -> float:
    """Share of equal weights, without biases whose gradient a batch norm makes 0 but for noise."""
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    near = [
        torch.isclose(value, other, rtol=1e-4, atol=2e-5).flatten()
        for (name, value), other in pairs
        if not re.search(r"(conv\d|shortcut)\.bias", name)
    ]
    assert len(near) > 10
    return float(torch.cat(near).float().mean())


def test_rates_fall_to_nothing_over_the_run() -> None:
    found = trainer(steps=4, lr_g=0.4, lr_d=0.8)
    rates = []
    for step in range(4):
        found._set_rates(step)
        groups = found.optimizer_g.param_groups + found.optimizer_d.param_groups
        rates.append([each["lr"] for each in groups])
    assert rates == [pytest.approx([0.4 * k, 0.8 * k]) for k in (1.0, 0.75, 0.5, 0.25)]


def test_the_discriminator_stands_still_in_the_generators_step_and_learns_again_after() -> None:
    found = trainer()
    found._discriminator_step(0)
    before = copy.deepcopy(dict(found.networks.discriminator.named_parameters()))
    found._generator_step()
    for name, value in found.networks.discriminator.named_parameters():
        assert torch.equal(value, before[name]), name
        assert value.requires_grad
    found._discriminator_step(1)
    after = dict(found.networks.discriminator.named_parameters())
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_weights_are_normalized_once_a_discriminator_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real and drawn pictures share a pass; the generator's step and the next one's share one."""
    from normapps.norm.weight import spectral

    found = trainer(n_dis=3)
    found.step(0)
    counted: list[int] = []
    iterate = spectral.iterate

    def counting(*arguments: Any, **named: Any) -> Any:
        counted.append(1)
        return iterate(*arguments, **named)

    monkeypatch.setattr(spectral, "iterate", counting)
    found.step(1)
    layers = len(inspect(found.networks.discriminator))
    assert len(counted) == 3 * layers


def test_spectral_vectors_and_losses_stay_in_float32_where_the_rest_is_half() -> None:
    found = trainer(precision="bfloat16")
    seen: list[torch.dtype] = []
    found.networks.generator.get_submodule("blocks.0.conv1").register_forward_hook(
        lambda module, given, out: seen.append(out.dtype)
    )
    found.step(0)
    assert set(seen) == {torch.bfloat16}
    tensors = found.state()[0]
    assert {each.dtype for each in tensors.values() if each.is_floating_point()} == {torch.float32}
    whole = trainer()
    whole.step(0)
    name = "discriminator.linear.parametrizations.weight.original"
    assert not torch.equal(tensors[name], whole.state()[0][name])


@pytest.mark.parametrize("sigma", ["reshape", "conv"])
def test_a_checkpoint_after_one_step_knows_the_spectral_vectors(sigma: str) -> None:
    """Whose first change has come in that step: nothing is left to be measured anew."""
    change: dict[str, Any] = {"n_dis": 1, "sigma": sigma, "precision": "bfloat16"}
    whole, parts = trainer(**change), trainer(**change)
    torch.manual_seed(0)
    whole.step(0)
    parts.restore(*copy.deepcopy(whole.state()))
    for each in (whole, parts):
        torch.manual_seed(1)
        each.step(1)
    states = [each.state()[0] for each in (whole, parts)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_average_follows_parameters_and_not_buffers() -> None:
    found = trainer(ema=0.0)
    found.step(0)
    generator, average = found.networks.generator, found.networks.average
    for mine, theirs in zip(average.parameters(), generator.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert not any("running" in name for name in found.state()[0] if name.startswith("average"))


@pytest.mark.parametrize("penalty", ["gp", "r1"])
def test_a_penalty_weighs_on_the_discriminator(penalty: str) -> None:
    weak, strong = (trainer(**{penalty: weight}) for weight in (0.01, 100.0))
    for each in (weak, strong):
        torch.manual_seed(0)
        each._discriminator_step(0)
    pair = [
        torch.cat([p.flatten() for p in each.networks.discriminator.parameters()])
        for each in (weak, strong)
    ]
    assert not torch.equal(*pair)


def test_a_loss_that_is_not_finite_stops_before_it_can_be_saved() -> None:
    found = trainer(lr_g=1e30, lr_d=1e30, d_norm="none")
    with pytest.raises(WatchError, match="is not finite; begin anew with lower --lr-g"):
        [found.step(step) for step in range(4)]


def test_scores_come_with_their_steps_and_change_nothing() -> None:
    told = []
    for score in (None, lambda: {"fd": float(torch.randn(()))}):
        found = trainer(score_every=2)
        found._score = score
        torch.manual_seed(0)
        told.append([found.step(step) for step in range(4)])
    assert ["fd" in values for values in told[1]] == [False, True, False, True]
    assert told[0][3]["g_loss"] == told[1][3]["g_loss"]


def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch.compile trace only, without a compiler: what is traced is what is run."""
    whole = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **how: whole(f, backend="eager", fullgraph=True, **how)
    )


def test_compiled_networks_take_the_same_steps_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are one trace: static shapes, weights normalized outside of the graph."""
    traced(monkeypatch)
    counters.clear()
    change = {"cond": True, "precision": "bfloat16"}
    found, plain = trainer(n_dis=1, **change), trainer(n_dis=1, **change)
    use_(found, *make_graphs(found))
    for step in range(2):
        told = []
        for each in (found, plain):
            torch.manual_seed(step)
            told.append(each.step(step))
            told[-1].pop("images_per_s")
        assert told[0] == told[1]
    states = [each.state()[0] for each in (found, plain)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    # generator with and without gradients, discriminator with and without those of weights
    assert counters["stats"]["unique_graphs"] == 4


def test_a_gradient_normalized_discriminator_is_not_compiled() -> None:
    found = trainer(d_norm="gn")
    drawing, judging = make_graphs(found)
    assert judging is None
    use_(found, drawing, judging)
    assert found.judge is found.networks.discriminator


@pytest.mark.parametrize("change", [{"cond": True}, {"d_norm": "ws"}, {"d_norm": "none"}])
def test_weights_are_handed_in_under_their_plain_names_with_gradients(
    change: dict[str, Any],
) -> None:
    found = trainer(**change)
    discriminator = found.networks.discriminator
    weights = weights_of(discriminator)
    plain = plain_networks(found.networks.generator, found.options)[1]
    assert weights.keys() == plain.state_dict().keys()
    real = found.feed.batch(0)
    assert torch.equal(functional_call(plain, weights, real), discriminator(*real))
    sum(each.sum() for each in weights.values()).backward()
    assert all(each.grad is not None for each in discriminator.parameters())


def test_a_cpu_is_told_that_it_does_not_pay() -> None:
    found, said = trainer(), list[str]()
    assert not compile_(found, said.append)
    assert len(said) == 1
    assert said[0].startswith("--compile: is for a GPU")
    assert found.judge is found.networks.discriminator


def test_what_cannot_be_compiled_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: Callable[..., Tensor], **how: bool) -> Callable[..., Tensor]:
        def raising(*given: Any) -> Tensor:
            raise RuntimeError("no compiler\nmany lines")

        return raising

    monkeypatch.setattr(torch, "compile", failing)
    found = trainer()
    said: list[str] = []
    before = copy.deepcopy(found.state()[0])
    assert not try_(found, said.append)
    assert said == ["--compile: cannot (RuntimeError: no compiler); goes on uncompiled"]
    assert all(torch.equal(value, before[name]) for name, value in found.state()[0].items())
    found.step(0)


_TWO = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from normapps.engine.distributed import world
from normapps.gan.options import TrainOptions
from normapps.gan.train import train
from normapps.gan.trainer import GanTrainer
folder, options = Path({folder!r}), {options!r}
rank, step = sys.argv[1], GanTrainer.step
def keeping(self, number):
    values = step(self, number)
    torch.save(self.state()[0], folder / f"{{rank}}.pt")
    torch.save(self.feed.batch(0)[0], folder / f"real{{rank}}.pt")
    return values
GanTrainer.step = keeping
with world(torch.device("cpu")):
    train(replace(options, stop_after=1), folder / "parts", say=print)
    train(options, folder / "parts", say=print)
    train(options, folder / "whole", say=print)
"""


def two_processes(script: Path) -> list[str]:
    """Run a script as torchrun does, without a third process; return what each says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in ("0", "1"):
        each = {**place, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        started.append(
            subprocess.Popen(
                [sys.executable, str(script), rank],
                env={**os.environ, "OMP_NUM_THREADS": "1", **each},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    ended = [each.communicate() for each in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return [said for said, _ in ended]


def test_two_processes_keep_one_network_and_one_pair_of_spectral_vectors(tmp_path: Path) -> None:
    """gloo: other pictures and latents a rank, one G, D, u, v and average; exact resume."""
    data = tmp_path / "data.npz"
    np.savez(data, x_train=pictures().images.numpy()[:, 0], y_train=np.arange(32) % 3)
    chosen = replace(TINY, data=str(data), steps=3, standing=16, sample_every=0, cond=True)
    script = tmp_path / "script.py"
    script.write_text(_TWO.format(folder=str(tmp_path), options=chosen))
    said = two_processes(script)
    assert "32 pictures" in said[0]
    assert not said[1]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    apart = {name for name, value in first.items() if not torch.equal(value, second[name])}
    assert apart
    assert all("generator" in name and "running" in name for name in apart), apart
    assert sum(name.endswith("._u") for name in first) > 8
    assert not torch.equal(*(torch.load(tmp_path / f"real{rank}.pt") for rank in (0, 1)))
    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoint" / "latest.safetensors")[0]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
