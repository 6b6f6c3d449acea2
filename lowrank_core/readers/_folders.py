"""Files in folders by class, and folders with parts for training and evaluation."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, few
from lowrank_core.samples.limits import counted
from lowrank_core.samples.preparation import Preparation

EVALUATED = ("val", "valid", "validation", "dev", "eval", "test")
TRAINED = ("train", "training")
"""How parts of data are called, those that come first taken first."""

LOOKED_AT = 200
"""Files of a folder that are looked at to see of what kind they are."""

SEED = 0


@dataclass(frozen=True, slots=True)
class Labelled:
    """Files with the numbers of their classes, None where there are none, in an order of which any part is fair."""

    files: tuple[Path, ...]
    targets: tuple[int, ...] | None
    classes: tuple[str, ...]


def split_of(path: Path) -> tuple[Path, Path | None] | None:
    """(part that is evaluated, part for training) of a folder whose folders are called so; None of any other."""
    if not path.is_dir():
        return None
    found = {name.lower(): name for name in _folders(path)}
    if not found or not set(found) <= {*EVALUATED, *TRAINED}:
        return None
    evaluated = next(name for name in (*EVALUATED, *TRAINED) if name in found)
    trained = next((name for name in TRAINED if name in found and name != evaluated), None)
    return path / found[evaluated], None if trained is None else path / found[trained]


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in a folder or below it but folders."""
    return next(iter(_files(folder)), None) is None


def holds(folder: Path, suffixes: Collection[str]) -> bool:
    """Whether a folder holds files of these suffixes: most of the first ones, or those of its folders, are."""
    if not folder.is_dir():
        return False
    kinds = Counter(Path(name).suffix.lower() in suffixes for name in islice(_files(folder), LOOKED_AT))
    return kinds[True] > kinds[False]


def labelled_files(folder: Path, suffixes: Collection[str], preparation: Preparation, what: str) -> Labelled:
    """All files of these suffixes in a folder: those of its folders by class, in the order of their names.

    The names are those of the network's classes, in their order, where all of them are; raises InvalidData for a folder
    with one class alone, or files both in it and in its folders.
    """
    by_class = {name: sorted(_below(folder, name, suffixes, what)) for name in sorted(_folders(folder))}
    named = {name: files for name, files in by_class.items() if files}
    alone = sorted(folder / entry.name for entry in os.scandir(folder) if _fits(entry, suffixes))
    if named and alone:
        raise InvalidData(
            f"{folder} holds {what} itself and in its folders {few(list(named))}; give one folder for each class, or "
            "no folders for samples without labels."
        )
    if not named:
        if not alone:
            raise InvalidData(f"{folder} holds no {what} ({', '.join(sorted(suffixes))}).")
        random.Random(SEED).shuffle(alone)
        return Labelled(tuple(alone), None, ())
    if len(named) == 1:
        raise InvalidData(
            f"{folder} holds one class alone, {next(iter(named))!r}, by which nothing can be judged; give the folder "
            f"that holds all classes, or {folder / next(iter(named))} for samples without labels."
        )
    classes, numbers = class_numbers(list(named), preparation)
    given = [(file, numbers[name]) for name, files in named.items() for file in files]
    ordered = [given[place] for place in fair_order([number for _, number in given])]
    return Labelled(tuple(file for file, _ in ordered), tuple(number for _, number in ordered), classes)


def class_numbers(names: Sequence[str], preparation: Preparation) -> tuple[tuple[str, ...], dict[str, int]]:
    """(classes in the order of their numbers, number of each name): those of the network where all are, else sorted."""
    known = {_plain(part): i for i, label in reversed(list(enumerate(preparation.labels))) for part in label.split(",")}
    known |= {_plain(label): i for i, label in enumerate(preparation.labels)}
    if known and all(_plain(name) in known for name in names):
        return preparation.labels, {name: known[_plain(name)] for name in names}
    classes = tuple(sorted(set(names)))
    return classes, {name: i for i, name in enumerate(classes)}


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def fair_order(numbers: Sequence[int]) -> list[int]:
    """Places of samples of these classes in a fixed order, of which any leading part has the classes as the whole has.

    One of each class comes first.

    >>> sorted(fair_order([0, 0, 0, 1, 1, 2])[:3])[-1]
    5
    """
    drawn, by_class = random.Random(SEED), dict[int, list[int]]()
    for place, number in enumerate(numbers):
        by_class.setdefault(number, []).append(place)
    keys = []
    for members in by_class.values():
        drawn.shuffle(members)
        keys += [(i and (i + drawn.random()) / len(members), drawn.random(), m) for i, m in enumerate(members)]
    return [place for *_, place in sorted(keys)]


def targets_of(found: Labelled, samples: int) -> Tensor | None:
    """The numbers of the classes of the first samples, (N,)."""
    return None if found.targets is None else torch.tensor(found.targets[:samples])


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]


def _below(folder: Path, name: str, suffixes: Collection[str], what: str) -> list[Path]:
    files = counted(_files(folder / name, folder), f"the names of {what}")
    return [Path(file) for file in files if _suffix(file) in suffixes]


def _files(folder: Path, *apart: Path) -> Iterator[str]:
    """Files in a folder and below, links followed, each folder once; hidden ones left out, and folders `apart`."""
    seen = {(about.st_dev, about.st_ino) for about in map(os.stat, apart)}
    for place, folders, names in os.walk(folder, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in names if not name.startswith("."))


def _fits(entry: os.DirEntry[str], suffixes: Collection[str]) -> bool:
    return _suffix(entry.name) in suffixes and not entry.name.startswith(".") and not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a name is of a folder; one that leads to itself is of a file that cannot be read."""
    with suppress(OSError):
        return entry.is_dir()
    return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
