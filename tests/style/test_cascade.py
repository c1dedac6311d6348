from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.vgg_cascade import VggCascade
from normapps.models.vgg_files import read_cascade
from normapps.norm import Moments
from normapps.style.cascade import CascadeRenderer
from normapps.style.render import smaller
from normapps.style.rendering import Region

CPU = torch.device("cpu")
METHODS = ("wct", "adain", "ot", "cholesky")


def renderer(
    layers: tuple[str, ...] = ("relu3_1", "relu1_1"), method: str = "wct", side: int | None = None
) -> CascadeRenderer:
    """Random networks whose features keep the picture's size."""
    torch.manual_seed(0)
    network = VggCascade(layers, (6, 7, 8, 9, 10), method)
    for stage in network.stages:
        for conv in [*stage.encoder.convs.values(), *stage.decoder.convs.values()]:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        stage.encoder.input.weight.data.copy_(20 * torch.eye(3)[..., None, None])
        nn.init.constant_(stage.encoder.input.bias, -10.0)
        nn.init.constant_(stage.decoder.convs["conv1_1"].bias, 0.4)
        stage.decoder.convs["conv1_1"].weight.data.mul_(0.04)
    return CascadeRenderer(network.eval().requires_grad_(False), CPU, side)


def tensor(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None]


def covariance(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) @ (x - x.mean(1, keepdims=True)).T / x.shape[1]


def power(cov: np.ndarray, exponent: float, ridge: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov + ridge * np.eye(len(cov)))
    return (vectors * values**exponent) @ vectors.T


def wct_by_hand(content: np.ndarray, style: np.ndarray, alpha: float, ridge: float) -> np.ndarray:
    """Li et al. 2017, eq. 2 and 3, by eigenvectors in float64; a ridge instead of a cut-off."""
    centred = content - content.mean(1, keepdims=True)
    whitened = power(covariance(content), -0.5, ridge) @ centred
    coloured = power(covariance(style), 0.5, ridge) @ whitened + style.mean(1, keepdims=True)
    mixed: np.ndarray = alpha * coloured + (1 - alpha) * content
    return mixed


def cascade_by_hand(
    network: VggCascade, photo: Tensor, painting: Tensor, alpha: float, ridge: float
) -> Tensor:
    """The papers' loop in float64: encode, transform, decode, and so to the next level."""
    x, style = photo.double() / 255, painting.double() / 255
    for stage in network.stages:
        features = stage.encode(x)
        content, wanted = (f[0].flatten(1).numpy() for f in (features, stage.encode(style)))
        mixed = torch.from_numpy(wct_by_hand(content, wanted, alpha, ridge))
        drawn = stage.decode(mixed.view_as(features))
        x = drawn[..., : photo.shape[2], : photo.shape[3]]
    return x


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_wct_is_the_papers_loop(alpha: float, chelsea: np.ndarray, coffee: np.ndarray) -> None:
    ours = renderer()
    photo, painting = tensor(chelsea[50:145, 60:170]), tensor(coffee[100:180, 200:290])
    got = ours.render(photo.float() / 255, [Region(ours.measure(painting))], alpha=alpha)
    network = renderer().network.double()
    want = cascade_by_hand(network, photo, painting, alpha, 1e-2)
    if alpha < 1:  # ours gives back what the levels lose of the photo
        x = photo.double() / 255
        want = want + (1 - alpha) * (x - network(x))
    assert (got.double() - want.clamp(0, 1)).abs().max() < 2e-4
    assert (got.double() - photo / 255).abs().mean() > 0.02


@pytest.mark.shared
def test_wct16_is_the_papers_loop(
    shared_dir: Path, astronaut: np.ndarray, coffee: np.ndarray
) -> None:
    """In float64 on both sides: five levels amplify the rounding of float32 to whole levels."""
    network = read_cascade([shared_dir / "weights" / "wct16x"])[0].double()
    photo, painting = tensor(astronaut[40:168, 150:310]), tensor(coffee[80:240, 180:340])
    ours = CascadeRenderer(network, CPU)
    got = ours.render(photo, [Region(ours.measure(painting))])
    with torch.no_grad():
        want = cascade_by_hand(network, photo, painting, 1.0, 1e-2).clamp(0, 1) * 255
    assert (got.double() - want).abs().max() < 0.51


