"""Pictures that come with scikit-image: crops of them at several sizes, and which of these are for what."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.wild_networks._packages import place

PACKAGE = "scikit-image"

NAMES = (
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png"),
    *("retina.jpg", "motorcycle_left.png", "color.png", "logo.png"),
)


def crops(count: int, side: int, seed: int) -> np.ndarray:
    """(count, side, side, 3) of 0 to 255: square crops of at least half of a picture's shorter side, scaled."""
    draw = np.random.default_rng(seed)
    pictures = [Image.open(place(f"skimage/data/{name}")).convert("RGB") for name in NAMES]
    made = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        size = int(min(picture.size) * draw.uniform(0.5, 1))
        left, top = (int(draw.integers(0, length - size + 1)) for length in picture.size)
        box = (left, top, left + size, top + size)
        made.append(np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box)))
    return np.stack(made).astype(np.float32)
