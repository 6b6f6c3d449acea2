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


def test_scratch_folders_of_killed_processes_go_after_a_week(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, young, others = tmp_path / f"{SCRATCH}left", tmp_path / f"{SCRATCH}young", tmp_path / "others"
    for folder in (left, young, others):
        folder.mkdir()
        (folder / "file").write_bytes(b"")
        aged(folder, SCRATCH_SECONDS / 2 if folder == young else 2 * SCRATCH_SECONDS)
    with scratch() as folder:
        assert set(tmp_path.iterdir()) == {young, others, folder}
    assert set(tmp_path.iterdir()) == {young, others}
