"""Compare: the dense network, the plan, trained weights and snapshots side by side, each in one number format."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st
import torch

from lowrank_core.errors import LowRankError
from lowrank_core.exports import EXPORTS
from lowrank_core.exports._in_format import FILES
from lowrank_core.figures import KIB
from lowrank_core.measure.comparison import Comparison, Flip
from lowrank_core.measure.effort import Effort, compile_effort, stairs_effort, timing_effort
from lowrank_core.measure.formats import AS_IT_IS
from lowrank_core.measure.latency import OF_ONNX, LatencyTable, cpu_name, runtimes_here
from lowrank_core.measure.staircases import as_table
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.workspace import Workspace
from pages.ui import charts, compare, goals_bar, question, running, selecting, words
from pages.ui.button import button
from pages.ui.compare import Column, Compiles, Races, Result, Row, Scores, Stairs, Wish
from pages.ui.compare_table import as_csv, comparison_csv, table
from pages.ui.devices import Device
from pages.ui.goals import Goals, flash_bytes, own_format
from pages.ui.history import and_so_on
from pages.ui.state import comparisons, plans, session, trainings

IMAGE_CHANNELS, LARGEST_IMAGE, MOST_IMAGES = (1, 3), 256, 24
MOST_BARS = 40
INT8_UNASKED_BYTES = 50 * 10**6
"""A dense network of more is measured in int8 only where somebody asks for that column: it takes minutes."""

MOST_COMPILED_BYTES = 16 << 20
"""Of flash as the board counts it; what has more is for no microcontroller."""


def side_by_side(workspace: Workspace, chosen: Goals) -> dict[str, Column]:
    """The dense network, the plan as it stands, and what was picked of trained weights, snapshots and int8.

    Each in the chosen number format; equal ones are shown once.
    """
    number = AS_IT_IS if chosen.number in (None, own_format(workspace)) else chosen.number
    history, dense = plans.history(workspace), RankPlan(workspace.profile.fingerprint)
    columns = {
        name: Column(plans.candidate(workspace, plan), number)
        for name, plan in ((compare.DENSE, dense), (compare.THIS, history.plan))
    }
    more, weights = {}, trainings.tuned(workspace)
    own_names = (*columns, compare.TUNED, compare.DENSE_INT8)
    snapshots = {f"{s.name} (snapshot)" if s.name in own_names else s.name: s.plan for s in history.snapshots}
    for name, plan in ((compare.THIS, history.plan), *snapshots.items()):
        if name != compare.THIS:
            more[name] = Column(plans.candidate(workspace, plan), number)
        fitting = next((tuned for tuned in reversed(weights) if tuned.candidate.plan == plan), None)
        if fitting is not None:
            more[compare.TUNED if name == compare.THIS else f"{name}, tuned"] = Column(
                fitting.candidate, number, fitting
            )
    if number != "int8":
        more[compare.DENSE_INT8] = Column(columns[compare.DENSE].candidate, "int8")
    columns |= pick(workspace, more, list(snapshots)[-4:])
    columns |= pick_files(workspace, columns)
    unique = {column: name for name, column in reversed(columns.items())}
    equal = [f"{name} as {unique[column]}" for name, column in columns.items() if unique[column] != name]
    if equal:
        st.caption(words.plain(f"Of equal plans the first is shown: {and_so_on(equal)}."))
    return {name: column for name, column in columns.items() if unique[column] == name}


def pick(workspace: Workspace, more: dict[str, Column], latest: list[str]) -> dict[str, Column]:
    """The columns beside dense and the plan that somebody wants to see; the latest snapshots at first."""
    unasked = {compare.TUNED, *latest, *(f"{name}, tuned" for name in latest)}
    if plan_cost(workspace.profile).bytes <= INT8_UNASKED_BYTES:
        unasked.add(compare.DENSE_INT8)
    hints = []
    if compare.TUNED not in more:
        hints.append("train the plan on **Fine-tune**")
    if not latest:
        hints.append("take snapshots on **Ranks**")
    picked = st.pills(
        "Columns beside dense and this plan",
        list(more),
        default=[name for name in more if name in unasked],
        selection_mode="multi",
        format_func=words.plain,
        key=f"of {list(more)}",
        help="Weights that were trained for a plan, snapshots, and the dense network in int8, which answers whether "
        "that alone would do.",
    )
    if hints:
        hint = " and ".join(hints)
        st.caption(f"For more columns {hint}.")
    return {name: more[name] for name in picked}


def pick_files(workspace: Workspace, columns: dict[str, Column]) -> dict[str, Column]:
    """Columns for files of networks that stand in others, each run by its own runtime."""
    ready, missing = [], {}
    for name, file in FILES.items():
        try:
            EXPORTS[file.kind].ready(workspace)
            ready.append(name)
        except LowRankError as error:
            missing[EXPORTS[file.kind].label] = str(error)
    files, of = [], [compare.THIS]
    if ready:
        files = st.pills(
            "As files",
            ready,
            selection_mode="multi",
            key="as files",
            persist_state="session",
            help="Written as **Export** writes them and run on all samples by their own runtime, in a process of its "
            "own; it takes up to a few minutes each, and is kept.",
        )
    if files:
        networks = [name for name in columns if name != compare.DENSE_INT8]
        of = st.pills(
            "Files of",
            networks,
            default=of,
            selection_mode="multi",
            format_func=words.plain,
            key=f"files of {networks}",
        )
    for label, reason in missing.items():
        st.caption(words.plain(f"No {label}: {reason}"))
    return {f"{name}, {file}": columns[name].written_as(file) for name in of for file in files}


def ask_target(workspace: Workspace) -> compare.Target:
    """Device, number format, floor and energy: what plans are judged by."""
    chosen = goals_bar.show(workspace)
    if chosen.device is not None:
        take_off(workspace, chosen.device)
    return compare.Target(chosen)


def ask_prices() -> tuple[float | None, float | None]:
    """pJ for a multiply and for a byte that is moved; None each where nobody wants to see energy."""
    st.caption(
        "Multiplies and bytes moved, each at a price. The prices differ tenfold between chips and memories: the "
        "figures given are for arithmetic and DRAM at 45 nm (Horowitz 2014). Put in those of your device."
    )
    with_energy = st.toggle("Show energy", key="energy wanted", persist_state="session")
    with st.container(horizontal=True):
        prices = [
            st.number_input(label, 0.0, value=value, format="%g", key=label, persist_state="session", width=180)
            for label, value in (("pJ per multiply", 4.6), ("pJ per byte moved", 160.0))
        ]
    return (prices[0], prices[1]) if with_energy else (None, None)


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


def watch(job: Job[Result], draw: Callable[[], None]) -> None:
    """Say what goes on until the job is over; the table is drawn anew with each figure."""

    def says(snapshot: Snapshot[Result]) -> str:
        doing = "ending after the step at hand" if job.cancelled() else snapshot.progress.words or "at work"
        return f"{words.plain(doing)} · {job.seconds:.0f} s"

    running.follow(job, says, lambda snapshot, serial: draw())


def ask(workspace: Workspace, wish: Wish, label: str, busy: bool) -> None:
    """A button for a measurement, and why the last one failed."""
    job = comparisons.begun(workspace).get(wish)
    if button(label, icon=":material/timer:", key=f"ask {label}", disabled=busy):
        comparisons.start(workspace, wish)
        st.rerun()
    if job is not None and job.snapshot.error:
        st.error(words.plain(job.snapshot.error), icon=":material/error:")


def offer(workspace: Workspace, text: str, what: str, label: str = "CSV", tip: str | None = None) -> None:
    """A table to take along, as CSV."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", workspace.name)
    st.download_button(
        label,
        text,
        f"{name}-{what}.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=f"csv {what}",
        help=tip or "This table, all of its rows.",
    )


