"""Exports in a process of their own: to the bit what is written here, also two at once, and ended on demand."""

import hashlib
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lowrank_core.compression.precision import Storage
from lowrank_core.errors import Cancelled, OtherAnswers
from lowrank_core.exports import EXPORTS, Compressed, Exported, _apart
from lowrank_core.exports._apart import write_apart
from lowrank_core.measure import apart
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.running.scope import scope
from lowrank_core.workspace import Workspace


def compressed(workspace: Workspace, storage: Storage | None = None) -> Compressed:
    plan, correction = uniform_plan(workspace.profile, 0.5), workspace.correction
    made = Compressed(workspace.compress(plan, correction), plan, None, correction.to_dict())
    return made if storage is None else made.stored(workspace, storage)


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


def test_two_at_once_are_each_what_is_written_alone_and_here(iris: Workspace, tmp_path: Path) -> None:
    """Corrected weights, those of half precision with folded biases too; what is reported comes from each alone."""
    asks = {"pt2": compressed(iris), "onnx": compressed(iris, Storage("float16", fold_bias=True))}

    def here(kind: str) -> tuple[Exported, str]:
        return seen(EXPORTS[kind].write(iris, asks[kind], tmp_path / f"file.{kind}"))

    def apart(kind: str) -> tuple[Exported, str]:
        heard: list[str] = []
        with scope(report=lambda progress: heard.append(progress.words)):
            exported = write_apart(kind, iris, asks[kind], tmp_path / f"file.{kind}")
        assert heard[0] == "following one inference through the network"
        assert heard[-1] == "reloading in a fresh process"
        return seen(exported)

    alone = [here(kind) for kind in asks]
    with ThreadPoolExecutor(len(asks)) as threads:
        assert list(threads.map(apart, asks)) == alone


def seen(exported: Exported) -> tuple[Exported, str]:
    path = Path(exported.path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    return exported, content


def test_cancelled_it_ends_and_leaves_nothing(iris: Workspace, tmp_path: Path) -> None:
    tracing = threading.Event()
    with pytest.raises(Cancelled), scope(cancelled=tracing.is_set, report=lambda progress: tracing.set()):
        write_apart("pt2", iris, compressed(iris), tmp_path / "file.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_raised_here_as_what_it_is(
    iris: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, for speed: what the fresh one does is the same function."""
    given: list[Path] = []

    def work(name: str, folder: Path) -> Generator[None]:
        given.append(folder)
        assert name == "lowrank_core.measure.apart:answer"
        apart.answer(folder)
        yield

    monkeypatch.setattr(apart, "looking_at", work)
    monkeypatch.setattr(apart, "hush_libraries", lambda **how: None)

    def refuse(workspace: Workspace, made: Compressed, path: Path) -> Exported:
        assert made.accept_difference
        raise OtherAnswers("it differs")

    monkeypatch.setattr(_apart, "EXPORTS", {"pt2": EXPORTS["pt2"].__class__("pt2", "", "", refuse, lambda *_: ())})
    asked = compressed(iris)
    with pytest.raises(OtherAnswers, match="it differs"):
        write_apart("pt2", iris, Compressed(asked.model, asked.plan, accept_difference=True), tmp_path / "file")
    assert not given[0].exists()
