"""The door for writing: no input is overwritten, what cannot be written is refused before any work, nothing stays."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from benchmarks.nothing_lost import (
    COMMANDS,
    ELSEWHERE,
    PLACES,
    Place,
    copy_of,
    may,
    options_that_write,
    tried,
    workplace_in,
)
from lowrank_core.__main__ import main, stand_in_for_closed
from lowrank_core.commands import Refused, _opening, cli
from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS, Exported
from lowrank_core.exports import _reload as reload
from lowrank_core.graphs.c_compiled import COMPILERS
from lowrank_core.layers.data import Inputs, Outputs
from lowrank_core.store import files
from lowrank_core.store.files import (
    SCRATCH_SECONDS,
    forget_not_kept,
    keep_line,
    keep_whole,
    not_kept,
    try_to_keep,
    weights_beside,
    whole_or_nothing,
    write_whole,
    writing,
)
from lowrank_core.store.kinds import EXPORTED, PLAN, PROFILE, TABLE, FileKind
from lowrank_core.store.reads import was_read, watched
from lowrank_core.training.finetune import read_state

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
IRIS = "builtin:iris-mlp"
MAY = {"refused": list(COMMANDS), "usage": list(COMMANDS), "late": [("search", "--out"), ("apply", "--out")]}
WITHOUT_ROOT = [place for place in PLACES if not place.root]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_opening, "CACHE", tmp_path_factory.mktemp("cache"))
        workplace_in(folder)
        yield folder


def ran(*words: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


def test_every_option_that_writes_is_tried() -> None:
    assert options_that_write() == {*COMMANDS, *ELSEWHERE}


@pytest.mark.parametrize(
    ("words", "option", "name"),
    [
        ("report model.py --plan plan.json --no-correct --no-front", "--out", "mine.html"),
        ("export model.py --plan plan.json --no-correct --format pt2 --out new.pt2", "--node-data", "mine.json"),
    ],
)
def test_outputs_of_one_ending_replace_nothing_of_another_kind(
    template: Path, words: str, option: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copy_of(template) as folder:
        monkeypatch.chdir(folder)
        beside = [f"{Path(name).stem}-{what}.json" for what in ("bytes", "multiplies", "graph")]
        mine = [Path(name)] if option == "--out" else [Path(one) for one in beside]
        for path in mine:
            path.write_text("mine")
        result = ran(*words.split(), option, name, "--no-cache")
        assert result.exit_code == 1, result.output
        assert "not overwritten" in result.stderr
        assert [path.read_text() for path in mine] == ["mine"] * len(mine)
        assert not Path("new.pt2").exists()
        monkeypatch.undo()


@pytest.mark.parametrize("place", WITHOUT_ROOT, ids=lambda place: place.name)
def test_no_input_is_lost_and_what_cannot_be_written_is_refused_first(template: Path, place: Place) -> None:
    for command, option in MAY.get(place.may, [("search", "--out")]):
        words = COMMANDS[command, option][0]
        with copy_of(template) as folder:
            result = tried(folder, words, option, place)
        assert (result.wrong, result.lost, result.left) == ([], 0, 0), words
        assert result.did in may(place, words, option), words


def test_a_relative_output_lands_where_the_person_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the model file changes the folder; so do the plan and the table that are read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    Path("net.py").write_text(
        "import os\nfrom pathlib import Path\nos.chdir(Path(__file__).parent / 'elsewhere')\nimport torch\n"
        "from torch import nn\ndef build_model():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval()\n"
        "def example_inputs(): return (torch.ones(2, 8),)\n"
    )
    for words in ("search net.py --multiplies 0.7 --out plan.json", "apply net.py --plan plan.json --out small"):
        result = ran(*words.split(), "--no-correct", "--no-cache")
        assert result.exit_code == 0, result.output
        os.chdir(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"plan.json", "small"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_standard_output_takes_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = ran("search", IRIS, "--multiplies", "0.7", "--out", "-")
    assert plan.exit_code == 0
    assert json.loads(plan.stdout)["format"] == "lowrank-plan"
    assert "layers compressed" in plan.stderr
    table = ran("latency", IRIS, "--runtime", "torch", "--method", "svd", "--table", "-")
    assert table.stdout.startswith("layer,method,rank,microseconds,fingerprint\n")
    profile = ran("profile", IRIS, "--samples", "10", "--out", "-")
    assert json.loads(profile.stdout)["samples"] == 10
    (tmp_path / "plan").write_text(plan.stdout)
    for words, why in (
        (("search", IRIS, "--multiplies", "0.7", "--out", "-", "--json"), "--out - and --json both print"),
        (("apply", IRIS, "--plan", "plan", "--out", "-"), "--out - is standard output, where a checkpoint"),
        (("finetune", IRIS, "--plan", "plan", "--out", "x", "--state", "-"), "--state - is standard output"),
    ):
        refused = ran(*words)
        assert refused.exit_code == 2
        assert why in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_the_file_that_is_standard_output_is_not_replaced_under_it(tmp_path: Path) -> None:
    """`--out FILE > FILE`: what is printed and what is written both stay."""
    command = [sys.executable, "-m", "lowrank_core", "profile", IRIS, "--samples", "5", "--no-cache", "--out", "it"]
    with (tmp_path / "it").open("wb") as out:
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=subprocess.PIPE
        )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "it").read_bytes())["samples"] == 5


def test_two_outputs_of_one_command_that_are_one_file(template: Path) -> None:
    with copy_of(template) as folder:
        words = ("finetune", folder / "model.py", "--plan", folder / "plan.json", "--epochs", "1")
        result = ran(*words, "--out", folder / "state.0", "--state", folder / "state")
        assert result.exit_code == 1
        assert "--state" in result.stderr
        assert "--out" in result.stderr


# ---- kinds ----------------------------------------------------------------------------------------------------------

OWN_TESTS = ("hf", "openvino", "tflite")  # a folder, two files, one that does not say whose it is: tests of their own
FILES = {name: kind for name, kind in EXPORTED.items() if name not in OWN_TESTS}
KINDS: dict[str, FileKind] = {**FILES, "profile": PROFILE, "table": TABLE}


def read_here(kind: str, ref: str, written: Path, batches: list[Inputs], own_seconds: float) -> list[Outputs]:
    """What a fresh process does, of which test_exports.py starts real ones."""
    return [reload.READERS[kind](ref, str(written))(inputs) for inputs in batches]


def test_each_kind_knows_its_own_files_and_no_others(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = template / "plan.json"
    monkeypatch.setattr(reload, "outputs_in_fresh_process", read_here)
    if find_spec("executorch") is None or not any(map(shutil.which, COMPILERS)):
        pytest.skip("needs ExecuTorch and a C compiler for their files")
    for name in ("pt2", "onnx", "executorch", "c", "bundle"):
        words = ("export", template / "model.py", "--plan", plan, "--no-correct", "--format", name)
        assert ran(*words, "--out", tmp_path / name).exit_code == 0
    assert ran("profile", IRIS, "--samples", "5", "--out", tmp_path / "profile").exit_code == 0
    (tmp_path / "safetensors").write_bytes((template / "checkpoint.safetensors").read_bytes())
    (tmp_path / "table").write_bytes((template / "table.csv").read_bytes())
    (tmp_path / "plan").write_bytes(plan.read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == set(KINDS)
    for path in tmp_path.iterdir():
        assert {name for name, kind in KINDS.items() if kind(path)} == {path.name}
    assert PLAN(GOLDEN / "plan-v1.json")
    assert all(EXPORTED["safetensors"](path) for path in GOLDEN.glob("checkpoint-*.safetensors"))
    others = [*template.glob("*.npz"), template / "model.py", template / "weights.safetensors", ROOT / "README.md"]
    assert not [path for path in others if any(kind(path) for kind in KINDS.values())]


@pytest.mark.parametrize("content", [b"{", b"[" * 10**5, b"\x08", b"PK\3\4", b"\xff" * 100, b"null", b"\0" * 8, b"{}"])
def test_what_is_damaged_is_of_no_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "it").write_bytes(content)
    assert not [name for name, kind in KINDS.items() if kind(tmp_path / "it")]


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_whoever_reads_a_watched_file_is_noticed(tmp_path: Path) -> None:
    path, link = tmp_path / "it.safetensors", tmp_path / "link"
    save_file({"a": torch.zeros(2)}, path)
    link.hardlink_to(path)
    readers: list[Callable[[], object]] = [
        link.read_bytes,
        lambda: os.close(os.open(path, os.O_RDONLY)),
        lambda: load_file(path),
        lambda: load_file(link),
    ]
    for read in readers:
        with watched([path, tmp_path / "missing"]):
            assert not was_read(path)
            read()
            assert was_read(path)
            assert was_read(link)
    with watched([path]):
        path.stat()
        path.write_bytes(b"")
        assert not was_read(path)
    assert not was_read(path)


def test_a_file_that_is_read_while_another_is_made_for_its_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"mine")
    with watched([path]), pytest.raises(InvalidFile, match="this run has read"), whole_or_nothing(path) as temporary:
        temporary.write_bytes(path.read_bytes() * 2)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


# ---- whole files ----------------------------------------------------------------------------------------------------


def test_a_link_keeps_pointing_and_a_file_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to("target")
    with whole_or_nothing(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    write_whole(link, b"newer")
    assert link.is_symlink()
    assert target.read_bytes() == b"newer"


def test_a_full_device_is_one_line_and_libraries_do_not_end_the_process(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    result = ran("search", IRIS, "--multiplies", "0.7", "--out", "/dev/full")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: /dev/full could not be written: No space left on device; make room there, or give another folder."
    )
    with pytest.raises(OSError, match="No space left"), writing(Path("/dev/full")) as file:
        torch.save(torch.zeros(100_000), file)  # without patience its archive ends the process
    with writing(tmp_path / "it") as file:
        torch.save(torch.ones(3), file)
    assert torch.load(tmp_path / "it").tolist() == [1, 1, 1]


@pytest.mark.parametrize("failing", [OSError(errno.ENOSPC, "No space left on device"), "safetensors"])
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, failing: OSError | str) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"old")
    with pytest.raises(InvalidFile, match=r"it could not be written: (No space|Is a directory)"):  # noqa: PT012, SIM117
        with whole_or_nothing(path) as temporary:
            temporary.write_bytes(b"half")
            if isinstance(failing, OSError):
                raise failing
            save_file({"a": torch.zeros(2)}, tmp_path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_file_to_fill_in_is_never_written_over_anything(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.symlink_to("elsewhere.py")
    result = ran("new", path)
    assert result.exit_code == 1
    assert "exists and is not overwritten" in result.stderr
    result = ran("new", tmp_path / "missing" / "net.py")
    assert result.exit_code == 1
    assert "missing/net.py could not be written: No such file or directory" in result.stderr
    assert list(tmp_path.iterdir()) == [path]


# ---- scratch --------------------------------------------------------------------------------------------------------


def scratch_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scratch folder of a process that was killed, an old one."""
    monkeypatch.setattr(files.tempfile, "tempdir", str(folder))
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from lowrank_core.store.files import scratch\n"
        "with scratch() as folder: print(folder.parent, flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    left = Path(done.stdout.strip())
    os.utime(left, (time.time() - 2 * SCRATCH_SECONDS,) * 2)
    return left


