"""Correction: teach the factors of a compressed network to answer as the dense one does, without labels.

Layer by layer in the order of execution, the last factor of each replacement is refitted by least squares from its
own input, as the network compressed and corrected so far computes it, to what the dense layer puts out for the same
samples. No parameter is added. One forward pass of each network does it: a hook solves each small system and
recomputes the layer's output before it goes on.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.compression.apply import apply, chain_at, replacement_stages
from lowrank_core.compression.calibration import calibration_samples, named_not_finite, samples_not_finite
from lowrank_core.compression.dense_pass import DensePass, observe, stored_norms
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.compression.unfold import rows_of
from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.layers.data import Dataset, call, evaluating
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import ModelProfile, module_at, place_of
from lowrank_core.networks.twin import twin
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.heap import LARGE_BYTES, give_back
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.store.room import Room

VERSION = 2
"""Of the way factors are corrected: figures of plans that another version corrected are not used."""

MEMORY_BYTES = 2**30
"""Stored targets take at most half of this, a forward pass about the other half; fewer positions and samples else."""

MEMO_BYTES = 256 * 2**20
INPUT_BYTES = 256 * 2**20

ROUNDS = 4
"""Times that a recurrent weight is fitted anew with the states it leads to; eight change little."""

Overlay = dict[str, Tensor]

Emit = Callable[[str, int, int, Overlay], None]
"""emit(layer, done, total, its part of the overlay)"""


@dataclass(frozen=True, slots=True, eq=False)
class CorrectedLayer:
    """One more layer is corrected, done of total; overlay: {name of a parameter or buffer: value} up to it."""

    name: str
    done: int
    total: int
    overlay: Overlay


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
        drawn: Callable[[int, int], Dataset] | None = None,
        memory_bytes: int = MEMORY_BYTES,
        room: Room | None = None,
    ) -> None:
        """drawn(samples, seed): as `calibration_samples` of the pool, for who has them already."""
        self.model, self.profile, self.factors = model, profile, factors
        self._pool, self._memory_bytes = pool, memory_bytes
        self._drawn = drawn or (lambda samples, seed: calibration_samples(pool(), samples, seed))
        self._lock = threading.Lock()
        room = room or Room()
        self._dense, self._inputs, self._memo = room.part(), room.part(INPUT_BYTES), room.part(MEMO_BYTES)

    def __call__(
        self,
        plan: RankPlan,
        correction: Correction,
        *,
        each: Callable[[CorrectedLayer], None] = lambda layer: None,
    ) -> Overlay:
        """The overlay of a plan: {name of a parameter or buffer: value}. Raises InvalidPlan for a bad plan.

        each(layer) is called before the first layer, with 0 done, and after every one. Gives way and raises Cancelled
        between two layers.
        """
        overlay = Overlay()

        def emit(name: str, done: int, total: int, part: Overlay) -> None:
            give_way()
            overlay.update(part)
            each(CorrectedLayer(name, done, total, dict(overlay)))

        emit("", 0, len(plan.choices), {})
        work = self._batchnorms if correction.kind == "batchnorm" else self._factors
        work(plan, correction, emit)
        return overlay

    def alone(self, compressed: nn.Module, plan: RankPlan, correction: Correction) -> Overlay:
        """The overlay of a plan with one layer, for its compressed copy; runs little more than the layer.

        The layer's inputs are the dense network's: they are kept, with those of the layers that run after it, up to
        INPUT_BYTES.
        """
        name = plan.choices[0][0]
        dense = self.dense_pass(correction)
        layer = self.profile.layer(name)
        if correction.kind == "batchnorm" or dense.calls.count(name) != 1 or layer.tied or layer.spec.bag:
            return self(plan, correction)
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
        inputs: dict[str, Tensor] = self._inputs.get(key) or {}
        if name in inputs:
            return inputs[name]
        copied = twin(self.model, self.profile.layers)
        seen: dict[str, Tensor] = {}
        names = [n for n in dict.fromkeys(dense.calls) if dense.calls.count(n) == 1]
        names = names[names.index(name) :]

        def catch(at: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if seen and _overlay_bytes({**seen, at: x}) > INPUT_BYTES:
                raise _Enough
            seen[at] = x.clone()  # the network may go on to change it in place
            if at == names[-1]:
                raise _Enough

        for at in names:
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
            dense: DensePass | None = self._dense.get(key)
            if dense is None:
                data = self._drawn(correction.samples, correction.seed)
                dense = observe(self.model, self.profile, data, correction.seed, self._memory_bytes)
                self._dense.clear()
                self._dense.put(key, dense, dense.bytes)
            return dense

    def _factors(self, plan: RankPlan, correction: Correction, emit: Emit) -> None:
        """Refit or shift last factors: one pass, and more for each layer that is called several times."""
        dense = self.dense_pass(correction)
        compressed = apply(self.model, self.profile, plan, self.factors)
        tied = {layer.name for layer in self.profile.layers if layer.tied}  # a refit would suit one end, not the other
        todo = deque(entry for entry in _prefixes(plan, dense.calls) if entry[0] not in tied)
        total = len(todo)

        def settle(part: Overlay) -> None:
            name, prefix = todo.popleft()
            self._memo.put((correction, prefix), part, _overlay_bytes(part))
            load_overlay(compressed, part)
            emit(name, total - len(todo), total, part)

        while todo:
            fitted: Overlay | None = self._memo.get((correction, todo[0][1]))
            if fitted is not None:
                settle(fitted)
            elif todo[0][0] in dense.states:
                settle(self._taught(compressed, plan, todo[0][0], correction, dense))
            else:
                self._pass(compressed, plan, correction, dense, todo, settle)

    def _taught(
        self, compressed: nn.Module, plan: RankPlan, name: str, correction: Correction, dense: DensePass
    ) -> Overlay:
        """Refit a weight that sees its own answers again: on the dense network's states, then on those it leads to too.
        Of a layer that only some rows go through, on those of the dense network alone: others have no answers there.

        Fitted on the dense network's alone it never learns to come back to them; on its own alone, which each fit
        changes, it gets worse. So the network runs after each fit, and its states join those that are there, with the
        dense network's answers of the same step (dataset aggregation; Ross, Gordon & Bagnell, AISTATS 2011).
        """
        *first, last = chain_at(self.model, compressed, name)
        equations = NormalEquations(replacement_stages(self.profile.layer(name), plan)[-1])
        index, targets = dense.index[name], dense.targets[name]
        with evaluating(compressed):
            for states, answers in zip(dense.states[name], targets, strict=True):
                z = states
                for part in first:
                    z = part(z)
                equations.add(z, torch.arange(len(z)), answers)
        calls = count()

        def join(_: nn.Module, args: tuple[Tensor]) -> None:
            call_number = next(calls) % len(index)
            equations.add(args[0], index[call_number], targets[call_number])
            if call_number + 1 == len(index):
                raise _Enough

        fitted = self._solved(compressed, name, equations, correction, ())
        for _ in range(ROUNDS if self.profile.layer(name).stepwise else 0):
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

        def learn(name: str, spec: LayerSpec, z: Tensor) -> None:
            """Before a last factor answers, so that it answers once, and as it will from then on."""
            if not todo or name != todo[0][0]:
                return
            call_number = seen[name] = seen.get(name, 0) + 1
            equations = sums.setdefault(name, NormalEquations(spec))
            index, targets = dense.index[name], dense.targets[name]
            if rows_of(spec, z) != dense.rows[name][call_number - 1]:  # other rows than there
                settle({})
                return
            equations.add(z, index[call_number - 1], targets[call_number - 1])
            if call_number < len(index):
                return
            settle(self._solved(compressed, name, equations, correction, dense.followers.get(name, ())))
            if call_number > 1 or not todo or todo[0][0] in dense.states:
                raise _Enough

        if dense.bytes > LARGE_BYTES:
            give_back()
        with ExitStack() as hooks, evaluating(compressed), suppress(_Enough):
            for name, _ in todo:
                spec = replacement_stages(self.profile.layer(name), plan)[-1]
                last = chain_at(self.model, compressed, name)[-1]
                hook = last.register_forward_pre_hook(lambda _, args, to=(name, spec): learn(to[0], to[1], args[0]))
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
        """The new values of one layer's last factor, and of whatever takes the fitted offset; {} where no row came."""
        if not equations.rows:
            return {}
        chain = chain_at(self.model, compressed, name)
        last = f"{place_of(self.model, self.profile.layer(name))}.{len(chain) - 1}".removeprefix(".")
        weight = compressed.get_parameter(f"{last}.weight")
        ridge = correction.ridge if correction.kind == "least_squares" else None
        biased = equations.spec.bias
        if not all(bool(total.isfinite().all()) for total in equations.sums):
            raise InvalidData(self._unfit(name, correction))
        new, offset = equations.solve(weight, ridge, intercept=biased or bool(followers))
        part = {} if ridge is None else {f"{last}.weight": new.to(weight)}
        if biased:
            part[f"{last}.bias"] = offset.to(weight)
        else:
            for follower in followers:
                mean = self.model.get_buffer(f"{follower}.running_mean")
                part[f"{follower}.running_mean"] = mean - offset.to(mean)
        return part

    def _unfit(self, name: str, correction: Correction) -> str:
        """Why a layer cannot be corrected whose inputs or answers are not finite."""
        dense = self.dense_pass(correction)
        data = Dataset(dense.inputs, axes=self._pool().axes).pick(slice(0, dense.samples))
        bad = samples_not_finite(self.model, self.profile, name, data)
        where = (
            f"on {bad:,} of {dense.samples:,} calibration samples{named_not_finite(self._pool())}"
            if bad
            else "once layers before it are factors"
        )
        return (
            f"layer {name!r} cannot be corrected: what goes into it or comes out is NaN or infinite {where}; take such "
            "samples out of train_data() (where there is none, of eval_data()), or go on without the correction."
        )

    def _batchnorms(self, plan: RankPlan, correction: Correction, emit: Emit) -> None:
        """Re-estimate mean and variance of each BatchNorm behind the first replaced layer, in the order they run."""
        dense = self.dense_pass(correction)
        compressed = apply(self.model, self.profile, plan, self.factors)
        norms = stored_norms(compressed)
        begun: list[bool] = []
        seen: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

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
            load_overlay(compressed, part)
            emit(name, len(seen), len(norms), part)

        with ExitStack() as hooks, evaluating(compressed):
            for name, _ in plan.choices:
                chain = chain_at(self.model, compressed, name)
                hooks.callback(chain.register_forward_pre_hook(lambda *_: begun.append(True)).remove)
            for name, norm in norms.items():
                hooks.callback(norm.register_forward_pre_hook(lambda _, args, to=name: estimate(to, args[0])).remove)
            call(compressed, dense.inputs)
        emit("", len(norms), len(norms), {})


