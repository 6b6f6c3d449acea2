"""The file of a history: damaged and edited ones end no page and are never overwritten; two writers lose nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.store.documents import Kind, sealed
from lowrank_core.workspace import Workspace
from pages.ui.history import MOST_SNAPSHOTS, NAME_LETTERS, History, PlanSnapshot
from pages.ui.history_file import KIND, Kept, Loaded, changed, load, save

PROFILE = Workspace.open("builtin:iris-mlp").profile
FINGERPRINT = PROFILE.fingerprint


def plan(**layers: int) -> RankPlan:
    return RankPlan.of(FINGERPRINT, {name: Choice("svd", (rank,)) for name, rank in layers.items()})


HISTORY = History(plan()).commit(plan(fc1=2)).keep("light").commit(plan(fc1=3, fc2=2)).undo().lock(["fc2"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "0123456789abcdef-0c2dedb43b14.json"


def written(path: Path, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return raw


def names(path: Path) -> list[str]:
    return sorted(file.name.removeprefix(path.name) for file in path.parent.iterdir() if file.name != ".lock")


def test_what_is_saved_is_loaded(path):
    assert load(path, PROFILE) == Loaded()
    saved = save(path, Kept(History(plan())), HISTORY, PROFILE)
    assert load(path, PROFILE) == Loaded(saved.kept)
    assert saved.kept.history == HISTORY
    assert not changed(path, saved.kept)
    assert names(path) == [""]


def test_a_history_without_a_first_line_is_read_and_gets_one(path):
    written(path, HISTORY.to_json())
    found = load(path, PROFILE)
    assert (found.kept.history, found.said, names(path)) == (HISTORY, "", [""])
    save(path, found.kept, HISTORY.keep("more"), PROFILE)
    assert path.read_bytes().startswith(b'{"kind": "history", "version": 2, ')


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "damaged"),
        (HISTORY.to_json().encode()[:-30], "damaged"),
        (sealed(KIND, HISTORY.to_json().encode())[:-30], "damaged"),
        (sealed(KIND, HISTORY.to_json().encode()).replace(b"light", b"night"), "damaged"),
        (sealed(replace(KIND, version=KIND.version + 1), b"what comes later"), "newer"),
        (sealed(Kind("questions"), b"[]"), "other"),
        (History(RankPlan("sha256:another network's")).to_json().encode(), "damaged"),
        (b"[" * 20_000 + b"]" * 20_000, "damaged"),
        (b'{"fingerprint": ' * 20_000, "damaged"),
        (b"null", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
    ],
    ids=lambda content: content[:12] if isinstance(content, bytes) else content,
)
def test_a_file_of_which_nothing_fits_is_set_aside_and_said(path, content, fault):
    raw = written(path, content)
    found = load(path, PROFILE)
    aside = path.with_name(f"{path.name}.{fault}-1")
    assert found.kept is None
    assert str(aside) in found.said
    assert "\n" not in found.said
    assert aside.read_bytes() == raw
    assert load(path, PROFILE) == Loaded(), "it is said once"
    written(path, content)
    save(path, Kept(History(plan())), HISTORY, PROFILE)
    assert load(path, PROFILE).kept.history == HISTORY
    assert names(path) == ["", f".{fault}-1", f".{fault}-2"]
    assert path.with_name(f"{path.name}.{fault}-2").read_bytes() == raw


def edited(**changes: object) -> str:
    return json.dumps(json.loads(HISTORY.to_json()) | changes)


LONG = {"name": "x" * 10**6, "plan": {}}
TWICE = '{"fc1": ["svd", [1]], "fc1": ["svd", [2]]}'


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        (edited(plan=[]), "the plan itself", replace(HISTORY, plan=plan(), past=())),
        (edited(plan={"gone": ["svd", [1]]}), "the plan itself", replace(HISTORY, plan=plan(), past=())),
        (edited(plan=7, past=[]), "the plan itself", replace(HISTORY, plan=plan(), past=())),
        (edited(past=[[], {"fc1": ["svd", [2]]}]), "1 step of undo", replace(HISTORY, past=(plan(fc1=2),))),
        (edited(past=[{"fc1": ["svd", [1000]]}, {"fc1": ["cp3", [1]]}]), "2 steps of undo", replace(HISTORY, past=())),
        (edited(past={"fc1": 1}), "the list of past", replace(HISTORY, past=())),
        (edited(future=[{"fc1": ["svd", [2**70]]}]), "1 step of redo", replace(HISTORY, future=())),
        (edited(snapshots=[3, {"name": 5, "plan": {}}]), "2 snapshots", replace(HISTORY, snapshots=())),
        (edited(snapshots=[{"name": "a", "plan": {"fc1": ["svd"]}}]), "1 snapshot ", replace(HISTORY, snapshots=())),
        (edited(locked=[1, "fc1", "gone"]), "2 locks", replace(HISTORY, locked=("fc1",))),
        (edited(locked=None), "the list of locked", replace(HISTORY, locked=())),
        (edited(rev=2**70), "the number of changes", replace(HISTORY, rev=0)),
        (edited(rev=float("inf")), "the number of changes", replace(HISTORY, rev=0)),
        (edited(rev="3"), "the number of changes", replace(HISTORY, rev=0)),
        (edited(tolerance=float("nan")).replace("NaN", "1e999"), "the tolerance", HISTORY),
        (edited(tolerance=-1), "the tolerance", HISTORY),
        (edited(corrected="no"), "whether plans are corrected", HISTORY),
        (edited(correction={"kind": "bias", "samples": 1, "seed": 2**70}), "the correction", HISTORY),
        (edited(correction=[[]]), "the correction", HISTORY),
        (
            edited(snapshots=[{"name": "a", "plan": {}}, {"name": "a", "plan": {"fc1": ["svd", [1]]}}]),
            "1 name",
            replace(HISTORY, snapshots=(PlanSnapshot("a", plan()), PlanSnapshot("a 2", plan(fc1=1)))),
        ),
        (
            edited(snapshots=[LONG]),
            "1 name",
            replace(HISTORY, snapshots=(PlanSnapshot("x" * NAME_LETTERS, plan()),)),
        ),
        (
            edited(snapshots=[{"name": "\ud800", "plan": {}}, {"name": " ", "plan": {}}]),
            "2 names",
            replace(HISTORY, snapshots=(PlanSnapshot("?", plan()), PlanSnapshot("snapshot", plan()))),
        ),
        (
            edited(snapshots=[{"name": "b", "plan": 1}]).replace('"plan": 1}]', f'"plan": {TWICE}}}]'),
            "1 snapshot",
            None,
        ),
        (edited(past=[None] * 100_000), "100000 steps of undo", replace(HISTORY, past=())),
    ],
    ids=range(24),
)
def test_what_fits_of_an_edited_file_is_taken_and_the_whole_is_kept(path, text, said, expected):
    for content in (text.encode(), sealed(KIND, text.encode())):
        raw = written(path, content)
        found = load(path, PROFILE)
        number = len(names(path)) - 1
        assert said in found.said
        assert len(found.said) < 500
        assert found.said.count(str(path)) == 1
        assert path.with_name(f"{path.name}.damaged-{number}").read_bytes() == raw
        assert load(path, PROFILE) == Loaded(found.kept), "it is said once"
        assert found.kept.history == (expected or replace(HISTORY, snapshots=()))


def test_of_ten_thousand_snapshots_the_latest_are_taken(path):
    written(path, edited(snapshots=[{"name": f"n{number}", "plan": {}} for number in range(10_000)]))
    found = load(path, PROFILE)
    assert "8000 snapshots" in found.said
    assert found.kept.history.snapshots[-1].name == "n9999"
    full = found.kept.history.keep("one more")
    assert full is found.kept.history
    room = replace(full, snapshots=full.snapshots[: MOST_SNAPSHOTS - 1]).keep("the last")
    assert room.snapshots[-1].name == "the last"


def test_a_write_on_an_older_revision_is_merged(path):
    first = save(path, Kept(History(plan())), HISTORY, PROFILE).kept
    other = save(path, first, first.history.keep("theirs").commit(plan(fc1=2, fc2=1)), PROFILE)
    assert other.merged.layers == ()
    assert changed(path, first)
    mine = save(path, first, first.history.commit(plan(fc1=1)).keep("mine"), PROFILE)
    assert mine.kept.history.plan == plan(fc1=1, fc2=1)
    assert [s.name for s in mine.kept.history.snapshots] == ["light", "theirs", "mine"]
    assert load(path, PROFILE).kept == mine.kept
    collided = save(path, other.kept, other.kept.history.commit(plan(fc1=4, fc2=1)), PROFILE)
    (conflict,) = collided.merged.layers
    assert (conflict.name, conflict.mine, conflict.theirs) == ("fc1", Choice("svd", (4,)), Choice("svd", (1,)))
    assert collided.kept.history.undo().plan == plan(fc1=1, fc2=1)


def test_a_file_that_was_removed_is_written_again(path):
    kept = save(path, Kept(History(plan())), HISTORY, PROFILE).kept
    path.unlink()
    assert not changed(path, kept)
    assert save(path, kept, HISTORY.keep("more"), PROFILE).kept.history == HISTORY.keep("more")


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system_and_keeps_what_it_holds(path):
    path.parent.write_text("no folder")
    with pytest.raises(OSError):  # noqa: PT011
        save(path, Kept(History(plan())), HISTORY, PROFILE)
    assert path.parent.read_text() == "no folder"
