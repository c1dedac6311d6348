from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.measure.accuracy import accuracy, paired_difference
from normapps.measure.stages import Prediction, Stage, best, compare, evaluate_stages, predict


class Told(nn.Module):
    """Answers with what its input says, a little louder."""

    def __init__(self, factor: float = 1.0, shift: float = 0.0, change: int = 0) -> None:
        super().__init__()
        self.factor, self.shift, self.change = factor, shift, change
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert not self.training
        out = x.flatten(1)[:, :4] * self.factor + self.shift
        if self.change:
            out = out.roll(self.change, 1)
        return {"logits": out}


def data(count: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 4, 1, 1, generator=generator), torch.arange(count) % 4


def test_predictions_keep_the_order_and_the_mode() -> None:
    x, labels = data()
    model = Told().train()
    found = predict(model, [(x[:20], labels[:20]), (x[20:], labels[20:])])
    assert model.training
    assert torch.equal(found.logits, x.flatten(1))
    assert found.labels is not None
    assert torch.equal(found.labels, labels)
    assert found.right is not None
    assert torch.equal(found.right, x.flatten(1).argmax(1) == labels)
    assert predict(model, [x]).labels is None
    assert predict(model, [(x, None)]).right is None


def test_stages_are_compared_with_the_first() -> None:
    x, labels = data()
    models = [("base", Told()), ("same", Told(1.5, 7.0)), ("wrong", Told(change=1))]
    base, same, wrong = evaluate_stages(models, [(x[:7], labels[:7]), (x[7:], labels[7:])])
    right = x.flatten(1).argmax(1) == labels
    rolled = x.flatten(1).roll(1, 1).argmax(1) == labels
    assert base.accuracy == accuracy(int(right.sum()), 30)
    assert (base.difference, base.same, base.agreement, base.logit_error) == (None,) * 4
    assert same.accuracy == base.accuracy
    assert same.difference == paired_difference(right, right)
    assert wrong.difference == paired_difference(right, rolled)
    assert same.same == accuracy(30, 30)
    assert same.logit_error == pytest.approx(0.5, rel=1e-5)  # a constant for all classes is nothing
    assert wrong.same is not None
    assert wrong.agreement is not None
    assert (wrong.same.mean, wrong.agreement.top1) == (0, 0)
    assert [each.name for each in (base, same, wrong)] == ["base", "same", "wrong"]


def test_without_labels_there_is_agreement_only() -> None:
    x, _ = data()
    base, other = evaluate_stages([("base", Told()), ("pruned", Told(change=2))], x.split(10))
    assert (base.accuracy, other.accuracy, other.difference) == (None, None, None)
    assert other.same == accuracy(0, 30)
    assert other.pictures == 30


def test_agreement_bounds_the_loss() -> None:
    x, labels = data(200)
    noisy = Prediction(x.flatten(1) + 0.3 * torch.randn(200, 4), labels)
    stage = compare("noisy", noisy, Prediction(x.flatten(1), labels))
    assert stage.same is not None
    assert stage.difference is not None
    assert 0 < stage.same.mean < 1
    assert abs(stage.difference.mean) <= 1 - stage.same.mean


def test_networks_may_be_made_one_at_a_time() -> None:
    x, labels = data()
    alive = []

    def made() -> object:
        for name in ("base", "pruned"):
            alive.append(name)
            yield name, Told()

    stages = evaluate_stages(made(), [(x, labels)])  # type: ignore[arg-type]
    assert alive == [stage.name for stage in stages]


def test_a_constant_base_has_an_absolute_logit_error() -> None:
    flat = Prediction(torch.zeros(5, 4))
    changed = Prediction(torch.tensor([[3.0, -1, -1, -1]]).expand(5, 4))
    assert compare("x", changed, flat).logit_error == pytest.approx(math.sqrt(3))


def test_infinite_outputs_are_told() -> None:
    x, _ = data()
    broken = evaluate_stages([("base", Told()), ("broken", Told(math.nan))], [x])[1]
    assert not broken.is_finite


def test_what_cannot_be_judged() -> None:
    x, labels = data()
    with pytest.raises(InputError, match="no pictures"):
        predict(Told(), [])
    with pytest.raises(InputError, match="7 labels for 30 pictures"):
        predict(Told(), [(x[:7], labels[:7]), (x[7:], None)])
    with pytest.raises(InputError, match=r"labels from 0 to 9.*4 outputs"):
        predict(Told(), [(x, torch.arange(30) % 10)])
    with pytest.raises(InputError, match="not logits"):
        predict(nn.Identity(), [x])
    with pytest.raises(InputError, match="same pictures"):
        compare("x", Prediction(x[:9].flatten(1)), Prediction(x.flatten(1)))
    with pytest.raises(InputError, match="no network"):
        evaluate_stages([], [x])


def _stage(name: str, right: int | None = None, same: int = 50, error: float = 0.1) -> Stage:
    share = None if right is None else accuracy(right, 100)
    return Stage(name, 100, True, share, same=accuracy(same, 100), logit_error=error)


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        ([_stage("cut", 40), _stage("moved", 70), _stage("again", 80)], "again"),
        ([_stage("cut", 40), _stage("moved", 70), _stage("again", 60)], "moved"),
        ([_stage("cut", 90), _stage("moved", 70), _stage("again", 60)], "cut"),
        ([_stage("cut", 40), _stage("moved", 70), _stage("again", 70, same=1)], "again"),
        ([_stage("cut"), _stage("moved", same=70), _stage("again", same=69)], "moved"),
        ([_stage("cut"), _stage("moved", error=0.2), _stage("again", error=0.3)], "cut"),
        ([_stage("cut"), _stage("moved"), _stage("again")], "again"),
    ],
)
def test_the_best_stage_is_the_last_unless_an_earlier_one_answers_better(
    stages: list[Stage], wanted: str
) -> None:
    assert best([Stage("base", 100, True, accuracy(100, 100)), *stages]).name == wanted


def test_a_stage_that_is_not_finite_is_never_the_best() -> None:
    broken = replace(_stage("moved", 99), is_finite=False)
    assert best([Stage("base", 100, True), _stage("cut", 1), broken]).name == "cut"