def test_only_scratch_with_a_marker_of_this_user_and_a_dead_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = scratch_left(tmp_path, monkeypatch)
    unpacked = tmp_path / "rank-explorer-0.9"  # a download of this very project
    (unpacked / "lowrank_core").mkdir(parents=True)
    damaged, alive, elsewhere, other, link = (tmp_path / f"rank-explorer-{name}" for name in "abcde")
    about = json.loads((left / files.MARKER).read_bytes())
    for folder, marker in (
        (damaged, "{"),
        (alive, json.dumps(about | {"process": os.getpid()})),
        (elsewhere, json.dumps(about | {"host": "another"})),
        (other, json.dumps(about | {"format": "another"})),
    ):
        folder.mkdir()
        (folder / files.MARKER).write_text(marker)
    mine = tmp_path / "mine"
    left.rename(mine)
    link.symlink_to(mine)
    old = time.time() - 2 * SCRATCH_SECONDS
    for folder in tmp_path.iterdir():
        os.utime(folder, (old, old), follow_symlinks=False)
    everything = set(tmp_path.iterdir())
    files.remove_old_scratch()
    assert set(tmp_path.iterdir()) == everything
    mine.rename(left)
    os.utime(left, (old, old))
    if hasattr(os, "getuid"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "getuid", lambda: os.stat(left).st_uid + 1)
            files.remove_old_scratch()
        assert left.exists()
    files.remove_old_scratch()
    assert not left.exists()
    assert set(tmp_path.iterdir()) == everything - {mine}


