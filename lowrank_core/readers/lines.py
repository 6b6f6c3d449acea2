"""Texts, one a line: alone, or with the class behind a tab."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from lowrank_core.errors import InvalidData, cut
from lowrank_core.readers import Reader, register
from lowrank_core.readers._labels import fair, targets_in
from lowrank_core.readers._tokens import tokens
from lowrank_core.samples.limits import MOST_SAMPLES, counted
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    texts, labels, more = list[str](), list[str](), False
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(counted(islice(file, MOST_SAMPLES + 1), "lines"), 1):
                if more := number > MOST_SAMPLES:
                    break
                if not line.strip():
                    continue
                text, tab, label = line.rstrip("\n").rpartition("\t")
                if bool(tab) != bool(labels) and texts:
                    raise InvalidData(
                        f"{path}, line {number}: some lines have a class behind a tab and some have none; give all of "
                        f"them or none, got {cut(line.strip())!r}."
                    )
                texts.append(text if tab else label)
                labels += [label.strip()] if tab else []
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path} is no text of UTF-8: {error.reason} at byte {error.start:,}.") from error
    if not texts:
        raise InvalidData(f"{path} is empty; it must hold a text in each line.")
    targets, classes = targets_in(labels, preparation, f"{path}, behind the tab") if labels else (None, ())
    order = fair(targets, len(texts))
    inputs, fewer = tokens([texts[i] for i in order], None, preparation, path)
    if targets is not None:
        targets = targets[order][: len(next(iter(inputs.values())))]
    return Samples(inputs, targets, classes=classes, more=more or fewer)


register(
    Reader("lines", lambda path: path.suffix.lower() == ".txt", _read, "a .txt of lines `text` or `text<TAB>class`")
)
