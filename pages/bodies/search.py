"""Search: ask a rule for ranks, watch the plans it tries, compare rules, and adopt a plan to drag further."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.figures import how_many
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import Job
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._compact import TUNE, needs_tuning
from lowrank_core.selection._problem import Quantity, Trial
from lowrank_core.workspace import Workspace
from pages.ui import beside, charts, frame, goals_bar, question, question_form, running, selecting, tables, tried, words
from pages.ui.button import button
from pages.ui.front import PredictedPlan
from pages.ui.goals import judged
from pages.ui.question import Question, Search
from pages.ui.state import fronts, models, peaks, plans, runs, searches, session

QUANTITIES: tuple[Quantity, ...] = ("multiplies", "bytes")


@dataclass(frozen=True, slots=True)
class Shown:
    """A plan that is looked at: one that a search has measured, or one of the front with what is predicted of it."""

    key: str
    line: str
    says: str
    plan: RankPlan
    cost: Cost
    correction: Correction | None
    score: Score | None = None


@dataclass(frozen=True)
class Drawing:
    """What all charts of this page have in common: what is on the x axis, earlier searches, and the front behind."""

    workspace: Workspace
    quantity: Quantity
    front: tuple[PredictedPlan, ...]
    told: str

    def limit(self, asked: Question) -> float | None:
        """The drop that the plans of a search are judged by."""
        dense, _ = models.dense_score(self.workspace)
        return tried.largest_drop(self.workspace, asked, plans.goals(self.workspace), dense)

    def figure(self, search: Search, others: list[Search]) -> go.Figure:
        """Its trials by verdict, its answer, those of other searches, and the front."""
        workspace, quantity, asked = self.workspace, self.quantity, search.question
        limit = self.limit(asked)

        def answer_of(one: Search, key: str) -> tried.Mark | None:
            says = question.title(workspace, one.question)
            return None if one.answer is None else tried.mark(workspace, one.answer, quantity, key, says=says)

        trial = search.answer
        earlier = (answer_of(other, tried.key_of(other)) for other in others)
        rises = words.rises(workspace)
        scale = (100 if words.shares(workspace) else 1) * (1 if rises else -1)
        points = ", points" if words.shares(workspace) else ""
        better = ", lower is better" if rises else ""
        return charts.search(
            tried.by_verdict(workspace, search, search.trials, quantity, limit),
            None if trial is None else answer_of(search, tried.key_of(trial)),
            [mark for mark in earlier if mark],
            tried.front_marks(workspace, self.front, quantity),
            quantity=quantity,
            change=f"change of {words.metric_name(workspace)} against dense{points}{better}",
            budget=next((most for of, most in asked.budgets if of == quantity), None),
            least=None if limit is None else scale * limit,
            dark=st.context.theme.type == "dark",
        )

    @property
    def alt(self) -> str:
        """What the chart is, for whoever does not see it."""
        return (
            f"Change of {words.metric_name(self.workspace)} against {self.quantity} of the plans tried, and the front"
        )


def front_grows(workspace: Workspace) -> None:
    """Draw the page anew when more of the front is known, until nothing more will come of it."""
    before = fronts.state(workspace)
    if before.settled:
        return

    def look() -> None:
        runs.let_wait()
        if fronts.state(workspace) != before:
            st.rerun(scope="app")

    st.fragment(look, run_every=running.BADGE_SECONDS)()


# ---- one search -----------------------------------------------------------------------------------------------------


def by_cost(search: Search) -> list[Trial]:
    """The trials that were measured, the cheapest first."""
    measured = [trial for trial in search.trials if trial.score is not None]
    return sorted(measured, key=lambda trial: trial.cost.multiplies)


def progress(job: Job[Trial], search: Search) -> str:
    """What a search that runs is doing, as a line of Markdown."""
    step = search.snapshot.progress.words or "looking for plans"
    doing = "ending after the step at hand" if job.cancelled() else step
    return f"{words.plain(doing)} · {looked_at(search)} · {job.seconds:.0f} s"


def looked_at(search: Search) -> str:
    """How many plans a search has looked at, as text."""
    count = len(search.trials)
    return f"{count} plan{'' if count == 1 else 's'}"


def watch(draw: Drawing, asked: Question, job: Job[Trial], others: list[Search], bar: running.Bar) -> None:
    """Show the trials of a search that runs, as they arrive."""

    def picture(search: Search, serial: int) -> None:
        st.plotly_chart(draw.figure(search, others), key=f"search running {serial}", alt=draw.alt)

    running.follow(
        job,
        lambda snapshot: progress(job, Search(asked, snapshot)),
        lambda snapshot, serial: picture(Search(asked, snapshot), serial),
        bar.line,
    )


def result(draw: Drawing, search: Search, others: list[Search]) -> None:
    """A search that is over: its trials, the answer, and the plan to adopt."""
    workspace = draw.workspace
    shown = listed(draw, search)
    box = f"plan of {tried.key_of(search)}"

    def clicked() -> None:
        """The plan of the dot that was clicked is the one that is looked at below; of another search, that one."""
        for point in session.widget("search over").selection.points:
            key = str((point.get("customdata") or [""])[0])
            if any(one.key == key for one in shown):
                session.set_widget(box, key)
            elif any(tried.key_of(other) == key for other in others):
                session.set_widget(SEARCH_SHOWN, key)

    beside.chart(draw.figure(search, others), key="search over", alt=draw.alt, on_select=clicked)
    if draw.told:
        st.caption(words.plain(draw.told))
    if search.snapshot.cancelled:
        st.info(
            f"Cancelled after {looked_at(search)}; what was measured is kept, and the same search goes on from there.",
            icon=":material/stop_circle:",
        )
    if not any(one.score for one in shown):
        return
    looked = pick(draw, search, shown, box)
    st.markdown(words.plain(looked.says), help=words.INTERVAL)
    figures(workspace, looked)
    if needs_tuning(looked.score):
        st.info(f"{words.plain(TUNE)} Adopt the plan, then *Fine-tune* it.", icon=":material/model_training:")
    measured = looked.score is not None
    adopt(workspace, looked, search.question.corrected if measured else plans.history(workspace).corrected)
    rows = tables.plan_rows(workspace.profile, looked.plan)
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


def listed(draw: Drawing, search: Search) -> list[Shown]:
    """The plans that can be looked at: those that the search has measured, the cheapest first, then the front."""
    workspace, asked, limit = draw.workspace, search.question, draw.limit(search.question)

    def kept(cost: Cost) -> str:
        share = words.share(tried.share(workspace, cost, "multiplies"))
        return f"at {share} of the multiplies, {words.count(cost.bytes, 'B')}"

    found: dict[str, Shown] = {}
    trials = by_cost(search)
    alike = len({trial.score.samples for trial in trials if trial.score is not None}) == 1
    for trial in trials:
        assert trial.score is not None
        verdict = tried.verdict(workspace, asked, trial.score, limit)
        figure = tried.short(workspace, trial.score, verdict)
        on = "" if alike or "decided on" in figure else f" on {how_many(trial.score.samples, 'sample')}"
        line = f"{figure}{on} {kept(trial.cost)}{', the answer' if trial == search.answer else ''}"
        says = tried.sentence(workspace, asked, trial.score, limit)
        key, plan, correction = tried.key_of(trial), trial.candidate.plan, trial.candidate.correction
        found[key] = Shown(key, line, says, plan, trial.cost, correction, trial.score)
    for one in draw.front:
        says = tried.predicted_text(workspace, one)
        line = f"front, {kept(one.cost)}: {says.partition(' (')[0]}"
        key = tried.key_of(one)
        found[key] = Shown(key, line, f"{says[:1].upper()}{says[1:]}.", one.plan, one.cost, None)
    return list(found.values())


def pick(draw: Drawing, search: Search, shown: list[Shown], box: str) -> Shown:
    """One of the plans, the answer if nobody says otherwise."""
    by_key = {one.key: one for one in shown}
    if session.widget(box) not in by_key:
        first = None if search.answer is None else tried.key_of(search.answer)
        last = [one.key for one in shown if one.score is not None][-1]
        session.set_widget(box, first if first in by_key else last)
    if len(shown) == 1:
        return shown[0]
    key = st.selectbox(
        "Plan",
        list(by_key),
        format_func=lambda key: by_key[key].line,
        key=box,
        help="Or click a dot of the chart. Plans of the front are predicted from single layers; Ranks measures them.",
    )
    return by_key[key]


def figures(workspace: Workspace, looked: Shown) -> None:
    """What a plan costs, and what becomes of the goals."""
    dense = plan_cost(workspace.profile)
    with st.container(horizontal=True, gap="large"):
        for label, now, before, unit, tip in (
            ("Bytes", looked.cost.bytes, dense.bytes, "B", words.BYTES),
            ("Multiplies", looked.cost.multiplies, dense.multiplies, "", words.MULTIPLIES),
        ):
            change = f"{100 * (now / before - 1):+.1f} % against dense" if before else None
            st.metric(label, words.count(now, unit), change, delta_color="inverse", help=tip, width="content")
    chosen, score = plans.goals(workspace), looked.score
    if score is not None and tried.stopped_early(workspace, score):
        score = None  # it is no figure that a floor could be held against
    peak_bytes = peaks.bytes_in(workspace, looked.plan, chosen.format)
    goals_bar.verdicts(judged(workspace, chosen, looked.plan, score, peak_bytes))


def adopt(workspace: Workspace, looked: Shown, corrected: bool) -> None:
    """Make a plan the session's own, as a step that can be undone, and go to Ranks with it where that is asked."""
    history, used = plans.history(workspace), looked.correction
    usual = (workspace.thorough, workspace.correction_in(workspace.thorough))
    own = used if corrected and used is not None and used not in usual else None
    if looked.score is None:
        own = history.correction
    now, wanted = (history.plan, history.corrected, history.correction), (looked.plan, corrected, own)
    with st.container(horizontal=True, vertical_alignment="center"):
        if now == wanted:
            back = " *Undo* on Ranks brings the one before it back." if history.past else ""
            st.markdown(f":material/check: This is the plan now.{back}")
            frame.link("Ranks", says="Open on Ranks")
            frame.link("Export", says="Export it")
            return
        here = button("Adopt this plan", type="primary", icon=":material/check:")
        there = button("Open on Ranks", icon=":material/tune:", help="Adopts it, and goes to Ranks to drag it further.")
        if not (here or there):
            return
        adopted = history.commit(looked.plan)
        same = (adopted.corrected, adopted.correction) == (corrected, own)
        plans.set_history(workspace, adopted if same else adopted.correct(corrected, own))
        if there:
            st.switch_page("pages/3_Ranks.py", query_params=session.address())
        st.rerun()


