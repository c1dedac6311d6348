"""Somebody else's checkpoints: prefixes, classifiers, old formats, and clear refusals."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import normapps.models  # noqa: F401  (guard)
from normapps.errors import InputError
from normapps.models.builders import timm_model, torchvision_model
from normapps.models.checkpoint import load_checkpoint, without_prefixes

timm = pytest.importorskip("timm")


def small(classes: int | None = None) -> nn.Module:
    return timm_model("test_resnet", classes)


def trained(classes: int | None = None) -> dict[str, Tensor]:
    """Weights and statistics that no initialization would give."""
    generator = torch.Generator().manual_seed(7)
    state = small(classes).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) + 0.1
        if value.is_floating_point()
        else value + 5
        for key, value in state.items()
    }


def check_equal(model: nn.Module, state: dict[str, Tensor]) -> None:
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_what_wrappers_put_before_the_names_is_removed(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    state = trained()
    file, renamed = tmp_path / f"x.{suffix}", {prefix + key: x for key, x in state.items()}
    if suffix == "safetensors":
        save_file(renamed, file)
    else:
        options = argparse.Namespace(lr=0.1, name="as timm stores it")
        torch.save({"epoch": 3, "state_dict": renamed, "args": options}, file)
    model, classes = load_checkpoint(small, file)
    check_equal(model, state)
    assert classes is None


class Wrapped(nn.Module):
    """A network whose own names begin like a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)


def test_a_prefix_that_the_network_itself_has_stays(tmp_path: Path) -> None:
    for prefix in ("", "module."):
        state = {f"{prefix}{key}": value for key, value in Wrapped().state_dict().items()}
        save_file(state, tmp_path / "x.safetensors")
        model, _ = load_checkpoint(lambda _: Wrapped(), tmp_path / "x.safetensors")
        check_equal(model, {key.removeprefix("module."): x for key, x in state.items()})


@given(
    names=st.sets(st.text("abc.", min_size=1, max_size=5), min_size=1, max_size=5),
    prefixes=st.lists(st.sampled_from(["module.", "model.", "_orig_mod."]), max_size=4),
)
def test_any_pile_of_prefixes_comes_off(names: set[str], prefixes: list[str]) -> None:
    state = {"".join(prefixes) + name: name for name in names}
    assert without_prefixes(state, names) == {name: name for name in names}


@pytest.mark.parametrize("classes", [1, 7, 10])
def test_the_classes_are_those_of_the_checkpoint(tmp_path: Path, classes: int) -> None:
    state = trained(classes)
    save_file(state, tmp_path / "x.safetensors")
    model, found = load_checkpoint(small, tmp_path / "x.safetensors")
    check_equal(model, state)
    assert found == classes


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_the_classes_of_torchvisions_networks_too(tmp_path: Path, name: str) -> None:
    state = torchvision_model(name, 4).state_dict()
    save_file(state, tmp_path / "x.safetensors")
    model, found = load_checkpoint(lambda n: torchvision_model(name, n), tmp_path / "x.safetensors")
    check_equal(model, dict(state))
    assert found == 4


def test_a_checkpoint_without_batch_counters_is_taken(tmp_path: Path) -> None:
    state = {k: v for k, v in trained().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "x.safetensors")
    model, _ = load_checkpoint(small, tmp_path / "x.safetensors")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_the_authors_names_are_translated_where_timm_knows_how(tmp_path: Path) -> None:
    """ConvNeXt's own repository names its stages otherwise; timm's filter renames them."""
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))
    state = model.state_dict()
    theirs = {
        key.replace("stem.", "downsample_layers.0.")
        .replace("head.norm.", "norm.")
        .replace("head.fc.", "head."): value
        for key, value in state.items()
    }
    for stage in range(4):
        theirs = {
            key.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
            .replace(f"stages.{stage}.blocks.", f"stages.{stage}.")
            .replace("conv_dw", "dwconv")
            .replace("mlp.fc", "pwconv"): value
            for key, value in theirs.items()
        }
    assert theirs.keys() != state.keys()
    save_file(theirs, tmp_path / "x.safetensors")
    fresh, _ = load_checkpoint(
        lambda _: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)),
        tmp_path / "x.safetensors",
    )
    check_equal(fresh, dict(state))


def _fault(file: Path, state: dict[str, Tensor], num_classes: int | None = None) -> str:
    save_file(state, file)
    with pytest.raises(InputError) as caught:
        load_checkpoint(small, file, num_classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    file, state = tmp_path / "x.safetensors", trained()
    names = list(state)
    missing = {key: value for key, value in state.items() if key not in names[1:4]}
    assert f"does not fit the model: {names[1]} is missing and 2 more; name the model" in _fault(
        file, missing
    )
    assert "does not fit the model: other is not wanted; name the model that it was made for" in (
        _fault(file, state | {"other": torch.zeros(2)})
    )
    first = state[names[0]]
    shape = (first.shape[0], 9, *first.shape[2:])
    assert f"{names[0]} is {shape}, not {tuple(first.shape)}; name" in _fault(
        file, state | {names[0]: torch.zeros(shape)}
    )


def test_classes_that_contradict_the_checkpoint_are_refused(tmp_path: Path) -> None:
    fault = _fault(tmp_path / "x.safetensors", trained(7), num_classes=5)
    assert "fc.weight is (7, " in fault
    assert "and 1 more; leave out --num-classes 5, it has 7" in fault


def test_a_checkpoint_that_needs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hook": Wrapped()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="pickled objects are refused"):
        load_checkpoint(small, tmp_path / "x.pth")


def test_a_checkpoint_of_another_network_blames_no_option(tmp_path: Path) -> None:
    """A guess at its classes, that does not help, is not the user's."""
    state = trained()
    wrong = {
        key: torch.zeros(9) if key == "conv1.1.running_mean" else x for key, x in state.items()
    }
    assert wrong["conv1.1.running_mean"].shape != state["conv1.1.running_mean"].shape
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=r"conv1.1.running_mean is \(9,\)") as error:
        load_checkpoint(small, tmp_path / "wrong.safetensors")
    assert "--num-classes" not in str(error.value)
    assert "more" not in str(error.value)
