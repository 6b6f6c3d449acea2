"""The report of a plan, as Export offers it: written when asked for, kept for the download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from lowrank_core.errors import Cancelled, LowRankError
from lowrank_core.exports import Compressed, Exported
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.prediction import Point
from lowrank_core.predict.survey import Learnt
from lowrank_core.reports.as_html import html
from lowrank_core.reports.as_markdown import markdown
from lowrank_core.reports.findings import Findings, told, with_front
from lowrank_core.reports.sections import sections, title
from lowrank_core.running.scope import scope
from lowrank_core.selection._problem import problem_of
from lowrank_core.store.files import write_whole
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.button import button
from pages.ui.state import downloads, measurements, peaks, plans, runs
from pages.ui.tuning import Tuned

KINDS = {"html": ("HTML page", html, "text/html"), "md": ("Markdown", markdown, "text/markdown")}


def show(
    workspace: Workspace, plan: RankPlan, tuned: Tuned | None, name: str, network: Callable[[], Compressed]
) -> None:
    """Widgets for the report. name: of its file, without an ending; network: makes what it is about."""
    st.caption(
        "Figures with intervals, data, front, curves, every layer, classes, and the commands that repeat it: one file "
        "to keep, to print and to hand on."
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        kind = st.segmented_control(
            "Report as", list(KINDS), default="html", format_func=lambda kind: KINDS[kind][0], required=True
        )
        front = st.toggle("With the front", value=True, key="report with front", help=FRONT)
    label, _, mime = KINDS[kind]
    source, key = tuned or plans.candidate(workspace, plan), f"report {kind} {front}"
    pressed = button("Write the report", icon=":material/summarize:", key="write report")
    place = st.empty()
    if pressed:
        path = downloads.place("", f"{name}-report.{kind}")
        try:
            with (
                place.status("Measuring", expanded=False) as status,
                scope(
                    report=lambda progress: status.update(label=words.begun(progress.words)),
                    cancelled=runs.newer_run_waits,
                ),
            ):
                text = written(workspace, network(), plan, kind, front=front)
        except Cancelled:  # by whoever clicked on something else meanwhile
            st.rerun()
        except LowRankError as error:
            place.error(words.plain(str(error)), icon=":material/error:")
            return
        write_whole(path, text.encode())
        downloads.keep_written(workspace, key, source, Exported(str(path), len(text.encode()), None, None))
        st.rerun()
    done = downloads.written(workspace, key, source)
    if done is not None and Path(done.path).is_file():
        place.download_button(
            f"Download the report ({label})",
            Path(done.path).read_bytes(),
            Path(done.path).name,
            mime,
            icon=":material/download:",
            on_click="ignore",
            key="download report",
        )


FRONT = (
    "The best plans within 40 budgets and the curves of single layers. What the page Ranks has not measured yet is "
    "measured now, which can take minutes."
)


def written(workspace: Workspace, network: Compressed, plan: RankPlan, kind: str, *, front: bool) -> str:
    """The report of the plan as it stands as a text. Raises Cancelled."""
    dense = RankPlan(plan.fingerprint)
    found, of_dense = told(workspace, "this plan", network, _peak_bytes(workspace, plan))
    cost = plan_cost(workspace.profile)
    findings = Findings(workspace, cost, (found,), of_dense, _peak_bytes(workspace, dense))
    if front:
        folder = None if workspace.cache is None else workspace.cache.points
        problem = problem_of(workspace, folder=folder, corrected=plans.history(workspace).corrected)
        findings = with_front(findings, problem, _points(workspace))
    _, write, _ = KINDS[kind]
    return write(title(findings), sections(findings))


def _points(workspace: Workspace) -> tuple[Point, ...] | None:
    """What the survey of the page Ranks has measured, where it has measured every layer."""
    if workspace.opened.evaluate is not None:
        return None
    points = Learnt.of(measurements.survey(workspace).snapshot).points
    measured = {point.layer for point in points}
    return points if all(layer.name in measured for layer in workspace.profile.layers) else None


def _peak_bytes(workspace: Workspace, plan: RankPlan) -> dict[str, int] | None:
    known = peaks.known(workspace, plan)
    return known["bytes"] if known is not None and "bytes" in known else None
