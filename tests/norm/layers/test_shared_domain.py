"""What AutoDIAL, TransNorm and domain-specific whitening have in common."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.autodial import AutoDIAL
from normapps.norm.layers.domain import DomainNorm
from normapps.norm.layers.domain_whitening import DomainWhitening
from normapps.norm.layers.shared_domain import SharedDomainNorm
from normapps.norm.layers.transnorm import TransNorm
from normapps.norm.registry import create_norm
from normapps.norm.routing import Route

C, K = 6, 3
LAYERS: dict[str, dict[str, Any]] = {
    "autodial": {"alpha": 0.7},
    "transnorm": {},
    "domain_whitening": {"group_size": 3},
}
every_layer = pytest.mark.parametrize("name", LAYERS)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _x(domains: list[int] | Tensor, space: tuple[int, ...] = (3, 4), seed: int = 0) -> Tensor:
    """Samples whose mean, spread and correlation depend on their domain and on themselves."""
    where = torch.as_tensor(domains).clamp_min(0)
    shift = where.double().view(-1, 1, *[1] * len(space))
    own = _randn(len(where), C, *[1] * len(space), seed=seed + 1)
    x = _randn(len(where), C, *space, seed=seed) * (shift + 2) + 3 * shift + own
    turn = torch.eye(C, dtype=torch.float64) + 0.4 * _randn(K, C, C, seed=50)
    return torch.einsum("ndc,nc...->nd...", turn[where], x)


def _bank(name: str, **options: Any) -> Any:
    """A layer whose domains all differ."""
    made: Any = create_norm(name, C, num_domains=K, **LAYERS[name], **options).double()
    with torch.no_grad():
        for seed, each in enumerate((made.weight, made.bias)):
            each.copy_(_randn(C, seed=seed + 20) + 1)
        made.running_mean.copy_(_randn(K, C, seed=30) * 2)
        if name == "domain_whitening":
            root = _randn(*made.running_cov.shape, seed=31)
            made.running_cov.copy_(root @ root.mT + 0.1 * torch.eye(3))
        else:
            made.running_var.copy_(_randn(K, C, seed=31).exp())
    return made


def _check_buffers(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for key, each in one.named_buffers():
        torch.testing.assert_close(each, other.get_buffer(key), msg=key, **tolerance)


def test_they_are_banks() -> None:
    kinds = {"autodial": AutoDIAL, "transnorm": TransNorm, "domain_whitening": DomainWhitening}
    for name, kind in kinds.items():
        assert type(_bank(name)) is kind
        assert issubclass(kind, SharedDomainNorm)
        assert _bank(name).weight.shape == (C,)
        with pytest.raises(InputError, match=r"unknown option .* 'share_affine'"):
            create_norm(name, C, num_domains=K, share_affine=True)
    assert issubclass(SharedDomainNorm, DomainNorm)


@every_layer
def test_the_keys_are_a_batch_norms(name: str) -> None:
    found = {key: tuple(value.shape) for key, value in _bank(name).state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {"weight": (C,), "bias": (C,)}
    expected |= {"running_mean": (K, C), "running_var": (K, C), "num_batches_tracked": (K,)}
    if name == "autodial":
        expected["alpha"] = ()
    if name == "domain_whitening":
        expected["running_cov"] = (K, 2, 3, 3)
        del expected["running_var"]
    assert found == expected


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_a_number_and_a_tensor_of_it_agree(name: str, training: bool) -> None:
    mine, theirs = _bank(name).train(training), _bank(name).train(training)
    x = _x([1, 1, 1])
    torch.testing.assert_close(mine(x, 1), theirs(x, torch.tensor([1, 1, 1])), **EXACT)
    torch.testing.assert_close(mine(x, torch.tensor(1)), theirs(x, 1), **EXACT)
    _check_buffers(mine, theirs, **EXACT)


@every_layer
def test_hard_weights_are_numbers(name: str) -> None:
    domains = torch.tensor([0, 2, 1, 2])
    x, weights = _x(domains), torch.eye(K, dtype=torch.float64)[domains]
    mine, theirs = _bank(name), _bank(name)
    torch.testing.assert_close(mine(x, weights * 5), theirs(x, domains), **EXACT)
    _check_buffers(mine, theirs, **EXACT)
    torch.testing.assert_close(mine.eval()(x, weights), theirs.eval()(x, domains), **EXACT)


@every_layer
def test_domains_of_the_same_data_get_the_same(name: str) -> None:
    part = _x([0, 0])
    x, domains = torch.cat([part, part, part]), torch.tensor([0, 0, 1, 1, 2, 2])
    y = _bank(name)(x, domains)
    torch.testing.assert_close(y[:2], y[2:4], **EXACT)
    torch.testing.assert_close(y[:2], y[4:], **EXACT)


@every_layer
def test_an_absent_domain_stands_by_its_population_and_keeps_every_bit(name: str) -> None:
    """Measured later, with other moments there, the present domains come out otherwise."""
    domains = torch.tensor([0, 2, 2, 0])
    bank, other, x = _bank(name), _bank(name), _x([0, 2, 2, 0])
    other.running_mean[1] += 1
    kept = copy.deepcopy(bank.state_dict())
    found, there = bank(x, domains), other(x, domains)
    for key in bank.tracked:
        assert torch.equal(getattr(bank, key)[1], kept[key][1])
        assert not torch.equal(getattr(bank, key)[2], kept[key][2])
    assert torch.equal(found, there) == (name == "domain_whitening")


@every_layer
@pytest.mark.parametrize("unseen", ["mean", "nearest"])
def test_the_unknown_move_nothing_and_get_populations(name: str, unseen: str) -> None:
    domains = torch.tensor([0, -1, 0, -1, 2, 2])
    x, known = _x(domains), domains >= 0
    bank, without = _bank(name, unseen=unseen), _bank(name, unseen=unseen)
    by_population = _bank(name, unseen=unseen).eval()(x, domains)
    expected = without(x[known], domains[known])
    found = bank(x, domains)
    torch.testing.assert_close(found[known], expected, **EXACT)
    torch.testing.assert_close(found[~known], by_population[~known], **EXACT)
    _check_buffers(bank, without, **EXACT)


@every_layer
def test_the_nearest_is_as_if_it_were_known(name: str) -> None:
    bank, x = _bank(name, unseen="nearest").eval(), _x([0, 1, 2])
    bank.running_mean.copy_(x.mean((2, 3)))
    if name == "domain_whitening":
        bank.running_cov.copy_(x.var((2, 3)).view(K, 2, 3).diag_embed())
    else:
        bank.running_var.copy_(x.var((2, 3)))
    expected = bank(x, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(bank(x, -1), expected, **EXACT)
    torch.testing.assert_close(bank(x, torch.tensor([0, -1, 2])), expected, **EXACT)
    other = _bank(name).eval()
    other.load_state_dict(bank.state_dict())
    even = other(x, torch.full((3, K), 1 / K, dtype=torch.float64))
    torch.testing.assert_close(other(x, -1), even, **EXACT)


@every_layer
def test_samples_of_soft_membership_at_the_ends_and_between(name: str) -> None:
    bank, x = _bank(name).eval(), _x([0, 0, 0])
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype=torch.float64)
    y = bank(x, weights)
    torch.testing.assert_close(y[:1], bank(x[:1], 0), **EXACT)
    torch.testing.assert_close(y[2:], bank(x[2:], -1), **EXACT)
    assert not torch.allclose(y[1:2], bank(x[1:2], 0))


@every_layer
def test_frozen_uses_and_keeps_the_populations(name: str) -> None:
    bank, x = _bank(name), _x([0, 1, 2, -1])
    bank.frozen = True
    kept = copy.deepcopy(bank.state_dict())
    for condition in (torch.tensor([0, 1, 2, -1]), 1):
        expected = bank.eval()(x, condition)
        torch.testing.assert_close(bank.train()(x, condition), expected, **EXACT)
    for key, value in bank.state_dict().items():
        assert torch.equal(value, kept[key]), key


@every_layer
def test_every_parameter_learns_whatever_the_batch_holds(name: str) -> None:
    """Under DDP a parameter without a gradient would be an error."""
    for condition in (0, torch.tensor([1, 1, 2]), None, torch.tensor([-1, -1, 0])):
        for frozen in (False, True):
            bank = _bank(name)
            bank.frozen = frozen
            route = Route(condition, K)
            bank(_x([0, 1, 2]), route).square().sum().backward()
            assert all(each.grad is not None for each in bank.parameters())


@every_layer
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_batch_recomputed_is_not_counted_again(name: str, momentum: float | None) -> None:
    bank, x, route = _bank(name, momentum=momentum), _x([0, 1, 2]), Route(torch.arange(3), K)
    expected = bank(x, route)
    kept = copy.deepcopy(bank.state_dict())
    route.done = True
    assert torch.equal(bank(x, route), expected)
    for key, value in bank.state_dict().items():
        assert torch.equal(value, kept[key]), key
    assert bank.num_batches_tracked.tolist() == [1, 1, 1]


@every_layer
def test_one_known_domain_with_too_few_values_is_refused(name: str) -> None:
    least = 4 if name == "domain_whitening" else 2
    with pytest.raises(InputError, match=rf"1 sample\(s\) a channel, needs {least}; give larger"):
        _bank(name)(_randn(1, C, 1, 1), 0)


@every_layer
@pytest.mark.parametrize("settled", [True, False])
def test_a_branch(name: str, settled: bool) -> None:
    """Settled, it computes at inference what the layer does; else it holds what the domain does."""
    bank, x = _bank(name, layout="2d", act=nn.ReLU).eval(), _x([1, 1])
    bank.bias.requires_grad_(False)
    with torch.no_grad():
        branch = bank.branch(1, settled=settled)
    assert torch.equal(branch(x), bank(x, 1)) == settled
    assert branch.weight.requires_grad
    assert not branch.bias.requires_grad
    if not settled:
        for key, value in bank.own(1).items():
            assert torch.equal(branch.state_dict()[key], value), key


@every_layer
def test_compiled_once_for_all_mixes(name: str) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    bank, eager = _bank(name), _bank(name)
    compiled = torch.compile(bank, fullgraph=True, backend=counter)
    for step, domains in enumerate([[0, 1, 2], [2, 2, 2], [-1, 0, 1]]):
        x, given = _x(domains, seed=step), torch.tensor(domains)
        torch.testing.assert_close(compiled(x, given), eager(x, given), **EXACT)
    assert counter.frame_count == 1
    _check_buffers(bank, eager, **EXACT)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_domain(bad: float) -> None:
    """Where domains are not normalized by each other, as in whitening."""
    domains = torch.tensor([0, 1, 2, 1, 2, 0])
    results = []
    for value in (bad, 1.0):
        bank, x = _bank("domain_whitening"), _x(domains)
        x[0, 2, 1, 1] = value
        y = bank(x, domains)
        results.append({"y": y[domains != 0], "cov": bank.running_cov[1:]})
    for key, each in results[1].items():
        torch.testing.assert_close(results[0][key], each, rtol=0, atol=0, msg=key)


def test_empty_batches_meet_others() -> None:
    """Alone, an empty batch in training is refused; at inference it passes."""
    for name in LAYERS:
        bank, x = _bank(name), _x([0])[:0].requires_grad_()
        with pytest.raises(InputError, match="0 sample"):
            bank(x, torch.zeros(0, dtype=torch.long))
        assert bank.eval()(x, torch.zeros(0, dtype=torch.long)).shape == x.shape


PARTS = ([0, 1, 1, 0, -1], [1, 2, 0], [1, 2, 2], [])
CALLS = {"mixed": (0, 1), "one domain a process": (0, 1), "one is empty": (2, 3)}


def _given(call: str, rank: int) -> tuple[Tensor, Tensor]:
    part = PARTS[CALLS[call][rank]]
    x = _x(part, seed=rank) if part else _x([0])[:0]
    domains = [rank] * len(part) if call.startswith("one domain") else part
    return x.requires_grad_(), torch.tensor(domains, dtype=torch.long)


def _weights(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, C * 12, dtype=x.dtype).view(1, C, 3, 4)


def _joined(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    found = {}
    for name in LAYERS:
        for call in CALLS:
            bank, (x, domains) = _bank(name, sync=True), _given(call, rank)
            number = call.startswith("one domain")
            y = bank(x, rank if number else domains)
            (y * _weights(x)).sum().backward()
            grads = {key: each.grad for key, each in bank.named_parameters()}
            found[f"{name} {call}"] = {"y": y.detach(), "x": x.grad, **grads}
            found[f"{name} {call}"] |= dict(bank.named_buffers())
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_are_one_batch(tmp_path: Path) -> None:
    """Mixed batches, a domain a process, and an empty batch beside one without the first domain."""
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=_joined, args=(i, str(tmp_path))) for i in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    saved = [torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2)]
    for name in LAYERS:
        for call in CALLS:
            found = [each[f"{name} {call}"] for each in saved]
            parts = [_given(call, rank) for rank in range(2)]
            x = torch.cat([part for part, _ in parts]).detach().requires_grad_()
            bank = _bank(name)
            y = bank(x, torch.cat([domains for _, domains in parts]))
            (y * _weights(x)).sum().backward()
            joined = {"y": y, "x": x.grad}
            for key, value in joined.items():
                together = torch.cat([each[key] for each in found])
                torch.testing.assert_close(together, value, msg=f"{name} {call} {key}", **EXACT)
            for key, parameter in bank.named_parameters():
                summed = found[0][key] + found[1][key]
                torch.testing.assert_close(summed, parameter.grad, msg=f"{name} {key}", **EXACT)
            for key, buffer in bank.named_buffers():
                for each in found:
                    torch.testing.assert_close(each[key], buffer, msg=f"{name} {key}", **EXACT)
