"""Spectra of weights without a model, computed for all sessions that look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import streamlit as st

from lowrank_core.running.jobs import Job
from lowrank_core.running.progress import Doing
from lowrank_core.sources._inventory import Estimate, Inventory, measure_speed, remaining
from pages.ui.state import jobs, models
from pages.ui.state.session import session_id

SPECTRA_SECONDS = 20.0
"""Spectra that take no longer are computed unasked."""

ALL = "all spectra"
"""The one wish there is."""


@st.cache_resource(show_spinner="Measuring the speed of this machine…")
def speed() -> Estimate:
    """How fast spectra are computed here."""
    return measure_speed()


def job(stock: Inventory) -> Job[str] | None:
    """What computes all spectra, for all sessions that look; started unasked where that is short."""
    shared, key = jobs.spectra(), weights_key(stock)
    known, names = shared.get(key, ALL), [layer.name for layer in stock.layers]
    if known is None and 0 < remaining(stock, names, speed()) <= SPECTRA_SECONDS:
        start(stock)
    elif known is not None and not known.snapshot.over:
        shared.join(session_id(), key, ALL)
    return shared.get(key, ALL)


def start(stock: Inventory) -> None:
    """Compute those that are missing."""
    begin = partial(Job, f"Spectra of {stock.weights.name}", all_spectra(stock))
    jobs.spectra().begin(session_id(), weights_key(stock), ALL, begin, again=True)


def all_spectra(stock: Inventory) -> Callable[[Job[str]], Iterator[str]]:
    """Work that computes one spectrum after the other, and yields the names."""

    def work(job: Job[str]) -> Iterator[str]:
        names = [layer.name for layer in stock.layers]
        for name in names:
            job.tell(Doing(f"spectrum of {name}", remaining(stock, names, speed())))
            stock.spectrum(name, cancelled=job.stopped)
            yield name

    return work


def weights_key(stock: Inventory) -> str:
    """What tells these weights, as their file is now, from all others."""
    return f"{stock.weights.ref} {models.stamp(stock.weights.ref)}"
