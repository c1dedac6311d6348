"""One frozen network with the norm layers and classifiers of several tasks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.universal import UniversalNetwork, is_shareable, task_cost, task_network
from normapps.errors import InputError
from normapps.models.builders import timm_model
from normapps.models.small import small_cnn
from normapps.norm.convert.converter import convert_norm


def _task(base: nn.Module, classes: int, seed: int) -> nn.Module:
    """A task with norm layers of its own."""
    model = task_network(base, classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for each in (layer.weight, layer.bias, layer.running_mean):
                    assert each is not None
                    each.add_(0.2 * torch.randn(each.shape, generator=generator))
    return model.eval()


def _two() -> tuple[dict[str, nn.Module], Tensor]:
    torch.manual_seed(0)
    base = small_cnn(num_classes=4, width=4)
    x = torch.randn(5, 3, 16, 16)
    return {"digits": _task(base, 10, 1), "clothes": _task(base, 7, 2)}, x


@torch.no_grad()
def test_each_task_answers_as_its_own_network() -> None:
    models, x = _two()
    network = UniversalNetwork(models).eval()
    assert torch.equal(network(x, "digits"), models["digits"](x))
    assert torch.equal(network(x, 1), models["clothes"](x))
    assert torch.equal(network(x, torch.tensor(1)), models["clothes"](x))
    assert not torch.equal(network(x, "digits")[:, :7], network(x, "clothes"))


@torch.no_grad()
def test_several_tasks_in_one_batch() -> None:
    models, x = _two()
    network = UniversalNetwork(models).eval()
    task = torch.tensor([0, 1, 1, 0, 1])
    found = network(x, task)
    assert list(found) == ["digits", "clothes"]
    torch.testing.assert_close(found["digits"], models["digits"](x[task == 0]))
    torch.testing.assert_close(found["clothes"], models["clothes"](x[task == 1]))
    assert network(x, torch.zeros(5, dtype=torch.long))["clothes"].shape == (0, 7)


def test_only_norm_layers_and_classifiers_learn() -> None:
    models, x = _two()
    network = UniversalNetwork(models).train()
    found = network(x, torch.tensor([0, 1, 1, 0, 1]))
    (found["digits"].square().sum() + found["clothes"].square().sum()).backward()
    for name, each in network.named_parameters():
        assert (each.grad is not None) == each.requires_grad, name
        assert each.requires_grad == ("conv" not in name), name
        assert each.grad is None or torch.isfinite(each.grad).all(), name


def test_training_one_task_leaves_the_other_as_it_is() -> None:
    models, x = _two()
    network = UniversalNetwork(models).train()
    before = copy.deepcopy(network.export("clothes").state_dict())
    learnt = [each for each in network.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=0.1)
    network(x, "digits").square().sum().backward()
    optimizer.step()
    for name, value in network.export("clothes").state_dict().items():
        assert torch.equal(value, before[name]), name
    changed = network.export("digits").state_dict()
    assert not torch.equal(changed["classifier.weight"], models["digits"].classifier.weight)


@torch.no_grad()
def test_export_is_the_plain_network() -> None:
    models, x = _two()
    network = UniversalNetwork(models)
    plain = network.export("clothes")
    small_cnn(num_classes=7, width=4).load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), models["clothes"](x))
    assert not plain.training
    assert all(each.requires_grad for each in plain.parameters())
    plain.classifier.weight.zero_()  # a copy
    assert torch.equal(network.eval()(x, "clothes"), models["clothes"](x))


def test_what_a_task_costs() -> None:
    resnet = timm_model("resnet18")
    cost = task_cost(task_network(resnet, 10))
    channels = sum(
        layer.num_features for layer in resnet.modules() if isinstance(layer, nn.BatchNorm2d)
    )
    layers = sum(isinstance(layer, nn.BatchNorm2d) for layer in resnet.modules())
    assert cost.norm == 2 * channels
    assert cost.head == 512 * 10 + 10
    assert cost.statistics == 2 * channels + layers
    everything = sum(each.numel() for each in resnet.parameters()) - 512 * 1000 - 1000
    assert cost.shared == everything - 2 * channels
    assert cost.share == (cost.norm + cost.head) / (everything + cost.head)
    models, _ = _two()
    assert UniversalNetwork(models).cost("digits") == task_cost(models["digits"])


@pytest.mark.parametrize("trained", ["norm", "head", "all"])
def test_what_a_task_trains(trained: str) -> None:
    model = task_network(small_cnn(width=4), 5, trained=trained)
    free = {name for name, each in model.named_parameters() if each.requires_grad}
    kinds = {"conv": "all", "norm": "norm all", "classifier": "norm head all"}
    for name, _ in model.named_parameters():
        kind = next(each for each in kinds if each in name)
        assert (name in free) == (trained in kinds[kind].split()), name
    assert model.classifier.out_features == 5


def test_a_new_classifier_comes_from_its_seed() -> None:
    base = small_cnn(width=4)
    state = torch.random.get_rng_state()
    first, same, other = (task_network(base, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert base.classifier.out_features == 10


class _TwoNorms(nn.Module):
    """A batch norm and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.norm(self.conv(x)).mean((2, 3))))
        return logits


