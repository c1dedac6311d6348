"""Our scores beside torchmetrics' and torch-fidelity's on the same features, and their Inception.

The two are not installed with this package: `pip install torchmetrics torch-fidelity` in an
environment of its own. What is missing is named and left out. Downloads nothing: the Inception
networks are compared on random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import conditions, table, write_section
from torch import Tensor, nn

from normapps.gan.evaluation.frechet import feature_moments, frechet_distance
from normapps.gan.evaluation.inception import open_inception
from normapps.gan.evaluation.inception_score import classifier_score
from normapps.gan.evaluation.kernel import kernel_distance
from normapps.gan.evaluation.manifold import manifold_scores
from normapps.models.inception import FidInception

PEERS = ("torchmetrics", "torch_fidelity")
HEAD = ("score", "features", "ours", "peer", "its value", "relative difference")
K = 5


class _AsTheyAre(nn.Module):
    """Features in the place of pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def main() -> None:
    options = _arguments()
    warnings.simplefilter("ignore", UserWarning)  # torchmetrics' about its own memory
    found = [each for each in PEERS if find_spec(each)]
    for each in PEERS:
        if each not in found:
            print(f"{each} is not installed: its rows are left out", file=sys.stderr)
    rows = []
    for count, width in ((options.count, options.width), (options.width // 2, options.width)):
        pair = _features(count, width, 0), _features(count, width, 1)
        ours = _ours(*pair)
        for peer in found:
            scores = _THEIRS[peer](*pair)
            rows += [_row(n, pair[0], ours[n], peer, v) for n, v in scores.items()]
    rows += _inception_rows(options.pictures) if "torch_fidelity" in found else []
    if not rows:
        raise SystemExit("nothing to compare with")
    title = (
        "## Scores of GANs beside their peers\n\nThe same features into both; the Inception "
        "networks with the same random weights and pictures."
    )
    peers = ("normapps", "torch", "torchmetrics", "torch-fidelity")
    body = "\n\n".join([title, table(HEAD, rows), conditions(peers)])
    print(body)
    if not options.dry_run:
        write_section("gan-scores", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1500, help="pictures of each set")
    parser.add_argument(
        "--width", type=int, default=512, help="features; half as many pictures too"
    )
    parser.add_argument("--pictures", type=int, default=4, help="that both Inception networks see")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _features(count: int, width: int, seed: int) -> Tensor:
    """Non-negative features of unlike scales, correlated as a network's are."""
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9)) / width**0.5
    scales = torch.logspace(-1, 0.5, width)
    x = torch.randn(count, width, generator=draws) @ mixing * scales + 0.3 + 0.1 * seed
    return x.clamp_min(0)


def _ours(real: Tensor, fake: Tensor) -> dict[str, float]:
    near = manifold_scores(real, fake, K)
    return {
        "Fréchet distance": frechet_distance(feature_moments([real]), feature_moments([fake])),
        "kernel distance": kernel_distance(real, fake, subsets=1, subset_size=len(real))[0],
        "classifier score": classifier_score(fake, splits=1)[0],
        "precision": near.precision,
        "recall": near.recall,
    }


def _torchmetrics(real: Tensor, fake: Tensor) -> dict[str, float]:
    from torchmetrics.image import fid, inception, kid

    module = _AsTheyAre(real.shape[1])
    frechet: Any = fid.FrechetInceptionDistance(module).set_dtype(torch.float64)
    kernel: Any = kid.KernelInceptionDistance(module, subsets=1, subset_size=len(real))
    for metric in (frechet, kernel):
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
    score: Any = inception.InceptionScore(module, splits=1)
    score.update(fake.double())
    return {
        "Fréchet distance": float(frechet.compute()),
        "kernel distance": float(kernel.compute()[0]),
        "classifier score": float(score.compute()[0]),
    }


def _torch_fidelity(real: Tensor, fake: Tensor) -> dict[str, float]:
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    statistics = (metric_fid.fid_features_to_statistics(x.double()) for x in (real, fake))
    options = {"kid_subsets": 1, "kid_subset_size": len(real), "verbose": False}
    near = metric_prc.prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=K, prc_batch_size=10_000,
        save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    frechet = metric_fid.fid_statistics_to_metric(*statistics, False)
    kernel = metric_kid.kid_features_to_metric(real.double(), fake.double(), **options)
    score = metric_isc.isc_features_to_metric(fake, splits=1)
    return {
        "Fréchet distance": float(next(iter(frechet.values()))),
        "kernel distance": float(kernel["kernel_inception_distance_mean"]),
        "classifier score": score["inception_score_mean"],
        "precision": near["precision"],
        "recall": near["recall"],
    }


_THEIRS: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "torchmetrics": _torchmetrics,
    "torch_fidelity": _torch_fidelity,
}


def _inception_rows(count: int) -> list[tuple[str, ...]]:
    """Both networks on random weights: 32 px pictures through both resizers, to the logits."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.save(_randomized(FidInception()).state_dict(), path)
        theirs = FeatureExtractorInceptionV3(
            "random", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )
        ours = open_inception(path, other_weights=True)
    draws = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws)
    rows = []
    for name, our, their in zip(
        ("Inception features", "Inception logits"), ours.features(x), theirs(x), strict=True
    ):
        worst = float((our - their).abs().max() / their.abs().max()) if our is not None else np.nan
        means = (f"{float(each.abs().mean()):.6g}" for each in (our, their))
        shape = "×".join(map(str, their.shape))
        our_mean, their_mean = means
        rows.append((name, shape, our_mean, "torch_fidelity", their_mean, f"{worst:.1e} at worst"))
    return rows


def _randomized(network: FidInception) -> FidInception:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_var", "bn.weight")):
                value.uniform_(0.7, 1.4, generator=draws)
            elif value.ndim == 4:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=draws)
            elif value.is_floating_point():
                value.normal_(0, 0.1, generator=draws)
    return network.eval()


def _row(name: str, real: Tensor, ours: float, peer: str, theirs: float) -> tuple[str, ...]:
    shape = "×".join(map(str, real.shape))
    off = abs(ours - theirs) / max(abs(theirs), 1e-12)
    return name, shape, f"{ours:.8g}", peer, f"{theirs:.8g}", f"{off:.1e}"


if __name__ == "__main__":
    main()
