"""What an address may say of a session: the name of saved work; nonsense is said in one line, and new work begins."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest


def script() -> None:
    import streamlit as st

    from pages.ui.state import session

    session.put_in_address("w", session.session_id())
    for line in session.notices():
        st.text(line)


def test_a_name_in_the_address_is_taken_and_nonsense_is_said() -> None:
    good = AppTest.from_function(script)
    good.query_params["w"] = "0123456789abcdef"
    good.run()
    assert (good.query_params["w"], list(good.text)) == ("0123456789abcdef", [])
    for nonsense in ("<b>zzz", "0123456789ABCDEF", "z" * 5000):
        page = AppTest.from_function(script)
        page.query_params["w"] = nonsense
        page.run()
        assert not page.exception
        (line,) = page.text
        assert "names no saved work" in line.value
        assert len(line.value) < 200
        assert page.query_params["w"] != nonsense
