"""What is set for the whole of a process, and so only in those of our own: commands, the dashboard, fresh processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

EXPORTERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript", "onnx_ir")
"""Loggers of what writes and reads graphs."""


_alone = False


def hush_libraries(*, alone: bool = False) -> None:
    """Hear nothing but errors of exporters and decompositions: they give dozens of lines that no user can act on.

    alone: nobody else in this process writes to stderr, as in a command. A host program that imports the library keeps
    what it hears as it is.
    """
    global _alone
    _alone = alone
    for name in EXPORTERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|onnx_ir|onnxruntime|tensorly|copyreg)(\.|$)")


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Keep off stderr what libraries print there; only in a process where nobody else writes to it."""
    if not _alone:
        yield
        return
    with redirect_stderr(StringIO()):
        yield
