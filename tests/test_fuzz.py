"""Damaged and forged files: each reader gives what it reads, or one of our own errors.

A short form of benchmarks/fuzz.py that needs no atheris: the same readers, seeds and changes, a few hundred files each,
the same ones in every run. `fuzzed/` holds inputs that once raised something else; a new one is added as a file.
"""

from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from benchmarks.fuzz import READERS, Reader, flipped
from lowrank_core.errors import LowRankError

FOUND = sorted((Path(__file__).parent / "fuzzed").iterdir())
EXAMPLES = {"pt2": 60}  # 20 ms each, the others 1 ms

reader = cache(lambda name: READERS[name]())


def changed(by: Reader, random: Random) -> bytes:
    """A seed that was changed in up to three places."""
    data = random.choice(by.seeds)
    for _ in range(random.randint(1, 3)):
        data = by.change(data, random, lambda part: flipped(part, random))
    return data


@pytest.mark.parametrize("name", READERS)
def test_what_is_changed_is_read_or_refused(name: str) -> None:
    read = []

    @settings(max_examples=EXAMPLES.get(name, 400), derandomize=True, deadline=None, database=None)
    @given(seed=st.integers(0, 2**32))
    def attempt(seed: int) -> None:
        data = changed(reader(name), Random(seed))
        note(f"{len(data)} bytes: {data[:200]!r}")
        try:
            reader(name).read(data)
        except LowRankError:
            return
        read.append(data)

    attempt()
    assert read, "every file was refused: the changes do not come far"


@pytest.mark.parametrize("name", READERS)
def test_what_is_whole_is_read(name: str) -> None:
    for seed in reader(name).seeds:
        assert reader(name).read(seed) is not None


@pytest.mark.parametrize("path", FOUND, ids=[path.name for path in FOUND])
def test_what_was_found_is_refused(path: Path) -> None:
    with pytest.raises(LowRankError):
        reader(path.name.partition("-")[0]).read(path.read_bytes())
