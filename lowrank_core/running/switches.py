"""Switches of the whole process, such as PyTorch's fused kernels and logging: one thread at a time may turn them.

Where two threads turned them at once, each would put back what the other had set, for good.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch

_turn = threading.RLock()


@contextmanager
def plain_attention() -> Iterator[None]:
    """Encoder layers as the operators they are made of; their fused kernel exists in PyTorch alone."""
    with _turn:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, no warnings, no graphs on stderr: the exporters give dozens that no user can act on."""
    with _turn:
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings(), redirect_stderr(StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
