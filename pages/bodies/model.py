"""Model: what the network is made of, where its cost lies, what can be compressed and what not."""

from typing import Any, Literal

import pandas as pd
import streamlit as st

from lowrank_core.networks.profile import Layer, ModelProfile
from lowrank_core.plans.cost import plan_cost
from lowrank_core.sources import weights_alone
from lowrank_core.sources._inventory import Inventory
from lowrank_core.workspace import Workspace
from pages.ui import frame, opening, outputs, selecting, tables, words
from pages.ui.commands import as_here
from pages.ui.cost_map import Area, cost_map
from pages.ui.state import selected
from pages.ui.state.selected import Network

MANY = 40

COLUMNS = {
    "Block": st.column_config.TextColumn(pinned=True),
    "Layers": st.column_config.NumberColumn(),
    "Layer": st.column_config.TextColumn(pinned=True),
    "Weight": st.column_config.TextColumn(help="Shape of the weight: outputs × inputs × kernel."),
    "Input": st.column_config.TextColumn(help="Extent of the input: height × width, or tokens; – for a single vector."),
    "Calls": st.column_config.NumberColumn(
        help="How often the layer runs in one forward pass; of one that only some rows are routed to, how many of a "
        "sample it gets, in the mean over the evaluation samples."
    ),
    "Parameters": st.column_config.NumberColumn(format="localized", help="Weight and bias."),
    "Bytes": st.column_config.NumberColumn(format="localized", help=words.BYTES),
    "Multiplies": st.column_config.NumberColumn(format="localized", help=words.MULTIPLIES),
    "Additions": st.column_config.NumberColumn(format="localized", help=words.ADDITIONS),
    "Methods": st.column_config.TextColumn(help=words.METHOD),
    "Axes": st.column_config.TextColumn(help="What a rank counts: Tucker-2 has one for outputs and one for inputs."),
    "Maximum": st.column_config.TextColumn(help=words.RANK),
    "Break-even in bytes": st.column_config.TextColumn(help=words.BREAK_EVEN),
    "Break-even in multiplies": st.column_config.TextColumn(help=words.BREAK_EVEN),
}


def height(rows: list[dict[str, Any]]) -> Literal["content"] | int:
    """A short table whole, a long one in a window of its own."""
    return "content" if len(rows) <= 30 else 600


def table(rows: list[dict[str, Any]]) -> None:
    """Rows of anything but layers."""
    st.dataframe(pd.DataFrame(rows), column_config=COLUMNS, hide_index=True, height=height(rows))


def layer_table(network: Network, rows: list[dict[str, Any]], name: str) -> None:
    """Rows of layers, of which a click selects one."""
    selecting.table(network, rows, name, column_config=COLUMNS, height=height(rows))


def by_block(layers: tuple[Layer, ...], *, called: bool = True) -> None:
    """Cost summed up by block, for networks of so many layers that single ones cannot be surveyed."""
    if len(layers) > MANY:
        st.header("Blocks", anchor=False)
        table(tables.blocks(layers, called=called))


def where_cost_is(profile: ModelProfile) -> None:
    """A map of the layers by their share of multiplies or bytes, each of which selects its layer, and a table."""
    rows = tables.cost_shares(profile)
    of = st.segmented_control("Area by", ["multiplies", "bytes"], default="multiplies", required=True, key="map of")
    areas = [Area(row["layer"], row[of], _says(row), row["layer"] != tables.OTHERS) for row in rows]
    st.html(cost_map(areas, selected.layer(profile), dark=st.context.theme.type == "dark"))
    with st.expander("The map as a table"):
        st.dataframe(pd.DataFrame(rows), hide_index=True, height=height(rows), column_config=SHARES)


def _says(row: dict[str, Any]) -> str:
    multiplies, stored = words.share(row["multiplies"]), words.share(row["bytes"])
    return f"{row['layer']}: {multiplies} of the multiplies, {stored} of the bytes"


SHARES = {name: st.column_config.NumberColumn(format="percent") for name in ("multiplies", "bytes")}


def checked(workspace: Workspace) -> None:
    """What the network has told of itself as it was opened."""
    st.header("Checked on opening", anchor=False, help=words.SELF_CHECK)
    marks = {True: ":green[:material/check:]", False: ":red[:material/close:]"}
    rows = [f"{marks[one.ok]} **{one.what}**: {words.plain(one.detail)}" for one in workspace.self_check.checked]
    st.markdown("  \n".join(rows))


def show_weights(stock: Inventory) -> None:
    """What names and shapes tell of weights without a model."""
    with st.container(horizontal=True, gap="large"):
        st.metric("Parameters", words.count(stock.parameters), width="content")
        st.metric("Bytes", words.count(stock.bytes, "B"), help=words.BYTES, width="content")
        st.metric("Layers" if stock.weights.adapter is None else "Modules", len(stock.layers), width="content")
    st.info(words.plain(as_here(weights_alone(stock.weights))), icon=":material/info:")
    for notice in stock.notices:
        st.caption(f":material/info: {words.plain(notice)}")
    if stock.weights.adapter is None:
        by_block(stock.layers, called=False)
    st.header("Layers" if stock.weights.adapter is None else "Modules", anchor=False)
    layer_table(stock, tables.weights(stock), "weights table")
    if stock.skipped:
        st.header("Left as it is", anchor=False)
        table([{"Tensor": s.name, "Type": s.type, "Why": s.reason} for s in stock.skipped])
    frame.link("Spectra", says="See the spectra")
    opening.link_to_compress(stock)
    if stock.weights.adapter is not None:
        frame.link("Ranks", says="Choose the ranks")


def show(workspace: Workspace) -> None:
    """Cost by layer, which ranks pay, and what stays as it is."""
    profile = workspace.profile
    cost = plan_cost(profile)
    with st.container(horizontal=True, gap="large"):
        st.metric("Parameters", words.count(cost.parameters), width="content")
        st.metric("Bytes", words.count(cost.bytes, "B"), help=words.BYTES, width="content")
        st.metric("Multiplies per sample", words.count(cost.multiplies), help=words.MULTIPLIES, width="content")
        st.metric("Additions per sample", words.count(cost.additions), help=words.ADDITIONS, width="content")

    outputs.show(workspace)
    if not workspace.self_check.ok:
        checked(workspace)
    st.header("Where the cost is", anchor=False)
    where_cost_is(profile)

    by_block(profile.layers)
    st.header("Layers that can be compressed", anchor=False)
    layer_table(profile, tables.layer_costs(profile), "cost table")

    st.header("Ranks that pay", anchor=False, help=words.BREAK_EVEN)
    rows, usual = tables.layer_ranks(profile), {layer.name: layer.methods[0].label for layer in profile.layers}
    if len(rows) > len(usual) and not st.toggle("Every method", key="ranks of every method"):
        rows = [row for row in rows if row["Method"] == usual[row["Layer"]]]
    layer_table(profile, rows, "rank table")

    st.header("Left as it is", anchor=False)
    rest = profile.rest
    st.markdown(
        f"Outside these layers: {rest.parameters:,} parameters ({words.count(rest.bytes, 'B')}) and "
        f"{words.count(rest.multiplies)} multiplies. Buffers (running means): {words.count(rest.buffer_bytes, 'B')}."
    )
    if profile.skipped:
        table([{"Module": s.name, "Type": s.type, "Why": s.reason} for s in profile.skipped])
    if workspace.self_check.ok:
        checked(workspace)
    frame.link("Spectra", says="See the spectra")
