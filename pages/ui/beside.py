"""A chart, and beside it its numbers as a table, folded: for whoever does not see the chart, or wants to read it."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

Select = Callable[[], None]


def chart(figure: go.Figure, *, alt: str, key: str | None = None, on_select: Select | None = None) -> None:
    """Draw a chart that stays as it is, and its table. on_select: called when a point of it is clicked."""
    picked: dict[str, Any] = {} if on_select is None else {"on_select": on_select, "selection_mode": "points"}
    st.plotly_chart(figure, alt=alt, key=key, **picked)
    with st.expander("The chart as a table"):
        st.dataframe(pd.DataFrame(rows(figure)), hide_index=True, height="content" if len(rows(figure)) <= 8 else 300)


def rows(figure: go.Figure) -> list[dict[str, Any]]:
    """Its numbers: one column for each line or kind of bar where all of them share their places, else a row per point.

    >>> rows(go.Figure([go.Bar(name="bytes", y=["fc"], x=[0.5], orientation="h")]))
    [{'layer': 'fc', 'bytes': 0.5}]
    """
    places = [_places(trace) for trace in figure.data]
    across = _title(figure, "xaxis") or "place"
    if places and all(one == places[0] for one in places):
        across = "layer" if figure.data[0].orientation == "h" else across
        columns = {_name(figure, trace): _values(trace) for trace in figure.data}
        return [{across: place, **{name: of[at] for name, of in columns.items()}} for at, place in enumerate(places[0])]
    return [
        {"series": _name(figure, trace), across: place, "value": value, **_more(trace, at)}
        for trace, at_places in zip(figure.data, places, strict=True)
        for at, (place, value) in enumerate(zip(at_places, _values(trace), strict=True))
    ]


def _places(trace: Any) -> list[Any]:
    return list(trace.y if trace.orientation == "h" else trace.x)


def _values(trace: Any) -> list[Any]:
    return list(trace.x if trace.orientation == "h" else trace.y)


def _name(figure: go.Figure, trace: Any) -> str:
    """What a line is called: by itself, or by its axis."""
    return trace.name or _title(figure, f"yaxis{(trace.yaxis or 'y')[1:]}") or "value"


def _title(figure: go.Figure, axis: str) -> str:
    title = figure.layout[axis].title.text if axis in figure.layout else None
    return title or ""


def _more(trace: Any, at: int) -> dict[str, Any]:
    """The ends of an interval, and what a point is."""
    more: dict[str, Any] = {}
    if (error := trace.error_y).array is not None:
        value = trace.y[at]
        more |= {"low": value - error.arrayminus[at], "high": value + error.array[at]}
    if trace.text is not None:
        more["what"] = trace.text if isinstance(trace.text, str) else unescape(str(trace.text[at]))
    return more
