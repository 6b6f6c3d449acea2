"""A glance: a plan measured while somebody still decides on it, on as many samples as fit into a moment.

What a measurement takes its time for is at hand when a layer of a plan is moved: what runs before it is kept, and what
it sees itself is summed up once, so that every rank of it is corrected by solving a small system. The layers behind it
are corrected on few samples. Where all of the correction fits into a moment, it is made as a measurement has it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.compression.apply import apply, chain_at, replacement_stages
from lowrank_core.compression.correct import CorrectedLayer, Overlay, factor_names, load_overlay, offset_overlay
from lowrank_core.compression.dense_pass import DensePass
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.compression.unfold import rows_of
from lowrank_core.errors import Cancelled, few
from lowrank_core.layers.data import Dataset, call, evaluating
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import place_of
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.scope import current, give_way, raise_if_cancelled, scope
from lowrank_core.running.threads import one_thread
from lowrank_core.scoring.prefix import Cuts, PrefixStore
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace

SECONDS = 0.15
"""In which a glance is corrected and takes in as many samples as it can, but for the first batch of them."""

CORRECTION_SECONDS = 0.15
"""A correction of the whole plan that takes longer is left for later. It is made only where a layer is called several
times or sees its own answers, so that it cannot be fitted as what it sees comes by."""

PATIENCE_SECONDS = 3.0
"""After which there is no glance: the network is too slow for it."""

MOST_SAMPLES = 1024

STEPS = (256, 128, 64)
"""Calibration samples on which later layers may be corrected. On fewer it is worse than the correction that they have:
ResNet-20, 12 plans near its first, 512 images: off by 0.39 points on 64, 0.55 on 32, 0.90 on 16 and 0.42 as it is."""

PASS_SECONDS = 0.1
"""Their number is such that it takes no longer than this."""

PASS = 3.0
"""Times as long as the network itself a pass takes over the layers that it fits, before one was timed."""

SUMMED = 512
"""Features of a last factor that are summed up for all ranks; of more only those of the rank that is looked at."""

LEAST_CUT = 0.8
"""Of the rank of a fit, below which a method that is not nested fits anew: of fewer components too much is missing."""

INPUT_BYTES = 2**28
"""What the moved layer sees may take this much memory."""


@dataclass(frozen=True, slots=True)
class Glance:
    """A score on the leading samples. left_out: what a measurement does and this did not; "" where it is the same."""

    score: Score
    left_out: str = ""


class TooSlow(Exception):
    """There is no glance at this network: says why."""


@dataclass(slots=True)
class _Stand:
    """What is known of the plan that others are glanced at from: its overlay, and what its layers see."""

    base: Candidate
    overlay: Overlay = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[tuple[str, str], tuple[NormalEquations, Tensor]] = field(default_factory=dict)


class Glances:
    """Plans of one network, glanced at from a plan that was measured. Threads may share it, one works at a time.

    >>> from lowrank_core.plans.plan import Choice, RankPlan
    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> base = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (3,))})
    >>> glance = Glances(workspace)(workspace.candidate(base), base.with_choice("fc1", Choice("svd", (2,))))
    >>> glance.left_out
    ''
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._stand: _Stand | None = None
        self._whole: dict[str, bool] = {}  # whether the whole correction fits, by the first layer that is moved
        self._pace: dict[str, float] = {}  # seconds for a sample on which the layers behind it are corrected
        self._prefixes: tuple[DensePass, PrefixStore] | None = None

    def __call__(self, base: Candidate, plan: RankPlan, *, seconds: float = SECONDS) -> Glance:
        """A plan that differs from the base in few layers, with the base's correction.

        Raises TooSlow where that takes more than PATIENCE_SECONDS, and Cancelled.
        """
        workspace, base, plan = self.workspace, base.plain, plan.plain
        known = workspace.scores.get(replace(base, plan=plan) if plan.choices else Candidate(plan))
        if known is not None:
            return Glance(known)
        base = workspace.quick(base)  # as at a release, at first
        if workspace.opened.evaluate is not None:
            raise TooSlow("the model file scores itself, on all its samples at once")
        began = time.monotonic()
        late = lambda: time.monotonic() - began > PATIENCE_SECONDS  # noqa: E731
        with self._lock, one_thread():
            raise_if_cancelled()
            try:
                with scope(cancelled=late):  # what is learnt here serves whoever asks next
                    moved = self._moved(base.plan, plan)
                    model, left_out = self._corrected(self._standing(base), plan, moved)
            except Cancelled:
                raise TooSlow(f"it takes more than {PATIENCE_SECONDS:.0f} s here") from None
            give_way()
            score = self._score(model, moved, began + seconds, late)
        return Glance(score, left_out)

    def _moved(self, before: RankPlan, after: RankPlan) -> list[str]:
        """The layers whose choice differs, in the order in which they run."""
        return [
            layer.name for layer in self.workspace.profile.layers if before.get(layer.name) != after.get(layer.name)
        ]

    def _standing(self, base: Candidate) -> _Stand:
        if self._stand is None or self._stand.base != base:
            self._stand = None
            self._whole.clear()
            overlay = self.workspace.corrector(base.plan, base.correction) if base.correction else {}
            self._stand = _Stand(base, overlay)
        return self._stand

    def _factors(self, name: str, method: str) -> Any:
        """A layer's factors; of a method that fits every rank anew those of the base, cut, where they are enough."""
        factorization = self.workspace.factors(name, method)
        base = None if self._stand is None else self._stand.base.plan.get(name)
        if METHODS[method].nested or base is None or base.method != method:
            return factorization
        return _Cut(factorization, base.rank)

    # ---- corrected --------------------------------------------------------------------------------------------------

    def _corrected(self, stand: _Stand, plan: RankPlan, moved: list[str]) -> tuple[nn.Module, str]:
        """A corrected copy, and what was left out of its correction."""
        workspace, correction = self.workspace, stand.base.correction
        cut = [name for name in moved if self._is_cut(stand, name, plan)]
        model = apply(workspace.model, workspace.profile, plan, self._factors)
        if correction is None or not moved:
            return load_overlay(model, stand.overlay), "; ".join(_about(cut))
        first, dense = moved[0], workspace.corrector.dense_pass(correction)
        order = list(dict.fromkeys(dense.calls))
        behind = [name for name in order[order.index(first) :] if plan.get(name)] if first in order else []
        able = [name for name in behind if self._is_able(name, dense) and correction.kind not in ("batchnorm", "bias")]
        if able != behind and not cut and self._whole.get(first, True):
            overlay, self._whole[first] = self._in_full(plan, correction)
            if overlay is not None:
                return load_overlay(model, overlay), ""
        stale = [f"{place_of(workspace.model, workspace.profile.layer(name))}.".removeprefix(".") for name in moved]
        stale += [f"{norm}.running_mean" for name in moved for norm in dense.followers.get(name, ())]
        load_overlay(model, {k: v for k, v in stand.overlay.items() if not k.startswith(tuple(stale))})
        kept = [name for name in behind if name not in able]
        if first in able:
            equations = self._equations(stand, plan, first)
            if equations is not None:
                self._settle(model, first, equations, correction, dense)
                able.remove(first)
        guess = PASS * workspace.sample_seconds * len(able) / len(order) if able else 0.0
        pace = self._pace.get(first, guess)
        samples = next((min(n, dense.samples) for n in STEPS if min(n, dense.samples) * pace < PASS_SECONDS), 0)
        fitted, left = able, list[str]()
        if not samples:  # what is moved itself has no correction that it could keep
            fitted, samples = [name for name in able if name in moved], min(STEPS[-1], dense.samples)
            left += ["later layers as they were corrected before"] * (fitted != able)
        if fitted:
            began = time.thread_time()
            self._pass(model, plan, first, fitted, samples, correction, dense)
            if fitted == able:
                self._pace[first] = (time.thread_time() - began) / samples
            left += [f"later layers corrected on {samples} of {dense.samples} samples"] * (samples < dense.samples)
        left += [f"{few(kept)} not corrected anew"] * bool(kept)
        return model, "; ".join([*left, *_about(cut)])

    def _is_cut(self, stand: _Stand, name: str, plan: RankPlan) -> bool:
        base, choice = stand.base.plan.get(name), plan.get(name)
        if base is None or choice is None or METHODS[choice.method].nested:
            return False
        return base.method == choice.method and _is_near(choice.rank, base.rank)

    def _is_able(self, name: str, dense: DensePass) -> bool:
        """Whether a layer sees everything in one call, so that it can be fitted as that comes by."""
        layer = self.workspace.profile.layer(name)
        return layer.plain and not layer.spec.table and dense.calls.count(name) == 1 and name not in dense.states

    def _in_full(self, plan: RankPlan, correction: Correction) -> tuple[Overlay | None, bool]:
        """The overlay as a measurement has it, None where that takes too long, and whether to try it again."""
        began = time.thread_time()

        def each(layer: CorrectedLayer) -> None:
            if time.thread_time() - began > CORRECTION_SECONDS and layer.done < layer.total:
                raise _Long

        overlay = None
        with suppress(_Long):
            overlay = self.workspace.corrector(plan, correction, each=each)
        return overlay, time.thread_time() - began <= CORRECTION_SECONDS

    def _settle(
        self, model: nn.Module, name: str, equations: NormalEquations, correction: Correction, dense: DensePass
    ) -> None:
        """Fit a layer's last factor in place, and whatever takes the fitted offset."""
        if not equations.rows or not all(bool(total.isfinite().all()) for total in equations.sums):
            return
        dense_model = self.workspace.model
        chain, norms = chain_at(dense_model, model, name), dense.followers.get(name, ())
        *_, last = factor_names(dense_model, self.workspace.profile.layer(name), chain)
        weight, biased = model.get_parameter(f"{last}.weight"), equations.spec.bias
        new, offset = equations.solve(weight, correction.ridge, intercept=biased or bool(norms))
        rest = offset_overlay(dense_model, f"{last}.bias" if biased else "", offset.to(weight), norms)
        load_overlay(model, {f"{last}.weight": new.to(weight)} | rest)

    def _pass(
        self,
        model: nn.Module,
        plan: RankPlan,
        first: str,
        names: list[str],
        samples: int,
        correction: Correction,
        dense: DensePass,
    ) -> None:
        """Fit layers in place on the leading calibration samples, one after the other as the network runs."""
        profile = self.workspace.profile
        data = Dataset(dense.inputs, axes=self.workspace.calibration.axes).pick(slice(0, samples))
        if self._prefixes is None or self._prefixes[0] is not dense:
            whole = Dataset(dense.inputs, axes=self.workspace.calibration.axes)
            self._prefixes = dense, PrefixStore(Cuts(self.workspace.model, profile, whole), limit_bytes=INPUT_BYTES)
        before = [layer.name for layer in profile.layers].index(first)

        def see(name: str, z: Tensor) -> None:
            raise_if_cancelled()
            spec = replacement_stages(profile.layer(name), plan)[-1]
            rows = dense.rows[name][0] // dense.samples * samples
            if rows_of(spec, z) != rows:
                return
            drawn = dense.index[name][0] < rows
            equations = NormalEquations(spec)
            equations.add(z, dense.index[name][0][drawn], dense.targets[name][0][drawn])
            self._settle(model, name, equations, correction, dense)

        with ExitStack() as hooks:
            for name in names:
                last = chain_at(self.workspace.model, model, name)[-1]
                hook = last.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
                hooks.callback(hook.remove)
            self._prefixes[1].runner(model, samples, record=[before])(data, 0)

    def _equations(self, stand: _Stand, plan: RankPlan, name: str) -> NormalEquations | None:
        """What the last factor sees and what is wanted of it: a part of what was summed up for all ranks, or new.

        None where what the layer sees in the base cannot be told.
        """
        workspace, choice = self.workspace, plan.get(name)
        assert choice is not None
        assert stand.base.correction is not None
        layer, method = workspace.profile.layer(name), choice.method
        decomposition = METHODS[method]
        stages, weights = replacement_stages(layer, plan), self._factors(name, method).weights(choice.rank)
        dense = workspace.corrector.dense_pass(stand.base.correction)
        nested = decomposition.nested and len(decomposition.axes) == 1 and len(stages) == 2
        first = weights[0]
        if nested and (name, method) in stand.sums:
            summed, widest = stand.sums[name, method]
            if _leads(layer.spec, first, widest):
                return summed.leading(stages[-1])
        x = self._input(stand, name)
        if x is None or rows_of(layer.spec, x) != dense.rows[name][0]:
            return None

        def summed_up(specs: tuple[LayerSpec, ...], weights: tuple[Tensor, ...]) -> NormalEquations:
            z = x
            with torch.no_grad():
                for spec, weight in zip(specs[:-1], weights, strict=False):
                    part = spec.build()
                    part.get_parameter("weight").copy_(weight)
                    z = part(z)
            equations = NormalEquations(specs[-1])
            equations.add(z, dense.index[name][0], dense.targets[name][0])
            return equations

        (top, *_) = decomposition.max_rank(layer.spec)
        most = min(top, SUMMED // prod(stages[-1].kernel))
        if not nested or choice.rank[0] > most:
            return summed_up(stages, weights)
        wide = self.workspace.factors(name, method).weights((most,))
        summed = summed_up(decomposition.stages(layer.spec, (most,)), wide)
        stand.sums[name, method] = summed, wide[0]
        return summed.leading(stages[-1]) if _leads(layer.spec, first, wide[0]) else summed_up(stages, weights)

    def _input(self, stand: _Stand, name: str) -> Tensor | None:
        """What goes into a layer where the base runs over the calibration samples; the latest one is kept."""
        if name in stand.inputs:
            return stand.inputs[name]
        workspace, correction = self.workspace, stand.base.correction
        assert correction is not None
        dense = workspace.corrector.dense_pass(correction)
        model = apply(workspace.model, workspace.profile, stand.base.plan, workspace.factors)
        load_overlay(model, stand.overlay)
        stand.inputs.clear()

        def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args[0].nbytes <= INPUT_BYTES:
                stand.inputs[name] = args[0].clone()  # the network may go on to change it in place
            raise _Enough

        hooks = [module.register_forward_pre_hook(lambda *_: raise_if_cancelled()) for module in model.modules()]
        place = place_of(workspace.model, workspace.profile.layer(name))
        hooks.append(model.get_submodule(place).register_forward_pre_hook(catch))
        with evaluating(model), suppress(_Enough):
            call(model, dense.inputs)
        return stand.inputs.get(name)

    # ---- measured ---------------------------------------------------------------------------------------------------

    def _score(self, model: nn.Module, moved: list[str], end: float, late: Callable[[], bool]) -> Score:
        """The score on as many samples as there is time for, at least one batch of them."""
        called_off = current().cancelled
        latest: Score | None = None
        with scope(cancelled=lambda: called_off() or (latest is None and late())):
            try:
                most = min(MOST_SAMPLES, len(self.workspace.reference))
                for score in self.workspace.measure(model, samples=most, keep=moved[0] if moved else True):
                    latest = score
                    if time.monotonic() > end:
                        break
            except Cancelled:
                if latest is None and late():
                    raise TooSlow(f"it takes more than {PATIENCE_SECONDS:.0f} s here") from None
                raise
        assert latest is not None
        return latest


@dataclass(frozen=True, slots=True)
class _Cut:
    """Factors of a rank that were fitted for a higher one: its largest components, and their parts of each factor."""

    whole: Any
    fitted: Rank

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """One weight per stage; those of a fit of its own where the rank is higher, or much lower."""
        if not _is_near(rank, self.fitted):
            weights: tuple[Tensor, ...] = self.whole.weights(rank)
            return weights
        *narrowing, last = self.whole.weights(self.fitted)
        sizes = last.transpose(0, 1).flatten(1).norm(dim=1)
        for weight in narrowing:
            sizes = sizes * weight.flatten(1).norm(dim=1)
        chosen = sizes.topk(rank[0]).indices.sort().values
        return (*(weight[chosen] for weight in narrowing), last[:, chosen])


def _is_near(rank: Rank, fitted: Rank) -> bool:
    """Whether the components of a fit serve for a rank that is a little lower."""
    return LEAST_CUT * fitted[0] <= rank[0] < fitted[0]


def _about(cut: list[str]) -> list[str]:
    return [f"{', '.join(cut)} cut from a higher rank"] if cut else []


def _leads(spec: LayerSpec, first: Tensor, widest: Tensor) -> bool:
    """Whether the rows of a first factor are the leading ones of a wider one, in each group."""
    groups = spec.groups
    narrow, wide = (weight.reshape(groups, -1, *weight.shape[1:]) for weight in (first, widest))
    return narrow.shape[1] <= wide.shape[1] and torch.equal(narrow, wide[:, : narrow.shape[1]])


class _Long(Exception):
    """The correction of the whole plan does not fit into a moment."""


class _Enough(Exception):
    """All inputs that are wanted have been seen."""
