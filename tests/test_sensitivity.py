"""Sensitivity: the change that is planted comes back, the default methods come first, and nothing is measured twice."""

from math import log

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.errors import Cancelled
from lowrank_core.layers.data import Dataset, run
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import sensitivity
from lowrank_core.predict.prediction import Point
from lowrank_core.predict.sensitivity import VERSION, Grounds, PointFile, asked, divergence, measured, ranks
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.scoring.metrics import METRICS, TOP1, Metric
from lowrank_core.scoring.prefix import Cuts
from lowrank_core.sources._opened import Opened
from lowrank_core.workspace import Workspace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def workspace(model: nn.Module, inputs: Tensor, name: str = "net", metric: Metric = TOP1) -> Workspace:
    targets = torch.arange(len(inputs)) % 2
    data = Dataset(inputs, targets)
    return Workspace(
        Opened(name, name, "", model.eval(), (inputs[:2],), lambda: data, lambda: data, metric=lambda _: metric)
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small sums, and other tests at work beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net() -> Workspace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return workspace(Net(), torch.randn(96, 3, 6, 6))


def test_a_planted_change_comes_back():
    """One linear map with singular values 4, 2, 1 on inputs of unit variance: rank 1 changes the outputs by 4 + 1."""
    values = torch.tensor([4.0, 2.0, 1.0, 0, 0, 0, 0, 0])
    linear = nn.Linear(8, 8, bias=False)
    linear.weight.data = torch.diag(values)
    inputs = torch.eye(8).repeat(4, 1) * 8**0.5  # E[x x^T] = 1
    net = workspace(nn.Sequential(linear, nn.Identity()), inputs)
    asks = [("0", Choice("svd", (r,))) for r in (1, 2, 3)]
    found = list(measured(net, asks=asks))
    assert [p.change for p in found] == pytest.approx([5 / 8, 1 / 8, 0], abs=1e-6)
    assert [p.error for p in found] == pytest.approx([5 / 21, 1 / 21, 0], abs=1e-6)


def test_the_loss_of_values_is_their_change_over_their_variance():
    """Whatever their unit is; values that never differ have no variance to compare with."""
    dense, change = torch.tensor([[1.0], [5.0], [1.0], [5.0]]), torch.tensor([[1.0], [-1.0], [2.0], [0.0]])
    for unit in (1.0, 100.0):
        assert divergence(METRICS["mse"], {"y": unit * (dense + change)}, {"y": unit * dense}) == pytest.approx(1.5 / 4)
    assert divergence(METRICS["mse"], {"y": dense}, {"y": dense}) == 0
    assert divergence(METRICS["mse"], {"y": torch.full((3, 1), 9.0)}, {"y": torch.full((3, 1), 7.0)}) == 4


def test_the_loss_of_class_scores_is_their_divergence():
    """KL(1/2 1/2 | 1/4 3/4) = log 2 - log(3) / 2, whatever is added to all scores of a sample."""
    dense, ours = torch.tensor([[2.0, 2.0]]), torch.tensor([[0.25, 0.75]]).log() - 3
    assert divergence(TOP1, {"y": ours}, {"y": dense}) == pytest.approx(log(2) - log(3) / 2, rel=1e-6)
    assert divergence(TOP1, {"y": dense + 1}, {"y": dense}) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("correction", [None, Correction(samples=64), Correction("bias", samples=64)], ids=str)
def test_a_point_is_the_change_by_the_plan_with_that_layer_alone(net, correction):
    asks = [ask for ask in asked(net) if ask[1].method in {"spatial_svd", "tucker2", "svd"}]
    samples = net.reference.dataset.pick(slice(0, 96)).inputs
    points = list(measured(net, correction, asks=asks))
    assert len(points) == len(asks) > 8
    for point in points:
        plan = RankPlan.of(net.profile.fingerprint, {point.layer: Choice(point.method, point.rank)})
        with torch.no_grad():
            changed = net.compress(plan, correction)(samples) - net.model(samples)
        assert point.change == pytest.approx(float(changed.square().mean()), rel=1e-3, abs=1e-9)


def test_correcting_one_layer_alone_is_the_correction_of_its_plan(net):
    for name, choice in (("second", Choice("spatial_svd", (3,))), ("head", Choice("svd", (2,)))):
        plan, correction = RankPlan.of(net.profile.fingerprint, {name: choice}), Correction(samples=64)
        alone = net.corrector.alone(net.compress(plan), plan, correction)
        whole = net.corrector(plan, correction)
        assert alone.keys() == whole.keys()
        assert all(torch.allclose(alone[key], value, atol=1e-6) for key, value in whole.items())


def test_every_layers_default_method_comes_first_and_its_lowest_rank_is_there(net):
    asks = asked(net)
    defaults = {layer.name: layer.methods[0].name for layer in net.profile.layers}
    leading = sum(len(ranks(layer, layer.methods[0].name)) for layer in net.profile.layers)
    assert all(choice.method == defaults[name] for name, choice in asks[:leading])
    assert all(choice.method != defaults[name] for name, choice in asks[leading:])
    assert {"cp3", "tucker2", "svd"} <= {choice.method for _, choice in asks}
    assert len(set(asks)) == len(asks)
    assert ranks(net.profile.layer("second"), "spatial_svd") == [(1,), (4,), (8,), (15,)]  # of 17
    assert ranks(net.profile.layer("second"), "tucker2")[0] == (1, 1)


def test_progress_cancelling_and_going_on(net):
    asks = [ask for ask in asked(net) if ask[1].method == "spatial_svd"]
    heard: list[Progress] = []
    with scope(report=heard.append):
        whole = list(measured(net, asks=asks))
    assert [progress.words for progress in heard] == [f"{n + 1} of {len(asks)} points" for n in range(len(asks))]
    assert all(progress.seconds_left >= 0 for progress in heard)
    assert heard[-1].seconds_left == 0
    seen: list[Point] = []
    with scope(cancelled=lambda: len(seen) == 2), pytest.raises(Cancelled):
        seen.extend(measured(net, asks=asks))
    assert seen == whole[:2]
    heard.clear()
    with scope(report=heard.append):
        rest = list(measured(net, asks=asks, points=seen))
    assert heard[0].words == f"1 of {len(asks) - 2} points"
    assert [*seen, *rest] == whole
    assert list(measured(net, asks=asks, points=whole)) == []


def test_calls_that_share_their_grounds_run_the_dense_network_once_and_prove_a_cut_once(net, monkeypatch):
    runs, proofs, grounds = [], [], Grounds()
    monkeypatch.setattr(sensitivity, "run", lambda *args: runs.append(1) or run(*args))
    proved = Cuts._found
    monkeypatch.setattr(Cuts, "_found", lambda cuts, before: proofs.append(before) or proved(cuts, before))
    workspace = Workspace(net.opened)
    layer = workspace.profile.layers[-1]
    asks = [(layer.name, Choice(layer.methods[0].name, rank)) for rank in ranks(layer, layer.methods[0].name)]
    other = workspace.reference.dataset.pick(slice(0, 8)).unlabelled()
    apart = [tuple(measured(Workspace(net.opened), asks=[ask])) for ask in asks]
    runs.clear(), proofs.clear()
    together = [tuple(measured(workspace, asks=[ask], grounds=grounds)) for ask in asks]
    assert together == apart
    assert len(runs) == 2  # the batches of SAMPLES
    assert proofs == [len(workspace.profile.layers) - 1]
    elsewhere = list(measured(workspace, asks=asks, data=other, grounds=grounds))
    assert [p.loss for p in elsewhere] != [p.loss for (p,) in apart]
    assert len(runs) == 3
    assert proofs == [len(workspace.profile.layers) - 1]


def test_files_hold_what_was_measured_and_nothing_else_is_taken_for_it(net, tmp_path):
    correction = Correction(samples=64)
    asks = [ask for ask in asked(net) if ask[0] == "second"][:6]
    points = list(measured(net, asks=asks))
    file = PointFile(tmp_path / "new", net, None)
    assert file.load() == ()
    for point in (*points, points[0]):  # another process may have measured one too
        file.add(point)
    assert PointFile(tmp_path / "new", net, None).load() == tuple(points)
    assert list((tmp_path / "new").iterdir()) == [file.path]
    other_data = workspace(net.model, torch.zeros(96, 3, 6, 6))
    other_model = workspace(nn.Sequential(nn.Linear(3, 10), nn.Linear(10, 2)), torch.zeros(4, 3))
    assert PointFile(tmp_path / "new", net, correction).load() == ()
    assert PointFile(tmp_path / "new", other_data, None).load() == ()
    assert PointFile(tmp_path / "new", other_model, None).load() == ()


def test_points_of_another_version_are_not_taken(net, tmp_path, monkeypatch):
    file = PointFile(tmp_path, net, None)
    file.add(next(measured(net, asks=asked(net)[:1])))
    monkeypatch.setattr("lowrank_core.predict.sensitivity.VERSION", VERSION + 1)
    assert PointFile(tmp_path, net, None).load() == ()


@pytest.mark.parametrize("damage", [b"", b"{", b"\n00000000 []", b'\n{"points": 3}'])
def test_what_is_damaged_is_measured_again(net, tmp_path, damage):
    points = list(measured(net, asks=asked(net)[:2]))
    file = PointFile(tmp_path, net, None)
    file.add(points[0])
    file.path.write_bytes(file.path.read_bytes()[:-1] + damage)
    assert file.load() == ()
    for point in points:
        file.add(point)
    assert file.load() == tuple(points)
