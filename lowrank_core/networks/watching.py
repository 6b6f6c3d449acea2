"""What forward passes tell: which layers ran on what, and the operations counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
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
from lowrank_core.layers.parts import Use
from lowrank_core.layers.recurrent import recurrent_kind
from lowrank_core.layers.spec import Size
from lowrank_core.networks.beside import watch_beside
from lowrank_core.networks.fused import Trial
from lowrank_core.networks.profile import TRANSPOSED, is_map, spec_of
from lowrank_core.networks.reads import Held, Read, Readers

Passed = tuple[Size, int]
"""Inputs that went through a module in one call: the extent of each, () for a row of features, and how many."""


@dataclass(slots=True)
class Watched:
    """What forward passes told of the modules that hold weights.

    samples: of each batch. calls: the modules that ran and the weights that functions were given, in the order of the
    first call. passed: by module and way in ("" of most; "query" and "key" of an attention, "whole" and "step" of a
    recurrent module, `Read.of` the name of a weight that functions were given), of each batch what went through.
    resized: modules called with an output_size. readers: of modules whose weight something else computes with, who
    does; asked: those whose weight was only asked for its type or shape. changed: of modules whose own hooks or
    replaced forward change what comes out, what does. reads, misused: as of `Readers`. products: multiplications of
    the whole network in all batches. shaped: whether an operation ran whose output has as many rows as the values say,
    or a network that says by `branches` that values decide what it computes looked at some; valued: whether Python
    looked at values, by which it may decide what runs.
    """

    samples: list[int] = field(default_factory=list)
    calls: dict[nn.Module | Held, None] = field(default_factory=dict)
    passed: dict[tuple[nn.Module, str], dict[int, list[Passed]]] = field(default_factory=dict)
    resized: set[nn.Module] = field(default_factory=set)
    readers: dict[nn.Module, str] = field(default_factory=dict)
    asked: set[nn.Module] = field(default_factory=set)
    changed: dict[nn.Module, str] = field(default_factory=dict)
    reads: dict[Held, list[Read]] = field(default_factory=dict)
    misused: dict[Tensor, str] = field(default_factory=dict)
    products: int = 0
    shaped: bool = False
    valued: bool = False

    @property
    def multiplies(self) -> Fraction:
        """Of the whole network for one sample, in the mean over all."""
        return Fraction(self.products, sum(self.samples))

    def hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call of a module that is watched: a forward pre-hook."""
        named = [kwargs[name] for name in ("input", "query") if name in kwargs]
        given = (*args, *named, *kwargs.values())[0]
        self.calls.setdefault(module)
        if isinstance(module, TRANSPOSED) and len(args) + len(kwargs) > 1:
            self.resized.add(module)
        elif recurrent_kind(module):
            rows = _rows_by_step(module, given)
            self.note(module, [((), sum(rows))], "whole")
            self.note(module, [((), n) for n in rows], "step")
        elif isinstance(module, nn.MultiheadAttention):
            key = args[1] if len(args) > 1 else kwargs["key"]
            self.note(module, [((), given.shape[:-1].numel())], "query")
            self.note(module, [((), key.shape[:-1].numel())], "key")
        elif isinstance(module, nn.EmbeddingBag):
            offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
            bags = len(given) if offsets is None else len(offsets) - module.include_last_offset
            self.note(module, [((), bags)])
        elif isinstance(module, nn.Embedding):
            self.note(module, [((), given.numel())])
        else:
            self.note(module, [self._passed(given, len(spec_of(module).kernel))])

    def hear_read(self, held: Held, use: Use, read: Read) -> None:
        """Note a product with a weight that a function is given, and how it is read."""
        module, name = held
        self.calls.setdefault(held)
        dimensions = use.weight.ndim - 2
        passed = ((), use.x.numel()) if use.kind == "embedding" else self._passed(use.x, dimensions)
        self.note(module, [passed], read.of(name))

    def hear_expert(self, trial: Trial, number: int, rows: int) -> None:
        """Note a product of one expert's matrix in a parameter of several."""
        self.calls.setdefault(trial)
        self.calls.setdefault(trial.host)
        self.note(trial, [((), rows)], str(number))

    def _passed(self, given: Tensor, dimensions: int) -> Passed:
        """What goes through a linear map or, of some dimensions, a convolution."""
        if not dimensions:
            return (), given.shape[:-1].numel()
        alone = given.ndim == dimensions + 1
        return tuple(given.shape[-dimensions:]), self.samples[-1] if alone else len(given)

    def note(self, module: nn.Module, passed: list[Passed], way: str = "") -> None:
        """Add what went through a module to what this batch has sent through it."""
        self.passed.setdefault((module, way), {}).setdefault(len(self.samples) - 1, []).extend(passed)

    def sizes(self, module: nn.Module, way: str = "") -> tuple[tuple[Size, ...], tuple[Fraction, ...]]:
        """`in_sizes` and `shares` of a layer: call by call where every batch is alike, else the mean of all of them."""
        batches = self.passed.get((module, way), {})
        calls = [[_by_sample(*each, self.samples[at]) for each in batch] for at, batch in batches.items()]
        if len(calls) == len(self.samples) and calls[0] and all(None not in c and c == calls[0] for c in calls):
            return tuple(size for sizes in calls[0] for size in sizes or ()), ()
        totals: dict[Size, int] = {}
        for size, many in (each for batch in batches.values() for each in batch):
            totals[size] = totals.get(size, 0) + many
        means = {size: Fraction(many, sum(self.samples)) for size, many in (totals or {(): 0}).items()}
        shares = tuple(means.values())
        return tuple(means), () if all(share == 1 for share in shares) else shares


