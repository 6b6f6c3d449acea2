"""Folders that are compressed block by block: what is known before, and the jobs of this session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import streamlit as st

from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import Job
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.room import Recent
from lowrank_core.streaming.request import Outlook, Request, Step
from pages.ui.state import jobs, spectra
from pages.ui.state.session import session_id
from pages.ui.streaming import Stream

MOST_LOOKED_AT = 50
"""Requests of which it is remembered what was said before."""


def begun(stock: Inventory) -> dict[Stream, Job[Step]]:
    """What this session has asked of these weights, the latest last."""
    return jobs.streams().asked_by(session_id(), spectra.weights_key(stock))


def start(stock: Inventory, stream: Stream) -> None:
    """Compress, unless it is under way; what broke off, even with the server, goes on where it was."""

    def work() -> Iterator[Step]:
        from lowrank_core.streaming.compress import compressing, fingerprint_of
        from lowrank_core.streaming.skeleton import skeleton_of

        request = stream.request
        if stream.choices is not None:
            plan = RankPlan.of(fingerprint_of(skeleton_of(request.folder)), dict(stream.choices))
            request = replace(request, plan=plan, bytes_share=None)
        yield from compressing(request)

    begin = lambda: Job(f"Compressing {stream.request.folder.name}", work)  # noqa: E731
    jobs.streams().begin(session_id(), spectra.weights_key(stock), stream, begin, again=True)


def outlook(request: Request) -> Outlook:
    """What can be said before it begins; raises LowRankError. Looked at anew when one of its files has changed."""
    from lowrank_core.streaming.compress import look

    key = request, tuple(map(_stamp, (request.folder, request.text, request.held_out, request.out))), _kept(request)
    if key not in _outlooks():
        _outlooks()[key] = look(request)
    return _outlooks()[key]


def layers(folder: Path) -> tuple[str, ...]:
    """The names of the layers that are compressed; raises LowRankError."""
    from lowrank_core.streaming.skeleton import skeleton_of

    key = folder, _stamp(folder)
    if key not in _names():
        skeleton = skeleton_of(folder)
        _names()[key] = tuple(name for block in skeleton.blocks for name in skeleton.linear(block))
    return _names()[key]


@st.cache_resource
def _outlooks() -> Recent[tuple[object, ...], Outlook]:
    return Recent(MOST_LOOKED_AT)


@st.cache_resource
def _names() -> Recent[tuple[Path, object], tuple[str, ...]]:
    return Recent(MOST_LOOKED_AT)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _kept(request: Request) -> int:
    return len(list(request.work_folder.glob("*"))) if request.work_folder.is_dir() else 0
