"""The board as a widget: what it is told, what it answers, and what it leaves as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("anywidget")

from lowrank_core.errors import InvalidModel, InvalidPlan
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from rank_explorer.notebook import Board, board

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def live() -> Iterator[Board]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    samples, labels = torch.randn(90, 12), torch.arange(90) % 3
    workspace = Workspace.of(network, torch.zeros(1, 12), (samples, labels))
    shown = board(workspace, RankPlan(workspace.profile.fingerprint))
    yield shown
    ended(shown)


def ended(shown: Board) -> None:
    """Closed, with nothing of it at work any more."""
    jobs = shown._jobs()
    shown.close()
    assert all(job.wait(300).over for job in jobs)


def say(shown: Board, number: int, action: str, **about: Any) -> None:
    message = {"id": number, "action": action, **about}
    told = {"kind": "messages", "model": shown.workspace.identity, "board": "one", "messages": [message]}
    shown._hear(shown, told, [])


def commit(shown: Board, number: int, plan: RankPlan) -> None:
    choices = {name: choice.to_dict() for name, choice in plan.choices}
    say(shown, number, "commit", choices=choices, rev=shown.board["rev"], gesture=number, by="hand")


def until(shown: Board, holds: Callable[[], bool], name: str) -> None:
    """Wait for a change of one of its traits after which this holds."""
    news = threading.Event()
    shown.observe(lambda change: news.set(), name)
    while not holds():
        assert news.wait(300)
        news.clear()


def test_a_thumb_in_the_browser_sets_the_plan_in_python_and_its_figure_follows(live: Board) -> None:
    plan = live.plan.with_choice("0", Choice("svd", (4,)))
    commit(live, 1, plan)
    assert live.plan == plan
    assert live.board["heard"] == ["one", 1]
    commit(live, 1, live.plan.with_choice("0", Choice("svd", (2,))))
    assert live.plan == plan, "what comes again was heard"
    until(live, lambda: live.board["depth"] == "thorough" and live.board["done"], "board")
    assert live.score is not None
    assert live.board["score"]["value"] == live.score.value
    assert live.score == live.workspace.scores[live.candidate.plain]
    say(live, 2, "undo")
    assert live.plan != plan


def test_a_plan_set_in_python_is_a_step_of_the_board(live: Board) -> None:
    before = live.plan
    live.plan = before.with_choice("0", Choice("svd", (3,)))
    assert live.board["choices"]["0"]["rank"] == [3]
    assert live.board["can_undo"]
    with pytest.raises(InvalidPlan):
        live.plan = RankPlan("sha256:other")
    say(live, 1, "undo")
    assert live.plan == before


def test_survey_and_front_come_by_themselves(live: Board) -> None:
    until(live, lambda: bool(live.front and live.front["front"]["of"]), "front")
    of = live.front["front"]["of"]["bytes"]
    assert {name for name, _ in of["layers"]} <= {layer.name for layer in live.workspace.profile.layers}
    assert live.survey["points"]


def test_a_question_about_a_held_thumb_is_answered_to_who_asked(live: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, news = list[dict[str, Any]](), threading.Event()
    monkeypatch.setattr(live, "send", lambda content: (sent.append(content), news.set()))
    choices = {"0": {"method": "svd", "rank": [2]}}
    live._hear(live, {"kind": "question", "question": 7, "choices": choices}, [])
    assert news.wait(300)
    assert sent[0]["question"] == 7
    assert 0 <= sent[0]["answer"]["score"]["value"] <= 1
    assert "0" not in dict(live.plan.choices) or dict(live.plan.choices)["0"].rank != (2,), "nothing was committed"


def test_the_network_is_not_changed_and_nothing_runs_once_it_is_closed() -> None:
    network = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shown = board(Workspace.of(network, torch.zeros(1, 12), (torch.randn(90, 12), torch.arange(90) % 3)))
    assert shown._jobs()
    ended(shown)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_can_have_no_figures_is_refused_as_everywhere() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + torch.randn(x.shape[0], 12)

    workspace = Workspace.of(Random().eval(), torch.zeros(1, 12), (torch.randn(40, 12), torch.arange(40) % 12))
    with pytest.raises(Exception, match="random"):
        board(workspace)


def test_what_is_no_workspace_no_plan_or_no_message_is_refused_or_left_alone(live: Board) -> None:
    with pytest.raises(InvalidModel, match="takes a Workspace"):
        board("builtin:iris-mlp")  # type: ignore[arg-type]
    with pytest.raises(InvalidPlan, match="must be a RankPlan"):
        live.plan = None  # type: ignore[assignment]
    before = live.plan
    for nonsense in ("text", {}, {"kind": "messages"}, {"kind": "question", "question": "x"}):
        live._hear(live, nonsense, [])
    say(live, 1, "commit")
    assert live.plan == before
    ended(live)
    with pytest.raises(InvalidPlan, match="was closed"):
        live.plan = before
