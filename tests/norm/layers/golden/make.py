"""Make `activations.json` and `steps.json`: what public reference code computes where it is right.

    python tests/norm/layers/golden/make.py FOLDER

FOLDER holds these files of public repositories, none of which is copied here:

- switchwhiten.py: XingangPan/Switchable-Whitening dc8a994, models/ops
- group_whitening.py: huangleiBuaa/GroupWhitening 9ddfb38, classification/extension/normalization
- iebn_resnet.py: gbup-group/IEBN ed6d563, models/cifar
- batchrenorm.py: ludvb/batchrenorm 143076f, batchrenorm
- rn.py: geekyutao/RN b0a9476
- moex.py: Boyiliee/MoEx 574542f, ImageNet
- mean_bn.py: eladhoffer/norm_matters 3b103aa, models
- frn.py: gupta-abhay/pytorch-frn cc86a98
- filter_response_normalize.py: tattaka/Filter-Response-Normalization-PyTorch b064cea,
  filter_response_normalization, without the import of `replicate`
- pono_ms_torch.py: Boyiliee/PONO 99c7d8d
- operator_basic.py: iVMCL/AOGNet-v2 a95a869, models/aognet
- online_norm_2d.py: Cerebras/online-normalization fe08b9f, online-norm/numpy_on
- MABN.py: megvii-model/MABN 995e8f5
- dbnSigma.py, pcaWhiteningSigma.py, cdWhiteningSigma.py, iterative_normalization_FlexGroupSigma.py:
  huangleiBuaa/StochasticityBW 9e18043, SBW_Classification_PyTorch/extension/normalization
- whitening.py: roysubhankar/dwt-domain-adaptation 9faac19, utils

Options are chosen so that what they do otherwise by intent makes no difference: an eps of 1e-12
where it stands elsewhere, one sample where regions are measured over the batch, samples of the
variance that attention divides by. Made with torch 2.13 on a CPU, in float64.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

torch.set_default_dtype(torch.float64)
X = torch.randn(3, 4, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
X = torch.round(X, decimals=2)
WEIGHT, BIAS = torch.tensor([1.5, -0.5, 0.8, 1.0]), torch.tensor([0.2, 0.1, -0.3, 0.0])
MEAN, VAR = torch.tensor([0.1, 0.4, -0.2, 0.9]), torch.tensor([0.5, 3.0, 2.0, 6.0])
MASK = (X[:1, :1] > 0.5).to(X)
THRESHOLD = torch.tensor([-0.5, 0.0, 0.3, 0.1])
MIXTURE = torch.tensor([[0.5, -0.2, 0.0, 0.3]])


def case(layer: Callable[..., Tensor], x: Tensor = X, *more: Tensor) -> dict[str, Any]:
    """Run a layer forward, and backward from the gradient sin(0), sin(1), … of its output."""
    x = x.clone().requires_grad_()
    y = layer(x, *more)
    y.backward(torch.arange(float(y.numel())).sin().reshape(y.shape))
    return {"x": _listed(x), "y": _listed(y), "grad": _listed(x.grad)}


def main(folder: str) -> None:
    """Write all cases beside this file."""
    sys.path.insert(0, folder)
    vars(torch)["potrf"] = lambda matrix, upper: torch.linalg.cholesky(matrix)  # its former name
    for name, found in (("activations", cases()), ("steps", steps())):
        (Path(__file__).parent / f"{name}.json").write_text(json.dumps(found) + "\n")


def cases() -> dict[str, Any]:
    """Return name of our layer → what the reference computes."""
    found = {"switchable_whitening": case(_switchable()), "iebn": case(_iebn())}
    found["group_whitening"] = case(_with(_module("group_whitening").GroupItN(4, 2)))
    found["renorm"] = case(_renorm())
    found["l1"] = case(_with(_module("mean_bn").L1BatchNorm(4)))
    found["mean_only"] = case(_module("mean_bn").MeanBN(4, bias=False))
    found["region"] = case(_region(), X[:1], MASK)
    found["frn"], found["frn/learnt"] = (
        case(_frn("frn")),
        case(_frn("filter_response_normalize"), X / 50),
    )
    found["attentive"] = case(_attentive(), _of_variance(X, 1 - 1e-3)) | {"grad": None}
    moex, pono = _module("moex").moex, _module("pono_ms_torch")
    order = torch.tensor([2, 0, 1])
    exchange = case(lambda x: moex(x.requires_grad_(), order, "pono", 1e-12))

    def shortcut(x: Tensor) -> Tensor:
        given, mean, std = pono.PONO(x, 1e-12)
        y: Tensor = pono.MS(given.flip(1) * WEIGHT.reshape(4, 1, 1), mean, std)
        return y

    return found | {"moment_exchange": exchange, "moment_shortcut": case(shortcut)}


def steps() -> dict[str, Any]:
    """Return name of our layer → what the reference computes step by step, inference at last."""
    found = {"online": _online("ls"), "online/clamp": _online("ac")}
    found["moving"], found["moving/renorm"] = _moving(2, 0)[:-1], _moving(1, 1000)
    for name, kind in (
        ("zca", _module("dbnSigma").DBNSigma),
        ("pca", _module("pcaWhiteningSigma").PCAWhiteningSigma),
        ("cholesky", _module("cdWhiteningSigma").CDWhiteningSigma),
        ("iternorm", _module("iterative_normalization_FlexGroupSigma").IterNormSigma),
    ):
        layer = kind(4, num_channels=2, eps=1e-12, T=2)
        found[name] = _run(layer if name == "pca" else _with(layer))  # its axes have any order
    whiten = _module("whitening").WTransform2d(
        4, 2, torch.zeros(1, 4, 1, 1), torch.eye(2).repeat(2, 1, 1)
    )
    found["domain_whitening"] = _run(whiten.double())
    return found


def _run(layer: nn.Module) -> list[dict[str, Any]]:
    """Three steps of training, each with other moments, and one of inference."""
    found = [case(layer, _batch(step)) for step in range(3)]
    return [*found, case(layer.eval(), _batch(3)) | {"grad": None}]


def _batch(step: int) -> Tensor:
    return X[:2].roll(5 * step) * (1 + 0.2 * step) - 0.3 * step


def _online(guard: str) -> list[dict[str, Any]]:
    layer = _module("online_norm_2d").OnlineNorm2d(4, 0.9, 0.97, ecm=guard)
    layer.weight.weight, layer.bias.bias = WEIGHT.numpy(), BIAS.numpy()
    layer.norm.m, layer.norm.var = MEAN.numpy().copy(), VAR.numpy().copy()
    found = []
    for step in range(3):
        x = 1.5 * _batch(step)
        y = torch.from_numpy(layer(x.numpy()))
        pull = torch.arange(float(y.numel())).sin().reshape(y.shape)
        grad = torch.from_numpy(layer.backward(pull.numpy()))
        found.append({"x": _listed(x), "y": _listed(y), "grad": _listed(grad)})
    layer.norm.training = False
    x = _batch(3)
    return [
        *found,
        {"x": _listed(x), "y": _listed(torch.from_numpy(layer(x.numpy()))), "grad": None},
    ]


def _moving(memory: int, start: int) -> list[dict[str, Any]]:
    layer = _with(_module("MABN").MABN2d(4, 1, memory, warmup_iters=memory))
    layer.running_var.copy_(VAR.reshape(1, 4, 1, 1))
    layer.iters.fill_(start)
    return _run(layer)


def _frn(module: str) -> nn.Module:
    layer = _module(module).FilterResponseNorm2d(4)
    if isinstance(layer.eps, nn.Parameter) and layer.eps.requires_grad:
        layer.eps.data.fill_(-2e-4)
    for name, value in (("gamma", WEIGHT), ("beta", BIAS), ("tau", THRESHOLD)):
        getattr(layer, name).data = value.reshape(1, 4, 1, 1)
    made: nn.Module = layer.double()
    return made


def _attentive() -> nn.Module:
    """One mixture by a sigmoid: of a softmax of two, the first, where the second is nothing."""
    layer = _module("operator_basic").MixtureBatchNorm2d(4, 1, 0)
    layer.weight_.data, layer.bias_.data = WEIGHT[None], BIAS[None]
    attention = layer.attention_weights.attention[0]
    attention.weight.data, attention.bias.data = MIXTURE[:, :, None, None], torch.tensor([0.4])
    made: nn.Module = layer.double()
    return made


def _of_variance(x: Tensor, var: float) -> Tensor:
    """x with this unbiased variance of each sample's channel."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * (var / x.var((2, 3), keepdim=True)).sqrt()


