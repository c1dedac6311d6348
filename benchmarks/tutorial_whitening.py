"""Tutorial: what whitening costs in noise, and what it gives by the size of its groups."""

from __future__ import annotations

import torch
from tutorial_common import (
    Claim,
    Found,
    Part,
    Report,
    curves,
    digits,
    draws,
    error,
    final,
    geometric,
    mlp,
    powers,
    train,
    vectors,
)

from normapps.analysis.stochasticity import OUTPUT, stochasticity
from normapps.norm import create_norm

WIDTH = 16
BATCHES = (20, 32, 64, 128, 256, 512)
LAYERS = {"batch": "batch", "iternorm": "iternorm", "zca": "zca", "cholesky": "cholesky"}
LAYERS |= {"pca": "pca", "pca, white data": "pca"}
REFERENCE = 64


def _measure_stochasticity(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(2048, WIDTH, generator=generator)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    mixing = axes * torch.logspace(0, -1, WIDTH) @ axes.T  # condition number 100
    found = {}
    for name, norm in LAYERS.items():
        options = {} if norm == "batch" else {"group_size": None}
        layer = create_norm(norm, WIDTH, layout="1d", eps=1e-5, **options)
        data = white if "white" in name else white @ mixing
        for row in stochasticity(layer, data, BATCHES, draws=20, inputs=4, seed=seed):
            if row.layer == OUTPUT:
                found[f"{name}/{row.batch_size}"] = row.disturbance
    return found


def _report_stochasticity(found: Found) -> Report:
    from results import table

    plot = curves(
        found, list(LAYERS), BATCHES, ("batch size", "disturbance Δ"), log="xy", marks=True
    )
    rows = [[name, *(powers(found, f"{name}/{size}") for size in BATCHES)] for name in LAYERS]
    return Report(
        f"One layer of {WIDTH} channels, whitened all together with eps 1e-5, on Gaussian vectors "
        "whose covariance has the condition number 100, and on white ones. Δ is the mean distance "
        "of a vector's outputs, in random batches around it, from their mean "
        "(`normapps.analysis.stochasticity`); the output's length is about 4.",
        plot,
        "Disturbance of the output for one vector by batch size, a line a layer",
        _stochastic_claims(found),
        table(["Δ at batch size", *map(str, BATCHES)], rows),
    )


def _stochastic_claims(found: Found) -> list[Claim]:
    names = list(LAYERS)[:-1]
    at = {name: geometric(found, f"{name}/{REFERENCE}") for name in names}
    listed = ", ".join(f"{name} {value:.2f}" for name, value in at.items())
    means = list(at.values())
    falls = {name: _fall(found, name) for name in LAYERS}
    whitest = falls["pca, white data"]
    powers = [falls[name] for name in names[:-1]]
    return [
        Claim(
            f"With batches of {REFERENCE} the disturbance is, from the least to the largest, "
            f"{listed}: as Huang et al. 2020 saw, PCA is by far the noisiest, and "
            "IterNorm the least noisy whitening, because its five Newton steps leave the small "
            "eigenvalues, which are known worst, partly as they are.",
            means == sorted(means),
        ),
        Claim(
            f"From batches of {BATCHES[1]} to {BATCHES[-1]}, {BATCHES[-1] // BATCHES[1]} times as "
            f"many, it becomes {min(powers):.1f} to {max(powers):.1f} times less for all but PCA, "
            "about as the error of a mean does (4 times).",
            min(powers) > 3 and max(powers) < 5.5,
        ),
        Claim(
            f"PCA becomes {falls['pca']:.1f} times less, and on white data "
            f"{whitest:.2f} times: larger batches do not help where eigenvalues agree, because "
            "the axes, and so the places that values go to, are drawn anew in every batch.",
            falls["pca"] < min(powers) and abs(whitest - 1) < 0.1,
        ),
    ]


def _fall(found: Found, name: str) -> float:
    return geometric(found, f"{name}/{BATCHES[1]}") / geometric(found, f"{name}/{BATCHES[-1]}")


STOCHASTICITY = Part("The noise of the batch", _measure_stochasticity, _report_stochasticity)

SIZES = (1, 4, 16, 64)
SERIES = {
    f"{method}, batch {batch}": (method, batch)
    for method in ("zca", "iternorm")
    for batch in (128, 512)
}
RATE, STEPS = 0.3, 60


def _measure_groups(seed: int) -> dict[str, float]:
    found = {}
    training, test = (vectors(each) for each in digits())
    for name, (method, batch) in SERIES.items():
        for size in SIZES:
            torch.manual_seed(seed)
            model = mlp(method, 3, group_size=size, eps=1e-3)
            losses = train(model, draws(training, batch, STEPS, seed), model.parameters(), lr=RATE)
            found[f"{name}/{size}"] = final(losses)
            found[f"{name} error/{size}"] = error(model, test)
    return found


def _report_groups(found: Found) -> Report:
    from results import table

    plot = curves(
        found, list(SERIES), SIZES, ("channels in a group", "training loss"), log="xy", marks=True
    )
    rows = [
        [f"{name}: {word}", *(powers(found, f"{name}{kind}/{size}") for size in SIZES)]
        for kind, word in (("", "loss"), (" error", "test error, %"))
        for name in SERIES
    ]
    header = ["channels in a group", *map(str, SIZES)]
    return Report(
        f"Three hidden layers of 64 channels, {STEPS} steps of SGD with rate {RATE}; the norm "
        "whitens groups of channels, by the exact root of the covariance (`zca`, decorrelated "
        "batch normalization) or by five Newton steps (`iternorm`), eps 1e-3 for both. A group of "
        "one channel is batch normalization.",
        plot,
        "Training loss by group size, a line a method and batch size",
        _group_claims(found),
        table(header, rows),
    )


def _group_claims(found: Found) -> list[Claim]:
    loss, wrong = (
        {name: [geometric(found, f"{name}{kind}/{size}") for size in SIZES] for name in SERIES}
        for kind in ("", " error")
    )
    small, large = "zca, batch 128", "zca, batch 512"
    newton = "iternorm, batch 128"
    return [
        Claim(
            f"All {SIZES[-1]} channels whitened at once by 128 samples train worse than "
            f"standardized ones: a loss of {loss[small][-1]:.2f} against {loss[small][0]:.3f}, and "
            f"a test error of {wrong[small][-1]:.0f} % against {wrong[small][0]:.1f} %: the "
            "covariance is mostly noise, which is why Huang et al. 2018 whiten groups of 16.",
            loss[small][-1] > 2 * loss[small][0],
        ),
        Claim(
            f"Four times the samples take it to {loss[large][-1]:.2f}, and Newton's iteration, "
            "which leaves the small and unreliable eigenvalues alone, to "
            f"{loss[newton][-1]:.3f} (Huang et al. 2019).",
            max(loss[large][-1], loss[newton][-1]) < loss[small][-1],
        ),
        Claim(
            "The gain over batch normalization that both papers report of deep networks is not "
            f"seen here: groups of 16 end at {loss[small][2]:.3f} with `zca` and "
            f"{loss[newton][2]:.3f} with `iternorm` after as many steps, batch normalization at "
            f"{loss[small][0]:.3f}.",
            min(loss[small][2], loss[newton][2]) > 0.9 * loss[small][0],
        ),
    ]


GROUPS = Part("Whitening against standardization", _measure_groups, _report_groups)
