"""All analyses of a network on photographs: the report, odd networks and odd pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from normapps.analysis.analyze import analyze
from normapps.analysis.analyze_options import ANALYSES, AnalyzeOptions
from normapps.analysis.analyze_report import facts_of, page_of
from normapps.analysis.sample import PSEUDO, Sample
from normapps.errors import InputError
from normapps.models.load import open_model
from normapps.models.preprocessing import Preprocessing

MODEL = "test_resnet"
ODD = '''
import torch
from torch import nn

class Boxes(nn.Module):
    """Returns a dict without logits."""
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return {"boxes": self.norm(x).mean((2, 3))}

class Views(nn.Sequential):
    """Takes for granted that activations lie channel by channel."""
    def forward(self, x):
        x = self[0](x)
        return self[1](x.view(len(x), -1))

def views():
    return Views(nn.Conv2d(3, 4, 8, 8), nn.Linear(4 * 8 * 8, 3))

def plain():
    """No norm layer."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))
'''


@pytest.fixture
def folder(photo_files: dict[str, Path], tmp_path: Path) -> Path:
    """Six photographs in two class folders."""
    for number, file in enumerate(photo_files.values()):
        target = tmp_path / "pictures" / ("cat", "dog")[number % 2] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path / "pictures"


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_networks.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)


def _options(**values: object) -> AnalyzeOptions:
    chosen = {"device": "cpu", "size": 64, "sizes": "2,4", "draws": 2, "batch_size": 4} | values
    return AnalyzeOptions(**chosen)  # type: ignore[arg-type]


def _quiet(_: object) -> None: ...


def _gap_of(folder: Path, what: str) -> tuple[list[float], set[str]]:
    """The gap of all pictures by layer, and what was done for it."""
    stages: set[str] = set()
    report = analyze(
        *(MODEL, str(folder), _options(what=what)),
        say=_quiet,
        progress=lambda name, _: stages.add(name),
    )
    assert report.results.gap is not None
    return [row.data for row in report.results.gap], stages


def test_everything_of_a_residual_network(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "report"
    options = _options(num_classes=2)
    report = analyze(MODEL, str(folder), options, out, say=said.append)
    assert report.pictures == 6
    assert report.skipped == {}
    assert set(report.seconds) == set(ANALYSES)
    assert said[-1] == f"labels of {folder}"
    facts = json.loads((out / "report.json").read_text())
    layers = [row["layer"] for row in facts["conditioning"]]
    assert layers == [row["layer"] for row in facts["propagation"]]
    assert facts["invariance"][-1]["invariant"] == "no"
    assert {row["batch_size"] for row in facts["stochasticity"]} == {2}  # 4 is over half of 6
    assert "values" not in facts["scales"]
    # residual branches end in scales that timm begins with 0
    assert "layer1.0.bn2" in facts["scales"]["untouched"]
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == page.count("<figcaption") == 13
    with pytest.raises(InputError, match="has a report already; --overwrite"):
        analyze(MODEL, str(folder), options, out, say=_quiet)


def test_twice_is_the_same(folder: Path) -> None:
    options = _options(what="conditioning,scale-invariance,stochasticity,predictiveness")
    texts = []
    for _ in range(2):
        facts = facts_of(analyze(MODEL, str(folder), options, say=_quiet))
        texts.append(json.dumps(facts | {"seconds": 0}))
    assert texts[0] == texts[1]


def test_the_gap_of_a_shared_pass_is_that_of_its_own(folder: Path) -> None:
    alone, stages = _gap_of(folder, "gap")
    assert "gap" in stages
    shared, stages = _gap_of(folder, "conditioning,gap")
    assert "gap" not in stages
    assert shared == pytest.approx(alone, rel=1e-4)


def test_labels_that_are_no_classes_of_the_model(folder: Path) -> None:
    report = analyze(MODEL, str(folder), _options(what="propagation"), say=_quiet)
    assert report.labels.startswith(PSEUDO)
    assert "data has 2 classes, the model 1000 outputs" in report.labels


@pytest.mark.usefixtures("odd")
def test_a_network_without_norm_layers(folder: Path) -> None:
    report = analyze("odd_networks:plain", str(folder), _options(), say=_quiet)
    assert set(report.skipped) == {"stochasticity", "gap", "scales"}
    assert report.results.conditioning is not None
    assert report.results.invariance is not None
    assert {row.invariant for row in report.results.invariance} == {"no"}
    last = page_of(report).sections[-1]
    assert last.title == "What says nothing about this network"
    assert any("gap: no norm layer takes statistics" in str(line) for line in last.parts)
    with pytest.raises(InputError, match="no norm layer has a scale"):
        analyze("odd_networks:plain", str(folder), _options(what="scales,gap"), say=_quiet)


@pytest.mark.usefixtures("odd")
def test_a_network_that_returns_a_dict(folder: Path) -> None:
    report = analyze("odd_networks:Boxes", str(folder), _options(), say=_quiet)
    assert report.results.gap is not None
    assert report.results.outputs is None
    assert report.results.scales is not None
    assert "no logits are in it" in report.skipped["conditioning"]


@pytest.mark.usefixtures("odd")
def test_a_network_that_wants_its_channels_first(folder: Path) -> None:
    report = analyze("odd_networks:views", str(folder), _options(what="propagation"), say=_quiet)
    assert report.results.propagation is not None
    assert [row.kind for row in report.results.propagation] == ["conv 8×8", "linear"]


def test_weights_that_are_not_numbers(folder: Path, tmp_path: Path) -> None:
    state = open_model(MODEL).model.state_dict()
    state["fc.bias"][3] = torch.nan
    save_file(state, tmp_path / "weights.safetensors")
    options = _options(checkpoint=tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"fc\.bias is not finite in 1 of 1000 values"):
        analyze(MODEL, str(folder), options, say=_quiet)


def test_one_picture(photo_files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="one picture has no statistics of a batch"):
        analyze(MODEL, str(photo_files["coffee"]), _options(), say=_quiet)


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(9, 4, [3, 3, 3]), (5, 4, [3, 2]), (3, 2, [3]), (2, 64, [2])]
)
def test_no_batch_is_a_single_picture(count: int, size: int, sizes: list[int]) -> None:
    preprocessing = Preprocessing()
    sample = Sample(
        torch.zeros(count, 3, 2, 2, dtype=torch.uint8), preprocessing, torch.device("cpu")
    )
    assert sample.sizes(size) == sizes
    assert [len(x) for x, _ in sample.batches(size)] == sizes
