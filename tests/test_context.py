"""Context: what later layers make good is measured where it is planted, and random plans are scored as they are."""

from random import Random

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.errors import Cancelled
from lowrank_core.measure.ledger import Ledger
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.context import MeasuredPlan, context_of, joints, random_keep, random_plan, repairs
from lowrank_core.predict.prediction import noise_table
from lowrank_core.predict.sensitivity import measured, ranks
from lowrank_core.running.scope import scope
from lowrank_core.scoring.metrics import AGREEMENT
from lowrank_core.scoring.scores import final_score
from lowrank_core.workspace import Workspace
from tests.test_sensitivity import one_thread, workspace  # noqa: F401 - one_thread is a fixture


class Chain(nn.Module):
    """The second layer sees twice what the first gives, once past it: it can make good what the first loses."""

    def __init__(self, bypass: bool) -> None:
        super().__init__()
        self.first, self.second, self.bypass = nn.Linear(12, 12), nn.Linear(24, 12), bypass
        self.head = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(self.second(torch.cat([y, x if self.bypass else torch.zeros_like(x)], 1)))


def opened(bypass: bool) -> Workspace:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return workspace(Chain(bypass), torch.randn(256, 12), name=f"bypass {bypass}")


@pytest.fixture(scope="module")
def net() -> Workspace:
    return opened(True)


def test_only_what_can_be_made_good_is():
    """With the inputs at hand the second layer repairs the first; without, what rank has taken is gone."""
    kept = {}
    for bypass in (True, False):
        net = opened(bypass)
        points = list(measured(net, Correction(samples=256)))
        found = list(repairs(net, Correction(samples=256), points))
        assert {r.layer for r in found} == {"first", "second"}
        assert len([r for r in found if r.layer == "first"]) == len(ranks(net.profile.layers[0], "svd")) - 1
        kept[bypass] = [r.kept for r in found if r.layer == "first"]
    assert max(kept[True]) < 0.6 * min(kept[False])


def test_random_plans_fit_the_model_and_depend_on_the_seed(net):
    def drawn(seed: int, lighter: bool = True) -> list[RankPlan]:
        draw = Random(seed)
        return [random_plan(net.profile, ["svd"], draw, random_keep(draw, lighter=lighter)) for _ in range(30)]

    plans = drawn(3)
    assert plans == drawn(3) != drawn(4)
    for plan in plans:
        assert 1 <= len(plan.choices) <= 3
        for name, choice in plan.choices:
            top = useful_rank(net.profile.layer(name), "svd")
            assert all(1 <= r <= t for r, t in zip(choice.rank, top, strict=True))
    light, heavy = ([c.rank[0] for p in drawn(3, lighter) for _, c in p.choices] for lighter in (True, False))
    assert sum(light) / len(light) > 1.3 * sum(heavy) / len(heavy)


def test_joint_plans_are_scored_half_of_them_heavy_and_what_the_ledger_holds_is_not_measured_again(net, monkeypatch):
    """All maps have rank 2: a plan is nearly exact or, with a rank of 1, hopeless."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(12, 12) for _ in range(3)]
    for layer in layers:
        left, right = torch.randn(12, 2, generator=generator), torch.randn(2, 12, generator=generator)
        layer.weight.data, layer.bias.data = left @ right + 1e-3 * layer.weight.data, torch.zeros(12)
    net, ledger = (
        workspace(nn.Sequential(*layers), torch.randn(256, 12, generator=generator), metric=AGREEMENT),
        Ledger(),
    )
    found = list(joints(net, None, ["svd"], 0.1, ledger, plans=10, samples=256))
    assert len(found) == 10
    for joint in found:
        assert joint.lost == final_score(net.measure(net.compress(joint.plan))).drop
        assert (joint.lost < 0.1) == all(choice.rank >= (2,) for _, choice in joint.plan.choices)
    assert 3 <= sum(joint.lost >= 0.1 for joint in found) <= 7
    monkeypatch.setattr(net, "compress", lambda *_: pytest.fail("measured again"))
    assert list(joints(net, None, ["svd"], 0.1, ledger, plans=10, samples=256)) == found
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        next(joints(net, None, ["svd"], 0.1))


def test_a_network_whose_ranks_never_pay_has_no_joint_plans():
    assert list(joints(workspace(nn.Linear(2, 2), torch.randn(8, 2)), None, ["svd"], 0.1)) == []


def test_a_context_knows_the_order_fits_the_scale_and_keeps_what_plans_lose(net):
    points = list(measured(net))
    table = noise_table(net.reference, 256)
    assert context_of(net, points, table).order == ("first", "second", "head")
    assert context_of(net, points, table).scale == 1
    plan = RankPlan.of(net.profile.fingerprint, {"second": Choice("svd", (3,))})
    (joint,) = context_of(net, points, table, (), [MeasuredPlan(plan, 0.25)]).joints
    assert joint.lost == 0.25
    assert [change > 0 for change in joint.changes] == [False, True, False]