def headings(workspace: Workspace, columns: dict[str, Column]) -> dict[str, str]:
    """What stands below the name of each column: its number format and what its weights are."""

    def below(column: Column) -> str:
        number, correction = compare.as_measured(workspace, column), column.candidate.correction
        if column.tuned is not None and column.tuned.given:
            return f"{number}, trained elsewhere"
        if column.tuned is not None:
            epoch, epochs = column.tuned.epoch, column.tuned.epochs
            return f"{number}, {f'epoch {epoch} of {epochs}' if epoch else f'the start, better than {epochs} epochs'}"
        if not column.plan.choices:
            return number
        if correction is None:
            return f"{number}, not corrected"
        return f"{number}, {correction.depth or correction.kind} correction"

    return {name: below(column) for name, column in columns.items()}


def caption(columns: dict[str, Column], findings: compare.Findings) -> str:
    """What the table shows, and while it is measured what is still to come."""
    waiting = [name for name, column in columns.items() if column in findings.busy]
    if waiting:
        return f"Measuring {and_so_on(waiting)}: figures come one column after the other."
    return "Every figure of a column is that of its number format."


def buttons(
    workspace: Workspace, columns: dict[str, Column], findings: compare.Findings, rows: list[Row], busy: bool
) -> None:
    """What can be measured, or measured again, and the table to take along."""
    known, unsure = findings.measured, compare.unstable(columns, findings)
    failed = tuple(c for c in columns.values() if c not in known or known[c].refused)
    begun = comparisons.begun(workspace)
    last = next((job for wish, job in reversed(begun.items()) if isinstance(wish, Scores)), None)
    if last is not None and last.snapshot.error and Scores(failed) not in begun:  # else it stands at the button
        st.error(words.plain(last.snapshot.error), icon=":material/error:")
    takes: dict[str, Effort] = {}
    with st.container(horizontal=True, vertical_alignment="center"):
        if failed and not busy:
            ask(workspace, Scores(failed), "Measure again" if all(c in known for c in failed) else "Measure", busy)
        for runtime in runtimes_here():
            entries = tuple(
                dict.fromkeys(
                    column.timed
                    for column in columns.values()
                    if not column.is_reference and runtime in column.runtimes
                )
            )
            if entries:
                wish = Races(entries, runtime)
                again = "again " if wish in begun else ""
                ask(workspace, wish, f"Time {again}with {runtime}", busy)
                takes[runtime] = timing_effort(workspace, len(entries), exported=runtime in OF_ONNX)
        smallest = {
            column.timed: None
            for column in columns.values()
            if not column.file
            and column.number in ("int8", "float32", AS_IT_IS)
            and flash_bytes(workspace, column.plan, column.number) <= MOST_COMPILED_BYTES
        }
        if smallest:
            ask(workspace, Compiles(tuple(smallest)), "Compile as C", busy)
            takes["C"] = compile_effort(len(smallest))
        offer(workspace, comparison_csv(rows, headings(workspace, columns)), "comparison", "Table as CSV")
    if takes and not busy:
        each = ", ".join(f"{name} {takes[name].text}" for name in takes)
        st.caption(words.plain(f"On this machine, roughly: {each}; up to three times that where other work disturbs."))
    if unsure:
        st.caption(
            f"Unstable with {' and '.join(unsure)}: other work on this machine came between the rounds. Time it again "
            "when it is quieter."
        )


