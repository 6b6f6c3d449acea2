"""The bar of goals, one for all pages: device, number format, the worst score that is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.measure.formats import AS_IT_IS, FORMATS
from lowrank_core.workspace import Workspace
from pages.ui import devices, words
from pages.ui.goals import Goals, Judged, own_format
from pages.ui.state import own_devices, plans, session

DEVICE, NUMBER, FLOOR, OWN, FAULT = "goal device", "goal number", "goal floor", "own devices", "goal fault"


def show(workspace: Workspace) -> Goals:
    """Draw the bar and give the goals as they stand."""
    current = plans.goals(workspace)
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom", key="goals_bar"):
        _device(workspace, current)
        _number(workspace, current)
        _floor(workspace, current)
        _own()
    fault = session.widget(FAULT)
    if fault:
        st.error(words.plain(fault), icon=":material/error:")
    faults = own_devices.table().faults
    if faults:
        more = f" {len(faults) - 1} more lines of it cannot be read either." if len(faults) > 1 else ""
        st.warning(
            words.plain(f"{own_devices.file()}, {faults[0]}{more} Correct it under Own devices; all others are kept."),
            icon=":material/memory:",
        )
    return current


def _held(key: str, value: Any) -> str:
    """A widget's key, which holds what is chosen, also where another page or tab has chosen it."""
    if session.widget(key) != value:
        session.set_widget(key, value)
    return key


def _device(workspace: Workspace, current: Goals) -> None:
    names = [device.name for device in own_devices.known()]
    chosen = None if current.device is None else current.device.name
    if chosen is not None and chosen not in names:
        names.insert(0, chosen)
    st.selectbox(
        "Device",
        names,
        None,
        key=_held(DEVICE, chosen),
        placeholder="Any",
        accept_new_options=True,
        help=f"Flash and RAM in all, as the maker states them; the program needs its part, too. Or type {devices.HOW}: "
        "it joins your own devices.",
        on_change=_choose_device,
        args=(workspace,),
        width=290,
    )


def _choose_device(workspace: Workspace) -> None:
    typed, current = session.widget(DEVICE), plans.goals(workspace)
    session.set_widget(FAULT, "")
    if typed is None:
        plans.aim(workspace, replace(current, device=None))
        return
    if current.device is not None and typed == current.device.name:
        return
    device = next((device for device in own_devices.known() if device.name == typed), None)
    try:
        plans.aim(workspace, replace(current, device=device or own_devices.add(typed)))
    except LowRankError as error:
        session.set_widget(FAULT, str(error)[:1].upper() + str(error)[1:])


def choose_device(workspace: Workspace, name: str) -> None:
    """Judge plans by a device that is known, as if it were chosen in the bar."""
    if any(device.name == name for device in own_devices.known()):
        session.set_widget(DEVICE, name)
        _choose_device(workspace)


def _number(workspace: Workspace, current: Goals) -> None:
    own = own_format(workspace)
    numbers = [own, *(name for name in FORMATS if name not in (AS_IT_IS, own))]
    st.selectbox(
        "Numbers",
        numbers,
        key=_held(NUMBER, current.number or own),
        help="Bytes of a weight and of an activation on the device; integers keep their size.",
        on_change=_choose_number,
        args=(workspace, own),
        width=120,
    )


def _choose_number(workspace: Workspace, own: str) -> None:
    chosen = session.widget(NUMBER)
    plans.aim(workspace, replace(plans.goals(workspace), number=None if chosen == own else chosen))


def _floor(workspace: Workspace, current: Goals) -> None:
    percent, rises = words.shares(workspace), words.rises(workspace)
    shown = None if current.floor is None else _percent(current.floor) if percent else current.floor
    bounds: dict[str, Any] = {"min_value": 0.0, "max_value": 100.0, "step": 0.5} if percent else {}
    key = f"{FLOOR} {workspace.profile.fingerprint[7:19]}"
    st.number_input(
        f"{words.metric(workspace)} at {'most' if rises else 'least'}{', %' if percent else ''}",
        value=None,
        key=_held(key, shown),
        placeholder="Any",
        format="%g",
        help="The worst that is allowed. On Ranks it is measured in the numbers the network has; int8 on Compare.",
        on_change=_choose_floor,
        args=(workspace, key, percent),
        width=190,
        **bounds,
    )


def _percent(share: float) -> float:
    return min(100.0, max(0.0, round(100 * share, 6)))


def _choose_floor(workspace: Workspace, key: str, percent: bool) -> None:
    typed = session.widget(key)
    floor = None if typed is None else round(typed / 100, 8) if percent else float(typed)
    plans.aim(workspace, replace(plans.goals(workspace), floor=floor))


def _own() -> None:
    text = own_devices.text().encode("utf-8", "replace").decode()
    with st.popover("Own devices", icon=":material/memory:"):
        if len(text) > devices.LARGEST_TABLE:
            st.caption(words.plain(f"{own_devices.file()} is too large for this page: remove some lines of it."))
            return
        key = f"{OWN} {hash(text)}"  # built when the popover opens: it must begin with what the file says then
        st.text_area(
            "Own devices, one a line",
            text,
            key=key,
            placeholder=devices.HOW,
            help=f"Kept in {own_devices.file()}, for all networks and pages.",
            on_change=_keep_own,
            args=(key,),
            height=140,
            max_chars=devices.LARGEST_TABLE,
        )


def _keep_own(key: str) -> None:
    session.set_widget(FAULT, "")
    try:
        own_devices.write(session.widget(key))
    except LowRankError as error:
        session.set_widget(FAULT, str(error))


def verdicts(found: tuple[Judged, ...]) -> None:
    """What becomes of the goals, as one line of text."""
    if found:
        st.markdown(" · ".join(words.plain(one.line) for one in found))
