"""What a session remembers: the only file that touches st.session_state and st.cache_*.

Session state holds small frozen values; models, data and factors live in one shared, read-only workspace per model.
Every change of a plan is saved under the id in the address (?w=...), so a refresh or a restart loses nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import streamlit as st
import torch
from streamlit.runtime.scriptrunner_utils.exceptions import StopException
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests, ScriptRequestType
from streamlit.runtime.scriptrunner_utils.script_run_context import ThreadState, get_script_run_ctx

from lowrank_core.builtin import BUILTIN, POINTS
from lowrank_core.compression.start import starting_plan
from lowrank_core.errors import InvalidSettings, LowRankError
from lowrank_core.exports import Exported
from lowrank_core.measure.comparison import Comparison
from lowrank_core.measure.latency import Runtime, Timing
from lowrank_core.measure.measurement import Measurement
from lowrank_core.measure.staircases import Staircase, known_staircases, setting_of
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.prediction import NoiseTable, noise_table
from lowrank_core.predict.survey import Survey
from lowrank_core.running.jobs import Job
from lowrank_core.running.progress import Doing
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import Trial
from lowrank_core.sources._inventory import Estimate, Inventory, measure_speed, remaining
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import SCRATCH, remove_left, remove_old_scratch, write_whole
from lowrank_core.store.room import Part, Recent, Room
from lowrank_core.training.finetune import Epoch
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import Swept
from lowrank_core.workspace import Workspace, open_to_look
from pages.ui import compare, heap, question, tuning
from pages.ui.asked import Asked, from_json, to_json
from pages.ui.compare import Found, Raced
from pages.ui.history import History
from pages.ui.question import Question
from pages.ui.shared_jobs import SharedJobs, Started
from pages.ui.tuning import Event, Sweep, Training, Tuned

DENSE_SAMPLES = 1024

MOST_MODELS = 2 * (len(BUILTIN) + 1)
"""Of which small things are kept: every built-in one and the given one, with the correction and without."""

MOST_SESSIONS = 200
"""Of which the measurement that runs is known."""

MEMORY = "RANK_EXPLORER_MEMORY_MB"
"""The environment variable that says how much memory results that can be computed again may take."""

TUNED_BYTES = 2**28
"""Tuned networks in memory take at most this; others come back from their states on disk."""

MOST_EXPORTED_BYTES = 4 * 10**9
"""Files that wait for their download take at most this, for all sessions; the oldest go first."""

# One core stays free for the server; threads that outnumber free cores wait for each other many times longer.
torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
heap.keep_small()


def model_given() -> str | None:
    """The model named when the app was started: `streamlit run app.py -- path/to/model.py`."""
    return sys.argv[1] if len(sys.argv) > 1 else None


def model_refs() -> tuple[str, ...]:
    """What can be opened here: the model given at the start, then the built-in ones. Never an upload: it is code."""
    given = model_given()
    builtin = tuple(f"builtin:{name}" for name in BUILTIN)
    return (given, *builtin) if given and given not in builtin else builtin


def model_ref() -> str:
    """The model this session looks at; the address may name one (?model=...)."""
    _restore_session()
    if "model" not in st.session_state:
        asked = st.query_params.get("model")
        st.session_state["model"] = asked if asked in model_refs() else model_given() or model_refs()[0]
    return str(st.session_state["model"])


def choose_model(ref: str) -> None:
    """Look at another model; the plans of the others are kept."""
    st.session_state["model"] = ref
    st.query_params["model"] = ref


def opened() -> Workspace | Inventory:
    """The opened model, or weights without one, shared by all sessions; raises a LowRankError."""
    ref = model_ref()
    st.query_params["w"] = _session_id()
    if ref != model_refs()[0] or "model" in st.query_params:
        st.query_params["model"] = ref
    return _open(ref, _stamp(ref))


def _open(ref: str, stamp: str) -> Workspace | Inventory:
    """Built-in models are few and small, so all of them stay open; of the given one also what it was before an edit."""
    return _open_builtin(ref) if ref.startswith("builtin:") else _open_given(ref, stamp)


@st.cache_resource(max_entries=len(BUILTIN), show_spinner="Opening the model…")
def _open_builtin(ref: str) -> Workspace | Inventory:
    return open_to_look(ref, _cache(), _room())


@st.cache_resource(max_entries=2, show_spinner="Opening the model…")
def _open_given(ref: str, stamp: str) -> Workspace | Inventory:
    return open_to_look(ref, _cache(), _room())


@st.cache_resource
def _room() -> Room:
    """What is kept in memory of all models together is bounded by this; raises InvalidSettings."""
    given = os.environ.get(MEMORY, "")
    if not given:
        return Room()
    if not re.fullmatch(r"[1-9]\d{0,8}", given):
        raise InvalidSettings(f"{MEMORY} must be a whole number of MB from 1, such as 512; got {given!r}. Correct it.")
    return Room(int(given) * 10**6)


def _cache() -> Cache:
    """What is kept on disk for all sessions, and for the command line."""
    return Cache(platformdirs.user_cache_path("rank-explorer"))


def _stamp(ref: str) -> str:
    """Changes when a model file, or a file beside it or in its folder, does: an edited model is opened again."""
    path = Path(ref).expanduser()
    if not path.exists():
        return ""
    folder = path if path.is_dir() else path.parent
    beside = sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(repr(beside).encode()).hexdigest()


def dense_score(shown: Workspace) -> tuple[float, int]:
    """(score, samples) of the dense network: on all samples once a measurement has run it on them, on some before."""
    complete = shown.opened.evaluate is None and shown.reference.complete
    return shown.dense_score(None if complete else DENSE_SAMPLES)


@st.cache_resource(max_entries=MOST_MODELS, show_spinner="Preparing the prediction…")
def noise(_workspace: Workspace, fingerprint: str, ref: str) -> NoiseTable | None:
    """The prediction table; None where the model file scores itself."""
    return None if _workspace.opened.evaluate is not None else noise_table(_workspace.reference, DENSE_SAMPLES)


# ---- plans ----------------------------------------------------------------------------------------------------------


def history(shown: Workspace) -> History:
    """The plans of this session for this model; at first one at about half the multiplies."""
    histories = st.session_state.setdefault("histories", {})
    fingerprint = shown.profile.fingerprint
    if fingerprint not in histories:
        histories[fingerprint] = _saved(fingerprint, shown) or History(starting_plan(shown.profile, shown.factors))
    return histories[fingerprint]  # type: ignore[no-any-return]


def plan(shown: Workspace) -> RankPlan:
    """The plan as it stands."""
    return history(shown).plan


def plan_if_made(shown: Workspace) -> RankPlan | None:
    """The plan as it stands; None where the first one has still to be found, for which every layer is factorised."""
    fingerprint = shown.profile.fingerprint
    kept = st.session_state.get("histories", {}).get(fingerprint) or _saved(fingerprint, shown)
    return kept.plan if kept else None


def set_history(shown: Workspace, changed: History) -> None:
    """Remember a changed history, here and on disk."""
    st.session_state["histories"][shown.profile.fingerprint] = changed
    path = _folder() / f"{_session_id()}-{shown.profile.fingerprint[7:19]}.json"
    write_whole(path, changed.to_json().encode())


def _saved(fingerprint: str, shown: Workspace) -> History | None:
    path = _folder() / f"{_session_id()}-{fingerprint[7:19]}.json"
    remove_left(path.parent)
    try:
        found = History.from_json(path.read_text(encoding="utf-8"))
        for kept in (found.plan, *found.past, *found.future, *(s.plan for s in found.snapshots)):
            check_plan(shown.profile, kept)
    except (OSError, ValueError, KeyError, TypeError, LowRankError):
        return None
    return found


def _folder() -> Path:
    return platformdirs.user_state_path("rank-explorer", ensure_exists=True)


def _session_id() -> str:
    return str(st.session_state["session"])


def _restore_session() -> None:
    if "session" not in st.session_state:
        asked = st.query_params.get("w", "")
        st.session_state["session"] = asked if re.fullmatch(r"[0-9a-f]{16}", asked) else secrets.token_hex(8)


# ---- measurements ---------------------------------------------------------------------------------------------------


@st.cache_resource
def _measurements() -> Recent[str, Measurement]:
    return Recent(MOST_SESSIONS)


@st.cache_resource(max_entries=MOST_MODELS, on_release=lambda survey: survey.stop())
def _survey(_workspace: Workspace, fingerprint: str, ref: str, corrected: bool) -> Survey:
    shipped = POINTS if ref.startswith("builtin:") else None
    return Survey(_workspace, corrected=corrected, folder=_cache().points, shipped=shipped)


def survey(shown: Workspace) -> Survey:
    """What is learnt of the model in the background, for all sessions that look at it."""
    return _survey(shown, shown.profile.fingerprint, shown.opened.ref, history(shown).corrected)


def candidate(shown: Workspace, wanted: RankPlan | None = None) -> Candidate:
    """The plan as it stands, or another one, with the correction where it is on."""
    kept = history(shown)
    return shown.candidate(kept.plan if wanted is None else wanted, corrected=kept.corrected)


def measure(shown: Workspace) -> Measurement:
    """The measurement of the plan as it stands: the running one, or a new one that calls the older off."""
    running = _measurements().get(_session_id())
    wanted = candidate(shown)
    tolerance = history(shown).tolerance
    same = running is not None and (running.candidate, running.tolerance) == (wanted, tolerance)
    if running is not None and same and running.progress.error is None:
        return running
    if running is not None:
        running.cancel()
    started = Measurement(shown, wanted, tolerance=tolerance)
    _measurements()[_session_id()] = started
    return started


def widget(key: str) -> Any:
    """What a widget holds, or what was kept under that name; None where there is nothing."""
    return st.session_state.get(key)


def set_widget(key: str, value: str) -> None:
    """Keep a small value until the next run."""
    st.session_state[key] = value


def heard() -> tuple[str, int]:
    """The board whose messages came last, and the number of the last one."""
    found: tuple[str, int] = st.session_state.get("heard", ("", 0))
    return found


def hear(board: str, number: int) -> bool:
    """Note a message of a board; False where it was heard before, as messages may come again."""
    if heard()[0] == board and number <= heard()[1]:
        return False
    st.session_state["heard"] = board, number
    return True


def newer_run_waits() -> bool:
    """Whether another run of this session waits for this one to end.

    Streamlit ends a run for a full rerun by itself, but lets one of a fragment wait (1.67), and does not say so; a run
    that streams has to look, or a released thumb would wait for the measurement before it. The fragments of `let_wait`
    do wait.
    """
    end_if_replaced()
    requests = _script_requests()
    if requests is None or requests._state is ScriptRequestType.CONTINUE:
        return False
    waiting = set(requests._rerun_data.fragment_id_queue)
    return not waiting or not waiting <= st.session_state.get("patient", set())


def end_if_replaced() -> None:
    """End this run where Streamlit has already begun another one for the same page, as after a page switch.

    A run of a page that comes to its end by itself removes all fragments but its own (1.67): those of the run that took
    its place with them, whose buttons and boards then do nothing any more. Ended like this it removes none.
    """
    requests = _script_requests()
    if requests is not None and requests._state is ScriptRequestType.STOP:
        raise StopException


def _script_requests() -> ScriptRequests | None:
    """What Streamlit asks of this run; None outside of one."""
    context = get_script_run_ctx()
    return None if context is None else context.script_requests


def let_wait() -> None:
    """The fragment that calls this need not interrupt a run that streams."""
    fragment = ThreadState.get().fragment_id
    if fragment is not None:
        st.session_state.setdefault("patient", set()).add(fragment)


def measured(shown: Workspace, wanted: RankPlan) -> Score | None:
    """The score of a plan if it has been measured on all samples, with the correction as it is set now."""
    return shown.scores.get(candidate(shown, wanted))


# ---- searches -------------------------------------------------------------------------------------------------------

MOST_ASKED = 50
"""Searches and trainings of a session that are remembered on disk."""

MOST_SEARCHES = 200
"""Kept in memory for all sessions; the oldest that are over are forgotten first."""


@st.cache_resource
def _searches() -> SharedJobs[Question, Trial]:
    return SharedJobs("Search", MOST_SEARCHES)


def searches(shown: Workspace) -> dict[Question, Job[Trial]]:
    """What this session has asked about this model, the latest last; the same question of two sessions is one job."""
    return _searches().asked_by(_session_id(), _model_key(shown))


def start_search(shown: Workspace, asked: Question) -> None:
    """Ask, unless it was answered or is being answered; a search that broke off goes on where it was."""
    folder = _cache().points
    _note_asked(shown, asked)
    _searches().begin(
        _session_id(),
        _model_key(shown),
        asked,
        lambda: Job(f"Search: {asked.rule.label}", lambda job: question.ask(shown, asked, folder, job)),
    )


def _note_asked(shown: Workspace, wanted: Asked) -> None:
    """Remember on disk what was asked, for a server that is started anew."""
    noted = [other for other in asked_before(shown) if other != wanted]
    write_whole(_asked_file(shown), to_json([*noted, wanted][-MOST_ASKED:]))


def asked_before(shown: Workspace) -> tuple[Asked, ...]:
    """What this session has asked about this model, the latest last, also of a server that was stopped since."""
    try:
        return from_json(_asked_file(shown).read_bytes())
    except OSError:
        return ()


def _asked_file(shown: Workspace) -> Path:
    return _folder() / f"{_session_id()}-{shown.profile.fingerprint[7:19]}-asked.json"


def _model_key(shown: Workspace) -> str:
    return f"{shown.profile.fingerprint} {shown.opened.ref} {_stamp(shown.opened.ref)}"


# ---- trainings ------------------------------------------------------------------------------------------------------

MOST_TRAININGS = 100
"""Kept in memory for all sessions, as curves and scores; the oldest that are over are forgotten first."""


@st.cache_resource
def _trainings() -> SharedJobs[Training | Sweep, Event]:
    return SharedJobs("Fine-tune", MOST_TRAININGS)


@st.cache_resource
def _tuned_networks() -> Part:
    return _room().part(TUNED_BYTES)


def trainings(shown: Workspace) -> dict[Training | Sweep, Job[Event]]:
    """What this session has trained of this model, the latest last; the same training of two sessions is one job."""
    return _trainings().asked_by(_session_id(), _model_key(shown))


def start_training(shown: Workspace, asked: Training | Sweep) -> None:
    """Train, unless that is done or under way; what broke off, even with the server, goes on where it was."""
    folder, points, networks, model = _cache().tuning, _cache().points, _tuned_networks(), _model_key(shown)

    def work(job: Job[Event]) -> Iterator[Event]:
        if isinstance(asked, Sweep):
            return tuning.run_sweep(shown, asked, folder, points, job)
        return tuning.train(
            shown, asked, folder, points, lambda found, epoch: _keep_network(networks, (model, found), epoch), job
        )

    _note_asked(shown, asked)
    _trainings().begin(_session_id(), model, asked, lambda: Job("Fine-tuning", work))


def _keep_network(networks: Part, key: tuple[str, Tuned], epoch: Epoch) -> None:
    networks.put(key, epoch, sum(p.nbytes for p in epoch.model.parameters()) if epoch.model else 0)


def tuned(shown: Workspace) -> tuple[Tuned, ...]:
    """The weights this session has trained of this model, the ones to prefer last; a restart loses none of them."""
    known: tuple[Tuned, ...] = st.session_state.get(f"tuned {shown.profile.fingerprint}") or _noted(shown)
    over = [tuning.Trained(asked, job.snapshot) for asked, job in trainings(shown).items() if job.snapshot.over]
    fresh = tuple(found.chosen for found in over if found.chosen is not None and found.chosen not in known)
    return _note(shown, known, fresh) if fresh else known


def send_to_export(shown: Workspace, wanted: Tuned) -> None:
    """Make weights the ones that Export takes; their plan becomes the plan, as a step that can be undone."""
    _note(shown, tuned(shown), (wanted,))
    if history(shown).plan != wanted.candidate.plan:
        set_history(shown, history(shown).commit(wanted.candidate.plan))


def send_swept(shown: Workspace, asked: Sweep, swept: Swept) -> None:
    """The same for a plan of a sweep; raises InvalidFile."""
    found, epoch = tuning.of_sweep(shown, asked, swept, _cache().tuning)
    _keep_network(_tuned_networks(), (_model_key(shown), found), epoch)
    send_to_export(shown, found)


def tuned_network(shown: Workspace, wanted: Tuned) -> Epoch:
    """The epoch with the network that has these weights; raises InvalidFile where they are gone."""
    networks, key = _tuned_networks(), (_model_key(shown), wanted)
    known: Epoch | None = networks.get(key)
    if known is None:
        known = tuning.weights(shown, wanted, _cache().tuning)
        _keep_network(networks, key, known)
    return known


def _note(shown: Workspace, known: tuple[Tuned, ...], fresh: tuple[Tuned, ...]) -> tuple[Tuned, ...]:
    """Add weights; of one training the latest alone."""

    def of(one: Tuned) -> tuple[Candidate, Settings, int]:
        return one.candidate, one.settings, one.watch

    replaced = {of(one) for one in fresh}
    noted = (*(one for one in known if of(one) not in replaced), *fresh)[-MOST_TRAININGS:]
    st.session_state[f"tuned {shown.profile.fingerprint}"] = noted
    write_whole(_notes(shown), msgspec.json.encode(noted))
    return noted


def _noted(shown: Workspace) -> tuple[Tuned, ...]:
    try:
        return msgspec.json.decode(_notes(shown).read_bytes(), type=tuple[Tuned, ...])
    except (OSError, ValueError, LowRankError):
        return ()


def _notes(shown: Workspace) -> Path:
    return _folder() / f"{_session_id()}-{shown.profile.fingerprint[7:19]}-tuned.json"


# ---- comparisons ----------------------------------------------------------------------------------------------------

MOST_COMPARISONS = 100
"""Kept in memory for all sessions, as figures; the oldest that are over are forgotten first."""


@st.cache_resource
def _comparing() -> SharedJobs[compare.Asked, Found]:
    return SharedJobs("Compare", MOST_COMPARISONS)


def comparing(shown: Workspace) -> dict[compare.Asked, Job[Found]]:
    """What this session has had measured on Compare, the latest last."""
    return _comparing().asked_by(_session_id(), _model_key(shown))


def start_comparing(shown: Workspace, asked: compare.Asked) -> None:
    """Measure plans, their latency, or that of the layers; what is over is measured again."""
    folder = _cache().points
    _comparing().begin(
        _session_id(),
        _model_key(shown),
        asked,
        lambda: Job(compare.label(asked), lambda job: compare.work(shown, asked, folder, job)),
        again=True,
    )


def compared(shown: Workspace) -> dict[Candidate, Comparison]:
    """Every candidate of this model that was measured, by whichever session."""
    return {one.candidate: one for one in _found(shown) if isinstance(one, Comparison)}


def raced(shown: Workspace) -> dict[tuple[Candidate, Runtime], Timing]:
    """The latency of every candidate that was timed."""
    return {(one.candidate, one.runtime): one.timing for one in _found(shown) if isinstance(one, Raced)}


def _found(shown: Workspace) -> list[Found]:
    return [one for job in _comparing().of_model(_model_key(shown)) for one in job.snapshot.found]


def stairs(shown: Workspace, runtime: Runtime) -> tuple[Staircase, ...]:
    """The latency staircases of this model's layers that were measured on this machine."""
    folder = _cache().points
    changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
    return _stairs(shown, shown.profile.fingerprint, shown.opened.ref, runtime, changed) if changed else ()


