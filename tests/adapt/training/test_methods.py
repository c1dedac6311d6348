"""What each method adds to the loss, against its formula in float64, and what it does to layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.training.base import rampup
from normapps.adapt.training.methods import METHODS, make_method
from normapps.adapt.training.options import METHODS as NAMES
from normapps.adapt.training.options import RecipeOptions
from normapps.adapt.training.sampling import JointBatch
from normapps.models.small import small_cnn
from normapps.norm.layers.domain import DomainNorm

C = 5


def method(name: str, options: RecipeOptions, sources: int = 1, targets: int = 1) -> Any:
    torch.manual_seed(0)
    return make_method(small_cnn(C, 1, 8, 4), sources, targets, replace(options, method=name))


def batch(sources: int = 1, targets: int = 1) -> JointBatch:
    torch.manual_seed(1)
    pictures = [torch.randn(6, 1, 8, 8) for _ in range(sources + 2 * targets)]
    labels = tuple(torch.randint(C, (6,)) for _ in range(sources))
    split = sources + targets
    return JointBatch(
        tuple(pictures[:sources]), labels, tuple(pictures[sources:split]), tuple(pictures[split:])
    )


class Told:
    """Logits that are given, in the place of the network's; and what it was asked."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(count)
        self.logits = [rng.normal(size=(6, C)) * 3 for _ in range(count)]
        self.domains: list[int] = []

    def __call__(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[Tensor]:
        assert len(images) == len(domains)
        self.domains = list(domains)
        return [torch.from_numpy(each) for each in self.logits[: len(images)]]


def log_softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(z)[np.arange(len(z)), labels].mean())


def entropy(z: np.ndarray) -> float:
    return float(-(np.exp(log_softmax(z)) * log_softmax(z)).sum(1).mean())


def test_every_name_has_a_class() -> None:
    assert tuple(sorted(METHODS)) == tuple(sorted(NAMES))


def test_rampup_is_that_of_the_papers() -> None:
    assert rampup(0) == 0
    assert rampup(0.3) == pytest.approx(2 / (1 + math.exp(-3)) - 1)
    assert rampup(1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["autodial", "transnorm"])
def test_source_labels_and_target_entropy(name: str, options: RecipeOptions) -> None:
    told, given = Told(3), batch(2, 1)
    chosen = replace(options, entropy_weight=0.25)
    terms = method(name, chosen, 2, 1).losses(told, given, 0)
    labels = np.concatenate([each.numpy() for each in given.labels])
    assert told.domains == [0, 1, 2]
    expected = cross_entropy(np.concatenate(told.logits[:2]), labels)
    assert terms["source"].item() == pytest.approx(expected)
    assert terms["entropy"].item() == pytest.approx(0.25 * entropy(told.logits[2]))


def test_dwt_wants_both_views_to_agree(options: RecipeOptions) -> None:
    told, given = Told(3), batch()
    terms = method("dwt", replace(options, entropy_weight=0.1)).losses(told, given, 0)
    assert told.domains == [0, 1, 2]
    both = log_softmax(told.logits[1]) + log_softmax(told.logits[2])
    assert terms["consensus"].item() == pytest.approx(0.1 * -0.5 * both.max(1).mean())
    expected = cross_entropy(told.logits[0], given.labels[0].numpy())
    assert terms["source"].item() == pytest.approx(expected)


def test_dsbn_first_learns_from_the_targets_entropy(options: RecipeOptions) -> None:
    told, given = Told(2), batch()
    chosen = replace(options, steps=100, stage_steps=40, entropy_weight=0.3, diversity_weight=0.2)
    terms = method("dsbn", chosen).losses(told, given, 10)
    share = 2 / (1 + math.exp(-10 * 10 / 40)) - 1
    assert terms["entropy"].item() == pytest.approx(0.3 * share * entropy(told.logits[1]))
    mean = np.exp(log_softmax(told.logits[1])).mean(0)
    assert terms["diversity"].item() == pytest.approx(0.2 * share * (mean * np.log(mean)).sum())