@pytest.mark.parametrize("method", METHODS)
def test_one_level_gets_the_styles_moments(
    method: str, chelsea: np.ndarray, coffee: np.ndarray
) -> None:
    """What the decoder is given has them; seen by a decoder that lets the features through."""
    ours = renderer(("relu2_1",))
    stage = ours.network.stages[0]
    given: list[Tensor] = []
    stage.decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    (style,) = ours.measure(tensor(coffee[:90, :90]))
    ours.render(tensor(chelsea[:101, :122]), [Region((style,))], method=method)
    got = Moments.of(given[0], style.partition, full=True)
    assert torch.allclose(got.mean, style.mean, atol=1e-3)
    size = style.var.max()
    assert (got.var - style.var).abs().max() < 0.02 * size
    assert got.cov is not None
    assert style.cov is not None
    missed = (got.cov - style.cov).abs().max() / size
    assert missed > 0.1 if method == "adain" else missed < 0.02


@pytest.mark.parametrize(
    ("method", "shape"),
    [("wct", (110, 131)), ("adain", (97, 40)), ("ot", (40, 97)), ("cholesky", (61, 55))],
)
def test_tiles_are_the_whole(
    method: str, shape: tuple[int, int], chelsea: np.ndarray, coffee: np.ndarray
) -> None:
    whole, tiled = renderer(), renderer(side=46)  # no multiple of the stride
    photo = tensor(chelsea[: shape[0], : shape[1]])
    style = whole.measure(tensor(coffee[:101, :130]))
    for one, other in zip(style, tiled.measure(tensor(coffee[:101, :130])), strict=True):
        assert torch.allclose(one.mean, other.mean, atol=1e-5)
        assert torch.allclose(one.var, other.var, rtol=1e-4, atol=1e-5)
    ramp = torch.linspace(0, 1, shape[1]).expand(1, 1, *shape).contiguous()
    parts = [Region(style, ramp), Region(whole.measure(photo.flip(1)), 1 - ramp)]
    for regions in ([Region(style)], parts):
        one = whole.render(photo, regions, alpha=0.7, method=method)
        other = tiled.render(photo, regions, alpha=0.7, method=method)
        assert (one.int() - other.int()).abs().max() <= 1


def test_large_pictures_are_tiled_by_themselves(
    monkeypatch: pytest.MonkeyPatch, chelsea: np.ndarray
) -> None:
    from normapps.style import cascade

    ours = renderer()
    photo = tensor(chelsea[:110, :143])
    regions = [Region(ours.measure(photo.flip(2)))]
    want = ours.render(photo, regions)
    sides: list[tuple[int, ...]] = []
    ours.network.stages[0].encoder.register_forward_pre_hook(
        lambda _, inputs: sides.append(tuple(inputs[0].shape[2:]))
    )
    monkeypatch.setattr(cascade, "_WHOLE", 10_000)
    monkeypatch.setattr(cascade, "_SIDE", 64)
    got = ours.render(photo, regions)
    assert max(max(side) for side in sides) <= 64 + 2 * ours.network.stages[0].margin
    assert (got.int() - want.int()).abs().max() <= 1


def test_smaller_tiles_fit_every_stride() -> None:
    sides: list[int] = []

    def work(side: int) -> None:
        sides.append(side)
        raise torch.OutOfMemoryError("no more")

    for first in (0, 768, 1000, 464):
        with pytest.raises(InputError, match="out of memory on the device"):
            smaller(first, work)
    assert {side % 16 for side in sides if side != 1000} == {0}
    assert sides[-3:] == [464, 240, 128]


def test_huge_pictures_pass_between_levels_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, chelsea: np.ndarray
) -> None:
    from normapps.style import cascade

    ours = renderer()
    photo = tensor(chelsea[:90, :101])
    regions = [Region(ours.measure(photo.flip(2)))]
    want = ours.render(photo, regions)
    monkeypatch.setattr(cascade, "_PRECISE", 1000)
    got = ours.render(photo, regions)
    assert not torch.equal(got, want)
    assert (got.int() - want.int()).abs().max() <= 2


