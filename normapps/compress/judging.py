"""The networks of all stages on the pictures that judge: answers, weight, time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.feed import Feed
from ..data.labels import class_numbers
from ..data.pictures import Pictures
from ..engine.device import place, resolve_device
from ..measure.latency import Latency
from ..measure.stages import Prediction, Stage, compare, predict
from ..models.folder import load_model, read_manifest
from ..models.load import OpenedModel
from ..models.onnx import to_onnx
from ..models.onnx_folder import NETWORK, read_onnx_manifest
from ..quant.judging import answers_of
from ..quant.latency import FLOAT
from ..quant.latency import INT8 as FILE
from ..quant.latency import measure_latency as time_files
from ..quant.pictures import Judging, Seen
from ..slim.latency import Footprint, footprint
from ..slim.latency import measure_latency as time_networks
from ..slim.tracing import trace
from .chain import INT8, PRUNED, SPARSE, Chain

GIVEN, BASELINE = "given", "baseline"
BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class Network:
    """A stage as the report shows it.

    Attributes:
        name: of the stage.
        footprint: what it weighs; of an int8 one the bytes are its file's.
        stage: its answers beside the base's; None where it cannot be compared.
        words: more about how it was made.
        report: its own report, relative to OUT; empty for a network that was given.
    """

    name: str
    footprint: Footprint
    stage: Stage | None = None
    words: str = ""
    report: str = ""


@dataclass(frozen=True)
class Judged:
    """What is known of all stages.

    Attributes:
        networks: the given one first, the result last.
        base: name of the network that the others are compared with.
    """

    networks: tuple[Network, ...]
    base: str


def judge_stages(chain: Chain, opened: OpenedModel, *, is_comparable: bool) -> Judged:
    """Let the network of every stage answer the pictures that judge.

    Args:
        chain: complete.
        opened: the given network.
        is_comparable: it has an output a class, and weights that mean something.

    Returns:
        The base is the network of `--baseline`, else the given one, else the first stage's.
    """
    seen = _seen(chain, opened)
    base, first = _base(chain, opened, is_comparable)
    device = resolve_device(chain.options.device)
    wanted = _answers(first, seen, device)
    networks = [Network(GIVEN, _weigh(opened.model, opened))]
    if base == GIVEN:
        networks[0] = replace(networks[0], stage=compare(GIVEN, wanted))
    elif base == BASELINE:
        if is_comparable:
            found = compare(GIVEN, _answers(opened.model, seen, device), wanted)
            networks[0] = replace(networks[0], stage=found)
        weight = _weigh(first, opened)
        networks.insert(0, Network(BASELINE, weight, compare(BASELINE, wanted)))
    for name in chain.names:
        networks.append(_network(chain, name, opened, seen, wanted, device, name == base))
    return Judged(tuple(networks), base)


def time_result(chain: Chain, opened: OpenedModel) -> tuple[Latency, ...]:
    """Time the given network against the result, in turns on the CPU, at batch 1 and 8.

    Returns:
        One a batch size: of the given network by torch and by onnxruntime and of the int8 file,
        or, where that is not made, of the two networks by torch.
    """
    preprocessing = opened.preprocessing
    shape = (preprocessing.channels, *preprocessing.size)
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    if INT8 not in chain.names:
        models = {"base": opened.model, "slimmed": load_model(chain.model(chain.names[-1]))}
        return time_networks(models, noise, batch_sizes=BATCH_SIZES)
    with tempfile.TemporaryDirectory(prefix="normapps-") as folder:
        given = Path(folder) / "given.onnx"
        to_onnx(opened.model, noise, given)
        files = {FLOAT: given, FILE: chain.folder(INT8) / NETWORK}
        return time_files(opened.model, files, shape, batch_sizes=BATCH_SIZES)


def _seen(chain: Chain, opened: OpenedModel) -> Seen:
    pictures = Pictures(chain.test, opened.preprocessing)
    cpu = torch.device("cpu")
    feed = Feed(pictures, chain.options.batch_size, cpu, seed=chain.options.seed)
    numbers = class_numbers(pictures, chain.split.classes) if chain.split.is_labelled else None
    return Seen(feed, 0, True, chain.split.without_accuracy, Judging(feed, numbers))


def _base(chain: Chain, opened: OpenedModel, is_comparable: bool) -> tuple[str, nn.Module]:
    if chain.options.baseline:
        return BASELINE, load_model(chain.options.baseline)
    if is_comparable:
        return GIVEN, opened.model
    first = chain.names[0]
    return first, load_model(chain.model(first))


def _network(
    chain: Chain,
    name: str,
    opened: OpenedModel,
    seen: Seen,
    wanted: Prediction,
    device: torch.device,
    is_base: bool,
) -> Network:
    report = f"{name}/report.html"
    if name == INT8:
        file = chain.folder(INT8) / NETWORK
        output = read_onnx_manifest(chain.folder(INT8)).output
        found = answers_of(file, seen, wanted.labels, output)
        model = load_model(chain.model(chain.names[-2]))
        weight = replace(_weigh(model, opened), bytes=file.stat().st_size)
        return Network(INT8, weight, compare(INT8, found, wanted), "for ONNX Runtime", report)
    model = load_model(chain.model(name))
    stage = (
        compare(name, wanted) if is_base else compare(name, _answers(model, seen, device), wanted)
    )
    return Network(name, _weigh(model, opened), stage, _words(chain, name), report)


def _words(chain: Chain, name: str) -> str:
    last = dict(read_manifest(chain.model(name)).history[-1])
    if name == PRUNED:
        kept = str(last.get("stage") or "")
        return "" if kept == PRUNED else kept
    words = f"{last['steps']} steps"
    return f"{words}, λ {last['strength']:.2g} at the end" if name == SPARSE else words


def _weigh(model: nn.Module, opened: OpenedModel) -> Footprint:
    graph, _ = trace(model, opened.preprocessing, opened.name)
    return footprint(model, graph.macs())


def _answers(model: nn.Module, seen: Seen, device: torch.device) -> Prediction:
    place(model, device)
    try:
        return predict(model, _on(seen, device))
    finally:
        model.to("cpu")


def _on(seen: Seen, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    for images, labels in seen.judged():
        yield images.to(device), labels
