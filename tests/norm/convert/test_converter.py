"""The converter on small networks of torch's own layers: what is kept, refused, undone."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from normapps.errors import InputError
from normapps.norm.convert.converter import Conversion, convert_norm, convert_norm_
from normapps.norm.layers.base import NormLayer
from normapps.norm.layers.batch import BatchNorm, BatchNorm2d
from normapps.norm.registry import create_norm, list_norms, norm_class, norm_options

NEEDED: dict[str, dict[str, Any]] = {
    "conditional": {"num_classes": 8},
    "conditional_coloring": {"num_classes": 3},
    "self_modulated": {"latent_features": 5},
    "spatial": {"condition_channels": 2},
    "adalin": {"latent_features": 5},
    "domain": {"num_domains": 8},
    "autodial": {"num_domains": 8},
    "transnorm": {"num_domains": 8},
    "domain_whitening": {"num_domains": 8},
}
"""Eight classes and domains, as many as channels: a bank must not be taken for a matrix."""


class Net(nn.Module):
    """A layer used twice, one in plain attributes, one without recovery, one in a ModuleDict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), bn=_layer(8)))
        shared = _layer(8, momentum=None)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 1), shared)
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), shared)
        self.branches = nn.ModuleDict({"a": _layer(8, eps=1e-3), "b": nn.Identity()})
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.norms = [self.plain, {"a": self.branches["a"]}, (shared,)]
        self.apply_norm = self.plain.forward
        self.tokens = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x).relu()).relu())
        x = self.branches["a"](x) + self.branches["b"](x)
        x = self.norms[0](x) + self.apply_norm(x)
        return self.head(self.tokens(x.relu().flatten(2).mean(2)))


def _layer(channels: int, **options: Any) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            tensor.copy_(torch.rand(channels) + 0.5)
        layer.num_batches_tracked.fill_(7)
    return layer


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


def test_ours_stands_where_torchs_stood(net: Net, x: Tensor) -> None:
    before, out = _copies(net), net(x)
    conversion = convert_norm_(net, "batch")
    assert torch.equal(net(x), out)
    assert _unchanged(net, before)
    assert not [m for m in net.modules() if type(m) is nn.BatchNorm2d]
    assert conversion.converted == 4
    assert sum(isinstance(m, BatchNorm2d) for m in net.modules()) == 4


def test_the_copy_leaves_the_model(net: Net, x: Tensor) -> None:
    out, before = net(x), _copies(net)
    converted = convert_norm(net, "instance")
    assert type(net.plain) is nn.BatchNorm2d
    assert _unchanged(net, before)
    assert torch.equal(net(x), out)
    assert not torch.equal(converted(x), out)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in converted.parameters()}


def test_every_place_gets_the_one_successor(net: Net) -> None:
    conversion = convert_norm_(net, "batch")
    assert net.first[1] is net.second[1]
    assert net.norms[0] is net.plain
    assert isinstance(net.norms[0], BatchNorm)
    assert net.norms[1]["a"] is net.branches["a"]
    assert net.norms[2][0] is net.first[1]
    assert net.apply_norm.__self__ is net.plain
    change = next(each for each in conversion.report if each.name == "first.1")
    assert change == ("first.1", "torch.BatchNorm2d", "normapps.BatchNorm2d", "also second.1")
    conversion.undo()
    assert type(net.plain) is nn.BatchNorm2d
    assert net.norms[0] is net.plain
    assert net.norms[2][0] is net.second[1] is net.first[1]
    assert net.apply_norm.__self__ is net.plain


