"""Exports in a process of their own: exporters of PyTorch set what all threads of a process share while they trace."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.errors import InvalidModel
from lowrank_core.exports import EXPORTS, Compressed, Exported
from lowrank_core.exports._provenance import plan_document, provenance
from lowrank_core.layers.data import Inputs
from lowrank_core.networks.profile import fingerprint
from lowrank_core.running.fresh_process import in_fresh_process
from lowrank_core.running.own_process import hush_libraries
from lowrank_core.sources import open_source
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import scratch, write_whole
from lowrank_core.store.key import NetworkKey
from lowrank_core.workspace import Workspace

ASKED, WEIGHTS, WRITTEN = "asked.pickle", "weights.safetensors", "written.pickle"
"""Written and read by this product alone, in a folder of its own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the process is to write; made: without its network, whose weights lie beside."""

    kind: str
    path: Path
    made: Compressed
    address: str
    key: NetworkKey
    outputs: tuple[str | int, ...]
    example_inputs: Inputs
    cache: Cache | None
    checked: bool
    threads: int


def write_apart(kind: str, workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """What `EXPORTS[kind].write` does, to the bit, in a fresh process that opens the model by its reference.

    It is given our weights, and refuses a model of another fingerprint. Its steps are reported here; cancelling the
    work of this thread ends it. Raises InvalidModel for a network without a reference, and what `write` raises.
    """
    opened = workspace.opened
    asked = Asked(
        kind,
        path.absolute(),
        replace(compressed, model=nn.Identity()),
        workspace.address,
        workspace.key,
        opened.outputs,
        opened.example_inputs,
        workspace.cache,
        bool(workspace.self_check.left_alone),
        torch.get_num_threads(),
    )
    with scratch() as folder:
        write_checkpoint(
            compressed.model,
            workspace.profile,
            compressed.plan,
            folder / WEIGHTS,
            plan_document=plan_document(workspace, compressed),
            provenance=provenance(workspace, compressed),
            dtype=None,
        )
        write_whole(folder / ASKED, pickle.dumps(asked))
        in_fresh_process(f"{__name__}:answer", folder)
        exported: Exported = pickle.loads((folder / WRITTEN).read_bytes())
    return replace(exported, path=str(path))


def answer(folder: Path) -> None:
    """What the fresh process does: open the model, put our weights into it, and write."""
    hush_libraries(alone=True)
    asked: Asked = pickle.loads((folder / ASKED).read_bytes())
    torch.set_num_threads(asked.threads)
    opened = open_source(asked.address)
    found = fingerprint(opened.model)
    if found != asked.key.fingerprint:
        raise InvalidModel(
            f"{opened.name} has changed since it was opened: a fresh process finds other weights ({found[:19]}...); "
            "open it again, and see that build_model() is not random."
        )
    ours = replace(opened, outputs=asked.outputs, example_inputs=asked.example_inputs)
    workspace = Workspace(ours, asked.cache, key=asked.key)
    if asked.checked:  # the layers that it leaves alone are none of the profile
        _ = workspace.self_check
    network = load_checkpoint(workspace.model, folder / WEIGHTS).model
    exported = EXPORTS[asked.kind].write(workspace, replace(asked.made, model=network), asked.path)
    write_whole(folder / WRITTEN, pickle.dumps(exported))
