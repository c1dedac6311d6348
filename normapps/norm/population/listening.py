"""Listening to a model's layers while it runs over a loader, and leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn

from ...errors import InputError
from .statistics import fitting, spread_name


class Source:
    """The batches of a loader, cut to a limit, on the model's device and in its dtype.

    Empty batches are left out. Each pass over it raises an InputError for a limit below 1 and for
    a batch without a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        limit: int | None,
        progress: Callable[[int], object] | None,
    ) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        floating = next(tensor for tensor in tensors if tensor.is_floating_point())
        self.device, self.dtype = floating.device, floating.dtype
        self.loader, self.limit, self.progress = loader, limit, progress
        self.samples = 0

    @property
    def cut(self) -> str:
        """Return what to say about the limit where it has left too few inputs."""
        return f" (limit {self.limit})" if self.limit == 1 else ""

    def __iter__(self) -> Iterator[Tensor]:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit}: must be at least 1")
        self.samples = 0
        for batch in self.loader:
            x = tensor_of(batch)
            if len(x) == 0:
                continue
            left = len(x) if self.limit is None else self.limit - self.samples
            x = x[:left].to(self.device)
            yield x.to(self.dtype) if x.is_floating_point() else x
            self.samples += len(x[:left])
            if self.progress is not None:
                self.progress(len(x[:left]))
            if self.samples == self.limit:
                return


class Borrowed:
    """Gives layers other running buffers inside a `with` block; their own are never written."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._own: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> Self:
        for layer in self._layers.values():
            for name in ("running_mean", spread_name(layer)):
                own = layer.get_buffer(name)
                self._own.append((layer, name, own))
                setattr(layer, name, own.detach().clone())
        return self

    def __exit__(self, *error: object) -> None:
        for layer, name, own in self._own:
            setattr(layer, name, own)

    def write(self, name: str, mean: Tensor, spread: Tensor) -> None:
        """Have a layer normalize with these, cast to the dtype of its own.

        Raises:
            InputError: a value is too large for that dtype.
        """
        layer = self._layers[name]
        for key, value in (("running_mean", mean), (spread_name(layer), spread)):
            buffer = layer.get_buffer(key)
            buffer.copy_(fitting(name, value, buffer.dtype))


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Inference mode for every module. By the flags: a model's own `train` may do other things."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def listening(layers: dict[str, nn.Module], hear: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `hear` with the name and the input (N, C, *S) of each call of the layers."""
    handles = []
    try:
        for name, layer in layers.items():
            hook = _hook(name, hear)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, hear: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(options.values()))
        tokens = getattr(layer, "layout", None) == "tokens"
        hear(name, x.movedim(-1, 1) if tokens else x)

    return hook


def tensor_of(batch: Any) -> Tensor:
    """Return the inputs of a batch, as a loader may give it.

    Raises:
        InputError: it holds no tensor.
    """
    found = batch
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in ("image", "pixel_values") if key in batch), None)
    elif isinstance(batch, tuple | list) and batch:
        found = batch[0]
    if not isinstance(found, Tensor) or found.dim() == 0:
        raise InputError(
            f"a batch of {type(batch).__name__} without inputs: give tensors (N, ...), tuples that"
            " begin with one, or mappings with 'image' or 'pixel_values'"
        )
    return found
