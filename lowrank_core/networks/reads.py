"""Who computes with a weight, and how: what one forward pass tells of every function that is given one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_core.layers.data import tensors
from lowrank_core.layers.parts import Experts, Use, use_of

PARAMETRIZATIONS = ".parametrizations."
"""In the names of modules that compute a weight: whoever asked for the weight is its reader, not they."""

PROGRAMS = ("InterpreterModule", "Program")
"""Types of modules that are written from a graph, by operations that no function mode hears of."""

Held = tuple[nn.Module, str]
"""A parameter, by the module that holds it and its name there."""


@dataclass(frozen=True, slots=True)
class Read:
    """A way in which functions multiply by a weight that they are given."""

    kind: str
    turned: bool
    about: tuple[tuple[str, Any], ...]

    def of(self, name: str) -> str:
        """What goes through the weight of that name in this way is noted under this."""
        return f"{name} as {self.kind}{' turned' * self.turned}"

    @property
    def matrix(self) -> bool:
        """Whether factors of one matrix serve this way and others: a table, or a product with it either way round."""
        return self.kind in ("embedding", "linear")


class Readers(TorchFunctionMode):
    """Who computes with a layer's weight outside that layer's own forward; asking for its type or shape is free.

    reads: of every weight of two or more axes, by who holds it, how functions multiply by it, in the order in which
    they first did; of all who hold it where it cannot be told whose it is. misused: what else is done with one, in
    words. valued: whether Python took values out of a tensor.
    hear(held, use, read) is called at each product. While a function mode is active, PyTorch's attention and encoder
    layers do not take their fused path, which no counter sees.
    """

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.readers: dict[nn.Module, str] = {}
        self.asked: set[nn.Module] = set()
        self.reads: dict[Held, list[Read]] = {}
        self.misused: dict[Tensor, str] = {}
        self.valued = False
        self._names = {module: name for name, module in model.named_modules()}
        self._open: list[nn.Module] = []
        self._owners: dict[Tensor, list[nn.Module]] = {}
        self._held: dict[Tensor, list[Held]] = {}
        self._turned: dict[Tensor, Tensor] = {}
        for layer in layers:
            for parameter in layer.parameters():
                self._owners.setdefault(parameter, []).append(layer)
        for module in model.modules():
            if type(module) is nn.Module or isinstance(module, Experts) or type(module).__name__ in PROGRAMS:
                continue
            for name, own in module._parameters.items():
                if own is not None and own.ndim > 1:
                    self._held.setdefault(own, []).append((module, name))
        self._hooks = ExitStack()
        self.hear: Callable[[Held, Use, Read], Any] = lambda held, use, read: None

    def __enter__(self) -> Readers:
        for module, name in self._names.items():
            if not isinstance(module, torch.jit.ScriptModule) and PARAMETRIZATIONS not in f".{name}.":
                before = module.register_forward_pre_hook(lambda m, _: self._open.append(m), prepend=True)
                self._hooks.callback(before.remove)
                self._hooks.callback(module.register_forward_hook(lambda *_: self._close()).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()
        self._turned.clear()

    def _close(self) -> None:
        self._open.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.valued = self.valued or func in (Tensor.tolist, Tensor.numpy)
        given = tensors((args, kwargs))
        for tensor in given:
            weight = self._turned.get(tensor, tensor)
            if weight in self._held:
                self._note(weight, tensor, func, args, kwargs or {}, result)
            owners = self._owners.get(weight, [])
            holders = [*owners, *(module for module, _ in self._held.get(weight, ()))]
            if not owners or any(holder in self._open for holder in holders):
                continue
            if _asks(func, args, tensor, result):
                self.asked.update(owners)
                continue
            reason = f"{self._reader()} also computes with its weight or bias directly, and factors have none to read"
            self.readers |= dict.fromkeys(owners, reason)
        return result

    def _reader(self) -> str:
        reader = self._open[-1] if self._open else next(iter(self._names))
        return f"{type(reader).__name__} {self._names[reader]!r}".removesuffix(" ''")

    def _note(
        self, weight: Tensor, given: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Note what a function does with a weight, or with its transpose: `given`."""
        if _asks(func, args, given, result) or (isinstance(result, Tensor) and result is given):
            return
        turned = given is not weight
        if _transposes(func, args, kwargs) and isinstance(result, Tensor):
            self._turned[result] = weight
            if turned:
                del self._turned[result]
                self.misused.setdefault(weight, "transposed twice")
            return
        use = use_of(func, args, kwargs, lambda value: value is given)
        if use is None:
            name = str(getattr(func, "__name__", func))
            self.misused.setdefault(weight, f"{self._reader()} gives its weight to {name}()")
            return
        read, holders = Read(use.kind, use.turned != turned, use.about), self._holders(weight)
        self.hear(holders[0], use, read)
        for holder in holders:
            ways = self.reads.setdefault(holder, [])
            ways += [] if read in ways else [read]
            tables = sum(way.kind == "embedding" for way in ways)
            if len(ways) > 1 and not (all(way.matrix for way in ways) and tables <= 1):
                self.misused.setdefault(weight, "it is multiplied with in several ways")

    def _holders(self, weight: Tensor) -> list[Held]:
        """Who may hold a weight that is computed with now: the innermost of those that run, else all there are."""
        held = self._held[weight]
        for running in reversed(self._open):
            for module, name in held:
                if module is running:
                    return [(module, name)]
        return held


def _asks(func: Any, args: tuple[Any, ...], tensor: Tensor, result: Any) -> bool:
    """Whether a function only wants to know a tensor's type, place or shape."""
    return not tensors(result) or (func in (Tensor.to, Tensor.type_as) and tensor is not args[0])


def _transposes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function gives the transpose of the matrix that it is given."""
    name, given = getattr(func, "__name__", ""), args[0] if args else None
    if not isinstance(given, Tensor) or given.ndim != 2 or kwargs:
        return False
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in ("T", "mT")
    axes = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
    turning = [axis % 2 for axis in axes if isinstance(axis, int)]
    return (
        name == "t" or (name == "transpose" and sorted(turning) == [0, 1]) or (name == "permute" and turning == [1, 0])
    )