def how_measured(columns: dict[str, Column], findings: compare.Findings) -> None:
    """Where the figures come from."""
    traced = next((found for found in findings.measured.values() if found.memory), None)
    how = "one inference"
    if traced is not None:
        graph = next(iter(traced.memory.values())).how == "torch.export"
        how = "the graph of torch.export" if graph else "one run, since torch.export cannot trace it"
    narrow = (
        " Files: as **Export** writes them, run on all samples; int8 is one of ONNX where nothing else is said."
        if any(column.kind for column in columns.values())
        else ""
    )
    plain = " C: the header that **Export** writes, compiled with -Os for this processor." if findings.compiled else ""
    st.caption(
        f"Flash: parameters and buffers, tied ones once. Peak RAM: activations that live at one time, from {how}; a "
        "lower bound, for a runtime adds scratch space. Bytes moved: weights read once, activations whenever they are "
        f"used. Memory and latency at the batch of the example inputs. Latency: this processor ({cpu_name()}), one "
        f"thread, in turn with the dense network.{narrow}{plain}",
    )


def changes(workspace: Workspace, columns: dict[str, Column], findings: compare.Findings) -> None:
    """What became of single classes and samples in one of the columns."""
    compared = {
        name: found.comparison
        for name, column in columns.items()
        if not column.is_reference
        and (found := findings.measured.get(column)) is not None
        and found.comparison is not None
        and found.comparison.classes
    }
    if not compared:
        return
    st.header("What changed", anchor=False)
    names = list(compared)
    usual = compare.THIS if compare.THIS in names else names[0]
    name = st.segmented_control(
        "Column", names, default=usual, required=True, format_func=words.plain, key=f"changes of {names}"
    )
    comparison = compared[name]
    left, right = st.columns([2, 3], gap="large")
    with left:
        classes(workspace, comparison)
    with right:
        st.markdown(
            f"**{comparison.lost}** lost, **{comparison.won}** won, **{comparison.changed}** wrong in another way."
        )
        flips(workspace, comparison.flips)


