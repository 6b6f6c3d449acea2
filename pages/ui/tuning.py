"""What is trained, as a value, and what came of it: nothing here knows a session or a screen."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import msgspec
from torch import nn

from lowrank_core.compression.elsewhere import BY, with_weights
from lowrank_core.errors import InvalidFile, InvalidSearch, LowRankError
from lowrank_core.exports import Compressed
from lowrank_core.figures import how_many
from lowrank_core.measure.effort import Effort
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import Snapshot
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import nobody, raise_if_cancelled, report, scope
from lowrank_core.scoring.scores import Reference, Score, evaluate, final_score
from lowrank_core.selection import Rule, make, search, search_effort
from lowrank_core.selection._problem import Problem, Quantity, Trial, problem_of
from lowrank_core.store.documents import Kind
from lowrank_core.store.files import write_whole
from lowrank_core.training import sweep as sweeping
from lowrank_core.training.expected import training_effort
from lowrank_core.training.finetune import Epoch, finetune, kept, not_mixed, provenance, training_data
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import Swept, compressed_score, state_path, tidy, tuned_score
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.note_file import Notes

WATCH = 1000
"""Evaluation samples that are scored after each epoch, to be looked at; they choose nothing."""


@dataclass(frozen=True, slots=True)
class Training:
    """Train a plan from its factors (False), from random ones (True), or both; each with so many seeds.

    candidate: None where bisection is to find it first, losing at most max_drop with these layers left dense.
    """

    candidate: Candidate | None
    settings: Settings
    starts: tuple[bool, ...] = (False,)
    seeds: int = 1
    max_drop: float | None = None
    locked: tuple[str, ...] = ()
    corrected: bool = True

    @property
    def runs(self) -> tuple[Settings, ...]:
        """The settings of every run of this training: each start with each seed."""
        first = self.settings.seed
        return tuple(
            replace(self.settings, from_scratch=start, seed=seed)
            for start in self.starts
            for seed in range(first, first + self.seeds)
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """Train the plans that a rule finds at several shares of the dense cost, in so many processes."""

    shares: tuple[float, ...]
    quantity: Quantity
    rule: Rule
    settings: Settings
    workers: int = 1
    locked: tuple[str, ...] = ()
    corrected: bool = True


@dataclass(frozen=True, slots=True)
class Before:
    """A plan as it is compressed, before any training; watched: on the samples that are scored after each epoch."""

    candidate: Candidate
    score: Score
    watched: Score


@dataclass(frozen=True, slots=True, eq=False)
class RunEpoch:
    """One more epoch of a run that trains, without its network."""

    settings: Settings
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Tuned:
    """Trained weights: where they come from, which epoch's they are, and their score. The network is kept elsewhere.

    epochs: passes that were made; watch: as the training had it; complete: it was neither cancelled nor broke off.
    given: hash of the file that they came in, of weights that were trained elsewhere; then nothing else is known of it.
    """

    candidate: Candidate
    settings: Settings
    watch: int
    epoch: int
    epochs: int
    validation_loss: float
    score: Score
    complete: bool = True
    given: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """Trained weights against the plan as it is compressed, on the same samples; a negative drop is a gain."""

    tuned: Tuned
    score: Score


Result = Trial | Before | RunEpoch | Tuned | Gain | Swept
Keep = Callable[[Tuned, Epoch], None]


@dataclass(frozen=True)
class Trained:
    """A training or sweep that was asked for, and what its job has found so far."""

    wish: Training | Sweep
    snapshot: Snapshot[Result]

    @cached_property
    def runs(self) -> dict[Settings, list[Epoch]]:
        """The epochs of each run by its settings, in the order they came."""
        runs: dict[Settings, list[Epoch]] = {}
        for result in self.snapshot.found:
            if isinstance(result, RunEpoch):
                runs.setdefault(result.settings, []).append(result.epoch)
        return runs

    @cached_property
    def tuned(self) -> tuple[Tuned, ...]:
        """The trained weights of every run that has some."""
        return tuple(result for result in self.snapshot.found if isinstance(result, Tuned))

    @property
    def chosen(self) -> Tuned | None:
        """The weights with the lowest loss on the samples held back: evaluation samples choose nothing."""
        return min(self.tuned, key=lambda tuned: tuned.validation_loss, default=None)

    @property
    def before(self) -> Before | None:
        """The plan as it is compressed, before any training; None until it is measured."""
        return next((result for result in self.snapshot.found if isinstance(result, Before)), None)

    @property
    def gain(self) -> Gain | None:
        """The chosen weights against the plan as it is compressed; None until they are compared."""
        return next((result for result in self.snapshot.found if isinstance(result, Gain)), None)

    @property
    def notices(self) -> list[str]:
        """What became of states on disk that could not be gone on from."""
        return [epoch.notice for epochs in self.runs.values() for epoch in epochs if epoch.notice]

    @property
    def trials(self) -> int:
        """How many plans the search for ranks has looked at before the training."""
        return sum(isinstance(result, Trial) for result in self.snapshot.found)

    @cached_property
    def swept(self) -> tuple[Swept, ...]:
        """The plans of a sweep that are trained, the cheapest first."""
        plans = [result for result in self.snapshot.found if isinstance(result, Swept)]
        return tuple(sorted(plans, key=lambda swept: swept.cost.multiplies))


# ---- before it starts -----------------------------------------------------------------------------------------------


def before_it_starts(workspace: Workspace, wish: Training | Sweep, points: Path) -> tuple[str, ...]:
    """What a person should know of a training: what it takes at most on this machine, and what is not done as asked.

    What earlier searches have measured, which is in `points`, is left out. Raises what the training raises for a
    question that has no answer.
    """
    settings, runs = wish.settings, len(wish.shares) if isinstance(wish, Sweep) else len(wish.runs)
    steps = -(-len(training_data(workspace)) // settings.batch)
    epochs = f"{settings.passes} epoch{'' if settings.passes == 1 else 's'}"
    many = "" if runs == 1 else f"{runs} {'plans' if isinstance(wish, Sweep) else 'runs'} of "
    each = f"At most {many}{epochs} of {steps:,} step{'' if steps == 1 else 's'}, {settings.batch:,} samples in each"
    seconds = training_effort(workspace, settings, runs, watch=WATCH).seconds
    found = _found_first(workspace, wish, points)
    search = sum(search_effort(rule, problem).seconds for rule, problem in found)
    ranks = f", {Effort(0, search).text} of it to find the ranks" if found else ""
    takes = f"{each}: {Effort(0, seconds + search).text} on this machine{ranks}"
    takes += f"; in {wish.workers} processes less." if isinstance(wish, Sweep) and wish.workers > 1 else "."
    return tuple(filter(None, (takes, not_mixed(workspace, settings))))


def takes_more(workspace: Workspace, longer: Training, epochs: int) -> str:
    """What so many more epochs of a training take at most, in one sentence."""
    settings = replace(longer.settings, epochs=epochs, run_on=())
    seconds = training_effort(workspace, settings, len(longer.runs), watch=WATCH).seconds
    return f"At most {Effort(0, seconds).text} on this machine."


def _found_first(workspace: Workspace, wish: Training | Sweep, points: Path) -> list[tuple[Rule, Problem]]:
    """The searches that come before the training itself."""
    if isinstance(wish, Sweep):
        return [(wish.rule, _at_share(workspace, wish, share, points)) for share in wish.shares]
    return [] if wish.candidate is not None else [(make("bisection", {}), _within_drop(workspace, wish, points))]


def _within_drop(workspace: Workspace, training: Training, points: Path) -> Problem:
    return problem_of(
        workspace,
        max_drop=training.max_drop,
        lock=training.locked,
        corrected=training.corrected,
        folder=points,
    )


def _at_share(workspace: Workspace, sweep: Sweep, share: float, points: Path) -> Problem:
    return Problem(
        workspace,
        ((sweep.quantity, share * getattr(plan_cost(workspace.profile), sweep.quantity)),),
        locked=frozenset(sweep.locked),
        corrected=sweep.corrected,
        folder=points,
    )


# ---- work -----------------------------------------------------------------------------------------------------------


def train(workspace: Workspace, training: Training, folder: Path, points: Path, keep: Keep) -> Iterator[Result]:
    """Find the plan where there is none, then train it and measure; `keep` is given each network that was tuned.

    A run that is cancelled or breaks off yields its best weights so far. Each keeps its state in `folder`, so the same
    training goes on from there. Raises what `search` and `finetune` raise.
    """
    training_data(workspace)  # its absence is better said before than after a search
    tidy(folder)
    candidate = training.candidate
    if candidate is None:
        for trial in search(make("bisection", {}), _within_drop(workspace, training, points)):
            yield trial
            candidate = trial.candidate
        assert candidate is not None
    runs = [(Candidate(candidate.plan) if run.from_scratch else candidate, run) for run in training.runs]
    states = [state_path(workspace, initial, run, folder, watch=WATCH) for initial, run in runs]
    report(Progress("measuring the plan as it is compressed"))
    yield as_compressed(workspace, candidate)
    best: tuple[Tuned, nn.Module] | None = None
    seconds: list[float] = []
    for number, ((initial, run), state) in enumerate(zip(runs, states, strict=True), start=1):
        report(Progress("training"))
        try:
            epochs = []
            for epoch in finetune(workspace, initial, run, state=state, watch=WATCH):
                epochs.append(epoch)
                raise_if_cancelled()  # nothing more is asked for after the next item: let it be the weights
                seconds += [epoch.seconds] if epoch.number else []
                if seconds:
                    to_come = (len(runs) - number) * run.passes * statistics.fmean(seconds)
                    report(Progress("training", epoch.seconds_left + to_come))
                yield RunEpoch(run, replace(epoch, model=None))
            assert epoch.model is not None
            report(Progress("measuring the tuned network"))
            score = tuned_score(workspace, initial, run, epoch.model, watch=WATCH)
        except LowRankError:
            if state.exists():
                with scope(cancelled=lambda: False):  # cancelled or not, what there is is kept
                    best_so_far = _best_so_far(workspace, initial, run, state, keep)
                yield best_so_far
            raise
        tuned = _tuned(initial, run, epochs, WATCH, score)
        keep(tuned, epoch)
        yield tuned
        if best is None or tuned.validation_loss < best[0].validation_loss:
            best = tuned, epoch.model
    assert best is not None
    if workspace.opened.evaluate is None and not workspace.metric.label_free:
        report(Progress("comparing with the plan as it is compressed"))
        dense = Reference(
            workspace.compress(candidate.plan, candidate.correction),
            workspace.reference.dataset,
            workspace.metric,
            outputs=workspace.judged.names,
        )
        yield Gain(best[0], final_score(evaluate(best[1], dense)))


def run_sweep(workspace: Workspace, sweep: Sweep, folder: Path, points: Path) -> Iterator[Result]:
    """Find a plan at each share, then train them all. Raises what `search` and `finetune` raise."""
    training_data(workspace)  # its absence is better said before than after a search
    tidy(folder)
    candidates = []
    for share in sweep.shares:
        report(Progress(f"finding ranks at {words.share(share)} of the {sweep.quantity}"))
        problem = _at_share(workspace, sweep, share, points)
        try:
            with scope(report=nobody):  # shares are counted, not plans
                *_, answer = search(sweep.rule, problem)
        except InvalidSearch as error:
            raise InvalidSearch(f"at {words.share(share)} of the {sweep.quantity}: {error}") from error
        candidates.append(answer.candidate)
    candidates = list(dict.fromkeys(candidates))
    report(Progress("training"))
    swept = sweeping.sweep(workspace, candidates, sweep.settings, workers=sweep.workers, folder=folder)
    pace = Pace(len(candidates))
    for done, plan in enumerate(swept, start=1):
        report(Progress("training", pace(done)))
        yield plan


def as_compressed(workspace: Workspace, candidate: Candidate) -> Before:
    """A plan before any training, measured unless its score is known."""
    if candidate.plain not in workspace.scores:
        workspace.scores[candidate.plain] = compressed_score(workspace, candidate)
    score = workspace.scores[candidate.plain]
    if score.samples <= WATCH:
        return Before(candidate, score, score)
    return Before(candidate, score, compressed_score(workspace, candidate, samples=WATCH))


def weights(workspace: Workspace, tuned: Tuned, folder: Path) -> Epoch:
    """The network with these weights, from its state on disk; raises InvalidFile where that has gone or gone on."""
    if tuned.given:
        return _epoch_of(with_weights(workspace.compress(tuned.candidate.plan), given_path(folder, tuned.given)).model)
    state = state_path(workspace, tuned.candidate, tuned.settings, folder, watch=tuned.watch)
    if not state.exists():
        raise InvalidFile("the tuned weights are not on disk any more; train the plan again on Fine-tune.")
    epoch = kept(workspace, tuned.candidate, tuned.settings, state, watch=tuned.watch)[-1]
    if (epoch.number, epoch.best) != (tuned.epochs, tuned.epoch):
        raise InvalidFile(
            f"this training has gone on since, to epoch {epoch.number}; open Fine-tune, start it again, and send its "
            "weights."
        )
    return epoch


def given_path(folder: Path, digest: str) -> Path:
    """Where weights that were trained elsewhere are kept; they go as old states of trainings do."""
    return folder / f"tune-given-{digest}.pt"


def given(workspace: Workspace, plan: RankPlan, content: bytes, folder: Path) -> tuple[Tuned, Epoch, tuple[str, ...]]:
    """Weights that were trained elsewhere for a plan, measured and kept; and what there is to say of them.

    Raises InvalidFile where they are not of the plan's network.
    """
    digest = hashlib.sha256(content).hexdigest()
    path = given_path(folder, digest)
    write_whole(path, content)
    try:
        returned = with_weights(workspace.compress(plan), path)
    except InvalidFile as error:
        path.unlink(missing_ok=True)
        raise InvalidFile(str(error).replace(str(path), "the file")) from error
    score = final_score(workspace.measure(returned.model, keep=False))
    return (
        Tuned(Candidate(plan), Settings(), 0, 0, 0, 0.0, score, given=digest),
        _epoch_of(returned.model),
        returned.notices,
    )


def _epoch_of(model: nn.Module) -> Epoch:
    return Epoch(0, 0, None, 0.0, 0.0, 0, 0.0, 0.0, model=model)


def of_sweep(workspace: Workspace, sweep: Sweep, swept: Swept, folder: Path) -> tuple[Tuned, Epoch]:
    """The weights of a plan of a sweep; raises InvalidFile where they are not on disk any more."""
    state = state_path(workspace, swept.candidate, sweep.settings, folder)
    if not state.exists():
        raise InvalidFile("the tuned weights are not on disk any more; start the sweep again.")
    epochs = kept(workspace, swept.candidate, sweep.settings, state)
    return _tuned(swept.candidate, sweep.settings, epochs, 0, swept.direct), epochs[-1]


def compressed(workspace: Workspace, tuned: Tuned, epoch: Epoch) -> Compressed:
    """Trained weights as the exports take them: network, plan, score, correction and where they come from."""
    plan, correction = tuned.candidate.plan, tuned.candidate.correction
    assert epoch.model is not None
    return Compressed(
        workspace.stored(epoch.model, plan),
        plan,
        tuned.score,
        None if correction is None else correction.to_dict(),
        {"by": BY, "sha256": tuned.given} if tuned.given else provenance(workspace, tuned.settings, plan, epoch),
    )


def _tuned(
    candidate: Candidate, settings: Settings, epochs: Sequence[Epoch], watch: int, score: Score, complete: bool = True
) -> Tuned:
    last = epochs[-1]
    return Tuned(candidate, settings, watch, last.best, last.number, epochs[last.best].validation_loss, score, complete)


def _best_so_far(workspace: Workspace, candidate: Candidate, settings: Settings, state: Path, keep: Keep) -> Tuned:
    epochs = kept(workspace, candidate, settings, state, watch=WATCH)
    score = epochs[epochs[-1].best].score
    assert score is not None
    tuned = _tuned(candidate, settings, epochs, WATCH, score, complete=False)
    keep(tuned, epochs[-1])
    return tuned


def _tuned_in(document: object) -> Tuned | None:
    try:
        return msgspec.convert(document, Tuned)
    except (ValueError, LowRankError):
        return None


NOTES: Notes[Tuned] = Notes(Kind("tuned weights", bare=True), "the notes of what was trained here", _tuned_in)


# ---- words ----------------------------------------------------------------------------------------------------------


def start(from_scratch: bool) -> str:
    """Where a run begins, as text: from random factors or from those of the plan."""
    return "from scratch" if from_scratch else "from the plan"


def run_name(settings: Settings) -> str:
    """What tells one run of a training from the others, as text: its start and its seed."""
    return f"{start(settings.from_scratch)}, seed {settings.seed}"


def weights_name(workspace: Workspace, tuned: Tuned) -> str:
    """Weights in one line: which epoch's, their score, how they were trained."""
    if tuned.given:
        return f"trained elsewhere, {words.score(workspace, tuned.score.value)} (file {tuned.given[:8]})"
    broken = "" if tuned.complete else ", broken off"
    value = words.score(workspace, tuned.score.value)
    on = f" on {how_many(tuned.score.samples, 'sample')}" if tuned.score.samples else ""
    learnt = f"{run_name(tuned.settings)}, learning from {choice_text('loss', tuned.settings.loss)}"
    return f"epoch {tuned.epoch} of {tuned.epochs}{broken}, {value}{on} ({learnt})"


