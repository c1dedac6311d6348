"""The converter on every family of timm and torchvision that has a 2d batch norm.

Each family's smallest model, with random weights and statistics that are not trivial: to our batch
norms and back, to instance norms and one training step, and fused where it can be. Prints the
tables of RESULTS.md; a family that fails ends the run with its name.

    python benchmarks/census.py            # prints and writes RESULTS.md
    python benchmarks/census.py --dry-run  # prints
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from results import conditions, write_section
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.errors import NormappsError
from normapps.norm.convert.converter import convert_norm_
from normapps.norm.convert.fusing import FUSERS
from normapps.norm.layers.batch import BatchNorm

SMALLEST = {
    "byoanet": "lambda_resnet26t",
    "byobnet": "test_byobnet",
    "convmixer": "convmixer_768_32",
    "cpubone": "cpubone_nano",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "maxxvit": "test_coatnet",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilevit": "mobilevit_xxs",
    "nasnet": "nasnetalarge",
    "nextvit": "nextvit_small",
    "pnasnet": "pnasnet5large",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "tiny_vit": "tiny_vit_5m_224",
    "tresnet": "tresnet_m",
    "vgg": "vgg11_bn",
    "visformer": "visformer_tiny",
    "vision_transformer_hybrid": "vit_small_resnet50d_s16_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""timm's family (its module) → its smallest model with a 2d batch norm."""

MORE = {
    "byobnet": ("repvgg_a0", "mobileone_s0"),
    "ghostnet": ("ghostnetv3_050",),
    "inception_v3": ("tf_inception_v3",),
}
"""Further models of a family: other blocks than the smallest one's."""

TORCHVISION = {
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "maxvit": "maxvit_t",
    "mnasnet": "mnasnet0_5",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3_small",
    "regnet": "regnet_x_400mf",
    "resnet": "resnet18",
    "shufflenetv2": "shufflenet_v2_x0_5",
    "vgg": "vgg11_bn",
}
"""torchvision's family of classification → its smallest model with a 2d batch norm."""

SIZES = {"inception_resnet_v2": 128, "inception_v3": 128, "inception_v4": 128, "googlenet": 96}
SIZES |= {"tf_inception_v3": 128, "maxvit_t": 224}
SIZES_OF_TORCHVISION = SIZES | {"inception_v3": 299}
"""Models that want larger pictures than 64² though they would take other sizes."""


class Row(NamedTuple):
    """What came out of one model."""

    family: str
    model: str
    layers: int
    ours: int
    fused_activation: int
    between: float
    difference: float
    keys_equal: bool
    reparametrizes: str
    instance: int
    step: str

    def markdown(self) -> str:
        """Return the line of the table."""
        ours = f"{self.layers}" if self.ours == self.layers else f"{self.ours} of {self.layers}"
        cells = (self.family, f"`{self.model}`", ours, self.fused_activation, f"{self.between:g}")
        keys = "equal" if self.keys_equal else "**differ**"
        cells += (f"{self.difference:g}", keys, self.reparametrizes, self.instance, self.step)
        return f"| {' | '.join(map(str, cells))} |"


ABOUT = """## The converter on every family

Random weights, statistics and scales that are not trivial, two pictures. *logits with ours*: the
largest difference that `convert_norm_(model, "batch")` makes at inference; *and back*: after
`convert_norm_(model, "torch")`. *keys*: those of the state dict, with ours and after going back.
*fuse()*: reparametrizing with our layers gives the same logits as with the original's, and raises a
clear error with instance norms. *instance norms*: layers that
`convert_norm_(model, "instance", example=pictures)` replaced (the others have nothing to measure,
as behind a global pool), and then one step of training."""

HEAD = (
    "| family | model | batch norms | with activation | logits with ours | and back | keys "
    "| fuse() | instance norms | training step |\n|---|---|--:|--:|--:|--:|---|---|--:|---|"
)


def timm_model(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights and an input (2, 3, S, S)."""
    import timm

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name)
    config = model.default_cfg
    size = config["input_size"][-1] if config.get("fixed_input_size") else SIZES.get(name, 64)
    return _shaken(model, size)


def torchvision_model(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights and an input (2, 3, S, S)."""
    import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return _shaken(
        torchvision.models.get_model(name, **options), SIZES_OF_TORCHVISION.get(name, 64)
    )


@torch.no_grad()
def _shaken(model: nn.Module, size: int) -> tuple[nn.Module, Tensor]:
    """Give every batch norm a scale, shift and statistics that are neither trivial nor absurd."""
    x = torch.randn(2, 3, size, size)
    layers = batch_norms(model)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
        if layer.weight is not None:
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.2)
    _logits(model.train()(x))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.running_mean += 0.2 * layer.running_var.sqrt() * torch.randn(layer.num_features)
        layer.running_var.mul_(torch.empty(layer.num_features).uniform_(0.7, 1.4)).add_(0.1)
    return model.eval(), x


