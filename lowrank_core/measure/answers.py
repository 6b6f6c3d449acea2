"""Answers: what a compressed network says to single samples beside the dense one, gathered while it is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan, sqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import Dataset, Outputs
from lowrank_core.plans.candidate import Candidate
from lowrank_core.scoring.metrics import Metric, are_shares
from lowrank_core.scoring.scores import Score, final_score, not_finite
from lowrank_core.workspace import Workspace

MOST = 12
"""Samples that are told one by one."""

MOST_PLACES = 4
"""Tokens of a sequence that are told one by one."""

MOST_NUMBERS = 8
"""Numbers of an answer that are told; of more it is a vector, told by its angle to the dense one."""

SHARE_OF_SPREAD = 0.01
"""How far numbers move before their answer counts as changed, as a share of how far dense answers lie apart."""

Kind = Literal["class", "binary", "places", "numbers", "vector"]
"""One of several classes, yes or no, a class for each token or pixel, a few numbers, or many."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one network says to a sample. label: its class, 1 for yes; probability: of that class; numbers: in order.

    What is none is -1, NaN and (): a label of numbers, say, or anything of answers that hold NaN or infinity.
    """

    label: int = -1
    probability: float = nan
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A token, or pixel, whose class has changed; place: its number in the sample, from 0 on."""

    place: int
    dense: int
    ours: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Both networks' answers to a sample; sample: its place in the workspace's reference.

    target: what is right, where that is one class. amount: by how much the answer moved, in the unit of its kind.
    places: the first of the changed ones, of `moved` in all, and of `total` that there are. cosine: of the angle
    between the two answers of a vector. finite: whether the compressed answer holds neither NaN nor infinity.
    """

    sample: int
    dense: Answer
    ours: Answer
    amount: float
    changed: bool = False
    target: int | None = None
    places: tuple[Place, ...] = ()
    moved: int = 0
    total: int = 0
    cosine: float | None = None
    finite: bool = True


@dataclass(frozen=True, slots=True)
class Answers:
    """How many of the measured samples get another answer, and a dozen of them: those that changed most come first.

    output: the network's output that these are answers of. kind: what they are; classes: of how many, 0 for numbers.
    """

    output: str
    kind: Kind
    classes: int
    samples: int
    changed: int
    pairs: tuple[Pair, ...]


class Gathered:
    """Answers as they come by, batch after batch, to whoever measures: it is called with each of them."""

    def __init__(self, workspace: Workspace) -> None:
        self._metric = workspace.metric
        self._samples = self._due = 0
        self._outputs: dict[str, _Output] = {}

    def __call__(self, part: Dataset, ours: Outputs, dense: Outputs) -> None:
        """Take in the answers of both networks to the next samples."""
        for name, values in dense.items():
            if name not in self._outputs:
                self._outputs[name] = _Output(name, self._metric, values, part.targets)
            self._outputs[name].add(ours[name], values, part.targets)
        self._samples += len(part)

    @property
    def is_due(self) -> bool:
        """Whether the samples have doubled since it was last asked for answers."""
        return self._samples >= self._due

    def answers(self, score: Score) -> Answers:
        """What has come by so far; of several outputs those of the one that drops most, as in the score."""
        self._due = 2 * self._samples
        worst = max(score.outputs, key=lambda output: output.drop).name if score.outputs else next(iter(self._outputs))
        return self._outputs[worst].answers()


def answers_of(workspace: Workspace, candidate: Candidate, *, samples: int | None = None) -> Answers:
    """A candidate's answers beside the dense network's, on the leading evaluation samples or on all.

    Raises InvalidModel where a model file scores itself. Raises Cancelled.

    >>> from lowrank_core.plans.plan import Choice, RankPlan
    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (1,))})
    >>> found = answers_of(workspace, workspace.candidate(plan, corrected=False))
    >>> found.kind, len(found.pairs), found.pairs[0].changed
    ('class', 12, True)
    """
    if workspace.opened.evaluate is not None:
        raise InvalidModel("the model file scores itself with evaluate(model), so single answers are not known.")
    gathered = Gathered(workspace)
    model = workspace.compress(candidate.plan, candidate.correction)
    score = final_score(workspace.measure(model, samples=samples, each=gathered))
    return gathered.answers(score)


class _Output:
    """One output: how far each answer moved, the dozen that moved most, and the first dozen."""

    def __init__(self, name: str, metric: Metric, dense: Tensor, targets: Tensor | None) -> None:
        self.name = name
        self._labelled = not metric.label_free
        self._yes_above = metric.yes_above or 0.0
        self._axis = _class_axis(metric, dense, targets)
        self.kind = _kind(metric, dense, self._axis)
        self._classes = 2 if self.kind == "binary" else 0 if self._axis is None else dense.shape[self._axis]
        self._samples = 0
        self._amounts: list[Tensor] = []
        self._most: list[Pair] = []
        self._first: list[Pair] = []
        self._origin = torch.zeros(0)
        self._sum, self._squares = torch.zeros(0), 0.0  # of dense answers less the first one

    def add(self, ours: Tensor, dense: Tensor, targets: Tensor | None) -> None:
        targets = targets if self._labelled else None
        broken = not_finite(ours, dense)
        amounts = self._moved(ours, dense, targets, broken)
        likely = amounts.topk(min(MOST, len(amounts))).indices.tolist()
        least = self._most[-1].amount if len(self._most) == MOST else 0.0
        new = [self._pair(i, ours, dense, targets, amounts, broken) for i in likely if amounts[i] > least]
        self._most = sorted([*self._most, *new], key=lambda pair: (-pair.amount, pair.sample))[:MOST]
        early = range(min(MOST - len(self._first), len(amounts)))
        self._first += [self._pair(i, ours, dense, targets, amounts, broken) for i in early]
        self._amounts.append(amounts)
        self._samples += len(amounts)

    def answers(self) -> Answers:
        amounts, least = torch.cat(self._amounts), self._least()
        most = [replace(pair, changed=True) for pair in self._most if pair.amount > least]
        rest = [pair for pair in self._first if pair.amount <= least]
        return Answers(
            self.name, self.kind, self._classes, self._samples, int((amounts > least).sum()), (*most, *rest)[:MOST]
        )

    def _least(self) -> float:
        """What an answer must have moved to count as changed: rounding alone moves numbers a little."""
        if self.kind not in ("numbers", "vector"):
            return 0.0
        spread = self._squares / self._samples - float((self._sum / self._samples).square().sum())
        scale = float(self._origin.square().sum()) if spread <= 1e-12 * self._squares else spread
        return SHARE_OF_SPREAD * sqrt(max(0.0, scale))

    def _moved(self, ours: Tensor, dense: Tensor, targets: Tensor | None, broken: Tensor) -> Tensor:
        """(N,) by how much each answer has moved, 0 where it has not; infinity where ours is not finite."""
        match self.kind:
            case "class":
                before, now = (_probabilities(values) for values in (dense, ours))
                was, says = before.argmax(1, keepdim=True), now.argmax(1, keepdim=True)
                moved = (1 + before.gather(1, was) - now.gather(1, was))[:, 0] * (was != says)[:, 0]
            case "binary":
                before, now = (values.double().reshape(-1) for values in (dense, ours))
                apart = (self._yes(before) - self._yes(now)).abs()
                moved = (1 + apart) * ((before > self._yes_above) != (now > self._yes_above))
            case "places":
                moved = self._places(ours, dense, targets).sum(1).double()
            case _:
                before, now = _flat(dense), _flat(ours)
                if not self._samples:
                    self._origin, self._sum = before[0], torch.zeros_like(before[0])
                away = before - self._origin
                self._sum = self._sum + away.sum(0)
                self._squares += float(away.square().sum())
                moved = (now - before).norm(dim=1)
        return moved.double().masked_fill(broken | moved.isnan(), torch.inf)

    def _yes(self, values: Tensor) -> Tensor:
        """The probability that single numbers say yes with: their own, or that of logits."""
        return values if self._yes_above else values.sigmoid()

    def _places(self, ours: Tensor, dense: Tensor, targets: Tensor | None) -> Tensor:
        """(N, places) whether the class there has changed; where targets mark padding it does not count."""
        changed = ours.argmax(self._axis) != dense.argmax(self._axis)
        if targets is not None and targets.shape == changed.shape:
            changed = changed & (targets >= 0)
        return changed.reshape(len(changed), -1)

    def _pair(
        self, i: int, ours: Tensor, dense: Tensor, targets: Tensor | None, amounts: Tensor, broken: Tensor
    ) -> Pair:
        ours, dense = ours[i : i + 1], dense[i : i + 1]
        target, finite = None if targets is None else targets[i : i + 1], not bool(broken[i])
        places, total, moved, cosine = tuple[Place, ...](), 0, 0, None
        if self.kind == "places":
            changed = self._places(ours, dense, target)[0].nonzero().flatten().tolist()
            was, says = (values.argmax(self._axis).reshape(-1) for values in (dense, ours))
            total = len(was) if target is None or target.numel() != len(was) else int((target >= 0).sum())
            moved = len(changed)
            places = tuple(Place(at, int(was[at]), int(says[at])) for at in changed[:MOST_PLACES] if finite)
        elif self.kind == "vector":
            cosine = float(F.cosine_similarity(_flat(dense), _flat(ours))) if finite else None
        one = target is not None and self.kind in ("class", "binary") and target.numel() == 1
        return Pair(
            self._samples + i,
            self._answer(dense),
            self._answer(ours) if finite else Answer(),
            float(amounts[i]),
            target=int(target) if one and target is not None else None,
            places=places,
            moved=moved,
            total=total,
            cosine=cosine,
            finite=finite,
        )

    def _answer(self, values: Tensor) -> Answer:
        """What one network says to one sample (1, ...)."""
        match self.kind:
            case "class":
                probability, label = _probabilities(values).max(1)
                return Answer(int(label), float(probability))
            case "binary":
                yes = float(self._yes(values.double()))
                return Answer(1, yes) if yes > 0.5 else Answer(0, 1 - yes)
            case "numbers":
                return Answer(numbers=tuple(_flat(values)[0].tolist()))
        return Answer()


def _class_axis(metric: Metric, dense: Tensor, targets: Tensor | None) -> int | None:
    """The axis of these outputs that holds a score per class: by the metric, else where integer targets say so."""
    axis = metric.axis_of(dense)
    if axis is None and targets is not None and not targets.is_floating_point() and dense.is_floating_point():
        axes = (1, dense.ndim - 1) if dense.ndim == targets.ndim + 1 else ()
        axis = next((a for a in axes if dense.shape[:a] + dense.shape[a + 1 :] == targets.shape), None)
    return axis if axis is not None and dense.shape[axis] > 1 else None


def _kind(metric: Metric, dense: Tensor, axis: int | None) -> Kind:
    if metric.yes_above is not None:
        return "binary"
    if axis is not None:
        return "class" if dense.ndim == 2 else "places"
    return "numbers" if dense[:1].numel() <= MOST_NUMBERS else "vector"


def _probabilities(scores: Tensor) -> Tensor:
    """(N, classes) of unnormalised scores, or of what are probabilities already."""
    scores = scores.double()
    return scores if are_shares(scores.nan_to_num(), 1) else scores.softmax(1)


def _flat(values: Tensor) -> Tensor:
    """(N, numbers) of whatever an answer is made of."""
    values = torch.view_as_real(values) if values.is_complex() else values
    return values.double().reshape(len(values), -1)