def test_options_and_flags_are_kept(net: Net) -> None:
    net.stem.bn.weight.requires_grad_(False)
    net.branches["a"].train()
    net.double()
    convert_norm_(net, "batch")
    assert net.branches["a"].eps == 1e-3
    assert net.first[1].momentum is None
    assert net.branches["a"].training
    assert not net.stem.bn.training
    assert not net.stem.bn.act.training
    assert net.plain.weight is None
    assert net.plain.bias is None
    assert not net.stem.bn.weight.requires_grad
    assert net.stem.bn.bias.requires_grad
    assert net.stem.bn.running_var.dtype == torch.float64
    assert net.stem.bn.num_batches_tracked == 7


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "position", "rms", "iternorm"])
def test_other_layers_keep_eps_dtype_and_scale(net: Net, norm: str, x: Tensor) -> None:
    net.double()
    net.branches["a"].weight.requires_grad_(False)
    weight, bias = net.branches["a"].weight, net.branches["a"].bias
    convert_norm_(net, norm)
    layer = net.branches["a"]
    assert isinstance(layer, norm_class(norm))
    assert layer.weight is weight
    assert layer.bias is bias
    assert not layer.weight.requires_grad
    assert layer.eps == (1e-5 if norm == "iternorm" else 1e-3)  # a ridge is not an eps
    assert net.plain.weight is None
    assert net(x.double()).dtype == torch.float64


@pytest.mark.parametrize("tracked", [True, False])
def test_statistics_not_tracked_stay_so(tracked: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=tracked))
    keys = list(model.state_dict())
    convert_norm_(model, "batch")
    assert list(model.state_dict()) == keys
    assert model[0].track_running_stats is tracked


@pytest.mark.parametrize("norm", list_norms())
def test_every_layer_takes_over_an_activation_and_trains(norm: str, x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), create_norm("batch", 8, layout="2d", act=nn.ReLU))
    act = model[1].act = nn.ReLU(inplace=True)
    convert_norm_(model, norm, **NEEDED.get(norm, {}), init="default")
    layer = model[1]
    assert isinstance(layer, norm_class(norm))
    assert layer.act is act
    if norm not in (*NEEDED, "adaptive", "region"):
        assert model(x).min() == 0
        model(x).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model[0].parameters())


def test_banks_start_from_the_layer_in_every_row(net: Net) -> None:
    old = copy.deepcopy(net.stem.bn)
    old_weight = net.stem.bn.weight.requires_grad_(False)
    conditional = convert_norm(net, "conditional", num_classes=8).stem.bn
    domain = convert_norm(net, "domain", num_domains=8).stem.bn
    assert not conditional.weight.requires_grad
    assert conditional.bias.requires_grad
    for bank in (conditional.weight, domain.weight):
        assert torch.equal(bank, old_weight.expand(8, 8))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        value = getattr(old, key)
        assert torch.equal(getattr(domain, key), value.expand_as(getattr(domain, key)))
    assert torch.equal(conditional.running_var, old.running_var)
    assert (domain.num_batches_tracked == 7).all()


def test_whitening_starts_from_the_variances(net: Net) -> None:
    var = net.stem.bn.running_var.clone()
    layer = convert_norm(net, "zca", group_size=4).stem.bn
    assert torch.equal(layer.running_cov, torch.diag_embed(var.reshape(2, 4)))
    assert torch.equal(layer.running_mean, net.stem.bn.running_mean)
    assert layer.num_batches_tracked == 7
    again = convert_norm(nn.Sequential(layer), "batch", match="zca")[0]
    assert torch.equal(again.running_var, var)


def test_coloring_starts_from_the_scale_on_its_diagonal(net: Net) -> None:
    layer = convert_norm(net, "coloring").stem.bn
    assert torch.equal(layer.weight, net.stem.bn.weight.diag())


def test_default_starts_anew_in_the_same_parameters(net: Net) -> None:
    before = _copies(net)
    weight = net.stem.bn.weight
    conversion = convert_norm_(net, "batch", init="default")
    assert net.stem.bn.weight is weight
    assert (weight == 1).all()
    assert (net.stem.bn.running_mean == 0).all()
    assert (net.stem.bn.running_var == 1).all()
    conversion.undo()
    assert _unchanged(net, before)


def test_statistics_that_are_gone_start_anew_and_the_report_says_so(net: Net) -> None:
    convert_norm_(net, "instance")
    back = convert_norm_(net, "batch")  # an instance norm that was a batch norm is one of those
    assert isinstance(net.stem.bn, BatchNorm2d)
    assert (net.stem.bn.running_mean == 0).all()
    assert back.report[0].note == "statistics start anew"


