"""Search: ask a rule for ranks, watch the plans it tries, compare rules, and adopt a plan to drag further."""

import re
from contextlib import suppress
from typing import Any

import pandas as pd
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.jobs import Job
from lowrank_core.selection._compact import TUNE, needs_tuning
from lowrank_core.selection._problem import Trial
from lowrank_core.workspace import Workspace
from pages.ui import beside, charts, frame, goals_bar, question, question_form, running, selecting, tables, words
from pages.ui.button import button
from pages.ui.goals import judged
from pages.ui.question import Question, Search
from pages.ui.state import models, peaks, plans, searches, session


def chart(workspace: Workspace, quantity: str, search: Search, others: list[Search], key: str) -> None:
    """A search as a chart of score against cost: its trials, its answer, those of other searches."""
    value, samples = models.dense_score(workspace)
    dense = tables.Dot(1.0, value, None, None, f"dense, {samples:,} samples" if samples else "dense")
    label = search.question.rule.label

    def dot(trial: Trial, says: str) -> tables.Dot | None:
        return tables.dot(workspace, trial, quantity, says, (value, samples))

    drawn = [dot(trial, trial.note or label) for trial in search.trials]
    earlier = [dot(other.answer, question.title(workspace, other.question)) for other in others if other.answer]
    figure = charts.trade_off(
        [d for d in drawn if d],
        dot(search.answer, question.title(workspace, search.question)) if search.answer else None,
        [d for d in earlier if d],
        dense,
        quantity=quantity,
        metric=words.axis(workspace),
        percent=words.shares(workspace),
        limit=next((most for of, most in search.question.budgets if of == quantity), None),
        dark=st.context.theme.type == "dark",
    )
    alt = f"{words.metric(workspace)} against {quantity} of the plans tried"
    if not search.snapshot.over:
        st.plotly_chart(figure, key=key, alt=alt)
        return
    measured = by_cost(search)

    def clicked() -> None:
        """The plan of the dot that was clicked is the one that is looked at below."""
        for point in session.widget(key).selection.points:
            dots = [dot(trial, "") for trial in measured]
            at = next((at for at, d in enumerate(dots) if d and (d.x, d.y) == (point.get("x"), point.get("y"))), None)
            if at is not None:
                session.set_widget(trial_key(workspace, search), at)

    beside.chart(figure, key=key, alt=alt, on_select=clicked)


def by_cost(search: Search) -> list[Trial]:
    """The trials that were measured, the cheapest first."""
    measured = [trial for trial in search.trials if trial.score is not None]
    return sorted(measured, key=lambda trial: trial.cost.multiplies)


def trial_key(workspace: Workspace, search: Search) -> str:
    """The key of the box that says which trial is looked at."""
    return f"trial of {question.title(workspace, search.question)} {len(search.trials)}"


def progress(job: Job[Trial], search: Search) -> str:
    """What a search that runs is doing, as a line of Markdown."""
    step = search.snapshot.progress.words or "looking for plans"
    doing = "ending after the step at hand" if job.cancelled() else step
    return f"{words.plain(doing)} · {looked_at(search)} · {job.seconds:.0f} s"


def looked_at(search: Search) -> str:
    """How many plans a search has looked at, as text."""
    count = len(search.trials)
    return f"{count} plan{'' if count == 1 else 's'}"


def watch(workspace: Workspace, quantity: str, question: Question, job: Job[Trial], others: list[Search]) -> None:
    """Show the trials of a search that runs, as they arrive."""
    running.follow(
        job,
        lambda snapshot: progress(job, Search(question, snapshot)),
        lambda snapshot, serial: chart(
            workspace, quantity, Search(question, snapshot), others, f"search running {serial}"
        ),
    )


