"""A network with domains: routed as its domains apart, and taken out again as it was."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normapps.models  # noqa: F401  the guard before timm
from normapps.errors import InputError
from normapps.norm.convert.converter import convert_norm
from normapps.norm.domain import DomainModel
from normapps.norm.layers.batch import BatchNorm
from normapps.norm.layers.domain import DomainNorm
from normapps.norm.population.measuring import measure
from normapps.norm.population.statistics import Population, apply_

K = 3
EXACT = {"rtol": 1e-9, "atol": 1e-9}


class Tiny(nn.Module):
    """Two convolutions with batch norms; the second part can be checkpointed."""

    def __init__(self, use_reentrant: bool | None = None, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Tanh()
        )
        self.head = nn.Linear(width, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.use_reentrant is None:
            x = self.block(x)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.use_reentrant)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, scales and statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in model.state_dict().items():
            if name.endswith("running_var"):
                each.copy_(torch.rand(each.shape, generator=generator) + 0.5)
            elif each.is_floating_point() and each.dim() == 1:
                each.copy_(torch.randn(each.shape, generator=generator) * 0.3 + 0.5)
            elif each.is_floating_point():
                each.copy_(torch.randn(each.shape, generator=generator) * 0.3)
    return model


def _tiny(seed: int = 0, **options: Any) -> DomainModel:
    """A model in float64 whose domains differ."""
    plain = _settle(Tiny(options.pop("use_reentrant", None)), seed).double()
    model = DomainModel(plain, K, **options)
    for domain in range(K):
        for i, row in enumerate(model.state_of(domain).values()):
            if row.is_floating_point():
                row.data.mul_(1 + 0.3 * domain + 0.1 * i)
    return model


def _images(n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    channels = 2 if size == 8 else 3
    return torch.randn(n, channels, size, size, generator=generator).to(dtype)


MIXED = torch.tensor([0, 2, 1, 2, 0, 0])


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.named_buffers()}


def _check_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert list(a) == list(b)
    for name, each in a.items():
        torch.testing.assert_close(each, b[name], msg=name, **tolerance)


# routing


def test_every_domain_starts_as_the_network_was() -> None:
    plain = _settle(Tiny()).eval()
    model, x = DomainModel(plain, K), _images(dtype=torch.float32)
    for domain in range(K):
        assert torch.equal(model(x, domain), plain(x))
    torch.testing.assert_close(model(x, MIXED), plain(x))
    torch.testing.assert_close(model(x, None), plain(x))
    assert not any(isinstance(each, DomainNorm) for each in plain.modules())


def test_a_mixed_batch_at_inference_is_each_sample_by_itself() -> None:
    model, x = _tiny().eval(), _images()
    y = model(x, MIXED)
    for n, domain in enumerate(MIXED.tolist()):
        torch.testing.assert_close(y[n : n + 1], model(x[n : n + 1], domain), **EXACT)
    assert not torch.allclose(y[1], model(x, 0)[1])


def test_a_mixed_batch_in_training_is_each_domain_by_itself() -> None:
    """The convolutions' gradients of a mixed batch are the sum of the domains' own."""
    model, x = _tiny(), _images()
    apart = [model.export(domain) for domain in range(K)]
    y = model(x, MIXED)
    y.square().sum().backward()
    for domain, network in enumerate(apart):
        mine = network(x[domain == MIXED])
        torch.testing.assert_close(y[domain == MIXED], mine, **EXACT)
        mine.square().sum().backward()
    for name in ("stem.0.weight", "head.weight"):
        expected = sum(network.get_parameter(name).grad for network in apart)
        torch.testing.assert_close(model.model.get_parameter(name).grad, expected, **EXACT)
    for domain, network in enumerate(apart):
        expected = {key: network.state_dict()[key] for key in model.state_of(domain)}
        _check_same(model.state_of(domain), expected, **EXACT)


def test_two_layers_agree_on_the_nearest_domain() -> None:
    """By itself the second layer would find domain 0 nearest; the first decides for 1."""
    model = _tiny(unseen="nearest").eval()
    first, second = model.banks().values()
    with torch.no_grad():
        x = _images()
        features = model.model.stem[0](x)
        first.running_mean[:] = features.mean((0, 2, 3)) + torch.tensor([[9.0], [0.0], [9.0]])
        second.running_mean[1:] += 50
    torch.testing.assert_close(model(x, -1), model(x, 1), **EXACT)
    mixed = torch.tensor([0, -1, 2, -1, 0, -1])
    resolved = torch.tensor([0, 1, 2, 1, 0, 1])
    torch.testing.assert_close(model(x, mixed), model(x, resolved), **EXACT)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (K, "domain 3: must be 0 … 2, or -1"),
        (True, "domain True: must be an int, a tensor or None"),
        (torch.tensor([0, 1]), "domains of 2 samples meet an activation of 6"),
        (torch.tensor([0, 1, 2, 3, 0, 0]), "domain 3: must be"),
    ],
)
def test_a_domain_that_does_not_fit(domain: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _tiny()(_images(), domain)


def test_after_an_error_the_model_holds_no_condition() -> None:
    model = _tiny()
    with pytest.raises(InputError):
        model(_images(), torch.tensor([0]))
    assert model.condition.value is None


# networks of others


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(name, num_classes=3, **options)
    return made


NETWORKS = ["test_resnet", "test_efficientnet", "mobilenetv3_small_050", "regnetx_002"]


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_networks_in_and_out(name: str) -> None:
    """Their layers fuse activations; classes, keys and logits come back as they were."""
    plain = _settle(_timm(name)).eval()
    model, x = DomainModel(plain, 2), _images(4, dtype=torch.float32, size=64)
    expected = plain(x)
    assert torch.equal(model(x, 1), expected)
    mixed = model.double()(x.double(), torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(mixed, copy.deepcopy(plain).double()(x.double()), **EXACT)
    back = model.float().export(0)
    assert [type(a) for a in back.modules()] == [type(a) for a in plain.modules()]
    assert list(back.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(back.state_dict(), strict=True)
    assert torch.equal(back(x), expected)


def test_a_network_that_caches_tensors_with_a_graph_is_copied() -> None:
    """LeViT keeps its attention biases in eval; `copy.deepcopy` refuses such tensors."""
    plain = _timm("levit_128s", img_size=64, embed_dim=(16, 32, 48), depth=(1, 1, 1)).eval()
    x = _images(2, dtype=torch.float32, size=64)
    expected = plain(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(plain)
    for made in (convert_norm(plain, "batch"), DomainModel(plain, 2).export(0)):
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)
    model = DomainModel(plain, 2)
    before = model(x, 1)
    exported = model.export(1)
    assert torch.equal(exported(x), before)
    assert torch.equal(exported.train()(x), model.train()(x, 1))
    with pytest.raises(InputError, match=r"\(LeViT, EfficientViT\) takes one domain a batch"):
        model(x, torch.tensor([0, 1]))


def test_a_trained_domain_comes_out_to_the_bit() -> None:
    model = DomainModel(_settle(_timm("test_efficientnet")), 2)
    x = _images(6, dtype=torch.float32, size=64)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(2):
        optimizer.zero_grad()
        y = model(x, torch.tensor([0, 1, 0, 1, 1, 0])) + model(x + step, 1)
        y.square().mean().backward()
        optimizer.step()
    model.eval()
    first, second = model.export(0), model.export(1)
    assert torch.equal(first(x), model(x, 0))
    assert torch.equal(second(x), model(x, 1))
    assert not torch.allclose(first(x), second(x))
    assert not first.training
    mixed = model(x, torch.tensor([0, 1, 0, 1, 1, 0]))
    torch.testing.assert_close(mixed[1], second(x)[1], rtol=1e-4, atol=1e-5)


def test_layers_left_out_stay_batch_norms() -> None:
    model = DomainModel(Tiny(), 2, exclude=["stem.*"])
    assert list(model.banks()) == ["block.1"]
    assert type(model.export(0).stem[1]) is nn.BatchNorm2d


def test_a_shared_layer_is_shared_in_both() -> None:
    norm = nn.BatchNorm2d(2)
    plain = _settle(nn.Sequential(norm, nn.Conv2d(2, 2, 1), norm)).eval()
    model = DomainModel(plain, 2)
    assert model.model[0] is model.model[2]
    back = model.export(1)
    assert back[0] is back[2]
    x = _images(dtype=torch.float32)
    assert torch.equal(back(x), plain(x))


def test_a_network_of_our_layers_becomes_one_of_torchs() -> None:
    model = DomainModel(convert_norm(Tiny(), "batch"), 2)
    assert type(model.export(0).stem[1]) is nn.BatchNorm2d
    assert not any(isinstance(each, BatchNorm) for each in model.model.modules())


def test_what_a_layer_keeps_beside_comes_back() -> None:
    import timm.layers

    plain = timm.layers.convert_splitbn_model(_settle(_timm("test_resnet")), 2).eval()
    back = DomainModel(plain, 2).export(1)
    assert sorted(back.state_dict()) == sorted(plain.state_dict())
    x = _images(4, dtype=torch.float32, size=64)
    assert torch.equal(back(x), plain(x))


class Listener:
    """A forward hook that counts, in copies too."""

    calls = 0

    def __call__(self, *args: object) -> None:
        Listener.calls += 1


def test_hooks_stay_on_a_layer() -> None:
    plain = Tiny()
    plain.stem[1].register_forward_hook(Listener())
    model, x = DomainModel(plain, 2), _images(dtype=torch.float32)
    for network, given in ((plain, (x,)), (model, (x, 1)), (model.export(1), (x,))):
        before = Listener.calls
        network(*given)
        assert Listener.calls == before + 1


class Foldable(Tiny):
    def fuse(self) -> Tensor:
        var: Tensor = self.stem[1].running_var
        return self.stem[0].weight * var.rsqrt().view(-1, 1, 1, 1)


def test_only_an_exported_network_can_be_fused() -> None:
    plain = _settle(Foldable())
    model = DomainModel(plain, 2)
    with pytest.raises(InputError, match=r"'stem.1' is a DomainNorm, which cannot be folded"):
        model.model.fuse()
    torch.testing.assert_close(model.export(0).fuse(), plain.fuse())


def test_in_place_on_request() -> None:
    plain = Tiny()
    assert DomainModel(plain, 2, copy=False).model is plain
    assert DomainModel(plain, 2).model is not plain


def test_frozen_batch_norms_stay_frozen() -> None:
    import timm.layers

    plain = _settle(_timm("test_resnet")).double()
    frozen = timm.layers.freeze_batch_norm_2d(plain)
    model, x = DomainModel(frozen, 2).train(), _images(4, size=64)
    kept = _buffers(model)
    torch.testing.assert_close(model(x, torch.tensor([0, 1, 1, 0])), frozen(x), **EXACT)
    torch.testing.assert_close(model(x, 1), frozen(x), **EXACT)
    _check_same(_buffers(model), kept, rtol=0, atol=0)
    assert list(model.export(1).state_dict()) == list(frozen.state_dict())
    assert model.add_domain() == 2


def test_without_statistics_there_is_nothing_to_start_from() -> None:
    plain = Tiny()
    plain.block[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(InputError, match=r"layer 'block.1' keeps no running .*exclude=\['block.1'"):
        DomainModel(plain, 2, copy=False)
    assert type(plain.stem[1]) is nn.BatchNorm2d  # undone
    assert list(DomainModel(plain, 2, exclude=["block.1"]).banks()) == ["stem.1"]


@pytest.mark.parametrize("name", ["ibn", "iln", "cholesky"])
def test_what_a_batch_norm_was_turned_into_is_not_made_one_again(name: str) -> None:
    """A domain is to start as the network was."""
    torch.manual_seed(0)
    plain = convert_norm(Tiny().eval(), name, include=["stem.1"])
    with pytest.raises(InputError, match=r"layer 'stem.1' is .*exclude=\['stem.1'\]"):
        DomainModel(plain, 2)
    kept = DomainModel(plain, 2, exclude=["stem.1"]).eval()
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(kept(x, 1), plain(x), **EXACT)


def test_a_network_without_batch_norms() -> None:
    with pytest.raises(InputError, match="no norm layer"):
        DomainModel(nn.Linear(2, 2), 2)


# checkpointing


def _gradients(model: DomainModel, calls: list[tuple[Tensor, Any]]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(model(x, domain).square().sum() for x, domain in calls).backward()
    return {name: each.grad for name, each in model.named_parameters()}


CALLS: dict[str, list[tuple[int, Any]]] = {
    "one domain": [(0, 1)],
    "mixed": [(0, MIXED)],
    "two domains": [(0, 0), (1, 2)],
    "two mixes": [(0, MIXED), (1, MIXED.flip(0))],
    "number and mix": [(0, 1), (1, MIXED), (2, 1)],
}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_checkpointed_as_without(
    use_reentrant: bool, momentum: float | None, calls: list[tuple[int, Any]]
) -> None:
    """Gradients are the same and every batch is counted once, whatever is recomputed when."""
    mine, reference = _tiny(use_reentrant=use_reentrant), _tiny()
    for model in (mine, reference):
        for bank in model.banks().values():
            bank.momentum = momentum
    given = [(_images(seed=seed).requires_grad_(), domain) for seed, domain in calls]
    _check_same(_gradients(mine, given), _gradients(reference, given), **EXACT)
    _check_same(_buffers(mine), _buffers(reference), **EXACT)
    assert mine.condition.value is None


def test_the_nearest_domain_is_remembered_for_the_recomputation() -> None:
    """The recomputed layer is not the first of the network and would decide otherwise."""
    made = []
    for use_reentrant in (True, False, None):
        model = _tiny(unseen="nearest", use_reentrant=use_reentrant).eval()
        second = list(model.banks().values())[1]
        second.running_mean[0] += 50
        made.append(_gradients(model, [(_images().requires_grad_(), -1)]))
    for each in made[:2]:
        _check_same(each, made[2], **EXACT)


def test_torchs_own_layers_count_a_checkpointed_batch_twice() -> None:
    """What `DomainModel` does not do. If torch ever mends it, the docstring must change."""
    plain = Tiny(use_reentrant=False)
    plain(_images(dtype=torch.float32).requires_grad_()).sum().backward()
    assert plain.stem[1].num_batches_tracked == 1
    assert plain.block[1].num_batches_tracked == 2


def test_timms_checkpointing() -> None:
    x = _images(4, dtype=torch.float32, size=64)
    domains, found = torch.tensor([0, 1, 1, 0]), []
    for enable in (True, False):
        torch.manual_seed(0)
        plain = _settle(_timm("test_resnet"))
        plain.set_grad_checkpointing(enable)
        model = DomainModel(plain, 2)
        gradients = _gradients(model, [(x, domains), (x * 2, 1)])
        found.append((gradients, _buffers(model)))
    _check_same(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    _check_same(found[0][1], found[1][1])


# compiler, precision, processes


def test_compiled_as_a_whole() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model, eager = _tiny(unseen="nearest"), _tiny(unseen="nearest")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step, domains in enumerate([MIXED, MIXED.flip(0), torch.tensor([0, -1, 1, 1, -1, 0])]):
        x = _images(seed=step)
        found, expected = compiled(x, domains), eager(x, domains)
        torch.testing.assert_close(found, expected, **EXACT)
        found.sum().backward()
        expected.sum().backward()
    assert counter.frame_count == 1
    for domain in (0, 1, 2, 0, 2):
        torch.testing.assert_close(compiled(x, domain), eager(x, domain), **EXACT)
    assert counter.frame_count <= 4
    _check_same(_buffers(model), _buffers(eager), **EXACT)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)


def test_the_inner_network_compiled() -> None:
    """The condition comes from outside of the graph: no recompilation for other domains."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model, eager = _tiny(), _tiny()
    model.model.compile(fullgraph=True, backend=counter)
    for step, domains in enumerate([MIXED, MIXED.flip(0), MIXED]):
        x = _images(seed=step)
        torch.testing.assert_close(model(x, domains), eager(x, domains), **EXACT)
    assert counter.frame_count == 1
    _check_same(_buffers(model), _buffers(eager), **EXACT)