def test_an_optimizer_made_before_goes_on(net: Net, x: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    convert_norm_(net, "instance")
    weight = net.stem.bn.weight.detach().clone()
    net.train()(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.stem.bn.weight, weight)
    assert {id(p) for p in net.parameters()} == {
        id(p) for group in optimizer.param_groups for p in group["params"]
    }


def test_undo_after_training_gives_back_every_bit(net: Net, x: Tensor) -> None:
    net.first[1].bias.requires_grad_(False)
    before, out = _copies(net), net(x)
    bns = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    rest = {k: v for k, v in net.state_dict().items() if "head" in k or "conv" in k}
    conversion = convert_norm_(net, "batch")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()(x).square().sum().backward()
    for layer in net.modules():
        if isinstance(layer, NormLayer):
            layer.requires_grad_(True)
    optimizer.step()
    trained = {key: value.clone() for key, value in rest.items()}
    conversion.undo()
    conversion.undo()
    assert {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)} == bns
    for key, value in net.state_dict().items():
        norm = any(key.startswith(name) for name in (*bns, "second.1"))
        assert torch.equal(value, before[key] if norm else trained.get(key, value)), key
    assert net.stem.bn.training
    assert not net.first[1].bias.requires_grad
    net.eval().load_state_dict(before)
    assert torch.equal(net(x), out)


def test_undo_follows_the_model_to_another_precision(net: Net, x: Tensor) -> None:
    conversion = convert_norm_(net, "instance")
    net.double()
    conversion.undo()
    assert net.stem.bn.running_mean.dtype == torch.float64
    assert net.stem.bn.num_batches_tracked.dtype == torch.int64
    assert net(x.double()).dtype == torch.float64


def test_conversion_is_a_context(net: Net) -> None:
    with convert_norm_(net, "batch") as conversion:
        assert isinstance(conversion, Conversion)
        assert isinstance(net.plain, BatchNorm)
    assert type(net.plain) is nn.BatchNorm2d


def test_hooks_go_on_and_their_handles_serve(net: Net, x: Tensor) -> None:
    seen: list[tuple[str, str]] = []

    def note(kind: str) -> Any:
        return lambda module, *_: seen.append((kind, type(module).__name__))

    handle = net.plain.register_forward_hook(note("forward"))
    net.plain.register_forward_pre_hook(note("before"))
    net.plain.register_full_backward_hook(note("backward"))
    conversion = convert_norm_(net, "instance")
    net.norms[0](torch.randn(2, 8, 3, 3, requires_grad=True)).sum().backward()
    assert seen == [(kind, "InstanceNorm") for kind in ("before", "forward", "backward")]
    handle.remove()
    seen.clear()
    net.norms[0](torch.randn(2, 8, 3, 3, requires_grad=True)).sum().backward()
    assert [kind for kind, _ in seen] == ["before", "backward"]
    conversion.undo()
    seen.clear()
    net.norms[0](torch.randn(2, 8, 3, 3))
    assert seen == [("before", "BatchNorm2d")]


def test_marks_that_others_put_on_a_layer_stay(net: Net) -> None:
    net.plain.qconfig = "none"
    convert_norm_(net, "instance")
    assert net.plain.qconfig == "none"


def test_a_root_is_replaced_in_a_copy_only() -> None:
    layer = _layer(4)
    assert isinstance(convert_norm(layer, "batch"), BatchNorm2d)
    with pytest.raises(InputError, match=r"itself is the norm layer BatchNorm2d.*convert_norm "):
        convert_norm_(layer, "batch")


def test_copies_pickles_and_keys_survive(net: Net, x: Tensor) -> None:
    converted = convert_norm(net, "batch")
    assert torch.equal(copy.deepcopy(converted)(x), net(x))
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), net(x))
    net.load_state_dict(converted.state_dict())


def test_a_network_without_values_is_converted_too() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    convert_norm_(model, "iternorm", group_size=2)
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


