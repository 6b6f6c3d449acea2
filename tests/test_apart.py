"""The same model in a process of its own: the same results, one by one, and nothing exported where others work."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

from lowrank_core.errors import Cancelled, InvalidModel, OtherModel, WorkersLost
from lowrank_core.exports import Compressed
from lowrank_core.exports._in_format import measured
from lowrank_core.graphs.memory import EXPORTED, memory_of, trace
from lowrank_core.measure import apart as module
from lowrank_core.measure.apart import answer, apart
from lowrank_core.measure.comparison import traces
from lowrank_core.measure.staircases import Staircase
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.running.scope import raise_if_cancelled, scope
from lowrank_core.sources import open_source
from lowrank_core.workspace import Workspace
from pages.ui.compare import Column, ColumnMeasured, PlanTiming, Races, Scores, Stairs, work


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


@pytest.fixture(scope="module")
def candidates(iris: Workspace) -> tuple[Candidate, ...]:
    return Candidate(RankPlan(iris.profile.fingerprint)), Candidate(uniform_plan(iris.profile, 0.5), iris.correction)


@pytest.fixture
def nothing_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever exports a network in this process fails."""

    def export(*args: object, **kwargs: object) -> None:
        pytest.fail("a network was exported in the process in which others work")

    monkeypatch.setattr(torch.export, "export", export)


@pytest.mark.usefixtures("nothing_exported")
def test_compare_exports_nothing_where_others_work(
    iris: Workspace, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    """An exporter switches mkldnn off while it traces: an LSTM that somebody else evaluates then gets other bits."""
    columns = (*map(Column, candidates), Column(candidates[0], "int8"))
    compared = [one for one in work(iris, Scores(columns), tmp_path) if isinstance(one, ColumnMeasured)]
    assert [one.column for one in compared] == list(columns)
    assert [one.measured.refused for one in compared] == ["", "", ""]
    assert all(one.measured.memory["int8"].how == EXPORTED for one in compared)
    entries = tuple(column.timed for column in columns[1:])
    for timed in work(iris, Races(entries, "onnxruntime"), tmp_path):
        assert isinstance(timed, PlanTiming)
        assert timed.timing is not None
        assert timed.timing.dense_us > 0
        assert timed.timing.compressed_between_us is not None
    stairs = list(work(iris, Stairs("onnxruntime", ("svd",)), tmp_path))
    assert [(one.layer, one.method) for one in stairs if isinstance(one, Staircase)] == [("fc1", "svd"), ("fc2", "svd")]


def test_traces_need_no_factors(iris: Workspace, candidates: tuple[Candidate, ...]) -> None:
    """The trace of chains whose weights are not set is that of the corrected network."""
    for candidate, traced in zip(candidates, traces(iris, candidates), strict=True):
        network = iris.compress(candidate.plan, candidate.correction) if candidate.plan.choices else iris.model
        inputs = iris.opened.example_inputs
        assert memory_of(traced, network) == memory_of(trace(network, inputs), network)
        compressed = Compressed(network, candidate.plan)
        assert measured(iris, compressed, "as it is", traced).memory == measured(iris, compressed, "as it is").memory


def numbered(workspace: Workspace, last: int) -> Iterator[tuple[str, int]]:
    for number in range(last):
        raise_if_cancelled()
        yield workspace.name, number


def test_results_come_in_order_and_may_be_left(iris: Workspace) -> None:
    assert list(apart(numbered, iris, 12)) == list(numbered(iris, 12))
    left = apart(numbered, iris, 10**9)
    assert next(left) == ("iris-mlp", 0)
    left.close()


def test_cancelled_it_ends(iris: Workspace) -> None:
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        list(apart(numbered, iris, 10**9))


def failing(workspace: Workspace) -> Iterator[int]:
    yield 1
    raise ZeroDivisionError("of the work itself")


def test_what_fails_there_is_said_here(iris: Workspace) -> None:
    with pytest.raises(WorkersLost, match="of the work itself"):
        list(apart(failing, iris))


def test_another_network_under_the_reference_is_refused(iris: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(name: str, folder: Path) -> Generator[None]:
        answer(folder)
        yield

    other = open_source("builtin:fft-mlp")
    monkeypatch.setattr(module, "looking_at", here)
    monkeypatch.setattr(module, "hush_libraries", lambda **how: None)
    monkeypatch.setattr(module, "open_source", lambda ref: other)
    with pytest.raises(OtherModel, match="has changed since it was opened"):
        list(apart(numbered, iris, 1))


def test_a_network_of_this_process_alone_is_refused() -> None:
    with pytest.raises(InvalidModel, match="no other process can open it"):
        list(apart(numbered, Workspace.of(torch.nn.Linear(3, 2), torch.zeros(1, 3)), 1))


def test_a_builder_that_is_random_is_timed_here(tmp_path: Path) -> None:
    """No other process finds the same network, so it is traced where it is."""
    path = tmp_path / "random_weights.py"
    path.write_text(
        "import torch\ndef build_model():\n    return torch.nn.Linear(6, 4)\n"
        "def example_inputs():\n    return torch.zeros(1, 6)\n"
        "def eval_data():\n    return torch.eye(6), torch.arange(6) % 4\n"
    )
    workspace = Workspace.open(str(path))
    dense = Column(Candidate(RankPlan(workspace.profile.fingerprint)))
    narrow = Column(dense.candidate, "int8")
    compared, refused = work(workspace, Scores((dense, narrow)), tmp_path)
    assert isinstance(compared, ColumnMeasured)
    assert compared.measured.comparison is not None
    assert isinstance(refused, ColumnMeasured)
    assert "a fresh process finds other weights" in refused.measured.refused
