"""Spectra of weights without a model, computed for all sessions that look."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import streamlit as st

from lowrank_core.running.jobs import Job
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.sources._inventory import Estimate, Inventory, measure_speed, remaining
from pages.ui.state import jobs, models
from pages.ui.state.session import session_id

SPECTRA_SECONDS = 20.0
"""Spectra that take no longer are computed unasked."""

ALL = "all spectra"
"""The one wish there is."""


@st.cache_resource(show_spinner="Measuring the speed of this machine…")
def speed() -> Estimate:
    """How fast this machine computes spectra, measured once."""
    return measure_speed()


def job(stock: Inventory) -> Job[str] | None:
    """What computes all spectra, for all sessions that look; started unasked where that is short."""
    shared, key = jobs.spectra(), weights_key(stock)
    existing, names = shared.get(key, ALL), [layer.name for layer in stock.layers]
    if existing is None and 0 < remaining(stock, names, speed()) <= SPECTRA_SECONDS:
        start(stock)
    elif existing is not None and not existing.snapshot.over:
        shared.join(session_id(), key, ALL)
    return shared.asked_by(session_id(), key).get(ALL) or shared.get(key, ALL)


def start(stock: Inventory) -> None:
    """Compute the spectra that are missing of these weights, as a job."""
    begin = partial(Job, f"Spectra of {stock.weights.name}", lambda: all_spectra(stock))
    jobs.spectra().begin(session_id(), weights_key(stock), ALL, begin, again=True)


def all_spectra(stock: Inventory) -> Iterator[str]:
    """Compute one spectrum after the other, and yield the names."""
    names = [layer.name for layer in stock.layers]
    for name in names:
        report(Progress(f"spectrum of {name}", remaining(stock, names, speed())))
        stock.spectrum(name)
        yield name


def weights_key(stock: Inventory) -> str:
    """What tells these weights, as their file is now, from all others."""
    return f"{stock.weights.ref} {models.stamp(stock.weights.ref)}"
