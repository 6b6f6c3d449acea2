"""What one forward pass tells: which layers ran on what, and the operations counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from lowrank_core.errors import InvalidModel, LowRankError
from lowrank_core.layers.data import BatchAxes, Inputs, batch_size, call, evaluating, generators_untouched
from lowrank_core.layers.recurrent import CELLS, KINDS
from lowrank_core.layers.spec import Size
from lowrank_core.networks.beside import watch_beside
from lowrank_core.networks.profile import TRANSPOSED, is_map, spec_of
from lowrank_core.networks.reads import Held, Read, Readers


@dataclass(slots=True)
class Watched:
    """What one forward pass of a batch told of the modules that hold weights.

    calls: of each module that ran and each weight that a function was given, in the order of the first call, the input
    extents of each call for one sample.
    looks: of each attention and call, the tokens that ask and those that are looked at; rows: of each recurrent module
    and call, the rows at each step. resized: modules called with an output_size. readers: of modules whose weight
    something else computes with, who does; asked: those whose weight was only asked for its type or shape. changed: of
    modules whose own hooks or replaced forward change what comes out, what does. reads, misused: as of `Readers`.
    multiplies: of the whole network for one sample.
    """

    samples: int
    calls: dict[nn.Module | Held, list[Size]] = field(default_factory=dict)
    looks: dict[nn.Module, list[tuple[Size, Size]]] = field(default_factory=dict)
    rows: dict[nn.Module, list[list[int]]] = field(default_factory=dict)
    resized: set[nn.Module] = field(default_factory=set)
    readers: dict[nn.Module, str] = field(default_factory=dict)
    asked: set[nn.Module] = field(default_factory=set)
    changed: dict[nn.Module, str] = field(default_factory=dict)
    reads: dict[Held, Read] = field(default_factory=dict)
    misused: dict[Tensor, str] = field(default_factory=dict)
    multiplies: int = 0

    def hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call of a module that is watched: a forward pre-hook."""
        named = [kwargs[name] for name in ("input", "query") if name in kwargs]
        given = (*args, *named, *kwargs.values())[0]
        if isinstance(module, TRANSPOSED) and len(args) + len(kwargs) > 1:
            self.resized.add(module)
        elif type(module) in (*KINDS, *CELLS):
            self.rows.setdefault(module, []).append(_rows_by_step(module, given))
            self.calls.setdefault(module, [])
        elif type(module) is nn.MultiheadAttention:
            key = args[1] if len(args) > 1 else kwargs["key"]
            sizes = _tokens(given.shape, self.samples), _tokens(key.shape, self.samples)
            self.looks.setdefault(module, []).append(sizes)
            self.calls.setdefault(module, [])
        elif isinstance(module, nn.EmbeddingBag):
            offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
            bags = len(given) if offsets is None else len(offsets) - module.include_last_offset
            self.calls.setdefault(module, []).append(_tokens(torch.Size((bags, 1)), self.samples))
        else:
            self.calls.setdefault(module, []).extend(_sizes(module, given.shape, self.samples))


def watch(model: nn.Module, inputs: Inputs, modules: Iterable[nn.Module], axes: BatchAxes | None = None) -> Watched:
    """Run a batch through the network and note the calls of `modules`; raises InvalidModel where the pass fails."""
    modules = list(modules)
    watched = Watched(batch_size(inputs) if axes is None else axes.samples(inputs))
    counter = FlopCounter()
    readers = Readers(model, [module for module in modules if is_map(module)])
    readers.begun = lambda held: watched.calls.setdefault(held, [])
    hooks = ExitStack()
    watched.changed = watch_beside(modules, hooks)
    for module in modules:
        hooks.callback(module.register_forward_pre_hook(watched.hear, with_kwargs=True).remove)
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):  # a weight costs nothing by sample
            for handle in counter.leave_out(module):
                hooks.callback(handle.remove)
    try:
        with hooks, generators_untouched(), evaluating(model), readers, counter:
            call(model, inputs)
    except LowRankError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidModel(
            f"the forward pass on the example inputs failed with {type(error).__name__}: "
            f"{' '.join(str(error).split())}; example_inputs() must return what the model is called with."
        ) from error
    watched.readers, watched.asked = readers.readers, readers.asked
    watched.reads, watched.misused = readers.reads, readers.misused
    for held, read in watched.reads.items():
        watched.calls[held] = [size for shape in read.shapes for size in _read_sizes(read, shape, watched.samples)]
    watched.multiplies = counter.total // 2 // watched.samples
    return watched


