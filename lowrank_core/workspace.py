"""Workspace: an opened model with everything that is computed once and shared by all who look at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor, nn

from lowrank_core.compression.apply import apply
from lowrank_core.compression.calibration import MomentStore, calibration_samples
from lowrank_core.compression.correct import CorrectedLayer, Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.self_check import SelfCheck, self_check
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import Dataset, data_hash, run
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import dense_cost
from lowrank_core.plans.plan import PlanFile, RankPlan
from lowrank_core.scoring.metrics import Metric
from lowrank_core.scoring.prefix import PrefixStore
from lowrank_core.scoring.scores import Reference, Score, evaluate
from lowrank_core.sources import open_any, open_source
from lowrank_core.sources._contract import open_contract
from lowrank_core.sources._inventory import Inventory, take_stock
from lowrank_core.sources._live import live_contract
from lowrank_core.sources._opened import Opened, sorted_by_class
from lowrank_core.sources._weights import Weights
from lowrank_core.store.cache import Cache
from lowrank_core.store.room import Recent, Room

MOST_SCORES = 500
"""Finished scores that are remembered with their plans: 2 MB for 20 layers, 100 MB for 1,000."""


class Workspace:
    """A model, its profile, its factors and its evaluation samples. Read-only: the model is never changed.

    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> [layer.name for layer in workspace.profile.layers]
    ['fc1', 'fc2']
    """

    def __init__(self, opened: Opened, cache: Cache | None = None, room: Room | None = None) -> None:
        """cache: where factors and moments are kept between runs; None keeps them in memory alone.

        room: the memory for all that can be computed again; several workspaces may share one.
        """
        if opened.axes is None:
            opened = replace(opened, axes=batch_axes(opened.model, opened.example_inputs))
        self._room = room or Room()
        self.opened = opened
        self.cache = cache
        self.model = opened.model
        self._discovered: ModelProfile = discover(opened.model, opened.example_inputs, opened.axes)
        self._sound: ModelProfile | None = None
        self._checking = threading.Lock()
        self._self_check: SelfCheck | None = None
        self.factors = FactorStore(
            opened.model, self._discovered, lambda name: self.moments(name).second, cache, self._room
        )
        self._dense_scores: dict[int, float] = {}
        self.scores: Recent[Candidate, Score] = Recent(MOST_SCORES)  # finished measurements on all samples
        self.plain_scores: Recent[RankPlan, Score] = Recent(MOST_SCORES)  # without correction, on some

    @classmethod
    def open(cls, ref: str, cache: Cache | None = None) -> Workspace:
        """Open a reference; raises a LowRankError that says what is wrong."""
        return cls(open_source(ref), cache)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        eval_data: Any = None,
        train_data: Any = None,
        metric: Callable[[Tensor, Tensor], Any] | Metric | str | None = None,
        *,
        evaluate: Callable[[nn.Module], Any] | None = None,
        higher_is_better: bool = True,
        cache: Cache | None = None,
        name: str | None = None,
    ) -> Workspace:
        """A workspace of a live network, without a file. It works on a copy: the network itself is never changed.

        model: what torch.compile or DataParallel wraps is taken out of it.
        example_inputs: a batch as deployed; a Tensor, a tuple for model(*x) or a dict for model(**x).
        eval_data, train_data: (inputs, targets), inputs alone in a Tensor or a dict, an iterable of such batches (a
        DataLoader), a `Dataset` of PyTorch or of this package, or a function that gives one of these.
        metric: a name (`METRICS`) or a function (outputs, targets) -> float; without one top-1 where targets are class
        indices, agreement with the dense network where there are none. evaluate(model) -> float: instead of both.

        Raises InvalidModel or InvalidData, which name the argument.

        >>> import torch
        >>> network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> workspace = Workspace.of(network, torch.zeros(1, 8), (torch.zeros(20, 8), torch.zeros(20).long()))
        >>> [layer.name for layer in workspace.profile.layers], workspace.metric.name
        (['0', '2'], 'top-1 accuracy')
        """
        contract = live_contract(
            model,
            example_inputs,
            eval_data,
            train_data,
            metric,
            evaluate=evaluate,
            higher_is_better=higher_is_better,
            name=name,
        )
        return cls(open_contract(contract), cache)

    @property
    def address(self) -> str:
        """The reference by which another process opens the same model; raises InvalidModel where it has none."""
        if self.opened.ref is None:
            raise InvalidModel(
                f"{self.name} came from Python, so no other process can open it; work in this one, or write a model "
                "file (`python -m lowrank_core new FILE`)."
            )
        return self.opened.ref

    @property
    def name(self) -> str:
        """The model's name as people see it; never compared."""
        return self.opened.name

    @property
    def profile(self) -> ModelProfile:
        """The network's layers and what they cost; once `self_check` is made, without the layers it leaves alone."""
        return self._sound or self._discovered

    @property
    def self_check(self) -> SelfCheck:
        """What the network tells of itself in a few calls, made when first asked for: all that gives figures asks."""
        with self._checking:
            if self._self_check is None:
                opened, by_sample = self.opened, self.opened.evaluate is None
                checked = self_check(
                    self.model, self._discovered, opened.example_inputs, opened.axes, by_sample=by_sample
                )
                if checked.left_alone:
                    self._sound = _without(self._discovered, checked)
                self._self_check = checked
            return self._self_check

    def require_figures(self) -> None:
        """Raise InvalidModel where the network can have no figures: random, not finite, or no answer per sample."""
        if self.self_check.refusal:
            raise InvalidModel(f"{self.name}: {self.self_check.refusal}")

    @cached_property
    def metric(self) -> Metric:
        """The metric by which the network's outputs are judged."""
        return self.opened.metric(self._eval_data)

    @cached_property
    def _eval_data(self) -> Dataset:
        return self.opened.eval_data()

    @cached_property
    def reference(self) -> Reference:
        """The evaluation samples in seeded order, with the dense outputs."""
        self.require_figures()
        return Reference(self.model, self._eval_data, self.metric)

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know about the model's data, in whole sentences."""
        notices = list(self.opened.notices)
        if sorted_by_class(self._eval_data):
            notices.append("The evaluation labels come sorted by class; they are shuffled (seed 0) before use.")
        return tuple(notices)

    @cached_property
    def calibration_pool(self) -> Dataset:
        """Training inputs, or where there are none the evaluation inputs; never labels."""
        if self.opened.train_data is None:
            return self._eval_data.unlabelled()
        pool = self.opened.train_data().unlabelled()
        run(self.model, pool.pick(slice(0, 1)), source="train_data")
        return pool

    @cached_property
    def calibration(self) -> Dataset:
        """At most 256 unlabelled samples, shuffled with seed 0."""
        return calibration_samples(self.calibration_pool)

    @cached_property
    def correction(self) -> Correction:
        """The correction that this workspace offers: least squares on `calibration`."""
        return Correction(samples=len(self.calibration), data=data_hash(self.calibration.inputs))

    @cached_property
    def moments(self) -> MomentStore:
        """Second moments of the layers' inputs on `calibration`."""
        return MomentStore(self.model, self._discovered, lambda: self.calibration, cache=self.cache, room=self._room)

    @cached_property
    def corrector(self) -> Corrector:
        """Corrects copies of the model, and remembers what it learnt for the leading layers of each plan."""
        return Corrector(self.model, self._discovered, self.factors, lambda: self.calibration_pool, room=self._room)

    @cached_property
    def prefixes(self) -> PrefixStore:
        """What copies of the model left behind on the evaluation samples, for copies that begin in the same way."""
        return PrefixStore(self.model, self._discovered, self.reference.dataset, room=self._room)

    def compress(
        self,
        plan: RankPlan,
        correction: Correction | None = None,
        *,
        each: Callable[[CorrectedLayer], None] = lambda layer: None,
    ) -> nn.Module:
        """A compressed copy, corrected where a correction is given; each(layer) is called as layers are corrected.

        Raises InvalidPlan where the plan has a layer that `self_check` leaves alone.
        """
        _ = self.self_check
        compressed = apply(self.model, self.profile, plan, self.factors)
        if correction is None:
            return compressed
        return load_overlay(compressed, self.corrector(plan, correction, each=each))

    def candidate(self, plan: RankPlan, *, corrected: bool = True) -> Candidate:
        """A plan with this workspace's correction, or without; a plan that keeps everything dense needs none."""
        return Candidate(plan, self.correction if corrected and plan.choices else None)

    def candidate_in(self, file: PlanFile, *, corrected: bool = True) -> Candidate:
        """The plan of a file with the correction it asks for: its own, none, or this workspace's where it is silent.

        samples and data of the answer are those really used here. Raises InvalidPlan for a correction that is none.
        """
        if not corrected or not file.plan.choices or file.correction is None:
            return Candidate(file.plan)
        asked = Correction.from_dict(file.correction) if file.correction else self.correction
        used = self.corrector.dense_pass(asked)
        return Candidate(file.plan, replace(asked, samples=used.samples, data=data_hash(used.inputs)))

    def measure(
        self,
        model: nn.Module,
        *,
        samples: int | None = None,
        tolerance: float | None = None,
        keep: bool | str = True,
    ) -> Iterator[Score]:
        """Scores on growing subsets; a single one where the model file brings its own evaluate(model).

        Starts from what copies that begin in the same way left behind, and ends early as `evaluate` does. keep: leave
        outputs behind for the next copy; False where nobody will go on from this one, the name of a layer where the
        next one differs in that.
        """
        if self.opened.evaluate is None:
            total = len(self.reference) if samples is None else min(samples, len(self.reference))
            names = [layer.name for layer in self._discovered.layers]
            record = [names.index(keep)] if isinstance(keep, str) else None if keep else ()
            forward = self.prefixes.runner(model, total, record=record)
            yield from evaluate(model, self.reference, samples=total, tolerance=tolerance, forward=forward)
            return
        self.require_figures()
        value = self._own_dense if model is self.model else self._own_score(model)
        drop = (self._own_dense - value) * (1 if self.opened.higher_is_better else -1)
        yield Score(
            "evaluate(model)", value, self._own_dense, 0, self.opened.higher_is_better, None, None, drop, None, None
        )

    def dense_score(self, samples: int | None = None) -> tuple[float, int]:
        """The dense network's own score and on how many samples."""
        if self.opened.evaluate is not None:
            self.require_figures()
            return self._own_dense, 0
        key = min(samples or len(self.reference), len(self.reference))
        if key not in self._dense_scores:
            self._dense_scores[key] = self.reference.dense_score(key)
        return self._dense_scores[key], key

    @cached_property
    def _own_dense(self) -> float:
        return self._own_score(self.model)

    def _own_score(self, model: nn.Module) -> float:
        assert self.opened.evaluate is not None
        try:
            return float(self.opened.evaluate(model))
        except Exception as error:
            raise InvalidModel(f"evaluate(model) of {self.name} failed: {type(error).__name__}: {error}") from error