@st.cache_resource(max_entries=8, show_spinner=False)
def _stairs(_workspace: Workspace, fingerprint: str, ref: str, runtime: Runtime, changed: int) -> tuple[Staircase, ...]:
    return known_staircases(_workspace.profile.layers, setting_of(_workspace, runtime), _cache().points)


# ---- jobs of all kinds ----------------------------------------------------------------------------------------------


def jobs_elsewhere(page: str) -> list[Started]:
    """Jobs of this session, of any model, that other pages show: running, or over since it last looked there."""
    _restore_session()
    looked: set[str] = st.session_state.setdefault("looked", set())
    kinds: tuple[SharedJobs[Any, Any], ...] = (_searches(), _trainings(), _comparing(), _spectra_jobs())
    found = [started for jobs in kinds for started in jobs.of_session(_session_id())]
    looked |= {started.key for started in found if started.page == page and started.job.snapshot.over}
    looked &= {started.key for started in found}
    return [started for started in found if started.page != page and started.key not in looked]


# ---- weights without a model ----------------------------------------------------------------------------------------

SPECTRA_SECONDS = 20.0
"""Spectra that take no longer are computed unasked."""


ALL = "all spectra"
"""The one wish there is."""


@st.cache_resource
def _spectra_jobs() -> SharedJobs[str, str]:
    return SharedJobs("Spectra", 20)


