"""The form of a training: which ranks, where it starts, how it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import cpu_count
from typing import TypeVar

import streamlit as st

from lowrank_core.plans.cost import plan_cost
from lowrank_core.selection import RULES, make
from lowrank_core.selection._problem import Quantity
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace
from pages.ui import form, frame, words
from pages.ui.question_form import largest_drop
from pages.ui.state import plans
from pages.ui.tuning import Sweep, Training

C = TypeVar("C", bound=str)

GOALS = {"plan": "This plan", "find": "Ranks to be found", "sweep": "A sweep"}
BUTTONS = {
    "plan": "Start training",
    "find": "Find the rank by bisection, then train",
    "sweep": "Start sweep",
}
STARTS = {"plan": "the plan's factors", "scratch": "random factors", "both": "both"}
SHARES = tuple(share / 100 for share in range(10, 100, 10))
USUAL = ("epochs", "learning_rate", "loss", "mix")


def show(workspace: Workspace) -> tuple[Training | Sweep | None, str]:
    """What is asked for, None where something is missing, and the label of the button that starts it."""
    goal = choice("What to train", GOALS, "tuning goal")
    history = plans.history(workspace)
    locked, corrected = history.locked, history.corrected
    wish: Training | Sweep | None
    if goal == "plan":
        plan_line(workspace)
    elif goal == "find":
        st.caption("The smallest rank of each layer within a largest drop, by halving the ranks that are left.")
        drop = largest_drop(workspace, "tuning drop")
    else:
        st.caption(
            "A plan at each budget, as it is compressed (indirect: the weights are approximated) and trained (direct: "
            "the loss finds the factors)."
        )
        quantity, shares, rule = budgets()
    begins = {name: says for name, says in STARTS.items() if goal != "sweep" or name != "both"}
    start = choice("Start from", begins, f"tuning start {goal}")
    starts = {"plan": (False,), "scratch": (True,), "both": (False, True)}[start]
    row = st.container(horizontal=True, gap="small")
    values = form.settings(Settings, "tuning", USUAL, row)
    if goal == "sweep":
        workers = row.number_input(
            "Processes",
            1,
            max(1, cpu_count() or 1),
            1,
            help="With one, the sweep gives way while you measure elsewhere; more train several plans at once, each "
            "in a process that opens the model anew.",
            key="tuning workers",
            width=168,
            persist_state="session",
        )
    else:
        seeds = row.number_input(
            "Seeds",
            1,
            10,
            1,
            help="Runs that differ in their seed alone. Training is not convex: the spread of several runs says how "
            "far a single one can be trusted.",
            key="tuning seeds",
            width=168,
            persist_state="session",
        )
    with st.expander("More settings"):
        more = (f.name for f in fields(Settings) if f.name not in (*USUAL, "from_scratch", "run_on"))
        values |= form.settings(Settings, "tuning", tuple(more))
    settings = Settings(**values, from_scratch=start == "scratch")
    if goal == "sweep":
        made = make(rule, {})
        wish = Sweep(shares, quantity, made, settings, workers, locked, corrected) if shares else None
    elif goal == "find":
        wish = Training(None, settings, starts, seeds, drop, locked, corrected)
    else:
        wish = Training(plans.candidate(workspace), settings, starts, seeds)
    return wish, BUTTONS[goal]


def choice(label: str, options: Mapping[C, str], key: str) -> C:
    """A row of buttons of which one is chosen, the first one at first."""
    return st.segmented_control(
        label,
        options,
        default=next(iter(options)),
        format_func=options.__getitem__,
        required=True,
        key=key,
        persist_state="session",
    )


def plan_line(workspace: Workspace) -> None:
    """The plan that is trained, in one line."""
    history = plans.history(workspace)
    cost, dense = plan_cost(workspace.profile, history.plan), plan_cost(workspace.profile)
    multiplies = f"{words.share(cost.multiplies / (dense.multiplies or 1))} of the multiplies"
    layers = f"{len(history.plan.choices)} of {len(workspace.profile.layers)} layers factorised"
    st.markdown(
        f"The plan as it stands: {layers}, {multiplies}, {words.share(cost.bytes / dense.bytes)} of the bytes, "
        f"**{'corrected' if history.corrected else 'uncorrected'}**.",
        help=words.CORRECTION,
    )
    frame.link("Ranks", says="Change it on Ranks")


def budgets() -> tuple[Quantity, tuple[float, ...], str]:
    """Ask for the plans of a sweep: (quantity, its shares of the dense network, name of the rule)."""
    quantities: dict[Quantity, str] = {"multiplies": "multiplies", "bytes": "bytes"}
    quantity = choice("Budgets of", quantities, "tuning quantity")
    shares = st.multiselect(
        "Shares of the dense network",
        SHARES,
        [0.2, 0.3, 0.5, 0.7],
        format_func=words.share,
        key="tuning shares",
        persist_state="session",
    )
    rules = sorted((name for name in RULES if "budget" in RULES[name].serves), key=lambda name: name != "uniform")
    rule = st.selectbox(
        "Ranks by", rules, format_func=lambda name: RULES[name].label, key="tuning rule", persist_state="session"
    )
    return quantity, tuple(sorted(shares)), rule
