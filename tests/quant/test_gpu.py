"""The steps of quantization on a GPU: the same network as on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from rounding_networks import Net, pictures
from torch import nn

from normapps.graph.fold import fold_batchnorm_
from normapps.quant.absorb import absorb_
from normapps.quant.correction import correct_bias_
from normapps.quant.distill import distill
from normapps.quant.equalize import equalize_
from normapps.quant.fake import fake_quantize_
from normapps.quant.finetune import finetune_
from normapps.quant.finetune_options import QatOptions
from normapps.quant.reestimate import reestimate_

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """TF32 would hide what is compared."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.mark.parametrize("with_pictures", [False, True])
def test_every_step_gives_the_network_that_it_gives_on_the_cpu(with_pictures: bool) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    images = pictures(32, 1)
    found = [_prepared(copy.deepcopy(model), images, at, with_pictures) for at in ("cpu", "cuda")]
    gap = found[1] - found[0]  # a weight near a tie may be rounded the other way
    assert gap.norm() < 0.02 * found[0].norm()


def _prepared(
    model: nn.Module, images: torch.Tensor, device: str, with_pictures: bool
) -> torch.Tensor:
    model, images = model.to(device), images.to(device)
    statistics = fold_batchnorm_(model, images[:2]).statistics
    equalize_(model, images[:2], statistics)
    absorb_(model, images[:2], statistics)
    if with_pictures:
        reestimate_(model, statistics, [images], per_channel=True)
    batches = [images] if with_pictures else None
    correct_bias_(model, images[:2], statistics, batches=batches)
    fake_quantize_(model)
    with torch.no_grad():
        answers: torch.Tensor = model(images).cpu()
    return answers


def test_finetuning_and_distilling_run_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = Net().eval().cuda()
    distilled = distill(model, 4, (12, 12), steps=20, batch_size=4)
    assert distilled.images.device.type == "cpu"
    assert distilled.curve()[-1] < distilled.curve()[0]
    images = pictures(32, 1).cuda()
    fold_batchnorm_(model, images[:2])
    done = finetune_(model, [images], QatOptions(steps=5))
    assert done.is_finished
    assert all(each.is_cuda for each in model.parameters())
