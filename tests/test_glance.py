"""Glances: what a plan scores, from what is at hand of one that was measured."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.requests import Request
from torch import nn

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.compression.apply import replacement_stages
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.errors import Cancelled
from lowrank_core.measure import glance
from lowrank_core.measure.glance import Glances, TooSlow
from lowrank_core.running.jobs import Job
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import final_score
from pages.ui import live


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, all samples are used."""
    for name in ("PASS_SECONDS", "CORRECTION_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(glance, name, 1e9)


def plan_of(workspace: Workspace, **ranks: int | tuple[str, int]) -> RankPlan:
    chosen = {}
    for name, rank in ranks.items():
        method = workspace.profile.layer(name).methods[0].name
        chosen[name] = Choice(method, (rank,)) if isinstance(rank, int) else Choice(rank[0], rank[1:])
    return RankPlan.of(workspace.profile.fingerprint, chosen)


@pytest.mark.parametrize(
    "moved", [{"conv2": 6}, {"conv3": 40}, {"fc1": 7}, {"conv2": 9, "fc1": 60}, {"fc2": 20}, {"conv3": 0}], ids=str
)
@pytest.mark.usefixtures("patient")
def test_a_glance_is_what_a_measurement_gives_on_these_samples(workspace: Workspace, moved: dict[str, int]) -> None:
    """Layers moved alone, together, from dense and to dense; on all samples and on few."""
    start = {"conv2": 12, "conv3": 30, "fc1": 20}
    base = workspace.candidate(plan_of(workspace, **start))
    plan = plan_of(workspace, **{name: rank for name, rank in (start | moved).items() if rank})
    model = workspace.compress(plan, workspace.correction)
    scores = {score.samples: score for score in workspace.measure(model)}
    glances = Glances(workspace)
    for seconds in (1e9, 0.0):
        found = glances(base, plan, seconds=seconds)
        assert found.left_out == ""
        assert found.score.value == pytest.approx(scores[found.score.samples].value, abs=1.5 / found.score.samples)
    assert found.score.samples == 64


@pytest.mark.usefixtures("patient")
def test_what_a_glance_leaves_out_it_says(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glance, "STEPS", (32,))
    base = workspace.candidate(plan_of(workspace, conv2=("cp3", 20), conv3=30, fc1=20))
    glances, few = Glances(workspace), "later layers corrected on 32 of 256 samples"
    near = glances(base, base.plan.with_choice("conv2", Choice("cp3", (17,))))
    assert near.left_out == f"{few}; conv2 cut from a higher rank"
    far = glances(base, base.plan.with_choice("conv2", Choice("cp3", (12,))))
    assert "cut" not in far.left_out, "a rank that is much lower is fitted anew"
    monkeypatch.setattr(glance, "PASS_SECONDS", 0.0)
    few = "later layers as they were corrected before"
    assert glances(base, base.plan.with_choice("conv2", Choice("cp3", (18,)))).left_out.startswith(few)
    both = base.plan.with_choice("conv3", Choice("spatial_svd", (12,))).with_choice("fc1", Choice("svd", (9,)))
    assert glances(base, both).left_out == "later layers corrected on 32 of 256 samples"
    plain = workspace.candidate(base.plan, corrected=False)
    assert Glances(workspace)(plain, base.plan.with_choice("conv3", Choice("spatial_svd", (20,)))).left_out == ""


def test_a_network_may_be_one_layer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, data = nn.Linear(16, 12), torch.randn(300, 16)
    whole = Workspace.of(network, data[:2], data, train_data=data)
    (layer,) = whole.profile.layers
    base, plan = (RankPlan.of(whole.profile.fingerprint, {layer.name: Choice("svd", (rank,))}) for rank in (5, 3))
    found = Glances(whole)(whole.candidate(base), plan, seconds=1e9)
    expected = final_score(whole.measure(whole.compress(plan, whole.correction)))
    assert found.score.value == pytest.approx(expected.value, abs=1e-6)


def test_what_was_measured_is_known_and_what_is_slow_is_given_up(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, plan = workspace.candidate(plan_of(workspace, fc1=20)), plan_of(workspace, fc1=11)
    monkeypatch.setattr(glance, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(TooSlow, match="more than"):
        Glances(workspace)(base, plan)
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        Glances(workspace)(base, plan)
    candidate = workspace.candidate(plan)
    workspace.scores[candidate] = final_score(workspace.measure(workspace.compress(plan, candidate.correction)))
    assert Glances(workspace)(base, plan).score is workspace.scores[candidate]


def test_leading_features_of_sums_are_those_of_a_narrower_factor(workspace: Workspace) -> None:
    layer = workspace.profile.layer("conv3")
    wide, narrow = (replacement_stages(layer, plan_of(workspace, conv3=rank))[-1] for rank in (20, 6))
    generator = torch.Generator().manual_seed(0)
    x, answers = (torch.randn(4, width, 8, 8, generator=generator) for width in (20, wide.out_channels))
    index = torch.arange(4 * 64)
    targets = answers.movedim(1, -1).reshape(len(index), -1)
    both = [NormalEquations(wide), NormalEquations(narrow)]
    for equations, seen in zip(both, (x, x[:, :6]), strict=True):
        equations.add(seen, index, targets)
    weight = torch.zeros(narrow.weight_shape)
    ours, expected = (e.solve(weight, 1e-3, intercept=True) for e in (both[0].leading(narrow), both[1]))
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


# ---- the route ------------------------------------------------------------------------------------------------------


def asked(body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer of the route, in a thread of its own: where browsers are driven this one has a running loop.

    Whoever asks waits as long as it takes.
    """

    async def ask() -> tuple[int, dict[str, Any]]:
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            part = next(parts, None)
            if part is None:
                await asyncio.sleep(3600)
            return part

        response = await live.answer(Request({"type": "http", "method": "POST", "headers": []}, receive))
        return response.status_code, json.loads(bytes(response.body))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask())).result()


def test_only_a_board_that_was_told_a_secret_may_ask_and_the_newest_question_wins() -> None:
    begun: list[tuple[Any, Job[Any]]] = []

    def begin(choices: live.Choices) -> Job[Any]:
        number = len(begun) + 1
        begun.append((choices, Job("work", lambda: iter([{"answer": number}]))))
        return begun[-1][1]

    secret = live.VISITORS.admit(None, live.Visitor("model", begin))
    question = {"secret": secret, "model": "model", "choices": {"fc": {"method": "svd", "rank": [3]}}}
    assert asked(json.dumps(question).encode()) == (200, {"answer": 1})
    assert begun[0][0] == {"fc": ("svd", (3,))}
    assert live.VISITORS.admit(secret, live.Visitor("model", begin)) == secret
    assert asked(json.dumps(question).encode())[0] == 200
    assert begun[0][1].cancelled(), "the older one is called off, also of a page that was drawn anew"
    for wrong, status in (
        ({**question, "secret": "guessed"}, 404),
        ({**question, "model": "another"}, 404),
        ({**question, "choices": {"fc": {"method": "svd", "rank": [0]}}}, 400),
        ({**question, "more": 1}, 400),
    ):
        assert asked(json.dumps(wrong).encode())[0] == status
    assert asked(b"x" * (live.MOST_BYTES + 1))[0] == 400
    assert len(begun) == 2
