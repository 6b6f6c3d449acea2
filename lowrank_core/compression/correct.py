"""Correction: teach the factors of a compressed network to answer as the dense one does, without labels.

Layer by layer in the order of execution, the last factor of each replacement is refitted by least squares from its
own input, as the network compressed and corrected so far computes it, to what the dense layer puts out for the same
samples. No parameter is added. One forward pass of each network does it: a hook solves each small system and
recomputes the layer's output before it goes on.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lowrank_core.algebra.linalg import one_thread
from lowrank_core.compression.apply import apply, chain_at, replacement_stages
from lowrank_core.compression.calibration import (
    POSITIONS,
    SAMPLES,
    as_matrices,
    as_weight,
    calibration_samples,
    draw_positions,
    input_rows,
    on_call,
    output_rows,
    row_chunks,
    twin,
)
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import Cancelled, InvalidModel, InvalidPlan
from lowrank_core.layers.data import Dataset, Inputs, call, evaluating, tensors
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.discover import Layer, ModelProfile, module_at
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.cancelling import go_on, stopped, until
from lowrank_core.store.room import Room

MEMORY_BYTES = 2**30
"""Stored targets take at most half of this, a forward pass about the other half; fewer positions and samples else."""

MEMO_BYTES = 256 * 2**20
INPUT_BYTES = 256 * 2**20
CUT_OFF = 1e-6
SMALL = 512

ROUNDS = 4
"""Times that a recurrent weight is fitted anew with the states it leads to; eight change little."""

Kind = Literal["least_squares", "batchnorm", "bias"]
Overlay = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Correction:
    """How a compressed network is corrected: part of what a score belongs to.

    kind: "least_squares" refits last factors, "bias" only shifts them, "batchnorm" re-estimates the statistics.
    ridge is relative to standardised features; data is the hash of the samples, "" where it is not known.

    >>> Correction.from_dict(Correction(seed=1).to_dict()) == Correction(seed=1)
    True
    """

    kind: Kind = "least_squares"
    samples: int = SAMPLES
    seed: int = 0
    ridge: float = 1e-3
    data: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as plan files hold them under "correction"."""
        return asdict(self)

    @staticmethod
    def from_dict(document: object) -> Correction:
        """Read strictly; raises InvalidPlan for unknown keys and impossible values."""
        try:
            read = msgspec.convert(document, _Document)
        except msgspec.ValidationError as error:
            raise InvalidPlan(f"the plan's correction is not valid: {error}. Export the plan again.") from error
        return Correction(read.kind, read.samples, read.seed, read.ridge, read.data)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    samples: Annotated[int, msgspec.Meta(ge=1)]
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    ridge: Annotated[float, msgspec.Meta(ge=0)] = 1e-3
    data: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One more layer is corrected. The last step's overlay is the answer: {name of a parameter or buffer: value}."""

    name: str
    done: int
    total: int
    overlay: Overlay


@dataclass(frozen=True, slots=True, eq=False)
class DensePass:
    """What one pass of the dense network over the calibration samples leaves behind.

    calls: layer names in the order of their calls; index and targets: one drawn (P,) and (P, out) per call;
    followers: the BatchNorms that take a layer's outputs and nothing else does; states: one (P, in) per call of the
    weights of recurrent modules that see one step after the other.
    """

    inputs: Inputs
    samples: int
    calls: tuple[str, ...]
    index: dict[str, list[Tensor]]
    targets: dict[str, list[Tensor]]
    followers: dict[str, tuple[str, ...]]
    states: dict[str, list[Tensor]]

    @property
    def bytes(self) -> int:
        """Memory that all of it takes."""
        listed = (*self.index.values(), *self.targets.values(), *self.states.values())
        return sum(t.nbytes for t in (*tensors(self.inputs), *(t for ts in listed for t in ts)))


