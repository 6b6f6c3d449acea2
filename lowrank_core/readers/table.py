"""A table of numbers or texts, .csv or .tsv, what is right in one of its columns."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lowrank_core.errors import InvalidData, cut
from lowrank_core.readers import Reader, register
from lowrank_core.readers._columns import inputs_of, target_column
from lowrank_core.readers._labels import fair, targets_in
from lowrank_core.readers._tokens import pair_of, tokens
from lowrank_core.samples.limits import MOST_SAMPLES, counted, most_of
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken

SUFFIXES = {".csv", ".tsv"}
DELIMITERS = ",;\t|"


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=_delimiter(first, path), strict=False)
            return _of_rows(_numbered(rows, path), path, takes, preparation)
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path} is no text of UTF-8: {error.reason} at byte {error.start:,}.") from error
    except csv.Error as error:
        raise InvalidData(f"{path} cannot be read as a table: {error}.") from error


def _delimiter(first: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(DELIMITERS, key=lambda mark: (first.count(mark), -DELIMITERS.index(mark)))


def _numbered(rows: Iterator[list[str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row that holds something with its number, all of one length; raises InvalidData where one is of another."""
    length = 0
    for number, row in enumerate(rows, 1):
        if not any(cell.strip() for cell in row):
            continue
        length = length or len(row)
        if len(row) != length:
            raise InvalidData(
                f"{path}, row {number:,}: it has {len(row):,} cells, but the rows before have {length:,}."
            )
        yield number, row


def _of_rows(
    rows: Iterator[tuple[int, list[str]]], path: Path, takes: Sequence[Taken], preparation: Preparation
) -> Samples:
    first = next(rows, None)
    if first is None:
        raise InvalidData(f"{path} is empty; it must hold a row for each sample.")
    has_names = preparation.header if preparation.header is not None else not any(map(_is_number, first[1]))
    names = [name.strip() for name in first[1]] if has_names else [str(i) for i in range(len(first[1]))]
    if not has_names:
        rows = _with(first, rows)
    counts = [taken.numbers for taken in takes]
    known = sum(n for n in counts if n is not None) if preparation.tokens is None and None not in counts else None
    target = target_column(names, preparation, known, path)
    if preparation.tokens is not None:
        return _texts(rows, names, target, path, preparation)
    places = [place for place in range(len(names)) if place != target]
    if not places:
        raise InvalidData(f"{path} has one column alone, the target; it must hold what the network takes besides.")
    wide = any(not taken.dtype.is_floating_point or taken.dtype == torch.float64 for taken in takes)
    values, labels, more = array("d" if wide else "f"), list[str](), False
    most = most_of(values.itemsize * len(places))
    for done, (number, row) in enumerate(counted(rows, "rows")):
        if more := done >= most:
            break
        try:
            values.extend(map(float, row if target is None else [*row[:target], *row[target + 1 :]]))
        except ValueError:
            raise InvalidData(_no_number(path, number, row, names, places)) from None
        if target is not None:
            labels.append(row[target])
    if not values:
        raise InvalidData(f"{path} holds names of columns alone; it must hold a row for each sample.")
    given = torch.frombuffer(values, dtype=torch.float64 if wide else torch.float32).reshape(-1, len(places)).clone()
    inputs = inputs_of([names[place] for place in places], given, takes, preparation, path)
    if target is None:
        return Samples(inputs, more=more)
    targets, classes = targets_in(labels, preparation, f"{path}, column {names[target]!r}")
    return Samples(inputs, targets, classes=classes, more=more)


def _texts(
    rows: Iterator[tuple[int, list[str]]],
    names: list[str],
    target: int | None,
    path: Path,
    preparation: Preparation,
) -> Samples:
    """One or two columns of texts, for a network that has a tokenizer."""
    kept, more = list[list[str]](), False
    for _, row in counted(rows, "rows"):
        if more := len(kept) >= MOST_SAMPLES:
            break
        kept.append(row)
    if not kept:
        raise InvalidData(f"{path} holds names of columns alone; it must hold a row for each sample.")
    places = [place for place in range(len(names)) if place != target and not _is_number(kept[0][place])]
    places = pair_of(places, names, path)
    targets, classes = None, tuple[str, ...]()
    if target is not None:
        where = f"{path}, column {names[target]!r}"
        targets, classes = targets_in([row[target] for row in kept], preparation, where)
    order = fair(targets, len(kept))
    texts = [[kept[at][place] for at in order] for place in places]
    inputs, fewer = tokens(texts[0], texts[1] if len(texts) > 1 else None, preparation, path)
    if targets is not None:
        targets = targets[order][: len(next(iter(inputs.values())))]
    return Samples(inputs, targets, classes=classes, more=more or fewer)


def _with(first: tuple[int, list[str]], rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _no_number(path: Path, number: int, row: list[str], names: list[str], places: list[int]) -> str:
    place = next(place for place in places if not _is_number(row[place]))
    what = f"{cut(row[place])!r} is no number" if row[place].strip() else "the cell is empty"
    return (
        f"{path}, row {number:,}, column {cut(names[place])!r}: {what}, and the network takes numbers; bring all "
        "columns but the target to numbers, or name the target (--preprocess target=NAME)."
    )


register(
    Reader("table", lambda path: path.suffix.lower() in SUFFIXES and path.is_file(), _read, "a .csv or .tsv of numbers")
)
