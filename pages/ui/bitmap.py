"""Small pictures as data of their own, for pages."""

from __future__ import annotations

from base64 import b64encode
from struct import pack

from torch import Tensor


def bitmap(pixels: Tensor) -> str:
    """(1 or 3, height, width) of uint8 as the base64 of a BMP of 24 bits, the last row first."""
    rows = pixels.expand(3, *pixels.shape[1:]).flip(0, 1).permute(1, 2, 0)  # blue, green, red
    height, width, _ = rows.shape
    rest = b"\0" * (-3 * width % 4)
    body = b"".join(row.contiguous().numpy().tobytes() + rest for row in rows)
    header = b"BM" + pack(
        "<IHHIIiiHHIIiiII", 54 + len(body), 0, 0, 54, 40, width, height, 1, 24, 0, len(body), 0, 0, 0, 0
    )
    return b64encode(header + body).decode()
