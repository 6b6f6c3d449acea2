"""What one pass of the dense network over the calibration samples leaves behind."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lowrank_core.compression.calibration import POSITIONS
from lowrank_core.compression.unfold import draw_positions, input_rows, output_rows
from lowrank_core.layers.data import Dataset, Inputs, call, evaluating, tensors
from lowrank_core.networks.footprint import with_pass_bytes
from lowrank_core.networks.profile import Layer, ModelProfile, module_at
from lowrank_core.networks.twin import on_call, twin
from lowrank_core.running.heap import LARGE_BYTES, give_back

POSITIONS_EACH = 64
"""Rows that a calibration sample brings, on average, where there are more samples than the usual ones: as many as those
bring. ResNet-20, CP at 30 % of the multiplies, 1,024 samples: 16,384 rows 0.102, 65,536 rows 0.098 of divergence."""


@dataclass(frozen=True, slots=True, eq=False)
class DensePass:
    """What one pass of the dense network over the calibration samples leaves behind.

    calls: layer names in the order of their calls; rows: how many rows went through each call; index and targets: one
    drawn (P,) and (P, out) per call; followers: the BatchNorms that take a layer's outputs and nothing else does;
    states: one (P, in) per call of the weights of recurrent modules that see one step after the other, and of Linear
    layers that a network sends only some rows through: a compressed one may send others. answering: the layers whose
    outputs are, as they come, outputs of the network.
    """

    inputs: Inputs
    samples: int
    calls: tuple[str, ...]
    rows: dict[str, list[int]]
    index: dict[str, list[Tensor]]
    targets: dict[str, list[Tensor]]
    followers: dict[str, tuple[str, ...]]
    states: dict[str, list[Tensor]]
    answering: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """Memory that the inputs, drawn positions, targets and states take."""
        listed = (*self.index.values(), *self.targets.values(), *self.states.values())
        return sum(t.nbytes for t in (*tensors(self.inputs), *(t for ts in listed for t in ts)))


def observe(model: nn.Module, profile: ModelProfile, data: Dataset, seed: int, memory_bytes: int) -> DensePass:
    """Run the dense network once and keep its layers' outputs at drawn positions.

    Targets take at most half of `memory_bytes`; where a forward pass of all samples would take more than the other
    half, fewer samples are used.
    """
    copied = twin(model, profile.layers)
    with evaluating(copied):
        _, each = with_pass_bytes(copied, lambda: call(copied, data.pick(slice(0, 1)).inputs))
    samples = min(len(data), max(1, memory_bytes // 2 // each))
    data = data.pick(slice(0, samples))
    if samples * each > LARGE_BYTES:
        give_back()
    width = 0
    for layer in profile.layers:
        channels = layer.spec.out_channels + (layer.spec.in_channels if layer.stepwise else 0)
        width += channels * layer.itemsize * len(layer.in_sizes)
    wanted = max(POSITIONS, POSITIONS_EACH * samples)
    positions = min(wanted, max(256, memory_bytes // 2 // max(1, width)))
    calls: list[str] = []
    rows: dict[str, list[int]] = {}
    index: dict[str, list[Tensor]] = {}
    targets: dict[str, list[Tensor]] = {}
    states: dict[str, list[Tensor]] = {}
    watch = _Watch()

    def record(layer: Layer, x: Tensor, output: Tensor) -> None:
        name, spec = layer.name, layer.spec
        count = output.numel() // spec.out_channels
        drawn = draw_positions(count, positions, seed)
        calls.append(name)
        rows.setdefault(name, []).append(count)
        index.setdefault(name, []).append(drawn)
        targets.setdefault(name, []).append(output_rows(spec, output, drawn))
        routed = (count % samples or layer.shares) and not (
            spec.kernel or spec.table or (layer.partial and layer.expert is None)
        )
        if layer.stepwise or routed or name in states:
            states.setdefault(name, []).append(input_rows(spec, x, drawn)[0])
        watch.follow(output, name)

    with ExitStack() as hooks, evaluating(copied), watch:
        for layer in profile.layers:
            module = module_at(copied, layer.name)
            hooks.callback(on_call(module, partial(record, layer)))
        for name, norm in stored_norms(copied).items():
            hooks.callback(norm.register_forward_pre_hook(lambda _, args, to=name: watch.enter(to, args[0])).remove)
        answering = watch.sources(call(copied, data.inputs))
    followers = {name: norms for name in index if (norms := watch.followers(name, calls.count(name)))}
    return DensePass(data.inputs, samples, tuple(calls), rows, index, targets, followers, states, answering)


def stored_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorms that use stored statistics."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


class _Watch(TorchFunctionMode):
    """Which BatchNorms take the outputs of followed layers, and whether anything else does."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._uses: list[str] = []
        self._entered: list[tuple[str, str | None]] = []

    def follow(self, tensor: Tensor, name: str) -> None:
        """Note that from now on this tensor is the output of a layer."""
        self._names[id(tensor)] = weakref.ref(tensor), name

    def enter(self, norm: str, tensor: Tensor) -> None:
        """Note that a BatchNorm is about to take this tensor."""
        self._entered.append((norm, self._source(tensor)))

    def followers(self, name: str, calls: int) -> tuple[str, ...]:
        """The BatchNorms fed by every call of the layer, by nothing else, and alone; else none."""
        norms = {norm for norm, source in self._entered if source == name}
        entered = [source for norm, source in self._entered if norm in norms]
        alone = entered == [name] * calls and self._uses.count(name) == calls
        return tuple(sorted(norms)) if alone else ()

    def sources(self, outputs: Any) -> frozenset[str]:
        """The followed layers whose outputs are among these, as they came."""
        return frozenset(name for tensor in tensors(outputs) if (name := self._source(tensor)) is not None)

    def _source(self, tensor: Tensor) -> str | None:
        reference, name = self._names.get(id(tensor), (None, None))
        return name if reference is not None and reference() is tensor else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if tensors(result):
            sources = map(self._source, tensors((args, kwargs or {})))
            self._uses.extend(source for source in sources if source is not None)
        return result
