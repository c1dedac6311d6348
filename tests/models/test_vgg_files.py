from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.vgg_cascade import VggCascade
from normapps.models.vgg_files import read_cascade, weight_files

WIDTHS = (4, 5, 6, 7, 8)


def encoder(blocks: int, tail: int = 0) -> nn.Sequential:
    """The Sequential of `vgg_normalised`: 1×1 first, padding by layers, ceil-mode pooling."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    inputs = 3
    plan = [2, 2, 4, 4, 4]
    for block in range(blocks):
        for _ in range(1 + tail if block == blocks - 1 else plan[block]):
            conv = nn.Conv2d(inputs, WIDTHS[block], 3)
            layers += [nn.ReflectionPad2d(1), conv, nn.ReLU()]
            inputs = WIDTHS[block]
        if block < blocks - 1:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    return nn.Sequential(*layers)


def decoder(blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    plan = [2, 2, 4, 4, 4]
    for block in reversed(range(blocks)):
        for i in reversed(range(1 if block == blocks - 1 else plan[block])):
            below = WIDTHS[block] if i else WIDTHS[block - 1] if block else 3
            conv = nn.Conv2d(WIDTHS[block], below, 3)
            layers += [nn.ReflectionPad2d(1), conv, nn.ReLU()]
        if block:
            layers.append(nn.UpsamplingNearest2d(scale_factor=2))
    return nn.Sequential(*layers[:-1])


def written(folder: Path, **networks: nn.Module) -> list[Path]:
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pth")
    return [folder / f"{name}.pth" for name in networks]


def test_adain_files_become_one_level(tmp_path: Path, coffee: np.ndarray) -> None:
    torch.manual_seed(0)
    there, back = encoder(4, tail=3), decoder(4)  # the published encoder goes beyond relu4_1
    network, arguments = read_cascade(written(tmp_path, back=back, there=there))
    assert arguments["layers"] == ["relu4_1"]
    assert arguments["method"] == network.method == "adain"
    assert not arguments["rectified"]
    x = torch.from_numpy(coffee[:33, :44]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        features = there[: 3 * 9 + 1 + 3](x)
        assert torch.allclose(network.stages[0].encode(x), features, atol=1e-5)
        assert torch.allclose(network.stages[0].decode(features), back(features), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_levels_come_deepest_first_and_share_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = written(tmp_path, a=decoder(1), b=encoder(3), c=decoder(3), d=decoder(2))
    network, arguments = read_cascade(files, method="ot")
    assert arguments["layers"] == ["relu3_1", "relu2_1", "relu1_1"]
    assert arguments["method"] == "ot"
    first = [stage.encoder.convs["relu1_1"].weight for stage in network.stages]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    again = VggCascade(**arguments)
    again.load_state_dict(network.state_dict())  # the arguments build the same shapes


def test_the_smallest_encoder_that_reaches_a_level_serves_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deep, own = encoder(3), encoder(1)
    files = written(tmp_path, deep=deep, own=own, one=decoder(1), three=decoder(3))
    network, _ = read_cascade(files)
    weights = [stage.encoder.convs["relu1_1"].weight for stage in network.stages]
    assert torch.equal(weights[0], deep[2].weight)  # type: ignore[arg-type]
    assert torch.equal(weights[1], own[2].weight)  # type: ignore[arg-type]


def test_named_convolutions_are_put_in_order(tmp_path: Path) -> None:
    """safetensors sorts names, and `conv11` of an encoder runs first, of a decoder last."""
    torch.manual_seed(0)
    shapes = {"conv0": (3, 3, 1), "conv11": (4, 3, 3), "conv12": (4, 4, 3), "conv21": (5, 4, 3)}
    back = {"conv21": (4, 5, 3), "conv12": (4, 4, 3), "conv11": (3, 4, 3)}
    for name, parts in (("2SE", {**shapes, "conv11_aux": (64, 4, 1)}), ("2SD", back)):
        state = {}
        for key, (out, inputs, side) in parts.items():
            state[f"{key}.weight"] = torch.randn(out, inputs, side, side)
            state[f"{key}.bias"] = torch.randn(out)
        save_file(state, tmp_path / f"{name}.safetensors")
    network, arguments = read_cascade([tmp_path])
    assert arguments["rectified"]
    assert arguments["widths"][0][:2] == [4, 5]
    x = torch.randn(1, 5, 4, 4)
    with torch.no_grad():
        assert network.stages[0].decode(x).shape == (1, 3, 8, 8)
        assert network.stages[0].decode(x).min() == 0


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    there, back = written(tmp_path, there=encoder(2), back=decoder(2))
    with pytest.raises(InputError, match=r"there\.pth: no decoder is among the files"):
        read_cascade([there])
    with pytest.raises(InputError, match=r"back\.pth: no encoder to relu2_1 of 5 channels"):
        read_cascade([back])
    deeper = decoder(3)
    (three,) = written(tmp_path, three=deeper)
    with pytest.raises(InputError, match=r"three\.pth: no encoder to relu3_1 of 6 channels"):
        read_cascade([there, three])
    (odd,) = written(tmp_path, odd=nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 3)))
    with pytest.raises(InputError, match=r"odd\.pth: has 2 convolutions, which mirrors none"):
        read_cascade([there, odd])
    (other,) = written(tmp_path, other=nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(InputError, match=r"other\.pth: is neither an encoder .* nor a decoder"):
        read_cascade([other])
    (fc,) = written(tmp_path, fc=nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InputError, match=r"fc\.pth: is no VGG encoder or decoder"):
        read_cascade([fc])


def test_a_decoder_of_other_widths_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(5, 9, 3), nn.Conv2d(9, 4, 3), nn.Conv2d(4, 3, 3))
    files = written(tmp_path, there=encoder(2), wide=wide)
    with pytest.raises(InputError, match=r"wide\.pth: convolution 0 is \(9, 5, 3, 3\), not \(4, 5"):
        read_cascade(files)


def test_a_folder_is_looked_through(tmp_path: Path) -> None:
    written(tmp_path, b=encoder(1), a=decoder(1))
    (tmp_path / "README.txt").write_text("no weights")
    assert [file.name for file in weight_files([tmp_path])] == ["a.pth", "b.pth"]
    with pytest.raises(InputError, match="missing: no weight files"):
        weight_files([tmp_path / "missing"])
    with pytest.raises(InputError, match="no files given"):
        weight_files([])


def raw(file: Path) -> dict[str, Tensor]:
    state = torch.load(file, map_location="cpu", weights_only=True)
    return {key: value.double() for key, value in state.get("model", state).items()}


def conv(x: Tensor, state: dict[str, Tensor], key: str) -> Tensor:
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"])


def square(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(photo[40:120, 200:280].copy()).permute(2, 0, 1)[None].double() / 255


@pytest.mark.shared
def test_wct16_is_run_as_its_authors_run_it(shared_dir: Path, astronaut: np.ndarray) -> None:
    folder = shared_dir / "weights" / "wct16x"
    network, arguments = read_cascade([folder])
    network.double()
    assert arguments["layers"] == [f"relu{i}_1" for i in (5, 4, 3, 2, 1)]
    assert arguments["widths"][0] == [16, 32, 64, 128, 128]
    assert arguments["widths"][4][0] == 24
    assert arguments["method"] == "wct"
    x = square(astronaut)
    plan = {1: 2, 2: 2, 3: 4, 4: 4}
    for stage, k in zip(network.stages, (5, 4, 3, 2, 1), strict=True):
        there, back = raw(folder / f"{k}SE.pth"), raw(folder / f"{k}SD.pth")
        y = F.conv2d(x, there["conv0.weight"], there["conv0.bias"])
        for block in range(1, k):
            for i in range(1, plan[block] + 1):
                y = conv(y, there, f"conv{block}{i}").relu()
            y = F.max_pool2d(y, 2)
        y = conv(y, there, f"conv{k}1").relu()
        assert torch.allclose(stage.encode(x), y, rtol=1e-6, atol=1e-6)
        z = conv(y, back, f"conv{k}1").relu()
        for block in range(k - 1, 0, -1):
            z = F.interpolate(z, scale_factor=2)
            for i in range(plan[block], 0, -1):
                z = conv(z, back, f"conv{block}{i}").relu()
        assert torch.allclose(stage.decode(y), z, rtol=1e-6, atol=1e-6)
        assert (stage(x) - x).abs().mean() < 0.11  # and it does draw the picture again


@pytest.mark.shared
def test_the_true_levels_1_to_3_draw_the_picture_again(
    shared_dir: Path, astronaut: np.ndarray
) -> None:
    network, arguments = read_cascade([shared_dir / "weights" / "wct_vgg19_relu1-3"])
    assert arguments["layers"] == ["relu3_1", "relu2_1", "relu1_1"]
    assert not arguments["rectified"]
    x = square(astronaut).float()
    errors = [float((stage(x) - x).abs().mean()) for stage in network.stages]
    assert max(errors) < 0.05
    swapped = network.stages[0].decode(network.stages[0].encode(x.flip(1)))
    assert (swapped - x).abs().mean() > 0.08  # the order of the colours is not indifferent
