"""Columns of a table: which holds what is right, and which numbers go to which input of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, InvalidSettings, few
from lowrank_core.readers._labels import NAMED
from lowrank_core.samples.preparation import Arrays, Preparation
from lowrank_core.samples.samples import Taken

NONE = "none"
"""As a target: there is none."""


def target_column(names: Sequence[str], preparation: Preparation, numbers: int | None, where: object) -> int | None:
    """The place of the column that holds what is right: the one named, one called so, else the last.

    numbers: how many a network takes in all, if that is known: where there are so many columns none is the target.
    """
    said = preparation.target
    if said is not None:
        if said.lower() == NONE:
            return None
        if said in names:
            return list(names).index(said)
        if re.fullmatch(r"\d+", said) and int(said) < len(names):
            return int(said)
        raise InvalidSettings(f"{where} has no column {said!r}; it has {few(list(names))}, or name none.")
    lower = [name.strip().lower() for name in names]
    for name in NAMED:
        if name in lower:
            return lower.index(name)
    return None if len(names) == 1 or len(names) == numbers else len(names) - 1


def inputs_of(
    names: Sequence[str], values: Tensor, takes: Sequence[Taken], preparation: Preparation, where: object
) -> Arrays:
    """What each input of the network takes of the columns, values (N, columns): all of them, or those of its name.

    Numbers that fit an image, say, are brought to its shape. Raises InvalidData for other counts.
    """
    if len(takes) == 1:
        return {takes[0].name: _shaped(values, takes[0], preparation, where)}
    found = {}
    for taken in takes:
        own = re.compile(re.escape(taken.name) + r"([._ ]?\[?\d+\]?)?", re.IGNORECASE)
        places = [place for place, name in enumerate(names) if own.fullmatch(name.strip())]
        if places:
            found[taken.name] = _shaped(values[:, places], taken, preparation, where)
    missing = [taken.name for taken in takes if taken.name not in found]
    if missing:
        raise InvalidData(
            f"{where}: the network takes {', '.join(map(str, takes))}; columns must bear the names of its inputs (as "
            f"{missing[0]}, or {missing[0]}_0, {missing[0]}_1), and there is none for {few(missing)}."
        )
    return found


def _shaped(values: Tensor, taken: Taken, preparation: Preparation, where: object) -> Tensor:
    wanted, columns = taken.numbers, values.shape[1]
    if wanted is None and taken.sizes.count(None) == 1:
        known = taken.numbers_known
        wanted = columns if columns % known == 0 else known
    if columns != wanted:
        raise InvalidData(
            f"{where} has {columns:,} column{'s' * (columns != 1)} of numbers besides the target, but the network "
            f"takes {taken}; --preprocess target=NAME names the target, target=none says that there is none."
        )
    for name, numbers, act in (("mean", preparation.mean, Tensor.sub_), ("std", preparation.std, Tensor.div_)):
        if numbers is not None:
            if len(numbers) not in (1, columns):
                raise InvalidSettings(f"--preprocess: {name} must be 1 number or {columns:,}, one for each column.")
            act(values, torch.tensor(numbers, dtype=values.dtype))
    sizes = [-1 if size is None else size for size in taken.sizes]
    return values.reshape(len(values), *sizes).to(taken.dtype)