def test_other_norm_layers_are_not_taken_from_the_first_task() -> None:
    base = _TwoNorms()
    models = {name: task_network(base, 2, seed=seed) for seed, name in enumerate("ab")}
    UniversalNetwork(models)
    assert not is_shareable(base)
    assert is_shareable(small_cnn(width=4))
    with torch.no_grad():
        models["b"].last.weight.add_(0.5)
    with pytest.raises(InputError, match=r"'last.weight' of a and b differs, .*batch norms"):
        UniversalNetwork(models)


@pytest.mark.parametrize("kind", ["ibn", "switchable"])
def test_layers_that_were_batch_norms_once_have_no_banks(kind: str) -> None:
    base = convert_norm(small_cnn(width=4), kind)
    assert not is_shareable(base)
    with pytest.raises(InputError, match=r"'features.0.norm' is .*would compute something else"):
        UniversalNetwork({"a": task_network(base, 3)})


def test_a_classifier_that_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(InputError, match="the classifier 'fc' is Conv2d, not a linear layer"):
        UniversalNetwork({"a": timm_model("dla34")})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (torch.tensor([0, -1, 0, 0, 1]), "task -1: must be 0"),
        (torch.tensor([0, 2, 0, 0, 1]), "task 2: must be 0"),
        (torch.rand(5, 2), r"tasks \(5, 2\) torch.float32: must be \(5,\) torch.int64"),
        (torch.tensor([0]), r"tasks \(1,\) torch.int64: must be \(5,\)"),
    ],
)
def test_samples_of_no_task_are_not_left_out_silently(task: Tensor, message: str) -> None:
    models, x = _two()
    with pytest.raises(InputError, match=message):
        UniversalNetwork(models)(x, task)


def test_what_cannot_be_one_network_is_refused_in_one_line() -> None:
    models, x = _two()
    torch.manual_seed(1)
    models["other"] = task_network(small_cnn(width=4), 3)
    with pytest.raises(InputError, match=r"features\.0\.conv\.weight' of digits and other differs"):
        UniversalNetwork(models)
    with pytest.raises(InputError, match="no task"):
        UniversalNetwork({})
    with pytest.raises(InputError, match="unknown part to train 'nrom'"):
        task_network(small_cnn(width=4), 3, trained="nrom")
    with pytest.raises(InputError, match="no norm layer"):
        task_network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)), 3)
    network = UniversalNetwork({"digits": models["digits"]})
    with pytest.raises(InputError, match="unknown task 'digit'; did you mean 'digits'"):
        network(x, "digit")
    with pytest.raises(InputError, match=r"task 3: must be 0"):
        network(x, 3)