@pytest.mark.parametrize("domain", [1, MIXED], ids=["one", "mixed"])
def test_statistics_are_float32_under_autocast(domain: Any) -> None:
    model = DomainModel(_settle(Tiny()), K)
    x = _images(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, domain)
    exact = DomainModel(_settle(Tiny()), K)
    torch.testing.assert_close(y, exact(x, domain), rtol=0.05, atol=0.05, check_dtype=False)
    for name, each in model.named_buffers():
        assert not each.is_floating_point() or each.dtype == torch.float32
        torch.testing.assert_close(each, exact.get_buffer(name), rtol=0.02, atol=0.02)


def _step(model: nn.Module, x: Tensor, domain: Any) -> dict[str, Tensor]:
    model(x, domain).square().sum().backward()
    inner: Any = getattr(model, "module", model)
    found = {name: each.grad for name, each in inner.named_parameters()}
    return found | _buffers(inner)


def _distributed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    torch.save(_two_steps(rank), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _two_steps(rank: int) -> dict[str, dict[str, Tensor]]:
    """Apart, because a DDP model that outlives its process group now and then hangs at its end."""
    model = nn.parallel.DistributedDataParallel(_tiny(sync=True))
    found = {"number": _step(model, _images(3, seed=rank), rank)}
    model.zero_grad()
    found["mixed"] = _step(model, _images(3, seed=rank + 2), MIXED[3 * rank :][:3])
    return found


def test_two_processes_with_their_own_domains_are_one(tmp_path: Path) -> None:
    """Under DDP, without `find_unused_parameters`; each process holds other domains."""
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=_distributed, args=(i, str(tmp_path))) for i in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    model = _tiny()
    for key, seed, domains in (
        ("number", 0, torch.tensor([0, 0, 0, 1, 1, 1])),
        ("mixed", 2, MIXED),
    ):
        model.zero_grad()
        x = torch.cat([_images(3, seed=seed), _images(3, seed=seed + 1)])
        expected = _step(model, x, domains)
        gradients = {name for name, _ in model.named_parameters()}
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[key]
            found = {k: v * 2 if k in gradients else v for k, v in found.items()}  # DDP's mean
            _check_same(found, expected, **EXACT)