def cancelled(trained: Trained) -> str:
    """What a training that was cancelled leaves behind, as Markdown."""
    goes_on = "The same training goes on from there when it is started again."
    if trained.chosen is None:
        return f"Cancelled before the first pass: there are no weights to keep. {goes_on}"
    if all(tuned.complete for tuned in trained.tuned):
        return f"Cancelled; the weights of {len(trained.tuned)} finished runs are kept. {goes_on}"
    last = trained.tuned[-1]
    which = f"those of epoch {last.epoch}" if last.epoch else "those of the start, as no epoch was better yet"
    run = f" ({run_name(last.settings)})" if len(trained.runs) > 1 else ""
    made = f"{last.epochs} of {last.settings.passes} epochs"
    return f"Cancelled after {made}{run}: the best weights so far are kept, {which}. {goes_on}"


def compared(workspace: Workspace, trained: Trained, tuned: Tuned) -> list[str]:
    """The score before and after a training, as lines of Markdown."""
    assert trained.before is not None
    corrected = " and corrected" if trained.before.candidate.correction else ""
    before = trained.before.score if tuned.complete else trained.before.watched  # the same samples as after
    made = f"{tuned.epochs} epoch{'' if tuned.epochs == 1 else 's'}"
    whose = f"epoch {tuned.epoch} of {tuned.epochs}" if tuned.epoch else f"the start, after {made}"
    if not tuned.complete:
        whose += ", broken off"
    lines = [
        f"**Before**, as compressed{corrected}: {words.plain(words.verdict(workspace, before))}",
        f"**After**, weights of {whose}: {words.plain(words.verdict(workspace, tuned.score))}",
    ]
    if tuned.epoch == 0 and tuned.complete and not tuned.settings.from_scratch:
        lines.append("No epoch was better than the start, whose weights are kept; try a smaller learning rate.")
    elif trained.gain is not None and trained.gain.tuned == tuned:
        gain = trained.gain.score
        change = words.plain(words.change(workspace, gain, "against before, paired on the same samples"))
        chance = gain.drop_low is not None and gain.drop_high is not None and gain.drop_low <= 0 <= gain.drop_high
        lines.append(f"**Change**: {change}{'; chance alone could make that difference' if chance else ''}.")
    return lines


