"""Correction: teach the factors of a compressed network to answer as the dense one does, without labels.

Layer by layer in the order of execution, the last factor of each replacement (quick) or all of them (thorough) are
refitted by least squares from their own input, as the network compressed and corrected so far computes it, to what the
dense layer puts out for the same samples. No parameter is added. One forward pass of each network does it: a hook
solves each small system before the layer answers.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from lowrank_core.compression.apply import apply, chain_at, replacement_stages
from lowrank_core.compression.calibration import calibration_samples, named_not_finite, samples_not_finite
from lowrank_core.compression.dense_pass import DensePass, observe, stored_norms
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.least_squares import NormalEquations, TokenCounts
from lowrank_core.compression.unfold import output_rows, rows_of
from lowrank_core.compression.variable_projection import (
    Fit,
    Moments,
    chain_matrices,
    obstacle,
    refit,
    refit_table,
    sums_kept_in,
)
from lowrank_core.errors import InvalidData, InvalidModel, few
from lowrank_core.layers.data import Dataset, call, evaluating
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import Layer, ModelProfile, module_at, place_of, weight_at
from lowrank_core.networks.twin import twin
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.heap import LARGE_BYTES, give_back
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.scoring.metrics import divergence_of_scores
from lowrank_core.store.room import Room

VERSION = 3
"""Of the way factors are corrected: figures of plans that another version corrected are not used."""

MEMORY_BYTES = 2**30
"""Stored targets take at most half of this, a forward pass about the other half; fewer positions and samples else."""

MEMO_BYTES = 256 * 2**20
INPUT_BYTES = 256 * 2**20

ROUNDS = 4
"""Times that a recurrent weight is fitted anew with the states it leads to; eight change little."""

Overlay = dict[str, Tensor]

Emit = Callable[[str, int, int, Overlay, str], None]
"""emit(layer, done, total, its part of the overlay, a remark or "")"""

STILL = 1e-12
"""Inputs whose variance is below this share of their squared mean are all alike."""


@dataclass(frozen=True, slots=True, eq=False)
class CorrectedLayer:
    """One more layer is corrected, done of total; overlay: {name of a parameter or buffer: value} up to it.

    remarks: (layer, what a person should know of its correction) up to it, of those of which there is something to say.
    """

    name: str
    done: int
    total: int
    overlay: Overlay
    remarks: tuple[tuple[str, str], ...] = ()


def remarks_text(remarks: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Remarks as lines, layers of which the same is said together.

    >>> remarks_text((("a", "its inputs are alike"), ("b", "its inputs are alike")))
    ("layers 'a', 'b': its inputs are alike",)
    """
    said: dict[str, list[str]] = {}
    for name, remark in remarks:
        said.setdefault(remark, []).append(name)
    return tuple(f"layer{'s' * (len(names) > 1)} {few(names, repr)}: {remark}" for remark, names in said.items())


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
        classes: Callable[[], bool] = lambda: False,
        memory_bytes: int = MEMORY_BYTES,
        room: Room | None = None,
    ) -> None:
        """drawn(samples, seed): as `calibration_samples` of the pool, for who has them already. classes: whether the
        network answers with scores of classes.
        """
        self.model, self.profile, self.factors = model, profile, factors
        self._classes = classes
        self._pool, self._memory_bytes = pool, memory_bytes
        self._drawn = drawn or (lambda samples, seed: calibration_samples(pool(), samples, seed))
        self._lock = threading.Lock()
        room = room or Room()
        self._dense, self._inputs, self._memo = room.part(), room.part(INPUT_BYTES), room.part(MEMO_BYTES)
        self._sums = room.part(INPUT_BYTES)

    def __call__(
        self,
        plan: RankPlan,
        correction: Correction,
        *,
        each: Callable[[CorrectedLayer], None] = lambda layer: None,
    ) -> Overlay:
        """The overlay of a plan: {name of a parameter or buffer: value}. Raises InvalidPlan for a bad plan.

        each(layer) is called before the first layer, with 0 done, and after every one. Gives way and raises Cancelled
        between two layers, and between two iterations of one.
        """
        overlay, remarks = Overlay(), list[tuple[str, str]]()
        if correction.kind != "batchnorm":
            chosen = [layer for layer in self.profile.layers if plan.get(layer.name) is not None]
            remarks += [(layer.name, words) for layer in chosen if (words := _shared(layer))]

        def emit(name: str, done: int, total: int, part: Overlay, remark: str) -> None:
            give_way()
            overlay.update(part)
            remarks.extend([(name, remark)] if remark else [])
            each(CorrectedLayer(name, done, total, dict(overlay), tuple(remarks)))

        emit("", 0, len(plan.choices) - len(remarks), {}, "")
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
        if correction.kind == "batchnorm" or dense.calls.count(name) != 1 or layer.shared or layer.spec.bag:
            return self(plan, correction)
        fitting = self._fitting(compressed, plan, name, correction)
        key = correction.samples, correction.seed, name
        summed = self._sums.get(key) if fitting.whole else None
        x = self._input_of(name, correction, dense) if summed is None or name in dense.answering else None
        if summed is None:
            assert x is not None
            fitting.equations.add(fitting.seen(x), dense.index[name][0], dense.targets[name][0])
            if fitting.whole:
                self._sums.put(key, fitting.equations, fitting.equations.bytes)
        else:
            fitting = replace(fitting, equations=summed)
        fitted = self._solved(compressed, fitting, correction, dense.followers.get(name, ()))
        return fitted[0] if x is None else self._answering(compressed, plan, fitting, correction, dense, x, fitted)[0]

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
        """Refit or shift factors: one pass, and more for each layer that is called several times."""
        dense = self.dense_pass(correction)
        compressed = apply(self.model, self.profile, plan, self.factors)
        shared = {layer.name for layer in self.profile.layers if layer.shared}  # a refit suits one end, not the other
        todo = deque(entry for entry in _prefixes(plan, dense.calls) if entry[0] not in shared)
        total = len(todo)

        def settle(part: Overlay, remark: str = "") -> None:
            name, prefix = todo.popleft()
            self._memo.put((correction, prefix), (part, remark), _overlay_bytes(part))
            load_overlay(compressed, part)
            emit(name, total - len(todo), total, part, remark)

        while todo:
            fitted: tuple[Overlay, str] | None = self._memo.get((correction, todo[0][1]))
            if fitted is not None:
                settle(*fitted)
            elif todo[0][0] in dense.states:
                settle(*self._taught(compressed, plan, todo[0][0], correction, dense))
            else:
                self._pass(compressed, plan, correction, dense, todo, settle)

    def _taught(
        self, compressed: nn.Module, plan: RankPlan, name: str, correction: Correction, dense: DensePass
    ) -> tuple[Overlay, str]:
        """Refit a weight that sees its own answers again: on the dense network's states, then on those it leads to too.
        Of a layer that only some rows go through, on those of the dense network alone: others have no answers there.

        Fitted on the dense network's alone it never learns to come back to them; on its own alone, which each fit
        changes, it gets worse. So the network runs after each fit, and its states join those that are there, with the
        dense network's answers of the same step (dataset aggregation; Ross, Gordon & Bagnell, AISTATS 2011).
        """
        fitting = self._fitting(compressed, plan, name, correction)
        index, targets = dense.index[name], dense.targets[name]
        for states, answers in zip(dense.states[name], targets, strict=True):
            fitting.equations.add(fitting.seen(states), torch.arange(len(states)), answers)
        calls = count()

        def join(z: Tensor) -> None:
            call_number = next(calls) % len(index)
            fitting.equations.add(z, index[call_number], targets[call_number])
            if call_number + 1 == len(index):
                raise _Enough

        fitted = self._solved(compressed, fitting, correction, ())
        for _ in range(ROUNDS if self.profile.layer(name).stepwise else 0):
            load_overlay(compressed, fitted[0])
            hook = fitting.on_input(join)
            with evaluating(compressed), suppress(_Enough):
                call(compressed, dense.inputs)
            hook.remove()
            fitted = self._solved(compressed, fitting, correction, ())
        return fitted

    def _pass(
        self,
        compressed: nn.Module,
        plan: RankPlan,
        correction: Correction,
        dense: DensePass,
        todo: deque[tuple[str, Any]],
        settle: Callable[..., None],
    ) -> None:
        """Run the compressed network and settle layers as their last call comes by.

        A layer that has answered before it was settled has sent on what will not hold: then the pass ends there.
        """
        seen: dict[str, int] = {}

        def learn(fitting: _Fitting, z: Tensor) -> None:
            """Before the factors that are fitted answer, so that they answer once, and as they will from then on."""
            name = fitting.layer.name
            index, targets = dense.index[name], dense.targets[name]
            if not todo or name != todo[0][0] or seen.get(name) == len(index):  # all is seen, and now it is fitted
                return
            call_number = seen[name] = seen.get(name, 0) + 1
            if fitting.rows(z) != dense.rows[name][call_number - 1]:  # other rows than there
                settle({})
                return
            fitting.equations.add(z, index[call_number - 1], targets[call_number - 1])
            if call_number < len(index):
                return
            fitted = self._solved(compressed, fitting, correction, dense.followers.get(name, ()))
            settle(*self._answering(compressed, plan, fitting, correction, dense, z, fitted))
            fitting.equations.clear()
            if call_number > 1 or not todo or todo[0][0] in dense.states:
                raise _Enough

        if dense.bytes > LARGE_BYTES:
            give_back()
        with ExitStack() as hooks, evaluating(compressed), suppress(_Enough):
            for name, _ in todo:
                fitting = self._fitting(compressed, plan, name, correction)
                hooks.callback(fitting.on_input(partial(learn, fitting)).remove)
            call(compressed, dense.inputs)
            if todo:
                raise InvalidModel(
                    f"layer {todo[0][0]!r} was called less often in the compressed network than in the dense one; "
                    "a network whose path depends on its values cannot be corrected."
                )

    def _fitting(self, compressed: nn.Module, plan: RankPlan, name: str, correction: Correction) -> _Fitting:
        """What is fitted of one layer, and as yet no row to fit it to."""
        layer = self.profile.layer(name)
        stages = replacement_stages(layer, plan)
        thorough = correction.kind == "thorough"
        why = obstacle(layer.spec, stages) if thorough else None
        whole = thorough and why is None
        equations: NormalEquations | TokenCounts
        if whole and layer.spec.table:
            equations = TokenCounts(layer.spec)
        else:
            spec, kind = (layer.spec, sums_kept_in(layer.spec)) if whole else (stages[-1], torch.float64)
            equations = NormalEquations(spec, kind, finite_only=thorough)
        remark = f"only its last factor is refitted: {why}" if why else ""
        return _Fitting(layer, stages, chain_at(self.model, compressed, name), whole, equations, remark)

    def _solved(
        self, compressed: nn.Module, fitting: _Fitting, correction: Correction, followers: tuple[str, ...]
    ) -> tuple[Overlay, str]:
        """The new values of one layer's factors, and of whatever takes the fitted offset, with a remark or "".

        Nothing where no row came.
        """
        equations, layer = fitting.equations, fitting.layer
        if not equations.rows:
            return {}, _none_finite(equations)
        names = factor_names(self.model, layer, fitting.chain)
        weights = [compressed.get_parameter(f"{name}.weight") for name in names]
        biased = fitting.stages[-1].bias
        if isinstance(equations, TokenCounts):
            share = equations.counts / equations.rows
            fit = refit_table(weights, share, weight_at(self.model, layer), ridge=correction.ridge)
            return _values(names, weights, fit), _helpless(fit)
        if not all(bool(total.isfinite().all()) for total in equations.sums):
            raise InvalidData(self._unfit(layer.name, correction))
        intercept = biased or bool(followers)
        if fitting.whole:
            second, mean, relation, target_mean = equations.means(intercept=intercept)
            still = intercept and float(second.diagonal(dim1=-2, dim2=-1).amax()) <= STILL * float(mean.square().amax())
            fit = refit(
                layer.spec,
                fitting.stages,
                weights,
                Moments(torch.zeros_like(second) if still else second, relation, equations.rows),
                weight_at(self.model, layer),
                ridge=correction.ridge,
            )
            offset = (target_mean - chain_matrices(layer.spec, fitting.stages, fit.weights) @ mean.mT).reshape(-1)
            part = _values(names, weights, fit)
            remark = "all its inputs are alike, so that only its offset is fitted" if still else _helpless(fit)
        else:
            ridge = correction.ridge if correction.kind in ("thorough", "least_squares") else None
            last, offset = equations.solve(weights[-1], ridge, intercept=intercept)
            part = {} if ridge is None else {f"{names[-1]}.weight": last.to(weights[-1])}
            remark = fitting.remark
        part |= offset_overlay(self.model, f"{names[-1]}.bias" if biased else "", offset.to(weights[-1]), followers)
        return part, _none_finite(equations) or remark or _few_rows(fitting)

    def _answering(
        self,
        compressed: nn.Module,
        plan: RankPlan,
        fitting: _Fitting,
        correction: Correction,
        dense: DensePass,
        x: Tensor,
        fitted: tuple[Overlay, str],
    ) -> tuple[Overlay, str]:
        """What was fitted of a layer; where its answers are scores of classes, the last factor alone if that is nearer.

        The least squares of all factors give up what varies least among the scores, which may be what tells two classes
        apart; the divergence of the distributions on the same samples decides. x: what goes into the layer.
        """
        name, told = fitting.layer.name, fitting.whole and not fitting.equations.left_out
        if not (told and name in dense.answering and len(dense.index[name]) == 1 and self._classes()):
            return fitted
        quick = replace(correction, kind="least_squares")
        alone = self._fitting(compressed, plan, name, quick)
        alone.equations.add(alone.seen(x), dense.index[name][0], dense.targets[name][0])
        last = self._solved(compressed, alone, quick, ())
        index, scores = dense.index[name][0], dense.targets[name][0].double()

        def divergence(part: Overlay) -> float:
            factors = {".".join(key.split(".")[-2:]): value for key, value in part.items()}  # as the chain has them
            with evaluating(fitting.chain):
                given = functional_call(fitting.chain, factors, (x,))
            return divergence_of_scores(output_rows(fitting.layer.spec, given, index).double(), scores, 1)

        return fitted if divergence(fitted[0]) <= divergence(last[0]) else last

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
            emit(name, len(seen), len(norms), part, "")

        with ExitStack() as hooks, evaluating(compressed):
            for name, _ in plan.choices:
                chain = chain_at(self.model, compressed, name)
                hooks.callback(chain.register_forward_pre_hook(lambda *_: begun.append(True)).remove)
            for name, norm in norms.items():
                hooks.callback(norm.register_forward_pre_hook(lambda _, args, to=name: estimate(to, args[0])).remove)
            call(compressed, dense.inputs)
        emit("", len(norms), len(norms), {}, "")