def test_the_match_says_which_kinds(net: Net, x: Tensor) -> None:
    out = net(x)
    assert [c.name for c in convert_norm_(net, "layer", match="layer").report] == ["tokens"]
    torch.testing.assert_close(net(x), out)
    both = convert_norm_(net, "batch", match=("batch", "instance"))
    assert both.converted == 4
    assert convert_norm_(net, "batch", match="all").converted == 1
    assert convert_norm_(net, "batch", match="all").converted == 0


def test_patterns_choose(net: Net) -> None:
    def names(**patterns: Any) -> list[str]:
        with convert_norm_(copy.deepcopy(net), "instance", **patterns) as conversion:
            return [change.name for change in conversion.report]

    assert names(include="stem.*") == ["stem.bn"]
    assert names(include="stem") == ["stem.bn"]
    assert names(include=("second.1", "plain")) == ["first.1", "plain"]
    assert names(exclude=("stem", "second*", "branches.[a-c]")) == ["plain"]
    with pytest.raises(InputError, match=r"unknown norm layer 'stem.bm'; did you mean 'stem.bn'\?"):
        names(include="stem.bm")
    with pytest.raises(InputError, match="unknown norm layer 'token'"):
        names(exclude="token")


def test_an_example_spares_layers_with_too_little_to_measure() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)),
        *(nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4)),
    )
    model[2].eval()
    x = torch.randn(2, 3, 8, 8)
    before, state = _copies(model), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    conversion = convert_norm_(model, "instance", example=x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(model[i]).__name__ for i in (1, 4, 6)] == [
        *("InstanceNorm", "BatchNorm2d", "BatchNorm1d")
    ]
    assert "left as it is" in conversion.report[1].note
    assert "(2, 4, 1, 1)" in conversion.report[1].note
    assert conversion.converted == 1
    conversion.undo()
    assert _unchanged(model, before)
    assert [module.training for module in model.modules()] == modes
    convert_norm_(model, "instance", example=x)
    model.train()(x).sum().backward()


def test_without_an_example_the_layer_says_it_itself() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    convert_norm_(model, "instance")
    with pytest.raises(InputError, match="InstanceNorm got"):
        model.train()(torch.randn(2, 4, 8, 8))


def test_an_example_counts_samples_for_whitening_and_conditions() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    one, four = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 8, 8)
    assert convert_norm_(model, "domain", num_domains=2, example=one).converted == 0
    assert convert_norm_(model, "iternorm", example=one).converted == 0
    assert convert_norm_(model, "domain", num_domains=2, example=four).converted == 1


class Auxiliary(nn.Module):
    """Uses `aux` in training only, as Inception does, and `never` never."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.aux, self.never = (nn.BatchNorm2d(3) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(x)
        if not self.training:
            return y
        self.steps += 1
        return self.drop(y) + self.aux(x.mean((2, 3), keepdim=True))


def test_layers_that_only_training_reaches_are_seen() -> None:
    model = Auxiliary()
    before, x = _copies(model), torch.randn(1, 3, 4, 4)
    state = torch.get_rng_state()
    conversion = convert_norm_(model, "instance", example=x)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.steps == 0
    assert [change.after for change in conversion.report] == [
        *("normapps.InstanceNorm", "torch.BatchNorm2d", "normapps.InstanceNorm")
    ]
    assert conversion.report[2].note == "not reached by the example"
    assert model.training
    conversion.undo()
    assert _unchanged(model, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "bacth"}, "unknown norm 'bacth'; did you mean 'batch'"),
        ({"to": "batch", "match": "bath"}, "unknown kind of norm 'bath'; did you mean 'batch'"),
        ({"to": "batch", "init": "keep"}, "unknown init 'keep'"),
        ({"to": "batch", "momentun": 0.2}, "option of norm 'batch' 'momentun'; did you mean"),
        ({"to": "torch", "eps": 1.0}, "'torch' takes no options, got eps"),
        ({"to": "batch", "match": "rms"}, r"no norm layer of kind 'rms'.*batch, layer"),
        ({"to": "group", "num_groups": 0}, "stem.bn: .*group"),
        ({"to": "conditional"}, "stem.bn: norm 'conditional' needs num_classes"),
    ],
)
def test_errors_leave_the_model(net: Net, arguments: dict[str, Any], message: str) -> None:
    before = _copies(net)
    with pytest.raises(InputError, match=message):
        convert_norm_(net, **arguments)
    assert _unchanged(net, before)
    assert type(net.plain) is nn.BatchNorm2d


class OwnBatchNorm(nn.BatchNorm2d):
    """Does something else than its base."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def _parametrized() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return layer