def result(workspace: Workspace, quantity: str, search: Search, others: list[Search]) -> None:
    """A search that is over: its trials, the answer, and the plan to adopt."""
    chart(workspace, quantity, search, others, "search over")
    if search.snapshot.cancelled:
        st.info(
            f"Cancelled after {looked_at(search)}; what was measured is kept, and the same search goes on from there.",
            icon=":material/stop_circle:",
        )
    trials = [trial for trial in search.trials if trial.score is not None]
    if not trials:
        return
    trial = search.answer or trials[-1]
    if len(trials) > 1:
        trial = pick(workspace, search, trials, trial)
    assert trial.score is not None
    st.markdown(words.plain(words.verdict(workspace, trial.score)), help=words.INTERVAL)
    dense = plan_cost(workspace.profile)
    with st.container(horizontal=True, gap="large"):
        for label, now, before, unit, tip in (
            ("Bytes", trial.cost.bytes, dense.bytes, "B", words.BYTES),
            ("Multiplies", trial.cost.multiplies, dense.multiplies, "", words.MULTIPLIES),
        ):
            change = f"{100 * (now / before - 1):+.1f} % against dense" if before else None
            st.metric(label, words.count(now, unit), change, delta_color="inverse", help=tip, width="content")
    chosen, plan = plans.goals(workspace), trial.candidate.plan
    peak_bytes = peaks.bytes_in(workspace, plan, chosen.format)
    goals_bar.verdicts(judged(workspace, chosen, plan, trial.score, peak_bytes))
    if needs_tuning(trial.score):
        st.info(f"{words.plain(TUNE)} Adopt the plan, then *Fine-tune* it.", icon=":material/model_training:")
    adopt(workspace, trial, search.question.corrected)
    rows = tables.plan_rows(workspace.profile, plan)
    share_column: dict[str, Any] = {"format": "percent", "min_value": 0, "max_value": 1}
    selecting.table(
        workspace.profile,
        rows,
        "plan table",
        height="content" if len(rows) <= 30 else 600,
        column_config={
            "Method": st.column_config.TextColumn(help=words.METHOD),
            "Rank": st.column_config.TextColumn(help=words.RANK),
            "Multiplies": st.column_config.ProgressColumn("Multiplies kept", help=words.MULTIPLIES, **share_column),
            "Bytes": st.column_config.ProgressColumn("Bytes kept", help=words.BYTES, **share_column),
        },
    )


def rest(workspace: Workspace, quantity: str, jobs: dict[Question, Job[Trial]], listed: list[Search]) -> None:
    """Nothing runs: why the latest search failed, and what one of them found."""
    error = next((job.snapshot.error for job in reversed(jobs.values())), None)
    if error:
        st.error(words.plain(error), icon=":material/error:")
    if listed:
        newest, at = listed[::-1], 0
        if len(newest) > 1:
            titles = titles_of(workspace, newest)
            at = st.selectbox("Search shown", range(len(newest)), format_func=titles.__getitem__, key=f"shown {titles}")
        result(workspace, quantity, newest[at], [search for search in listed if search is not newest[at]])
    elif not error:
        st.info("Start a search: its trials appear here as they are measured.", icon=":material/search:")


def titles_of(workspace: Workspace, all_searches: list[Search]) -> list[str]:
    """What they are called where one of them is chosen."""
    return [question.title(workspace, search.question) for search in all_searches]


def pick(workspace: Workspace, search: Search, trials: list[Trial], first: Trial) -> Trial:
    """One of the measured trials, the answer if nobody says otherwise."""
    ordered = by_cost(search)
    dense = plan_cost(workspace.profile)
    alike = len({trial.score.samples for trial in trials if trial.score is not None}) == 1

    def on(trial: Trial) -> str:
        return "" if alike or trial.score is None else f" on {trial.score.samples:,} samples"

    def says(trial: Trial) -> str:
        share = words.share(trial.cost.multiplies / (dense.multiplies or 1))
        assert trial.score is not None
        line = f"{words.score(workspace, trial.score.value)}{on(trial)} at {share} of the multiplies"
        return f"{line}, the answer" if trial == search.answer else line

    labels = [says(trial) for trial in ordered]
    key = trial_key(workspace, search)
    if session.widget(key) is None:
        session.set_widget(key, ordered.index(first))
    at = st.selectbox("Trial", range(len(ordered)), format_func=labels.__getitem__, key=key)
    return ordered[at]


def adopt(workspace: Workspace, trial: Trial, corrected: bool) -> None:
    """Make a plan the session's own, as a step that can be undone."""
    history, used = plans.history(workspace), trial.candidate.correction
    own = used if corrected and used is not None and used.samples > workspace.thorough.samples else None
    with st.container(horizontal=True, vertical_alignment="center"):
        now, wanted = (history.plan, history.corrected, history.correction), (trial.candidate.plan, corrected, own)
        if now != wanted:
            if button("Adopt this plan", type="primary", icon=":material/check:"):
                adopted = history.commit(trial.candidate.plan)
                same = (adopted.corrected, adopted.correction) == (corrected, own)
                plans.set_history(workspace, adopted if same else adopted.correct(corrected, own))
                st.rerun()
        else:
            back = " *Undo* on Ranks brings the one before it back." if history.past else ""
            st.markdown(f":material/check: This is the plan now.{back}")
            frame.link("Ranks", says="Drag it further")
            frame.link("Export", says="Export it")


