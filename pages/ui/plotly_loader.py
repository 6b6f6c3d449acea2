"""Hands the plotly.js of the installed package to the browser once; the board draws with it, without any network."""

from __future__ import annotations

import plotly.offline
import streamlit as st

_loader = st.components.v2.component(
    "rank_explorer_plotly",
    js=plotly.offline.get_plotlyjs()
    + "\nexport default function () { window.dispatchEvent(new Event('plotly-ready')); }\n",
    isolate_styles=False,
)


def load_plotly() -> None:
    """Mount the loader; its content is constant, so later runs send only a hash."""
    _loader(key="plotly_loader", height=1)
