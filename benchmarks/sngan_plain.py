"""SNGAN as it is usually written: plain layers, torch's `spectral_norm`, eager, two passes.

What `gan.py speed` measures against: the same networks (the same numbers come out of the same
weights, a test says so) and the same recipe, in the form that public implementations have it:
nearest upsampling and then a 3×3 convolution, a 3×3 convolution and then average pooling, two
passes of the discriminator a step, whose weights are normalized anew in each, and Adam as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class UpBlock(nn.Module):
    """BN, ReLU, upsampling, convolution, BN, ReLU, convolution; upsampled 1×1 shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.BatchNorm2d(width, eps=2e-5) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.norm1(x)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2))


class Generator(nn.Module):
    """For 28 pixels from 7×7, for 32 from 4×4."""

    def __init__(self, size: int, channels: int, latent: int, width: int) -> None:
        super().__init__()
        self.bottom = 7 if size == 28 else 4
        self.linear = nn.Linear(latent, self.bottom**2 * width)
        count = round(math.log2(size / self.bottom))
        self.blocks = nn.ModuleList(UpBlock(width) for _ in range(count))
        self.norm = nn.BatchNorm2d(width, eps=2e-5)
        self.conv = nn.Conv2d(width, channels, 3, padding=1)
        _init(self)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).view(len(z), -1, self.bottom, self.bottom)
        for block in self.blocks:
            x = block(x)
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class DownBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, pooling at will; the first block has no first ReLU."""

    def __init__(self, inputs: int, outputs: int, pools: bool, is_first: bool = False) -> None:
        super().__init__()
        self.pools, self.is_first = pools, is_first
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if pools else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.is_first else F.relu(x))))
        if not self.pools:
            return h + x
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """Two blocks that pool, two that do not, sum over the positions, linear."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                DownBlock(channels, width, True, is_first=True),
                DownBlock(width, width, True),
                DownBlock(width, width, False),
                DownBlock(width, width, False),
            ]
        )
        self.linear = nn.Linear(width, 1, bias=False)
        _init(self)
        for module in list(self.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.linear(F.relu(x).sum((2, 3)))
        return logits.squeeze(1)


class PlainGan:
    """The recipe: hinge loss, Adam 2·10⁻⁴ (0, 0.9) falling to 0, n_dis steps of D, EMA of G.

    Args:
        size, channels, latent, width: of the networks.
        batch_size: of a discriminator step; a generator step takes twice as many.
        steps: of the run, over which the rate falls.
        device: the networks'.
        is_half: forward passes under bfloat16 autocast.
    """

    def __init__(
        self, size: int, channels: int, latent: int, width: int, batch_size: int, n_dis: int,
        steps: int, device: torch.device, is_half: bool,
    ) -> None:  # fmt: skip
        self.generator = Generator(size, channels, latent, width).to(device)
        self.average = Generator(size, channels, latent, width).to(device)
        self.average.load_state_dict(self.generator.state_dict())
        self.discriminator = Discriminator(channels, width).to(device)
        self.latent, self.batch_size, self.n_dis, self.steps = latent, batch_size, n_dis, steps
        self.device, self.is_half = device, is_half
        self.optimizers = [
            torch.optim.Adam(each.parameters(), 2e-4, (0.0, 0.9))
            for each in (self.generator, self.discriminator)
        ]

    def step(self, step: int, batches: Iterator[Tensor]) -> float:
        """Take one step of the generator and those of the discriminator; return its loss."""
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = 2e-4 * (1 - step / self.steps)
        for _ in range(self.n_dis):
            with self._precision():
                with torch.no_grad():
                    fake = self.generator(self._latents(self.batch_size))
                on_real = self.discriminator(next(batches))
                on_fake = self.discriminator(fake)
            loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
            self._change(1, loss)
        with self._precision():
            loss = -self.discriminator(self.generator(self._latents(2 * self.batch_size))).mean()
        self._change(0, loss)
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.generator.parameters(), strict=True)
            for kept, new in pairs:
                kept.lerp_(new, 0.001)
        return float(loss.detach())

    def _change(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.latent, device=self.device)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, self.is_half)


def _init(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            is_wide = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
            nn.init.xavier_uniform_(module.weight, math.sqrt(2) if is_wide else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