def comparison(workspace: Workspace, over: list[Search]) -> None:
    """Finished searches side by side, as a table that can be exported."""
    st.header("Rules side by side", anchor=False)
    newest = over[::-1]

    def clicked() -> None:
        """The search of the row that was clicked is the one that is shown above."""
        for row, _ in session.widget("rules side by side").selection.cells:
            session.set_widget(f"shown {titles_of(workspace, newest)}", len(over) - 1 - row)

    percent = words.shares(workspace)
    unit = "%.2f %%" if percent else "%.4g"
    st.dataframe(
        pd.DataFrame(tables.searches(workspace, over)),
        key="rules side by side",
        on_select=clicked,
        selection_mode="single-cell",
        hide_index=True,
        column_config={
            "Rule": st.column_config.TextColumn(pinned=True, width=130),
            "Asked": st.column_config.TextColumn(width=190),
            "Multiplies": st.column_config.NumberColumn(format="localized", help=words.MULTIPLIES),
            "Bytes": st.column_config.NumberColumn(format="localized", help=words.BYTES),
            "Score": st.column_config.NumberColumn(words.metric(workspace), format=unit),
            "Drop": st.column_config.NumberColumn(words.loss_title(workspace), format="%.2f" if percent else "%.4g"),
            "95 %": st.column_config.TextColumn(help=words.INTERVAL),
            "Trials": st.column_config.NumberColumn(help="Plans that the rule looked at."),
            "Seconds": st.column_config.NumberColumn(format="%.1f"),
        },
    )
    rows, name = question.comparison(workspace, over), re.sub(r"[^\w.-]+", "-", workspace.name)
    st.download_button(
        "Export as CSV",
        pd.DataFrame(rows).to_csv(index=False),
        f"{name}-searches.csv",
        "text/csv",
        icon=":material/download:",
        disabled=not rows,
        on_click="ignore",
    )


def takes(workspace: Workspace, wish: Question) -> None:
    """What the search will take, before it starts."""
    with suppress(LowRankError):  # there is no answer: starting it says why
        for line in searches.before_it_starts(workspace, wish):
            st.caption(words.plain(line))


def show(workspace: Workspace) -> None:
    """Ask for a search in a form, and show what the searches of this session have found."""
    goals_bar.show(workspace)  # the first plan is found before columns are laid out
    jobs = searches.begun(workspace)
    latest = next(reversed(jobs), None)
    at_work = None if latest is None or jobs[latest].snapshot.over else latest
    over = [Search(wish, job.snapshot) for wish, job in jobs.items() if job.snapshot.over]
    listed = [search for search in over if search.snapshot.error is None or any(trial.score for trial in search.trials)]
    left, right = st.columns([2, 3], gap="large")
    with left:
        wish: Question | None = None
        try:
            wish = question_form.show(workspace)
        except LowRankError as error:
            st.error(words.plain(str(error)), icon=":material/error:")
        label, icon = "Start search", ":material/search:"
        pressed = button(label, type="primary", icon=icon, disabled=at_work is not None or wish is None)
        if pressed and wish is not None:
            searches.start(workspace, wish)
            st.rerun()
        if wish is not None and at_work is None:
            takes(workspace, wish)
        before = searches.asked_before(workspace)
        titles = [question.title(workspace, wish) for wish in before]
        running.earlier(before, titles, lambda wish: searches.start(workspace, wish))
    with right:
        quantity = st.segmented_control(
            "Score against",
            ("multiplies", "bytes"),
            default="multiplies",
            required=True,
            key="search against",
            persist_state="session",
        )
        watched, at_rest = st.empty(), st.empty()
    if listed:
        comparison(workspace, listed)
    if at_work is not None:
        with watched.container():
            watch(workspace, quantity, at_work, jobs[at_work], listed)
    else:
        with at_rest.container():
            rest(workspace, quantity, jobs, listed)
