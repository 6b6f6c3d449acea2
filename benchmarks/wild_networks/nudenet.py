"""nudenet (YOLOv8n): what it answers to crops of pictures, against the dense answers."""

import numpy as np

from benchmarks.wild_networks._images import PACKAGE, crops

PACKAGES = ("nudenet", PACKAGE)
FILE = "nudenet/320n.onnx"


def data() -> dict[str, np.ndarray]:
    """12 crops to judge by and 12 others to calibrate with; no labels."""
    judged, others = (crops(12, 320, seed).transpose(0, 3, 1, 2) / 255 for seed in (0, 1))
    return {"images": judged, "train_images": others}
