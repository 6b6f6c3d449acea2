"""Export: what the plan costs and keeps, its files and the lines that load them; and a plan opened from a file."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from lowrank_core.compression.precision import INT8, MOST_SAMPLES, Storage
from lowrank_core.errors import Cancelled, LowRankError, OtherAnswers
from lowrank_core.exports import EXPORTS, VERDICT_WORDS, Compressed, Export, Exported, loading
from lowrank_core.exports._apart import write_anywhere
from lowrank_core.exports._provenance import plan_document
from lowrank_core.exports.bundle import together
from lowrank_core.figures import of_device
from lowrank_core.graphs.onnx_forms import OPSETS
from lowrank_core.measure.effort import Work, effort
from lowrank_core.measure.formats import FORMATS
from lowrank_core.measure.measurement import is_final
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.sources._inventory import Inventory
from lowrank_core.workspace import Workspace
from pages.ui import (
    at_start,
    frame,
    goals,
    goals_bar,
    node_data_form,
    open_file,
    report_form,
    running,
    streaming_form,
    tuning,
    words,
    work_file,
)
from pages.ui.button import button
from pages.ui.goals import judged
from pages.ui.state import downloads, measurements, peaks, plans, runs, session, trainings, works
from pages.ui.tuning import Tuned

ORDER = ("safetensors", "pt2", "onnx", "executorch", "openvino", "c", "hf", "bundle")
LARGEST_DOWNLOAD = 200 * 10**6
"""Bytes of a file that a browser is handed for download, at most; larger ones go to a folder."""


def weights(workspace: Workspace, plan: RankPlan) -> Tuned | None:
    """Which weights are taken: tuned ones where this plan has some, unless somebody says otherwise."""
    trained = trainings.tuned(workspace)
    fitting = [tuned for tuned in reversed(trained) if tuned.candidate.plan == plan]
    if not fitting:
        if trained:
            st.info(
                "This plan has **no tuned weights**; those that were trained belong to another plan. What is written "
                "here are its factors as they are compressed.",
                icon=":material/model_training:",
            )
            frame.link("Fine-tune", says="Train this plan")
        return None
    untuned = f"As compressed{' and corrected' if plans.candidate(workspace, plan).correction else ''}, untrained"
    labels = [*(f"Tuned: {tuning.weights_name(workspace, tuned)}" for tuned in fitting), untuned]
    at = st.radio("Weights", range(len(labels)), format_func=labels.__getitem__, key=f"weights {labels}")
    return fitting[at] if at < len(fitting) else None


def summary(workspace: Workspace, plan: RankPlan, tuned: Tuned | None) -> None:
    """Cost and measured score of the plan with these weights, against the dense network."""
    cost, dense = plan_cost(workspace.profile, plan), plan_cost(workspace.profile)
    with st.container(horizontal=True, gap="medium"):
        for label, now, before, unit, tip in (
            ("Bytes", cost.bytes, dense.bytes, "B", words.BYTES),
            ("Multiplies", cost.multiplies, dense.multiplies, "", words.MULTIPLIES),
            ("Parameters", cost.parameters, dense.parameters, "", None),
        ):
            change = f"{100 * (now / before - 1):+.1f} % against dense" if before else None
            st.metric(label, words.count(now, unit), change, delta_color="inverse", help=tip, width="content")
        st.metric("Layers factorised", f"{len(plan.choices)} of {len(workspace.profile.layers)}", width="content")
    score = measurements.measured(workspace, plan) if tuned is None else tuned.score
    chosen = plans.goals(workspace)
    goals_bar.verdicts(judged(workspace, chosen, plan, score, peaks.bytes_in(workspace, plan, chosen.format)))
    if score is not None:
        verdict = words.plain(words.verdict(workspace, score))
        st.markdown(f"Measured {words.metric_name(workspace)}: **{verdict}**", help=words.INTERVAL)
    else:
        with st.container(horizontal=True, vertical_alignment="center"):
            pressed = button("Measure the accuracy", icon=":material/speed:")
            work = Work(answers=1, corrected=plans.history(workspace).corrected)
            running.costs(st.empty(), lambda: (f"Takes {effort(workspace, work).text} on this machine.",))
        if pressed:
            with st.spinner("Measuring on all samples…"):
                measured(workspace)
            st.rerun()


def measured(workspace: Workspace) -> Score | None:
    """The score of the plan as it stands, on all samples."""
    snapshot = measurements.measure(workspace).wait(until=is_final)
    if snapshot.error:
        raise LowRankError(snapshot.error)
    return snapshot.found[-1].score if snapshot.found else None


def as_measured(workspace: Workspace, candidate: Candidate, score: Score | None) -> Compressed:
    """What is exported is what was measured: the same plan, the same correction."""
    plan, correction = candidate.plan, candidate.correction
    return Compressed(
        workspace.compress(plan, correction), plan, score, None if correction is None else correction.to_dict()
    )


def plan_file(workspace: Workspace, plan: RankPlan, file: str) -> None:
    """The plan as JSON, with the score if it was measured.

    Files are given as bytes: Streamlit (1.67) throws away what a callable made at the click as soon as two runs of any
    session end before the browser has fetched it.
    """
    candidate, score = plans.candidate(workspace, plan), measurements.measured(workspace, plan)
    correction = None if candidate.correction is None else candidate.correction.to_dict()
    st.download_button(
        "Download the plan",
        plan_document(workspace, Compressed(workspace.model, plan, score, correction)),
        file,
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        help="Method and rank of every layer as JSON: small, and opened again here or by the command line.",
    )


def network_of(workspace: Workspace, plan: RankPlan, tuned: Tuned | None) -> Compressed:
    """The compressed network that is written, with the weights that were chosen."""
    if tuned is not None:
        return tuning.compressed(workspace, tuned, trainings.tuned_network(workspace, tuned))
    return as_measured(workspace, plans.candidate(workspace, plan), measured(workspace))


def noun(export: Export) -> str:
    """What a kind of file is called in a sentence."""
    first = export.label.split(" (")[0]
    return first[0].lower() + first[1:] if first.split()[0][1:].islower() else first


def storage_form(workspace: Workspace, export: Export) -> Storage:
    """Widgets for how the weights of the file are stored: type, folded biases, factors multiplied out."""
    chosen, dtypes = plans.goals(workspace), ("", *export.dtypes)
    if chosen.number not in (None, "float32", *dtypes):
        st.caption(f"There is no **{chosen.number}** of this format; choose {formats_with(chosen.number)}.")
    key, wanted = f"dtype {export.name}", chosen.number if chosen.number in dtypes else ""
    if session.widget(key) != wanted and session.widget(key) in (None, "", *FORMATS):  # bfloat16 is no goal
        session.set_widget(key, wanted)

    def aimed() -> None:
        dtype = session.widget(key)
        if dtype in ("", *FORMATS):
            plans.aim(workspace, replace(plans.goals(workspace), number=dtype or None))

    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        dtype = st.selectbox(
            "Weights stored in",
            dtypes,
            format_func=lambda dtype: dtype or "their own type",
            key=key,
            on_change=aimed,
            help="Half precision is widened again when the file is loaded. int8 also quantises what flows between "
            "layers, with ranges from the calibration samples. The score below is that of what is stored.",
            width=180,
        )
        fold = st.toggle(
            "Fold biases into weights",
            key="fold bias",
            help="Every Linear becomes [W b] and its input is extended by a one, for hardware without biases.",
        )
        dense = st.toggle(
            "Multiply the factors out",
            key="multiply out",
            help="One weight per layer again, in the original architecture: for programs that know only that. "
            "It saves nothing; it shows what the compressed network answers.",
        )
    storage = Storage(dtype or None, fold, dense)
    return replace(storage, **graph_form(export, storage)) if export.options else storage


def graph_form(export: Export, storage: Storage) -> dict[str, Any]:
    """Widgets for what a graph is asked for beside its numbers: the scales of int8, its batch, its operators."""
    asked: dict[str, Any] = {}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        if "batch" in export.options:
            asked["batch"] = st.number_input(
                "Samples at a time",
                min_value=1,
                max_value=MOST_SAMPLES,
                value=None,
                placeholder="1" if export.name == "executorch" else "any number",
                key=f"batch {export.name}",
                help="A number fixes every size in the file, as tools for microcontrollers and NPUs want it.",
                width=180,
            )
        if "opset" in export.options:
            asked["opset"] = st.number_input(
                "Opset",
                min_value=OPSETS[0],
                max_value=OPSETS[1],
                value=None,
                placeholder="as exported",
                key=f"opset {export.name}",
                help="Version of ONNX's operators, for tools that do not know the newest.",
                width=180,
            )
        if storage.dtype == "int8" and "int8" in export.options:
            asked["int8"] = st.selectbox(
                "Scales of int8",
                INT8,
                format_func={"per-channel": "one per channel", "per-tensor": "one per weight"}.__getitem__,
                key=f"int8 {export.name}",
                help="Some NPUs know only one scale for each weight.",
                width=180,
            )
        if storage.dtype == "int8" and not storage.dense:
            asked["refit"] = st.toggle(
                "Refit for int8",
                value=True,
                key=f"refit {export.name}",
                help="Factors are fitted to each other as int8 rounds them, on samples without labels.",
            )
    return asked


def formats_with(number: str | None) -> str:
    """The kinds of files that weights can be written to in a number format, as text."""
    return ", ".join(export.label for export in EXPORTS.values() if number in export.dtypes) or "none"


def artefact(workspace: Workspace, plan: RankPlan, tuned: Tuned | None, export: Export, file: str) -> None:
    """Write a file, checked in a fresh process, into a folder or for a download."""
    source = tuned or plans.candidate(workspace, plan)
    if tuned is not None:
        st.caption(f"Holds the **tuned** weights: {words.plain(tuning.weights_name(workspace, tuned))}.")
    storage = storage_form(workspace, export)
    folder_name = st.text_input(
        "Folder on this machine",
        key="export folder",
        placeholder="empty: offered for download",
        help=f"Where the server writes the file. Above {LARGEST_DOWNLOAD // 10**6} MB a folder is needed.",
    )
    path: Path | None = None
    try:
        path = downloads.place(folder_name, file)
        if folder_name:
            st.caption(words.plain(f"Pages may write to {at_start.places()}."))
    except LowRankError as error:
        st.error(words.plain(str(error)), icon=":material/error:")
    key = f"{export.name} {storage} {folder_name}"
    write = f"write {export.name}"
    done = downloads.written(workspace, key, source)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = button(
            f"Write the {noun(export)}",
            icon=":material/build:",
            key=write,
            type="secondary" if done is not None else "primary",
            disabled=path is None,
        )
        took = downloads.took(workspace, export.name)
        known = "not known before the first one is written" if took is None else f"the last one took {took}"
        st.caption(f"What it takes on this machine: {known}.")
    if path is None:
        return
    accepting = False
    refused = downloads.refused(key, source)
    if refused is not None and not pressed:
        st.error(words.plain(refused), icon=":material/error:")
        accepting = button(
            "Save it all the same",
            icon=":material/warning:",
            key=f"accept {export.name}",
            help="The file says in itself that its answers differ by more than rounding explains.",
        )
    go = pressed or accepting
    if folder_name and os.path.lexists(path) and not downloads.asked_to_replace(path):
        go = may_replace(path, pressed=go)
    place = st.empty()  # a file written before is gone from the page while another is written
    if go:
        began = time.monotonic()
        try:
            export.ready(workspace)
            with place.status("Measuring", expanded=False) as status:
                network = network_of(workspace, plan, tuned)
                if storage.told:
                    network = network.stored(workspace, storage)
                    if network.score is None and storage.dtype != "int8":
                        network = replace(network, score=final_score(workspace.measure(network.model)))
                network = replace(network, accept_difference=accepting)
                with scope(
                    report=lambda progress: status.update(label=words.begun(progress.words)),
                    cancelled=runs.newer_run_waits,
                ):
                    exported = write_anywhere(workspace, export, network, path)
        except Cancelled:  # by whoever clicked on something else meanwhile
            st.rerun()
        except OtherAnswers as error:
            downloads.keep_refused(key, source, str(error))
            st.rerun()
        except LowRankError as error:
            place.error(words.plain(str(error)), icon=":material/error:")
            downloads.forget_to_replace()
            return
        downloads.keep_written(workspace, key, source, exported)
        downloads.note_took(workspace, export.name, time.monotonic() - began)
        st.rerun()
    written = downloads.written(workspace, key, source)
    if written is not None and Path(written.path).is_file():
        with place.container():
            report(workspace, plan, export, storage, written, file, in_folder=bool(folder_name))


def may_replace(path: Path, *, pressed: bool) -> bool:
    """Ask before a file that is there is replaced; whether somebody has just said that it may be."""
    if pressed:
        downloads.ask_to_replace(path)
    if downloads.asked_to_replace(path) is None:
        return False
    st.warning(words.plain(f"{path} is there already. Nothing is written until you say so."), icon=":material/warning:")
    agreed = button(f"Replace {path.name}", icon=":material/file_save:", key=f"replace {path}")
    if agreed:
        downloads.agree_to_replace(path)
    return agreed


def report(
    workspace: Workspace,
    plan: RankPlan,
    export: Export,
    storage: Storage,
    written: Exported,
    file: str,
    *,
    in_folder: bool,
) -> None:
    """What was verified of a written file, and the file itself or where it lies."""
    rows = [
        ("Size", size(export, written.bytes, plan_cost(workspace.profile, plan).bytes)),
        *on_device(workspace, plan, written),
        (
            "Reloaded",
            f"in a fresh process; outputs differ by **{written.max_abs_diff or 0:.3g}** at most"
            f"{VERDICT_WORDS[written.verdict]}",
        ),
    ]
    if export.name != "safetensors":
        rows.append(("Batch sizes", batch_sizes(export, storage)))
    if written.score is not None:
        rows.append(("Score", words.plain(words.verdict(workspace, written.score))))
    label = "Note" if written.compiled is None else "Compiled"
    rows += [(label, words.plain(note)) for note in written.notes]
    st.markdown("| Verified | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows))
    if in_folder or written.bytes > LARGEST_DOWNLOAD:
        st.success(words.plain(f"Written to {written.path}"), icon=":material/folder:")
        return
    content = Path(written.path).read_bytes()
    if written.beside:
        content, file = together(written), f"{Path(file).stem}.zip"
    st.download_button(
        f"Download the {noun(export)}",
        content,
        file,
        "application/octet-stream",
        type="primary",
        icon=":material/download:",
        on_click="ignore",
        key=f"download {export.name}",
    )


def batch_sizes(export: Export, storage: Storage) -> str:
    """Which batches a file was tried on, in words."""
    fixed = storage.batch or (1 if export.name == "executorch" else None)
    if fixed is None:
        return "1, 2, 7 and all samples at once"
    return f"{fixed:,} at a time, every size in the file fixed; all samples were tried in turn"


def size(export: Export, written_bytes: int, board_bytes: int) -> str:
    """How large a file is, and why that is not what the board shows."""
    now, board = words.count(written_bytes, "B"), words.count(board_bytes, "B")
    if export.name == "bundle":
        return f"{now}: the weights, which the board shows as {board}, once in each file that the network comes as"
    if export.name == "c":
        return f"{now} of text; what it takes on a device is below"
    if written_bytes < board_bytes:
        return f"{now}; the board shows {board}, the weights in their own type"
    return f"{now}, of which {board} are the weights that the board shows; the rest is buffers, names and the plan"


def on_device(workspace: Workspace, plan: RankPlan, written: Exported) -> list[tuple[str, str]]:
    """A row with flash as the board counts it and the file as it was written, where there is a device."""
    chosen = plans.goals(workspace)
    if chosen.device is None:
        return []
    most, how = chosen.device.flash_bytes, f" in {chosen.number}" if chosen.number else ""
    need = of_device(goals.flash_bytes(workspace, plan, chosen.format), most)
    taken = written.bytes if written.compiled is None else written.compiled.flash_bytes
    mark, what = "⚠" if taken > most else "✓", "the file itself" if written.compiled is None else "the compiled object"
    return [
        (
            "Flash",
            f"{need} for parameters and buffers{how}; {mark} {what} takes {of_device(taken, most)}",
        )
    ]


def lines(workspace: Workspace, plan: RankPlan, export: Export, file: str) -> None:
    """The lines of code that load an artefact."""
    for snippet in loading(export, workspace, plan, file):
        long = snippet.code.count("\n") > 8
        place = st.expander(f"Load it {snippet.label}") if long else st.container(gap="xsmall")
        with place:
            if not long:
                st.caption(f"Load it {words.plain(snippet.label)}")
            st.code(snippet.code.strip(), language=snippet.language)


def work(workspace: Workspace, file: str) -> None:
    """All plans of this session on the network as one file."""
    st.caption(
        "Plans with their steps and branches, snapshots, notes, goals, and the scores that are known of them, to go on "
        "with on another machine or to hand on. Nothing else is in it: no weights, no paths."
    )
    st.download_button(
        "Download the work",
        works.saved(workspace),
        file,
        "application/jsonl",
        icon=":material/work_history:",
        on_click="ignore",
    )


def show(workspace: Workspace) -> None:
    """The plan, its files, and a plan from a file."""
    goals_bar.show(workspace)
    plan = plans.plan(workspace)
    tuned = weights(workspace, plan)
    name = re.sub(r"[^\w.-]+", "-", workspace.name)
    summary(workspace, plan, tuned)
    st.header(EXPORTS["plan"].label, anchor=False)
    plan_file(workspace, plan, f"{name}-plan.json")
    if tuned is not None:
        st.caption("A plan holds ranks, not weights: opened elsewhere, its factors start **untrained**.")
    lines(workspace, plan, EXPORTS["plan"], f"{name}-plan.json")
    st.header("Compressed network", anchor=False)
    offered = [kind for kind, export in EXPORTS.items() if kind != "plan" and export.offered(workspace)]
    kinds = sorted(offered, key=lambda kind: (*ORDER, kind).index(kind))
    number = plans.goals(workspace).number
    usual = next((kind for kind in kinds if number in EXPORTS[kind].dtypes), kinds[0])
    kind = st.segmented_control(
        "Format", kinds, default=usual, format_func=lambda kind: EXPORTS[kind].label, required=True, key="format"
    )
    export = EXPORTS[kind]
    file = f"{name}-{'lowrank' if tuned is None else 'tuned'}{export.suffix}"
    artefact(workspace, plan, tuned, export, file)
    if export.name == "pt2":
        node_data_form.show(workspace, plan, file)
    lines(workspace, plan, export, file)
    st.header("Report", anchor=False)
    report_form.show(workspace, plan, tuned, name, lambda: network_of(workspace, plan, tuned))
    st.header("The work as one file", anchor=False)
    work(workspace, f"{name}{work_file.ENDING}")
    st.header("Open a plan or a work", anchor=False)
    open_file.show(workspace)


def show_weights(stock: Inventory) -> None:
    """A folder of save_pretrained is compressed block by block; other weights need a model."""
    streaming_form.show(stock)
