"""Cost against size: ten times the layers may cost ten times the calls, not a hundred. Counted, not timed."""

import sys
import threading
from collections.abc import Callable
from functools import cache
from itertools import count, islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.compression.apply import apply
from lowrank_core.compression.start import starting_plan
from lowrank_core.layers.data import Dataset
from lowrank_core.networks.discover import discover
from lowrank_core.networks.twin import twin
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import check_plan, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.sensitivity import measured
from lowrank_core.scoring.metrics import TOP1
from lowrank_core.scoring.scores import final_score
from lowrank_core.selection import RULES, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.sources._opened import Opened
from lowrank_core.workspace import Workspace
from pages.ui import board_values, tables

FEW, MANY = 12, 120
WIDTH = 8


class Deep(nn.Module):
    """So many blocks of one layer, each added to its input."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@cache
def deep(blocks: int) -> Workspace:
    torch.manual_seed(0)
    x = torch.randn(96, WIDTH)
    data = Dataset(x, torch.randint(4, (96,)))
    opened = Opened(
        ref=f"deep-{blocks}",
        name="deep",
        description="",
        model=Deep(blocks).eval(),
        example_inputs=(x[:1],),
        eval_data=lambda: data,
        train_data=lambda: data,
        metric=lambda data: TOP1,
    )
    workspace = Workspace(opened)
    for layer in workspace.profile.layers:
        assert len(workspace.factors(layer.name, "svd").spectra) == 1
    return workspace


def plan(workspace: Workspace) -> RankPlan:
    return starting_plan(workspace.profile, workspace.factors)


def calls(work: Callable[[], Any]) -> int:
    """How many functions are called, in this thread and in those that it starts."""
    counter = count()

    def tick(frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_call"):
            next(counter)

    threading.setprofile(tick)
    sys.setprofile(tick)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return next(counter)


def first_points(workspace: Workspace) -> None:
    list(islice(measured(workspace, Correction(), samples=64), 4))


WORK: dict[str, Callable[[Workspace], Any]] = {
    "discover": lambda w: discover(w.model, w.opened.example_inputs),
    "starting plan": plan,
    "cost of a plan": lambda w: plan_cost(w.profile, plan(w)),
    "checking a plan": lambda w: check_plan(w.profile, plan(w)),
    "a copy that shares its weights": lambda w: twin(w.model, w.profile.layers),
    "apply": lambda w: apply(w.model, w.profile, plan(w), w.factors),
    "correction": lambda w: w.compress(plan(w), Correction(seed=next(seeds))),
    "one score": lambda w: final_score(w.measure(w.compress(plan(w)), keep=False)),
    "four points of single layers": first_points,
    "energy rule": lambda w: list(search(RULES["energy"](), problem_of(w, multiplies=0.5, corrected=False))),
    "rows of the Model page": lambda w: (tables.layer_costs(w.profile), tables.layer_ranks(w.profile)),
    "rows of a plan": lambda w: tables.plan_rows(w.profile, plan(w)),
    "pictures of Spectra": lambda w: [tables.curves(w, layer, "svd", plan(w)) for layer in w.profile.layers[:1]],
    "what the board is sent": lambda w: [
        board_values.layer_fields(w, layer, i) for i, layer in enumerate(w.profile.layers)
    ],
}
seeds = count(1)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_calls_grow_no_faster_than_the_layers(work: Callable[[Workspace], Any]) -> None:
    few, many = deep(FEW), deep(MANY)
    for workspace in (few, many):
        work(workspace)  # what is imported and remembered once
    small, large = calls(lambda: work(few)), calls(lambda: work(many))
    assert small > 20
    assert large <= 1.25 * MANY / FEW * small
