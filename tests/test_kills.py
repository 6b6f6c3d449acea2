"""SIGKILL in the middle of real work: what was finished is kept, nothing is done twice, and the answer is the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import COUNTED, OLDER, REPLACING, Found, Kind, Undisturbed, done, kill, plan_in, undisturbed
from lowrank_core.plans.plan import Choice

CNN, MLP = "builtin:digits-cnn", "builtin:iris-mlp"
WRITTEN = ("--out", "{out}", "--json")
PROFILE = Kind("profile", ("profile", CNN, "--method", "svd", "--samples", "64", *WRITTEN))
REFINED = ("--multiplies", "0.5", "--method", "svd", "--samples", "64", "--set", "refine=3")
SEARCH = Kind("search", ("search", CNN, *REFINED, *WRITTEN))
TRAINED = ("--plan", "{plan}", "--epochs", "6", "--seeds", "2")
FINETUNE = Kind("finetune", ("finetune", MLP, *TRAINED, *WRITTEN))
APPLY = Kind("apply", ("apply", MLP, "--plan", "{plan}", *WRITTEN), kept=("tensor",))


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    return plan_in(folder, MLP, {"fc1": Choice("svd", (2,)), "fc2": Choice("svd", (2,))})


@pytest.fixture(scope="module")
def wholes() -> dict[str, Undisturbed]:
    return {}


@pytest.mark.parametrize(
    ("kind", "word", "count"),
    [
        (PROFILE, "point", 1),
        (PROFILE, "point", 7),
        (SEARCH, "point", 5),
        (SEARCH, "number", 3),
        (FINETUNE, "epoch", 3),
        (FINETUNE, "epoch", 9),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else str(value),
)
def test_what_is_finished_is_kept_and_not_done_again(
    kind: Kind, word: str, count: int, folder: Path, plan: Path, wholes: dict[str, Undisturbed], tmp_path: Path
) -> None:
    if kind.name not in wholes:
        wholes[kind.name] = undisturbed(folder / kind.name, kind, plan)
    whole, journal = wholes[kind.name], tmp_path / "journal"
    found = kill(tmp_path, kind, plan, whole, lambda _: done(journal)[word] >= count, held=(word, count))
    assert isinstance(found, Found), "it was over before it could be killed"
    assert found.wrong == []
    assert found.kept >= count - 1
    assert found.repeated == 0
    assert found.kept < sum(whole.done[each] for each in COUNTED)


def test_a_file_that_is_being_written_is_not_taken_for_whole(folder: Path, plan: Path, tmp_path: Path) -> None:
    whole = undisturbed(folder / "apply", APPLY, plan)
    word, journal = f"{REPLACING} written", tmp_path / "journal"
    found = kill(tmp_path, APPLY, plan, whole, lambda _: word in journal.read_text(), OLDER, held=(word, 1))
    assert isinstance(found, Found)
    assert found.wrong == []
    assert found.left >= 1