def reporting() -> Callable[[CorrectedLayer], None]:
    """For `each` of a correction that somebody watches: reports which layer comes next, and how long the rest takes."""
    pace = Pace(1.0)

    def each(layer: CorrectedLayer) -> None:
        words = f"correcting layer {min(layer.done + 1, layer.total)} of {layer.total}"
        report(Progress(words, pace(layer.done / layer.total) if layer.total else None))

    return each


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
            tensor = owner.get_parameter(leaf) if leaf in owner._parameters else owner.get_buffer(leaf)
            if tensor.shape != value.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, but the overlay's is {tuple(value.shape)}")
            tensor.copy_(value)
    return compressed


def _prefixes(plan: RankPlan, calls: tuple[str, ...]) -> deque[tuple[str, Any]]:
    """(layer, digest of the part of the plan that its correction depends on) in the order of execution.

    That is a digest of the plan up to the layer, and for layers that are called again later, up to the last of those
    calls.
    """
    chosen = dict(plan.choices)
    order = [name for name in dict.fromkeys(calls) if name in chosen]
    last = {name: position for position, name in enumerate(calls)}
    first = {name: position for position, name in reversed(list(enumerate(calls)))}
    starts = [first[name] for name in order]
    digests, digest = [b""], hashlib.blake2b(digest_size=32)
    for name in order:
        digest.update(repr((name, chosen[name])).encode())
        digests.append(digest.digest())
    prefixes: deque[tuple[str, Any]] = deque()
    reach = 0
    for name in order:
        reach = max(reach, last[name])
        prefixes.append((name, (name, digests[bisect_right(starts, reach)])))
    return prefixes
