"""Drawing: latents by seed, statistics of three kinds, bytes, grids, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.gan.opening import open_generator
from normapps.gan.pages import grid, picture
from normapps.gan.sampling import latents, sample, standing_, to_bytes, truncated
from normapps.models.folder import build
from normapps.norm import create_norm

sys.path.insert(0, str(Path(__file__).parent))
from gan_runs import SMALL, make_generator, make_run


class Tiny(nn.Module):
    """Pictures (N, 1, 2, 2): the latent through a batch norm, and by a class."""

    def __init__(self, num_classes: int = 0, latent: int = 4) -> None:
        super().__init__()
        self.latent, self.num_classes = latent, num_classes
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = (self.scale * z).reshape(-1, 1, 2, 2)
        return torch.tanh(self.norm(x if y is None else x + y.reshape(-1, 1, 1, 1)))


def test_a_seed_gives_the_same_latent_beside_any_other() -> None:
    whole = latents([5, 0, 2**40, 5], 7)
    assert whole.shape == (4, 7)
    assert torch.equal(whole[0], whole[3])
    assert torch.equal(whole[1:2], latents([0], 7))
    assert torch.equal(whole[2], torch.randn(7, generator=torch.Generator().manual_seed(2**40)))
    assert latents([], 7).shape == (0, 7)


@pytest.mark.parametrize(("norm", "classes"), [("bn", 0), ("cbn", 3), ("wc", 3), ("self-mod", 0)])
def test_a_seed_gives_the_same_picture_in_any_batch(norm: str, classes: int) -> None:
    arguments = SMALL | {"norm": norm, "num_classes": classes, "width": 16}
    generator = build("sngan-generator", arguments, seed=0)
    standing_(generator, 32)
    z = latents(range(21), 6)
    y = torch.arange(21) % classes if classes else None
    whole = sample(generator, z, y)
    assert whole.shape == (21, 1, 28, 28)
    assert whole.dtype == torch.uint8
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(generator, z[order], None if y is None else y[order]), whole[order])
    alone = [sample(generator, z[i : i + 1], None if y is None else y[i : i + 1]) for i in (0, 20)]
    assert torch.equal(torch.cat(alone), whole[[0, 20]])


def test_pictures_are_always_computed_in_the_same_number() -> None:
    class Rounding(Tiny):
        """Depends on the number, as kernels' rounding does, but visibly."""

        def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.tanh(z + len(z) / 10).reshape(-1, 1, 2, 2)

    z = latents(range(37), 4)
    whole = sample(Rounding(), z)
    assert torch.equal(sample(Rounding(), z[30:33]), whole[30:33])


def test_batch_statistics_are_those_of_the_pictures_drawn_together() -> None:
    generator = Tiny().eval()
    z = latents(range(5), 4)
    x = 0.3 * z.double()
    x = torch.tanh((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt())
    wanted = ((x + 1) * 128).floor().reshape(5, 1, 2, 2)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    assert torch.equal(sample(generator, z, bn="batch").double(), wanted)
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())
    assert not generator.norm.training
    assert not torch.equal(sample(generator, z[:2], bn="batch").double(), wanted[:2])


def test_sampling_keeps_the_mode() -> None:
    generator = Tiny().train()
    sample(generator, latents([0], 4))
    assert generator.training
    assert generator.norm.training
    assert int(generator.norm.num_batches_tracked or 0) == 0


@given(st.integers(0, 255), st.floats(0, 0.999))
def test_bytes_undo_dequantization(value: int, share: float) -> None:
    x = torch.tensor(value, dtype=torch.float64) / 128 - 1 + share / 128
    assert int(to_bytes(x.float())) == value


def test_bytes_stay_within_their_range() -> None:
    assert to_bytes(torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


def test_standing_statistics_are_those_of_all_latents_and_classes() -> None:
    generator = Tiny(num_classes=2).eval()
    undo = standing_(generator, 30, batch_size=7, seed=3)
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(3)).double()
    x = 0.3 * z + (torch.arange(30) % 2).double()[:, None]
    mean, var = generator.norm.running_mean, generator.norm.running_var
    assert mean is not None
    assert var is not None
    assert mean.item() == pytest.approx(x.mean().item(), rel=1e-5)
    assert var.item() == pytest.approx(x.var(correction=1).item(), rel=1e-5)
    undo()
    assert mean.item() == 0
    assert var.item() == 1


def test_standing_statistics_take_a_last_batch_of_one() -> None:
    whitening = create_norm("cholesky", 2, layout="2d")
    generator = Tiny()
    generator.norm = nn.Sequential(nn.Conv2d(1, 2, 2), whitening)  # type: ignore[assignment]
    standing_(generator, 9, batch_size=8)
    assert bool(whitening.running_cov.isfinite().all())


def test_a_generator_without_statistics_is_left_alone() -> None:
    generator = build("sngan-generator", SMALL | {"norm": "in"}, seed=0)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    standing_(generator, 4)
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())
    with pytest.raises(InputError, match="--bn batch: the generator has no layer with running"):
        sample(generator, latents([0], 6), bn="batch")


