"""Devices a network may have to fit into: flash and RAM as their makers state them; 1 kB is 1024 bytes there."""

from __future__ import annotations

import re
from dataclasses import dataclass

kB, MB, GB = 1 << 10, 1 << 20, 1 << 30  # noqa: N816


@dataclass(frozen=True, slots=True)
class Device:
    """What a device has in all, in bytes; the program, its stack and buffers take their part of it."""

    name: str
    flash_bytes: int
    ram_bytes: int


DEVICES = (
    Device("STM32F103C8 (Cortex-M3)", 64 * kB, 20 * kB),
    Device("STM32F407VG (Cortex-M4F)", 1 * MB, 192 * kB),
    Device("STM32F746NG (Cortex-M7)", 1 * MB, 320 * kB),
    Device("STM32H743ZI (Cortex-M7)", 2 * MB, 1 * MB),
    Device("nRF52840, Arduino Nano 33 BLE (Cortex-M4F)", 1 * MB, 256 * kB),
    Device("RP2040, Raspberry Pi Pico (Cortex-M0+)", 2 * MB, 264 * kB),
    Device("RP2350, Raspberry Pi Pico 2 (Cortex-M33)", 4 * MB, 520 * kB),
    Device("ESP32-WROOM-32E (Xtensa LX6)", 4 * MB, 520 * kB),
    Device("ESP32-S3-WROOM-1-N8 (Xtensa LX7)", 8 * MB, 512 * kB),
    Device("Raspberry Pi Zero 2 W, 8 GB card", 8 * GB, 512 * MB),
    Device("Raspberry Pi 4, 2 GB, 16 GB card", 16 * GB, 2 * GB),
)
"""Boards with flash and RAM, from the makers' data sheets. Figures can be changed on the page; add your own here."""

FLASH_BYTES = {
    "Cortex-M0, 64 kB flash": 64 * kB,
    "Cortex-M0+ or M3, 128 kB flash": 128 * kB,
    "Cortex-M4, 256 kB flash": 256 * kB,
    "Cortex-M4F, 512 kB flash": 512 * kB,
    "Cortex-M4F or M33, 1 MB flash": 1 * MB,
    "Cortex-M7, 2 MB flash": 2 * MB,
}
"""Flash of usual kinds of microcontrollers, for a budget of bytes: no board, so no RAM. Add your own here."""


def flash_bytes(device: str) -> int | None:
    """Bytes of a kind of microcontroller in FLASH_BYTES, or of a size as it is typed; None where it is neither.

    >>> flash_bytes("Cortex-M0, 64 kB flash"), flash_bytes("96 kB"), flash_bytes("1.5MB"), flash_bytes("many")
    (65536, 98304, 1572864, None)
    """
    if device in FLASH_BYTES:
        return FLASH_BYTES[device]
    typed = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(k|M|G)i?B?\s*", device, re.IGNORECASE)
    return int(float(typed[1]) * {"k": kB, "m": MB, "g": GB}[typed[2].lower()]) if typed else None


def verdict(need_flash: int, need_ram: int, flash_bytes: int, ram_bytes: int) -> tuple[bool, list[tuple[str, int]]]:
    """Whether weights and activations fit, and by how many bytes each is over.

    >>> verdict(100, 50, 120, 40)
    (False, [('RAM', 10)])
    """
    over = [("flash", need_flash - flash_bytes), ("RAM", need_ram - ram_bytes)]
    over = [(word, missing) for word, missing in over if missing > 0]
    return not over, over