@st.cache_resource(show_spinner="Measuring the speed of this machine…")
def speed() -> Estimate:
    """How fast spectra are computed here."""
    return measure_speed()


def spectra_job(stock: Inventory) -> Job[str] | None:
    """What computes all spectra, for all sessions that look; started unasked where that is short."""
    jobs, key = _spectra_jobs(), _weights_key(stock)
    job, names = jobs.get(key, ALL), [layer.name for layer in stock.layers]
    if job is None and 0 < remaining(stock, names, speed()) <= SPECTRA_SECONDS:
        start_spectra(stock)
    elif job is not None and not job.snapshot.over:
        jobs.join(_session_id(), key, ALL)
    return jobs.get(key, ALL)


def start_spectra(stock: Inventory) -> None:
    """Compute those that are missing."""
    job = partial(Job, f"Spectra of {stock.weights.name}", all_spectra(stock))
    _spectra_jobs().begin(_session_id(), _weights_key(stock), ALL, job, again=True)


def all_spectra(stock: Inventory) -> Callable[[Job[str]], Iterator[str]]:
    """Work that computes one spectrum after the other, and yields the names."""

    def work(job: Job[str]) -> Iterator[str]:
        names = [layer.name for layer in stock.layers]
        for name in names:
            job.tell(Doing(f"spectrum of {name}", remaining(stock, names, speed())))
            stock.spectrum(name, cancelled=job.stopped)
            yield name

    return work


