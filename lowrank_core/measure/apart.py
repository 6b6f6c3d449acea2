"""The same model opened in a process of its own, for work that sets what all threads of a process share.

Exporters of PyTorch switch mkldnn off while they trace: an LSTM that another thread evaluates gets other bits. Timing
is better alone, too.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import torch

from lowrank_core.errors import OtherModel
from lowrank_core.layers.data import Inputs
from lowrank_core.networks.profile import fingerprint
from lowrank_core.running.fresh_process import looking_at
from lowrank_core.running.own_process import hush_libraries
from lowrank_core.sources import open_source
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import scratch, write_whole
from lowrank_core.store.key import NetworkKey
from lowrank_core.workspace import Workspace

ASKED = "asked.pickle"
"""Written and read by this product alone, in a folder of its own, as the numbered results beside it are."""

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a fresh process is to do, and with which network."""

    work: Callable[..., Iterator[Any]]
    arguments: tuple[Any, ...]
    address: str
    key: NetworkKey
    outputs: tuple[str | int, ...]
    example_inputs: Inputs
    cache: Cache | None
    checked: bool
    threads: int


def apart(
    work: Callable[[Workspace, *Arguments], Iterator[Result]], workspace: Workspace, *arguments: *Arguments
) -> Iterator[Result]:
    """What `work(workspace, *arguments)` gives, to the bit and one by one, from a fresh process with the same model.

    work: a function of a module; it, its arguments and what it gives are pickled, so they hold no network. The process
    may be ahead of who takes the results. What it reports is heard here; cancelling the work of this thread ends it.
    Raises InvalidModel for a model without a reference, OtherModel where that opens another network, and what `work`
    raises.
    """
    opened = workspace.opened
    asked = Asked(
        work,
        arguments,
        workspace.address,
        workspace.key,
        opened.outputs,
        opened.example_inputs,
        workspace.cache,
        bool(workspace.self_check.left_alone),
        torch.get_num_threads(),
    )
    with scratch() as folder:
        write_whole(folder / ASKED, pickle.dumps(asked))
        results = (folder / str(number) for number in count())
        following = next(results)
        with closing(looking_at(f"{__name__}:answer", folder)) as looks:
            for _ in looks:
                while following.exists():
                    yield pickle.loads(following.read_bytes())
                    following = next(results)


def answer(folder: Path) -> None:
    """What the fresh process does: open the model, refuse another one, and leave each result in the folder."""
    hush_libraries(alone=True)
    asked: Asked = pickle.loads((folder / ASKED).read_bytes())
    torch.set_num_threads(asked.threads)
    opened = open_source(asked.address)
    found = fingerprint(opened.model)
    if found != asked.key.fingerprint:
        raise OtherModel(
            f"{opened.name} has changed since it was opened: a fresh process finds other weights ({found[:19]}...); "
            "open it again, and see that build_model() is not random."
        )
    ours = replace(opened, outputs=asked.outputs, example_inputs=asked.example_inputs)
    workspace = Workspace(ours, asked.cache, key=asked.key)
    if asked.checked:  # the layers that it leaves alone are none of the profile
        _ = workspace.self_check
    for number, result in enumerate(asked.work(workspace, *asked.arguments)):
        write_whole(folder / str(number), pickle.dumps(result))
