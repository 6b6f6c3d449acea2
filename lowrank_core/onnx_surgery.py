"""Superseded by `from lowrank_core import compressed_onnx`; this path goes with the next version."""

import warnings

from lowrank_core.exports._onnx_surgery import came_from_onnx, compressed_onnx

__all__ = ["came_from_onnx", "compressed_onnx"]

warnings.warn(
    "lowrank_core.onnx_surgery goes with the next version; write: from lowrank_core import compressed_onnx",
    DeprecationWarning,
    stacklevel=2,
)
