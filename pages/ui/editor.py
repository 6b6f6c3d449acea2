"""The plan as a table: exact entry without the board, driving the same plan."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from lowrank_core.errors import InvalidPlan
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import check_plan, freed, layer_cost, rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.state import plans, session

DENSE = "dense"


def show(workspace: Workspace) -> None:
    """An editable row per layer where it is asked for; what is typed becomes the plan, or one clear error."""
    if not st.toggle("Edit as a table", key="table"):
        return
    history = plans.history(workspace)
    key = f"table-{history.rev}"
    methods = [name for name, method in METHODS.items() if not method.reference]
    st.data_editor(
        rows(workspace, history.plan),
        key=key,
        hide_index=True,
        disabled=("Layer", "Bytes", "Multiplies"),
        column_config={
            "Method": st.column_config.SelectboxColumn(options=[DENSE, *methods], required=True),
            "Rank": st.column_config.TextColumn(help=words.RANK + " Tucker-2 takes two: out, in."),
            "Bytes": st.column_config.NumberColumn(format="localized", help=words.BYTES),
            "Multiplies": st.column_config.NumberColumn(format="localized", help=words.MULTIPLIES),
        },
        on_change=_edited,
        args=(workspace, key),
    )
    if session.widget("table-error"):
        st.error(words.plain(session.widget("table-error")), icon=":material/error:")


def _edited(workspace: Workspace, key: str) -> None:
    history = plans.history(workspace)
    try:
        plan = edited_plan(workspace, history.plan, session.widget(key)["edited_rows"])
        check_plan(workspace.profile, plan)
    except InvalidPlan as error:
        session.set_widget("table-error", str(error))
        return
    session.set_widget("table-error", "")
    plans.set_history(workspace, history.commit(plan))


def rows(workspace: Workspace, plan: RankPlan) -> pd.DataFrame:
    """Layer, method, rank, bytes and multiplies of every layer under the plan."""
    table = []
    for layer in workspace.profile.layers:
        choice = plan.get(layer.name)
        cost = layer_cost(layer, choice)
        rank = ", ".join(map(str, choice.rank)) if choice else ""
        table.append((layer.name, choice.method if choice else DENSE, rank, cost.bytes, cost.multiplies))
    return pd.DataFrame(table, columns=["Layer", "Method", "Rank", "Bytes", "Multiplies"])


def edited_plan(workspace: Workspace, plan: RankPlan, edits: dict[int, dict[str, Any]]) -> RankPlan:
    """The plan after edits {row: {column: value}}; a rank typed for a dense layer chooses its default method.

    Raises InvalidPlan for anything but whole numbers.
    """
    for row, values in edits.items():
        layer = workspace.profile.layers[int(row)]
        before = plan.get(layer.name)
        free = before.free if before else plan != plan.plain
        method = values.get("Method") or (before.method if before else layer.methods[0].name)
        if method == DENSE or values.get("Rank") == "":
            plan = plan.with_choice(layer.name, None)
            continue
        if "Rank" in values:
            typed = str(values["Rank"]).replace(",", " ").split()
            if not typed or not all(word.isascii() and word.isdigit() for word in typed):
                raise InvalidPlan(f"layer {layer.name!r}: a rank is a whole number, but got {values['Rank']!r}.")
            rank = tuple(map(int, typed))
        elif METHODS[method].obstacle(layer.spec) is None:
            rank = rank_at(useful_rank(layer, method, free), 0.5)
        else:
            rank = (1,)
        plan = plan.with_choice(layer.name, freed(Choice(method, rank)) if free else Choice(method, rank))
    return plan
