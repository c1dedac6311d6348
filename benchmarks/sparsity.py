"""Penalties on batch-norm scales at equal sparsity: accuracy before and after removal, on digits.

Each network is trained once, its smallest scales are removed by a global threshold, nothing is
finetuned. The strength is found by the target where the penalty has one (a training a share), else
chosen on validation pictures from a grid, a training a strength; the test pictures decide nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARES = (0.4, 0.6, 0.8)
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "subgradient": {"kind": "subgradient"},
    "polarization": {"kind": "polarization"},
    "proximal": {"kind": "proximal", "by_target": True},
    "proximal, group": {"kind": "proximal", "group": True, "by_target": True},
}

Digits = dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    options = _arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    results = json.loads(options.state.read_text()) if options.state.exists() else {}
    digits = _digits()
    for name in PENALTIES:
        for setting in _settings(name):
            for seed in range(options.seeds):
                key = f"{name}/{setting}/{seed}/{options.steps}"
                if key not in results:
                    results[key] = _measure(name, setting, seed, options.steps, digits)
                    options.state.write_text(json.dumps(results))
                    print(key, results[key], flush=True)
    body = _section(results, options)
    print(body)
    if not options.dry_run:
        from results import write_section

        write_section("sparsity", body)
        options.state.unlink()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each training, 64 pictures each")
    state = Path(tempfile.gettempdir()) / "normapps-sparsity.json"
    parser.add_argument("--state", type=Path, default=state, help="what is done; gone at the end")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _settings(name: str) -> tuple[float, ...]:
    if name == "none":
        return (0.0,)
    return SHARES if PENALTIES[name].get("by_target") else GRID


def _digits() -> Digits:
    """1000 pictures to train on, 300 to choose by, 497 to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images[:, None] / 8 - 1).float()[order]
    labels = torch.tensor(found.target)[order]
    parts = {"train": slice(0, 1000), "validation": slice(1000, 1300), "test": slice(1300, None)}
    return {name: (images[part], labels[part]) for name, part in parts.items()}


def _measure(name: str, setting: float, seed: int, steps: int, digits: Digits) -> dict[str, float]:
    model, sparsity = _trained(name, setting, seed, steps, digits["train"])
    found = {"sparsity": sparsity}
    for part in ("validation", "test"):
        found[part] = _accuracy(model, digits[part])
        for share in SHARES:
            for kept in (False, True):
                removed = _removed(model, share, keep_shift=kept)
                found[f"{part} {share} {kept}"] = _accuracy(removed, digits[part])
    return found


def _trained(
    name: str, setting: float, seed: int, steps: int, data: tuple[Tensor, Tensor]
) -> tuple[nn.Module, float]:
    from normapps.models.small import small_cnn
    from normapps.slim.regularizer import ScaleRegularizer
    from normapps.slim.scales import scale_layers, split_parameters

    torch.manual_seed(seed)
    model = small_cnn(10, 1, 8, 16)
    if PENALTIES[name].get("kind") == "polarization":  # where the paper begins
        for layer in scale_layers(model):
            nn.init.constant_(layer.weight, 0.5)
    optimizer = torch.optim.SGD(split_parameters(model, 1e-4), 0.1, 0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    options = {key: each for key, each in PENALTIES[name].items() if key != "by_target"}
    if PENALTIES[name].get("by_target"):
        options |= {"target_sparsity": setting, "steps": steps, "strength": 1e-3}
    else:
        options |= {"strength": setting}
    reg = ScaleRegularizer(model, optimizer, **options)
    images, labels = data
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picks = torch.randint(len(images), (64,), generator=draw)
        loss = F.cross_entropy(model(images[picks]), labels[picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reg.step()
        schedule.step()
    return model.eval(), reg.sparsity()


@torch.no_grad()
def _removed(model: nn.Module, share: float, keep_shift: bool) -> nn.Module:
    """A copy without its smallest scales; with their shifts it is what compensation aims at."""
    from normapps.slim.scales import scale_layers

    cut = copy.deepcopy(model)
    layers = scale_layers(cut)
    sizes = torch.cat([layer.weight.abs() for layer in layers])
    doomed = torch.zeros_like(sizes, dtype=torch.bool)
    doomed[sizes.argsort(stable=True)[: round(share * len(sizes))]] = True
    parts = doomed.split([len(layer.weight) for layer in layers])
    for layer, gone in zip(layers, parts, strict=True):
        layer.weight[gone] = 0
        if layer.bias is not None and not keep_shift:
            layer.bias[gone] = 0
    return cut


@torch.no_grad()
def _accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    images, labels = data
    return float((model(images).argmax(1) == labels).float().mean())


def _section(results: dict[str, dict[str, float]], options: argparse.Namespace) -> str:
    from results import conditions, table

    title = (
        "## Penalties on the scales at equal sparsity\n\n"
        f"`small_cnn` of width 16 (160 scales) on scikit-learn's digits, {options.steps} steps of"
        f" SGD with momentum, {options.seeds} seeds: test accuracy in %, mean ± standard deviation."
        " The smallest scales are removed by a global threshold, without finetuning: removed with"
        " their shifts, and with the constants of the shifts kept, which is what compensation aims"
        " at. `proximal` finds its strength by the target (one training a share); the others take"
        f" the best of {len(GRID)} strengths by validation pictures after removal (one training a"
        " strength). Exact zeros: share at the end of the training."
    )
    header = ["penalty", "share removed", "exact zeros", "before", "removed", "constants kept"]
    rows = [_row(name, share, results, options) for share in SHARES for name in PENALTIES]
    return "\n\n".join([title, table(header, rows), conditions(("normapps", "torch"))])


def _row(
    name: str, share: float, results: dict[str, dict[str, float]], options: argparse.Namespace
) -> list[str]:
    chosen = []
    for seed in range(options.seeds):
        settings = [share] if PENALTIES[name].get("by_target") else _settings(name)
        runs = [results[f"{name}/{each}/{seed}/{options.steps}"] for each in settings]
        chosen.append(max(runs, key=lambda run: run[f"validation {share} False"]))
    keys = ("sparsity", "test", f"test {share} False", f"test {share} True")
    return [name, f"{share:.0%}", *(_spread([run[key] for run in chosen]) for key in keys)]


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