def _switchable() -> nn.Module:
    layer = _with(_module("switchwhiten").SwitchWhiten2d(4, num_pergroup=2, eps=1e-3))
    layer.sw_mean_weight.data = torch.tensor([0.3, -0.4])
    layer.sw_var_weight.data = torch.tensor([-1.0, 0.2])
    return layer


def _iebn() -> nn.Module:
    layer: nn.Module = _with(_module("iebn_resnet").BAN2d(4))
    layer.weight_readjust.data = torch.tensor([0.5, -1.0, 0.0, 2.0]).reshape(1, 4, 1, 1)
    return layer


def _renorm() -> nn.Module:
    layer = _with(_module("batchrenorm").BatchRenorm2d(4, eps=1e-12))
    layer.running_mean.copy_(MEAN)
    layer.running_std.copy_(VAR.sqrt())
    layer.num_batches_tracked.fill_(10000)
    return layer


def _region() -> nn.Module:
    layer: nn.Module = _module("rn").RN_B(4)
    layer.rn.bn_norm.eps = 1e-12
    layer.background_gamma.data, layer.foreground_gamma.data = WEIGHT - 1, BIAS - 1
    return layer


def _with(layer: Any) -> Any:
    """Give a layer the scale and shift, in its own shape."""
    layer.weight.data = WEIGHT.reshape(layer.weight.shape)
    layer.bias.data = BIAS.reshape(layer.bias.shape)
    return layer.double()


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _listed(x: Tensor | None) -> Any:
    return None if x is None else torch.round(x, decimals=8).tolist()


if __name__ == "__main__":
    main(sys.argv[1])
