"""Compare: the dense network, the plan and snapshots side by side, by score, time, memory and what changed."""

import re
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st
import torch

from lowrank_core.errors import LowRankError
from lowrank_core.figures import KIB
from lowrank_core.measure.comparison import Comparison, Flip
from lowrank_core.measure.latency import RUNTIMES, LatencyTable, cpu_name
from lowrank_core.measure.staircases import as_table
from lowrank_core.methods import METHODS
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.workspace import Workspace
from pages.ui import charts, compare, goals_bar, question, running, selecting, words
from pages.ui.button import button
from pages.ui.compare import Narrow, Races, Result, Scores, Stairs, Wish
from pages.ui.devices import Device
from pages.ui.history import and_so_on
from pages.ui.state import comparisons, plans, session

IMAGE_CHANNELS, LARGEST_IMAGE, MOST_IMAGES = (1, 3), 256, 24


def side_by_side(workspace: Workspace) -> dict[str, RankPlan]:
    """Dense, the plan as it stands, and the snapshots that were picked; equal plans are shown once."""
    history = plans.history(workspace)
    plan_of = {compare.DENSE: RankPlan(workspace.profile.fingerprint), "This plan": history.plan}
    snapshots = {s.name: s.plan for s in history.snapshots if s.name not in plan_of}
    if not snapshots:
        st.caption("Take snapshots on **Ranks**: they are compared here, too.")
    else:
        names = list(snapshots)
        picked = st.pills(
            "Snapshots",
            names,
            default=names[-4:],
            selection_mode="multi",
            format_func=words.plain,
            key=f"of {snapshots}",
        )
        plan_of |= {name: snapshots[name] for name in picked}
    unique = {plan: name for name, plan in reversed(plan_of.items())}
    equal = [f"{name} as {unique[plan]}" for name, plan in plan_of.items() if unique[plan] != name]
    if equal:
        st.caption(words.plain(f"Of equal plans the first is shown: {and_so_on(equal)}."))
    return {name: plan for name, plan in plan_of.items() if unique[plan] == name}


def ask_target(workspace: Workspace) -> compare.Target:
    """Device, number format, floor and energy: what plans are judged by."""
    chosen = goals_bar.show(workspace)
    if chosen.device is not None:
        take_off(workspace, chosen.device)
    with st.expander("Energy, an estimate of low confidence"):
        st.caption(
            "Multiplies and bytes moved, each at a price. The prices differ tenfold between chips and memories: the "
            "figures given are for arithmetic and DRAM at 45 nm (Horowitz 2014). Put in those of your device."
        )
        with_energy = st.toggle("Show it", key="energy wanted", persist_state="session")
        with st.container(horizontal=True):
            prices = [
                st.number_input(label, 0.0, value=value, format="%g", key=label, persist_state="session", width=180)
                for label, value in (("pJ per multiply", 4.6), ("pJ per byte moved", 160.0))
            ]
    return compare.Target(chosen, *(prices if with_energy else (None, None)))


def take_off(workspace: Workspace, device: Device) -> None:
    """Flash and RAM of the device, less what the program itself needs."""

    def changed(field: str, key: str) -> None:
        typed = session.widget(key)
        if typed is not None:
            changes: dict[str, Any] = {field: max(1, round(KIB * typed))}
            plans.aim(workspace, replace(plans.goals(workspace), device=replace(device, **changes)))

    with st.container(horizontal=True, gap="medium"):
        for label, field, value in (
            ("Flash, KiB", "flash_bytes", device.flash_bytes),
            ("RAM, KiB", "ram_bytes", device.ram_bytes),
        ):
            key = f"{field} {device.name} {value}"
            st.number_input(
                label,
                1 / KIB,
                value=None if value is None else value / KIB,
                step=1.0,
                format="%g",
                help="As the maker states it, in units of 1024 bytes; take off what the program itself needs.",
                key=key,
                on_change=changed,
                args=(field, key),
                width=150,
            )


