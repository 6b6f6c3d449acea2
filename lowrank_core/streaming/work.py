"""What is done of a streaming compression and kept on disk: a killed one goes on where it was, to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank_core.errors import InvalidFile
from lowrank_core.store.documents import Kind, Unfit, sealed, unsealed
from lowrank_core.store.files import drop, remove_left, whole_or_nothing, writing
from lowrank_core.store.lock import locked
from lowrank_core.streaming.flow import Hidden

VERSION = 1
"""Of the way that blocks are compressed and kept: what another version kept is not gone on from."""

ABOUT, KIND = "about", Kind("streaming work", VERSION)


@dataclass(frozen=True, slots=True)
class Work:
    """The folder of one request. Every file in it is whole; a block counts as done once its own is there."""

    folder: Path

    def kept(self, name: str) -> dict[str, Any] | None:
        """A document; None where there is none that can be believed."""
        try:
            return dict(json.loads(unsealed(KIND, (self.folder / name).read_bytes())))
        except (OSError, ValueError, Unfit):
            return None

    def keep(self, name: str, document: dict[str, Any]) -> None:
        """Write a document; raises InvalidFile."""
        with whole_or_nothing(self.folder / name) as temporary, writing(temporary) as file:
            file.write(sealed(KIND, json.dumps(document).encode()))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors by name; raises InvalidFile where the file is damaged."""
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise InvalidFile(f"{self.folder / name} is damaged; remove {self.folder}, and begin anew.") from error

    def keep_tensors(self, name: str, state: dict[str, Tensor]) -> None:
        """Write tensors by name; raises InvalidFile."""
        with whole_or_nothing(self.folder / name) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return (self.folder / name).is_file()

    def looked(self, block: int) -> str:
        """The file of what each direction of a block's layers carries."""
        return f"looked-{block:05}.safetensors"

    def shard(self, block: int) -> str:
        """The file of a compressed block's weights."""
        return f"block-{block:05}.safetensors"

    def states(self, kind: str, block: int, shape: tuple[int, int, int]) -> Hidden:
        """Hidden states that go into a block."""
        return Hidden(self.folder / f"{kind}-{block:05}.f32", shape)

    def forget_states(self, kind: str, before: int) -> None:
        """Remove hidden states that no later block needs."""
        for path in self.folder.glob(f"{kind}-*.f32"):
            if int(path.stem.rpartition("-")[2]) < before:
                drop(path)

    def remove(self) -> None:
        """Remove the folder, once all is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check_work(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run of the same request has noted, None without one; raises InvalidFile of another's work."""
    if not folder.exists():
        return None
    about = Work(folder).kept(ABOUT)
    if about is None and any(one.name not in (".lock",) for one in folder.iterdir()):
        raise InvalidFile(
            f"{folder} holds something else than the work of a compression; give another folder (--work)."
        )
    if about is not None and about["key"] != key:
        differing = sorted(name for name in key if about["key"].get(name) != key[name])
        raise InvalidFile(
            f"{folder} holds the work of another request ({', '.join(differing)} differ); remove it, or give another "
            "folder (--work)."
        )
    return about


@contextmanager
def working(folder: Path) -> Iterator[Work]:
    """The work folder, for one run at a time; what killed ones left half written goes. Raises InvalidFile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, 0.5):
            for left in folder.glob(".*.tmp"):
                drop(left)
            remove_left(folder)
            yield Work(folder)
    except TimeoutError as error:
        raise InvalidFile(f"another run works in {folder}; wait for it, or give another folder (--work).") from error