def _by_sample(size: Size, many: int, samples: int) -> tuple[Size, ...] | None:
    """What one sample sends through in a call; None where the samples do not share it evenly."""
    each, more = divmod(many, samples)
    if more or not each:
        return None
    return (size,) * each if size else ((),) if each == 1 else ((each,),)


def watch(
    model: nn.Module, batches: Iterable[Inputs], modules: Iterable[nn.Module], axes: BatchAxes | None = None
) -> Watched:
    """Run batches through the network and note the calls of `modules`; raises InvalidModel where a pass fails."""
    modules = list(modules)
    watched = Watched()
    counter = FlopCounter()
    readers = Readers(model, [module for module in modules if is_map(module)])
    readers.hear = watched.hear_read
    hooks = ExitStack()
    watched.changed = watch_beside(modules, hooks)
    for module in modules:
        hooks.callback(module.register_forward_pre_hook(watched.hear, with_kwargs=True).remove)
    for module in model.modules():
        if isinstance(module, Trial):
            watched.shaped = True
            module.note = watched.hear_expert
            hooks.callback(vars(module).pop, "note")
        if isinstance(module, parametrize.ParametrizationList):  # a weight costs nothing by sample
            for handle in counter.leave_out(module):
                hooks.callback(handle.remove)
    try:
        with hooks, generators_untouched(), evaluating(model):
            for inputs in batches:
                watched.samples.append(batch_size(inputs) if axes is None else axes.samples(inputs))
                with readers, counter:
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
    watched.products, watched.shaped = counter.total // 2, watched.shaped or counter.shaped
    watched.valued = counter.valued or readers.valued
    watched.shaped = watched.shaped or (watched.valued and getattr(model, "branches", False) is True)
    return watched


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


def _grouped_flops(x: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> int:
    """Of rows in groups, each group times its own matrix."""
    return 2 * x.numel() * weight.shape[-1] if x.ndim == 2 and weight.ndim == 3 else 0


FUSED: dict[Any, Callable[..., int]] = {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
}
"""What PyTorch's FLOP counter does not know: kernels that take the place of products it does."""


aten = torch.ops.aten
SHAPED = frozenset(
    {
        aten.nonzero,
        aten.masked_select,
        aten._unique2,
        aten.unique_dim,
        aten.unique_consecutive,
        aten._pack_padded_sequence,
    }
)
"""Operations whose outputs have as many rows as the values of the inputs say, beside indexing by True and False."""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what PyTorch's FLOP counter knows of every operation of this thread, and FUSED.

    FlopCounterMode counts the same, but its first operation loads PyTorch's compiler, and that takes as long as loading
    PyTorch itself. What runs inside a higher-order operation is not counted.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.shaped = self.valued = False
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
            self.shaped = self.shaped or packet in SHAPED or (packet is aten.index and _by_truth(args[1]))
            self.shaped = self.shaped or func is aten.repeat_interleave.Tensor
            self.valued = self.valued or packet is aten._local_scalar_dense
            if packet in FUSED:
                count = FUSED[packet](*args, **kwargs)
            else:
                known = flop_registry.get(packet)
                count = 0 if known is None else known(*args, **kwargs, out_val=out)
            self.total += 0 if self._weights_begun else count
            return out
        return func(*args, **kwargs)


def _by_truth(indices: Iterable[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