def watch(job: Job[Result]) -> None:
    """Say what goes on until the job is over."""

    def says(snapshot: Snapshot[Result]) -> str:
        doing = "ending after the step at hand" if job.cancelled() else snapshot.progress.words or "at work"
        return f"{words.plain(doing)} · {job.seconds:.0f} s"

    running.follow(job, says, lambda snapshot, serial: None)


def ask(workspace: Workspace, wish: Wish, label: str, busy: bool) -> None:
    """A button for a measurement, and why the last one failed."""
    job = comparisons.begun(workspace).get(wish)
    if button(label, icon=":material/timer:", key=f"ask {label}", disabled=busy):
        comparisons.start(workspace, wish)
        st.rerun()
    if job is not None and job.snapshot.error:
        st.error(words.plain(job.snapshot.error), icon=":material/error:")


def table(
    workspace: Workspace, columns: dict[str, Comparison], target: compare.Target, device_table: LatencyTable
) -> None:
    """The comparison as a table: one column per plan, one row per figure."""
    timings = comparisons.timings(workspace)
    rows = compare.rows(workspace, columns, timings, target, device_table, comparisons.narrow(workspace))
    frame_of_rows = pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))
    frame_of_rows.columns = [words.plain(name) for name in columns]
    frame_of_rows.index.name = "Figure"
    with st.container(key="compare_table"):
        st.table(frame_of_rows)
    how = next(iter(columns.values())).memory["as it is"].how
    how = "the graph of torch.export" if how == "torch.export" else "one run, since torch.export cannot trace it"
    st.caption(
        f"Flash: parameters and buffers, tied ones once. Peak RAM: activations that live at one time, from {how}; a "
        "lower bound, for a runtime adds scratch space. Bytes moved: weights read once, activations whenever they are "
        f"used. Memory and latency at the batch of the example inputs. Latency: this processor ({cpu_name()}), one "
        "thread, paired with dense.",
    )


def changes(workspace: Workspace, columns: dict[str, Comparison]) -> None:
    """What became of single classes and samples under one of the plans."""
    columns = {
        name: comparison
        for name, comparison in columns.items()
        if comparison.candidate.plan.choices and comparison.classes
    }
    if not columns:
        return
    st.header("What changed", anchor=False)
    names = list(columns)
    name = st.segmented_control("Plan", names, default=names[0], required=True, key=f"of {names}")
    comparison = columns[name]
    left, right = st.columns([2, 3], gap="large")
    with left:
        percent: dict[str, Any] = {"format": "%.1f %%"}
        rows = pd.DataFrame(compare.class_rows(comparison)).sort_values("Change", kind="stable")
        st.dataframe(
            rows,
            hide_index=True,
            height="content" if len(rows) <= 12 else 460,
            column_config={
                "Class": st.column_config.NumberColumn(width=50),
                "Samples": st.column_config.NumberColumn(width=66),
                "Dense": st.column_config.NumberColumn(width=68, **percent),
                "Plan": st.column_config.NumberColumn(width=68, **percent),
                "Change": st.column_config.NumberColumn(width=70, format="%+.1f"),
            },
        )
    with right:
        st.markdown(
            f"**{comparison.lost}** lost, **{comparison.won}** won, **{comparison.changed}** wrong in another way."
        )
        flips(workspace, comparison.flips)


def flips(workspace: Workspace, flipped: tuple[Flip, ...]) -> None:
    """Samples on which the networks disagree, as images where they are some."""
    if not flipped:
        return
    inputs, first = workspace.reference.dataset.inputs, flipped[:MOST_IMAGES]
    if isinstance(inputs, tuple) and len(inputs) == 1:
        (inputs,) = inputs
    picture = isinstance(inputs, torch.Tensor) and inputs.ndim == 4 and inputs.shape[1] in IMAGE_CHANNELS
    if not picture or max(inputs.shape[2:]) > LARGEST_IMAGE:
        rows = [{"Sample": f.sample, "Target": f.target, "Dense": f.dense, "Plan": f.compressed} for f in flipped]
        st.dataframe(pd.DataFrame(rows), hide_index=True)
        return
    st.html(charts.flips([(inputs[f.sample], f) for f in first]))
    if len(flipped) > len(first):
        st.caption(f"The first {len(first)} of {len(flipped)}.")