@pytest.mark.parametrize("classes", [(), ("bag", "boot")])
def test_a_run_and_its_folder_open_as_one(tmp_path: Path, classes: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", classes)
    for spec in (run, str(run / "generator")):
        opened = open_generator(spec)
        assert opened.folder == run / "generator"
        assert opened.classes == classes
        assert opened.latent == 6
        assert not opened.generator.training


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "g", num_classes=3, norm="cbn")
    assert open_generator(folder).classes == ("0", "1", "2")


def test_running_statistics_are_drawn_with_and_taken_back(tmp_path: Path) -> None:
    opened = open_generator(make_generator(tmp_path / "g"))
    z = latents(range(3), 6)
    standing = sample(opened.generator, z)
    with opened.use_("running"):
        running = sample(opened.generator, z)
    assert not torch.equal(running, standing)
    assert torch.equal(sample(opened.generator, z), standing)
    standing_(opened.generator, 32, seed=7)  # what the stand-in's running statistics are
    assert torch.equal(sample(opened.generator, z), running)
    opened.use_("standing", standing=64, seed=8)
    assert torch.equal(sample(opened.generator, z), standing)


def test_what_is_no_generator_is_refused(tmp_path: Path) -> None:
    from normapps.models.folder import save_model

    run = make_run(tmp_path / "run")
    with pytest.raises(InputError, match="unknown model 'sngan-none'"):
        open_generator("sngan-none")
    with pytest.raises(InputError, match="is no model folder"):
        open_generator(tmp_path)
    arguments = {"size": 28, "channels": 1, "width": 8}
    network = build("sngan-discriminator", arguments, seed=0)
    save_model(tmp_path / "d", network, builder="sngan-discriminator", arguments=arguments)
    with pytest.raises(InputError, match="d: is no generator but a sngan-discriminator"):
        open_generator(tmp_path / "d")
    (run / "generator" / "running.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no running\.safetensors"):
        open_generator(run).use_("running")
    (run / "generator").rename(run / "other")
    with pytest.raises(InputError, match="has no generator/ yet; `normapps gan train --resume"):
        open_generator(run)


def test_wrong_latents_and_classes_are_refused() -> None:
    plain, conditional = Tiny(), Tiny(num_classes=2)
    z, y = latents([0, 1], 4), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"latents of \(2, 3\): the generator takes \(N, 4\)"):
        sample(plain, z[:, :3])
    with pytest.raises(InputError, match="has no classes; leave out y"):
        sample(plain, z, y)
    with pytest.raises(InputError, match="takes a class of 2; give y"):
        sample(conditional, z)
    with pytest.raises(InputError, match="1 classes for 2 latents"):
        sample(conditional, z, y[:1])
    with pytest.raises(InputError, match="unknown statistics 'bacth'; did you mean 'batch'"):
        sample(plain, z, bn="bacth")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_every_picture_in_its_place(channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, channels, 3, 4), generator=random, dtype=torch.uint8)
    page = np.asarray(grid(images, columns=2, scale=2)).reshape(3 * 8 - 2, 2 * 10 - 2, channels)
    for index, image in enumerate(images):
        top, left = index // 2 * 8, index % 2 * 10
        tile = page[top : top + 6, left : left + 8]
        wanted = image.permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
        assert np.array_equal(tile, wanted)
    assert (page[:, 8:10] == 255).all()
    assert (page[16:, 10:] == 255).all()


@pytest.mark.parametrize(
    ("count", "columns", "size"), [(8, 0, (30, 2)), (9, 0, (10, 10)), (2, 5, (6, 2))]
)
def test_a_grid_chooses_its_columns(count: int, columns: int, size: tuple[int, int]) -> None:
    assert grid(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), columns).size == size


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(InputError, match="at least one picture"):
        grid(torch.zeros(0, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(InputError, match="pictures of 2 channels"):
        picture(torch.zeros(2, 2, 2, dtype=torch.uint8))


def test_truncated_latents_have_the_distribution_of_draws_within() -> None:
    z = latents([0], 200_000)[0]
    cut = truncated(z, 0.7)
    assert cut.dtype == torch.float32
    assert float(cut.abs().max()) <= 0.7
    inside = z[z.abs() < 0.7].double()  # what is left if those beyond are drawn anew
    assert float(cut.double().std()) == pytest.approx(float(inside.std()), rel=0.01)
    at = torch.linspace(0.05, 0.95, 19).double()
    wanted = torch.quantile(inside, at)
    assert torch.allclose(torch.quantile(cut.double(), at), wanted, atol=0.01)


def test_a_latent_keeps_its_order_however_much_is_cut_off() -> None:
    z = torch.tensor([-40.0, -3.0, -0.2, 0.0, 1.0, 3.0, 40.0])
    assert torch.all(truncated(z, 1.0).diff() >= 0)
    assert torch.allclose(truncated(z, 30.0)[1:-1], z[1:-1], atol=1e-6)
    assert torch.equal(latents([3, 4], 5, 0.5), truncated(latents([3, 4], 5), 0.5))