def _patched() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


class Lookalike(nn.Module):
    """A frozen batch norm of somebody's own, as detection code has them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(4))


REFUSED = {
    "unknown subclass": (lambda: OwnBatchNorm(4), "OwnBatchNorm is not known here"),
    "lazy": (nn.LazyBatchNorm2d, "LazyBatchNorm2d does not know its channels yet; run one batch"),
    "parametrized": (_parametrized, "ParametrizedBatchNorm2d is parametrized"),
    "pruned": (lambda: prune.random_unstructured(nn.BatchNorm2d(4), "weight", 1), "weight_orig"),
    "scripted": (lambda: torch.jit.script(nn.BatchNorm2d(4)), "compiled by TorchScript"),
    "patched": (_patched, "has a forward of its own"),
    "lookalike": (Lookalike, "Lookalike is not known here"),
    "tracking": (
        lambda: nn.InstanceNorm2d(4, track_running_stats=True),
        "InstanceNorm2d tracks running statistics",
    ),
    "shape": (lambda: nn.LayerNorm((4, 3)), "normalizes over 2 axes"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(make()))
    with pytest.raises(InputError, match=rf"1\.0: .*{message}.*exclude '1.0'"):
        convert_norm_(model, "instance", match="all")
    assert type(model[0]) is nn.BatchNorm2d
    assert convert_norm_(model, "instance", match="all", exclude="1.0").converted == 1


def test_what_is_refused_is_ignored_under_another_match(x: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), OwnBatchNorm(4), nn.GroupNorm(2, 4))
    assert convert_norm_(model, "instance", match="group").converted == 1


def test_a_lazy_layer_can_be_converted_once_it_knows() -> None:
    model = nn.Sequential(nn.LazyBatchNorm2d())
    model(torch.randn(2, 5, 3, 3))
    assert convert_norm_(model, "batch").converted == 1


def test_parametrized_neighbours_do_no_harm(x: Tensor) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))
    out = model.eval()(x)
    assert torch.equal(convert_norm(model, "batch")(x), out)


def test_group_norms_keep_their_groups(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8, eps=1e-3))
    out = model(x)
    assert torch.equal(convert_norm(model, "group", match="group")(x), out)
    fewer = convert_norm(model, "group", match="group", num_groups=2)[1]
    assert (fewer.num_groups, fewer.eps) == (2, 1e-3)
    assert convert_norm(nn.Sequential(fewer), "torch")[0].num_groups == 2


def test_own_options_go_before_carried_ones(net: Net) -> None:
    assert convert_norm(net, "batch", momentum=0.5).stem.bn.momentum == 0.5
    ours = convert_norm(net, "batch", momentum=0.5)
    assert convert_norm(ours, "batch", eps=0.1).stem.bn.momentum == 0.5


def test_printing_says_all(net: Net) -> None:
    shown = str(convert_norm_(net, "instance", exclude="plain"))
    assert "stem.bn" in shown.splitlines()[1]
    assert "also second.1" in shown
    assert shown.endswith("3 of 3 layers replaced")


def test_every_option_in_the_tests_exists() -> None:
    assert all(set(NEEDED[name]) <= set(norm_options(name)) for name in NEEDED)


def test_all_excluded_is_said() -> None:
    with pytest.raises(InputError, match="include and exclude leave none of 1 norm layers"):
        convert_norm_(nn.Sequential(nn.BatchNorm2d(4)), "batch", exclude="*")