def won(workspace: Workspace, trained: Trained, tuned: Tuned) -> str:
    """What each pass of a run won on the samples held back, as one line; "" where none was made."""
    passes = [epoch for epoch in trained.runs.get(tuned.settings, []) if epoch.won is not None]
    if not passes:
        return ""
    percent = workspace.metric.share
    rises = ", ".join(f"{100 * (e.won or 0):+.2f}" if percent else f"{e.won:+.3g}" for e in passes)
    unit = " points" if percent else ""
    return f"Held back, each pass won{unit and ', in' + unit}: {rises}.".replace("-", "−")


def run_on(trained: Trained, epochs: int) -> Training:
    """The same training with so many more epochs, from where each of its runs stopped."""
    wish = trained.wish
    assert isinstance(wish, Training)
    candidate = wish.candidate if trained.before is None else trained.before.candidate
    settings = replace(wish.settings, run_on=(*wish.settings.run_on, epochs))
    return replace(wish, candidate=candidate, settings=settings, max_drop=None, locked=())


def choice_text(name: str, value: str) -> str:
    """The value of a setting that is one of a few, as people read it."""
    (item,) = (item for item in fields(Settings) if item.name == name)
    return str(item.metadata["choices"][value])


def title(workspace: Workspace, wish: Training | Sweep) -> str:
    """A training or sweep in one line: which ranks, from where, for how many epochs."""
    s = wish.settings
    learns = " + ".join(map(str, (s.epochs, *s.run_on))) + f" epoch{'' if s.passes == 1 else 's'}"
    learns += "" if s.mix else ", unmixed"
    learns += "" if s.loss == "distill" else f", learning from {choice_text('loss', s.loss)}"
    if isinstance(wish, Sweep):
        shares = ", ".join(words.share(share) for share in wish.shares)
        return f"Sweep: {wish.rule.label} at {shares} of the {wish.quantity}, {learns}"
    starts = " and ".join(map(start, wish.starts))
    seeds = f", {wish.seeds} seeds" if wish.seeds > 1 else ""
    share = ""
    if wish.candidate is None:
        assert wish.max_drop is not None
        starts = (
            f"ranks by bisection, {words.loss(workspace)} up to {words.drop(workspace, wish.max_drop)}, then {starts}"
        )
    else:
        dense = plan_cost(workspace.profile).multiplies or 1
        share = f" at {words.share(plan_cost(workspace.profile, wish.candidate.plan).multiplies / dense)} multiplies"
    return f"{starts[0].upper()}{starts[1:]}{share}, {learns}{seeds}"
