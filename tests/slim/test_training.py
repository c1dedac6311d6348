"""The steps of a supervised training, against the equations; resume, precision, processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from normapps.engine.run import load_checkpoint
from normapps.errors import InputError
from normapps.models.load import OpenedModel
from normapps.slim.fitting import Fitted, Recipe, fit
from normapps.slim.material import Material
from normapps.slim.train_options import SupervisedOptions, steps_of
from normapps.slim.training import SupervisedTrainer

CHECKPOINT = Path("checkpoint") / "latest.safetensors"
Make = Callable[..., OpenedModel]

PLAIN = SupervisedOptions(
    steps=4, batch_size=16, lr=0.1, warmup=0, crop=1.0, flip=0.0, jitter=0.0, device="cpu",
)  # fmt: skip


def same(one: Path, other: Path) -> bool:
    pair = [load_checkpoint(folder / CHECKPOINT) for folder in (one, other)]
    assert pair[0][0].keys() == pair[1][0].keys()
    return pair[0][1] == pair[1][1] and all(
        torch.equal(value, pair[1][0][key]) for key, value in pair[0][0].items()
    )


def run(make: Make, material: Material, options: SupervisedOptions, folder: Path) -> Fitted:
    return fit(make(4), material, options, folder, Recipe("test"))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_is_that_of_the_equations(
    optimizer: str, make_network: Make, material: Material, tmp_path: Path
) -> None:
    """Smoothed cross entropy, decay of weights only: two steps written out, in torch's order."""
    chosen = replace(
        PLAIN, steps=2, batch_size=300, label_smoothing=0.2, optimizer=optimizer, weight_decay=0.1
    )
    fitted = run(make_network, material, chosen, tmp_path)
    opened = make_network(4)
    model = opened.model.train()
    x, labels = opened.preprocessing.normalize(material.train.images), material.train.labels
    assert labels is not None
    decays = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    ours: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    if optimizer == "adam":
        ours = torch.optim.AdamW(groups, lr=0.1)
    for rate in (0.1, 0.05):  # half a cosine over two steps
        for group in ours.param_groups:
            group["lr"] = rate
        logs = F.log_softmax(model(x), 1)
        loss = -(0.8 * logs.gather(1, labels[:, None])[:, 0] + 0.2 * logs.mean(1)).mean()
        ours.zero_grad()
        loss.backward()
        ours.step()
    assert fitted.model is not None
    if optimizer == "sgd":
        for name, value in model.state_dict().items():
            found = fitted.model.state_dict()[name]
            assert torch.allclose(found.float(), value.float(), rtol=1e-3, atol=1e-4), name
    else:  # the sign of a gradient that is next to 0 is anybody's
        near = [
            torch.isclose(fitted.model.state_dict()[name], value, rtol=1e-2, atol=1e-3)
            for name, value in model.named_parameters()
        ]
        assert torch.cat([each.flatten() for each in near]).float().mean() > 0.98


