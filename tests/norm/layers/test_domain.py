"""A bank of domains against separate batch norms of torch, sample by sample."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.condition import ConditionedModel
from normapps.norm.layers.batch import BatchNorm2d
from normapps.norm.layers.domain import DomainNorm
from normapps.norm.registry import create_norm
from normapps.norm.routing import Route

C, K = 5, 3


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _x(domains: list[int] | Tensor, space: tuple[int, ...] = (3, 4), seed: int = 0) -> Tensor:
    """Samples whose mean and spread depend on their domain and on themselves."""
    shift = torch.as_tensor(domains, dtype=torch.float64).view(-1, 1, *[1] * len(space))
    own = _randn(len(domains), C, *[1] * len(space), seed=seed + 1)
    return _randn(len(domains), C, *space, seed=seed) * (shift + 2) + 3 * shift + own


def _bank(**options: Any) -> DomainNorm:
    """A layer whose domains all differ."""
    made = DomainNorm(C, K, dtype=torch.float64, **options)
    with torch.no_grad():
        for seed, each in enumerate(made.parameters()):
            each.copy_(_randn(*each.shape, seed=seed + 20) + 1)
        made.running_mean.copy_(_randn(K, C, seed=30) * 2)
        made.running_var.copy_(_randn(K, C, seed=31).exp())
    return made


def _apart(bank: DomainNorm) -> list[nn.BatchNorm2d]:
    """Torch's own layer for each domain of a bank."""
    made = []
    for domain in range(K):
        norm = nn.BatchNorm2d(C, bank.eps, bank.momentum, bank.affine, dtype=torch.float64)
        for name in ("running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(bank, name)[domain])
        if bank.affine:
            for name in ("weight", "bias"):
                values = getattr(bank, name)
                row = values if bank.share_affine else values[domain]
                getattr(norm, name).data.copy_(row.detach())
        made.append(norm.train(bank.training))
    return made


def _expected(norms: list[nn.BatchNorm2d], x: Tensor, domains: list[int]) -> Tensor:
    """Each domain's samples through its own layer; a single value through the population."""
    y, where = torch.empty_like(x), torch.tensor(domains)
    for domain, norm in enumerate(norms):
        mine = where == domain
        if not mine.any():
            continue
        if x[mine][:, 0].numel() == 1 and norm.training:
            y[mine] = norm.eval()(x[mine])
            norm.train()
        else:
            y[mine] = norm(x[mine])
    return y


def _check_buffers(bank: DomainNorm, norms: list[nn.BatchNorm2d], **tolerance: float) -> None:
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        theirs = torch.stack([getattr(norm, name) for norm in norms])
        torch.testing.assert_close(getattr(bank, name), theirs, **tolerance)


EXACT = {"rtol": 1e-10, "atol": 1e-10}
several_mixes = pytest.mark.parametrize(
    "domains", [[0, 1, 2, 1, 0, 2], [2, 2, 0, 0], [1], [0, 2, 2]], ids=str
)


# a mixed batch is its domains apart


@several_mixes
@pytest.mark.parametrize("options", [{}, {"share_affine": True}, {"affine": False}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_mixed_batch_is_each_domain_by_itself(
    domains: list[int], options: dict[str, Any], training: bool
) -> None:
    bank = _bank(**options).train(training)
    norms = _apart(bank)
    for step in range(3):
        x = _x(domains, seed=step)
        theirs = x.clone().requires_grad_()
        mine = x.clone().requires_grad_()
        found, expected = bank(mine, torch.tensor(domains)), _expected(norms, theirs, domains)
        torch.testing.assert_close(found, expected, **EXACT)
        weight = _randn(*x.shape, seed=9)
        (found * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
    _check_buffers(bank, norms, **EXACT)


def test_gradients_of_scale_and_shift_are_each_domains_own() -> None:
    domains = [0, 2, 2, 0, 2]
    bank, x = _bank(), _x(domains)
    norms = _apart(bank)
    bank(x, torch.tensor(domains)).square().sum().backward()
    _expected(norms, x, domains).square().sum().backward()
    for name in ("weight", "bias"):
        found = getattr(bank, name).grad
        assert torch.equal(found[1], torch.zeros(C, dtype=torch.float64))
        for domain in (0, 2):
            torch.testing.assert_close(found[domain], getattr(norms[domain], name).grad, **EXACT)


@settings(max_examples=40, deadline=None)
@given(
    domains=st.lists(st.integers(0, K - 1), min_size=1, max_size=9),
    space=st.sampled_from([(1, 1), (2, 1), (3, 4)]),
    momentum=st.sampled_from([0.1, 1.0, None]),
)
def test_any_mix_of_domains(
    domains: list[int], space: tuple[int, int], momentum: float | None
) -> None:
    """Single values a channel included: that domain's population normalizes, and stays."""
    bank = _bank(momentum=momentum)
    norms = _apart(bank)
    x = _x(domains, space)
    found = bank(x, torch.tensor(domains))
    torch.testing.assert_close(found, _expected(norms, x, domains), **EXACT)
    _check_buffers(bank, norms, **EXACT)


def test_an_absent_domain_keeps_every_bit() -> None:
    bank = _bank()
    kept = copy.deepcopy(bank.state_dict())
    bank(_x([0, 2, 2, 0]), torch.tensor([0, 2, 2, 0]))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(bank, name)[1], kept[name][1])
        assert not torch.equal(getattr(bank, name)[2], kept[name][2])


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("training", [True, False])
def test_one_domain_for_all_is_torchs_kernel_to_the_bit(
    training: bool, momentum: float | None
) -> None:
    bank = _bank(momentum=momentum).train(training)
    norms = _apart(bank)
    for step, domain in enumerate([1, 0, 1, 1]):
        x = _x([domain] * 4, seed=step)
        assert torch.equal(bank(x, domain), norms[domain](x))
    _check_buffers(bank, norms, **({"rtol": 0, "atol": 0} if momentum else EXACT))


def test_a_number_and_a_tensor_of_it_agree() -> None:
    x = _x([1, 1, 1])
    mine, theirs = _bank(), _bank()
    expected = mine(x, 1)
    torch.testing.assert_close(theirs(x, torch.tensor([1, 1, 1])), expected, **EXACT)
    torch.testing.assert_close(_bank()(x, torch.tensor(1)), expected, **EXACT)
    torch.testing.assert_close(mine.running_var, theirs.running_var, **EXACT)


def test_in_float32_a_far_mean_does_no_harm() -> None:
    """Chan's formula, not E[x²] − E[x]²: a mean of 1000 beside a spread of 1."""
    domains = [0, 1, 0, 1]
    x = (_x(domains, (8, 8)) + 1000).float()
    bank = _bank().float()
    exact = _expected(_apart(_bank()), x.double(), domains)
    found = bank(x, torch.tensor(domains))
    assert (found.double() - exact).abs().max() < 1e-3


def test_matrix_products_of_low_precision_are_not_used() -> None:
    """Under bfloat16 products a mean of 1000 would be off by 4; autocast must not reach them."""
    domains, x = torch.tensor([0, 1, 0, 1]), (_x([0, 1, 0, 1], (8, 8)) + 1000).float()
    exact = _bank().float()(x, domains)
    with torch.autocast("cpu", torch.bfloat16):
        found = _bank().float()(x, domains)
    torch.testing.assert_close(found, exact)


# soft membership


def test_hard_weights_are_numbers() -> None:
    domains = torch.tensor([0, 2, 1, 2])
    x, weights = _x(domains), torch.eye(K, dtype=torch.float64)[domains]
    mine, theirs = _bank(), _bank()
    torch.testing.assert_close(mine(x, weights), theirs(x, domains), **EXACT)
    torch.testing.assert_close(mine.running_var, theirs.running_var, **EXACT)
    torch.testing.assert_close(mine.eval()(x, weights), theirs.eval()(x, domains), **EXACT)


def _weighted_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance over (N, S), from their definition."""
    share = weights.view(-1, 1, 1, 1) / (weights.sum() * x[0, 0].numel())
    mean = (share * x).sum((0, 2, 3))
    return mean, (share * (x - mean.view(1, -1, 1, 1)).square()).sum((0, 2, 3))


def test_soft_membership_by_its_definition() -> None:
    x = _x([0, 1, 2, 0])
    weights = _randn(4, K, seed=3).softmax(1)
    bank = _bank()
    found = bank(x, weights * 7)  # rows are scaled to sum 1
    bank_moments = [_weighted_moments(x, weights[:, domain]) for domain in range(K)]
    mean = torch.stack([m for m, _ in bank_moments])
    var = torch.stack([v for _, v in bank_moments])
    for n in range(4):
        w = weights[n].view(-1, 1)
        centre = (w * mean).sum(0)
        spread = (w * (var + (mean - centre).square())).sum(0)
        gamma, beta = (w * bank.weight).sum(0), (w * bank.bias).sum(0)
        y = (x[n] - centre.view(-1, 1, 1)) / (spread + bank.eps).sqrt().view(-1, 1, 1)
        expected = y * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1)
        torch.testing.assert_close(found[n], expected, **EXACT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_gradcheck(training: bool, soft: bool) -> None:
    bank = _bank().train(training)
    x = _x([0, 1, 0, 1], (1, 3)).requires_grad_()
    given = _randn(4, K, seed=5).abs() + 0.1 if soft else torch.tensor([0, -1, 0, 2])
    values = [bank.weight, bank.bias, *([given.requires_grad_()] if soft else [])]

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        state = {"weight": values[0], "bias": values[1]}
        state |= {name: each.clone() for name, each in bank.named_buffers()}
        condition = values[2] if soft else given
        y: Tensor = torch.func.functional_call(bank, state, (x, condition))
        return y

    assert torch.autograd.gradcheck(forward, (x, *values))


# unknown domains


def test_unknown_is_the_even_mixture_of_the_domains() -> None:
    bank = _bank().eval()
    x = _x([0, 1])
    mean, var = bank.running_mean, bank.running_var
    centre = mean.mean(0)
    spread = (var + (mean - centre).square()).mean(0)
    expected = nn.functional.batch_norm(
        x, centre, spread, bank.weight.mean(0), bank.bias.mean(0), False, 0, bank.eps
    )
    for condition in (-1, torch.tensor([-1, -1]), torch.tensor(-1), torch.zeros(2, K)):
        torch.testing.assert_close(bank(x, condition), expected, **EXACT)


@pytest.mark.parametrize("unseen", ["mean", "nearest"])
def test_in_training_the_unknown_move_nothing(unseen: str) -> None:
    domains = torch.tensor([0, -1, 0, -1, 2, 2])
    bank, x = _bank(unseen=unseen), _x(domains)
    by_population = _bank(unseen=unseen).eval()(x, domains)
    without = _bank(unseen=unseen)
    expected = without(x[domains >= 0], domains[domains >= 0])
    found = bank(x, domains)
    torch.testing.assert_close(found[domains >= 0], expected, **EXACT)
    for name, each in bank.named_buffers():
        torch.testing.assert_close(each, without.get_buffer(name), **EXACT)
    torch.testing.assert_close(found[domains < 0], by_population[domains < 0], **EXACT)


def test_nearest_is_the_least_symmetric_divergence() -> None:
    bank = _bank(unseen="nearest").eval()
    with torch.no_grad():
        bank.running_mean.copy_(torch.tensor([0.0, 6.0, 12.0]).view(K, 1))
        bank.running_var.copy_(torch.tensor([1.0, 9.0, 1.0]).view(K, 1))
    x = torch.cat([_randn(1, C, 6, 6) * s + m for m, s in ((6, 3), (0, 1), (12, 1), (5, 2.5))])
    chosen = []
    for sample in x:
        own = sample.flatten(1).mean(1), sample.flatten(1).var(1, unbiased=False)
        first = torch.distributions.Normal(own[0], (own[1] + bank.eps).sqrt())
        each = []
        for mean, var in zip(bank.running_mean, bank.running_var, strict=True):
            second = torch.distributions.Normal(mean, (var + bank.eps).sqrt())
            there = torch.distributions.kl_divergence(first, second)
            back = torch.distributions.kl_divergence(second, first)
            each.append(float((there + back).sum()))
        chosen.append(each.index(min(each)))
    assert chosen == [1, 0, 2, 1]
    expected = bank(x, torch.tensor(chosen))
    torch.testing.assert_close(bank(x, torch.full((4,), -1)), expected, **EXACT)
    torch.testing.assert_close(bank(x, -1), expected, **EXACT)
    known = torch.tensor([0, -1, -1, 2])  # the known stay where they are
    torch.testing.assert_close(bank(x, known), bank(x, torch.tensor([0, 0, 2, 2])), **EXACT)


def test_nearest_of_a_single_position_is_the_likeliest() -> None:
    bank = _bank(unseen="nearest").eval()
    with torch.no_grad():
        bank.running_mean.copy_(torch.tensor([0.0, 1.0, 9.0]).view(K, 1))
        bank.running_var.copy_(torch.tensor([1.0, 100.0, 1.0]).view(K, 1))
    x = torch.tensor([0.2, 5.0, 9.1], dtype=torch.float64).view(3, 1).expand(3, C)
    torch.testing.assert_close(bank(x, -1), bank(x, torch.tensor([0, 1, 2])), **EXACT)


def test_the_first_layer_decides_for_all() -> None:
    first, second = _bank(unseen="nearest").eval(), _bank(unseen="nearest").eval()
    with torch.no_grad():
        for bank, means in ((first, [0.0, 50.0, 100.0]), (second, [100.0, 50.0, 0.0])):
            bank.running_mean.copy_(torch.tensor(means).view(K, 1))
    x = _randn(2, C, 4, 4)  # near 0: domain 0 of the first layer, 2 of the second by itself
    route = Route(None, K)
    first(x, route)
    assert torch.equal(second(x, route), second(x, torch.tensor([0, 0])))
    assert torch.equal(second(x, -1), second(x, torch.tensor([2, 2])))


# places, modes, errors


def test_frozen_uses_and_keeps_the_populations() -> None:
    domains = torch.tensor([0, 1, 2, -1])
    bank, x = _bank(), _x(domains)
    bank.frozen = True
    kept = copy.deepcopy(bank.state_dict())
    for condition in (domains, 1):
        assert torch.equal(bank.train()(x, condition), bank.eval()(x, condition))
    for name, value in bank.state_dict().items():
        assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("layout", ["1d", "2d", "3d", "tokens"])
def test_every_layout(layout: str) -> None:
    space = {"1d": (6,), "2d": (3, 2), "3d": (3, 2, 1), "tokens": (6,)}[layout]
    domains = torch.tensor([0, 2, 0, 1])
    x = _x(domains, (6,))
    expected = _bank()(x, domains)
    bank = _bank(layout=layout)
    given = x.movedim(1, -1) if layout == "tokens" else x.reshape(4, C, *space)
    y = bank(given, domains)
    y = y.movedim(-1, 1) if layout == "tokens" else y.flatten(2)
    torch.testing.assert_close(y, expected, **EXACT)


def test_without_a_bias_and_with_what_follows() -> None:
    bank = create_norm("domain", C, num_domains=K, bias=False, layout="2d", act=nn.ReLU)
    assert sorted(bank.state_dict()) == [
        *("num_batches_tracked", "running_mean", "running_var", "weight")
    ]
    assert bank(_x([0, 1]).float(), torch.tensor([0, 1])).min() == 0


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (3, "domain 3: must be 0 … 2, or -1 for unknown"),
        (-2, "domain -2: must be"),
        ("a", "domain 'a': must be an int, a tensor or None"),
        (torch.tensor([0, 3]), "domain 3: must be 0 … 2"),
        (torch.tensor([-2, 0]), "domain -2: must be 0 … 2"),
        (torch.tensor([0, 1, 1]), "domains of 3 samples meet an activation of 2"),
        (torch.tensor([True, False]), r"domains \(2,\) of torch.bool: must be integers"),
        (torch.tensor([[0, 1]]), r"domains \(1, 2\) of torch.int64: must be"),
        (torch.ones(2, 4), r"domain weights \(2, 4\): must be \(N, 3\)"),
        (torch.ones(2), r"domain weights \(2,\): must be \(N, 3\)"),
        (Route(0, 4), "DomainNorm has 3 domains, the condition was made for 4"),
        (None, "needs a condition"),
    ],
)
def test_a_domain_that_does_not_fit_is_one_clear_line(condition: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        _bank()(_x([0, 1]), condition)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_domains": 0}, "num_domains 0: must be at least 1"),
        ({"num_domains": 2, "unseen": "neares"}, "did you mean 'nearest'"),
        ({"num_domains": 2, "layout": "4d"}, "unknown layout '4d'"),
    ],
)
def test_a_bank_that_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_norm("domain", C, **options)


def test_one_known_domain_with_a_single_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"1 sample.* needs 2"):
        _bank()(_randn(1, C, 1, 1), 0)


# branches


@pytest.mark.parametrize("share_affine", [True, False])
def test_a_branch_is_a_batch_norm_of_its_own(share_affine: bool) -> None:
    bank = _bank(share_affine=share_affine, layout="2d", act=nn.ReLU, eps=1e-3, momentum=0.2)
    bank.weight.requires_grad_(False)
    branch = bank.eval().branch(1)
    assert type(branch) is BatchNorm2d
    x = _x([1, 1])
    assert torch.equal(branch(x), bank(x, 1))
    assert not branch.weight.requires_grad
    assert branch.bias.requires_grad
    assert torch.equal(branch.train()(x), bank.train()(x, 1))
    assert torch.equal(branch.running_var, bank.running_var[1])  # moved alike, and not shared:
    branch(x)
    assert not torch.equal(branch.running_var, bank.running_var[1])


def test_a_branch_goes_into_a_bank_and_comes_out() -> None:
    bank, other = _bank(layout="2d"), _bank(layout="2d")
    given = BatchNorm2d(C, dtype=torch.float64)
    for each in given.state_dict().values():
        each.copy_((torch.rand(each.shape) + 3).to(each.dtype))
    bank.load_branch(2, **given.state_dict())
    for name, value in bank.branch(2).state_dict().items():
        assert torch.equal(value, given.state_dict()[name]), name
    for domain in (0, 1):
        for name, value in bank.branch(domain).state_dict().items():
            assert torch.equal(value, other.branch(domain).state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank: bank.branch(3), "domain 3: must be"),
        (lambda bank: bank.branch(-1), "domain -1: name one of 0 … 2"),
        (lambda bank: bank.load_branch(0, wieght=torch.ones(C)), "did you mean 'weight'"),
        (lambda bank: bank.load_branch(0, weight=torch.ones(1)), r"weight \(1,\) of a domain"),
    ],
)
def test_a_branch_that_cannot_be(change: Callable[[DomainNorm], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        change(_bank())


# the compiler, graphs, processes


def test_compiled_once_for_all_mixes() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    bank, eager = _bank(unseen="nearest"), _bank(unseen="nearest")
    compiled = torch.compile(bank, fullgraph=True, backend=counter)
    for step, domains in enumerate([[0, 1, 2], [2, 2, 2], [-1, 0, 1], [1, -1, 0]]):
        x = _x(domains, seed=step)
        given = torch.tensor(domains)
        torch.testing.assert_close(compiled(x, given), eager(x, given), **EXACT)
    assert counter.frame_count == 1
    for name, each in bank.named_buffers():
        torch.testing.assert_close(each, eager.get_buffer(name), **EXACT)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_with_numbers(backend: str) -> None:
    torch._dynamo.reset()
    bank, eager = _bank(), _bank()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(bank, fullgraph=True, backend=counter)
    for step, domain in enumerate([0, 1, 2, 1, 0]):
        x = _x([domain] * 4, seed=step)
        torch.testing.assert_close(compiled(x, domain), eager(x, domain), **EXACT)
    assert counter.frame_count <= 3
    for name, each in bank.named_buffers():
        torch.testing.assert_close(each, eager.get_buffer(name), **EXACT)


def test_several_forward_passes_before_one_backward() -> None:
    """A graph holds rows of the buffers; later batches move these buffers."""
    bank, x = _bank(), _x([0, 1, 2, 0]).requires_grad_()
    loss = bank(x, 0).square().sum() + bank(x, torch.tensor([0, 1, 1, 0])).square().sum()
    (loss + bank(x, 0).square().sum()).backward()
    assert x.grad is not None


def _loss(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view(y.shape[1:])).sum()


PARTS = ([0, 1, 1, 0, -1], [1, 2, 0])


def _joined(rank: int, folder: str, together: bool) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/meet{together}"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    bank, x = _bank(sync=True), _x(PARTS[rank], seed=rank).requires_grad_()
    condition = torch.tensor(PARTS[rank]) if together else rank
    y = bank(x, condition)
    _loss(y).backward()
    found = {"y": y.detach(), "grad": x.grad, **dict(bank.named_buffers())}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _run_joined(folder: Path, together: bool) -> list[dict[str, Tensor]]:
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=_joined, args=(i, str(folder), together)) for i in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    return [torch.load(folder / f"{i}.pt", weights_only=True) for i in range(2)]


@pytest.mark.parametrize("together", [True, False], ids=["mixed", "one domain a process"])
def test_two_processes_are_one_batch(tmp_path: Path, together: bool) -> None:
    found = _run_joined(tmp_path, together)
    sizes = [len(part) for part in PARTS]
    domains = [*PARTS[0], *PARTS[1]] if together else [0] * sizes[0] + [1] * sizes[1]
    bank = _bank()
    x = torch.cat([_x(PARTS[i], seed=i) for i in range(2)]).requires_grad_()
    y = bank(x, torch.tensor(domains))
    (_loss(y[: sizes[0]]) + _loss(y[sizes[0] :])).backward()
    torch.testing.assert_close(torch.cat([each["y"] for each in found]), y, **EXACT)
    torch.testing.assert_close(torch.cat([each["grad"] for each in found]), x.grad, **EXACT)
    for each in found:
        for name, buffer in bank.named_buffers():
            torch.testing.assert_close(each[name], buffer, **EXACT)


def test_inside_a_network_that_knows_no_domain() -> None:
    bank = _bank().eval()
    network = ConditionedModel(nn.Sequential(nn.Identity(), bank))
    x = _x([0, 1])
    assert torch.equal(network(x, torch.tensor([0, 1])), bank(x, torch.tensor([0, 1])))


BAD = [torch.nan, torch.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("soft", [False, True])
def test_what_is_not_finite_stays_in_its_domain(bad: float, soft: bool) -> None:
    """Outputs, gradients and statistics of the others are as without it, to the bit."""
    domains = torch.tensor([0, 1, 2, 1, 2, 0])
    others, member = domains != 0, nn.functional.one_hot(domains, K).double()
    bank, clean, results = _bank(), _bank(), []
    for each in (bank, clean):
        x = _x(domains)
        x[0, 2, 1, 1] = bad if each is bank else 1.0
        y = each(x, member if soft else domains)
        y.square().sum().backward()
        rows = {name: value[1:] for name, value in each.state_dict().items()}
        grads = {f"{name}.grad": value.grad[1:] for name, value in each.named_parameters()}
        results.append({"y": y[others], **rows, **grads})
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=0, atol=0, msg=name)
    assert not bank.running_var[0, 2].isfinite()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("unseen", ["mean", "nearest"])
def test_a_broken_population_is_its_domains_own_trouble(bad: float, unseen: str) -> None:
    bank, clean = _bank(unseen=unseen).eval(), _bank(unseen=unseen).eval()
    for name in ("running_mean", "running_var", "weight", "bias"):
        getattr(bank, name).data[0] = bad
    domains = torch.tensor([1, 2, 2, 1])
    x = _x(domains)
    assert torch.equal(bank(x, domains), clean(x, domains))
    assert bank(x, -1).isfinite().all() == (unseen == "nearest")
