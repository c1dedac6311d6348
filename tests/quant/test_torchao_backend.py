"""Programs of torchao against a float64 simulation of what they should compute."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normapps.errors import InputError, NormappsError
from normapps.models.program import Program
from normapps.quant.options import QuantizeOptions
from normapps.quant.ranges import Histogram, range_of
from normapps.quant.torchao_backend import Rounded, batches_of, write_program

pytest.importorskip("torchao")

SHAPE = (1, 3, 12, 12)


class Net(nn.Module):
    """A convolution, a grouped one on a branch that is added, a transposed one, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.second(x)).relu()
        return self.last(self.up(x).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.get_parameter("first.weight")[2] *= 1e-3  # below torchao's own smallest scale
        net.get_parameter("first.weight")[3] = 0
    return net


def _batches(size: int = 12) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for count in (3, 1, 4):
        yield torch.randn((count, 3, size, size), generator=generator)


def _write(net: nn.Module, path: Path, **options: object) -> Rounded:
    return write_program(net, torch.zeros(SHAPE), _batches(), path, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rounded]:
    path = tmp_path_factory.mktemp("torchao") / "net.pt2"
    return path, _write(net, path)


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    """The nearest of 256 values from low to high, of which 0 is one, in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255))
    zero = round(-low / scale)
    return scale * ((x / scale).round() + zero).clamp(0, 255).sub(zero)


def _integral(weight: Tensor, per_channel: bool, top: int = 127) -> Tensor:
    """The nearest of 255 values (or 127) of each row, or of all rows, in float64."""
    rows = weight.detach().double().flatten(1)
    limits = rows.abs().amax(1, keepdim=True)
    limits = limits if per_channel else limits.max().expand_as(limits)
    scales = (limits / top).clamp_min(1e-30).float().double()
    return (scales * (rows / scales).round()).view_as(weight)


def _simulated(
    net: nn.Module, x: Tensor, done: Rounded, *, per_channel: bool = True, top: int = 127
) -> Tensor:
    first, second, up, last = (net.get_submodule(n) for n in ("first", "second", "up", "last"))
    given, between, pooled = done.ranges.values()
    weights = [_integral(each.weight, per_channel, top) for each in (first, second, last)]  # type: ignore[arg-type]
    bias = {each: each.bias.detach().double() for each in (first, second, up, last)}  # type: ignore[union-attr]
    x = _rounded(x.double(), *given)
    x = F.conv2d(x, weights[0], bias[first], padding=1).relu()
    x = _rounded(x, *between)
    x = (x + F.conv2d(x, weights[1], bias[second], padding=1, groups=4)).relu()
    x = F.conv_transpose2d(x, up.get_parameter("weight").detach().double(), bias[up])
    return F.linear(_rounded(x.mean((2, 3)), *pooled), weights[2], bias[last])


def _share_apart(found: np.ndarray, wanted: Tensor) -> float:
    """How many outputs differ by more than float32: where a value lay between two of a grid."""
    apart = (torch.from_numpy(found).double() - wanted).abs()
    assert apart.max() < 0.01 * wanted.abs().max()
    return float((apart > 1e-6).double().mean())


def test_a_program_computes_what_the_grids_say(net: nn.Module, made: tuple[Path, Rounded]) -> None:
    path, done = made
    program = Program(path, is_compiled=False)
    assert program.output_names == ("0",)
    for count in (1, 5, 11):
        x = torch.randn((count, *SHAPE[1:]), generator=torch.Generator().manual_seed(count))
        (found,) = program.run(x.numpy())
        assert found.shape == (count, 5)
        assert _share_apart(found, _simulated(net, x, done)) < 0.05
        with torch.no_grad():
            wanted = net(x)
        apart = torch.from_numpy(found) - wanted
        assert 1e-5 < apart.abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize(
    ("options", "simulated"),
    [
        ({"per_channel": False}, {"per_channel": False}),
        ({"reduce_range": True}, {"top": 63}),
    ],
)
def test_options_change_the_grids(
    net: nn.Module,
    made: tuple[Path, Rounded],
    tmp_path: Path,
    options: dict[str, object],
    simulated: dict[str, int],
) -> None:
    done = _write(net, tmp_path / "net.pt2", **options)
    x = torch.randn((7, *SHAPE[1:]), generator=torch.Generator().manual_seed(2))
    (found,) = Program(tmp_path / "net.pt2", is_compiled=False).run(x.numpy())
    assert _share_apart(found, _simulated(net, x, done, **simulated)) < 0.05  # type: ignore[arg-type]
    assert _share_apart(found, _simulated(net, x, made[1])) > 0.5
    assert done.ranges == made[1].ranges


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_ranges_are_those_of_all_pictures_together(
    net: nn.Module, tmp_path: Path, method: str
) -> None:
    path, size = tmp_path / "net.pt2", 48  # of 55 296 values a percentile leaves some out
    done = write_program(net, torch.zeros(1, 3, size, size), _batches(size), path, method=method)
    histogram = Histogram()
    histogram.add(torch.cat(list(_batches(size))).numpy())
    assert done.ranges["x"] == range_of(histogram, method)
    assert done.ranges["x"] != (histogram.low, histogram.high)
    x = torch.randn((7, 3, size, size), generator=torch.Generator().manual_seed(2))
    (found,) = Program(path, is_compiled=False).run(x.numpy())
    assert _share_apart(found, _simulated(net, x, done)) < 0.05


def test_min_max_ranges_are_those_of_the_pictures(
    net: nn.Module, made: tuple[Path, Rounded]
) -> None:
    done = made[1]
    x = torch.cat(list(_batches()))
    assert next(iter(done.ranges.values())) == (float(x.min()), float(x.max()))
    with torch.no_grad():
        relu = F.relu(net.get_submodule("first")(x))
    assert list(done.ranges.values())[1] == pytest.approx((0.0, float(relu.max())))


def test_layers_without_an_int8_kernel_are_named(made: tuple[Path, Rounded]) -> None:
    done = made[1]
    assert [each.module for each in done.layers] == ["first", "second", "up", "last"]
    assert [each.op for each in done.layers] == ["conv2d", "conv2d", "conv_transpose2d", "linear"]
    assert done.kept_float == ("conv_transpose2d",)
    assert done.float_operators == ("conv_transpose2d up",)


def test_the_file_holds_integers_and_nothing_of_this_machine(
    net: nn.Module, made: tuple[Path, Rounded], tmp_path: Path
) -> None:
    path = made[0]
    with zipfile.ZipFile(path) as archive:
        sizes = {each.filename: each.file_size for each in archive.infolist()}
        (graph,) = (name for name in sizes if name.endswith("models/model.json"))
        text = archive.read(graph).decode()
    assert ".py" not in text
    weights = sum(each for name, each in sizes.items() if "weights/weight_" in name)
    rounded = [net.get_parameter(f"{name}.weight").numel() for name in ("first", "second", "last")]
    rows = 8 + 8 + 5
    in_float = 4 * (net.get_parameter("up.weight").numel() + rows + 6)
    assert weights == sum(rounded) + in_float + rows * (4 + 8)
    assert not sum(each for name, each in sizes.items() if "sample_inputs" in name)
    again = tmp_path / path.name  # the name stands in the file
    _write(net, again)
    hashes = [hashlib.sha256(each.read_bytes()) for each in (path, again)]
    assert hashes[0].digest() == hashes[1].digest()


def test_the_network_stays_as_it_is(net: nn.Module, tmp_path: Path) -> None:
    before = {name: each.clone() for name, each in net.state_dict().items()}
    _write(net.train(), tmp_path / "net.pt2")
    assert net.training
    net.eval()
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], each) for name, each in before.items())


def test_what_cannot_be_rounded_is_refused(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    up = nn.Sequential(nn.ConvTranspose2d(3, 2, 2))
    for model in (up, nn.Sequential(nn.ReLU())):
        with pytest.raises(InputError, match="has no layer that torchao could compute in int8"):
            _write(model, path)
    with pytest.raises(InputError, match="no images"):
        write_program(net, torch.zeros(SHAPE), [], path)
    with pytest.raises(InputError, match="must be finite"):
        write_program(net, torch.zeros(SHAPE), [torch.full(SHAPE, torch.inf)], path)

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"torch\.export cannot trace it") as error:
        _write(Branching(), path)
    assert "\n" not in str(error.value)
    assert not path.exists()


def test_batches_are_distilled_images_or_none() -> None:
    options = QuantizeOptions(data_free=True, distill=5, batch_size=2, backend="torchao")
    images = np.random.default_rng(0).standard_normal((5, 3, 4, 4), np.float32)
    found = list(batches_of(options, None, images))
    assert [len(each) for each in found] == [2, 2, 1]
    assert np.array_equal(torch.cat(found).numpy(), images)
    assert not list(batches_of(options, None, None))


def test_a_missing_package_is_one_line(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normapps.models.program.find_spec", lambda name: None)
    with pytest.raises(NormappsError, match=r"install normapps\[torchao\]"):
        _write(net, tmp_path / "net.pt2")
