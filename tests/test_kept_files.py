"""`benchmarks.kept_files` with a few flips and changes; by itself it makes 400 flips of each kind and 1,000 changes."""

import random
from pathlib import Path

import pytest

from benchmarks.kept_files import MODEL, at_once, damage, in_turn, kept_files
from lowrank_core.workspace import Workspace
from pages.ui.history_file import load

WORKSPACE = Workspace.open(MODEL)


def test_no_flipped_bit_and_no_cut_of_any_kept_file_is_believed(tmp_path):
    names = []
    for file in kept_files(tmp_path, WORKSPACE):
        found = damage(file, 30, 10, random.Random(5))
        assert (file.name, found.files, found.believed, found.overwritten) == (file.name, 40, 0, 0)
        names.append(file.name)
    assert len(names) == 11


@pytest.mark.parametrize("write", [in_turn, pytest.param(at_once, marks=pytest.mark.slow)])
def test_two_writers_lose_nothing(tmp_path: Path, write):
    writers = write(tmp_path, WORKSPACE.profile, 60)
    (path,) = {writer.path for writer in writers}
    kept = load(path, WORKSPACE.profile).kept
    assert [writer.missing(kept.history) for writer in writers] == [0, 0]
    assert sum(len(writer.snapshots) for writer in writers) > 0
    if write is in_turn:
        assert sum(writer.collisions for writer in writers) > 0
    writers[0].snapshots[kept.history.plan] = "of 0"
    writers[0].ranks[writers[0].own[0]] = None
    assert writers[0].missing(kept.history) >= 1
