"""Running a model under a dispatch mode: what all tracers of aten operations have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..norm.precision import without_autocast


def refuse_wrapped(model: nn.Module, action: str) -> None:
    """Refuse a model whose operations cannot be traced.

    Args:
        model: any module.
        action: what to do with the model inside instead, in a word: "slim".

    Raises:
        InputError: it is compiled, scripted or wrapped for parallel training, or lazy layers of it
            have no weights yet.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"TorchScript cannot be changed; {action} the model it was made of")
    for name, module in model.named_modules():
        said = f"module '{name}'" if name else "the model"
        if hasattr(module, "_orig_mod"):
            raise InputError(f"{said} is made by torch.compile; {action} its `_orig_mod`")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(f"{said} is compiled in place; {action} a model that is not")
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise InputError(f"{said} is {type(module).__name__}; {action} its `module`")
        if any(nn.parameter.is_lazy(each) for each in module.parameters(recurse=False)):
            raise InputError(f"{said} has no weights yet; run the model once, then {action} it")


def run_under(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], *modes: AbstractContextManager[Any]
) -> Any:
    """Run a model in evaluation mode without gradients and autocast; it comes out as it went in.

    Args:
        model: any module.
        inputs: what `model(*inputs)` takes.
        modes: entered in this order, around the model alone.

    Raises:
        InputError: the model does not run on these inputs.
    """
    inputs = ordinary(inputs)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    given = leaves(arguments)
    with ExitStack() as stack:
        stack.enter_context(_generators_kept(given))
        stack.enter_context(torch.inference_mode(False))  # where operations are other ones
        stack.enter_context(evaluating(model))
        if given:
            stack.enter_context(without_autocast(given[0]))
        for mode in modes:
            stack.enter_context(mode)
        try:
            return model(*arguments)
        except Exception as error:  # somebody else's forward may raise anything
            raise not_run(model, inputs, error) from error


def ordinary(inputs: Any) -> Any:
    """Return inputs whose tensors made within `torch.inference_mode` are copies, made outside."""
    if isinstance(inputs, Tensor):
        with torch.inference_mode(False):
            return inputs.clone() if inputs.is_inference() else inputs
    if type(inputs) in (list, tuple):
        return type(inputs)(ordinary(each) for each in inputs)
    return inputs


def not_run(model: nn.Module, inputs: Tensor | tuple[Any, ...], error: Exception) -> InputError:
    """Return the error that says that a model does not run on inputs, and what it raised."""
    shapes = ", ".join(str(tuple(each.shape)) for each in leaves(inputs)) or "none"
    said = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"{type(model).__name__} does not run on an input of shape {shapes} ({said[0]});"
        " give inputs that it takes"
    )


@contextmanager
def watching(
    model: nn.Module,
    enter: Callable[[str, nn.Module], Callable[..., None]],
    leave: Callable[..., None],
) -> Iterator[None]:
    """Know which module runs, until the block ends.

    Args:
        model: whose modules to watch; scripted ones cannot be.
        enter: makes the hook that is called before the module of this name runs.
        leave: the hook that is called after any of them, whatever it raised.
    """
    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(enter(name, module)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def name_of(func: Any) -> str:
    """Return an operation's name without overload and trailing underscore: "add"."""
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def bound(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an operation's arguments by the names of its schema, defaults filled in."""
    schema = func._schema.arguments
    values = {each.name: each.default_value for each in schema if each.has_default_value()}
    values.update({each.name: value for each, value in zip(schema, args, strict=False)})
    return values | kwargs


def written(func: Any, values: dict[str, Any]) -> list[Any] | None:
    """Return the arguments that an operation writes to; None if it writes to none."""
    found = [
        values.get(each.name)
        for each in func._schema.arguments
        if each.alias_info is not None and each.alias_info.is_write
    ]
    return found or None


def flat(result: Any) -> list[Tensor]:
    """Return the tensors in an operation's result."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for each in result for tensor in flat(each)]
    return []


def leaves(outputs: Any, depth: int = 8) -> list[Tensor]:
    """Return every tensor in a result: of tuples, dicts, and the attributes of other objects."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if depth == 0:
        return []
    if isinstance(outputs, Mapping):
        items: Any = outputs.values()
    elif isinstance(outputs, list | tuple | set):
        items = outputs
    else:
        items = getattr(outputs, "__dict__", {}).values()
    return [tensor for each in items for tensor in leaves(each, depth - 1)]


def _generators_kept(tensors: list[Tensor]) -> AbstractContextManager[None]:
    """Leave the generators as they are, whatever a forward draws."""
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
    return torch.random.fork_rng(devices=devices)
