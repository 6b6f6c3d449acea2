"""PP-OCRv4 (rapidocr-onnxruntime): drawn text; the same character at each place, lines read right."""

from __future__ import annotations

import random
from itertools import groupby

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.wild_networks._packages import place

PACKAGES = ("rapidocr-onnxruntime",)
FILE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"

HEIGHT, WIDTH = 48, 320
WORDS = [
    *("rank", "layer", "weight", "tensor", "factor", "singular", "value", "energy", "budget", "search", "export"),
    *("bytes", "drop", "score", "plan", "board", "sample", "channel", "kernel", "1936", "2026", "50 %", "7.5 kg"),
]


def data() -> dict[str, np.ndarray]:
    """24 lines to judge by and 24 others to calibrate with."""
    judged, others = (np.stack([_drawn(text) for text in _lines(seed)]) for seed in (0, 1))
    return {"x": judged, "train_x": others, "metric": np.array("agreement")}


def also(outputs: Tensor) -> str:
    """How many lines are read as they were drawn, from (N, places, characters): repeats and blanks taken out."""
    known = {p.key: p.value for p in onnx.load(place(FILE), load_external_data=False).metadata_props}["character"]
    characters = ["", *known.splitlines(), " "]
    read = ["".join(characters[c] for c, _ in groupby(line)) for line in outputs.argmax(2).tolist()]
    return f"{sum(ours == drawn for ours, drawn in zip(read, _lines(0), strict=True))} of {len(read)} lines"


def _lines(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.sample(WORDS, 2)) for _ in range(24)]


def _drawn(text: str) -> np.ndarray:
    """(3, 48, 320) from -1 to 1: dark on light, as wide as the text; right of it 0, as the package pads."""
    font = ImageFont.load_default(30)
    long = min(WIDTH, int(font.getlength(text)) + 16)
    image = Image.new("RGB", (long, HEIGHT), "white")
    ImageDraw.Draw(image).text((8, 6), text, "black", font)
    line = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    line[:, :, :long] = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    return line
