"""A person's own devices: a table in their state folder, one a line, for the pages and for any editor of text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowrank_core.errors import InvalidSettings
from lowrank_core.store.files import own_folder, write_whole
from lowrank_core.store.lock import locked
from pages.ui import devices
from pages.ui.devices import Device, Table
from pages.ui.state import on_disk

FIRST = f"# Own devices, one a line: {devices.HOW}."


def file() -> Path:
    """Where the table lies."""
    return own_folder("state") / "devices.txt"


def text() -> str:
    """The table as it is written; "" where there is none, or it cannot be read."""
    try:
        with file().open("rb") as opened:
            return opened.read(devices.LARGEST_TABLE + 1).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def table() -> Table:
    """The devices that can be read, and what cannot."""
    return devices.table_in(text())


def known() -> tuple[Device, ...]:
    """The one list of devices: a person's own, then those of the product; a name stands there once."""
    return tuple({device.name: device for device in (*devices.DEVICES[::-1], *table().devices[::-1])}.values())[::-1]


def add(line: str) -> Device:
    """Add a device as it is typed; one of its name is replaced. What of the table cannot be read stays in it.

    Raises InvalidSettings.
    """
    device = devices.device_in(line)

    def with_it(before: str) -> str:
        kept = [one for one in before.splitlines() if one.strip() and not _is_of(one, device.name)]
        return "\n".join([*(kept or [FIRST]), " ".join(line.split())]) + "\n"

    _change(with_it)
    return device


def write(table: str) -> None:
    """Keep a table as it was typed, with what of it cannot be read; raises InvalidSettings for one that is too long."""
    _change(lambda before: table)


def _change(change: Callable[[str], str]) -> None:
    path = file()
    try:
        with locked(path.parent):
            content = change(text()).encode("utf-8", "surrogateescape")
            if len(content) > devices.LARGEST_TABLE:
                raise InvalidSettings(f"{path} may have {devices.LARGEST_TABLE:,} letters at most; remove some lines.")
            write_whole(path, content)
    except OSError as error:
        on_disk.say_unwritable(path, error)


def _is_of(line: str, name: str) -> bool:
    try:
        return devices.device_in(line).name == name
    except InvalidSettings:
        return False
