"""Weights that somebody else's training loop has left of a compressed network: a state_dict, whatever wrapped it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank_core.compression.checkpoint import read_weights
from lowrank_core.errors import InvalidFile
from lowrank_core.layers.computed import copied
from lowrank_core.networks.filling import filled_by
from lowrank_core.store.kinds import file_hash

BY = "a training loop of somebody else"
"""In provenance."""

_OBSERVES = re.compile(r"(^|\.)((weight|activation)_fake_quant(izer)?|activation_post_process(_\d+)?)(\.|$)")
"""In names: what quantisation-aware training keeps beside a weight, not of the network."""


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """A compressed network with the weights of a file. about: for provenance; notices: what there is to say."""

    model: nn.Module
    about: dict[str, Any]
    notices: tuple[str, ...] = ()


def with_weights(model: nn.Module, path: Path) -> Returned:
    """A copy of a compressed network with the weights of a file: .pt, .safetensors, or a checkpoint of Lightning.

    model: as `workspace.compress(plan)` gives it. Prefixes of what wrapped it are taken off, averaged weights are left
    aside, and so is what quantisation-aware training observed.
    Raises InvalidFile, in one line, where names or shapes do not fit.
    """
    sets, ours = read_weights(path)
    if ours is not None:
        raise InvalidFile(f"{path} is a checkpoint of this product, which holds its plan too; give it as --checkpoint.")
    plain = {
        key: {name: value for name, value in names.items() if not _OBSERVES.search(name)}
        for key, names in sets.sets.items()
    }
    observed = sum(len(names) for names in sets.sets.values()) - sum(map(len, plain.values()))
    try:
        network, notices = filled_by(copied(model), replace(sets, sets=plain), _as_it_is)
    except InvalidFile as error:
        told, differs, _ = str(error).partition(" Give the weights of")
        what_to_do = " Give the state_dict of the network that this plan makes." if differs else ""
        raise InvalidFile(f"{told}{what_to_do}") from error
    if observed:
        said = (
            f"Left off: {observed} tensors of observers and fake quantisation; the weights count as they are, in float."
        )
        notices = (*notices, said)
    return Returned(network, {"by": BY, "sha256": file_hash(path)}, notices)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