def _shared(layer: Layer) -> str:
    """Why the factors of a layer are not refitted; "" where they serve it alone."""
    if layer.tied:
        return f"it shares its factors with {few([one.name for one in layer.tied], repr)}; a refit would suit one"
    return "the network multiplies by its factors in several ways; a refit would suit one" if layer.ways else ""


def factor_names(model: nn.Module, layer: Layer, chain: nn.Sequential) -> list[str]:
    """The names of a layer's factors in a compressed copy of the model."""
    return [f"{place_of(model, layer)}.{number}".removeprefix(".") for number in range(len(chain))]


def offset_overlay(model: nn.Module, bias: str, offset: Tensor, followers: tuple[str, ...]) -> Overlay:
    """What takes a fitted offset: the bias of that name, or where that is "" the means that the followers take off."""
    if bias:
        return {bias: offset}
    means = {f"{follower}.running_mean": model.get_buffer(f"{follower}.running_mean") for follower in followers}
    return {name: mean - offset.to(mean) for name, mean in means.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Fitting:
    """What is fitted of one layer: all factors of its chain (whole), or the last one.

    equations: of the rows that it is fitted to, inputs of the layer or of the last factor. remark: what a person should
    know of it beforehand, or "".
    """

    layer: Layer
    stages: tuple[LayerSpec, ...]
    chain: nn.Sequential
    whole: bool
    equations: NormalEquations | TokenCounts
    remark: str

    def rows(self, x: Tensor) -> int:
        """How many rows come out where x goes into the factors that are fitted."""
        return x.numel() if isinstance(self.equations, TokenCounts) else rows_of(self.equations.spec, x)

    def seen(self, x: Tensor) -> Tensor:
        """What goes into the factors that are fitted where x goes into the layer."""
        if not self.whole:
            with evaluating(self.chain):
                for part in list(self.chain)[:-1]:
                    x = part(x)
        return x

    def on_input(self, learn: Callable[[Tensor], None]) -> RemovableHandle:
        """Call learn(x) with what goes into the factors that are fitted, before they answer."""

        def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            learn(args[0] if args else next(iter(kwargs.values())))

        return self.chain[0 if self.whole else -1].register_forward_pre_hook(hear, with_kwargs=True)


def _values(names: list[str], weights: list[nn.Parameter], fit: Fit) -> Overlay:
    """The fitted factors by the names of the parameters that they replace."""
    return {f"{name}.weight": new.to(old) for name, new, old in zip(names, fit.weights, weights, strict=True)}


def _helpless(fit: Fit) -> str:
    return "no factor could be bettered on the samples, so that they stay as they are" if fit.depth == "none" else ""


def _none_finite(equations: NormalEquations | TokenCounts) -> str:
    if not equations.left_out:
        return ""
    left = f"{equations.left_out:,} of {equations.left_out + equations.rows:,} rows are NaN or infinite"
    return f"{left} and were left out" if equations.rows else f"{left}, so that it is not corrected"


def _few_rows(fitting: _Fitting) -> str:
    rows, inputs = fitting.equations.rows, fitting.layer.spec.fan_in
    if not fitting.whole or rows >= inputs:
        return ""
    return f"{rows:,} rows tell less than its {inputs:,} inputs: what they leave open stays as in the dense layer"


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
