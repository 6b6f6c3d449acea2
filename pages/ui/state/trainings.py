"""Trainings: what this session has trained of a model, and the weights that came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import PATIENCE_SECONDS, Job
from lowrank_core.store.room import Part
from lowrank_core.training.finetune import Epoch
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import Swept
from lowrank_core.workspace import Workspace
from pages.ui import tuning
from pages.ui.note_file import Noted, change_notes, read_notes
from pages.ui.state import jobs, models, on_disk, session
from pages.ui.state.plans import history, set_history
from pages.ui.state.session import session_id
from pages.ui.tuning import Result, Sweep, Training, Tuned

TUNED_BYTES = 2**28
"""Tuned networks in memory take at most this; others come back from their states on disk."""


@st.cache_resource
def _tuned_networks() -> Part:
    return models.room().part(TUNED_BYTES)


def begun(workspace: Workspace) -> dict[Training | Sweep, Job[Result]]:
    """What this session has trained of this model, the latest last; the same training of two sessions is one job."""
    return jobs.trainings().asked_by(session_id(), models.key(workspace))


def before_it_starts(workspace: Workspace, wish: Training | Sweep) -> tuple[str, ...]:
    """What a person should know of a training before it starts, in sentences."""
    if jobs.is_done(begun(workspace).get(wish)):
        return ("Done already: it is shown at once.",)
    return tuning.before_it_starts(workspace, wish, models.cache().points)


def start(workspace: Workspace, wish: Training | Sweep) -> None:
    """Train, unless that is done or under way; what broke off, even with the server, goes on where it was."""
    cache, networks, model = models.cache(), _tuned_networks(), models.key(workspace)

    def work() -> Iterator[Result]:
        if isinstance(wish, Sweep):
            return tuning.run_sweep(workspace, wish, cache.tuning, cache.points)

        def keep(tuned: Tuned, epoch: Epoch) -> None:
            _keep_network(networks, (model, tuned), epoch)

        return tuning.train(workspace, wish, cache.tuning, cache.points, keep)

    jobs.note_asked(workspace, wish)
    jobs.trainings().begin(
        session_id(), model, wish, lambda: Job("Fine-tuning", work, patience_seconds=PATIENCE_SECONDS)
    )


def asked_before(workspace: Workspace) -> list[Training | Sweep]:
    """What was asked of a server that was stopped since, the latest first."""
    already = begun(workspace)
    return [wish for wish in jobs.noted(workspace)[::-1] if isinstance(wish, Training | Sweep) and wish not in already]


def _keep_network(networks: Part, key: tuple[str, Tuned], epoch: Epoch) -> None:
    networks.put(key, epoch, sum(p.nbytes for p in epoch.model.parameters()) if epoch.model else 0)


def tuned(workspace: Workspace) -> tuple[Tuned, ...]:
    """The weights this session has trained of this model, the ones to prefer last; a restart loses none of them."""
    earlier: tuple[Tuned, ...] = st.session_state.get(f"tuned {models.key(workspace)}") or _noted(workspace)
    over = [tuning.Trained(wish, job.snapshot) for wish, job in begun(workspace).items() if job.snapshot.over]
    chosen = (training.chosen for training in over)
    fresh = tuple(weights for weights in chosen if weights is not None and weights not in earlier)
    return _note(workspace, earlier, fresh) if fresh else earlier


def send_to_export(workspace: Workspace, weights: Tuned) -> None:
    """Make weights the ones that Export takes; their plan becomes the plan, as a step that can be undone."""
    _note(workspace, tuned(workspace), (weights,))
    if history(workspace).plan != weights.candidate.plan:
        set_history(workspace, history(workspace).commit(weights.candidate.plan))


def send_swept(workspace: Workspace, sweep: Sweep, swept: Swept) -> None:
    """Make the weights of a sweep's plan the ones that Export takes, and its plan the plan; raises InvalidFile."""
    weights, epoch = tuning.of_sweep(workspace, sweep, swept, models.cache().tuning)
    _keep_network(_tuned_networks(), (models.key(workspace), weights), epoch)
    send_to_export(workspace, weights)


def take(workspace: Workspace, plan: RankPlan, content: bytes) -> tuple[str, ...]:
    """Take weights that were trained elsewhere as a plan's tuned ones; what there is to say. Raises InvalidFile."""
    weights, epoch, notices = tuning.given(workspace, plan, content, models.cache().tuning)
    _keep_network(_tuned_networks(), (models.key(workspace), weights), epoch)
    _note(workspace, tuned(workspace), (weights,))
    return notices


def tuned_network(workspace: Workspace, weights: Tuned) -> Epoch:
    """The epoch with the network that has these weights; raises InvalidFile where they are gone."""
    return trained(workspace)(weights)


def trained(workspace: Workspace) -> Callable[[Tuned], Epoch]:
    """What `tuned_network` gives, to be asked for in the thread of a job."""
    networks, model, folder = _tuned_networks(), models.key(workspace), models.cache().tuning

    def network(weights: Tuned) -> Epoch:
        epoch: Epoch | None = networks.get((model, weights))
        if epoch is None:
            epoch = tuning.weights(workspace, weights, folder)
            _keep_network(networks, (model, weights), epoch)
        return epoch

    return network


def _note(workspace: Workspace, earlier: tuple[Tuned, ...], fresh: tuple[Tuned, ...]) -> tuple[Tuned, ...]:
    """Add weights; of one training the latest alone."""

    def of(weights: Tuned) -> tuple[Candidate, Settings, int, bool]:
        return weights.candidate, weights.settings, weights.watch, bool(weights.given)

    replaced = {of(weights) for weights in fresh}

    def with_them(others: tuple[Tuned, ...]) -> tuple[Tuned, ...]:
        every = (*others, *(weights for weights in earlier if weights not in others))
        return (*(weights for weights in every if of(weights) not in replaced), *fresh)[-jobs.MOST_TRAININGS :]

    file = _notes(workspace)
    try:
        noted = change_notes(file, tuning.NOTES, with_them, msgspec.json.encode)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        noted = Noted(with_them(()))
    if noted.said:
        session.say(noted.said)
    st.session_state[f"tuned {models.key(workspace)}"] = noted.entries
    return noted.entries


def _noted(workspace: Workspace) -> tuple[Tuned, ...]:
    file = _notes(workspace)
    try:
        noted = read_notes(file, tuning.NOTES)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        return ()
    if noted.said:
        session.say(noted.said)
    return noted.entries


def _notes(workspace: Workspace) -> Path:
    return on_disk.file_of(workspace.profile.fingerprint, f"-{models.key(workspace)}-tuned.json")