def test_sync_is_carried_from_torchs_layers_or_given() -> None:
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(Tiny())
    assert all(bank.sync for bank in DomainModel(plain, 2).banks().values())
    assert all(bank.sync for bank in DomainModel(Tiny(), 2, sync=True).banks().values())
    assert not any(bank.sync for bank in DomainModel(plain, 2, sync=False).banks().values())


# what a domain has


def test_a_deep_copy_routes_by_itself() -> None:
    model, x = _tiny(), _images()
    other = copy.deepcopy(model)
    kept = _buffers(model)
    other(x, MIXED)
    _check_same(_buffers(model), kept, rtol=0, atol=0)
    expected = copy.deepcopy(model)(x, 2)
    assert torch.equal(model(x, 2), expected)


def test_state_dict_round_trip() -> None:
    model, x = _tiny(), _images()
    model(x, MIXED)
    fresh = _tiny(seed=5)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x, MIXED), model.eval()(x, MIXED))


@pytest.mark.parametrize("share_affine", [True, False])
def test_what_a_domain_costs(share_affine: bool) -> None:
    model = _tiny(share_affine=share_affine)
    norms, everything = 2 * (4 + 4), sum(each.numel() for each in Tiny().parameters())
    own = 0 if share_affine else norms
    shared = everything - own
    assert model.cost() == (own, norms + 2, shared)
    names = ["stem.1.weight", "stem.1.bias", "block.1.weight", "block.1.bias"]
    assert list(model.parameters_of(1)) == ([] if share_affine else names)
    exported = dict(model.export(1).named_parameters())
    for name, row in model.parameters_of(1).items():
        assert torch.equal(row, exported[name])


