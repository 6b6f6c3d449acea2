"""Devices a network may have to fit into: flash and RAM. Their makers' kilobytes have 1024 bytes, those here 1000."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lowrank_core.figures import count

K, M, G = 1 << 10, 1 << 20, 1 << 30
"""Of the makers, in bytes."""

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "ki": K, "mi": M, "gi": G}
"""Of a size as it is typed; 1 kB is 1000 bytes, as everywhere on the pages."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a device has in all, in bytes; the program, its stack and buffers take their part of it."""

    name: str
    flash_bytes: int
    ram_bytes: int


DEVICES = (
    Device("STM32F103C8 (Cortex-M3)", 64 * K, 20 * K),
    Device("STM32F407VG (Cortex-M4F)", 1 * M, 192 * K),
    Device("STM32F746NG (Cortex-M7)", 1 * M, 320 * K),
    Device("STM32H743ZI (Cortex-M7)", 2 * M, 1 * M),
    Device("nRF52840, Arduino Nano 33 BLE (Cortex-M4F)", 1 * M, 256 * K),
    Device("RP2040, Raspberry Pi Pico (Cortex-M0+)", 2 * M, 264 * K),
    Device("RP2350, Raspberry Pi Pico 2 (Cortex-M33)", 4 * M, 520 * K),
    Device("ESP32-WROOM-32E (Xtensa LX6)", 4 * M, 520 * K),
    Device("ESP32-S3-WROOM-1-N8 (Xtensa LX7)", 8 * M, 512 * K),
    Device("Raspberry Pi Zero 2 W, 8 GB card", 8 * 10**9, 512 * M),
    Device("Raspberry Pi 4, 2 GB, 16 GB card", 16 * 10**9, 2 * G),
)
"""Boards with flash and RAM, from the makers' data sheets. Figures can be changed on the page; add your own here."""

FLASH_BYTES = {
    f"{core}, {count(flash, 'B')} flash": flash
    for core, flash in (
        ("Cortex-M0", 64 * K),
        ("Cortex-M0+ or M3", 128 * K),
        ("Cortex-M4", 256 * K),
        ("Cortex-M4F", 512 * K),
        ("Cortex-M4F or M33", 1 * M),
        ("Cortex-M7", 2 * M),
    )
}
"""Flash of usual kinds of microcontrollers, for a budget of bytes: no board, so no RAM. Add your own here."""


def flash_bytes(device: str) -> int | None:
    """Bytes of a kind of microcontroller in FLASH_BYTES, or of a size as it is typed; None where it is neither.

    >>> flash_bytes("Cortex-M0, 65.54 kB flash"), flash_bytes("96 kB"), flash_bytes("64KiB"), flash_bytes("many")
    (65536, 96000, 65536, None)
    """
    if device in FLASH_BYTES:
        return FLASH_BYTES[device]
    typed = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMG]i?)B?\s*", device, re.IGNORECASE)
    return int(float(typed[1]) * UNITS[typed[2].lower()]) if typed else None


def verdict(need_flash: int, need_ram: int, flash_bytes: int, ram_bytes: int) -> tuple[bool, list[tuple[str, int]]]:
    """Whether weights and activations fit, and by how many bytes each is over.

    >>> verdict(100, 50, 120, 40)
    (False, [('RAM', 10)])
    """
    over = [("flash", need_flash - flash_bytes), ("RAM", need_ram - ram_bytes)]
    over = [(word, missing) for word, missing in over if missing > 0]
    return not over, over