def _without(profile: ModelProfile, checked: SelfCheck) -> ModelProfile:
    """The profile with layers left alone among those that are skipped; the network costs what it did."""
    names = {skipped.name for skipped in checked.left_alone}
    costs = [dense_cost(layer) for layer in profile.layers if layer.name in names]
    return replace(
        profile,
        layers=tuple(layer for layer in profile.layers if layer.name not in names),
        skipped=(*profile.skipped, *checked.left_alone),
        rest=replace(
            profile.rest,
            parameters=profile.rest.parameters + sum(cost.parameters for cost in costs),
            bytes=profile.rest.bytes + sum(cost.bytes for cost in costs),
            multiplies=profile.rest.multiplies + sum(cost.multiplies for cost in costs),
        ),
    )


def open_to_look(
    ref: str, cache: Cache | None = None, room: Room | None = None, report: Callable[[str], None] = lambda step: None
) -> Workspace | Inventory:
    """A model, or what weights without one tell; raises a LowRankError.

    report: called with a line once it is open, before its layers are looked at.
    """
    opened = open_any(ref)
    if isinstance(opened, Weights):
        report(f"Looking at {len(opened.tensors)} tensors")
        return take_stock(opened, cache)
    weighty = sum(next(module.parameters(recurse=False), None) is not None for module in opened.model.modules())
    report(f"Looking at {weighty} layers")
    return Workspace(opened, cache, room)


@lru_cache(maxsize=1)
def opened_once(ref: str, fingerprint: str, cache: Cache | None = None) -> Workspace:
    """The workspace of a process that works for another one, opened by the reference; raises InvalidModel.

    The fingerprint is that of the model the other one has.
    """
    workspace = Workspace.open(ref, cache)
    if workspace.profile.fingerprint != fingerprint:
        raise InvalidModel(
            f"{ref} opened in a worker has other weights ({workspace.profile.fingerprint[:19]}...) than where the work "
            f"was started ({fingerprint[:19]}...); it must be the same file everywhere, and build_model() not random."
        )
    return workspace
