"""What is set for the whole of a process, and so only in those of our own: commands, the dashboard, fresh processes."""

from __future__ import annotations

import logging
import warnings

EXPORTERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript", "onnx_ir")
"""Loggers of what writes and reads graphs."""


def hush_libraries() -> None:
    """Hear nothing but errors of exporters and decompositions: they give dozens of lines that no user can act on.

    A host program that imports the library keeps what it hears as it is.
    """
    for name in EXPORTERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|onnx_ir|onnxruntime|tensorly|copyreg)(\.|$)")
