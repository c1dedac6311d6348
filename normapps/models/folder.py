"""Model folders: `model.safetensors` and a versioned `model.json` that says how to build it.

One function opens whatever made the folder: training, adaptation, pruning. No pickle.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, unknown
from ..files import atomic_path, check_parent, sha256, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT, VERSION = "normapps-model", 1
WEIGHTS, MANIFEST = "model.safetensors", "model.json"
ONNX_FORMAT = "normapps-onnx"
"""The format of folders that `OnnxModel` opens."""
PROGRAM_FORMAT = "normapps-program"
"""The format of folders that `ProgramModel` opens."""

BUILDERS = {
    "adain-tiny": "normapps.models.adain_tiny:AdainTiny",
    "vgg-cascade": "normapps.models.vgg_cascade:VggCascade",
    "small-cnn": "normapps.models.small:small_cnn",
    "cifar-vgg": "normapps.models.cifar:cifar_vgg",
    "cifar-resnet": "normapps.models.cifar:cifar_resnet",
    "cifar-densenet": "normapps.models.cifar:cifar_densenet",
    "sngan-generator": "normapps.models.sngan:sngan_generator",
    "sngan-discriminator": "normapps.models.sngan:sngan_discriminator",
    "adalin-generator": "normapps.models.translator:adalin_generator",
    "patch-discriminator": "normapps.models.translator:patch_discriminator",
    "spade-generator": "normapps.models.spade:spade_generator",
    "timm": "normapps.models.builders:timm_model",
    "torchvision": "normapps.models.builders:torchvision_model",
    "factory": "normapps.models.builders:factory_model",
    "converted": "normapps.models.builders:converted_model",
    "slimmed": "normapps.models.builders:slimmed_model",
}
"""Name in `model.json` → `module:callable` that makes the network from its `arguments`."""

_RUN_ONLY = {
    ONNX_FORMAT: ("an ONNX model, which onnxruntime runs and not torch", "OnnxModel"),
    PROGRAM_FORMAT: ("an int8 program, which runs and cannot be changed", "ProgramModel"),
}
"""Formats of folders with no network in them that could be built again: what each is, in words, and
what opens it."""

_REFUSALS = (
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)


@dataclass(frozen=True)
class Manifest:
    """What `model.json` says.

    `sha256` maps file names of the folder to 64 hexadecimal digits; `history` lists what was
    done to the model, oldest first.
    """

    builder: str
    arguments: Mapping[str, Any]
    sha256: Mapping[str, str]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Any] = ()


def save_model(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    builder: str,
    arguments: Mapping[str, Any],
    preprocessing: Mapping[str, Any] | None = None,
    history: Sequence[Any] = (),
    overwrite: bool = False,
    complete: Callable[[Path], object] | None = None,
) -> Path:
    """Write a model folder and return its path; either all of it appears or nothing changes.

    Args:
        folder: made with its parents. With `overwrite`, an older model folder there is replaced;
            files that are not the model's (a card, styles) stay.
        builder: a name in `BUILDERS`; the builder called with `arguments` (JSON values) gives a
            network of the same parameters and buffers.
        history: JSON values, oldest first.
        complete: called with the folder, still under another name, to check it and to add or
            remove files; what it raises leaves nothing behind.

    Raises:
        InputError: the folder exists and may not be overwritten, is not a model folder, cannot
            be written, or the builder is unknown.
    """
    target = Path(folder)
    _resolve(builder)
    check_target(target, overwrite)
    with replaced_folder(target) as temporary:
        write_weights(temporary / WEIGHTS, model)
        hashes = {WEIGHTS: sha256(temporary / WEIGHTS)}
        manifest = Manifest(builder, arguments, hashes, preprocessing or {}, list(history))
        values = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(manifest)
        write_text(temporary / MANIFEST, json.dumps(values, indent=2) + "\n")
        if complete is not None:
            complete(temporary)
    return target


def load_model(folder: str | os.PathLike[str]) -> nn.Module:
    """Open a model folder, whatever made it: the network on the CPU, in eval mode.

    The hash of the weights is checked first; torch's random state is left as it was.

    Raises:
        InputError: naming the file and the remedy, where something is missing, damaged, of a
            newer version, or does not fit its builder.
    """
    manifest = read_manifest(folder)
    weights = Path(folder) / WEIGHTS
    check_hashes(folder, manifest)
    model = _build(manifest, Path(folder) / MANIFEST)
    state = read_safetensors(weights)
    _check_fit(weights, manifest.builder, model.state_dict(), state)
    model.load_state_dict(state)
    return model.eval()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read `model.json` of a model folder; the weights are not looked at.

    Raises:
        InputError: the folder or file is missing, is no manifest, or is of a newer version.
    """
    path = Path(folder) / MANIFEST
    values = read_json(path)
    if isinstance(values, dict) and values.get("format") in _RUN_ONLY:
        kind, opened_by = _RUN_ONLY[values["format"]]
        raise InputError(
            f"{path.parent}: is {kind}: normapps.{opened_by}({os.fspath(folder)!r}).run(images)"
        )
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f'{path}: is no model manifest ("format" is not "{FORMAT}")')
    version = values.get("version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"{path}: version {version!r} is not a whole number from 1")
    if version > VERSION:
        raise InputError(f"{path}: version {version} is newer than {VERSION}; upgrade normapps")
    return _parse(path, values)


def check_hashes(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Compare every file that the manifest lists with its SHA-256.

    Raises:
        InputError: a file is missing or differs.
    """
    if WEIGHTS not in manifest.sha256:
        raise InputError(f"{Path(folder) / MANIFEST}: lists no sha256 of {WEIGHTS}")
    for name, expected in manifest.sha256.items():
        verify(Path(folder) / name, expected)


def verify(path: Path, expected: str) -> None:
    """Compare a file with its SHA-256.

    Raises:
        InputError: it is missing, cannot be read, or differs.
    """
    try:
        actual = sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    if actual != expected.lower():
        raise InputError(
            f"{path}: damaged or changed, sha256 is {actual[:12]}… and should be "
            f"{expected[:12]}…; copy it again"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        InputError: it is missing, truncated, or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: is no safetensors file ({error}); copy it again") from error


def build(builder: str, arguments: Mapping[str, Any], *, seed: int | None = None) -> nn.Module:
    """Make a network with fresh weights; torch's random state is left as it was.

    Args:
        builder: a name in `BUILDERS`.
        arguments: what it is called with.
        seed: of the weights; None draws them from torch's present state.

    Raises:
        InputError: an unknown builder, or arguments that it refuses.
    """
    import torch

    make = _resolve(builder)
    try:
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # the devices' own stay untouched
            return make(**arguments)
    except InputError:
        raise
    except _REFUSALS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"builder '{builder}' refuses its arguments ({reason})") from error


def faults(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Say of every tensor of a state dict that is missing, not wanted or of another shape.

    In the order of `wanted`, then of `found`; a phrase each.
    """
    said = []
    for key, value in wanted.items():
        if key not in found:
            said.append(f"{key} is missing")
        elif found[key].shape != value.shape:
            said.append(f"{key} is {tuple(found[key].shape)}, not {tuple(value.shape)}")
    return said + [f"{key} is not wanted" for key in found if key not in wanted]


def first_of(said: Sequence[str]) -> str:
    """The first of several faults, and how many more there are."""
    return said[0] + (f" and {len(said) - 1} more" if len(said) > 1 else "")


def read_json(path: Path) -> Any:
    """Read a folder's `MANIFEST`.

    Raises:
        InputError: the folder or the file is missing, or is no JSON.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder")
    if not path.is_file():
        raise InputError(f"{path.parent}: is no model folder, it has no {MANIFEST}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not readable JSON ({error}); copy it again") from error


def _parse(path: Path, values: dict[str, Any]) -> Manifest:
    kinds = {"builder": str, "arguments": dict, "sha256": dict}
    optional = {"preprocessing": dict, "history": list}
    chosen = {name: values[name] for name in (*kinds, *optional) if name in values}
    for name, kind in (kinds | optional).items():
        if not isinstance(chosen.get(name, None if name in kinds else kind()), kind):
            raise InputError(f'{path}: "{name}" is missing or is no {kind.__name__}')
    if not all(isinstance(digest, str) for digest in chosen["sha256"].values()):
        raise InputError(f'{path}: "sha256" holds something that is no str')
    return Manifest(**chosen)


def _resolve(builder: str) -> Callable[..., nn.Module]:
    if builder not in BUILDERS:
        raise unknown("builder", builder, BUILDERS)
    module, name = BUILDERS[builder].split(":")
    return cast("Callable[..., nn.Module]", getattr(import_module(module), name))


def _build(manifest: Manifest, path: Path) -> nn.Module:
    try:
        return build(manifest.builder, manifest.arguments)
    except InputError as error:
        upgrade = ", or upgrade normapps" if manifest.builder not in BUILDERS else ""
        raise InputError(f"{path}: {error}{upgrade}") from error


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state dict as the `WEIGHTS` of a folder: one state, always the same bytes."""
    from safetensors.torch import save_file

    # cloned, because safetensors refuses tensors that share their memory
    state = {
        key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()
    }
    with atomic_path(path) as temporary:  # for its permissions: safetensors lets only us read
        save_file(state, temporary, metadata={"format": "pt"})


def _check_fit(
    path: Path, builder: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    said = faults(wanted, found)
    if said:
        raise InputError(
            f"{path}: does not fit builder '{builder}': {first_of(said)}; "
            f"is {MANIFEST} of another model?"
        )


def check_target(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Find out, before long work, whether `save_model` would take a folder.

    Raises:
        InputError: as `save_model` would.
    """
    target = Path(folder)
    if target.is_file():
        raise InputError(f"{target}: is a file, not a folder to write a model to")
    check_parent(target)
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{target}: exists already; --overwrite replaces it")
    if not (target / MANIFEST).is_file():
        raise InputError(f"{target}: is no model folder, and so is not replaced; name another")


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield a copy of a folder (or an empty one) that takes its place in the end.

    What is raised inside the block leaves the folder as it was.

    Raises:
        InputError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        import tempfile  # here: reading a model needs none of it

        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}."))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        if target.exists():
            shutil.copytree(target, temporary, dirs_exist_ok=True)
        yield temporary
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    if not target.exists():
        temporary.rename(target)
        return
    old = temporary.with_name(temporary.name + ".old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:  # an interrupt too must not lose the model
        old.rename(target)
        raise
    shutil.rmtree(old)
