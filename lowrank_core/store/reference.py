"""References: a model, the file that its weights come from, and the key of weights in a file, in one text."""

from __future__ import annotations

import os
from pathlib import Path

WITH = " --weights "
"""Between a model and the file of its weights, as a command has them."""


def with_weights(ref: str, file: str | Path | None) -> str:
    """The reference of a model that gets its weights from a file, which is found whatever folder is changed to later.

    >>> with_weights("net.py", None)
    'net.py'
    """
    if file is None:
        return ref
    path, part = file_and_part(str(file))
    return f"{ref}{WITH}{os.path.abspath(path)}" + (f"#{part}" if part else "")


def model_and_weights(ref: str) -> tuple[str, str | None]:
    """The model of a reference, and the file that its weights are in, None where it brings them.

    >>> model_and_weights("net.py --weights run.ckpt#ema")
    ('net.py', 'run.ckpt#ema')
    """
    model, given, file = ref.partition(WITH)
    return model, file if given else None


def file_and_part(ref: str) -> tuple[Path, str]:
    """The file that is named, and the key of the weights in it, behind a # where no file has the whole name.

    >>> file_and_part("run.ckpt#ema")[1]
    'ema'
    """
    whole = Path(ref).expanduser()
    file, mark, part = ref.rpartition("#")
    return (Path(file).expanduser(), part) if mark and file and not whole.exists() else (whole, "")


def in_its_folder(ref: str) -> str:
    """A reference as it is given in the folder where its files are.

    >>> in_its_folder(__file__) == Path(__file__).name
    True
    """
    model, weights = model_and_weights(ref)
    name = Path(model).name if Path(model).is_file() else model
    if weights is None:
        return name
    path, part = file_and_part(weights)
    return f"{name}{WITH}{path.name}" + (f"#{part}" if part else "")
