"""The extractor of the FID: Inception-v3 of 2015-12-05 with the user's weight file.

Two files are known: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth` and torch-fidelity's
`weights-inception-2015-12-05-6726825d.pth`. They hold the same network under the same names, and
their SHA-256 begins with the digits in their names, by which they are recognized. NVIDIA's
TorchScript of the same network is a program with other scaling, and is refused.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ...engine.device import evaluating, place
from ...errors import InputError
from ...files import sha256
from ...models.folder import faults, first_of
from ...models.inception import SIZE, FidInception
from ...models.shipped import read_weights
from .extractors import in_channels
from .resizing import describe, resize

PREFIX = "6726825d"
"""What the SHA-256 of the known files begins with."""

_COUNTER = "num_batches_tracked"


class InceptionExtractor:
    """Inception-v3 of 2015-12-05: 2048 features, 1008 logits without the classifier's bias.

    Args:
        network: with weights; it is moved to `device`.
        sha256: of the weight file.
        device: where it runs.
        resizer: `tf1` as nearly every published FID, `bicubic` as clean-fid.

    Attributes:
        name, sha256, size, resizer, is_fid: see `extractors.Extractor`. Without the known hash it
            is neither called the FID's, nor its distance FID.
    """

    def __init__(
        self,
        network: FidInception,
        sha256: str,
        device: torch.device | None = None,
        resizer: str = "tf1",
    ) -> None:
        self.device = device or torch.device("cpu")
        self.network = place(network, self.device)
        self.sha256, self.resizer, self.size = sha256, resizer, (SIZE, SIZE)
        self.is_fid = sha256.startswith(PREFIX)
        self.name = "Inception-v3 of 2015-12-05" if self.is_fid else "Inception-v3, other weights"

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and logits; see `extractors.Extractor`."""
        x = resize(in_channels(x.to(self.device), 3), self.size, self.resizer)
        with evaluating(self.network):
            features, logits = self.network((x - 128) / 128)
        return features.float().cpu(), logits.float().cpu()

    def describe_resizer(self, given: tuple[int, int]) -> str:
        """Say in words what is done to pictures of a height and width."""
        return describe(self.resizer, given, self.size)


def open_inception(
    path: Path,
    device: torch.device | None = None,
    *,
    resizer: str = "tf1",
    other_weights: bool = False,
) -> InceptionExtractor:
    """Open a weight file of the network.

    Args:
        path: PyTorch's format, or safetensors.
        device: where it runs.
        resizer: a name of `options.RESIZERS`.
        other_weights: take a file of another hash, under another name.

    Raises:
        InputError: the file is missing, of another hash without `other_weights`, TorchScript, or
            does not fit the network.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the Inception weights of the FID")
    found = sha256(path)
    if _is_program(path):
        raise InputError(
            f"{path}: is TorchScript, a program; give the state dict, whose hash begins {PREFIX}"
        )
    if not found.startswith(PREFIX) and not other_weights:
        raise InputError(
            f"{path}: its SHA-256 begins {found[:8]}, that of the FID's weights {PREFIX}; "
            "--other-weights takes it under another name"
        )
    network = FidInception()
    _load(path, network)
    return InceptionExtractor(network, found, device, resizer)


def _load(path: Path, network: FidInception) -> None:
    state, own = read_weights(path), network.state_dict()
    # a file that was converted long ago may be older than these counters
    counters = {name: own[name] for name in own if name.endswith(_COUNTER)}
    said = faults(own, counters | state)
    if said:
        raise InputError(
            f"{path}: is not the FID's Inception network: {first_of(said)}; torchvision's and "
            "timm's networks of that name have other pools and do not fit either"
        )
    network.load_state_dict(counters | state)
    network.eval()


def _is_program(path: Path) -> bool:
    """Whether a file is TorchScript, which holds code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