def classes(workspace: Workspace, comparison: Comparison) -> None:
    """A row for each class, the largest losses first, and what to leave out."""
    names = workspace.opened.preparation.labels
    with st.container(horizontal=True, vertical_alignment="bottom"):
        like = st.text_input(
            "Classes",
            key="classes like",
            placeholder="all",
            help="Numbers of classes, 3, 8, or a part of their names.",
            width=150,
        )
        only_changed = st.toggle("Only changed", key="classes changed")
        offer(workspace, as_csv(compare.class_rows(comparison, names)), "classes")
    rows = compare.class_rows(comparison, names, like=like, only_changed=only_changed)
    if not rows:
        st.caption("No class is left: take the filter away." if like.strip() else "No class has changed.")
        return
    percent: dict[str, Any] = {"format": "%.1f %%"}
    st.dataframe(
        pd.DataFrame(rows),
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


def flips(workspace: Workspace, flipped: tuple[Flip, ...]) -> None:
    """Samples on which the networks disagree, as images where they are some."""
    if not flipped:
        return
    inputs, first = workspace.reference.dataset.inputs, flipped[:MOST_IMAGES]
    if isinstance(inputs, tuple) and len(inputs) == 1:
        (inputs,) = inputs
    picture = isinstance(inputs, torch.Tensor) and inputs.ndim == 4 and inputs.shape[1] in IMAGE_CHANNELS
    if not picture or max(inputs.shape[2:]) > LARGEST_IMAGE:
        st.dataframe(pd.DataFrame(compare.flip_rows(flipped)), hide_index=True)
    else:
        st.html(charts.flips([(inputs[f.sample], f) for f in first]))
        if len(flipped) > len(first):
            st.caption(f"The first {len(first)} of {len(flipped)}.")
    offer(workspace, as_csv(compare.flip_rows(flipped)), "samples", "Samples as CSV")


def ranks(workspace: Workspace, columns: dict[str, Column]) -> None:
    """Where two plans differ: a bar for each layer, which a click selects."""
    plan_of = {name: column.plan for name, column in reversed(columns.items())}
    plan_of = {name: plan for plan, name in {plan: name for name, plan in plan_of.items()}.items()}
    names = [name for name in columns if name in plan_of]
    if len(names) < 2:
        return
    st.header("Ranks of two plans", anchor=False)
    snapshot = next((name for name in names if name not in (compare.DENSE, compare.THIS)), compare.DENSE)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        one = st.selectbox("From", names, names.index(snapshot), key=f"from {names}", width=240)
        others = [name for name in names if name != one]
        to = compare.THIS if compare.THIS in others else others[0]
        other = st.selectbox("To", names, names.index(to), key=f"to {names}", width=240)
    changed = compare.rank_changes(workspace.profile.layers, plan_of[one], plan_of[other])
    if not changed:
        st.caption("These are the same plan.")
        return
    shown = sorted(changed, key=lambda change: -abs(change.other_share - change.one_share))[:MOST_BARS]
    kept = [change for change in changed if change in shown]
    fewer = sum(change.other_bytes - change.one_bytes for change in changed)
    st.markdown(
        f"**{len(changed)}** of {len(workspace.profile.layers)} layers differ; **{words.plain(other)}** has "
        f"{words.count(abs(fewer), 'B')} of weights {'less' if fewer <= 0 else 'more'}, in the network's own numbers."
        + (f" The {len(kept)} with the largest differences:" if len(kept) < len(changed) else "")
    )
    selecting.chart(
        workspace.profile,
        charts.rank_changes(kept),
        "rank bars",
        alt=f"How much more or less of the largest rank each layer keeps, from {one} to {other}",
    )
    offer(workspace, as_csv(compare.rank_change_rows(changed, one, other)), "ranks")


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
    here = runtimes_here()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        runtime = st.segmented_control(
            "Runtime", here, default=here[0], required=True, key="stairs runtime", persist_state="session"
        )
        methods = st.multiselect(
            "Methods", usable, usual, format_func=lambda m: METHODS[m].label, key=f"stairs {usable}", help=words.METHOD
        )
    wish = Stairs(runtime, tuple(methods))
    staircases = [s for s in comparisons.stairs(workspace, runtime) if s.method in methods]
    if methods:
        ask(workspace, wish, "Measure the layers", busy)
        known = {(s.layer, s.method) for s in staircases if not any(rung.unstable for rung in s.rungs)}
        asked = [(layer, m.name) for layer in workspace.profile.layers for m in layer.methods if m.name in methods]
        left = [(layer, method) for layer, method in asked if (layer.name, method) not in known]
        if left and not busy:
            running.costs(st.empty(), lambda: (f"Takes {stairs_effort(workspace, left).text} on this machine.",))
    if not staircases:
        return
    rows = compare.stair_rows(staircases)
    selecting.table(workspace.profile, rows, "stairs table")
    with st.container(horizontal=True):
        offer(workspace, as_csv(rows), "layers")
        offer(
            workspace,
            as_table(staircases, workspace.profile.fingerprint).to_csv(),
            "latency",
            "Every rank as CSV",
            "For a budget of microseconds in Search, or search --microseconds --latency-table.",
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
    """The table first, then what it is made of, what changed, the ranks of two plans, and the layers."""
    result = st.container()
    table_place, progress = result.empty(), result.empty()
    target = ask_target(workspace)
    columns = side_by_side(workspace, target.goals)
    with st.expander("Energy, and latency as your device has it"):
        multiply_pj, byte_pj = ask_prices()
        device_table = uploaded_table(workspace)
    target = replace(target, multiply_pj=multiply_pj, byte_pj=byte_pj)

    known, jobs = comparisons.measured(workspace), comparisons.begun(workspace)
    missing = tuple(column for column in columns.values() if column not in known)
    asked = {column for wish in jobs if isinstance(wish, Scores) for column in wish.columns}
    unasked = tuple(column for column in missing if column not in asked)
    if unasked and all(job.snapshot.over for job in jobs.values()):
        comparisons.start(workspace, Scores(unasked))
        jobs = comparisons.begun(workspace)
    at_work = next((job for job in reversed(jobs.values()) if not job.snapshot.over), None)
    findings, busy = comparisons.findings(workspace), at_work is not None

    def rows() -> list[compare.Row]:
        return compare.rows(workspace, columns, comparisons.findings(workspace), target, device_table)

    def draw() -> None:
        said = caption(columns, comparisons.findings(workspace))
        table_place.html(table(rows(), headings(workspace, columns), said))

    draw()
    with result:
        buttons(workspace, columns, findings, rows(), busy)
        how_measured(columns, findings)
    changes(workspace, columns, findings)
    ranks(workspace, columns)
    layers(workspace, busy)
    if at_work is not None:
        with progress.container():
            watch(at_work, draw)