# ---- what is kept ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_noted() -> Iterator[None]:
    forget_not_kept()
    yield
    forget_not_kept()


@pytest.mark.usefixtures("nothing_noted")
def test_what_cannot_be_kept_is_said_once_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.write_text("a file in its place")
    try_to_keep(folder)
    keep_whole(folder / "points" / "a", b"")
    keep_line(folder / "tuning" / "b", b"")
    (line,) = not_kept()
    assert str(folder) in line
    assert "move away" in line
    other = tmp_path / "elsewhere" / "state"
    other.parent.mkdir()
    other.write_text("another one")
    try_to_keep(other)
    (line,) = not_kept()  # for one reason
    assert str(folder) in line
    assert str(other) in line
    folder.unlink()
    keep_line(folder / "points" / "b", b"x")
    (line,) = not_kept()
    assert str(folder) not in line
    other.unlink()
    write_whole(other / "plan", b"x")  # as what a person would miss is written
    assert not_kept() == ()
    assert (folder / "points" / "b").read_bytes() == b"x"


def test_a_cache_that_cannot_be_written_is_said_once_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, plan, state = tmp_path / "cache", tmp_path / "plan.json", tmp_path / "state"
    cache.write_text("a file in its place")
    monkeypatch.setattr(_opening, "CACHE", cache)
    for words in (
        ("search", IRIS, "--multiplies", "0.7", "--out", plan),
        ("profile", IRIS, "--samples", "10"),
        ("finetune", IRIS, "--plan", plan, "--epochs", "1", "--out", tmp_path / "tuned"),
        ("latency", IRIS, "--runtime", "torch", "--method", "svd", "--table", tmp_path / "table"),
        ("apply", IRIS, "--plan", plan, "--out", tmp_path / "small"),
        ("spectra", IRIS),
    ):
        result = ran(*words)
        assert result.exit_code == 0, result.output
        said = [line for line in result.stderr.splitlines() if "memory alone" in line]
        assert len(said) == 1, result.stderr
        assert str(cache) in said[0]
        assert "Errno" not in result.stderr
    assert cache.read_text() == "a file in its place"
    assert not state.exists()


