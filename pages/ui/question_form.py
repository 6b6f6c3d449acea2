"""The form of a search: a rule with its settings, what it is asked for, and what it must leave alone."""

from __future__ import annotations

import inspect
from dataclasses import fields

import streamlit as st

from lowrank_core.figures import of_device
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.selection import RECOMMENDED, RULES, Rule, in_order, line_of, make
from lowrank_core.selection._problem import Quantity
from lowrank_core.workspace import Workspace
from pages.ui import form, goals, question, words
from pages.ui.goals import Goals
from pages.ui.question import Question
from pages.ui.state import models, plans

Budgets = tuple[tuple[Quantity, float], ...]

GOALS = {"budget": "Stay within a budget", "max_drop": "Lose at most", "nothing": "As the rule sees fit"}
MULTIPLES = (1, 4, 8, 16)


def show(workspace: Workspace) -> Question:
    """The form; raises a LowRankError where something typed cannot be meant."""
    name = st.selectbox("Rule", in_order(), format_func=in_a_line, key="search rule", persist_state="session")
    rule = RULES[name]
    says = " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
    st.caption(f"{words.plain(says)} *Source: {words.plain(rule.source)}.*")
    goals = [goal for goal in GOALS if goal in rule.serves]
    has_floor = plans.goals(workspace).floor is not None
    goal = "max_drop" if has_floor and "max_drop" in goals else goals[0]
    if len(goals) > 1:
        goal = st.segmented_control(
            "Goal",
            goals,
            default=goal,
            format_func=GOALS.__getitem__,
            required=True,
            key=f"search goal {name} {has_floor}",
            persist_state="session",
        )
    max_drop = largest_drop(workspace) if goal == "max_drop" else None
    place = st.container()
    asked_for = [f.name for f in fields(rule) if f.metadata.get("goal", goal) == goal]
    settings = form.settings(rule, f"search {name}", asked_for)
    with st.expander("Layers, methods, measurement"):
        methods, locked, multiple_of, samples = details(workspace, rule)
        table = latency()
        corrected = plans.history(workspace).corrected
        st.caption(
            f"Measured **{'with' if corrected else 'without'}** the correction, as *Ranks* is set.",
            help=words.CORRECTION,
        )
    budgets: Budgets = ()
    if goal != "nothing" and "budget" in rule.serves:
        with place:
            budgets = limits(workspace, goal, table)
    return Question(
        make(name, {k: str(v) for k, v in settings.items()}),
        budgets,
        max_drop,
        methods,
        locked,
        multiple_of,
        corrected,
        samples,
        table,
    )


def largest_drop(workspace: Workspace, key: str = "search drop") -> float:
    """Ask for the largest loss of score that is allowed; a fraction of 1 where the score is a share."""
    points = words.shares(workspace)
    label = f"Largest {words.loss(workspace)} of the {words.metric_name(workspace)}{', points' if points else ''}"
    most = 99.9 if points else None  # all of a share is no limit
    usual, floor = 1.0, plans.goals(workspace).floor
    if floor is not None:  # as far as it is allowed to go from where the dense network is
        lost = goals.largest_loss(floor, models.dense_score(workspace)[0], rises=words.rises(workspace))
        usual = round(100 * lost, 4) if points else lost
    key = f"{key} {points} {floor}"
    drop = st.number_input(label, 0.0, most, usual, step=0.1, format="%g", key=key, persist_state="session")
    return drop / 100 if points else drop


def limits(workspace: Workspace, goal: str, table: str) -> Budgets:
    """Budgets of multiplies, of bytes (the device of the goals sets it), and of microseconds where there is a table."""
    dense = plan_cost(workspace.profile)
    chosen = plans.goals(workspace)
    within = goals.bytes_within(workspace, chosen)
    device = within is not None and within < dense.bytes
    usual = 50.0 if goal == "budget" and not device else 100.0
    budgets = budget("multiplies", dense.multiplies, "", f"search multiplies {goal} {device}", usual)
    start = 100.0
    if within is not None and chosen.device is not None:
        start = min(100.0, max(0.1, int(1000 * within / (dense.bytes or 1)) / 10))
        st.caption(words.plain(flash_line(workspace, chosen, within)))
    sizes = None if chosen.device is None else chosen.device.flash_bytes
    budgets += budget("bytes", dense.bytes, "B", f"search bytes {goal} {sizes} {chosen.number}", start)
    if table:
        times = question.latency_table(table, workspace)
        total = sum(times(layer.name, None) or 0.0 for layer in workspace.profile.layers)
        budgets += budget("microseconds", total, "µs", f"search microseconds {goal}", 100.0)
    return budgets


