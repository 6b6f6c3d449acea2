"""The ranks of a LoRA adapter: a slider for each module, rules that set all of them, and the smaller file."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.exports._adapter import (
    kept_energy,
    ranks_at_most,
    ranks_for_energy,
    ranks_within,
    write_adapter,
)
from lowrank_core.sources._adapter import Adapter, Pair
from lowrank_core.sources._inventory import Inventory
from pages.ui import words
from pages.ui.button import button
from pages.ui.state import downloads, session

AT_ONCE = 40
"""Modules whose sliders stand on the page at once."""

ENERGY, RANK, BYTES = "Energy of each module", "One rank", "Bytes of all"
HELP = {
    ENERGY: "Of each product B A the smallest rank that keeps this share of its squared singular values.",
    RANK: "The same rank everywhere, where a module has so many.",
    BYTES: "The ranks that keep the most of what the adapter adds to the weights in so many bytes.",
}


@st.fragment
def show(stock: Inventory) -> None:
    """Rules, sliders and the file, drawn by themselves as a slider moves."""
    adapter = stock.weights.adapter
    assert adapter is not None
    for notice in stock.notices:
        st.caption(f":material/info: {words.plain(notice)}")
    st.caption("Energy is what the products keep, not a score: try the smaller adapter with its model.")
    key = f"adapter {stock.weights.ref}"
    figures = st.container(horizontal=True, gap="medium")
    _rule(adapter, key)
    _sliders(adapter, key)
    ranks = _ranks(adapter, key)
    now, before = adapter.bytes_at(ranks), adapter.bytes_at(adapter.ranks)
    with figures:
        change = f"{100 * (now / before - 1):+.1f} % against the file" if now != before else None
        st.metric("Bytes of the tensors", words.count(now, "B"), change, delta_color="inverse", width="content")
        st.metric(
            "Energy kept",
            words.share(kept_energy(adapter, ranks)),
            help="Of what the adapter adds to all weights, as squared sums, with each module's scale.",
            width="content",
        )
        st.metric("Modules", len(adapter.pairs), width="content")
    _file(stock, adapter, ranks)


def _ranks(adapter: Adapter, key: str) -> dict[str, int]:
    """The ranks that were chosen in this session, at first those of the file."""
    kept = session.widget(f"{key} ranks")
    return kept if kept is not None and kept.keys() == adapter.ranks.keys() else dict(adapter.ranks)


def _set(adapter: Adapter, key: str, ranks: dict[str, int]) -> None:
    session.set_widget(f"{key} ranks", ranks)
    for number, pair in enumerate(adapter.pairs):
        session.set_widget(f"{key} slider {number}", ranks[pair.name])


def _rule(adapter: Adapter, key: str) -> None:
    """What sets all ranks at once."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        rule = st.selectbox("Choose all ranks by", [ENERGY, BYTES, RANK], key=f"{key} rule", width=230)
        if rule == ENERGY:
            share = st.slider(
                "Share that is kept, %", 50.0, 100.0, 99.0, 0.5, "%g", key=f"{key} share", help=HELP[rule]
            )
        elif rule == RANK:
            most = max(adapter.ranks.values())
            rank = st.number_input("Rank, at most", 1, most, max(1, most // 2), key=f"{key} rank", help=HELP[rule])
        else:
            whole = adapter.bytes_at(adapter.ranks)
            part = st.slider("Share of the bytes, %", 1, 100, 50, key=f"{key} bytes", help=HELP[rule])
        pressed = button("Set all ranks", icon=":material/tune:", key=f"{key} set")
    if not pressed:
        return
    try:
        if rule == ENERGY:
            ranks = ranks_for_energy(adapter, share / 100)
        elif rule == RANK:
            ranks = ranks_at_most(adapter, int(rank))
        else:
            ranks = ranks_within(adapter, whole * part // 100)
    except LowRankError as error:
        st.error(words.plain(str(error)), icon=":material/error:")
        return
    _set(adapter, key, ranks)


def _sliders(adapter: Adapter, key: str) -> None:
    """One for each module, beside it what its rank keeps and takes."""
    pairs = list(enumerate(adapter.pairs))
    if len(pairs) > AT_ONCE:
        first = st.selectbox(
            "Modules",
            range(0, len(pairs), AT_ONCE),
            format_func=lambda at: f"{at + 1} to {min(at + AT_ONCE, len(pairs))} of {len(pairs)}",
            key=f"{key} part",
            width=230,
        )
        pairs = pairs[first : first + AT_ONCE]
    ranks = _ranks(adapter, key)
    for number, pair in pairs:
        slider, told = st.columns([3, 1], vertical_alignment="center")
        with slider:
            _slider(adapter, key, number, pair, ranks)
        sigma = adapter.product(pair.name).sigma
        rank = _ranks(adapter, key)[pair.name]
        whole = float(sigma.square().sum())
        kept = float(sigma[:rank].square().sum()) / whole if whole else 1.0
        told.markdown(f"{words.share(kept)} of its energy · {words.count(pair.rank_bytes * rank, 'B')}")


def _slider(adapter: Adapter, key: str, number: int, pair: Pair, ranks: dict[str, int]) -> None:
    place = f"{key} slider {number}"
    if pair.rank == 1:
        st.markdown(f"{words.plain(pair.name)}: rank 1")
        return
    session.set_widget(place, ranks[pair.name])

    def moved() -> None:
        session.set_widget(f"{key} ranks", {**_ranks(adapter, key), pair.name: session.widget(place)})

    st.slider(words.plain(pair.name), 1, pair.rank, key=place, on_change=moved)


def _file(stock: Inventory, adapter: Adapter, ranks: dict[str, int]) -> None:
    """The smaller adapter, for a download."""
    ending = ".zip" if adapter.peft else ".safetensors"
    name = re.sub(r"[^\w.-]+", "-", stock.weights.name)
    file = f"{name}-resized{ending}"
    about = (stock.weights.ref, tuple(ranks.items()))
    if button("Write the adapter", icon=":material/build:", key=f"write {stock.weights.ref}"):
        path = downloads.place("", file)
        try:
            written = write_adapter(adapter, ranks, path)
        except LowRankError as error:
            st.error(words.plain(str(error)), icon=":material/error:")
            return
        downloads.keep_made("adapter", about, Path(written.path).read_bytes())
    content = downloads.made("adapter", about)
    if content is None:
        return
    what = "a zip of the folder that PEFT loads" if adapter.peft else "a file with the names of the one you opened"
    st.success(f"{words.count(len(content), 'B')}, {what}.", icon=":material/check:")
    st.download_button(
        "Download the adapter",
        content,
        file,
        "application/octet-stream",
        type="primary",
        icon=":material/download:",
        on_click="ignore",
    )
