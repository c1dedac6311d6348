"""Make `activations.json`: what public reference code computes where it is right.

    python tests/norm/layers/golden/make.py FOLDER

FOLDER holds these files of public repositories, none of which is copied here:

- switchwhiten.py: XingangPan/Switchable-Whitening dc8a994, models/ops
- group_whitening.py: huangleiBuaa/GroupWhitening 9ddfb38, classification/extension/normalization
- iebn_resnet.py: gbup-group/IEBN ed6d563, models/cifar
- batchrenorm.py: ludvb/batchrenorm 143076f
- rn.py: geekyutao/RN b0a9476
- moex.py: Boyiliee/MoEx 574542f, ImageNet
- mean_bn.py: eladhoffer/norm_matters 3b103aa, models

Options are chosen so that what they do otherwise by intent makes no difference: an eps of 1e-12
where it stands elsewhere, one sample where regions are measured over the batch. Made with torch
2.13 on a CPU, in float64.
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
WEIGHT, BIAS = torch.tensor([1.5, -0.5, 0.8, 1.0]), torch.tensor([0.2, 0.1, -0.3, 0.0])
MEAN, VAR = torch.tensor([0.1, 0.4, -0.2, 0.9]), torch.tensor([0.5, 3.0, 2.0, 6.0])
MASK = (X[:1, :1] > 0.5).to(X)


def case(layer: Callable[..., Tensor], x: Tensor = X, *more: Tensor) -> dict[str, Any]:
    """Run a layer, and return its output and the gradient of the sum of that squared."""
    x = x.clone().requires_grad_()
    y = layer(x, *more)
    y.square().sum().backward()
    return {"x": _listed(x), "y": _listed(y), "grad": _listed(x.grad)}


def main(folder: str) -> None:
    """Write all cases beside this file."""
    sys.path.insert(0, folder)
    (Path(__file__).parent / "activations.json").write_text(json.dumps(cases()) + "\n")


def cases() -> dict[str, Any]:
    """Return name of our layer → what the reference computes."""
    found = {"switchable_whitening": case(_switchable()), "iebn": case(_iebn())}
    found["group_whitening"] = case(_with(_module("group_whitening").GroupItN(4, 2)))
    found["renorm"] = case(_renorm())
    found["l1"] = case(_with(_module("mean_bn").L1BatchNorm(4)))
    found["mean_only"] = case(_module("mean_bn").MeanBN(4, bias=False))
    found["region"] = case(_region(), X[:1], MASK)
    moex = _module("moex").moex
    order = torch.tensor([2, 0, 1])
    exchange = case(lambda x: moex(x.requires_grad_(), order, "pono", 1e-12))
    return found | {"moment_exchange": exchange}


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
    return None if x is None else torch.round(x, decimals=10).tolist()


if __name__ == "__main__":
    main(sys.argv[1])
