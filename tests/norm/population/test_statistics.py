"""Populations as values: taken, applied, undone, stored."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import normapps.models  # noqa: F401  the guard of timm
from normapps.errors import InputError
from normapps.norm import DomainModel, Moments, channel_groups, convert_norm
from normapps.norm.layers.whitening import ZCANorm
from normapps.norm.population.measuring import measure
from normapps.norm.population.statistics import Population, apply_, digest, population_layers


def _model(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.BatchNorm2d(width)
    )
    for name, buffer in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)
    return model


def _batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, 3, 3, 3) for n in (2, 3)]


def _buffers(model: nn.Module) -> dict[str, bytes]:
    """The bits of everything in the model."""
    return {
        name: value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, value in model.state_dict().items()
        if value.dim()
    }


def test_layers_of_torch_timm_torchvision_and_ours_are_found() -> None:
    from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SplitBatchNorm2d, SyncBatchNormAct
    from torchvision.ops.misc import FrozenBatchNorm2d

    kinds = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d]
    kinds += [FrozenBatchNormAct2d, SyncBatchNormAct, FrozenBatchNorm2d]
    model = nn.ModuleList([kind(4) for kind in kinds])
    model.append(ZCANorm(4, group_size=2))
    model.append(SplitBatchNorm2d(4))
    none = nn.BatchNorm2d(4, track_running_stats=False)
    model.extend([none, nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 1), model[1]])
    expected = [str(i) for i in range(len(kinds) + 2)]
    assert list(population_layers(model)) == [*expected, f"{len(kinds) + 1}.aux_bn.0"]
    found = Population.of(model)
    assert found.layers["8"].partition == channel_groups(2)
    assert found.samples is None
    assert {float(moments.count.sum()) for moments in found.layers.values()} == {0.0}


def test_a_model_without_a_population_is_told_what_to_do() -> None:
    with pytest.raises(InputError, match=r"^GroupNorm has no layer .*convert_norm"):
        Population.of(nn.GroupNorm(2, 4))
    with pytest.raises(InputError, match=r"^layer '0' is lazy: run the model"):
        Population.of(nn.Sequential(nn.LazyBatchNorm2d()))


def test_what_a_model_without_a_population_is_told_works() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), _batches()[0]
    with pytest.raises(InputError, match=r"convert_norm\(model, 'batch', match='all'\)"):
        measure(model, [x])
    assert list(measure(convert_norm(model, "batch", match="all"), [x]).layers) == ["1"]
    domains = DomainModel(_model(), 2)
    with pytest.raises(InputError, match=r"measure model\.export\(domain\).*load_domain\(domain"):
        measure(domains, [x])
    found = measure(domains.export(1), [x])
    domains.load_domain(1, found)
    for name, moments in domains.population(1).layers.items():
        torch.testing.assert_close(moments.mean, found.layers[name].mean.float())


def test_the_digest_sees_every_statistic() -> None:
    model = nn.Sequential(_model(), ZCANorm(4, group_size=2))
    layers = population_layers(model)
    found = {digest(layers)}
    for layer in layers.values():
        for name in ("running_mean", "running_var", "running_cov"):
            if isinstance(buffer := getattr(layer, name, None), Tensor):
                buffer.view(-1)[-1] += 0.1
                found.add(digest(layers))
    assert len(found) == 1 + 2 * len(layers)
    model.double()
    assert digest(layers) not in found


def test_a_value_too_large_for_the_buffer_is_refused() -> None:
    model = _model()
    population = measure(model, [1e4 * x for x in _batches()])
    half = copy.deepcopy(model).half()
    before = _buffers(half)
    with pytest.raises(InputError, match=r"^layer '1': a statistic of .* more than float16 holds"):
        apply_(half, population, strict=False)
    assert _buffers(half) == before
    population.layers["3"].mean[0, 0] = float("inf")  # not ours: as a checkpoint may have it
    apply_(model, population)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_models_own_population_changes_no_bit(dtype: torch.dtype) -> None:
    model = nn.Sequential(_model(), ZCANorm(4, group_size=2)).to(dtype)
    before = _buffers(model)
    own = Population.of(model)
    assert own.layers["0.1"].mean.dtype == torch.promote_types(dtype, torch.float32)
    apply_(model, own)
    assert _buffers(model) == before


def test_a_taken_population_is_a_copy() -> None:
    model = _model()
    own = Population.of(model)
    expected = own.layers["1"].mean.clone()
    model.train()(torch.randn(4, 3, 3, 3))
    assert torch.equal(own.layers["1"].mean, expected)


def test_applying_is_what_torch_would_have_stored() -> None:
    """With momentum 1 in training, torch stores the batch's mean and unbiased variance."""
    model, x = _model(), _batches()[0]
    taught = _model()
    for layer in (taught[1], taught[3]):
        layer.momentum = 1.0
    taught.train()(x)
    before, training = _buffers(model), model.training
    undo = apply_(model, measure(model, [x]))
    for i in (1, 3):
        torch.testing.assert_close(model[i].running_mean, taught[i].running_mean)
        torch.testing.assert_close(model[i].running_var, taught[i].running_var)
        assert model[i].num_batches_tracked == 0
    assert model.training == training
    undo()
    assert _buffers(model) == before