def _sizes(module: nn.Module, shape: torch.Size, samples: int) -> list[Size]:
    """Input extents of one call, for one sample: a Linear's tokens, or a convolution's window positions."""
    dimensions = len(spec_of(module).kernel)
    if not dimensions:
        rows = shape.numel() if isinstance(module, nn.Embedding) else shape[:-1].numel()
        return [_tokens(torch.Size((rows, 1)), samples)]
    return _windows(dimensions, shape, samples)


def _read_sizes(read: Read, shape: torch.Size, samples: int) -> list[Size]:
    """Input extents of one product with a weight, for one sample."""
    if not read.kind.startswith("conv"):
        rows = shape.numel() if read.kind == "embedding" else shape[:-1].numel()
        return [_tokens(torch.Size((rows, 1)), samples)]
    return _windows(int(read.kind[-2]), shape, samples)


def _windows(dimensions: int, shape: torch.Size, samples: int) -> list[Size]:
    """Extents of a convolution's input; once for each part of a sample that it takes as a sample."""
    if len(shape) == dimensions + 1:
        return [tuple(shape[1:])]
    return [tuple(shape[2:])] * max(1, shape[0] // samples)


def _tokens(shape: torch.Size, samples: int) -> Size:
    """The tokens of one sample in a tensor (..., features); rounded up, for a layer that ran is never free."""
    tokens = -(-shape[:-1].numel() // samples)
    return () if tokens == 1 else (tokens,)


def _rows_by_step(module: nn.Module, given: Tensor | PackedSequence) -> list[int]:
    """How many rows go through a recurrent module at each step of one call."""
    if isinstance(given, PackedSequence):
        return [int(rows) for rows in given.batch_sizes]
    if isinstance(module, nn.RNNCellBase):
        return [given.shape[:-1].numel()]
    if given.ndim == 2:
        return [1] * given.shape[0]
    rows, length = given.shape[:2] if module.batch_first else (given.shape[1], given.shape[0])
    return [rows] * length


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> int:
    """Of two products: each query with each key, and those scores with the values."""
    scores = query.shape[:-1].numel() * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1])


def _recurrent_flops(given: Tensor, w_ih: Tensor, w_hh: Tensor, *rest: Any, **kwargs: Any) -> int:
    """Of one layer in one direction over all its steps."""
    return 2 * given.shape[:-1].numel() * (w_ih.numel() + w_hh.numel())


FUSED: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
}
"""What PyTorch's FLOP counter does not know: kernels that take the place of products it does."""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what PyTorch's FLOP counter knows of every operation of this thread, and FUSED.

    FlopCounterMode counts the same, but its first operation loads PyTorch's compiler, and that takes as long as loading
    PyTorch itself. What runs inside a higher-order operation is not counted.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._weights_begun = 0

    def leave_out(self, weight: nn.Module) -> list[RemovableHandle]:
        """Count nothing of what this module computes, until the hooks that come back are removed."""
        return [
            weight.register_forward_pre_hook(lambda *_: self._begin(1)),
            weight.register_forward_hook(lambda *_: self._begin(-1), always_call=True),
        ]

    def _begin(self, weights: int) -> None:
        self._weights_begun += weights

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
            packet = func.overloadpacket
            if packet in FUSED:
                count = FUSED[packet](*args, **kwargs)
            else:
                known = flop_registry.get(packet)
                count = 0 if known is None else known(*args, **kwargs, out_val=out)
            self.total += 0 if self._weights_begun else count
            return out
        return func(*args, **kwargs)