def test_a_training_goes_on_where_its_state_can_be_written_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full in the middle: said, and the result is written; what was kept before stays whole."""
    plan, real, written = tmp_path / "plan.json", files.write_whole, []
    assert ran("search", IRIS, "--multiplies", "0.7", "--out", plan).exit_code == 0

    def full(path: Path, content: bytes) -> None:
        if path.name == "state.0" and len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        real(path, content)

    monkeypatch.setattr(files, "write_whole", full)
    words = ("finetune", IRIS, "--plan", plan, "--epochs", "3", "--no-cache", "--out", tmp_path / "tuned")
    result = ran(*words, "--state", tmp_path / "state", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("memory alone") == 1
    assert "No space left on device; make room there" in result.stderr
    assert (tmp_path / "tuned").is_file()
    assert len(read_state(tmp_path / "state.0")["history"]) > 0


# ---- where and how a command runs ------------------------------------------------------------------------------------


def test_who_has_no_home_has_folders_that_are_tried_as_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never one that is called `~` where the person stands."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)
    for kind in ("cache", "state"):
        folder = files.own_folder(kind)
        assert folder.is_absolute()
        assert folder.parts[-2:] == (f".{kind}", "rank-explorer")


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused = ran("search", IRIS, "--multiplies", "0.7", "--out", "new")
    assert refused.exit_code == 2
    assert "'--out': 'new' lies in the current folder, which has been removed" in refused.stderr


def test_standard_output_that_is_full_is_a_refusal(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(text: str, *, err: bool = False, nl: bool = True, file: object = None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lowrank_core.commands.click.echo", full)
    with pytest.raises(Refused, match=r"standard output could not be written: No space left"):
        cli.main(["cost", str(template / "model.py"), "--plan", str(template / "plan.json")], standalone_mode=False)


def test_a_plan_comes_through_a_pipe(template: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((template / "plan.json").read_bytes()))
    writer.start()
    through = ran("cost", template / "model.py", "--plan", tmp_path / "pipe", "--json")
    writer.join()
    assert through.exit_code == 0, through.output
    assert through.stdout == ran("cost", template / "model.py", "--plan", template / "plan.json", "--json").stdout


def test_a_table_without_end(tmp_path: Path) -> None:
    words = ("search", IRIS, "--microseconds", "1", "--latency-table", "/dev/zero", "--out", tmp_path / "new")
    refused = ran(*words)
    assert refused.exit_code == 1
    assert "/dev/zero: it is larger than" in refused.stderr


@pytest.mark.parametrize("name", ["m.py", "m.safetensors", "m.onnx", "m.pt", "m.pt2"])
def test_a_model_that_is_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    refused = ran("layers", tmp_path / name)
    assert refused.exit_code == 1
    assert "is no file but a pipe or device" in refused.stderr


def test_the_weights_beside_a_large_export_are_watched_too(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go to NAME.data, which may be what the model file reads."""
    read: list[bool] = []

    def write(workspace: object, compressed: object, out: Path) -> Exported:
        read.extend(map(was_read, (out, weights_beside(out), out.with_name("other.data"))))
        return Exported(str(out), 0, 0.0, None)

    monkeypatch.setitem(EXPORTS, "onnx", replace(EXPORTS["onnx"], write=write))
    with copy_of(template) as folder:
        for name in ("new.data", "other.data"):
            (folder / name).write_bytes(b"mine")
        model = folder / "model.py"
        model.write_text(model.read_text() + '\n(HERE / "new.data").read_bytes()\n')
        assert ran("export", model, "--dense", "--format", "onnx", "--out", folder / "new").exit_code == 0
    assert read == [False, True, False]


