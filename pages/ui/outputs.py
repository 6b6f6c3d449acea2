"""Outputs: which of a network's outputs are judged, and the choice of others."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.scoring.judging import Output
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.state import models

COLUMNS = {
    "Output": st.column_config.TextColumn(pinned=True),
    "Shape": st.column_config.TextColumn(help="Of one sample; – for a single number."),
}


def show(workspace: Workspace) -> None:
    """What is judged and why; of several outputs a table, and a choice that holds for this model on all pages."""
    st.header("What is judged", anchor=False)
    if workspace.opened.evaluate is not None:
        st.markdown("The model file scores itself with `evaluate(model)`.")
        return
    try:
        judged = workspace.judged
    except LowRankError as error:
        st.warning(words.plain(str(error)), icon=":material/info:")
        return
    names, by = words.plain(", ".join(judged.names)), words.plain(words.metric_name(workspace))
    st.markdown(f"**{names}** by {by}: {words.plain(judged.why)}.")
    if len(judged.outputs) == 1:
        return
    st.dataframe(
        pd.DataFrame([_row(output, judged.names) for output in judged.outputs]),
        column_config=COLUMNS,
        hide_index=True,
        height="content",
    )
    able = [output.name for output in judged.outputs if not output.left]
    chosen = models.outputs_chosen()
    picked = st.multiselect(
        "Judge these outputs",
        able,
        [name for name in chosen if name in able],
        placeholder="Those that fit",
        help="The score is that of the output that drops most. Kept for this model until the session ends.",
        key=f"outputs of {models.chosen()}",
    )
    if tuple(picked) != chosen:
        models.choose_outputs(tuple(picked))
        st.rerun()


def _row(output: Output, judged: tuple[str, ...]) -> dict[str, str]:
    return {
        "Output": output.name,
        "Shape": words.sizes(output.shape),
        "Type": output.dtype,
        "Judged": "yes" if output.name in judged else f"no, {output.left}" if output.left else "no",
    }
