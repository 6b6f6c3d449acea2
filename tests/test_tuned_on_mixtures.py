"""Fine-tuning on mixtures of inputs, from a state it runs on from, and what each pass wins."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.errors import InvalidFile
from lowrank_core.layers.data import BatchAxes, Dataset
from lowrank_core.plans.candidate import Candidate
from lowrank_core.store.documents import sealed
from lowrank_core.training import finetune as training
from lowrank_core.training.finetune import STATE, Epoch, finetune, kept, not_mixed, provenance, read_state
from lowrank_core.training.recipe import Settings, mixed, unmixed
from lowrank_core.training.sweep import state_path

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = Settings(epochs=3, learning_rate=0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def planted() -> Workspace:
    """A first layer of rank 2 by construction; labels that the dense network gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(16, 2) @ torch.randn(2, 12) / 3)  # type: ignore[operator]
            model[2].weight.mul_(3)  # type: ignore[operator]
            seen, new = torch.randn(200, 12), torch.randn(100, 12)
            data = [(x, model(x).argmax(1)) for x in (new, seen)]
    return Workspace.of(model, torch.ones(1, 12), *data)


def at_rank(workspace: Workspace, rank: int) -> Candidate:
    return Candidate(RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (rank,))}))


def weights_of(epoch: Epoch) -> dict[str, Tensor]:
    assert epoch.model is not None
    return epoch.model.state_dict()


def same(one: Epoch, other: Epoch) -> bool:
    a, b = weights_of(one), weights_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- mixtures -------------------------------------------------------------------------------------------------------


def test_a_mixture_is_of_two_samples_and_lies_between_them() -> None:
    found = mixed(Dataset(torch.eye(40), torch.arange(40)), seeded())
    shares = found.inputs
    assert isinstance(shares, Tensor)
    torch.testing.assert_close(shares.sum(1), torch.ones(40))
    assert shares.min() >= 0
    own = shares.diagonal()
    others = shares - torch.diag(own)
    assert ((others > 0).sum(0) <= 1).all(), "each sample is the other one of at most one mixture: a permutation"
    assert ((others > 0).sum(1) <= 1).all()
    assert 0.4 < own.mean() < 0.6
    assert own.min() < 0.1
    assert own.max() > 0.9
    assert found.targets is None
    again, other = (mixed(Dataset(torch.eye(40)), seeded(seed)).inputs for seed in (0, 1))
    assert torch.equal(shares, again)  # type: ignore[arg-type]
    assert not torch.equal(shares, other)  # type: ignore[arg-type]


def test_all_inputs_of_a_sample_are_mixed_alike_along_their_own_batch_axis() -> None:
    rows, steps, shared = torch.eye(8), torch.stack([torch.eye(8).double(), 2 * torch.eye(8).double()]), torch.ones(3)
    axes = BatchAxes((0, 1, None), (0,))
    found = mixed(Dataset({"a": rows, "b": steps, "c": shared}, weights=torch.arange(8.0), axes=axes), seeded())
    inputs = found.inputs
    assert isinstance(inputs, dict)
    torch.testing.assert_close(inputs["b"][1], 2 * inputs["a"].double())
    assert inputs["c"] is shared
    assert inputs["b"].dtype == torch.float64
    torch.testing.assert_close(found.weights, inputs["a"] @ torch.arange(8.0))


@pytest.mark.parametrize(
    ("inputs", "settings", "why"),
    [
        (torch.randn(6, 4), Settings(), ""),
        (torch.rand(6, 4).round(), Settings(), ""),  # black and white pictures
        ((torch.randn(6, 4), torch.randn(6, 2)), Settings(), ""),
        (torch.ones(6, 4, dtype=torch.long), Settings(), "the input holds no numbers to mix"),
        (torch.ones(6, 4, dtype=torch.long), Settings(mix=False), ""),
        ((torch.randn(6, 4), torch.ones(6, 4, dtype=torch.bool)), Settings(), "input 2 holds no numbers to mix"),
        ({"x": torch.randn(6, 4), "mask": torch.randn(6, 4).round().clamp(0, 1)}, Settings(), "input 2 is a mask"),
        ((torch.randn(6, 4), torch.full((6, 4), -torch.inf)), Settings(), "input 2 is a mask"),
        (torch.randn(6, 4), Settings(loss="labels"), "labels teach"),
        (torch.randn(6, 4), Settings(loss="both"), "labels teach"),
    ],
)
def test_what_has_no_mixture_stays_as_it_is(inputs: object, settings: Settings, why: str) -> None:
    assert unmixed(Dataset(inputs), settings).startswith(why)  # type: ignore[arg-type]
    assert bool(unmixed(Dataset(inputs), settings)) == bool(why)  # type: ignore[arg-type]


def test_one_for_all_need_not_be_a_number() -> None:
    places = torch.arange(4)
    assert not unmixed(Dataset((torch.randn(6, 4), places), axes=BatchAxes((0, None), (0,))), Settings())


def test_the_dense_network_answers_the_mixture(planted: Workspace) -> None:
    """Factors of the whole rank answer as it does, whatever is asked, so there is nothing to lose."""
    barely = Settings(epochs=1, learning_rate=1e-6)
    *_, exact = finetune(planted, at_rank(planted, 2), barely)
    assert exact.train_loss is not None
    assert exact.train_loss < 1e-6
    *_, lossy = finetune(planted, at_rank(planted, 1), barely)
    *_, plain = finetune(planted, at_rank(planted, 1), replace(barely, mix=False))
    assert lossy.train_loss is not None
    assert plain.train_loss is not None
    assert lossy.train_loss > 0.01
    assert lossy.train_loss != pytest.approx(plain.train_loss, rel=1e-3)


