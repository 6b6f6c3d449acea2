"""A network that is being opened: in a thread of its own, while the one before is looked at and worked with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import streamlit as st

from lowrank_core.errors import InvalidData, InvalidFile, LowRankError
from lowrank_core.running.jobs import Job
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import raise_if_cancelled, report, somebody_waits
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.reference import model_and_weights
from pages.ui import dropped, may_open
from pages.ui.state import jobs, models, session
from pages.ui.state.session import session_id

How = Literal["success", "info", "error"]


def name_of(address: str) -> str:
    """A network as its file is called."""
    return Path(model_and_weights(address)[0]).name


# ---- asked for ------------------------------------------------------------------------------------------------------


def begin(address: str, plan: Path | None = None) -> None:
    """Open a network for this session, and look at it once it is there. plan: a file with a plan for it."""
    call_off()
    forget()
    models.make_ready()
    start = partial(Job, f"Opening {name_of(address)}", partial(_opening, address))
    jobs.openings().begin(session_id(), "", address, start, again=True)
    st.session_state["opening"] = (address, plan)


def begin_named(path: str, weights: str) -> None:
    """Open what a person has named by its path; what may not be opened is said."""
    try:
        begin(may_open.address_of(path, weights))
    except InvalidFile as error:
        say(str(error))


def begin_dropped(files: Sequence[tuple[str, bytes]]) -> None:
    """Open what a person has dropped, or take the plan of it; what may not be dropped is said."""
    before = next(iter(dropped.networks_of(session_id())), None)
    try:
        what = dropped.take(session_id(), files, before)
    except InvalidFile as error:
        say(str(error))
        return
    if what.network is not None:
        begin(what.network, what.plan)
    else:
        forget()
        st.session_state["plan dropped"] = what.plan


def call_off() -> None:
    """This session does not wait any more for what it has asked to be opened; the work ends unless others wait."""
    address, job = _wanted()
    if job is not None:
        jobs.cancel(job)
        st.session_state.pop("opening", None)
        say(f"Called off: {name_of(address)} was not opened.", "info")


def _wanted() -> tuple[str, Job[str] | None]:
    """The network that this session waits for, and its job as the session sees it."""
    address, _ = st.session_state.get("opening", ("", None))
    return address, jobs.openings().asked_by(session_id(), "").get(address)


def awaited() -> Job[str] | None:
    """What this session waits for, which may be over since `take_over` has looked; None where that is nothing."""
    return _wanted()[1]


# ---- the work -------------------------------------------------------------------------------------------------------


def _opening(address: str) -> Iterator[str]:
    """Open a network of files, and give its address once it can be looked at."""
    before, name = models.stamp(address), name_of(address)
    changed = InvalidFile(f"{name} changed while it was read; open it again once it is written.")
    try:
        with somebody_waits():
            model = models.open_model(address, before, _say)
    except LowRankError as error:
        raise_if_cancelled()
        if models.stamp(address) != before:
            raise changed from error
        raise
    if models.stamp(address) != before:
        raise changed
    if isinstance(model, Inventory) and model.weights.wanting:
        data = Path(name).with_suffix(".npz").name
        remedy = f"Drop {data}, too." if dropped.is_dropped(address) else f"Open it again once {data} is there."
        raise InvalidData(f"{name}: {model.weights.wanting} {remedy}")
    yield address


def _say(step: str) -> None:
    raise_if_cancelled()
    report(Progress(step))


# ---- over -----------------------------------------------------------------------------------------------------------


def take_over(page: str) -> None:
    """On Home: look at the network that was waited for, if it is there, or say why it is not.

    Other pages go on with the one before, whose plan a person may be dragging.
    """
    if page != jobs.HOME:
        forget()
        return
    address, job = _wanted()
    if job is None or not job.snapshot.over:
        return
    _, plan = st.session_state.pop("opening")
    if job.snapshot.error is not None:
        say(dropped.without_folders(" ".join(job.snapshot.error.split())))
    elif job.snapshot.cancelled or job.cancelled():
        say(f"Called off: {name_of(address)} was not opened.", "info")
    else:
        models.choose(address)
        st.session_state["plan dropped"] = plan
        say(f"{name_of(address)} is open.", "success")


def plan_dropped() -> Path | None:
    """The file of a plan that was dropped for the network that is looked at now; handed out once."""
    plan: Path | None = st.session_state.pop("plan dropped", None)
    return plan


def say(line: str, how: How = "error") -> None:
    """Say what became of the last attempt, on Home until the next one."""
    session.set_widget("opening said", (line, how))


def said() -> tuple[str, How]:
    """What is to be said of the last attempt, and how it is meant; "" for nothing."""
    line: tuple[str, How] = session.widget("opening said") or ("", "info")
    return line


def forget() -> None:
    """Nothing more is said of the last attempt."""
    session.set_widget("opening said", None)
