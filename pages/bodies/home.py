"""Rank Explorer: choose the rank of every layer of a network, see what it costs and what it keeps."""

import streamlit as st

from lowrank_core.plans.cost import plan_cost
from lowrank_core.sources import weights_alone
from lowrank_core.sources._inventory import Inventory
from lowrank_core.workspace import Workspace
from pages.ui import frame, open_network, opening, words
from pages.ui.button import button
from pages.ui.commands import as_here
from pages.ui.state import session

STEPS = """
**In three steps**

1. **Look**: where the cost is (*Model*), and how fast each layer's singular values fall (*Spectra*).
2. **Tune**: drag the rank of each layer; bytes, multiplies and accuracy move with it (*Ranks*); or say how small it
   must be and let a rule choose (*Search*). Then train the factors (*Fine-tune*).
3. **Ship**: download the plan and the compressed weights, checked in a fresh process (*Export*).
"""


def show_weights(stock: Inventory) -> None:
    """Weights without a model: what they are, and where to look at them."""
    open_network.take_plan(stock)
    left, right = st.columns([1, 1], gap="large")
    with left:
        opening.pick_model()
        with st.container(horizontal=True, gap="medium"):
            st.metric("Parameters", words.count(stock.parameters), width="content")
            st.metric("Bytes", words.count(stock.bytes, "B"), help=words.BYTES, width="content")
            st.metric("Layers" if stock.weights.adapter is None else "Modules", len(stock.layers), width="content")
        st.info(words.plain(as_here(weights_alone(stock.weights))), icon=":material/info:")
        frame.link("Model", says="See what is in the file")
        frame.link("Spectra", says="See the spectra")
        opening.link_to_compress(stock)
        if stock.weights.adapter is not None:
            frame.link("Ranks", says="Choose the ranks")
    open_network.show(right)


def show_nothing() -> None:
    """The chosen network cannot be looked at: another one can be opened."""
    left, right = st.columns([1, 1], gap="large")
    with left:
        st.markdown("Choose another model to go on:")
        opening.pick_model(another=True)
    open_network.show(right)


def show(workspace: Workspace) -> None:
    """What the model is, what to do with it, and how to open another one."""
    open_network.take_plan(workspace)
    cost, rest = plan_cost(workspace.profile), workspace.profile.rest
    left, right = st.columns([1, 1], gap="large")
    with left:
        opening.pick_model()
        with st.container(horizontal=True, gap="medium"):
            st.metric("Parameters", words.count(cost.parameters), width="content")
            st.metric("Bytes", words.count(cost.bytes, "B"), help=words.BYTES, width="content")
            st.metric("Multiplies", words.count(cost.multiplies), help=words.MULTIPLIES, width="content")
            compressible = 1 - rest.multiplies / cost.multiplies if cost.multiplies else 0.0
            st.metric("Compressible", words.share(compressible), help=words.COMPRESSIBLE, width="content")
        if button("Tune the ranks", type="primary", icon=":material/tune:"):
            st.switch_page("pages/3_Ranks.py", query_params=session.address())
    st.markdown(STEPS)
    open_network.show(right)