@pytest.mark.parametrize("source", ["network", "state dict", "state"])
def test_a_domain_goes_from_one_model_into_another(source: str) -> None:
    model, other, x = _tiny().eval(), _tiny(seed=0).eval(), _images()
    for row in model.state_of(1).values():
        if row.is_floating_point():
            row.data.mul_(1.5)
    made: dict[str, Callable[[], Any]] = {
        "network": lambda: model.export(1),
        "state dict": lambda: model.export(1).state_dict(),
        "state": lambda: model.state_of(1),
    }
    before = other(x, 0), other(x, 1)
    other.load_domain(2, made[source]())
    assert torch.equal(other(x, 2), model(x, 1))
    assert torch.equal(other(x, 0), before[0])
    assert torch.equal(other(x, 1), before[1])


def test_shared_scales_stay_when_a_domain_is_loaded() -> None:
    model = _tiny(share_affine=True)
    kept = model.model.stem[1].weight.clone()
    model.load_domain(1, _settle(Tiny(), 7).double())
    assert torch.equal(model.model.stem[1].weight, kept)
    assert not torch.equal(model.model.stem[1].running_mean[1], model.model.stem[1].running_mean[0])


def test_populations_go_in_and_come_out() -> None:
    model, x = _tiny().eval(), _images()
    given = model.population(2)
    assert isinstance(given, Population)
    assert torch.equal(given.layers["stem.1"].mean[0], model.model.stem[1].running_mean[2])
    kept = model.state_of(1)["stem.1.weight"].clone()
    with pytest.raises(InputError, match=r"stem.1.weight differs: the population belongs"):
        model.load_domain(1, given)  # domain 2 has scales of its own
    model.load_domain(1, given, strict=False)
    for name in ("running_mean", "running_var"):
        for bank in model.banks().values():
            assert torch.equal(getattr(bank, name)[1], getattr(bank, name)[2])
    assert torch.equal(model.state_of(1)["stem.1.weight"], kept)
    assert torch.isfinite(model(x, 1)).all()