class Corrector:
    """Corrects compressed copies of one network on one pool of unlabelled samples; safe to share between threads.

    What is fitted for a layer depends only on the plan up to it, so it is kept by that prefix: moving one layer's rank
    keeps the corrections of the layers before it. These take at most MEMO_BYTES; all that is kept stands in `room`.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: ModelProfile,
        factors: FactorStore,
        pool: Callable[[], Dataset],
        *,
        memory_bytes: int = MEMORY_BYTES,
        room: Room | None = None,
    ) -> None:
        self.model, self.profile, self.factors = model, profile, factors
        self._pool, self._memory_bytes = pool, memory_bytes
        self._lock = threading.Lock()
        room = room or Room()
        self._dense, self._inputs, self._memo = room.part(), room.part(INPUT_BYTES), room.part(MEMO_BYTES)

    def __call__(
        self, plan: RankPlan, correction: Correction, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Step]:
        """Yield after every layer; raises Cancelled soon after `cancelled()` is true, InvalidPlan for a bad plan."""
        work = self._batchnorms if correction.kind == "batchnorm" else self._factors
        yield Step("", 0, len(plan.choices), {})
        for step in _stepwise(lambda emit: work(plan, correction, emit)):
            yield step
            if cancelled() and step.done < step.total:
                raise Cancelled("the correction was called off.")

    def alone(self, compressed: nn.Module, plan: RankPlan, correction: Correction) -> Overlay:
        """The overlay of a plan with one layer, for its compressed copy; runs little more than the layer.

        The layer's inputs are the dense network's: they are kept, with those of the layers that run after it, up to
        INPUT_BYTES.
        """
        name = plan.choices[0][0]
        dense = self.dense_pass(correction)
        layer = self.profile.layer(name)
        if correction.kind == "batchnorm" or dense.calls.count(name) > 1 or layer.tied or layer.spec.bag:
            *_, last = self(plan, correction)
            return last.overlay
        chain = chain_at(self.model, compressed, name)
        z = self._input_of(name, correction, dense)
        with evaluating(chain):
            for part in list(chain)[:-1]:
                z = part(z)
        equations = NormalEquations(replacement_stages(self.profile.layer(name), plan)[-1])
        equations.add(z, dense.index[name][0], dense.targets[name][0])
        return self._solved(compressed, name, equations, correction, dense.followers.get(name, ()))

    def _input_of(self, name: str, correction: Correction, dense: DensePass) -> Tensor:
        """What goes into a layer of the dense network in its only call; of later layers as well, as memory allows."""
        key = correction.samples, correction.seed
        known: dict[str, Tensor] = self._inputs.get(key) or {}
        if name in known:
            return known[name]
        copied = twin(self.model, self.profile.layers)
        seen: dict[str, Tensor] = {}
        wanted = [n for n in dict.fromkeys(dense.calls) if dense.calls.count(n) == 1]
        wanted = wanted[wanted.index(name) :]

        def catch(at: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if seen and _overlay_bytes({**seen, at: x}) > INPUT_BYTES:
                raise _Enough
            seen[at] = x.clone()  # the network may go on to change it in place
            if at == wanted[-1]:
                raise _Enough

        for at in wanted:
            hook = partial(lambda at, _, args, kwargs: catch(at, args, kwargs), at)
            module_at(copied, at).register_forward_pre_hook(hook, with_kwargs=True)
        with evaluating(copied), suppress(_Enough):
            call(copied, dense.inputs)
        self._inputs.clear()
        self._inputs.put(key, seen, _overlay_bytes(seen))
        return seen[name]

    def samples(self, correction: Correction) -> int:
        """How many calibration samples are used: fewer than asked for where there are fewer or memory is short."""
        return self.dense_pass(correction).samples

    def dense_pass(self, correction: Correction) -> DensePass:
        """The dense network's answers, computed once for each choice of samples; the latest one is kept."""
        key = correction.samples, correction.seed
        with self._lock:
            found: DensePass | None = self._dense.get(key)
            if found is None:
                data = calibration_samples(self._pool(), correction.samples, correction.seed)
                found = observe(self.model, self.profile, data, correction.seed, self._memory_bytes)
                self._dense.clear()
                self._dense.put(key, found, found.bytes)
            return found

    def _factors(self, plan: RankPlan, correction: Correction, emit: Callable[[Step], None]) -> None:
        """Refit or shift last factors: one pass, and more for each layer that is called several times."""
        dense = self.dense_pass(correction)
        compressed = apply(self.model, self.profile, plan, self.factors)
        tied = {layer.name for layer in self.profile.layers if layer.tied}  # a refit would suit one end, not the other
        todo = deque(entry for entry in _prefixes(plan, dense.calls) if entry[0] not in tied)
        total, overlay = len(todo), Overlay()

        def settle(part: Overlay) -> None:
            name, prefix = todo.popleft()
            self._memo.put((correction, prefix), part, _overlay_bytes(part))
            overlay.update(part)
            load_overlay(compressed, part)
            emit(Step(name, total - len(todo), total, dict(overlay)))

        while todo:
            known: Overlay | None = self._memo.get((correction, todo[0][1]))
            if known is not None:
                settle(known)
            elif todo[0][0] in dense.states:
                settle(self._taught(compressed, plan, todo[0][0], correction, dense))
            else:
                self._pass(compressed, plan, correction, dense, todo, settle)

    def _taught(
        self, compressed: nn.Module, plan: RankPlan, name: str, correction: Correction, dense: DensePass
    ) -> Overlay:
        """Refit a weight that sees its own answers again: on the dense network's states, then on those it leads to too.

        Fitted on the dense network's alone it never learns to come back to them; on its own alone, which each fit
        changes, it gets worse. So the network runs after each fit, and its states join those that are there, with the
        dense network's answers of the same step (dataset aggregation; Ross, Gordon & Bagnell, AISTATS 2011).
        """
        *first, last = chain_at(self.model, compressed, name)
        equations = NormalEquations(replacement_stages(self.profile.layer(name), plan)[-1])
        index, targets = dense.index[name], dense.targets[name]
        with evaluating(compressed):
            for states, wanted in zip(dense.states[name], targets, strict=True):
                z = states
                for part in first:
                    z = part(z)
                equations.add(z, torch.arange(len(z)), wanted)
        calls = count()

        def join(_: nn.Module, args: tuple[Tensor]) -> None:
            call_number = next(calls) % len(index)
            equations.add(args[0], index[call_number], targets[call_number])
            if call_number + 1 == len(index):
                raise _Enough

        fitted = self._solved(compressed, name, equations, correction, ())
        for _ in range(ROUNDS):
            load_overlay(compressed, fitted)
            hook = last.register_forward_pre_hook(join)
            with evaluating(compressed), suppress(_Enough):
                call(compressed, dense.inputs)
            hook.remove()
            fitted = self._solved(compressed, name, equations, correction, ())
        return fitted

    def _pass(
        self,
        compressed: nn.Module,
        plan: RankPlan,
        correction: Correction,
        dense: DensePass,
        todo: deque[tuple[str, Any]],
        settle: Callable[[Overlay], None],
    ) -> None:
        """Run the compressed network and settle layers as their last call comes by.

        A layer that has answered before it was settled has sent on what will not hold: then the pass ends there.
        """
        seen: dict[str, int] = {}
        sums: dict[str, NormalEquations] = {}

        def learn(name: str, spec: LayerSpec, last: nn.Module, z: Tensor) -> Tensor | None:
            if not todo or name != todo[0][0]:
                return None
            call_number = seen[name] = seen.get(name, 0) + 1
            equations = sums.setdefault(name, NormalEquations(spec))
            index, targets = dense.index[name], dense.targets[name]
            equations.add(z, index[call_number - 1], targets[call_number - 1])
            if call_number < len(index):
                return None
            settle(self._solved(compressed, name, equations, correction, dense.followers.get(name, ())))
            if call_number > 1 or not todo or todo[0][0] in dense.states:
                raise _Enough
            fresh: Tensor = last.forward(z)
            return fresh

        with ExitStack() as hooks, evaluating(compressed), suppress(_Enough):
            for name, _ in todo:
                spec = replacement_stages(self.profile.layer(name), plan)[-1]
                last = chain_at(self.model, compressed, name)[-1]
                hook = last.register_forward_hook(lambda m, args, _, to=(name, spec): learn(to[0], to[1], m, args[0]))
                hooks.callback(hook.remove)
            call(compressed, dense.inputs)
            if todo:
                raise InvalidModel(
                    f"layer {todo[0][0]!r} was called less often in the compressed network than in the dense one; "
                    "a network whose path depends on its values cannot be corrected."
                )

    def _solved(
        self,
        compressed: nn.Module,
        name: str,
        equations: NormalEquations,
        correction: Correction,
        followers: tuple[str, ...],
    ) -> Overlay:
        """The new values of one layer's last factor, and of whatever takes the fitted offset."""
        chain = chain_at(self.model, compressed, name)
        last = f"{name}.{len(chain) - 1}" if chain is not compressed else f"{len(chain) - 1}"
        weight = compressed.get_parameter(f"{last}.weight")
        ridge = correction.ridge if correction.kind == "least_squares" else None
        biased = equations.spec.bias
        new, offset = equations.solve(weight, ridge, intercept=biased or bool(followers))
        part = {} if ridge is None else {f"{last}.weight": new.to(weight)}
        if biased:
            part[f"{last}.bias"] = offset.to(weight)
        else:
            for follower in followers:
                mean = self.model.get_buffer(f"{follower}.running_mean")
                part[f"{follower}.running_mean"] = mean - offset.to(mean)
        return part

    def _batchnorms(self, plan: RankPlan, correction: Correction, emit: Callable[[Step], None]) -> None:
        """Re-estimate mean and variance of each BatchNorm behind the first replaced layer, in the order they run."""
        dense = self.dense_pass(correction)
        compressed = apply(self.model, self.profile, plan, self.factors)
        norms = _norms(compressed)
        begun: list[bool] = []
        seen: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
        overlay = Overlay()

        def estimate(name: str, x: Tensor) -> None:
            if not begun:
                return
            axes = [axis for axis in range(x.ndim) if axis != 1]
            variance, mean = torch.var_mean(x, axes, correction=0)
            seen.setdefault(name, []).append((x.numel() // x.shape[1], mean.double(), variance.double()))
            rows = sum(n for n, _, _ in seen[name])
            pooled = torch.stack([n / rows * m for n, m, _ in seen[name]]).sum(0)
            square = torch.stack([n / rows * (v + (m - pooled).square()) for n, m, v in seen[name]]).sum(0)
            values = {"running_mean": pooled, "running_var": square * rows / max(1, rows - 1)}
            part = {f"{name}.{key}": value.to(norms[name].get_buffer(key)) for key, value in values.items()}
            overlay.update(part)
            load_overlay(compressed, part)
            emit(Step(name, len(seen), len(norms), dict(overlay)))

        with ExitStack() as hooks, evaluating(compressed):
            for name, _ in plan.choices:
                chain = chain_at(self.model, compressed, name)
                hooks.callback(chain.register_forward_pre_hook(lambda *_: begun.append(True)).remove)
            for name, norm in norms.items():
                hooks.callback(norm.register_forward_pre_hook(lambda _, args, to=name: estimate(to, args[0])).remove)
            call(compressed, dense.inputs)
        emit(Step("", len(norms), len(norms), dict(overlay)))


def _overlay_bytes(overlay: Overlay) -> int:
    return sum(t.numel() * t.element_size() for t in overlay.values())


class _Enough(Exception):
    """The pass has no more to tell: all is settled, or a layer's first answers came before it was corrected."""


def load_overlay(compressed: nn.Module, overlay: Overlay) -> nn.Module:
    """Put the values of an overlay into a compressed copy, in place; names and shapes must be its own."""
    with torch.no_grad():
        for name, value in overlay.items():
            inside, _, leaf = name.rpartition(".")
            owner = compressed.get_submodule(inside)
            held = owner.get_parameter(leaf) if leaf in owner._parameters else owner.get_buffer(leaf)
            if held.shape != value.shape:
                raise ValueError(f"{name} is {tuple(held.shape)}, but the overlay's is {tuple(value.shape)}")
            held.copy_(value)
    return compressed


def observe(model: nn.Module, profile: ModelProfile, data: Dataset, seed: int, memory_bytes: int) -> DensePass:
    """Run the dense network once and keep its layers' outputs at drawn positions.

    Targets take at most half of `memory_bytes`; where a forward pass of all samples would take more than the other
    half, fewer samples are used.
    """
    copied = twin(model, profile.layers)
    samples = min(len(data), max(1, memory_bytes // 2 // _pass_bytes(copied, data)))
    data = data.pick(slice(0, samples))
    width = 0
    for layer in profile.layers:
        kept = layer.spec.out_channels + (layer.spec.in_channels if layer.stepwise else 0)
        width += kept * layer.itemsize * len(layer.in_sizes)
    positions = min(POSITIONS, max(256, memory_bytes // 2 // max(1, width)))
    calls: list[str] = []
    index: dict[str, list[Tensor]] = {}
    targets: dict[str, list[Tensor]] = {}
    states: dict[str, list[Tensor]] = {}
    watch = _Watch()

    def record(layer: Layer, x: Tensor, output: Tensor) -> None:
        name, spec = layer.name, layer.spec
        drawn = draw_positions(output.numel() // spec.out_channels, positions, seed)
        calls.append(name)
        index.setdefault(name, []).append(drawn)
        targets.setdefault(name, []).append(output_rows(spec, output, drawn))
        if layer.stepwise:
            states.setdefault(name, []).append(input_rows(spec, x, drawn)[0])
        watch.follow(output, name)

    with ExitStack() as hooks, evaluating(copied), watch:
        for layer in profile.layers:
            module = module_at(copied, layer.name)
            hooks.callback(on_call(module, partial(record, layer)))
        for name, norm in _norms(copied).items():
            hooks.callback(norm.register_forward_pre_hook(lambda _, args, to=name: watch.enter(to, args[0])).remove)
        call(copied, data.inputs)
    followers = {name: found for name in index if (found := watch.followers(name, calls.count(name)))}
    return DensePass(data.inputs, samples, tuple(calls), index, targets, followers, states)


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorms that use stored statistics."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _pass_bytes(model: nn.Module, data: Dataset) -> int:
    """Memory of a forward pass per sample: twice what the largest module takes in and gives out."""
    largest = 1

    def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors((args, output))))

    with ExitStack() as hooks, evaluating(model):
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # those take no hooks
                hooks.callback(module.register_forward_hook(see).remove)
        call(model, data.pick(slice(0, 1)).inputs)
    return 2 * largest


class _Watch(TorchFunctionMode):
    """Which BatchNorms take the outputs of followed layers, and whether anything else does."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._uses: list[str] = []
        self._entered: list[tuple[str, str | None]] = []

    def follow(self, tensor: Tensor, name: str) -> None:
        """From now on this tensor is the output of a layer."""
        self._names[id(tensor)] = weakref.ref(tensor), name

    def enter(self, norm: str, tensor: Tensor) -> None:
        """A BatchNorm is about to take this tensor."""
        self._entered.append((norm, self._source(tensor)))

    def followers(self, name: str, calls: int) -> tuple[str, ...]:
        """The BatchNorms fed by every call of the layer, by nothing else, and alone; else none."""
        norms = {norm for norm, source in self._entered if source == name}
        entered = [source for norm, source in self._entered if norm in norms]
        alone = entered == [name] * calls and self._uses.count(name) == calls
        return tuple(sorted(norms)) if alone else ()

    def _source(self, tensor: Tensor) -> str | None:
        reference, name = self._names.get(id(tensor), (None, None))
        return name if reference is not None and reference() is tensor else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if tensors(result):
            sources = map(self._source, tensors((args, kwargs or {})))
            self._uses.extend(source for source in sources if source is not None)
        return result


class NormalEquations:
    """Sums over rows of one layer's last factor: features z (P, n) and targets t (P, out).

    A weight that several copies share is fitted to all of them, the offset to each.

    Both are added up in float64 by chunks, so that neither memory nor precision depends on the number of rows.
    """

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self.sums: list[Tensor] = []  # of z z^T, z, t z^T and t
        self.rows = 0

    def add(self, x: Tensor, index: Tensor, targets: Tensor) -> None:
        """One call's input at the drawn positions, and the dense layer's outputs there."""
        start = 0
        for part in row_chunks(self.spec, index):
            z = input_rows(self.spec, x, part).double()
            t = targets[start : start + len(part)].double().reshape(len(part), len(z), -1).transpose(0, 1)
            added = [z.mT @ z, z.sum(1)[:, None, :], t.mT @ z, t.sum(1)[:, :, None]]
            self.sums = [a + b for a, b in zip(self.sums, added, strict=True)] if self.sums else added
            start += len(part)
        self.rows += len(index)

    def solve(self, weight: Tensor, ridge: float | None, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """(weight, offset (out,)) that answer the targets best; without a ridge only the offset is fitted.

        The weight is pulled towards the current one by `ridge` in units of standardised features; features that are
        constant, and directions below CUT_OFF of the strongest, keep their current weights.
        """
        moment, mean, relation, target_mean = (total / self.rows for total in self.sums)
        old = as_matrices(self.spec, weight.detach().double())
        if intercept:
            moment, relation = moment - mean.mT @ mean, relation - target_mean @ mean
        if self.spec.copies > 1:
            moment, relation = moment.mean(0, keepdim=True), relation.mean(0, keepdim=True)
        new = old
        if ridge is not None:
            with one_thread() if moment.shape[-1] <= SMALL else nullcontext():
                new = old + _ridge_step(moment, relation - old @ moment, ridge)
        offset = (target_mean - new @ mean.mT) if intercept else torch.zeros_like(target_mean)
        return as_weight(self.spec, new), offset.reshape(-1)


def _ridge_step(moment: Tensor, relation: Tensor, ridge: float) -> Tensor:
    """(g, m, n) the D that minimises E|t - D z|^2 + ridge |D|^2 over standardised z, by `eigh` with a cut-off."""
    variance = moment.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    alive = variance > CUT_OFF**2 * variance.amax(-1, keepdim=True)
    inverse = torch.where(alive, variance, 1.0).rsqrt() * alive
    values, vectors = torch.linalg.eigh(moment * inverse[:, :, None] * inverse[:, None, :])
    kept = values > CUT_OFF * values[:, -1:]
    shrunk = torch.where(kept, 1 / (values + ridge).clamp_min(torch.finfo(values.dtype).tiny), 0.0)
    step: Tensor = (relation * inverse[:, None, :]) @ (vectors * shrunk[:, None, :]) @ vectors.mT * inverse[:, None, :]
    return step


def _prefixes(plan: RankPlan, calls: tuple[str, ...]) -> deque[tuple[str, Any]]:
    """(layer, what its correction depends on) in the order of execution.

    That is a digest of the plan up to the layer, and for layers that are called again later, up to the last of those
    calls.
    """
    chosen = dict(plan.choices)
    order = [name for name in dict.fromkeys(calls) if name in chosen]
    last = {name: position for position, name in enumerate(calls)}
    first = {name: position for position, name in reversed(list(enumerate(calls)))}
    starts = [first[name] for name in order]
    told, digest = [b""], hashlib.blake2b(digest_size=32)
    for name in order:
        digest.update(repr((name, chosen[name])).encode())
        told.append(digest.digest())
    prefixes: deque[tuple[str, Any]] = deque()
    reach = 0
    for name in order:
        reach = max(reach, last[name])
        prefixes.append((name, (name, told[bisect_right(starts, reach)])))
    return prefixes


def _stepwise(work: Callable[[Callable[[Step], None]], None]) -> Iterator[Step]:
    """Run work(emit) in a thread, because hooks cannot yield, and yield what it emits; closing ends it early."""
    steps: queue.SimpleQueue[Step | BaseException | None] = queue.SimpleQueue()
    closed, called_off = threading.Event(), stopped()

    def emit(step: Step) -> None:
        go_on()
        steps.put(step)

    def run() -> None:
        try:
            with until(lambda: closed.is_set() or called_off()):
                work(emit)
            steps.put(None)
        except BaseException as error:
            steps.put(error)

    thread = threading.Thread(target=run, name="correction", daemon=True)
    thread.start()
    try:
        while (item := steps.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
