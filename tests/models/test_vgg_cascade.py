from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normapps.errors import InputError
from normapps.models.folder import load_model, save_model
from normapps.models.vgg_cascade import LAYERS, VggCascade, VggLevel, margin

NARROW = (4, 5, 6, 7, 8)
CONVS = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}


def level(layer: str, rectified: bool = False) -> VggLevel:
    torch.manual_seed(0)
    return VggLevel(layer, NARROW, rectified).double().eval().requires_grad_(False)


def padded(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


def by_hand(state: dict[str, Tensor], x: Tensor, last: int) -> Tensor:
    """VGG-19 to relu{last}_1 as the papers' files define it."""
    x = F.conv2d(x, state["encoder.input.weight"], state["encoder.input.bias"])
    for block in range(1, last + 1):
        if block > 1:
            rows, columns = (-(-side // 2) * 2 - side for side in x.shape[2:])
            tall = F.pad(x, (0, columns, 0, rows), value=-torch.inf)
            x = tall.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        for i in range(1, (1 if block == last else CONVS[block]) + 1):
            x = padded(x, state, f"encoder.convs.relu{block}_{i}").clamp_min(0)
    return x


def back_by_hand(state: dict[str, Tensor], x: Tensor, first: int, rectified: bool) -> Tensor:
    for block in range(first, 0, -1):
        for i in range(1 if block == first else CONVS[block], 0, -1):
            x = padded(x, state, f"decoder.convs.conv{block}_{i}")
            if (block, i) != (1, 1) or rectified:
                x = x.clamp_min(0)
        if block > 1:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return x


@pytest.mark.parametrize("layer", LAYERS)
def test_a_level_is_vgg_and_its_mirror(layer: str, chelsea: np.ndarray) -> None:
    ours = level(layer)
    x = torch.from_numpy(chelsea[:45, :39]).permute(2, 0, 1)[None].double() / 255
    last = int(layer[4])
    features = by_hand(ours.state_dict(), x, last)
    assert features.shape[2:] == (-(-45 // ours.stride), -(-39 // ours.stride))
    assert torch.allclose(ours.encode(x), features, atol=1e-9)
    assert torch.allclose(
        ours.decode(features), back_by_hand(ours.state_dict(), features, last, False), atol=1e-9
    )
    assert ours(x).shape == x.shape


def test_a_rectified_decoder_draws_nothing_below_black() -> None:
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    plain, rectified = level("relu2_1"), level("relu2_1", rectified=True)
    assert plain.decode(x).min() < -1e-3
    assert torch.equal(rectified.decode(x), plain.decode(x).clamp_min(0))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_cell_looks_no_further_than_the_margin(layer: str) -> None:
    ours = level(layer)
    assert margin(layer) == ours.margin
    assert ours.margin % ours.stride == 0
    with torch.no_grad():
        for convolution in [*ours.encoder.convs.values(), *ours.decoder.convs.values()]:
            convolution.weight.abs_()  # so that nothing cancels or is cut by a ReLU
            convolution.bias.fill_(1.0)
        ours.encoder.input.weight.fill_(1.0)
        # every cell that a maximum could choose must pass the gradient on
    side = 2 * ours.margin + 3 * ours.stride
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    start = ours.margin + ours.stride
    ours(x)[..., start : start + ours.stride, start : start + ours.stride].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert seen.min() >= start - ours.margin
    assert seen.max() < start + ours.stride + ours.margin
    # and hardly less far: the margin is rounded up to cells
    assert seen.min() < start - ours.margin + 2 * ours.stride


def test_a_cascade_is_its_levels_one_after_the_other() -> None:
    torch.manual_seed(1)
    network = VggCascade(("relu3_1", "relu1_1"), [NARROW, (3, 3, 3, 3, 3)]).eval()
    x = torch.rand(1, 3, 18, 23)
    with torch.no_grad():
        want = network.stages[1](network.stages[0](x))
        assert torch.equal(network(x), want)
    assert [stage.layer for stage in network.stages] == ["relu3_1", "relu1_1"]
    assert network.stages[1].encoder.convs["relu1_1"].weight.shape[0] == 3


def test_a_folder_holds_it(tmp_path: object) -> None:
    torch.manual_seed(2)
    arguments = {"layers": ["relu2_1"], "widths": list(NARROW), "method": "ot", "rectified": True}
    network = VggCascade(**arguments).eval()
    folder = save_model(f"{tmp_path}/m", network, builder="vgg-cascade", arguments=arguments)
    again = load_model(folder)
    assert isinstance(again, VggCascade)
    assert again.method == "ot"
    x = torch.rand(1, 3, 9, 12)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": []}, "layers: name at least one of relu5_1"),
        ({"layers": ["relu4_2"]}, "unknown layer 'relu4_2'; did you mean 'relu"),
        ({"method": "wtc"}, "unknown method 'wtc'; did you mean 'wct'"),
        ({"widths": [1, 2, 3]}, "five positive numbers, or five for each level"),
        ({"widths": [list(NARROW)] * 2}, "five positive numbers, or five for each level"),
        ({"widths": [4, 5, 6, 7, 0]}, "five positive numbers, or five for each level"),
    ],
)
def test_what_is_no_cascade_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        VggCascade(**arguments)  # type: ignore[arg-type]
