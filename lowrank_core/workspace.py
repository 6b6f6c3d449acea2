"""Workspace: an opened model with everything that is computed once and shared by all who look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from torch import nn

from lowrank_core.apply import apply
from lowrank_core.calibration import MomentStore, calibration_samples, data_hash
from lowrank_core.correct import Correction, Corrector, Step, load_overlay
from lowrank_core.data import Dataset
from lowrank_core.discover import ModelProfile, discover
from lowrank_core.errors import InvalidModel
from lowrank_core.evaluate import Reference, Score, evaluate
from lowrank_core.factors import FactorStore
from lowrank_core.metrics import Metric
from lowrank_core.opened import Opened, sorted_by_class
from lowrank_core.plan import RankPlan
from lowrank_core.prefix import PrefixStore
from lowrank_core.sources import open_source


class Workspace:
    """A model, its profile, its factors and its evaluation samples. Read-only: the model is never changed.

    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> [layer.name for layer in workspace.profile.layers]
    ['fc1', 'fc2']
    """

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.model = opened.model
        self.profile: ModelProfile = discover(opened.model, opened.example_inputs)
        self.factors = FactorStore(opened.model, self.profile, lambda name: self.moments(name).second)
        self._dense_scores: dict[int, float] = {}
        self.scores: dict[RankPlan, Score] = {}  # finished measurements on all samples

    @classmethod
    def open(cls, ref: str) -> Workspace:
        """Open a reference; raises a LowRankError that says what is wrong."""
        return cls(open_source(ref))

    @property
    def name(self) -> str:
        """For people; never compared."""
        return self.opened.name

    @cached_property
    def metric(self) -> Metric:
        """How outputs are judged."""
        return self.opened.metric(self._eval_data)

    @cached_property
    def _eval_data(self) -> Dataset:
        return self.opened.eval_data()

    @cached_property
    def reference(self) -> Reference:
        """The evaluation samples in seeded order, with the dense outputs."""
        return Reference(self.model, self._eval_data, self.metric)

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know about the model's data, in whole sentences."""
        notices = list(self.opened.notices)
        if sorted_by_class(self._eval_data):
            notices.append("The evaluation labels come sorted by class; they are shuffled (seed 0) before use.")
        return tuple(notices)

    @cached_property
    def _calibration_pool(self) -> Dataset:
        """Training inputs, or where there are none the evaluation inputs; never labels."""
        source = self.opened.train_data() if self.opened.train_data is not None else self._eval_data
        return Dataset(source.inputs)

    @cached_property
    def calibration(self) -> Dataset:
        """At most 256 unlabelled samples, shuffled with seed 0."""
        return calibration_samples(self._calibration_pool)

    @cached_property
    def correction(self) -> Correction:
        """The correction that this workspace offers: least squares on `calibration`."""
        return Correction(samples=len(self.calibration), data=data_hash(self.calibration.inputs))

    @cached_property
    def moments(self) -> MomentStore:
        """Second moments of the layers' inputs on `calibration`."""
        return MomentStore(self.model, self.profile, lambda: self.calibration)

    @cached_property
    def corrector(self) -> Corrector:
        """Corrects copies of the model, and remembers what it learnt for the leading layers of each plan."""
        return Corrector(self.model, self.profile, self.factors, lambda: self._calibration_pool)

    @cached_property
    def prefixes(self) -> PrefixStore:
        """What copies of the model left behind on the evaluation samples, for copies that begin in the same way."""
        return PrefixStore(self.model, self.profile, self.reference.dataset)

    def correcting(
        self, plan: RankPlan, correction: Correction, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Step]:
        """Yield after each corrected layer; `compress` with the same plan and correction is then immediate."""
        return self.corrector(plan, correction, cancelled=cancelled)

    def compress(self, plan: RankPlan, correction: Correction | None = None) -> nn.Module:
        """A compressed copy, corrected where a correction is given."""
        compressed = apply(self.model, self.profile, plan, self.factors)
        if correction is None:
            return compressed
        *_, last = self.correcting(plan, correction)
        return load_overlay(compressed, last.overlay)

    def measure(
        self,
        model: nn.Module,
        *,
        samples: int | None = None,
        tolerance: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Score]:
        """Scores on growing subsets; a single one where the model file brings its own evaluate(model).

        Starts from what is known of copies that begin in the same way, and ends early as `evaluate` does.
        """
        if self.opened.evaluate is None:
            total = len(self.reference) if samples is None else min(samples, len(self.reference))
            forward = self.prefixes.runner(model, total)
            yield from evaluate(
                model, self.reference, samples=total, cancelled=cancelled, tolerance=tolerance, forward=forward
            )
            return
        value = self._own_score(model)
        drop = (self._own_dense - value) * (1 if self.opened.higher_is_better else -1)
        yield Score(
            "evaluate(model)", value, self._own_dense, 0, self.opened.higher_is_better, None, None, drop, None, None
        )

    def dense_score(self, samples: int | None = None) -> tuple[float, int]:
        """The dense network's own score and on how many samples."""
        if self.opened.evaluate is not None:
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