def _weights_key(stock: Inventory) -> str:
    return f"{stock.weights.ref} {_stamp(stock.weights.ref)}"


# ---- exports --------------------------------------------------------------------------------------------------------


@st.cache_resource
def _exports() -> tempfile.TemporaryDirectory[str]:
    remove_old_scratch()
    return tempfile.TemporaryDirectory(prefix=SCRATCH)


def export_folder() -> Path:
    """Where this session's files are written before they are downloaded; gone when the server ends."""
    folder = Path(_exports().name) / _session_id()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def written(kind: str, wanted: Candidate | Tuned) -> Exported | None:
    """The file of that kind, if the latest one was written for this candidate, or for these weights."""
    found: tuple[Candidate | Tuned, Exported] | None = st.session_state.get(f"written {kind}")
    return found[1] if found and found[0] == wanted else None


def keep_written(kind: str, wanted: Candidate | Tuned, exported: Exported) -> None:
    """Remember the latest file of a kind."""
    st.session_state[f"written {kind}"] = (wanted, exported)
    keep_newest(Path(_exports().name), MOST_EXPORTED_BYTES)


def keep_newest(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files below a folder until the rest take at most so many bytes; the newest always stays."""
    found = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in folder.rglob("*") if p.is_file())
    total = sum(size for _, size, _ in found)
    for _, size, path in found[:-1]:
        if total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
