"""What one forward pass tells: operations counted, and who reads weights outside their own layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lowrank_core.layers.data import tensors
from lowrank_core.running.switches import plain_attention


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what PyTorch's FLOP counter knows of every operation.

    FlopCounterMode counts the same, but its first operation loads PyTorch's compiler, and that takes as long as loading
    PyTorch itself. What runs inside a higher-order operation is not counted.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload):
            if func is not torch.ops.prim.device.default:
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            out = func(*args, **kwargs)
            count = flop_registry.get(func.overloadpacket)
            self.total += 0 if count is None else count(*args, **kwargs, out_val=out)
            return out
        return func(*args, **kwargs)


@contextmanager
def countable(model: nn.Module) -> Iterator[None]:
    """Take the paths that PyTorch's FLOP counter can see: no fused attention, no fused recurrent kernels.

    Weights that a parametrization computes are computed before, so that they count for no sample.
    """
    parametrized = [module for module in model.modules() if parametrize.is_parametrized(module)]
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    unfused = _unfused() if recurrent else nullcontext()
    with plain_attention(), sdpa_kernel(SDPBackend.MATH), unfused, parametrize.cached():
        for module in parametrized:  # once, before anybody counts
            for name, _ in module.get_submodule("parametrizations").named_children():
                getattr(module, name)
        yield


@contextmanager
def _unfused() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the flags warns about hardware that is not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class Readers(TorchFunctionMode):
    """Who computes with a layer's weight outside that layer's own forward; asking for its type or shape is free."""

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.found: dict[nn.Module, str] = {}
        self.asked: set[nn.Module] = set()
        self._names = {module: name for name, module in model.named_modules()}
        self._open: list[nn.Module] = []
        self._owners: dict[Tensor, list[nn.Module]] = {}
        for layer in layers:
            for parameter in layer.parameters():
                self._owners.setdefault(parameter, []).append(layer)
        self._hooks = ExitStack()

    def __enter__(self) -> Readers:
        for module in self._names:
            if not isinstance(module, torch.jit.ScriptModule):
                before = module.register_forward_pre_hook(lambda m, _: self._open.append(m), prepend=True)
                self._hooks.callback(before.remove)
                self._hooks.callback(module.register_forward_hook(lambda *_: self._close()).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def _close(self) -> None:
        self._open.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors((args, kwargs)):
            owners = self._owners.get(tensor, [])
            if not owners or any(owner in self._open for owner in owners):
                continue
            if not tensors(result) or (func in (Tensor.to, Tensor.type_as) and tensor is not args[0]):
                self.asked.update(owners)
                continue
            reader = self._open[-1] if self._open else next(iter(self._names))
            name = f"{type(reader).__name__} {self._names[reader]!r}".removesuffix(" ''")
            reason = f"{name} also computes with its weight or bias directly, and factors have none to read"
            self.found |= dict.fromkeys(owners, reason)
        return result