# ---- all searches ---------------------------------------------------------------------------------------------------

SEARCH_SHOWN = "search shown"


def rest(draw: Drawing, jobs: dict[Question, Job[Trial]], over: list[Search]) -> None:
    """Nothing runs: why the latest search failed, and what one of them found."""
    error = next((job.snapshot.error for job in reversed(jobs.values())), None)
    if error:
        st.error(words.plain(error), icon=":material/error:")
    if over:
        search = choose(draw, over)
        result(draw, search, [other for other in over if other is not search])
    elif not error:
        st.info("Start a search: its trials appear here as they are measured.", icon=":material/search:")


def choose(draw: Drawing, over: list[Search]) -> Search:
    """The search that is shown: the one that was asked on this visit, else the best, if nobody says otherwise."""
    workspace, newest = draw.workspace, over[::-1]
    by_key = {tried.key_of(search): search for search in newest}
    if session.visit().pop("asked", False):
        session.set_widget(SEARCH_SHOWN, next(iter(by_key)))
    if session.widget(SEARCH_SHOWN) not in by_key:
        place = tried.best(over, draw.quantity, partial(keeps_goals, workspace))
        session.set_widget(SEARCH_SHOWN, tried.key_of(over[place]))
    if len(newest) == 1:
        return newest[0]
    key = st.selectbox(
        "Search shown",
        list(by_key),
        format_func=lambda key: question.title(workspace, by_key[key].question),
        key=SEARCH_SHOWN,
        help="At first the best one: no other keeps more of the goals, or costs less and loses less.",
    )
    return by_key[key]


