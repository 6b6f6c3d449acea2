"""Answers to single samples: who changed, by how much, in which order, whatever an answer is; planted and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import run
from lowrank_core.measure.answers import MOST, Answers, Gathered, answers_of
from lowrank_core.measure.measurement import figures, measurement
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")


def network(outputs: int, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, outputs), *([last] if last else []))


def given(samples: int = 150, *more: int) -> Tensor:
    return torch.randn(samples, *more, 12, generator=torch.Generator().manual_seed(1))


def at_rank(workspace: Workspace, rank: int) -> Candidate:
    return Candidate(RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (rank,))}))


def both(workspace: Workspace, candidate: Candidate) -> tuple[Tensor, Tensor]:
    """The answers of the dense network and of the candidate to all samples, computed here once more."""
    data, (name,) = workspace.reference.dataset, workspace.judged.names
    return run(workspace.model, data)[name], run(workspace.compress(candidate.plan), data)[name]


def test_those_that_changed_come_first_and_most_first() -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    candidate = Candidate(RankPlan.of(workspace.profile.fingerprint, {"conv3": Choice("spatial_svd", (9,))}))
    found = answers_of(workspace, candidate)
    dense, ours = (values.softmax(1) for values in both(workspace, candidate))
    was, now, targets = dense.argmax(1), ours.argmax(1), workspace.reference.dataset.targets
    assert targets is not None
    assert MOST < found.changed == int((was != now).sum()) < found.samples == len(targets)
    for pair in found.pairs:
        at = pair.sample
        assert was[at] != now[at]
        assert (pair.changed, pair.dense.label, pair.ours.label) == (True, int(was[at]), int(now[at]))
        assert pair.target == int(targets[at])
        assert pair.dense.probability == pytest.approx(float(dense[at].max()), rel=1e-4)
        assert pair.ours.probability == pytest.approx(float(ours[at].max()), rel=1e-4)
    lost = (dense - ours).gather(1, was[:, None])[:, 0].masked_fill(was == now, -2)
    assert [pair.sample for pair in found.pairs] == lost.topk(MOST).indices.tolist()


@pytest.mark.parametrize(
    ("metric", "outputs", "targets"),
    [(None, 5, torch.arange(150) % 5), ("binary", 1, torch.arange(150) % 2), ("mse", 2, torch.zeros(150, 2)),
     ("cosine", 16, None), ("r2", 1, torch.arange(150.0))],
)  # fmt: skip
def test_a_plan_that_loses_nothing_changes_no_answer(metric, outputs, targets) -> None:
    data = given() if targets is None else (given(), targets)
    workspace = Workspace.of(network(outputs), torch.zeros(1, 12), data, metric=metric)
    found = answers_of(workspace, at_rank(workspace, 12))
    assert (found.samples, found.changed) == (150, 0)
    assert [pair.sample for pair in found.pairs] == list(range(MOST)), "the first ones, the same at every release"
    assert answers_of(workspace, at_rank(workspace, 1)).changed > 0


def test_numbers_have_changed_where_they_moved_by_a_share_of_the_spread() -> None:
    workspace = Workspace.of(network(2), torch.zeros(1, 12), (given(), torch.zeros(150, 2)), metric="mse")
    candidate = at_rank(workspace, 11)
    found, (dense, ours) = answers_of(workspace, candidate), both(workspace, candidate)
    away = (ours - dense).norm(dim=1)
    spread = (dense - dense.mean(0)).square().sum(1).mean().sqrt()
    assert found.kind == "numbers"
    assert 0 < found.changed == int((away > 0.01 * spread).sum()) < 150
    assert [pair.sample for pair in found.pairs] == away.topk(MOST).indices.tolist()
    first = found.pairs[0]
    assert first.ours.numbers == pytest.approx(ours[first.sample].tolist(), rel=1e-5)
    assert first.dense.numbers == pytest.approx(dense[first.sample].tolist(), rel=1e-5)


def test_an_embedding_is_told_by_its_angle() -> None:
    workspace = Workspace.of(network(16), torch.zeros(1, 12), given(), metric="cosine")
    candidate = at_rank(workspace, 3)
    found, (dense, ours) = answers_of(workspace, candidate), both(workspace, candidate)
    pair = found.pairs[0]
    assert found.kind == "vector"
    assert pair.cosine == pytest.approx(float(torch.cosine_similarity(dense, ours)[pair.sample]), abs=1e-5)


def test_of_sequences_the_tokens_are_told_that_changed_and_padding_is_none() -> None:
    targets = torch.arange(60 * 7).reshape(60, 7) % 5
    targets[:, 5:] = -100
    workspace = Workspace.of(network(5), torch.zeros(1, 7, 12), (given(60, 7), targets), metric="perplexity")
    candidate = at_rank(workspace, 2)
    found, (dense, ours) = answers_of(workspace, candidate), both(workspace, candidate)
    moved = (dense.argmax(2) != ours.argmax(2))[:, :5]
    assert (found.kind, found.classes) == ("places", 5)
    assert found.changed == int(moved.any(1).sum())
    for pair in found.pairs:
        assert (pair.moved, pair.total) == (int(moved[pair.sample].sum()), 5)
        assert [place.place for place in pair.places] == moved[pair.sample].nonzero().flatten().tolist()[:4]
    one = found.pairs[0].places[0]
    assert one.ours == int(ours[found.pairs[0].sample, one.place].argmax()) != one.dense


def test_yes_and_no_have_the_probability_of_what_is_said() -> None:
    workspace = Workspace.of(network(1), torch.zeros(1, 12), (given(), torch.arange(150) % 2), metric="binary")
    candidate = at_rank(workspace, 1)
    found, (dense, _) = answers_of(workspace, candidate), both(workspace, candidate)
    pair = found.pairs[0]
    logit = float(dense[pair.sample])
    assert found.kind == "binary"
    assert pair.dense.label == int(logit > 0)
    assert pair.dense.probability == pytest.approx(float(torch.tensor(abs(logit)).sigmoid()), rel=1e-5)


def test_probabilities_are_taken_as_they_are() -> None:
    workspace = Workspace.of(network(4, nn.Softmax(1)), torch.zeros(1, 12), (given(), torch.arange(150) % 4))
    found, (dense, _) = answers_of(workspace, at_rank(workspace, 2)), both(workspace, at_rank(workspace, 2))
    pair = found.pairs[0]
    assert pair.dense.probability == pytest.approx(float(dense[pair.sample].max()), rel=1e-5)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = network(3), network(3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"near": self.near(x), "far": self.far(x)}


def test_of_several_outputs_it_is_the_one_that_the_figure_is_of() -> None:
    workspace = Workspace.of(Heads(), torch.zeros(1, 12), given(), outputs=["near", "far"])
    plan = RankPlan.of(workspace.profile.fingerprint, {"far.0": Choice("svd", (1,))})
    found = answers_of(workspace, Candidate(plan))
    assert found.output == "far"
    assert found.changed > 0


def test_an_answer_that_is_not_finite_has_changed_most() -> None:
    workspace = Workspace.of(network(3), torch.zeros(1, 12), (given(20), torch.arange(20) % 3))
    reference = workspace.reference
    (part, dense), (name,) = next(reference.batches()), reference.outputs
    broken = dense[name].clone()
    broken[4] = torch.nan
    gathered = Gathered(workspace)
    gathered(part, {name: broken}, dense)
    (score,) = workspace.measure(workspace.model, samples=20)
    found = gathered.answers(score)
    assert found.changed == 1
    assert (found.pairs[0].sample, found.pairs[0].finite, found.pairs[0].ours.label) == (4, False, -1)


def test_whoever_measures_is_told_on_the_way_and_runs_nothing_twice(monkeypatch) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    candidate = workspace.quick(
        workspace.candidate(RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (3,))}))
    )
    heard: list[Answers] = []
    counts = [len(heard) for figure in figures(workspace, candidate, told=lambda _, answers: heard.append(answers))
              if figure.final]  # fmt: skip
    assert counts[0] == len(heard), "all of it before the score is final"
    assert [answers.samples for answers in heard[:3]] == [64, 128, 256]
    assert heard[-1] == answers_of(workspace, candidate)

    monkeypatch.setattr(Workspace, "measure", None)
    job = measurement(workspace, candidate, told=lambda *_: heard.clear())
    assert job.wait().error is None
    assert heard, "nothing is measured where the score is known"


def test_a_model_file_that_scores_itself_has_no_single_answers() -> None:
    workspace = Workspace.of(network(3), torch.zeros(1, 12), evaluate=lambda model: 1.0)
    with pytest.raises(InvalidModel, match="scores itself"):
        answers_of(workspace, at_rank(workspace, 2))
