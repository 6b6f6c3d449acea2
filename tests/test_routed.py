"""A network that sends each row through one of several layers: compressed, corrected and scored, whatever rows come."""

import pytest
import torch
from torch import Tensor, nn

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.compression import correct
from lowrank_core.scoring.scores import final_score

pytestmark = pytest.mark.usefixtures("one_thread")


class Routed(nn.Module):
    """A gate, and one of four experts for each row; the gate's own rank changes who gets which."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(24, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(4))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        way, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            at = (way == number).nonzero().flatten()
            if len(at):
                y = y.index_add(0, at, expert(x[at]))
        return self.head(y)


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    torch.manual_seed(0)
    x = torch.randn(200, 24)
    return Workspace.of(Routed(), x[:16], x)


def plan(workspace: Workspace, **ranks: int) -> RankPlan:
    choices = {layer.name: Choice("svd", (ranks.get(layer.name, 6),)) for layer in workspace.profile.layers}
    return RankPlan.of(workspace.profile.fingerprint, choices)


@pytest.mark.parametrize("gate", [1, 2, 4])
def test_other_rows_than_in_the_dense_network_are_corrected_for(workspace: Workspace, gate: int) -> None:
    """A gate of rank 1 leaves some experts without any row."""
    chosen = plan(workspace, gate=gate)
    plain, corrected = (
        final_score(workspace.measure(workspace.compress(chosen, correction)))
        for correction in (None, workspace.correction)
    )
    assert corrected.value > plain.value


def test_an_expert_is_fitted_to_what_the_dense_network_sends_it(workspace: Workspace) -> None:
    """Whatever rank the gate has, which takes rows away from it."""
    overlays = [workspace.corrector(plan(workspace, gate=gate), workspace.correction) for gate in (1, 4)]
    name = "experts.0.0.1.weight"
    assert torch.equal(overlays[0][name], overlays[1][name])
    assert not torch.equal(overlays[0][name], workspace.compress(plan(workspace, gate=4)).get_parameter(name))


def test_rows_that_do_not_fit_teach_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a convolution that some images go through, whose inputs are not kept."""
    fresh = Workspace(workspace.opened)
    observed = correct.observe

    def without_states(*given: object) -> correct.DensePass:
        dense = observed(*given)  # type: ignore[arg-type]
        dense.states.clear()
        return dense

    monkeypatch.setattr(correct, "observe", without_states)
    chosen = plan(fresh, gate=2)
    overlay = fresh.corrector(chosen, fresh.correction)
    assert "head.1.weight" in overlay
    assert "experts.0.0.1.weight" not in overlay
