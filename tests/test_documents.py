"""Documents: what is not as it was written is never believed; files are set aside, never overwritten; one at a time."""

import multiprocessing
import signal
import subprocess
import sys
import threading

import pytest

from lowrank_core.store.documents import Kind, Unfit, sealed, set_aside, unsealed
from lowrank_core.store.lock import NAME, locked

KIND = Kind("letter", 2)
CONTENT = b'{"dear": "reader"}\n\x00\xff'


def test_a_document_says_what_it_is_and_comes_back_to_the_last_bit():
    document = sealed(KIND, CONTENT)
    assert document.split(b"\n")[0].startswith(b'{"kind": "letter", "version": 2, "sha256": "')
    assert unsealed(KIND, document) == CONTENT
    assert unsealed(KIND, sealed(KIND, b"")) == b""


def test_no_flipped_bit_and_no_cut_is_believed():
    document = sealed(KIND, CONTENT)
    for bit in range(8 * len(document)):
        flipped = bytearray(document)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unfit):
            unsealed(KIND, bytes(flipped))
    for length in range(len(document)):
        with pytest.raises(Unfit):
            unsealed(KIND, document[:length])


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (sealed(Kind("letter", 3), CONTENT), "newer"),
        (sealed(Kind("bill", 2), CONTENT), "other"),
        (CONTENT, "damaged"),
        (sealed(KIND, CONTENT) + b"more", "damaged"),
    ],
)
def test_what_does_not_fit_is_told_apart(document, fault):
    with pytest.raises(Unfit) as raised:
        unsealed(KIND, document)
    assert raised.value.fault == fault


def test_older_versions_and_those_of_before_are_read():
    assert unsealed(KIND, sealed(Kind("letter", 1), CONTENT)) == CONTENT
    assert unsealed(Kind("letter", bare=True), CONTENT) == CONTENT


def test_what_is_about_something_else_is_not_believed_and_what_says_nothing_is():
    document = sealed(KIND, CONTENT, "this network")
    assert unsealed(KIND, document, "this network") == CONTENT
    for about in ("", "that network"):
        with pytest.raises(Unfit):
            unsealed(KIND, document, about)
    assert unsealed(KIND, sealed(KIND, CONTENT), "this network") == CONTENT


def test_a_file_that_is_set_aside_takes_no_other_ones_place(tmp_path):
    path = tmp_path / "kept.json"
    asides = []
    for content in (b"first", b"second"):
        path.write_bytes(content)
        asides.append(set_aside(path, "damaged"))
    path.write_bytes(b"third")
    assert set_aside(path, "newer").name == "kept.json.newer-1"
    assert [aside.name for aside in asides] == ["kept.json.damaged-1", "kept.json.damaged-2"]
    assert [aside.read_bytes() for aside in asides] == [b"first", b"second"]
    with pytest.raises(FileNotFoundError):
        set_aside(path, "damaged")
    assert len(list(tmp_path.iterdir())) == 3


# ---- the lock -------------------------------------------------------------------------------------------------------


def test_the_lock_is_held_by_one_thread_at_a_time(tmp_path):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(tmp_path / "new folder"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)


HOLDS = """
import sys, time
from pathlib import Path
from lowrank_core.store.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_that_another_process_holds_is_waited_for_in_vain_but_not_for_ever(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match="another program holds its lock"), locked(tmp_path, 0.05):
            pytest.fail("it is held")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with locked(tmp_path, 0.0):
        assert (tmp_path / NAME).exists(), "of a process that was killed no lock is left, though its file is"


def test_a_lock_file_that_was_left_is_no_lock(tmp_path):
    (tmp_path / NAME).write_text("left")
    with locked(tmp_path, 0.0):
        pass


def test_a_process_forked_inside_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    hold = context.Event()
    with locked(tmp_path):
        child = context.Process(target=hold.wait)
        child.start()
    try:
        with locked(tmp_path, 0.0):
            pass
    finally:
        hold.set()
        child.join()


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError), locked(tmp_path / "file"):  # noqa: PT011
        pass