def layers(workspace: Workspace, busy: bool) -> None:
    """Latency staircases of all layers: break-even ranks, dominated ranks, a table for searches."""
    st.header("Latency of the layers", anchor=False)
    st.markdown(
        "Each layer alone at about ten ranks: from which rank it is faster than dense, and which ranks are slower "
        "**and** less accurate than a larger one. The marks appear on the tracks of **Ranks**; times are kept."
    )
    usual = tuple(dict.fromkeys(layer.methods[0].name for layer in workspace.profile.layers))
    usable = tuple(
        dict.fromkeys(m.name for layer in workspace.profile.layers for m in layer.methods if not m.reference)
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        runtime = st.segmented_control(
            "Runtime", RUNTIMES, default=RUNTIMES[0], required=True, key="stairs runtime", persist_state="session"
        )
        methods = st.multiselect(
            "Methods", usable, usual, format_func=lambda m: METHODS[m].label, key=f"stairs {usable}", help=words.METHOD
        )
    wish = Stairs(runtime, tuple(methods))
    if methods:
        ask(workspace, wish, "Measure the layers", busy)
    staircases = [s for s in comparisons.stairs(workspace, runtime) if s.method in methods]
    if not staircases:
        return
    selecting.table(workspace.profile, compare.stair_rows(staircases), "stairs table")
    st.download_button(
        "Export as CSV",
        as_table(staircases).to_csv(),
        f"{re.sub(r'[^A-Za-z0-9.-]+', '-', workspace.name)}-latency.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
        help="For a budget of microseconds in Search, or search --microseconds --latency-table.",
    )


def uploaded_table(workspace: Workspace) -> LatencyTable:
    """Microseconds as they were measured on the real device."""
    file = st.file_uploader(
        "Latency table of your device (.csv)",
        type="csv",
        max_upload_size=5,
        help="Columns layer, method, rank, microseconds; the dense layer goes by the method dense and no rank. Search "
        "takes the same file for a budget of microseconds.",
        key="compare table upload",
    )
    if file is None:
        return LatencyTable()
    try:
        return question.latency_table(file.getvalue().decode("utf-8", "replace"), workspace)
    except LowRankError as error:
        st.error(words.plain(f"{file.name} is not used: {error}"), icon=":material/error:")
        return LatencyTable()


def show(workspace: Workspace) -> None:
    """One column per plan, then what changed, then the layers."""
    plan_of = side_by_side(workspace)
    candidates = {name: plans.candidate(workspace, plan) for name, plan in plan_of.items()}
    target = ask_target(workspace)
    compared = comparisons.compared(workspace)
    columns = {name: compared[candidate] for name, candidate in candidates.items() if candidate in compared}
    missing = tuple(candidate for candidate in candidates.values() if candidate not in compared)
    jobs = comparisons.begun(workspace)
    if missing and Scores(missing) not in jobs and all(job.snapshot.over for job in jobs.values()):
        comparisons.start(workspace, Scores(missing))
        jobs = comparisons.begun(workspace)
    at_work = next((job for job in reversed(jobs.values()) if not job.snapshot.over), None)
    place, progress, busy = st.container(), st.empty(), at_work is not None
    with st.container(horizontal=True, vertical_alignment="center"):
        if missing:
            ask(workspace, Scores(missing), "Measure the plans", busy)
        if (number := target.goals.number) is not None and number in compare.NARROWED:
            ask(workspace, Narrow(tuple(candidates.values()), number), f"Measure in {number}", busy)
        timed = tuple(candidate for candidate in candidates.values() if candidate.plan.choices)
        for runtime in RUNTIMES if timed else ():
            ask(workspace, Races(timed, runtime), f"Time with {runtime}", busy)
    device_table = uploaded_table(workspace)
    if columns:
        with place:
            table(workspace, columns, target, device_table)
    changes(workspace, columns)
    layers(workspace, busy)
    if at_work is not None:
        with progress.container():
            watch(at_work)
