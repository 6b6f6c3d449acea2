"""Clicks that select a layer, in tables, charts and pictures of any page, and what Ctrl+K has found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from lowrank_core.sources._inventory import Inventory
from lowrank_core.workspace import Workspace
from pages.ui import beside, goals_bar
from pages.ui.state import own_devices, selected, session
from pages.ui.state.selected import Network

LISTEN_THEMSELVES = ("Spectra", "Ranks")
"""Pages on which a part is drawn anew and not the whole page, when a layer is selected."""

_picker = st.components.v2.component(
    "rank_explorer_picker",
    js="""
export default function ({ data, setTriggerValue }) {
  const mine = window.rankPicker = { data, pick: picked => setTriggerValue("picked", picked) };
  window.dispatchEvent(new Event("rank-mended"));
  return () => { if (window.rankPicker === mine) window.rankPicker = null; };
}
""",
    isolate_styles=False,
)


def network_of(model: Workspace | Inventory) -> Network:
    """What has the layers."""
    return model.profile if isinstance(model, Workspace) else model


def listen(model: Workspace | Inventory) -> None:
    """Tell the browser what can be found, and hear what was picked; once on a page."""
    network = network_of(model)
    _picker(
        key="picker",
        data={
            "selected": selected.layer(network),
            "layers": [layer.name for layer in network.layers],
            "devices": [device.name for device in own_devices.known()] if isinstance(model, Workspace) else [],
        },
        on_picked_change=partial(_picked, model),
        height=1,
    )


def _picked(model: Workspace | Inventory) -> None:
    picked = session.widget("picker").picked
    if not isinstance(picked, dict):
        return
    if picked.get("kind") == "layer":
        selected.choose(network_of(model), picked.get("value"))
    elif picked.get("kind") == "device" and isinstance(model, Workspace):
        goals_bar.choose_device(model, str(picked.get("value")))


def table(network: Network, rows: pd.DataFrame | Sequence[dict[str, Any]], name: str, **options: Any) -> None:
    """A table with a column "Layer", in which a click on a row selects its layer. options: as `st.dataframe` takes."""
    shown = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    key = selected.widget_key(name)

    def clicked() -> None:
        for row, _ in session.widget(key).selection.cells:
            selected.choose(network, shown["Layer"].iloc[row], by=name)

    st.dataframe(shown, key=key, on_select=clicked, selection_mode="single-cell", hide_index=True, **options)


def chart(network: Network, figure: go.Figure, name: str, *, alt: str) -> None:
    """A chart with bars of layers, named on its y axis, in which a click on a bar selects its layer."""
    key = selected.widget_key(name)

    def clicked() -> None:
        for point in session.widget(key).selection.points:
            selected.choose(network, point.get("y"), by=name)

    beside.chart(figure, alt=alt, key=key, on_select=clicked)
