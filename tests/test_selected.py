"""The layer that is selected: one on all pages, and in the address; a bad address is one line."""

import sys
from collections.abc import Callable

import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

from pages.ui import beside
from tests.conftest import PATIENCE_SECONDS, ROOT

Open = Callable[[str], AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """`opened(layer)`: Spectra in a fresh session, at an address that names that layer."""

    def opener(layer: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py"])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
        app.query_params["layer"] = layer
        return app.switch_page("pages/2_Spectra.py").run()

    return opener


def test_the_address_selects_a_layer(opened: Open) -> None:
    app = opened("fc2")
    assert next(box for box in app.selectbox if box.label == "Layer").value == "fc2"
    assert "Layer **fc2** is selected." in [caption.value for caption in app.caption]
    assert not app.warning


def test_an_address_of_another_networks_layer_is_one_line_and_all_else_is_kept(opened: Open) -> None:
    bad = "blocks.0.<b>" + "x" * 60
    app = opened(bad)
    (line,) = (warning.value for warning in app.warning)
    for part in (
        "The address names the layer",
        "which this network does not have",
        "one of its 6 layers, such as conv1",
    ):
        assert part in line
    assert "<b>" not in line.replace("\\<b>", "")
    assert bad not in line
    assert next(box for box in app.selectbox if box.label == "Layer").value == "conv2", "as without an address"
    assert [warning.value for warning in app.run().warning] == [line], "the same line, not another one"


def test_a_layer_that_is_chosen_on_one_page_is_selected(opened: Open) -> None:
    app = opened("fc2")
    next(box for box in app.selectbox if box.label == "Layer").select("conv3").run()
    assert app.session_state["address"]["layer"] == "conv3", "links to other pages carry it"
    assert app.query_params["layer"] == "fc2", "setting it here would be an entry of the browser's history"


def test_a_chart_without_common_places_is_a_row_per_point() -> None:
    figure = go.Figure(
        [
            go.Scatter(name="dense", x=[1.0], y=[0.9]),
            go.Scatter(
                name="trials",
                x=[0.5, 0.25],
                y=[0.8, 0.7],
                text=["a &amp; b", "c"],
                error_y={"array": [0.1, 0.2], "arrayminus": [0.3, 0.4]},
            ),
        ],
        {"xaxis": {"title": "bytes"}},
    )
    first, second, third = beside.rows(figure)
    assert first == {"series": "dense", "bytes": 1.0, "value": 0.9}
    assert (second["what"], second["low"], second["high"]) == ("a & b", pytest.approx(0.5), pytest.approx(0.9))
    assert (third["bytes"], third["value"]) == (0.25, 0.7)
