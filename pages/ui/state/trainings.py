"""Trainings: what this session has trained of a model, and the weights that came of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.jobs import Job
from lowrank_core.store.files import write_whole
from lowrank_core.store.room import Part
from lowrank_core.training.finetune import Epoch
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import Swept
from lowrank_core.workspace import Workspace
from pages.ui import tuning
from pages.ui.state import jobs, models
from pages.ui.state.plans import history, set_history
from pages.ui.state.session import saved_file, session_id
from pages.ui.tuning import Event, Sweep, Training, Tuned

TUNED_BYTES = 2**28
"""Tuned networks in memory take at most this; others come back from their states on disk."""


@st.cache_resource
def _tuned_networks() -> Part:
    return models.room().part(TUNED_BYTES)


def begun(shown: Workspace) -> dict[Training | Sweep, Job[Event]]:
    """What this session has trained of this model, the latest last; the same training of two sessions is one job."""
    return jobs.trainings().asked_by(session_id(), models.key(shown))


def start(shown: Workspace, asked: Training | Sweep) -> None:
    """Train, unless that is done or under way; what broke off, even with the server, goes on where it was."""
    folder, points, networks, model = models.cache().tuning, models.cache().points, _tuned_networks(), models.key(shown)

    def work(job: Job[Event]) -> Iterator[Event]:
        if isinstance(asked, Sweep):
            return tuning.run_sweep(shown, asked, folder, points, job)
        return tuning.train(
            shown, asked, folder, points, lambda found, epoch: _keep_network(networks, (model, found), epoch), job
        )

    jobs.note_asked(shown, asked)
    jobs.trainings().begin(session_id(), model, asked, lambda: Job("Fine-tuning", work))


def asked_before(shown: Workspace) -> list[Training | Sweep]:
    """What was asked of a server that was stopped since, the latest first."""
    known = begun(shown)
    return [one for one in jobs.noted(shown)[::-1] if isinstance(one, Training | Sweep) and one not in known]


def _keep_network(networks: Part, key: tuple[str, Tuned], epoch: Epoch) -> None:
    networks.put(key, epoch, sum(p.nbytes for p in epoch.model.parameters()) if epoch.model else 0)


def tuned(shown: Workspace) -> tuple[Tuned, ...]:
    """The weights this session has trained of this model, the ones to prefer last; a restart loses none of them."""
    known: tuple[Tuned, ...] = st.session_state.get(f"tuned {shown.profile.fingerprint}") or _noted(shown)
    over = [tuning.Trained(asked, job.snapshot) for asked, job in begun(shown).items() if job.snapshot.over]
    fresh = tuple(found.chosen for found in over if found.chosen is not None and found.chosen not in known)
    return _note(shown, known, fresh) if fresh else known


def send_to_export(shown: Workspace, wanted: Tuned) -> None:
    """Make weights the ones that Export takes; their plan becomes the plan, as a step that can be undone."""
    _note(shown, tuned(shown), (wanted,))
    if history(shown).plan != wanted.candidate.plan:
        set_history(shown, history(shown).commit(wanted.candidate.plan))


def send_swept(shown: Workspace, asked: Sweep, swept: Swept) -> None:
    """The same for a plan of a sweep; raises InvalidFile."""
    found, epoch = tuning.of_sweep(shown, asked, swept, models.cache().tuning)
    _keep_network(_tuned_networks(), (models.key(shown), found), epoch)
    send_to_export(shown, found)


def tuned_network(shown: Workspace, wanted: Tuned) -> Epoch:
    """The epoch with the network that has these weights; raises InvalidFile where they are gone."""
    networks, key = _tuned_networks(), (models.key(shown), wanted)
    known: Epoch | None = networks.get(key)
    if known is None:
        known = tuning.weights(shown, wanted, models.cache().tuning)
        _keep_network(networks, key, known)
    return known


def _note(shown: Workspace, known: tuple[Tuned, ...], fresh: tuple[Tuned, ...]) -> tuple[Tuned, ...]:
    """Add weights; of one training the latest alone."""

    def of(one: Tuned) -> tuple[Candidate, Settings, int]:
        return one.candidate, one.settings, one.watch

    replaced = {of(one) for one in fresh}
    noted = (*(one for one in known if of(one) not in replaced), *fresh)[-jobs.MOST_TRAININGS :]
    st.session_state[f"tuned {shown.profile.fingerprint}"] = noted
    write_whole(_notes(shown), msgspec.json.encode(noted))
    return noted


def _noted(shown: Workspace) -> tuple[Tuned, ...]:
    try:
        return msgspec.json.decode(_notes(shown).read_bytes(), type=tuple[Tuned, ...])
    except (OSError, ValueError, LowRankError):
        return ()


def _notes(shown: Workspace) -> Path:
    return saved_file(shown.profile.fingerprint, "-tuned.json")