def test_a_population_measured_for_a_domain_is_loaded_whole() -> None:
    model, x = _tiny().eval(), _images()
    found = measure(model.export(1).eval(), [x])
    model.load_domain(1, found)
    expected = model.export(1)
    apply_(expected, found)
    assert torch.equal(model(x, 1), expected.eval()(x))
    mean = model.model.stem[0](x).mean((0, 2, 3))
    torch.testing.assert_close(model.state_of(1)["stem.1.running_mean"], mean)


def test_a_population_of_another_model_changes_nothing() -> None:
    model, x = _tiny().eval(), _images()
    kept = _buffers(model)
    others = nn.Sequential(model.export(1)), _settle(Tiny(), 9).double()
    for other in others:
        with pytest.raises(InputError, match="the population belongs to another model"):
            model.load_domain(1, measure(other.eval(), [x]))
    with pytest.raises(InputError, match="no layer of the population is in the model"):
        model.load_domain(1, measure(others[0], [x]), strict=False)
    lacking = model.population(1)
    del lacking.layers["block.1"]
    with pytest.raises(InputError, match=r"layer 'block.1' is not in the population"):
        model.load_domain(1, lacking)
    _check_same(_buffers(model), kept, rtol=0, atol=0)
    shifted = dataclasses.replace(lacking, unreached=("block.1",))
    shifted.layers["stem.1"].mean.add_(1)
    model.load_domain(1, shifted)
    kept["model.stem.1.running_mean"][1] += 1
    _check_same(_buffers(model), kept, **EXACT)


