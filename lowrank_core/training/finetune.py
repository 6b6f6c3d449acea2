"""Fine-tuning: let the loss itself find the factors, at ranks that are already chosen.

Choosing ranks and approximating the weights is the indirect problem; training the factors on the data is the direct
one. A copy starts from the plan's corrected factors, or from random ones, and learns the dense network's answers
(distillation, no labels: Hinton et al., arXiv 1503.02531), the labels, or both. It is not convex: see `sweep.runs`.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from lowrank_core.compression.apply import chain_at, restructure
from lowrank_core.errors import InvalidData, InvalidFile, InvalidPlan, LowRankError, TrainingFailed
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import (
    Dataset,
    Inputs,
    Outputs,
    call,
    evaluating,
    joined,
    picked,
    run,
    samples_named,
)
from lowrank_core.networks.profile import weight_at
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.scope import give_way
from lowrank_core.running.threads import one_thread
from lowrank_core.scoring.judging import judge
from lowrank_core.scoring.metrics import Metric
from lowrank_core.scoring.scores import Score, final_score, output_scores, worst
from lowrank_core.store.documents import Fault, Kind, Unfit, sealed, set_aside, unsealed
from lowrank_core.store.files import keep_whole, remove_left
from lowrank_core.training.recipe import (
    RUN_ON_RATE,
    Objective,
    Settings,
    balance,
    check_images,
    mixed,
    randomise,
    rate_at,
    unmixed,
    varied,
)
from lowrank_core.version import versions
from lowrank_core.workspace import Workspace

VERSION = 3
"""Of the way factors are trained: the state of another version is set aside, and the training begins anew."""

VALIDATION_SHARE, VALIDATION_SAMPLES = 0.1, 1000
"""Held back from the training samples, the same for every seed, so that runs can be compared."""

KEPT_BYTES = 256 * 2**20
"""Dense answers to distil from are kept while they fit; larger ones, and those to varied images, are computed anew."""

SMALL = 5_000_000
"""Multiplies of one sample below which a training step is quicker on one thread than on several."""


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """What one pass over the training samples came to; number 0 is the start.

    train_loss: mean over the pass, None at the start; validation: the score on the samples held back, in the network's
    own metric; won: what it rose by in this pass, in the direction that is better, None at the start; validation_loss:
    the loss on them, by which epochs are compared; best: number of the best epoch so far;
    score: on some evaluation samples, where asked for, only to be looked at; model: the tuned network, with the last.
    notice: with the first one that is trained anew, what became of a state that could not be gone on from.
    """

    number: int
    epochs: int
    train_loss: float | None
    validation: float
    validation_loss: float
    best: int
    seconds: float
    seconds_left: float
    score: Score | None = None
    model: nn.Module | None = None
    notice: str = ""
    won: float | None = None


def finetune(
    workspace: Workspace,
    candidate: Candidate,
    settings: Settings,
    *,
    state: Path | None = None,
    watch: int = 0,
) -> Iterator[Epoch]:
    """Train the factors of a copy and yield after each epoch; the last one carries the network with the best weights.

    The best epoch has the lowest loss on the samples held back, the start included; their score is too coarse to choose
    by (at most 1,000 samples that the dense network has learnt: 20 epochs of the digits CNN score 1.0 from the fourth
    on, while the loss halves three times). Of equal losses the earlier epoch is the better: it is as good for fewer
    steps away from the plan's own factors, and a run that stands still runs out of patience. Evaluation samples choose
    nothing; `watch` of them are scored each epoch.
    state: a file written whole after each epoch, from which the same call continues with the same result; where it can
    be written no more the training goes on without it (`store.files.not_kept`). One that is damaged or of another
    version is set aside under another name, and the training begins anew. That of the same run before it was to run on
    (`Settings.run_on`) is gone on from, too; beside `state` as well, where its name is that of the run.
    It gives way before every step, where nothing is held that others need.

    Raises InvalidPlan where there is nothing to train, InvalidData, InvalidModel, InvalidFile for a state of another
    run, TrainingFailed where the loss is no number any more, Cancelled between two steps.
    """
    candidate = candidate.plain
    training = _Training(workspace, candidate, settings)
    keys = [
        run_key(workspace, candidate, replace(settings, run_on=settings.run_on[:legs]), watch=watch)
        for legs in range(len(settings.run_on), -1, -1)
    ]
    history: list[_Record] = []
    notice = ""
    if state is not None:
        remove_left(state.parent, state.name)
    if state is not None and (begun := _begun(state, keys)) is not None:
        try:
            history = training.restore(begun, keys)
        except Unfit as unfit:
            if unfit.fault == "other":  # it may be anybody's
                raise
            notice = f"{unfit} It is kept as {_set_aside(begun, unfit)}, and the training begins anew."
        for record in history[:-1] if history and _leg(history, settings) is None else history:
            yield record.epoch(settings.passes, history)
    while (leg := _leg(history, settings)) is not None:
        began, number = time.perf_counter(), len(history)
        train_loss = training.epoch(number, leg) if number else None
        loss, score = training.validate()
        seen = None if not watch else final_score(workspace.measure(training.on_cpu(), samples=watch, keep=False))
        best = history[-1].best if history and loss >= history[history[-1].best].validation_loss else number
        if best == number:
            training.keep()
        won = training.better(score, history[-1].validation) if history else None
        record = _Record(number, train_loss, score, loss, best, time.perf_counter() - began, seen, won)
        history.append(record)
        if state is not None:
            keep_whole(state, training.saved(keys[0], history))
        if _leg(history, settings) is not None:
            yield replace(record.epoch(settings.passes, history), notice=notice)
            notice = ""
    yield replace(history[-1].epoch(settings.passes, history, training.tuned()), notice=notice)


def kept(
    workspace: Workspace, candidate: Candidate, settings: Settings, state: Path, *, watch: int = 0
) -> tuple[Epoch, ...]:
    """The epochs in a state file, the last with the network with the best weights so far; nothing is trained.

    For a run that is over, broke off or was cancelled. Raises InvalidFile for a file that is no state of this run.
    """
    candidate = candidate.plain
    stored = _read_state(state, [run_key(workspace, candidate, settings, watch=watch)])
    model = restructure(workspace.model, workspace.profile, candidate.plan)  # all that is not dense is in the state
    try:
        _load(_changing(model, _trained(workspace, model, settings)), stored.best)
    except ValueError as error:
        raise _damaged(state) from error
    epochs = [record.epoch(settings.passes, stored.history) for record in stored.history]
    return (*epochs[:-1], stored.history[-1].epoch(settings.passes, stored.history, model.requires_grad_(True)))


def run_key(workspace: Workspace, candidate: Candidate, settings: Settings, *, watch: int = 0) -> str:
    """The name of everything that a run depends on: network, plan, correction, settings and training samples."""
    data = training_data(workspace)
    return workspace.name_for(
        "training",
        VERSION,
        plan=[(name, choice.to_dict()) for name, choice in candidate.plan.plain.choices],
        correction=None if candidate.correction is None else candidate.correction.to_dict(),
        settings=asdict(settings),
        watch=watch,
        data=data.hash,
        **({} if data.weights is None else {"weights": "in the loss"}),  # which they once were not
    )


def not_mixed(workspace: Workspace, settings: Settings) -> str:
    """A sentence that says why inputs are not mixed as the settings ask for; "" where they are.

    Raises InvalidData where there is nothing to learn from.
    """
    why = unmixed(training_data(workspace), settings)
    return f"Inputs are learnt from as they are, not mixed: {why}." if why else ""


def provenance(workspace: Workspace, settings: Settings, plan: RankPlan, last: Epoch) -> dict[str, Any]:
    """What a checkpoint says of its weights, under "tuned" in its provenance."""
    data = training_data(workspace)
    return {
        **asdict(settings),
        "learning_rate": settings.rate(plan),
        "mix": settings.mix and not unmixed(data, settings),
        "epochs": last.number,
        "best_epoch": last.best,
        "validation": last.validation,
        "data": data.hash,
    }


class _Record(msgspec.Struct):
    """An epoch as it stands in the state file, without the network."""

    number: int
    train_loss: float | None
    validation: float
    validation_loss: float
    best: int
    seconds: float
    score: Score | None
    won: float | None = None

    def epoch(self, epochs: int, history: list[_Record], model: nn.Module | None = None) -> Epoch:
        passes = [record.seconds for record in history[1:]] or [self.seconds]
        left = 0.0 if model is not None else (epochs - self.number) * sum(passes) / len(passes)
        return Epoch(
            self.number,
            epochs,
            self.train_loss,
            self.validation,
            self.validation_loss,
            self.best,
            self.seconds,
            left,
            self.score,
            model,
            won=self.won,
        )


@dataclass(frozen=True, slots=True)
class _Leg:
    """Epochs over which the learning rate rises and falls once: after so many, so many, to such a share of it."""

    after: int
    epochs: int
    share: float


def _leg(history: list[_Record], settings: Settings) -> _Leg | None:
    """The leg that the next epoch belongs to; None where the training is over.

    A leg ends with its epochs, or where `patience` of them have brought no better one; those of its first half are not
    counted, as the rate has to fall before what it has shaken up can settle.
    """
    after, share = 0, 1.0
    for epochs in (settings.epochs, *settings.run_on):
        half = after + epochs // 2
        waited = (r.number for r in history[after + 1 :] if r.number - max(r.best, half) >= settings.patience)
        end = min(after + epochs, next(waited, after + epochs))
        if len(history) <= end:
            return _Leg(after, epochs, share)
        after, share = end, RUN_ON_RATE
    return None


def _begun(state: Path, keys: list[str]) -> Path | None:
    """The file to go on from: the run's own, or that of a run that it runs on from, which is named by its key."""
    paths = [state.with_name(state.name.replace(keys[0], key)) for key in keys]
    return next((path for path in paths if path.exists()), None)


