"""Make `weights.json`: what public reference code does to weights, where it is right.

    python tests/norm/weight/golden/make.py FOLDER

FOLDER holds these files of public repositories, none of which is copied here:

- OWN.py: huangleiBuaa/OthogonalWN a9972cd, module_pytorch
- NormedConv.py: huangleiBuaa/ONI 387c4ee, ONI_PyTorch/extension/normalization
- utils.py: samaonline/Orthogonal-Convolutional-Neural-Networks aa7f569, imagenet; of it `orth_dist`
- train_n.py: VITA-Group/Orthogonality-in-CNNs 99897ee, Wide-Resnet; of it `l2_reg_ortho`
- gutils.py: JunLi-Galios/Optimization-on-Stiefel-Manifold-via-Cayley-Transform 214f16c
- algorithm/SGD.py, algorithm/Centralization.py: Yonghongwei/Gradient-Centralization ed2a608,
  algorithm-GC/algorithm
- geoopt, the package: geoopt/geoopt 07598cd

What they do otherwise by intent is kept from making a difference: ONI's eps is 0, gradients are
centred without weight decay, SRIP's random start is of a matrix of rank one. Momentum on a manifold
starts at 0, where geoopt starts it from a gradient that is not tangent. Made with torch 2.13 on a
CPU, in float64.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

torch.set_default_dtype(torch.float64)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, *GRADIENTS = torch.round(torch.randn(4, 4, 3, 2, generator=GENERATOR), decimals=2)
ON_SPHERES = WEIGHT.flatten(1) / WEIGHT.flatten(1).norm(dim=1, keepdim=True)
ORTHONORMAL = torch.linalg.qr(WEIGHT.flatten(1).t())[0].t().contiguous()
ONE_LONG = ORTHONORMAL + 0.7 * torch.outer(ORTHONORMAL @ ORTHONORMAL[0], ORTHONORMAL[0])


def case(function: Callable[[Tensor], Tensor], weight: Tensor = WEIGHT) -> dict[str, Any]:
    """Call a function forward, and backward from the gradient sin(1), sin(2), … of its result."""
    x = weight.clone().requires_grad_()
    y = function(x)
    y.backward((1 + torch.arange(float(y.numel()))).sin().reshape(y.shape))
    return {"x": _listed(x), "y": _listed(y), "grad": _listed(x.grad)}


def main(folder: str) -> None:
    """Write all cases beside this file."""
    sys.path.insert(0, folder)
    setattr(Tensor, "cuda", lambda tensor: tensor)  # noqa: B010  where there is no GPU
    found = cases(Path(folder)) | steps()
    (Path(__file__).parent / "weights.json").write_text(json.dumps(found) + "\n")


def cases(folder: Path) -> dict[str, Any]:
    """Return name → what the reference makes of a weight, and its gradient."""
    newton = _module("NormedConv").ONINorm(T=2)
    newton.eps = 0
    distance = _function(folder / "utils.py", "orth_dist")
    isometry = _function(folder / "train_n.py", "l2_reg_ortho")
    stiefel = _module("gutils")
    return {
        "own": case(_module("OWN").OWNNorm(2)),
        "oni": case(newton),
        "so": case(lambda x: distance(x).square()),
        "srip": case(lambda x: isometry(_Holder(x)), ONE_LONG),
        "polar": case(stiefel.polar_retraction, WEIGHT.flatten(1)),
        "tangent": case(
            lambda x: stiefel.stiefel_proj_tan(ORTHONORMAL, x), GRADIENTS[0].flatten(1)
        ),
    }


def steps() -> dict[str, Any]:
    """Return name → a weight, the gradients of three steps, and what they make of it."""
    centred = nn.Parameter(WEIGHT.clone())
    sgd = _module("algorithm.SGD").SGD([centred], lr=0.1, momentum=0.9, use_gc=True)
    geoopt = _module("geoopt")
    stiefel = geoopt.ManifoldParameter(ORTHONORMAL.t().contiguous(), geoopt.EuclideanStiefel())
    sphere = geoopt.ManifoldParameter(ON_SPHERES.clone(), geoopt.Sphere())
    return {
        "centralize": _steps(centred, sgd, lambda weight: weight),
        "stiefel": _steps(stiefel, _riemannian(stiefel), Tensor.t),
        "oblique": _steps(sphere, _riemannian(sphere), lambda weight: weight),
    }


def _riemannian(parameter: Tensor) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = _module("geoopt").optim.RiemannianSGD(
        [parameter], lr=0.1, momentum=0.9
    )
    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _steps(
    parameter: Tensor, optimizer: torch.optim.Optimizer, turned: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    found: dict[str, Any] = {"start": _listed(turned(parameter)), "grads": [], "weights": []}
    for gradient in GRADIENTS:
        shaped = gradient.reshape(turned(parameter).shape)
        parameter.grad = turned(shaped).clone()
        optimizer.step()
        found["grads"].append(_listed(shaped))
        found["weights"].append(_listed(turned(parameter)))
    return found


class _Holder:
    """What asks for parameters gets one."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def parameters(self) -> list[Tensor]:
        return [self.weight]


def _function(path: Path, name: str) -> Any:
    """One function of a file that cannot be imported as a whole."""
    source = path.read_text(encoding="utf-8").replace("async=", "non_blocking=")
    tree = ast.parse(source)
    tree.body = [each for each in tree.body if getattr(each, "name", "") == name]
    space: dict[str, Any] = {"torch": torch, "Variable": torch.autograd.Variable}
    exec(compile(tree, str(path), "exec"), space)
    return space[name]


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _listed(x: Tensor | None) -> Any:
    return None if x is None else torch.round(x, decimals=9).tolist()


if __name__ == "__main__":
    main(sys.argv[1])