def test_what_does_not_fit_changes_nothing() -> None:
    model = _tiny()
    kept = {name: each.clone() for name, each in model.state_dict().items()}
    state = dict(model.export(1).state_dict())
    del state["block.1.running_var"]
    with pytest.raises(InputError, match=r"'block.1.running_var' of domain 0: nothing, needs \(4,"):
        model.load_domain(0, state)
    with pytest.raises(InputError, match=r"'stem.1.weight' of domain 0: \(5,\), needs \(4,\)"):
        model.load_domain(0, Tiny(width=5))
    for call in (model.export, model.population, model.state_of, model.add_domain):
        with pytest.raises(InputError, match="domain 3: must be"):
            call(3)
    for name, each in model.state_dict().items():
        assert torch.equal(each, kept[name]), name


def test_a_new_domain_starts_as_another() -> None:
    model, x = _tiny(), _images()
    model.model.stem[1].bias.requires_grad_(False)
    before = model.export(1).eval()(x)
    assert model.add_domain(from_domain=1) == 3
    model.eval()
    assert torch.equal(model(x, 3), before)
    assert torch.equal(model(x, 1), before)
    assert not model.model.stem[1].bias.requires_grad
    kept = model.export(1).state_dict()
    model.train()(x, 3)
    for name, each in model.export(1).state_dict().items():
        assert torch.equal(each, kept[name]), name
    model.train()(x, torch.tensor([0, 3, 3, 1, 0, 1]))
    with pytest.raises(InputError, match="domain 4: must be 0 … 3"):
        model(x, 4)