def test_it_says_where_inputs_are_not_mixed(planted: Workspace) -> None:
    assert not not_mixed(planted, Settings())
    taught = Settings(loss="labels", epochs=1)
    assert not_mixed(planted, taught) == (
        "Inputs are learnt from as they are, not mixed: labels teach, and a mixture has none."
    )
    for settings, mix in ((taught, False), (replace(taught, loss="distill"), True)):
        *_, end = finetune(planted, at_rank(planted, 1), settings)
        told = provenance(planted, settings, at_rank(planted, 1).plan, end)
        assert (told["mix"], told["optimizer"], told["learning_rate"]) == (mix, "sgd", 0.02)


def test_each_optimiser_has_rates_of_its_own() -> None:
    plan = RankPlan.of("sha256:0", {"a": Choice("cp3", (2,))})
    for settings, rate in (
        (Settings(), 0.004),
        (Settings(optimizer="adam"), 5e-4),
        (Settings(optimizer="adam", learning_rate=0.02), 0.02),
    ):
        assert settings.rate(plan) == rate


def test_what_each_pass_won(planted: Workspace) -> None:
    epochs = list(finetune(planted, at_rank(planted, 1), QUICK))
    assert epochs[0].won is None
    for before, after in pairwise(epochs):
        assert after.won == pytest.approx(after.validation - before.validation)


# ---- running on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_running_on_is_one_longer_run(planted: Workspace, tmp_path: Path, optimizer: str) -> None:
    rate = 0.1 if optimizer == "sgd" else 0.01
    first = replace(QUICK, optimizer=optimizer, learning_rate=rate)  # type: ignore[arg-type]
    longer, state = replace(first, run_on=(2, 2)), tmp_path / "state.pt"
    whole = list(finetune(planted, at_rank(planted, 1), longer))
    assert [(epoch.number, epoch.epochs) for epoch in whole] == [(number, 7) for number in range(8)]
    *_, begun = finetune(planted, at_rank(planted, 1), first, state=state)
    assert begun.train_loss == whole[3].train_loss
    for settings in (replace(first, run_on=(2,)), longer):
        going = finetune(planted, at_rank(planted, 1), settings, state=state)
        while next(going).number < settings.passes - 1:
            pass
        going.close()  # and it is stopped before its last epoch each time
    on = list(finetune(planted, at_rank(planted, 1), longer, state=state))
    assert [(e.number, e.train_loss, e.best) for e in on] == [(e.number, e.train_loss, e.best) for e in whole]
    assert same(on[-1], whole[-1])


def test_the_rate_rises_to_half_and_falls_again(planted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noting(self: torch.optim.SGD, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    settings = Settings(epochs=4, learning_rate=0.1, run_on=(2,), patience=100, warm_up=0.25)
    list(finetune(planted, at_rank(planted, 1), settings))
    per_epoch = len(rates) // 6
    first, second = rates[: 4 * per_epoch], rates[4 * per_epoch :]
    assert max(first) == pytest.approx(0.1)
    assert first[-1] < 0.005
    assert max(second) == pytest.approx(0.05)
    assert second[0] < 0.05
    assert second[-1] < 0.005


def test_running_on_after_patience_goes_on_where_it_stopped(planted: Workspace) -> None:
    """At a rate at which every epoch is worse."""
    lost = Settings(epochs=6, learning_rate=10.0, patience=2)
    assert [epoch.number for epoch in finetune(planted, at_rank(planted, 1), lost)] == [0, 1, 2, 3, 4, 5]
    on = list(finetune(planted, at_rank(planted, 1), replace(lost, run_on=(5,))))
    assert on[5].number == 5
    assert 6 <= on[-1].number <= 10


def test_the_run_before_keeps_its_own_file(planted: Workspace, tmp_path: Path) -> None:
    given, longer = at_rank(planted, 1), replace(QUICK, run_on=(1,))
    paths = [state_path(planted, given, settings, tmp_path) for settings in (QUICK, longer)]
    *_, first = finetune(planted, given, QUICK, state=paths[0])
    written = paths[0].read_bytes()
    *_, on = finetune(planted, given, longer, state=paths[1])
    assert paths[0].read_bytes() == written
    assert same(kept(planted, given, QUICK, paths[0])[-1], first)
    assert (on.number, on.epochs) == (4, 4)
    with pytest.raises(InvalidFile, match="another run"):
        next(finetune(planted, given, replace(QUICK, run_on=(2,)), state=paths[1]))


def test_a_state_of_an_older_way_of_training_is_set_aside(
    planted: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, given = tmp_path / "state.pt", at_rank(planted, 1)
    monkeypatch.setattr(training, "VERSION", 1)
    next(finetune(planted, given, QUICK, state=state))
    monkeypatch.undo()
    document = read_state(state)
    del document["training"]  # which a state of version 1 did not say
    torch.save(document, state)
    state.write_bytes(written := sealed(STATE, state.read_bytes()))
    with pytest.raises(InvalidFile, match="an older way of training"):
        kept(planted, given, QUICK, state)
    first, *_, end = finetune(planted, given, QUICK, state=state)
    aside = tmp_path / "state.pt.older-1"
    assert first.notice == (
        f"{state} is of an older way of training, which is not gone on from. "
        f"It is kept as {aside}, and the training begins anew."
    )
    assert aside.read_bytes() == written
    assert end.number == 3
