"""Files are whole or not there, and what killed processes left of them goes once it is old."""

import os
import tempfile
import time

import pytest

from lowrank_core.store.files import (
    LEFT_SECONDS,
    SCRATCH,
    SCRATCH_SECONDS,
    remove_left,
    scratch,
    temporary_name,
    write_whole,
)


def aged(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_a_file_takes_the_place_of_another_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "folder" / "name.state.0"
    for content in (b"first", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["run.state.0", "[a]*", "x" * 255])
def test_of_a_name_only_old_temporary_files_go(tmp_path, name):
    path = tmp_path / name
    old, young, others = (temporary_name(p) for p in (path, path, tmp_path / "another"))
    mine = tmp_path / "mine.tmp"
    for each in (old, young, others, mine):
        each.write_bytes(b"half")
        aged(each, 10 if each == young else 2 * LEFT_SECONDS)
    remove_left(tmp_path, path.name)
    assert set(tmp_path.iterdir()) == {young, others, mine}
    remove_left(tmp_path)  # a folder of our own
    assert set(tmp_path.iterdir()) == {young}


def test_scratch_is_gone_at_the_end_and_nothing_else_of_such_a_name(tmp_path, monkeypatch):
    """What is old and has no marker is somebody's: `test_door` has the rest."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, young = tmp_path / f"{SCRATCH}old", tmp_path / f"{SCRATCH}young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "file").write_bytes(b"")
        aged(folder, SCRATCH_SECONDS / 2 if folder == young else 2 * SCRATCH_SECONDS)
    with scratch() as folder:
        assert list(folder.iterdir()) == []
        assert set(tmp_path.iterdir()) == {young, old, folder.parent}
    assert set(tmp_path.iterdir()) == {young, old}
