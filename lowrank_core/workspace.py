"""Workspace: an opened model with everything that is computed once and shared by all who look at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, lru_cache
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank_core.compression import calibration as calibrating
from lowrank_core.compression import correct, factors
from lowrank_core.compression.apply import apply, in_stored_form
from lowrank_core.compression.calibration import MomentStore, calibration_samples
from lowrank_core.compression.correct import CorrectedLayer, Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.self_check import SelfCheck, self_check
from lowrank_core.errors import InvalidData, InvalidModel, LowRankError, few
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import Dataset, Outputs, data_hash, run, tensors
from lowrank_core.networks.answers import answers_hash, drawn
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import SAMPLES, Correction
from lowrank_core.plans.cost import check_plan, dense_cost
from lowrank_core.plans.plan import PlanFile, RankPlan
from lowrank_core.running.scope import scope
from lowrank_core.running.threads import one_thread
from lowrank_core.scoring.judgement import judgement
from lowrank_core.scoring.judging import Judged, judge
from lowrank_core.scoring.metrics import Metric
from lowrank_core.scoring.prefix import Cuts, PrefixStore
from lowrank_core.scoring.scores import Reference, Score, evaluate
from lowrank_core.sources import open_any, open_source
from lowrank_core.sources._contract import open_contract
from lowrank_core.sources._inventory import Inventory, take_stock
from lowrank_core.sources._live import live_contract
from lowrank_core.sources._opened import COMPARED, Opened, more_notice, not_finite_notice, of_one_class, sorted_by_class
from lowrank_core.sources._weights import Weights
from lowrank_core.store.cache import Cache
from lowrank_core.store.key import NetworkKey, named
from lowrank_core.store.reference import with_parts
from lowrank_core.store.room import Recent, Room

BATCH = 64
"""Samples that go through a network at once where the rows of routed layers are counted."""

TIMED, SLOW_SECONDS = (1, 16, 16), 0.25
"""Batches of so many samples tell how long one takes; after a sample that takes so long no more are timed."""

MOST_SCORES = 500
"""Finished scores that are remembered with their plans: 2 MB for 20 layers, 100 MB for 1,000."""


class Workspace:
    """A model, its profile, its factors and its evaluation samples. Read-only: the model is never changed.

    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> [layer.name for layer in workspace.profile.layers]
    ['fc1', 'fc2']
    """

    def __init__(
        self, opened: Opened, cache: Cache | None = None, room: Room | None = None, key: NetworkKey | None = None
    ) -> None:
        """cache: where factors and moments are kept between runs; None keeps them in memory alone.

        room: the memory for all that can be computed again; several workspaces may share one. key: the name that the
        same network on the same data has in the process that this one works for; without it computed when needed.
        """
        if key is not None:
            self.key = key
        if opened.axes is None:
            opened = replace(opened, axes=batch_axes(opened.model, opened.example_inputs))
        self._room = room or Room()
        self.opened = opened
        self.cache = cache
        self.model = opened.model
        self._discovered: ModelProfile = discover(opened.model, opened.example_inputs, opened.axes, self._batches)
        self._sound: ModelProfile | None = None
        self._checking = threading.Lock()
        self._self_check: SelfCheck | None = None
        self.factors = FactorStore(
            opened.model, self._discovered, lambda name: self.moments(name).second, cache, self._room
        )
        self._forget_scores()

    def _forget_scores(self) -> None:
        self._dense_scores: dict[int, float] = {}
        self._corrections: Recent[Correction, Correction] = Recent(MOST_SCORES)
        self.scores: Recent[Candidate, Score] = Recent(MOST_SCORES)  # finished measurements on all samples
        self.plain_scores: Recent[RankPlan, Score] = Recent(MOST_SCORES)  # without correction, on some

    @classmethod
    def open(
        cls,
        ref: str,
        cache: Cache | None = None,
        outputs: Sequence[str | int] = (),
        key: NetworkKey | None = None,
        weights: str | Path | None = None,
        *,
        data: str | Path | None = None,
        train_data: str | Path | None = None,
        preprocess: str | None = None,
        text: str | Path | None = None,
    ) -> Workspace:
        """Open a reference; raises a LowRankError that says what is wrong. key: as in `Workspace`.

        outputs: those that are judged, by name or place; without any those that the model file names, or `judge` finds.
        weights: a file with the weights that the network gets, 'run.ckpt', or 'run.ckpt#ema' for those under a key.
        data, train_data: files or folders of samples; preprocess: how they become inputs, as `--preprocess` says it;
        text: a file that a causal language model is judged on.
        """
        opened = open_source(
            with_parts(ref, weights=weights, data=data, train_data=train_data, preprocess=preprocess, text=text)
        )
        if not outputs:
            return cls(opened, cache, key=key)
        workspace = cls(replace(opened, outputs=tuple(outputs)), cache, key=key)
        _ = workspace.judged
        return workspace

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        eval_data: Any = None,
        train_data: Any = None,
        metric: Callable[[Tensor, Tensor], Any] | Metric | str | None = None,
        *,
        outputs: str | int | Sequence[str | int] = (),
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
        indices, R2 where they are numbers, and without targets agreement with the dense network where outputs are class
        scores, else R2 against it. outputs: those that are judged, by name or place; see `scoring.judging`.
        evaluate(model) -> float: instead of all these.

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
            outputs=outputs,
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
        return self.judged.metric

    @cached_property
    def judged(self) -> Judged:
        """Which outputs are judged, and how. Raises InvalidData where none can be."""
        data = self._eval_data
        return self.judge(Dataset(data.inputs) if self.opened.evaluate is not None else data, self.opened.outputs)

    def judge(self, data: Dataset, outputs: Sequence[str | int]) -> Judged:
        """How outputs, by name or place, are judged on such samples; without any those that are found."""
        opened = self.opened
        where = f"eval_data{'()' if opened.refused else ''}"
        try:
            given = opened.metric(data)
            return judge(self.model, data, given, outputs, where=where, remedy=opened.own_metric)
        except InvalidData as error:
            raise InvalidData(f"{opened.refused}{error}") from error

    def judging(self, outputs: Sequence[str | int]) -> Workspace:
        """The same network with other outputs judged, by name or place; it shares all that does not depend on that."""
        other = copy(self)
        other.opened = replace(self.opened, outputs=tuple(outputs))
        for name in ("judged", "reference", "prefixes", "cuts", "key", "identity", "depends"):
            other.__dict__.pop(name, None)
        other._forget_scores()
        _ = other.judged
        return other

    @cached_property
    def _eval_data(self) -> Dataset:
        return self.opened.eval_data()

    def _batches(self) -> Iterator[Any]:
        """The evaluation inputs batch by batch; none where they cannot be read, which is said when they are scored."""
        try:
            data = self._eval_data
        except LowRankError:
            return
        for start in range(0, len(data), BATCH):
            yield data.pick(slice(start, start + BATCH)).inputs

    @cached_property
    def key(self) -> NetworkKey:
        """The name of this network on its data; computed once, in one thread, and handed to workers. See `NetworkKey`.

        Two samples that change places, or one that changes, give another key, as do other labels.
        """
        opened, answered, data = self.opened, "", ""
        judged: list[object] = []
        if opened.evaluate is not None:
            judged = ["evaluate(model)", opened.higher_is_better, sorted(opened.code.values())]
        if opened.evaluate is None or "eval_data" in opened.provides:  # else nobody judges answers to example inputs
            few = drawn(self._eval_data)
            data = self._eval_data.hash
            with one_thread():
                answered = answers_hash(self.model, few)
                try:
                    judged += judgement(self.metric, self.model, few, self.judged.names)
                except LowRankError:
                    if opened.evaluate is None:  # which needs no metric
                        raise
        return NetworkKey(self.profile.fingerprint, answered, named(judged), data)

    @cached_property
    def identity(self) -> str:
        """One word for all that was opened: the key, the name for people, training samples, sizes of example inputs.

        Whoever shows figures of one model at a time keeps them by it; training samples that are refused count as such.
        """
        try:
            train = None if self.train_data is None else data_hash((self.train_data.inputs, self.train_data.targets))
        except LowRankError as error:
            train = str(error)
        sizes = [(str(t.dtype), list(t.shape)) for t in tensors(self.opened.example_inputs)]  # they may be random
        return named([self.key.digest, self.name, train, sizes])

    @cached_property
    def train_data(self) -> Dataset | None:
        """The training samples; None where the model brings none."""
        return None if self.opened.train_data is None else self.opened.train_data()

    @cached_property
    def depends(self) -> tuple[Any, ...]:
        """What every figure of a compressed copy depends on, as JSON: stores name theirs by it and what else they know.

        The key, the calibration samples, and the versions of what compresses; never the release of the product.
        """
        try:
            calibrated = self._calibration_hash
        except LowRankError as error:  # then nothing is corrected, and nothing learnt from inputs
            calibrated = str(error)
        return (self.key.digest, calibrated, factors.VERSION, calibrating.VERSION, correct.VERSION)

    def name_for(self, what: str, version: int, **about: Any) -> str:
        """The name under which a store keeps figures of compressed copies; version: of the way they are computed."""
        return named([what, version, *self.depends, about])

    @cached_property
    def reference(self) -> Reference:
        """The evaluation samples in seeded order, with the dense outputs."""
        self.require_figures()
        return Reference(self.model, self._eval_data, self.metric, outputs=self.judged.names, room=self._room)

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know about the model's data, in whole sentences."""
        notices = list(self.opened.notices)
        if any(COMPARED in notice for notice in notices):
            notices = [notice.replace(COMPARED, self.metric.name) for notice in notices]
        if self._eval_data.more:
            notices.append(more_notice("evaluation", self._eval_data))
        if of_one_class(self._eval_data):
            notices.append("All evaluation labels are alike: a network that always answers the same is always right.")
        if idle := [layer.name for layer in self.profile.layers if not layer.reached]:
            told = "these layers" if len(idle) > 1 else "this layer"
            notices.append(
                f"No evaluation sample is routed to {few(idle, repr)}: {told} multiply nothing, keep their bytes and "
                "can be compressed, but there is nothing that a correction could learn from."
            )
        if self._not_finite:
            notices.append(self._not_finite)
        if sorted_by_class(self._eval_data):
            notices.append("The evaluation labels come sorted by class; they are shuffled (seed 0) before use.")
        return tuple(notices)

    @cached_property
    def _not_finite(self) -> str:
        return not_finite_notice("eval_data" + "()" * bool(self.opened.refused), self._eval_data)

    @cached_property
    def calibration_pool(self) -> Dataset:
        """Training inputs, or where there are none the evaluation inputs; never labels."""
        if self.train_data is None:
            return self._eval_data.unlabelled()
        pool = self.train_data.unlabelled()
        run(self.model, pool.pick(slice(0, 1)), source="train_data")
        return pool

    @cached_property
    def calibration(self) -> Dataset:
        """At most 256 unlabelled samples, shuffled with seed 0."""
        return calibration_samples(self.calibration_pool)

    @cached_property
    def correction(self) -> Correction:
        """The quick correction on `calibration`: of plans that are tried, and of files that do not say which."""
        return Correction(samples=len(self.calibration), data=self._calibration_hash)

    @cached_property
    def thorough(self) -> Correction:
        """The thorough correction on `calibration`: that of new plans."""
        return replace(self.correction, kind="thorough")

    @cached_property
    def _calibration_hash(self) -> str:
        return data_hash(self.calibration.inputs)

    @cached_property
    def moments(self) -> MomentStore:
        """Second moments of the layers' inputs on `calibration`."""
        return MomentStore(
            self.model,
            self._discovered,
            lambda: self.calibration,
            pool=lambda: self.calibration_pool,
            cache=self.cache,
            room=self._room,
        )

    @cached_property
    def corrector(self) -> Corrector:
        """Corrects copies of the model, and remembers what it learnt for the leading layers of each plan."""
        return Corrector(
            self.model,
            self._discovered,
            self.factors,
            lambda: self.calibration_pool,
            drawn=self._drawn,
            classes=lambda: self.metric.class_axis is not None,
            room=self._room,
        )

    def _drawn(self, samples: int, seed: int) -> Dataset:
        """As `calibration_samples`, in the memory of `calibration` where that holds them."""
        if seed == 0 and samples <= SAMPLES:
            return self.calibration.pick(slice(0, samples))
        return calibration_samples(self.calibration_pool, samples, seed)

    @cached_property
    def cuts(self) -> Cuts:
        """Where copies of the model can be started from what others left behind, on whatever samples."""
        return Cuts(self.model, self._discovered, self.reference.dataset, self.judged.names)

    @cached_property
    def prefixes(self) -> PrefixStore:
        """What copies of the model left behind on the evaluation samples, for copies that begin in the same way."""
        return PrefixStore(self.cuts, room=self._room)

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
        check_plan(self.profile, plan)
        overlay = {} if correction is None else self.corrector(plan.plain, correction, each=each)
        made = load_overlay(apply(self.model, self.profile, plan.plain, self.factors), overlay)
        return in_stored_form(made, self.model, self.profile, plan)

    def stored(self, trained: nn.Module, plan: RankPlan) -> nn.Module:
        """A network with plain factors, such as a trained one, in the form in which the plan has it stored; a copy."""
        return in_stored_form(copied(trained), self.model, self.profile, plan) if plan != plan.plain else trained

    def candidate(self, plan: RankPlan, *, corrected: bool = True) -> Candidate:
        """A new plan with the thorough correction, or without; a plan that keeps everything dense needs none."""
        return Candidate(plan, self.thorough if corrected and plan.choices else None)

    def candidate_in(self, file: PlanFile, *, corrected: bool = True) -> Candidate:
        """The plan of a file with the correction it asks for: its own, none, or the quick one where it is silent.

        samples and data of the answer are those really used here. Raises InvalidPlan for a correction that is none.
        """
        if not corrected or not file.plan.choices or file.correction is None:
            return Candidate(file.plan)
        asked = Correction.from_dict(file.correction) if file.correction else self.correction
        return Candidate(file.plan, self.correction_in(asked))

    def correction_in(self, asked: Correction) -> Correction:
        """A correction as somebody asks for it, with the samples and data that are really used here."""
        if asked not in self._corrections:
            used = self.corrector.dense_pass(asked)
            self._corrections[asked] = replace(asked, samples=used.samples, data=data_hash(used.inputs))
        return self._corrections[asked]

    def quick(self, candidate: Candidate) -> Candidate:
        """The same with the quick correction in place of the thorough one, on the usual samples at most: seen first."""
        quick = candidate.quick
        asked = quick.correction
        if asked is None or asked == candidate.correction or asked.samples <= SAMPLES:
            return quick
        return replace(quick, correction=self.correction_in(replace(asked, samples=SAMPLES)))

    def measure(
        self,
        model: nn.Module,
        *,
        samples: int | None = None,
        tolerance: float | None = None,
        keep: bool | str = True,
        each: Callable[[Dataset, Outputs, Outputs], None] | None = None,
    ) -> Iterator[Score]:
        """Scores on growing subsets; a single one where the model file brings its own evaluate(model).

        Starts from what copies that begin in the same way left behind, and ends early as `evaluate` does. keep: leave
        outputs behind for the next copy; False where nobody will go on from this one, the name of a layer where the
        next one differs in that. each: as in `evaluate`.
        """
        if self.opened.evaluate is None:
            total = len(self.reference) if samples is None else min(samples, len(self.reference))
            names = [layer.name for layer in self._discovered.layers]
            record = [names.index(keep)] if isinstance(keep, str) else None if keep else ()
            forward = self.prefixes.runner(model, total, record=record)
            for score in evaluate(
                model, self.reference, samples=total, tolerance=tolerance, forward=forward, each=each
            ):
                if score.samples == total and len(score.outputs) == 1 and not score.not_finite:
                    self._dense_scores.setdefault(total, score.dense)
                yield score
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
    def sample_seconds(self) -> float:
        """Seconds that the dense network takes here for one sample, timed when first asked for, on a few of them."""
        data, seconds = self.calibration, inf
        for size in TIMED:
            batch = data.pick(slice(0, size))
            began = time.perf_counter()
            run(self.model, batch)
            seconds = min(seconds, (time.perf_counter() - began) / len(batch))
            if seconds > SLOW_SECONDS:
                break
        return seconds

    @cached_property
    def own_score_seconds(self) -> float:
        """Seconds that evaluate(model) takes here, where the model file has one; timed when first asked for."""
        began = time.perf_counter()
        self._own_score(self.model)
        return time.perf_counter() - began

    @cached_property
    def _own_dense(self) -> float:
        return self._own_score(self.model)

    def _own_score(self, model: nn.Module) -> float:
        assert self.opened.evaluate is not None
        try:
            value = float(self.opened.evaluate(model))
        except Exception as error:
            raise InvalidModel(f"evaluate(model) of {self.name} failed: {type(error).__name__}: {error}") from error
        if not isfinite(value):
            gave = "NaN" if isnan(value) else f"{value:g}"
            raise InvalidModel(
                f"evaluate(model) of {self.name} gave {gave}, which is no score; it must give a finite number."
            )
        return value


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
    with scope(report=lambda progress: report(progress.words[:1].upper() + progress.words[1:])):
        opened = open_any(ref)
    if isinstance(opened, Weights):
        report(f"Looking at {len(opened.tensors)} tensors")
        return take_stock(opened, cache)
    weighty = sum(next(module.parameters(recurse=False), None) is not None for module in opened.model.modules())
    report(f"Looking at {weighty} layers")
    return Workspace(opened, cache, room)


@lru_cache(maxsize=1)
def opened_once(
    ref: str, key: NetworkKey, cache: Cache | None = None, outputs: tuple[str | int, ...] = ()
) -> Workspace:
    """The workspace of a process that works for another one, opened by the reference; raises InvalidModel.

    key: of the model that the other one has; outputs: those that are judged there. Only the fingerprint is checked:
    another processor may round answers otherwise, and what is kept goes by the name that it has where the work began.
    """
    workspace = Workspace.open(ref, cache, outputs, key)
    if workspace.profile.fingerprint != key.fingerprint:
        raise InvalidModel(
            f"{ref} opened in a worker has other weights ({workspace.profile.fingerprint[:19]}...) than where the work "
            f"was started ({key.fingerprint[:19]}...); it must be the same file everywhere, and build_model() not "
            "random."
        )
    return workspace