def batch_norms(model: nn.Module) -> list[Any]:
    """Return the batch norms of a model, anybody's."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def examined(family: str, name: str, make: Callable[[str], tuple[nn.Module, Tensor]]) -> Row:
    """Make a model and examine it; says which one it was that failed.

    Raises:
        AssertionError: it fails.
    """
    try:
        return examine(family, name, *make(name))
    except Exception as error:
        raise AssertionError(f"{family}, {name}: {error!r}") from error


def examine(family: str, name: str, model: nn.Module, x: Tensor) -> Row:
    """Take a model through the whole census.

    Raises:
        AssertionError: it fails, with what was wrong.
    """
    layers = batch_norms(model)
    acts = sum(not isinstance(getattr(m, "act", nn.Identity()), nn.Identity) for m in layers)
    fused = _fused(model)
    with torch.no_grad():
        before, keys = _logits(model(x)), list(model.state_dict())
        check(bool(before.isfinite().all()), "logits are not finite")
        check(float((before[0] - before[1]).abs().max()) > 0, "both samples have the same logits")
        to_ours = convert_norm_(model, "batch")
        ours = sum(isinstance(module, BatchNorm) for module in model.modules())
        between = _difference(before, _logits(model(x)))
        keys_equal = list(model.state_dict()) == keys
        reparametrizes = _compare_fused(fused, model, x)
        convert_norm_(model, "torch")
        difference = _difference(before, _logits(model(x)))
    check([type(m) for m in batch_norms(model)] == [type(m) for m in layers], "other classes")
    keys_equal = keys_equal and list(model.state_dict()) == keys
    check(to_ours.converted == ours == len(layers), f"{ours} of {len(layers)} layers are ours")
    to_instance = convert_norm_(model, "instance", example=x)
    step = _train(model, x)
    if fused is not None:
        _check_refusal(model)
    return Row(
        *(family, name, len(layers), ours, acts, between, difference, keys_equal),
        *(reparametrizes, to_instance.converted, step),
    )


def check(fits: bool, what: str) -> None:
    """Raise where something is not so, also under `python -O`."""
    if not fits:
        raise AssertionError(what)


def _train(model: nn.Module, x: Tensor) -> str:
    """One step of training; returns `ok`."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    loss = sum(out.float().square().mean() for out in _tensors(model.train()(x)))
    loss.backward()
    grads = {each: each.grad.abs().max() for each in parameters if each.grad is not None}
    check(len(grads) > 0, "nothing got a gradient")
    check(all(bool(grad.isfinite()) for grad in grads.values()), "a gradient is not finite")
    trained = max(grads, key=lambda each: float(grads[each]))
    before = trained.detach().clone()
    optimizer.step()
    check(not torch.equal(before, trained), "the step changed nothing")
    with torch.no_grad():
        check(bool(_logits(model.eval()(x)).isfinite().all()), "logits after the step")
    return "ok"


def _fused(model: nn.Module) -> nn.Module | None:
    """A fused copy, or None if the model has nothing to fuse."""
    if not any(_has(module, name) for module in model.modules() for name in FUSERS):
        return None
    fused = _reparametrized(model)
    return fused if len(batch_norms(fused)) < len(batch_norms(model)) else None


def _reparametrized(model: nn.Module) -> nn.Module:
    from timm.models import reparameterize_model

    with torch.no_grad():
        fused: nn.Module = reparameterize_model(copy.deepcopy(model).eval())
    return fused


def _compare_fused(fused: nn.Module | None, model: nn.Module, x: Tensor) -> str:
    """Fuse a model with our batch norms and compare it with the fused original."""
    if fused is None:
        return ""
    ours = _reparametrized(model)
    check(len(batch_norms(ours)) == len(batch_norms(fused)), "not everything was fused")
    difference = _difference(_logits(fused(x)), _logits(ours(x)))
    check(difference == 0, f"fused models differ by {difference}")
    return "same"


def _check_refusal(model: nn.Module) -> None:
    try:
        _reparametrized(model)
    except NormappsError:
        return
    raise AssertionError("instance norms were fused")


def _has(module: nn.Module, name: str) -> bool:
    return callable(getattr(type(module), name, None))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _logits(out: Any) -> Tensor:
    return next(_tensors(out))


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
        return
    for each in out.values() if isinstance(out, dict) else out:
        if each is not None:
            yield from _tensors(each)


def timm_rows(families: Iterable[str] = SMALLEST) -> Iterator[Row]:
    """Examine timm's families, one after the other."""
    for family in families:
        for name in (SMALLEST[family], *MORE.get(family, ())):
            yield examined(family, name, timm_model)


def torchvision_rows() -> Iterator[Row]:
    """Examine torchvision's families, one after the other."""
    for family, name in TORCHVISION.items():
        yield examined(family, name, torchvision_model)


def print_table(title: str, rows: Iterable[Row]) -> str:
    """Print a table line by line as it comes, and return it."""
    lines = [f"### {title}", "", HEAD]
    print("\n".join(lines), flush=True)
    for row in rows:
        lines.append(row.markdown())
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--dry-run", action="store_true", help="print, but write nothing")
    options = parser.parse_args()
    theirs = print_table("timm", timm_rows())
    others = print_table("torchvision", torchvision_rows())
    body = f"{ABOUT}\n\n{theirs}\n\n{others}\n\n{conditions(['torch', 'timm', 'torchvision'])}"
    if not options.dry_run:
        write_section("census", body)


if __name__ == "__main__":
    main()
