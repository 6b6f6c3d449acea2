"""The layer that is selected: one for each network, the same on all pages; at opening the one in the address."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from lowrank_core.networks.profile import Layer, ModelProfile
from lowrank_core.sources._inventory import Inventory
from pages.ui.state import session

Network = ModelProfile | Inventory


def layer(network: Network) -> str | None:
    """The selected layer of a network, by its name; None where nobody has selected one.

    An address that names a layer of another network is said, once.
    """
    chosen = _chosen(network)
    name = chosen.get(_key(network))
    session.remember("layer", name)
    return name


def choose(network: Network, name: object, by: str = "") -> None:
    """Select a layer; what is none of this network is ignored. by: the table or chart that it was clicked in."""
    if not isinstance(name, str) or name not in {one.name for one in network.layers}:
        return
    _chosen(network)[_key(network)] = name
    session.remember("layer", name)
    turns: dict[str, int] = st.session_state.setdefault("layer clicks", {})
    for other in turns:
        turns[other] += other != by


def widget_key(by: str) -> str:
    """The key of a table or chart whose clicks select; another one when the layer was selected elsewhere since.

    What it marks is then no more what is selected.
    """
    turns: dict[str, int] = st.session_state.setdefault("layer clicks", {})
    return f"{by} {turns.setdefault(by, 0)}"


def _chosen(network: Network) -> dict[str, str]:
    if "layers selected" not in st.session_state:
        asked, names = st.query_params.get("layer", ""), [one.name for one in network.layers]
        st.session_state["layers selected"] = {_key(network): asked} if asked in names else {}
        if asked and asked not in names:
            session.say(_unknown(asked, names))
    chosen: dict[str, str] = st.session_state["layers selected"]
    return chosen


def _unknown(asked: str, names: Sequence[str]) -> str:
    known = f"one of its {len(names)} layers, such as {names[0]}" if names else "no layer: it has none to select"
    given = session.as_shown(asked)
    return f"The address names the layer {given!r}, which this network does not have. Name {known}; all else is kept."


def _key(network: Network) -> str:
    return network.fingerprint if isinstance(network, ModelProfile) else network.weights.ref


def position(layers: Sequence[Layer], name: str | None, otherwise: int | None) -> int | None:
    """Where a layer stands among others; `otherwise` where it is none of them."""
    return next((at for at, one in enumerate(layers) if one.name == name), otherwise)
