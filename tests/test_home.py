"""What may be opened from Home and what not, without a browser: rules, drops, what lies near, openings, addresses."""

import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from lowrank_core.errors import InvalidFile
from lowrank_core.running.jobs import Job
from lowrank_core.store.files import own_folder
from pages.ui import dropped, may_open, nearby
from pages.ui.state import models, openings, recent
from tests.conftest import PATIENCE_SECONDS, ROOT

VISITOR, OTHER = "0123456789abcdef", "fedcba9876543210"

MODEL = """
import time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__)
HERE.with_name("ran").touch()

class Waits(nn.Module):
    def forward(self, x):
        HERE.with_name("runs").touch()
        while HERE.with_name("wait").exists():
            time.sleep(0.01)
        return x

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), Waits(), nn.Linear(8, 3)).eval()

def example_inputs():
    return (torch.zeros(1, 12),)

def eval_data():
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
"""


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A folder in which a server was started, beside another one."""
    folder = tmp_path / "start"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "net.onnx").write_bytes(b"net")
    (folder / "deep" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "outside.py").write_text(MODEL)
    return folder


# ---- rules ----------------------------------------------------------------------------------------------------------


def allowed(start: Path, path: str, weights: str = "", data: str = "", preprocess: str = "") -> str:
    return may_open.named(path, weights=weights, data=data, preprocess=preprocess, start=start, home=True)


def test_a_path_under_the_start_folder_is_opened_with_the_weights_it_is_given(start: Path) -> None:
    def address(*named: str) -> str:
        return allowed(start, *named)

    assert address("model.py") == address(f" {start}/deep/../model.py ") == str(start / "model.py")
    whole = f"{start}/model.py --weights {start}/deep/weights.safetensors"
    assert address("model.py", "deep/weights.safetensors") == whole
    assert address("model.py --weights deep/weights.safetensors") == whole
    assert address("model.py", "deep/weights.safetensors#ema") == f"{whole}#ema"
    (start / "samples.csv").touch()
    judged = f"{start}/net.onnx --data {start}/samples.csv --preprocess target=y"
    assert address("net.onnx", "", "samples.csv", "target=y") == judged
    assert address(judged) == judged
    assert may_open.may_open(judged, start=start, home=False)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (("../outside.py",), "lies outside"),
        (("/etc/passwd",), "lies outside"),
        (("link.py",), "leads outside"),
        (("folder/outside.py",), "leads outside"),
        (("model.py", "../outside.py"), "lies outside"),
        (("model.py --weights ../outside.py",), "lies outside"),
        (("net.onnx", "", "../outside.py"), "lies outside"),
        (("net.onnx", "", "deep", "labels=/etc/passwd"), "lies outside"),
        (("net.onnx --text /etc/passwd",), "lies outside"),
        (("nothing.onnx",), "there is no file 'nothing.onnx'"),
        (("package.module",), "there is no file"),
        (("builtin:iris-mlp",), "there is no file"),
        (("",), "give the path"),
        (("a\0b",), "cannot be the name"),
        (("x" * 5000,), "cannot be the name"),
        (("x" * 300,), "cannot be the name"),
    ],
)
def test_what_is_not_there_or_lies_elsewhere_is_refused_in_a_line(
    start: Path, named: tuple[str, ...], says: str
) -> None:
    (start / "link.py").symlink_to(start.parent / "outside.py")
    (start / "folder").symlink_to(start.parent)
    with pytest.raises(InvalidFile, match=says) as refused:
        allowed(start, *named)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_link_that_stays_inside_is_followed(start: Path) -> None:
    (start / "same.py").symlink_to(start / "model.py")
    assert may_open.named("same.py", start=start, home=True) == str(start / "same.py")


def test_code_is_opened_only_where_nobody_else_can_ask_for_it(start: Path) -> None:
    for name in ("a.pt2", "b.pt", "c.ckpt", "d.bin", "e"):
        (start / name).write_bytes(b"code")
    (start / "safe.onnx").symlink_to(start / "model.py")
    (start / "code").mkdir()
    (start / "code" / "modeling.py").touch()
    for name in ("model.py", "a.pt2", "b.pt", "c.ckpt", "d.bin", "e", "code", "safe.onnx"):
        assert may_open.named(name, start=start, home=True)
        with pytest.raises(InvalidFile, match=r"is code or may run some.*127\.0\.0\.1"):
            may_open.named(name, start=start, home=False)
    for name in ("net.onnx", "deep/weights.safetensors", "deep"):
        assert may_open.named(name, start=start, home=False)
    with pytest.raises(InvalidFile, match=r"b\.pt"):
        may_open.named("net.onnx", weights="b.pt", start=start, home=False)


def test_what_the_server_keeps_for_itself_is_not_opened_by_its_path(start: Path) -> None:
    kept = own_folder("state") / "uploads" / OTHER / "net.onnx"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(InvalidFile, match="keeps for itself"):
        may_open.named(str(kept), start=Path("/"), home=True)


@pytest.mark.parametrize(
    ("address", "own"),
    [
        *((own, True) for own in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")),
        *((other, False) for other in ("0.0.0.0", "::", "", None, "192.168.1.2", "example")),
    ],
)
def test_a_loopback_address_is_this_machine_s_own(address: str | None, own: bool) -> None:
    assert may_open.is_loopback(address) is own


# ---- what lies near -------------------------------------------------------------------------------------------------


def test_networks_are_found_by_their_names_and_by_reading(start: Path) -> None:
    (start / "hidden" / ".git").mkdir(parents=True)
    (start / "hidden" / ".git" / "model.py").write_text(MODEL)
    (start / "text.py").write_text(f"TEXT = '''{MODEL}'''\nraise SystemExit")
    (start / "broken.py").write_text("def build_model(:")
    (start / "given.py").write_text("from model import build_model")
    (start / "bert").mkdir()
    (start / "bert" / "config.json").touch()
    (start / "bert" / "model.safetensors").touch()
    (start / "env" / "lib").mkdir(parents=True)
    (start / "env" / "pyvenv.cfg").touch()
    (start / "env" / "lib" / "model.onnx").touch()
    (start / "deep" / "a" / "b").mkdir(parents=True)
    (start / "deep" / "a" / "near.pt").touch()
    (start / "deep" / "a" / "b" / "far.pt").touch()
    (start / "deep" / "model-00001-of-00002.safetensors").touch()
    (start / "deep" / "up").symlink_to(start.parent)
    found = nearby.networks_in(start)
    assert [(one.path, one.kind) for one in found.networks] == [
        ("bert", "folder of transformers"),
        ("given.py", "Python"),
        ("model.py", "Python"),
        ("net.onnx", "ONNX"),
        ("deep/weights.safetensors", "weights"),
        ("deep/a/near.pt", "weights"),
    ]
    assert found.whole
    assert not (start / "ran").exists(), "nothing is run"


def test_a_folder_of_many_files_is_not_looked_through(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearby, "MOST_ENTRIES", 20)
    for number in range(60):
        (start / f"{number}.png").touch()
    looked: list[str] = []
    scan = os.scandir

    def counted(folder: Path) -> object:
        entries = scan(folder)
        return _Scan(entry for entry in entries if not looked.append(entry.name))  # type: ignore[func-returns-value]

    monkeypatch.setattr(os, "scandir", counted)
    assert not nearby.networks_in(start).whole
    assert len(looked) <= 22


class _Scan:
    def __init__(self, entries: object) -> None:
        self._entries = entries

    def __enter__(self) -> object:
        return self._entries

    def __exit__(self, *error: object) -> None:
        return None


# ---- drops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("net.onnx", "net.onnx"),
        ("../../etc/cron.d/net.onnx", "net.onnx"),
        ("C:\\nets\\net.ONNX", "net.onnx"),
        (".onnx", "network.onnx"),
        ("...npz", "network.npz"),
        ("сеть 网络.onnx", "сеть 网络.onnx"),
        ("a\n\x1b[2J`b`\u202e.onnx", "a-[2J-b-.onnx"),
        ("a --weights b.onnx", "a -weights b.onnx"),
        ("a ##weights -#b.onnx", "a -weights -b.onnx"),
        ("net.onnx.data", "net.onnx.data"),
        ("x" * 200 + ".onnx", "x" * 100 + ".onnx"),
        ("网" * 200 + ".onnx", "网" * 33 + ".onnx"),
    ],
)
def test_a_dropped_file_gets_a_safe_name(given: str, kept: str) -> None:
    assert "".join(dropped.safe_name(given)) == kept


def packed(**files: bytes) -> bytes:
    """A zip of these files."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, inside in files.items():
            archive.writestr(name, inside)
    return content.getvalue()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([("model.py", b"1")], "is code or may run some"),
        ([("net.onnx", b"1"), ("net.pt2", b"1")], "is code or may run some"),
        ([("notes.txt", b"1")], "is no file that can be dropped"),
        ([("", b"1")], "is no file that can be dropped"),
        ([("net.onnx", b"")], r"'net.onnx' is empty \(0 bytes\)"),
        ([("net.onnx", b"1"), ("a/net.onnx", b"2")], "two files are called 'net.onnx'"),
        ([("a.onnx", b"1"), ("b.onnx", b"2")], "2 networks were dropped at once"),
        ([("a.json", b"1"), ("b.json", b"2")], "2 plans"),
        ([("net.npz", b"1")], "drop its .onnx together with it"),
        ([(f"{n}.npz", b"1") for n in range(50)], "50 files"),
        ([("net.onnx", b"12345")], "has 5 bytes; at most 0 MB"),
        ([("style.zip", b"12345")], "'style.zip' is damaged, locked, or no zip"),
        ([("style.zip", packed(a=b"1"))], "'style.zip' holds no .safetensors"),
        ([("style.zip", packed(**{"a.safetensors": b"1", "b.safetensors": b"2"}))], "2 files of weights"),
    ],
)
def test_a_drop_that_is_refused_leaves_nothing(
    files: list[tuple[str, bytes]], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dropped, "folder_of_all", lambda: tmp_path / "uploads")
    if "at most" in says:
        monkeypatch.setattr(dropped, "LARGEST_MB", 0)
    with pytest.raises(InvalidFile, match=says) as refused:
        dropped.take(VISITOR, files)
    assert "\n" not in str(refused.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(dropped, "folder_of_all", lambda: tmp_path / "uploads")
    return tmp_path / "uploads"


def test_an_adapter_in_a_zip_is_dropped_as_its_files(uploads: Path) -> None:
    inside = {"run/adapter_config.json": b"{}", "run/adapter_model.safetensors": b"weights", "run/../x.py": b"code"}
    taken = dropped.take(VISITOR, [("Style.ZIP", packed(**inside))])
    assert taken.network is not None
    assert Path(taken.network).read_bytes() == b"weights"
    names = {path.name for path in uploads.rglob("*") if path.is_file()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_data_go_by_the_name_of_their_network_and_may_come_later(uploads: Path) -> None:
    first = dropped.take(VISITOR, [("net.onnx", b"net"), ("samples.npz", b"data"), ("plan.json", b"plan")])
    assert first.network is not None
    assert first.plan is not None
    folder = Path(first.network).parent
    assert sorted(path.name for path in folder.iterdir()) == ["net.npz", "net.onnx", "plan.json"]
    later = dropped.take(VISITOR, [("other.npz", b"more")], first.network)
    assert later.network is not None
    assert Path(later.network).with_suffix(".npz").read_bytes() == b"more"
    assert (folder / "net.npz").read_bytes() == b"data", "what is open is not changed"
    both = dropped.take(VISITOR, [("a.onnx", b"1"), ("run.safetensors", b"2")])
    assert both.network is not None
    model, _, weights = both.network.partition(" --weights ")
    assert (Path(model).read_bytes(), Path(weights).read_bytes()) == (b"1", b"2")
    assert dropped.networks_of(VISITOR)[0].endswith("run.safetensors")
    assert len(dropped.networks_of(VISITOR)) == 3
    assert dropped.networks_of(OTHER) == []


def test_drops_are_kept_for_a_week_and_within_limits(uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped, "MOST_BYTES_EACH", 25)
    monkeypatch.setattr(dropped, "MOST_BYTES", 35)

    def drop(visitor: str, age: float) -> Path:
        taken = dropped.take(visitor, [("net.onnx", b"0123456789")])
        assert taken.network is not None
        folder = Path(taken.network).parent
        os.utime(folder, (folder.stat().st_atime - age, folder.stat().st_mtime - age))
        return folder

    old = drop(VISITOR, 8 * 86400)
    mine = [drop(VISITOR, age) for age in (30, 20, 10)]
    theirs = [drop(OTHER, age) for age in (25, 5)]
    assert not old.exists(), "nobody has opened it for a week"
    assert [folder.exists() for folder in (*mine, *theirs)] == [False, True, True, False, True]
    newest = drop(OTHER, 0)
    assert [folder.exists() for folder in (*mine, *theirs, newest)] == [False, False, True, False, True, True]


def test_an_address_and_a_message_do_not_tell_where_drops_are_kept(uploads: Path) -> None:
    taken = dropped.take(VISITOR, [("net.onnx", b"net")])
    assert taken.network is not None
    short = dropped.short(taken.network)
    assert short.startswith(f"upload:{VISITOR}/")
    assert dropped.whole(short) == taken.network
    assert dropped.without_folders(f"{taken.network} is damaged") == "net.onnx is damaged"


# ---- openings -------------------------------------------------------------------------------------------------------


def opening(path: Path) -> Job[str]:
    return Job("Opening", lambda: openings._opening(str(path)))


def until(job: Job[str], file: Path) -> None:
    while not file.exists() and not job.snapshot.over:
        job.wait(0.01)


def test_an_opening_that_is_called_off_ends_and_leaves_nothing_open(start: Path) -> None:
    path = start / "model.py"
    (start / "wait").touch()
    job = opening(path)
    until(job, start / "runs")
    waiting = opening(path)  # of another visitor, until the first is through
    waiting.cancel()
    assert waiting.wait(PATIENCE_SECONDS).cancelled, "who waits for another one's opening need not wait for it"
    job.cancel()
    (start / "wait").unlink()
    assert job.wait(PATIENCE_SECONDS).cancelled
    assert not models.is_open(str(path))
    assert opening(path).wait(PATIENCE_SECONDS).found == (str(path),)
    assert models.is_open(str(path))
    assert recent.addresses()[0] == str(path)


def test_a_file_that_changes_while_it_is_read_is_not_opened(start: Path) -> None:
    path = start / "model.py"
    (start / "wait").touch()
    job = opening(path)
    until(job, start / "runs")
    path.write_text(f"{MODEL}\n")
    (start / "wait").unlink()
    assert job.wait(PATIENCE_SECONDS).error == "model.py changed while it was read; open it again once it is written."


def test_those_opened_last_are_few_and_still_there(start: Path) -> None:
    for number in range(recent.MOST + 5):
        (start / f"{number}.onnx").touch()
        recent.note(str(start / f"{number}.onnx"))
    recent.note(str(start / "7.onnx"))
    recent.note("package.module")
    (start / "8.onnx").unlink()
    named = [Path(address).name for address in recent.addresses()]
    assert named[:2] == ["7.onnx", "24.onnx"]
    assert "8.onnx" not in named
    assert len(named) == recent.MOST - 1


# ---- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["nonsense", "{start}/model.py"])
def test_an_address_never_opens_a_new_file(named: str, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "builtin:iris-mlp"])
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    page.query_params["model"] = named.format(start=start)
    page.run()
    assert not page.exception
    assert not (start / "ran").exists()
    assert page.radio[0].value == "builtin:iris-mlp"
    assert [line.value for line in page.warning if "has not opened so far" in line.value]


def test_an_address_names_what_this_server_has_opened(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(start / "model.py")
    models.open_model(path, models.stamp(path))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    page.query_params["model"] = path
    page.run()
    assert page.radio[0].value == path
    assert not page.warning
    page.radio[0].set_value("builtin:iris-mlp").run()
    assert page.radio[0].value == "builtin:iris-mlp"
    page.radio[0].set_value(path).run()
    assert page.radio[0].value == path
