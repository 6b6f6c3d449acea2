"""The button whose click is not lost."""

from streamlit.testing.v1 import AppTest


def a_late_end() -> None:
    """A page whose run is met by the end of the run before it."""
    import streamlit as st
    from streamlit.runtime.scriptrunner_utils.script_run_context import get_script_run_ctx

    from pages.ui.button import button
    from pages.ui.state.session import turn_to

    page = st.session_state.get("page", "Search")
    turn_to(page)
    if st.session_state.get("late"):
        get_script_run_ctx().session_state.on_script_finished(frozenset())
    if page == "Search" and button("Start", disabled=st.session_state.get("busy", False)):
        st.session_state["started"] = st.session_state.get("started", 0) + 1
    if page == "Search" and st.button("Plain"):
        st.session_state["plain"] = True


def begun(**given: object) -> AppTest:
    app = AppTest.from_function(a_late_end).run()
    for name, value in given.items():
        app.session_state[name] = value
    return app


def test_a_click_is_seen_once() -> None:
    app = begun()
    app.button[0].click().run()
    app.run()
    assert app.session_state["started"] == 1


def test_the_end_of_the_run_before_does_not_take_the_click() -> None:
    app = begun(late=True)
    app.button[1].click().run()
    assert "plain" not in app.session_state  # what Streamlit's own button does
    app.button[0].click().run()
    assert app.session_state["started"] == 1


def test_a_click_is_not_kept_for_a_later_visit() -> None:
    app = begun(pressed="Start", page="Export").run()
    app.session_state["page"] = "Search"
    app.run()
    assert "started" not in app.session_state


def test_what_has_become_disabled_does_nothing_later() -> None:
    app = begun(pressed="Start", busy=True).run()
    app.session_state["busy"] = False
    app.run()
    assert "started" not in app.session_state
