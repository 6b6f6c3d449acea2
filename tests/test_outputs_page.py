"""Several outputs on the pages: which are judged is said on each, and a choice on Model holds on all."""

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import PATIENCE_SECONDS
from tests.test_outputs import FILE

ROOT = Path(__file__).resolve().parents[1]


def text(page: AppTest) -> str:
    return "\n".join(str(element.value) for kind in ("markdown", "caption") for element in page.get(kind))


def test_a_choice_on_model_is_what_is_judged_on_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heads.py"
    path.write_text(FILE)
    monkeypatch.setattr(sys, "argv", ["app.py", str(path)])
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    page = app.switch_page("pages/1_Model.py").run()
    assert not page.exception
    assert "judged: large, small" in text(page)
    table = page.dataframe[0].value
    assert dict(zip(table["Output"], table["Judged"], strict=True)) == {
        "ids": "no, reached by no weight",
        "large": "yes",
        "small": "yes",
    }
    choice = next(found for found in page.multiselect if found.label == "Judge these outputs")
    assert choice.options == ["large", "small"]
    choice.set_value(["small"]).run()
    assert "judged: small" in text(page)
    page = app.switch_page("pages/7_Export.py").run()
    assert "dense R2 against the dense network" in text(page)
    assert "judged: small" in text(page)
    page = app.switch_page("pages/1_Model.py").run()
    choice = next(found for found in page.multiselect if found.label == "Judge these outputs")
    assert choice.value == ["small"]
    choice.set_value([]).run()
    assert "judged: large, small" in text(page)
