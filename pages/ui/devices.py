"""Devices a network may have to fit into: flash and RAM. Their makers' kilobytes have 1024 bytes: KiB."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lowrank_core.errors import InvalidSettings
from lowrank_core.figures import GIB, KIB, MIB

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": KIB, "mi": MIB, "gi": GIB}
"""Of a size as it is typed; 1 kB is 1000 bytes, 1 KiB is 1024."""

NAME_LETTERS = 60
MOST_BYTES = 2**50
MOST_OWN = 200
LARGEST_TABLE = 20_000
"""Own devices, and letters of the table that holds them, at most."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a device has in all, in bytes; the program, its stack and buffers take their part of it.

    ram_bytes: None where nobody has said.
    """

    name: str
    flash_bytes: int
    ram_bytes: int | None = None


DEVICES = (
    Device("STM32F103C8 (Cortex-M3)", 64 * KIB, 20 * KIB),
    Device("STM32F407VG (Cortex-M4F)", 1 * MIB, 192 * KIB),
    Device("STM32F746NG (Cortex-M7)", 1 * MIB, 320 * KIB),
    Device("STM32H743ZI (Cortex-M7)", 2 * MIB, 1 * MIB),
    Device("nRF52840, Arduino Nano 33 BLE (Cortex-M4F)", 1 * MIB, 256 * KIB),
    Device("RP2040, Raspberry Pi Pico (Cortex-M0+)", 2 * MIB, 264 * KIB),
    Device("RP2350, Raspberry Pi Pico 2 (Cortex-M33)", 4 * MIB, 520 * KIB),
    Device("ESP32-WROOM-32E (Xtensa LX6)", 4 * MIB, 520 * KIB),
    Device("ESP32-S3-WROOM-1-N8 (Xtensa LX7)", 8 * MIB, 512 * KIB),
    Device("Raspberry Pi Zero 2 W, 8 GB card", 8 * 10**9, 512 * MIB),
    Device("Raspberry Pi 4, 2 GB, 16 GB card", 16 * 10**9, 2 * GIB),
    Device("Cortex-M0, 64 KiB flash", 64 * KIB),
    Device("Cortex-M0+ or M3, 128 KiB flash", 128 * KIB),
    Device("Cortex-M4, 256 KiB flash", 256 * KIB),
    Device("Cortex-M4F, 512 KiB flash", 512 * KIB),
)
"""Boards with flash and RAM, from the makers' data sheets, then usual sizes of flash. A person's own stand before."""

HOW = "NAME, FLASH, RAM, as in My board, 64 KiB, 20 KiB; the name or the RAM may be left out"


def size(text: str) -> int | None:
    """Bytes of a size as it is typed; None where it is none.

    >>> size("96 kB"), size("64KiB"), size("1.5 MB"), size("many"), size("0 KiB")
    (96000, 65536, 1500000, None, None)
    """
    typed = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kMG]i?|)B?\s*", text, re.IGNORECASE | re.ASCII)
    found = int(float(typed[1]) * UNITS[typed[2].lower()]) if typed and re.search(r"[a-zA-Z]", text) else 0
    return found if 0 < found <= MOST_BYTES else None


def device_in(line: str) -> Device:
    """A device as it is typed: NAME, FLASH, RAM. Raises InvalidSettings.

    >>> device_in("My board, 64 KiB, 20 KiB")
    Device(name='My board', flash_bytes=65536, ram_bytes=20480)
    >>> device_in("96 KiB")
    Device(name='96 KiB', flash_bytes=98304, ram_bytes=None)
    """
    parts = [part.strip() for part in line.split(",")]
    sizes: list[int] = []
    while parts and len(sizes) < 2 and (bytes_ := size(re.sub(r"(?i)\s*(flash|ram)$", "", parts[-1]))):
        sizes.insert(0, bytes_)
        parts.pop()
    name = ", ".join(parts) or " ".join(line.split())
    if not sizes or not name.isprintable() or len(name) > NAME_LETTERS:
        raise InvalidSettings(f"a device is {HOW}, but got {line[:80]!r}.")
    return Device(name, sizes[0], sizes[1] if len(sizes) > 1 else None)


@dataclass(frozen=True, slots=True)
class Table:
    """A person's own devices; faults: what cannot be read, in one line each."""

    devices: tuple[Device, ...] = ()
    faults: tuple[str, ...] = ()


def table_in(text: str) -> Table:
    """The devices of a table, one a line; empty lines and those after # say nothing. Whatever can be read is.

    >>> table_in("A, 64 KiB\\nB, much\\n").faults
    ("line 2: a device is NAME, FLASH, RAM, as in My board, ... left out, but got 'B, much'.",)
    """
    devices: dict[str, Device] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            device = device_in(line)
            if device.name in devices:
                raise InvalidSettings(f"the name of a device stands there once, but {device.name!r} came before.")
            if len(devices) >= MOST_OWN:
                raise InvalidSettings(f"there are at most {MOST_OWN} own devices; remove some.")
        except InvalidSettings as error:
            faults.append(f"line {number}: {error}")
            continue
        devices[device.name] = device
    return Table(tuple(devices.values()), tuple(faults))


def over(need: float, most: float | None) -> bool:
    """Whether more is needed than there is; never where nobody has said how much there is."""
    return most is not None and need > most


def verdict(
    need_flash: int, need_ram: int, flash_bytes: int, ram_bytes: int | None
) -> tuple[bool, list[tuple[str, int]]]:
    """Whether weights and activations fit, and by how many bytes each is over.

    >>> verdict(100, 50, 120, 40)
    (False, [('RAM', 10)])
    """
    missing = [("flash", need_flash - flash_bytes), ("RAM", 0 if ram_bytes is None else need_ram - ram_bytes)]
    missing = [(word, by) for word, by in missing if by > 0]
    return not missing, missing