class _Training:
    """A network in training, with its samples."""

    def __init__(self, workspace: Workspace, candidate: Candidate, settings: Settings) -> None:
        self.workspace, self.settings = workspace, settings
        self.samples, self.held_back = map(_counted, _split(training_data(workspace)))
        if settings.augment != "none":
            check_images(self.samples)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.names = _names(workspace)
        first = run(workspace.model, self.samples.pick(slice(0, 1)), self.names)
        targets = training_data(workspace).targets
        self.metric = self._metric()
        self.objectives = {name: self._objective(values, targets) for name, values in first.items()}
        self.model = _start(workspace, candidate, settings).to(self.device).eval()
        self.dense = workspace.model
        if self.device.type == "cuda":
            self.dense = copied(self.dense).to(self.device)
        self.trained = _trained(workspace, self.model, settings)
        self.norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)] if _norms_move(settings) else []
        self.rate = settings.rate(candidate.plan)
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(self.trained.values(), lr=self.rate)
            if settings.optimizer == "adam"
            else torch.optim.SGD(self.trained.values(), lr=self.rate, momentum=0.9, nesterov=True)
        )
        small = plan_cost(workspace.profile, candidate.plan).multiplies < SMALL
        self.threads: Callable[[], AbstractContextManager[None]] = one_thread if small else nullcontext
        self.validation_answers = self._dense_answers(self.held_back)
        self.weights = self._weights()
        size = sum(values.nbytes for values in first.values())
        self.mixes = settings.mix and not unmixed(self.samples, settings)
        same = settings.augment == "none" and not self.mixes
        fit = same and size * len(self.samples) <= KEPT_BYTES
        self.answers = self._dense_answers(self.samples) if fit and settings.loss != "labels" else None
        self.best: dict[str, Tensor] = {}

    def epoch(self, number: int, leg: _Leg) -> float:
        """Train for one pass over the samples and give the mean loss; seed and number alone decide the order."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        order = torch.randperm(len(self.samples), generator=generator)
        batches = order.tensor_split(math.ceil(len(order) / self.settings.batch))  # even: none of a single sample
        steps, total = len(batches) * leg.epochs, 0.0
        for norm in self.norms:
            norm.train()
        for at, index in enumerate(batches):
            give_way()
            done = (number - 1 - leg.after) * len(batches) + at
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * leg.share * rate_at(done, steps, self.settings.warm_up)
            with self.threads():
                loss = self._step(index, generator)
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss became {loss} in step {at + 1} of epoch {number}, at a learning rate of {self.rate:g}; "
                    f"try {self.rate / 10:.2g}. The network and its plan are as they were."
                )
            total += loss * len(index)
        self.model.eval()
        return total / len(order)

    def validate(self) -> tuple[float, float]:
        """Loss and score on the samples held back."""
        outputs = []
        with evaluating(self.model):
            for part in self._batches(self.held_back):
                give_way()
                with self.threads():
                    answered = self._judged(call(self.model, self._placed(part.inputs), part.axes))
                    outputs.append({name: values.cpu() for name, values in answered.items()})
        tuned, dense, targets = joined(outputs), self.validation_answers, self.held_back.targets
        loss = float(self._loss(tuned, dense, targets, self.held_back.weights))
        if not math.isfinite(loss):
            why = f"at a learning rate of {self.rate:g}; try a smaller one"
            if not self.best:
                why = "before any training: the network of this plan answers with NaN or infinity; choose other ranks"
            raise TrainingFailed(
                f"the loss on the samples held back is {loss} {why}. The network and its plan are as they were."
            )
        scores = output_scores(self.metric, tuned, dense, targets, self.held_back.weights) if self.metric.judges else ()
        return loss, worst(scores).value if scores else loss

    def better(self, score: float, before: float) -> float:
        """How much better a score of the samples held back is than another."""
        return score - before if self.metric.higher_is_better else before - score

    def keep(self) -> None:
        """Remember the current weights as the best ones so far."""
        self.best = {name: value.detach().cpu().clone() for name, value in self._changing().items()}

    def tuned(self) -> nn.Module:
        """The network with the best weights, on the CPU."""
        _load(self._changing(), self.best)
        return self.model.cpu().requires_grad_(True)

    def on_cpu(self) -> nn.Module:
        """The network as it is now, on the CPU, where it can be measured."""
        return self.model if self.device.type == "cpu" else copied(self.model).cpu()

    def saved(self, key: str, history: list[_Record]) -> bytes:
        """The state of the training as bytes, all that is needed to go on: plain tensors and numbers."""
        target = io.BytesIO()
        torch.save(
            {
                "key": key,
                "training": VERSION,
                "versions": versions(),
                "history": msgspec.json.encode(history).decode(),
                "weights": self._changing(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
            },
            target,
        )
        return sealed(STATE, target.getvalue())

    def restore(self, path: Path, keys: Sequence[str]) -> list[_Record]:
        """Go back to a state that `saved` wrote under one of these keys; raises InvalidFile for another run's."""
        stored = _read_state(path, keys)
        try:
            _load(self._changing(), stored.weights)
            self.optimizer.load_state_dict(stored.optimizer)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path) from error
        self.best = stored.best
        return stored.history

    def _step(self, index: Tensor, generator: torch.Generator) -> float:
        part = self.samples.pick(index)
        part = replace(part, inputs=varied(part.inputs, self.settings.augment, generator))
        if self.mixes:
            part = mixed(part, generator)
        inputs = self._placed(part.inputs)
        targets, weights = (None if each is None else each.to(self.device) for each in (part.targets, part.weights))
        try:
            if self.answers is not None:
                dense = {name: values[index].to(self.device) for name, values in self.answers.items()}
            elif self.settings.loss != "labels":
                with evaluating(self.dense):
                    dense = self._judged(call(self.dense, inputs, part.axes))
            else:
                dense = dict.fromkeys(self.names, torch.empty(0))
            loss = self._loss(self._judged(call(self.model, inputs, part.axes)), dense, targets, weights)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.trained.values(), self.settings.clip)
            self.optimizer.step()
        except LowRankError:
            raise
        except Exception as error:
            raise TrainingFailed(
                f"a training step failed with {type(error).__name__}: {' '.join(str(error).split())}. "
                "The network and its plan are as they were."
            ) from error
        return float(loss.detach())

    def _batches(self, data: Dataset) -> Iterator[Dataset]:
        for at in range(0, len(data), 256):
            yield data.pick(slice(at, at + 256))

    def _judged(self, outputs: Outputs) -> Outputs:
        return {name: picked(outputs, name) for name in self.names}

    def _loss(self, outputs: Outputs, dense: Outputs, targets: Tensor | None, weights: Tensor | None) -> Tensor:
        """The mean of the losses of the outputs that are judged."""
        losses = [
            self.weights[name] * self.objectives[name](values, dense[name], targets, weights)
            for name, values in outputs.items()
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _objective(self, outputs: Tensor, targets: Tensor | None) -> Objective:
        """The objective of one output; without labels its metric says whether it holds classes."""
        if targets is not None or self.settings.loss != "distill":
            return Objective.of(self.settings.loss, outputs, targets)
        axis = self.metric.axis_of(outputs)
        return Objective("distill", axis is not None and outputs.shape[axis] > 1, 1 if axis is None else axis)

    def _weights(self) -> dict[str, float]:
        """What the loss of each output is multiplied by: of several, numbers count for their variance."""
        weights = dict.fromkeys(self.names, 1.0)
        for name, values in self.validation_answers.items() if len(self.names) > 1 else ():
            variance = float(values.double().var(correction=0))
            if not self.objectives[name].classes and variance > 0:
                weights[name] = 1 / variance
        return weights

    def _dense_answers(self, data: Dataset) -> Outputs:
        answers = []
        for part in self._batches(data):
            give_way()
            with self.threads():
                answers.append(run(self.workspace.model, part, self.names))
        return joined(answers)

    def _placed(self, inputs: Inputs) -> Inputs:
        return tree_map(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, inputs)

    def _changing(self) -> dict[str, Tensor]:
        return _changing(self.model, self.trained)

    def _metric(self) -> Metric:
        """How the samples held back are judged; by the loss where the network's own metric cannot."""
        try:
            return self.workspace.judge(self.held_back, self.names).metric
        except InvalidData:
            return Metric("loss", higher_is_better=False)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """The content of a state file, tensors on the CPU."""

    history: list[_Record]
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any]