def flash_line(workspace: Workspace, chosen: Goals, within: int) -> str:
    """What the device of the goals means for a budget of bytes, which are those of the network as it is."""
    assert chosen.device is not None
    flash = chosen.device.flash_bytes
    need = goals.flash_bytes(workspace, RankPlan(workspace.profile.fingerprint), chosen.format)
    how = f" in {chosen.number}" if chosen.number else ""
    dense = f"The dense network takes {of_device(need, flash)} flash{how}"
    if need <= flash:
        return f"{dense}: it fits."
    if not within:
        return f"{dense}, and what cannot be factorised is too large alone; take smaller numbers or another device."
    return f"{dense}: the budget is what fits. RAM is judged on Ranks and Compare."


def budget(quantity: Quantity, dense: float, unit: str, key: str, start: float) -> Budgets:
    """A slider of shares with the figure it stands for; the whole is no budget."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        share = st.slider(
            f"{quantity.capitalize()} budget", 0.1, 100.0, start, 0.1, "%.1f %%", key=key, persist_state="session"
        )
        limited = share < 100
        text = (
            f"{words.count(round(share / 100 * dense), unit)} of {words.count(dense, unit)}" if limited else "no limit"
        )
        st.caption(text, width=150)
    return ((quantity, share / 100),) if limited else ()


def latency() -> str:
    """The text of a table that was uploaded."""
    file = st.file_uploader(
        "Latency table (.csv)",
        type="csv",
        max_upload_size=5,
        help="Microseconds as you measured them, in columns layer, method, rank, microseconds; the dense layer goes by "
        "the method dense and no rank. It brings a budget of microseconds.",
    )
    return "" if file is None else file.getvalue().decode("utf-8", "replace")


def in_a_line(name: str) -> str:
    """A rule as the list has it: what it is called, and what it does in a few words.

    >>> in_a_line("budget")
    'Budget (recommended): least loss in a budget'
    """
    recommended = " (recommended)" if name == RECOMMENDED else ""
    return f"{RULES[name].label}{recommended}: {line_of(RULES[name])}"


def details(workspace: Workspace, rule: type[Rule]) -> tuple[tuple[str, ...], tuple[str, ...], int, int]:
    """Methods, locked layers, the multiple of ranks, samples per trial."""
    layers, model = workspace.profile.layers, workspace.profile.fingerprint[7:19]
    usable = {m.name for layer in layers for m in layer.methods if not m.reference}
    own = ", ".join(METHODS[m].label for m in rule.methods)
    usual = f"{'Usual' if rule.name == RECOMMENDED else 'As published'}: {own}" if own else "All usual ones"
    methods = st.multiselect(
        "Methods",
        [m for m in METHODS if m in usable],
        format_func=lambda m: METHODS[m].label,
        placeholder=usual,
        help=words.METHOD,
        key=f"search methods {model}",
        persist_state="session",
    )
    locked = st.multiselect(
        "Layers that stay dense",
        [layer.name for layer in layers],
        list(plans.history(workspace).locked),
        placeholder="None",
        key=f"search locked {model}",
        persist_state="session",
    )
    multiple_of = st.selectbox(
        "Ranks in multiples of",
        MULTIPLES,
        help="Some devices run widths of 4, 8 or 16 best.",
        key="search multiple",
        persist_state="session",
    )
    samples = st.number_input(
        "Evaluation samples per trial",
        16,
        1_000_000,
        1000,
        100,
        help="On so many a plan is scored within the search; where there are fewer, on all.",
        key="search samples",
        persist_state="session",
    )
    return tuple(methods), tuple(locked), multiple_of, samples