def test_closed_standard_files_are_stood_in_for() -> None:
    """Else the next file that is opened is what libraries print to."""
    child = os.fork()
    if child == 0:
        for number in (0, 1, 2):
            os.close(number)
        stand_in_for_closed()
        null = os.stat(os.devnull)
        os._exit(0 if all(os.path.samestat(os.fstat(number), null) for number in (0, 1, 2)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Command:
        def load(self, name: str | None) -> None: ...

        def __call__(self) -> None:
            with whole_or_nothing(tmp_path / "out") as temporary:
                temporary.write_bytes(b"half")
                signal.raise_signal(number)

    monkeypatch.setattr("lowrank_core.commands.cli", Command())
    monkeypatch.setattr("lowrank_core.running.own_process.ending_with_its_work", nullcontext)
    monkeypatch.setattr("lowrank_core.running.own_process.hush_libraries", lambda **how: None)
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert end.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_whatever_umask_forbids_a_file_is_written_and_then_forbidden(tmp_path: Path) -> None:
    """Users who are not root could not write to what they have just made."""
    old = os.umask(0o777)
    try:
        with files.scratch() as folder, whole_or_nothing(tmp_path / "out") as temporary:
            modes = [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent, temporary)]
            temporary.write_bytes(b"whole")
    finally:
        os.umask(old)
    assert modes == [0o700, 0o700, 0o600]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0


def test_a_file_that_is_mounted_by_itself_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "other").touch()
    place = str(tmp_path / "a file").replace(" ", "\\040")
    (tmp_path / "mounts").write_text(f"36 35 98:0 /mnt {place} rw,noatime master:1 - ext3 /dev/root rw\n")
    monkeypatch.setattr(files, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(InvalidFile, match="is mounted by itself"):
        files.try_place(tmp_path / "a file")
    files.try_place(tmp_path / "other")


def test_scratch_that_cannot_be_made_is_said_before_any_work(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copy_of(template) as folder:
        (folder / "opened").unlink(missing_ok=True)  # another test may have opened what is copied
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        words = ("apply", folder / "model.py", "--plan", folder / "plan.json", "--out", folder / "new")
        refused = ran(*words)
        assert refused.exit_code == 1
        assert "set TMPDIR" in refused.stderr
        assert not (folder / "opened").exists()


@pytest.mark.skipif(os.name != "posix", reason="the C library by its name")
def test_what_compiled_code_prints_is_no_part_of_an_answer() -> None:
    script = """
import ctypes
from lowrank_core.running.own_process import hush_libraries, stdout_left_alone
c = ctypes.CDLL(None)
hush_libraries(alone=True)
with stdout_left_alone():
    c.puts(b"from compiled code")
print("the answer")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("the answer\n", "from compiled code\n")