STATE = Kind("training state", bare=True)


def read_state(path: Path) -> dict[str, Any]:
    """What a state file holds, tensors on the CPU; raises Unfit for one that is damaged or of a newer version."""
    try:
        content = unsealed(STATE, path.read_bytes())
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Unfit as unfit:
        raise Unfit(f"{path} is {unfit}.", unfit.fault) from unfit
    except Exception as error:  # whatever PyTorch's own reader raises
        raise _damaged(path) from error
    if not isinstance(stored, dict):
        raise _damaged(path)
    return stored


def _read_state(path: Path, keys: Sequence[str]) -> _State:
    try:
        stored = read_state(path)
        if stored["key"] not in keys:
            if (version := stored.get("training", 1)) != VERSION:
                fault: Fault = "older" if version < VERSION else "newer"
                raise Unfit(f"{path} is of an {fault} way of training, which is not gone on from.", fault)
            raise InvalidFile(
                f"{path} belongs to another run: model, plan, training samples or settings differ; give another "
                "file, or delete it to begin anew."
            )
        history = msgspec.json.decode(stored["history"], type=list[_Record])
        return _State(history, stored["weights"], stored["best"], stored["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def _set_aside(path: Path, unfit: Unfit) -> Path:
    try:
        return set_aside(path, unfit.fault)
    except OSError as error:
        raise InvalidFile(
            f"{unfit} It can be neither gone on from nor set aside ({error.strerror or error}); move it away."
        ) from error


def _damaged(path: Path) -> InvalidFile:
    return InvalidFile(f"{path} is no state of a training run, or damaged; delete it to begin anew.")


def _changing(model: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The tensors that training changes: what is trained, and all buffers."""
    return {**{n: p.detach() for n, p in trained.items()}, **dict(model.named_buffers())}


def _load(changing: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in changing.items()}:
        raise ValueError("other tensors than this network's")
    with torch.no_grad():
        for name, value in values.items():
            changing[name].copy_(value)


def training_data(workspace: Workspace) -> Dataset:
    """The training samples of a workspace; raises InvalidData where the model file has none."""
    if workspace.train_data is None:
        raise InvalidData(
            "fine-tuning needs training samples: on the evaluation samples it would make their score worthless. "
            "Give --train-data, or define train_data() in the model file; they may come without labels."
        )
    return workspace.train_data


def _names(workspace: Workspace) -> tuple[str, ...]:
    """The outputs that learn: those that are judged; where none can be, all that weights reach."""
    try:
        return workspace.judged.names
    except InvalidData:
        return judge(workspace.model, training_data(workspace).unlabelled()).names


def _split(data: Dataset) -> tuple[Dataset, Dataset]:
    """(samples to learn from, samples held back) of the training data, the same split for every seed."""
    if len(data) < 2:
        raise InvalidData(
            f"fine-tuning needs at least 2 training samples, one to learn from and one to choose the best weights by, "
            f"but train_data() has {len(data)}; give more."
        )
    if bad := data.not_finite():
        raise InvalidData(
            f"train_data(): {samples_named(bad, len(data))} hold{'s' * (len(bad) == 1)} NaN or infinity, from which "
            "nothing can be learnt; take them out."
        )
    shuffled, count = data.shuffled(0), min(VALIDATION_SAMPLES, max(1, int(VALIDATION_SHARE * len(data))))
    return shuffled.pick(slice(count, None)), shuffled.pick(slice(0, count))


def _counted(data: Dataset) -> Dataset:
    """The samples with weights whose mean is 1, so that the mean of weighted losses is the weighted mean."""
    if data.weights is None:
        return data
    mean = data.weights.mean()
    if not mean > 0:
        raise InvalidData(
            "all weights are 0 of the samples of train_data() that are learnt from, or of those that are held back to "
            "choose the best weights by; give more samples that count, or leave the weights out."
        )
    return replace(data, weights=(data.weights / mean).float())


def _start(workspace: Workspace, candidate: Candidate, settings: Settings) -> nn.Module:
    """The copy that is trained: the plan's corrected factors or random ones, balanced."""
    plan = candidate.plan
    if not plan.choices and settings.train == "factors":
        raise InvalidPlan(
            "the plan keeps every layer dense, so there are no factors to train; choose ranks, or train everything."
        )
    if settings.from_scratch:
        model = restructure(workspace.model, workspace.profile, plan)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for module in model.modules() if settings.train == "everything" else ():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
    else:
        model = workspace.compress(plan, candidate.correction)
    generator = torch.Generator().manual_seed(settings.seed)
    for name, _ in plan.choices:
        chain = chain_at(workspace.model, model, name)
        if settings.from_scratch:
            layer = workspace.profile.layer(name)
            weight = weight_at(workspace.model, layer)
            rows = weight.numel() if layer.spec.table else layer.spec.out_channels
            randomise(chain, float(weight.detach().norm()) / rows**0.5, generator)
            for other in layer.tied:  # its chain has these weights, and a bias of its own
                if other.spec.bias:
                    nn.init.zeros_(chain_at(workspace.model, model, other.name)[-1].get_parameter("bias"))
        balance(chain)
    return model


def _trained(workspace: Workspace, model: nn.Module, settings: Settings) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name: those that the dense network does not have, or all."""
    dense = dict(workspace.model.named_parameters())
    learning = {}
    for name, parameter in model.named_parameters():
        learns = parameter.is_floating_point() and (settings.train == "everything" or name not in dense)
        parameter.requires_grad_(learns)
        if learns:
            learning[name] = parameter
    return learning


def _norms_move(settings: Settings) -> bool:
    """Whether BatchNorm re-estimates its statistics: only where they belong to nothing yet.

    From the plan they stay: one epoch of ResNet-20 (CP3, 3,600 images) ends at a held-back loss of 0.966 with the dense
    network's statistics and of 0.982 with moving ones.
    """
    return settings.from_scratch
