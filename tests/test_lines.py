"""Lines in a file: what was added is there, in order; what was torn or damaged is not, and harms nothing after it."""

import math
import subprocess
import sys
import zlib

import pytest

from lowrank_core.predict.prediction import Point
from lowrank_core.store import lines
from lowrank_core.store.lines import append_line, read_lines

POINT = Point("layer", "svd", (3, 4), 0.1, 1 / 3, math.inf)


def test_what_is_added_comes_back_to_the_last_bit_in_order(tmp_path):
    path = tmp_path / "folder" / "lines.jsonl"
    assert list(read_lines(path, Point)) == []
    points = [Point(f"ß\n{number}", "svd", (number,), 0.1 * number, 1e-300, drop=None) for number in range(20)]
    for point in (*points, POINT):
        append_line(path, point)
    assert list(read_lines(path, Point)) == [*points, POINT]
    append_line(path, ("nan", math.nan))
    ((key, value),) = read_lines(path, tuple[str, float])
    assert key == "nan"
    assert math.isnan(value)


def test_of_a_line_torn_anywhere_nothing_is_read_and_all_that_follows(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, "before")
    whole = path.stat().st_size
    append_line(path, [12, 345])
    content = path.read_bytes()
    for end in range(whole, len(content)):
        path.write_bytes(content[:end])
        append_line(path, "after")
        assert list(read_lines(path, str)) == ["before", "after"]
        assert list(read_lines(path, list[int])) == []


def test_any_flipped_bit_is_found(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, "before")
    start = path.stat().st_size
    append_line(path, POINT)
    end = path.stat().st_size
    append_line(path, "after")
    content = path.read_bytes()
    for bit in range(8 * start, 8 * end):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert list(read_lines(path, Point)) == []
        if bit >= 8 * start + 8:  # else it hangs on the line before
            assert list(read_lines(path, str)) == ["before", "after"]


def test_under_another_name_no_line_is_believed_but_those_of_before_there_was_a_binding(tmp_path):
    path, other = tmp_path / "points-a.jsonl", tmp_path / "points-b.jsonl"
    append_line(path, "mine")
    path.rename(other)
    assert list(read_lines(other, str)) == []
    append_line(other, "other")
    assert list(read_lines(other, str)) == ["other"]
    text = b'"older"'
    other.write_bytes(b"\n%08x %b" % (zlib.crc32(text), text))
    append_line(other, "newer")
    assert list(read_lines(other, str)) == ["older", "newer"]


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b"\x00" * 100, b"\n00000000 ", b"\xff\xfe", b'\n"bare"'])
def test_what_is_no_line_is_left_out(tmp_path, content):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    assert list(read_lines(path, str)) == []
    append_line(path, "value")
    assert list(read_lines(path, str)) == ["value"]


def test_many_processes_lose_no_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    code = """
import runpy, sys, time
from pathlib import Path
append_line = runpy.run_path(sys.argv[1])["append_line"]  # alone: the package imports PyTorch
path, name = Path(sys.argv[2]), sys.argv[3]
path.with_name(name).touch()
while not all(path.with_name(other).exists() for other in "abc"):
    time.sleep(0.001)
for number in range(600):
    append_line(path, (name, number, "x" * (number * 50 % 9000)))
"""
    command = [sys.executable, "-c", code, lines.__file__, str(path)]
    running = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    found = list(read_lines(path, tuple[str, int, str]))
    assert len(found) == 1800
    for name in "abc":
        assert [number for who, number, _ in found if who == name] == list(range(600))