def keeps_goals(workspace: Workspace, trial: Trial) -> bool:
    """Whether a plan keeps the goals that were set, as far as that is known."""
    found = judged(workspace, plans.goals(workspace), trial.candidate.plan, trial.score)
    return all(one.kept is not False for one in found)


def comparison(draw: Drawing, over: list[Search]) -> None:
    """Finished searches side by side, as a table that can be exported."""
    workspace = draw.workspace
    st.header("Rules side by side", anchor=False)

    def clicked() -> None:
        """The search of the row that was clicked is the one that is shown above."""
        for row, _ in session.widget("rules side by side").selection.cells:
            session.set_widget(SEARCH_SHOWN, tried.key_of(over[row]))

    percent = words.shares(workspace)
    unit = "%.2f %%" if percent else "%.4g"
    st.dataframe(
        pd.DataFrame(tried.rows(workspace, over, draw.limit)),
        key="rules side by side",
        on_select=clicked,
        selection_mode="single-cell",
        hide_index=True,
        column_config={
            "Rule": st.column_config.TextColumn(width=130),  # pinned it would take no click (Streamlit 1.67)
            "Asked": st.column_config.TextColumn(width=190),
            "Multiplies": st.column_config.NumberColumn(format="localized", help=words.MULTIPLIES),
            "Bytes": st.column_config.NumberColumn(format="localized", help=words.BYTES),
            "Score": st.column_config.NumberColumn(
                words.metric(workspace),
                format=unit,
                help="Empty where samples were looked at until the drop was decided.",
            ),
            "Change": st.column_config.NumberColumn(
                words.change_title(workspace), format="%+.2f" if percent else "%+.4g", help="Against the dense network."
            ),
            "95 %": st.column_config.TextColumn(help=words.INTERVAL),
            "Verdict": st.column_config.TextColumn(help="Whether it was shown that it loses no more than is allowed."),
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


def show(workspace: Workspace) -> None:
    """Ask for a search in a form, and show what the searches of this session have found."""
    with st.container():  # which stays when the steps to the first plan are gone: all below keeps its place
        plans.history(workspace)
    goals_bar.show(workspace)
    jobs = searches.begun(workspace)
    latest = next(reversed(jobs), None)
    at_work = None if latest is None or jobs[latest].snapshot.over else latest
    over = [Search(wish, job.snapshot) for wish, job in jobs.items() if job.snapshot.over]
    over = [search for search in over if search.snapshot.error is None or any(trial.score for trial in search.trials)]
    with st.container(key="asking"):
        left, right = st.columns([2, 3], gap="large")
    takes = partial(searches.before_it_starts, workspace)
    with left:
        wish: Question | None = None
        try:
            wish = question_form.show(workspace)
        except LowRankError as error:
            st.error(words.plain(str(error)), icon=":material/error:")
        before = searches.asked_before(workspace)
        titles = [question.title(workspace, wish) for wish in before]
        running.earlier(before, titles, partial(start, workspace), takes)
    with right:
        job = None if at_work is None else jobs[at_work]
        bar = running.bar("Start search", ":material/search:", ready=wish is not None, job=job)
        if bar.pressed and wish is not None:
            start(workspace, wish)
            st.rerun()
        if wish is not None and at_work is None:
            running.costs(bar.line, partial(takes, wish))
        with running.outcome():
            quantity = st.segmented_control(
                "Change against",
                QUANTITIES,
                default=QUANTITIES[0],
                required=True,
                key="search against",
                persist_state="session",
            )
            watched, at_rest = st.empty(), st.empty()
    draw = Drawing(workspace, quantity, *fronts.known(workspace, quantity))
    if over:
        comparison(draw, over)
    if at_work is not None:
        with watched.container():
            watch(draw, at_work, jobs[at_work], over, bar)
    else:
        with at_rest.container():
            rest(draw, jobs, over)
        if over:
            front_grows(workspace)


def start(workspace: Workspace, wish: Question) -> None:
    """Ask, and show what comes of it."""
    searches.start(workspace, wish)
    session.visit()["asked"] = True