def test_a_run_in_parts_is_the_run_in_one(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    chosen = replace(PLAIN, jitter=0.2, shift=0.1, save_every=3)
    run(make_network, material, chosen, tmp_path / "whole")
    for _ in range(3):
        told = run(make_network, material, replace(chosen, stop_after=1), tmp_path / "parts")
        assert not told.is_finished
        assert not (tmp_path / "parts" / "model").exists()
    run(make_network, material, chosen, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    for name in ("metrics.jsonl", "model/model.safetensors"):
        files = [(tmp_path / run / name).read_bytes() for run in ("whole", "parts")]
        assert files[0] == files[1], name


def test_a_run_goes_on_with_its_own_weights_pictures_and_recipe_only(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    started = replace(PLAIN, stop_after=1)
    run(make_network, material, started, tmp_path)
    recipe = Recipe("test")
    with pytest.raises(InputError, match=r"was started with weights [0-9a-f]{16}, not"):
        fit(make_network(4, seed=1), material, PLAIN, tmp_path, recipe)
    fewer = Material.of(material.train, material.train)
    fewer = replace(fewer, train=material.test)
    with pytest.raises(InputError, match=r"was started with pictures \['300 of"):
        fit(make_network(4), fewer, PLAIN, tmp_path, recipe)
    with pytest.raises(InputError, match=r"was started with --lr 0\.1, not 0\.2"):
        run(make_network, material, replace(PLAIN, lr=0.2), tmp_path)
    run(make_network, material, replace(PLAIN, lr=0.2, overwrite=True), tmp_path)


def test_bfloat16_trains_weights_in_float32(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    half = run(make_network, material, replace(PLAIN, precision="bfloat16"), tmp_path / "half")
    run(make_network, material, PLAIN, tmp_path / "full")
    assert half.model is not None
    assert all(each.dtype == torch.float32 for each in half.model.parameters())
    tensors = [load_checkpoint(tmp_path / name / CHECKPOINT)[0] for name in ("half", "full")]
    name = "network.features.0.conv.weight"
    assert not torch.equal(tensors[0][name], tensors[1][name])
    assert torch.allclose(tensors[0][name], tensors[1][name], atol=0.05)


def test_frozen_statistics_stay_and_are_normalized_by(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    opened = make_network(4)
    recipe = Recipe("test", freeze_stats=True)
    fitted = fit(opened, material, replace(PLAIN, steps=1, batch_size=300), tmp_path, recipe)
    before = opened.model.state_dict()
    assert fitted.model is not None
    for name, value in fitted.model.state_dict().items():
        is_kept = "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) is is_kept, name


def test_pictures_that_do_not_fit_are_refused(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has 4 outputs, the pictures 10 classes"):
        fit(make_network(4, classes=4), material, PLAIN, tmp_path, Recipe("test"))
    other = ("baseline x", make_network(4, classes=4).model)
    with pytest.raises(InputError, match="baseline x has 4 outputs"):
        fit(make_network(4), material, PLAIN, tmp_path, Recipe("test", reference=other))
    plain = make_network(4).model
    fitted = fit(plain, material, replace(PLAIN, steps=1), tmp_path, Recipe("test"))
    assert fitted.folder is None  # it has no origin that a folder could name


def test_a_loss_that_is_not_finite_stops_the_run(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the loss is not finite"):
        run(make_network, material, replace(PLAIN, lr=1e38, steps=9), tmp_path)
    assert not (tmp_path / "model").exists()


def test_validation_is_in_the_metrics_and_changes_nothing(
    make_network: Make, material: Material, tmp_path: Path
) -> None:
    run(make_network, material, replace(PLAIN, validate_every=2), tmp_path / "told")
    run(make_network, material, PLAIN, tmp_path / "plain")
    assert same(tmp_path / "told", tmp_path / "plain")
    lines = (tmp_path / "told" / "metrics.jsonl").read_text().splitlines()
    assert ["accuracy" in line for line in lines] == [False, True, False, True]


def test_epochs_are_rounds_over_the_pictures() -> None:
    chosen = SupervisedOptions(steps=7, batch_size=10)
    assert steps_of(chosen, 300, 1) == 7
    assert steps_of(replace(chosen, epochs=2.0), 300, 1) == 60
    assert steps_of(replace(chosen, epochs=2.0), 300, 3) == 20
    with pytest.raises(InputError, match=r"--epochs 0\.01: 300 pictures in batches of 10"):
        steps_of(replace(chosen, epochs=0.01), 300, 1)


def test_ctrl_c_keeps_what_was_learnt(
    make_network: Make, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step at work is finished; the same call goes on as if nothing had been."""
    step = SupervisedTrainer.step

    def stopping(self: SupervisedTrainer, number: int) -> dict[str, float]:
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(SupervisedTrainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(make_network, material, PLAIN, tmp_path / "parts")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT)[1]["step"] == 2
    run(make_network, material, PLAIN, tmp_path / "parts")
    run(make_network, material, PLAIN, tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "parts")
