"""The Inception extractor: which file it takes, what it calls itself, what it sees.

That the network is torch-fidelity's and pytorch-fid's to the bit, on random weights, is shown by
`benchmarks/gan_scores.py`, which needs them; here its parts are held against torchvision's.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import normapps.models  # noqa: F401  the guard before torchvision
from normapps.errors import InputError
from normapps.files import sha256
from normapps.gan.evaluation import inception as subject
from normapps.gan.evaluation.extractors import open_extractor
from normapps.gan.evaluation.inception import InceptionExtractor
from normapps.gan.evaluation.resizing import resize
from normapps.models.inception import FidInception


def randomized(network: nn.Module) -> nn.Module:
    """Weights and statistics under which every unit matters."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var") or name.endswith("bn.weight"):
                value.uniform_(0.7, 1.4, generator=draws)
            elif value.ndim == 4:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=draws)
            elif value.is_floating_point():
                value.normal_(0, 0.1, generator=draws)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> FidInception:
    found = randomized(FidInception())
    assert isinstance(found, FidInception)
    return found


@pytest.fixture(scope="module")
def weights(network: FidInception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(network.state_dict(), path)
    return path


def theirs(network: FidInception) -> Any:
    """torchvision's network with the three changes that the FID's authors' graph asks for."""
    from torchvision.models import inception_v3

    made: Any = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    made.load_state_dict(network.state_dict())

    def excluding(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        return F.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)

    return made.eval(), excluding, F.max_pool2d


def test_the_network_is_torchvisions_but_for_its_pools(
    network: FidInception, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, excluding, largest = theirs(network)
    from torchvision.models import inception

    class Pools:
        """torch's functions, but for the mean over neighbours."""

        def __init__(self, mean: Any) -> None:
            self.avg_pool2d = mean

        def __getattr__(self, name: str) -> Any:
            return getattr(F, name)

    kept: list[Tensor] = []
    made.fc.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))

    def switch(*_: Any) -> None:
        monkeypatch.setattr(inception, "F", Pools(largest))

    monkeypatch.setattr(inception, "F", Pools(excluding))
    made.Mixed_7c.register_forward_pre_hook(switch)
    x = torch.randn(2, 3, 299, 299, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = made(x)
        features, unbiased = network(x)
    torch.testing.assert_close(features, kept[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unbiased + network.fc.bias, logits, rtol=1e-5, atol=1e-4)


def test_the_known_hash_makes_it_the_fid(
    weights: Path, network: FidInception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "PREFIX", sha256(weights)[:8])
    extractor = open_extractor(f"inception:{weights}", "cpu")
    assert extractor.is_fid
    assert extractor.name == "Inception-v3 of 2015-12-05"
    assert extractor.sha256 == sha256(weights)
    assert extractor.describe_resizer((32, 32)) == "bilinear of TensorFlow 1, 32×32 to 299×299"
    draws = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8, generator=draws)
    features, logits = extractor.features(x)
    with torch.no_grad():
        wanted = network((resize(x.repeat(1, 3, 1, 1), (299, 299), "tf1") - 128) / 128)
    # the extractor is channels_last, whose sums are of another order
    torch.testing.assert_close(features, wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, wanted[1], rtol=1e-5, atol=1e-4)
    clean = open_extractor(f"inception:{weights}", "cpu", resizer="bicubic")
    assert clean.is_fid
    assert clean.describe_resizer((32, 32)).startswith("bicubic")


def test_another_hash_is_refused_or_goes_under_another_name(weights: Path) -> None:
    with pytest.raises(InputError, match=f"begins {sha256(weights)[:8]}, that of .* 6726825d"):
        open_extractor(f"inception:{weights}", "cpu")
    extractor = open_extractor(f"inception:{weights}", "cpu", other_weights=True)
    assert not extractor.is_fid
    assert extractor.name == "Inception-v3, other weights"


def test_files_without_counters_and_safetensors_fit(network: FidInception, tmp_path: Path) -> None:
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        found = subject.open_inception(tmp_path / name, other_weights=True)
        assert isinstance(found, InceptionExtractor)
        assert torch.equal(found.network.fc.weight, network.fc.weight)


def test_other_networks_and_files_are_refused(network: FidInception, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "v3.pth")
    with pytest.raises(InputError, match=r"fc.weight is \(1000, 2048\), not \(1008, 2048\)"):
        subject.open_inception(tmp_path / "v3.pth", other_weights=True)
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as program:  # as torch.jit.save lays it out
        program.writestr("program/code/__torch__.py", "class Net(Module): ...")
    with pytest.raises(InputError, match="is TorchScript"):
        subject.open_inception(tmp_path / "program.pt", other_weights=True)
    with pytest.raises(InputError, match="no such file"):
        open_extractor(f"inception:{tmp_path / 'nothing.pth'}")
