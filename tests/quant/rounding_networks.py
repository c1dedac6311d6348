"""A small folded network whose rounding hurts, and measures of how much."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from normapps.graph.fold import fold_batchnorm_
from normapps.norm.moments import Moments
from normapps.norm.population import apply_, measure
from normapps.quant.fake import fake_quantize_


class Net(nn.Module):
    """Full, depthwise, grouped, transposed, linear layers; a sum; one layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.group = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(16), nn.SiLU()
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=2), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.head = nn.Linear(16, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.up(self.group(self.depth(x))) + x
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def pictures(count: int, seed: int) -> Tensor:
    """Smooth ones: neighbouring positions have to do with one another, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((count, 3, 5, 5), generator=generator)
    fine = nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear")
    return 1.5 * fine + 0.3 * torch.randn(fine.shape, generator=generator) + 0.2


def badly_scaled(seed: int = 0) -> tuple[nn.Module, dict[str, Moments]]:
    """A folded network whose channels differ in size up to thirtyfold, and its statistics.

    Each is as important as the others: what reads a small channel multiplies it. The statistics
    are those of `pictures`, as a trained network's are of its data.
    """
    torch.manual_seed(seed)
    model = Net().eval()
    size = torch.logspace(0, -1.5, 16)[torch.randperm(16)]
    for name in ("stem", "depth", "group", "up"):
        norm = model.get_submodule(f"{name}.1")
        scale = size if name in ("stem", "group") else torch.ones(16)
        norm.weight.data = scale * (0.3 + torch.rand(16))
        norm.bias.data = scale * 0.6 * torch.randn(16)
    model.get_parameter("up.0.weight").data /= size.view(-1, 1, 1, 1)
    apply_(model, measure(model, [pictures(64, 1)]))
    folding = fold_batchnorm_(model, pictures(2, 0))
    assert not folding.left
    return model, folding.statistics


NAMES = ("stem.0", "depth.0", "group.0", "up.0", "head")


def damage_of(model: nn.Module, per_channel: bool) -> tuple[float, float]:
    """What rounding does on unseen pictures, against `badly_scaled` as it was made.

    Returns:
        How far mean outputs of the layers move, root mean square, in deviations of the channels;
        and the size of the change of the logits, relative to theirs.
    """
    float_model, rounded_model = badly_scaled()[0], copy.deepcopy(model).eval()
    fake_quantize_(rounded_model, per_channel=per_channel)
    x = pictures(64, 9)
    one, other = _outputs(float_model, x), _outputs(rounded_model, x)
    moved = [(b.mean(1) - a.mean(1)) / a.std(1) for a, b in zip(one, other, strict=True)]
    error = (other[-1] - one[-1]).norm() / one[-1].norm()
    return float(torch.cat(moved).square().mean().sqrt()), float(error)


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """(O, values) of each layer, float64."""
    seen: list[Tensor] = []
    for name in NAMES:
        model.get_submodule(name).register_forward_hook(lambda layer, args, out: seen.append(out))
    with torch.no_grad():
        model(x)
    return [each.double().transpose(0, 1).flatten(1) for each in seen]
