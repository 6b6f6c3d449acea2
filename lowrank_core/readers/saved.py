"""Tables of Arrow: what `save_to_disk` of `datasets` has written, .arrow, .parquet; with images, recordings, texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, LowRankError, few
from lowrank_core.extras import extra
from lowrank_core.readers import Reader, register
from lowrank_core.readers._columns import inputs_of, target_column
from lowrank_core.readers._folders import class_numbers, holds
from lowrank_core.readers._labels import fair, of_several, targets_in
from lowrank_core.readers._pictures import pictures
from lowrank_core.readers._sound import sounds
from lowrank_core.readers._tokens import pair_of, tokens
from lowrank_core.samples.limits import most_of
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken

SUFFIXES = {".arrow", ".parquet"}


def _accepts(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or any(path.glob("*.arrow")) or holds(path, {".parquet"})


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    with extra("data", f"{path}: reading Arrow"):
        import pyarrow  # noqa: F401
    try:
        table = _table(path)
        return _of_table(table, path, takes, preparation)
    except (LowRankError, OSError):
        raise
    except Exception as error:  # whatever Arrow says of damaged bytes
        raise InvalidData(f"{path} cannot be read ({' '.join(str(error).split())[:200]}).") from error


def _table(path: Path) -> Any:
    """All rows; those of .arrow files stay on disk until they are asked for."""
    import pyarrow
    from pyarrow import ipc, parquet

    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    state = path / "state.json"
    if state.is_file():  # of save_to_disk: which of the files are the data, in their order
        files = [path / str(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]]
        if any(file.parent != path for file in files):
            raise InvalidData(f"{state} names files outside its folder.")
    tables = []
    for file in files:
        if file.suffix.lower() == ".parquet":
            tables.append(parquet.read_table(file))
            continue
        mapped = pyarrow.memory_map(str(file))
        try:
            tables.append(ipc.open_stream(mapped).read_all())
        except pyarrow.ArrowInvalid:
            tables.append(ipc.open_file(mapped).read_all())
    return pyarrow.concat_tables(tables)


@dataclass(frozen=True, slots=True)
class _Cells(Sequence[bytes | Path]):
    """Files in a column, each read from it when it is asked for."""

    column: Any
    order: Sequence[int]
    folder: Path

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, place: int) -> bytes | Path: ...
    @overload
    def __getitem__(self, place: slice) -> _Cells: ...
    def __getitem__(self, place: int | slice) -> bytes | Path | _Cells:
        if isinstance(place, slice):
            return _Cells(self.column, self.order[place], self.folder)
        cell = self.column[self.order[place]].as_py()
        if isinstance(cell, bytes):
            return cell
        cell = cell or {}
        return cell["bytes"] if cell.get("bytes") is not None else self.folder / str(cell.get("path"))


def _of_table(table: Any, path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    names = list(table.column_names)
    if not len(table):
        raise InvalidData(f"{path} is empty; it must hold a row for each sample.")
    features = _features(table)
    kinds = {name: _kind(table.schema.field(name).type, features.get(name, {})) for name in names}
    files = next((name for name in names if kinds[name] in ("Image", "Audio")), None)
    known = sum(taken.numbers_known for taken in takes) if files is None and preparation.tokens is None else None
    target = target_column(names, preparation, known, path)
    if target is not None and (names[target] == files or kinds[names[target]] == "list"):
        target = None
    targets, classes = (None, ()) if target is None else _targets(table, names[target], features, preparation, path)
    order = fair(targets, len(table))
    if files is not None:
        read = pictures if kinds[files] == "Image" else sounds
        inputs, more = read(_Cells(table[files], order, path), takes, preparation, path)
    elif preparation.tokens is not None:
        places = [i for i, name in enumerate(names) if i != target and kinds[name] == "text"]
        both = [table[names[i]].take(order).to_pylist() for i in pair_of(places, names, path)]
        texts = [[str(text or "") for text in column] for column in both]
        inputs, more = tokens(texts[0], texts[1] if len(texts) > 1 else None, preparation, path)
    else:
        rest = [name for i, name in enumerate(names) if i != target]
        if strange := [name for name in rest if kinds[name] not in ("number", "list")]:
            raise InvalidData(
                f"{path}: the columns {few(strange)} hold no numbers, images or recordings, and no tokenizer is known "
                "for the network; leave them out, or name the --preprocess target=NAME."
            )
        values, wide = _numbers(table, rest, path)
        order = order[: (most := most_of(values[0].nbytes))]
        inputs, more = inputs_of(wide, values[order], takes, preparation, path), most < len(table)
    samples = len(next(iter(inputs.values())))
    return Samples(inputs, None if targets is None else targets[order][:samples], classes=classes, more=more)


def _features(table: Any) -> dict[str, Any]:
    """What `datasets` says of each column; nothing where another library has written the table."""
    said = (table.schema.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(said)["info"]["features"] if said else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(column: Any, feature: Any) -> str:
    """'Image', 'Audio', 'text', 'number', 'list', or 'other'."""
    from pyarrow import types

    said = feature.get("_type") if isinstance(feature, dict) else None
    if said in ("Image", "Audio"):
        return str(said)
    if types.is_struct(column) and column.get_field_index("bytes") >= 0:
        return "Image"
    if types.is_string(column) or types.is_large_string(column):
        return "text"
    if types.is_integer(column) or types.is_floating(column) or types.is_boolean(column):
        return "number"
    return "list" if types.is_nested(column) and not types.is_struct(column) else "other"


def _targets(
    table: Any, name: str, features: dict[str, Any], preparation: Preparation, path: Path
) -> tuple[Tensor | None, tuple[str, ...]]:
    """(what is right, names of the classes); None where the column holds -1 alone, as of data for a contest."""
    from pyarrow import types

    where, column = f"{path}, column {name!r}", table[name]
    if column.null_count:
        raise InvalidData(f"{where}: {column.null_count:,} of {len(column):,} cells are empty.")
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
        return targets_in([str(cell) for cell in column.to_pylist()], preparation, where)
    values = torch.tensor(column.to_pylist())
    if values.is_floating_point():
        return values, ()
    values = values.long()
    if bool((values == -1).all()):
        return None, ()
    feature = features.get(name)
    classes = tuple(map(str, feature.get("names") or ())) if isinstance(feature, dict) else ()
    if classes and set(class_numbers(classes, preparation)[0]) == set(preparation.labels):
        numbers = class_numbers(classes, preparation)[1]
        values = torch.tensor([numbers[name] for name in classes])[values]
        classes = preparation.labels
    return of_several(values, where), classes


def _numbers(table: Any, names: Sequence[str], path: Path) -> tuple[Tensor, list[str]]:
    """(numbers (N, columns), a name for each): a column of lists gives as many as its lists are long."""
    parts, wide = [], list[str]()
    for name in names:
        try:
            array = np.array(table[name].to_pylist(), dtype=np.float64).reshape(len(table), -1)
        except (ValueError, TypeError) as error:
            raise InvalidData(
                f"{path}, column {name!r}: its lists must hold numbers and be of one length, and no cell may be empty."
            ) from error
        parts.append(array)
        wide += [name] if array.shape[1] == 1 else [f"{name}_{i}" for i in range(array.shape[1])]
    if not parts:
        raise InvalidData(f"{path} has no columns besides the target.")
    return torch.from_numpy(np.concatenate(parts, 1)), wide


register(
    Reader("saved", _accepts, _read, "a folder of datasets.save_to_disk, a .parquet or .arrow (needs the extra `data`)")
)