def test_every_region_has_its_own_moments(chelsea: np.ndarray, coffee: np.ndarray) -> None:
    ours = renderer(("relu2_1",))
    photo = tensor(chelsea[:120, :160])
    a, b = (ours.measure(tensor(x)) for x in (coffee[:90, :90], 255 - coffee[100:200, :90]))
    left = torch.zeros(1, 1, 120, 160)
    left[..., :80] = 1
    got = ours.render(photo, [Region(a, left), Region(b, 1 - left)])
    for half, style in ((slice(0, 80), a), (slice(80, 160), b)):
        alone = ours.render(photo[..., half], [Region(style)])
        inside = slice(8, -8)  # beyond what the cut changes
        difference = (got[..., half][..., inside].int() - alone[..., inside].int()).abs()
        assert difference.float().mean() < 2
        other = ours.render(photo[..., half], [Region(b if style is a else a)])
        assert (got[..., half].int() - other.int()).abs().float().mean() > 8


def test_what_no_mask_covers_is_only_reconstructed(chelsea: np.ndarray) -> None:
    ours = renderer(("relu2_1",))
    photo = tensor(chelsea[:96, :128]).float() / 255
    mask = torch.zeros(1, 1, 96, 128)
    mask[..., :48] = 1
    got = ours.render(photo, [Region(ours.measure(photo.flip(1)), mask)])
    with torch.no_grad():
        same = ours.network(photo).clamp(0, 1)
    far = slice(64, None)
    assert torch.allclose(got[..., far], same[..., far], atol=1e-4)
    assert (got[..., :32] - same[..., :32]).abs().mean() > 0.01


def test_strength_0_is_the_photo_and_nothing_jumps_beside_it(chelsea: np.ndarray) -> None:
    ours = renderer()
    photo = tensor(chelsea[:64, :80])
    regions = [Region(ours.measure(photo.flip(1)))]
    nought = ours.render(photo, regions, alpha=0)
    assert torch.equal(nought, photo)
    assert nought.data_ptr() != photo.data_ptr()
    near = ours.render(photo, regions, alpha=0.01)
    assert (near.int() - photo.int()).abs().max() <= 6


def test_steady_moments_stand_for_the_measured_ones(chelsea: np.ndarray) -> None:
    ours = renderer()
    photo, other = tensor(chelsea[:64, :80]), tensor(chelsea[64:128, :80])
    regions = [Region(ours.measure(photo.flip(1)))]
    seen: list[tuple[int, Moments]] = []

    def keep(level: int, own: Moments) -> Moments:
        seen.append((level, own))
        return own

    want = ours.render(photo, regions, steady=keep)
    assert [level for level, _ in seen] == [1, 2]
    assert torch.allclose(seen[0][1].mean, ours.measure(photo)[0].mean, atol=1e-5)
    assert torch.equal(want, ours.render(photo, regions))
    moved = ours.render(photo, regions, steady=lambda i, own: ours.measure(other)[i - 1])
    assert not torch.equal(moved, want)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (33, 31)])
def test_tiny_pictures_keep_their_size(shape: tuple[int, int], chelsea: np.ndarray) -> None:
    ours = renderer(("relu5_1", "relu1_1"))
    style = ours.measure(tensor(chelsea[:64, :80]))
    photo = tensor(chelsea[: shape[0], : shape[1]])
    got = ours.render(photo, [Region(style)])
    assert got.shape == photo.shape
    assert got.dtype == torch.uint8


def test_the_networks_own_method_is_the_default(chelsea: np.ndarray) -> None:
    ours = renderer(method="ot")
    assert ours.methods == ("ot", "adain", "wct", "cholesky")
    photo = tensor(chelsea[:64, :80])
    regions = [Region(ours.measure(photo.flip(1)))]
    assert torch.equal(ours.render(photo, regions), ours.render(photo, regions, method="ot"))
    assert not torch.equal(ours.render(photo, regions), ours.render(photo, regions, method="wct"))
    with pytest.raises(InputError, match="unknown method 'wtc'; did you mean 'wct'"):
        ours.render(photo, regions, method="wtc")


def test_half_precision_is_near(chelsea: np.ndarray) -> None:
    ours = renderer()
    photo = tensor(chelsea[:64, :80])
    style = ours.measure(photo.flip(1))
    want = ours.render(photo, [Region(style)])
    half = dataclasses.replace(ours, network=ours.network.bfloat16())
    got = half.render(photo, [Region(style)])
    assert (got.int() - want.int()).abs().float().mean() < 4