def test_dsbn_then_mixes_the_labels_of_both_networks(options: RecipeOptions) -> None:
    """Eq. 7: the first network decides at the start, the second one in the end."""
    chosen = replace(options, steps=100, stage_steps=40, pseudo_weight=0.5)
    dsbn, given = method("dsbn", chosen), batch()
    first = {key: value.clone() for key, value in dsbn.network.state_dict().items()}
    with torch.no_grad():
        for each in dsbn.network.parameters():
            each.add_(torch.randn_like(each) * 0.3)
    trained = {key: value.clone() for key, value in dsbn.network.state_dict().items()}
    dsbn.next_stage()
    assert all(torch.equal(dsbn.network.state_dict()[key], first[key]) for key in first)
    assert all(torch.equal(dsbn.teacher.state_dict()[key], trained[key]) for key in first)
    told = Told(2)
    with torch.no_grad():
        teacher = dsbn.teacher.eval()(given.targets, [1])[0].double().numpy()
    dsbn.teacher.train()
    for step in (40, 46, 99):
        share = 2 / (1 + math.exp(-10 * (step - 40) / 60)) - 1
        own = np.exp(log_softmax(told.logits[1]))
        labels = (share * own + (1 - share) * np.exp(log_softmax(teacher))).argmax(1)
        terms = dsbn.losses(told, given, step)
        expected = 0.5 * cross_entropy(told.logits[1], labels)
        assert terms["pseudo"].item() == pytest.approx(expected)
    assert dsbn.teacher.training  # its mode is put back
    statistics = dsbn.teacher.state_dict()
    assert all(torch.equal(statistics[key], trained[key]) for key in trained)


def test_branches_start_as_the_pretrained_norm(options: RecipeOptions) -> None:
    torch.manual_seed(0)
    model = small_cnn(C, 1, 8, 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = model.eval()(x).clone()
        for name in ("dsbn", "autodial", "transnorm"):
            made = make_method(_copy(model), 1, 2, replace(options, method=name))
            for domain in range(3):
                (found,) = made.network.eval()([x], [domain])
                tolerance = 1e-4 if name == "transnorm" else 1e-6  # its gain is folded
                torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def _copy(model: nn.Module) -> nn.Module:
    made = small_cnn(C, 1, 8, 4)
    made.load_state_dict(model.state_dict())
    return made


def test_only_the_first_layers_of_a_deep_network_are_whitened(options: RecipeOptions) -> None:
    from torchvision.models import resnet18

    dwt: Any = METHODS["dwt"](resnet18(num_classes=3), 1, 1, replace(options, method="dwt"))
    banks = [each for each in dwt.network.modules() if isinstance(each, DomainNorm)]
    kinds = [type(each).__name__ for each in banks]
    assert kinds == ["DomainWhitening"] * 5 + ["DomainNorm"] * 15
    assert {each.num_domains for each in banks} == {3}
    (step,) = dwt.publish(0, ()).steps
    assert step["to"] == "cholesky"
    assert len(step["layers"]) == 5


def test_ibn_is_in_the_first_half_and_bin_everywhere(options: RecipeOptions) -> None:
    for name, count in (("ibn", 2), ("bin", 5)):
        made = method(name, options)
        kinds = [type(each).__name__ for each in made.network.modules()]
        new = {"ibn": "IBN", "bin": "BatchInstanceNorm"}[name]
        assert kinds.count(new) == count


def test_mixstyle_is_not_in_what_is_published(options: RecipeOptions) -> None:
    made = method("mixstyle", options)
    published = made.publish(0, ()).model.train()
    x = torch.randn(8, 1, 8, 8)
    outputs = []
    for seed in range(8):
        torch.manual_seed(seed)
        outputs.append(published(x).detach())
    assert all(torch.equal(outputs[0], each) for each in outputs)
    torch.manual_seed(0)
    mixed = [made.network.train()([x], [0])[0].detach() for _ in range(8)]
    assert any(not torch.equal(mixed[0], each) for each in mixed)  # and trains on