def test_a_block_takes_it_back_after_an_error() -> None:
    model = _model()
    before = _buffers(model)

    def fail() -> None:
        with apply_(model, measure(model, _batches())):
            assert _buffers(model) != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _buffers(model) == before


def test_another_model_is_refused_by_the_first_weight_that_differs() -> None:
    population = measure(_model(), _batches())
    cases = [
        (_model(seed=1), r"^0\.weight differs: the population belongs to another model"),
        (_model(width=5), r"^0\.weight has shape \(5, 3, 1, 1\), the other \(4, 3, 1, 1\)"),
        (_model().bfloat16(), r"^0\.weight is bfloat16, the other float32"),
    ]
    for model, message in cases:
        before = _buffers(model)
        with pytest.raises(InputError, match=message):
            apply_(model, population)
        assert _buffers(model) == before


def test_not_strict_takes_what_fits_and_refuses_other_shapes() -> None:
    population = measure(_model(), _batches())
    other = _model(seed=1)[:2]
    apply_(other, population, strict=False)
    torch.testing.assert_close(other[1].running_mean, population.layers["1"].mean[0].float())
    wider = _model(width=5)
    with pytest.raises(InputError, match=r"^layer '1' keeps a spread of \(5,\), the population"):
        apply_(wider, population, strict=False)
    with pytest.raises(InputError, match="no layer of the population is in the model"):
        apply_(nn.ModuleDict({"other": nn.BatchNorm2d(4)}), population, strict=False)


def test_a_layer_that_only_one_of_them_has_is_named() -> None:
    model = _model()
    population = measure(model, _batches())
    layers = dict(population.layers)
    del layers["3"]
    lacking = Population(layers, population.fingerprint, 5)
    with pytest.raises(InputError, match="layer '3' is not in the population"):
        apply_(model, lacking)
    apply_(model, Population(layers, population.fingerprint, 5, ("3",)))
    more = Population({**population.layers, "9": population.layers["3"]}, population.fingerprint, 5)
    with pytest.raises(InputError, match="layer '9' of the population is not in the model"):
        apply_(model, more)


def test_a_frozen_or_converted_copy_is_the_same_model() -> None:
    from torchvision.ops.misc import FrozenBatchNorm2d

    model = _model()
    frozen = nn.Sequential(model[0], FrozenBatchNorm2d(4), nn.ReLU(), FrozenBatchNorm2d(4))
    population = measure(model, _batches())
    apply_(frozen, population)
    torch.testing.assert_close(frozen[1].running_mean, population.layers["1"].mean[0].float())


def test_a_file_holds_every_bit(tmp_path: Path) -> None:
    model = nn.Sequential(_model(), ZCANorm(4, group_size=2), nn.BatchNorm2d(4))
    path = tmp_path / "deep" / "population.safetensors"
    model[2].forward = None  # never called
    whole = measure(model[:2], _batches())
    population = Population(whole.layers, whole.fingerprint, whole.samples, ("2",))
    population.save(path)
    found = Population.load(path)
    assert (found.samples, found.unreached) == (5, ("2",))
    assert found.fingerprint == population.fingerprint
    assert list(found.layers) == list(population.layers)
    for name, moments in population.layers.items():
        _equal(found.layers[name], moments)
    Population.of(model).save(path, overwrite=True)
    own = Population.load(path)
    assert own.samples is own.mode is own.based_on is None
    measure(model[:2], _batches(), mode="fixed").save(path, overwrite=True)
    fixed = Population.load(path)
    assert (fixed.mode, fixed.based_on) == ("fixed", digest(population_layers(model[:2])))


def _equal(found: Moments, expected: Moments) -> None:
    assert found.partition == expected.partition
    assert found.is_full == expected.is_full
    for name in ("count", "mean", "var", "cov"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert theirs is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))


def test_a_file_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "population.safetensors"
    Population.of(_model()).save(path)
    with pytest.raises(InputError, match="exists already"):
        Population.of(_model()).save(path)
    assert os.listdir(tmp_path) == ["population.safetensors"]


def _damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("mean 0, variance 1")
    elif kind == "other":
        save_file({"weight": torch.zeros(2)}, path)
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "other", "missing"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "population.safetensors"
    Population.of(_model()).save(path)
    _damage(path, kind)
    with pytest.raises(InputError, match=r"population\.safetensors: ") as caught:
        Population.load(path)
    assert "\n" not in str(caught.value)


CONTENTS: dict[str, Any] = {
    "layers": [["gone", "batch", 1]],
    "samples": "many",
    "unreached": None,
    "fingerprint": [["0.weight"]],
}


@pytest.mark.parametrize("key", [*CONTENTS, "all", "version"])
def test_damaged_metadata_is_refused(tmp_path: Path, key: str) -> None:
    from safetensors import safe_open

    path = tmp_path / "population.safetensors"
    Population.of(_model()).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    content = json.loads(metadata["population"])
    if key == "version":
        metadata["version"] = "2"
    elif key == "all":
        metadata["population"] = "{"
    else:
        metadata["population"] = json.dumps({**content, key: CONTENTS[key]})
    save_file(load_file(path), path, metadata)
    expected = "of version 2, this normapps reads" if key == "version" else "damaged population"
    with pytest.raises(InputError, match=rf"population\.safetensors: .*{expected}"):
        Population.load(path)
