"""All outputs count: each has a name and a figure, the worst is the score, and none is compressed away unseen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from lowrank_core import Choice, RankPlan, Score, Workspace, compress
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidData, InvalidFile, InvalidModel
from lowrank_core.exports import EXPORTS, Compressed, _reload
from lowrank_core.layers.data import Dataset, run
from lowrank_core.measure.ledger import Ledger
from lowrank_core.plans.candidate import Candidate
from lowrank_core.predict.prediction import noise_table
from lowrank_core.predict.sensitivity import PointFile, change_of, divergence, measured
from lowrank_core.scoring.judging import judge
from lowrank_core.scoring.metrics import AGREEMENT, METRICS, RESEMBLANCE, TOP1, Metric
from lowrank_core.scoring.prefix import Cuts, PrefixStore
from lowrank_core.scoring.scores import final_score, output_scores
from lowrank_core.store.as_json import plain
from lowrank_core.store.lines import append_line, read_lines
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import Settings
from tests.awkward_layers import filled

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 24


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = numbers(96, WIDTH)


class Heads(nn.Module):
    """A body and a head for each width; `answer` puts together what it returns."""

    def __init__(self, **widths: int) -> None:
        super().__init__()
        self.body, self.widths = nn.Linear(WIDTH, 32), widths
        self.heads = nn.ModuleDict({name: nn.Linear(32, width) for name, width in widths.items()})

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        body = self.body(x).relu()
        return {name: head(body) for name, head in self.heads.items()}

    def forward(self, x: Tensor) -> Any:
        return self.parts(x)


class PassedThrough(Heads):
    """Its input comes first among what it answers, and its numbers are whole in between."""

    def forward(self, x: Tensor) -> Any:
        (value,) = self.parts(x).values()
        return x, (value > 0).long(), value


class Alone(Heads):
    """The same without what is passed through."""

    def forward(self, x: Tensor) -> Any:
        (value,) = self.parts(x).values()
        return value


def workspace(model: nn.Module, targets: Tensor | None = None, **about: Any) -> Workspace:
    data = X if targets is None else (X, targets)
    return Workspace.of(filled(model).float(), X[:4], data, X, **about)


def plan(workspace: Workspace, **ranks: int) -> RankPlan:
    names = {layer.name.rpartition(".")[2]: layer.name for layer in workspace.profile.layers}
    return RankPlan.of(workspace.profile.fingerprint, {names[n]: Choice("svd", (r,)) for n, r in ranks.items()})


def score_of(workspace: Workspace, plan: RankPlan) -> Score:
    return final_score(workspace.measure(workspace.compress(plan)))


def r2(ours: Tensor, dense: Tensor) -> float:
    ours, dense = ours.double(), dense.double()
    return float(1 - (ours - dense).square().sum() / (dense - dense.mean(0)).square().sum())


# ---- which outputs are judged ---------------------------------------------------------------------------------------


def test_what_is_passed_through_never_counts():
    """The same figures as of the network that answers with the one output that weights reach."""
    whole, alone = workspace(PassedThrough(a=8)), workspace(Alone(a=8))
    assert whole.judged.names == ("2",)
    assert [output.left for output in whole.judged.outputs] == ["reached by no weight", "not of floating point", ""]
    ranks = plan(whole, body=2)
    score, expected = score_of(whole, ranks), score_of(alone, ranks)
    assert (score.value, score.drop, score.drop_low) == (expected.value, expected.drop, expected.drop_low)
    assert score.drop > 0.1


def test_the_worst_of_three_heads_is_the_score():
    space = workspace(Heads(large=40, middle=16, small=3))
    assert space.judged.names == ("large", "middle", "small")
    assert space.metric is RESEMBLANCE
    broken = plan(space, small=1)
    score = score_of(space, broken)
    inputs = space.reference.dataset.inputs
    ours, dense = (run(model, Dataset(inputs)) for model in (space.compress(broken), space.model))
    expected = {name: r2(ours[name], dense[name]) for name in dense}
    assert {output.name: output.value for output in score.outputs} == pytest.approx(expected)
    assert score.value == pytest.approx(expected["small"])
    assert score.drop == max(output.drop for output in score.outputs) > 0.1
    assert [output.drop for output in score.outputs][:2] == [0, 0]
    assert score.metric == "R2 against the dense network"


def test_a_search_within_a_drop_spares_the_small_head():
    """The head that costs nothing is worth nothing to whoever sees the first output alone."""
    space = workspace(Heads(large=40, small=3))
    found = compress(space.model, X[:4], X, X, max_drop=0.05, correct=False)
    assert {output.name: output.drop <= 0.05 for output in found.score.outputs} == {"large": True, "small": True}
    assert "small: " in str(found)


class Wraps(nn.Module):
    """What `wrap` makes of a network's answer."""

    def __init__(self, network: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.network(x))


LABELS = torch.arange(96) % 5


@pytest.mark.parametrize(
    ("wrap", "targets", "name", "metric"),
    [
        (lambda y: {"aux": y["a"].square().mean(), "logits": y["b"]}, LABELS, "logits", "top-1 accuracy"),
        (lambda y: {"features": y["a"], "logits": y["b"]}, LABELS, "logits", "top-1 accuracy"),
        (lambda y: {"features": y["a"], "scores": y["b"]}, LABELS, "scores", "top-1 accuracy"),
        (lambda y: (y["a"], y["b"]), LABELS, "1", "top-1 accuracy"),
        (lambda y: {"boxes": y["c"], "logits": y["b"]}, numbers(96, 4), "boxes", "R2"),
        (lambda y: {"logits": y["b"], "boxes": y["c"]}, numbers(96, 4), "boxes", "R2"),
    ],
)
def test_with_labels_the_output_that_fits_them_is_judged(wrap, targets, name, metric):
    space = workspace(Wraps(Heads(a=32, b=5, c=4), wrap), targets)
    assert (space.judged.names, space.metric.name) == ((name,), metric)


def test_a_metric_of_a_person_s_own_is_given_the_output_that_fits():
    def error(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) != targets).double().mean())

    space = workspace(Wraps(Heads(a=32, b=5), lambda y: {"features": y["a"], "logits": y["b"]}), LABELS, metric=error)
    logits = run(space.model, Dataset(X))["logits"]
    assert space.dense_score()[0] == pytest.approx(float((logits.argmax(1) != LABELS).double().mean()))


def test_states_of_the_network_are_no_answers():
    def wrap(y: dict[str, Tensor]) -> dict[str, Any]:
        states = {"past_key_values": ((y["b"], y["b"]),), "hidden_states": (y["a"], y["b"]), "attentions": (y["a"],)}
        states |= {"encoder_last_hidden_state": y["b"], "cross_attentions": (y["b"],)}
        return {"last_hidden_state": y["a"], **states, "pooler_output": y["b"]}

    space = workspace(Wraps(Heads(a=8, b=5), wrap))
    assert space.judged.names == ("last_hidden_state", "pooler_output")
    assert {o.left for o in space.judged.outputs if o.name not in space.judged.names} == {
        "a state of the network, no answer"
    }


class Hidden(nn.Module):
    """Weights reach its second and third output where no gradient does; the first is nothing but the input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(WIDTH, 8, batch_first=True), nn.Linear(8, 3)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            states = self.rnn(x.unsqueeze(1))[0][:, 0]
        return x.cos(), states, self.fc(states).detach()


def test_weights_are_disturbed_where_gradients_tell_nothing():
    space = workspace(Hidden())
    assert space.judged.names == ("1", "2")
    assert all(not parameter.requires_grad for parameter in space.model.parameters())


@pytest.mark.parametrize("outputs", [["small"], [1], "small", (-1,), ["1"]])
def test_outputs_are_chosen_by_name_or_place(outputs):
    space = workspace(Heads(large=40, small=3), outputs=outputs)
    assert space.judged.names == ("small",)
    assert space.judged.why.startswith("chosen")
    assert score_of(space, plan(space, large=1)).drop == 0


def test_a_choice_that_cannot_be_made_is_one_line_with_the_names_there_are():
    with pytest.raises(InvalidData, match=r"no output 'lrge'; choose among large, small, or by its place, 0 to 1\.$"):
        _ = workspace(Heads(large=40, small=3), outputs=["lrge"]).judged
    with pytest.raises(InvalidData, match="no output 2; choose among large, small"):
        _ = workspace(Heads(large=40, small=3), outputs=[2]).judged
    with pytest.raises(InvalidData, match="but 0 is reached by no weight"):
        _ = workspace(PassedThrough(a=8), outputs=["0"]).judged
    with pytest.raises(InvalidModel, match=r"^outputs must be a list of names or places.*got 0\.5"):
        workspace(Heads(a=4), outputs=0.5)


def test_other_outputs_of_the_same_network_have_scores_of_their_own(tmp_path: Path):
    space = workspace(Heads(large=40, small=3))
    other = space.judging(["large"])
    broken = plan(space, small=1)
    assert (score_of(space, broken).drop > 0.1, score_of(other, broken).drop) == (True, 0)
    assert (other.profile, other.factors) == (space.profile, space.factors)
    assert space.key != other.key
    assert PointFile(tmp_path, space, None).path != PointFile(tmp_path, other, None).path


# ---- what they are judged by ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "metric"),
    [
        (Alone(a=1), RESEMBLANCE),  # (N, 1) is the largest of itself, whatever it says
        (Wraps(Alone(a=1), lambda y: y[:, 0]), RESEMBLANCE),
        (Alone(a=5), AGREEMENT),
        (Wraps(Alone(a=5), lambda y: {"embedding": y}), RESEMBLANCE),
        (Wraps(Alone(a=12), lambda y: y.view(-1, 3, 2, 2)), RESEMBLANCE),
        (Wraps(Alone(a=12), lambda y: y.view(-1, 3, 4)), RESEMBLANCE),
        (Wraps(Alone(a=12), lambda y: {"logits": y.view(-1, 3, 4)}), AGREEMENT),
        (Wraps(Alone(a=12), lambda y: y.view(-1, 3, 4).log_softmax(-1)), AGREEMENT),
        (Wraps(Heads(a=5, b=4), lambda y: {"pred_boxes": y["b"], "logits": y["a"]}), RESEMBLANCE),
        (Wraps(Heads(a=5, b=4), lambda y: {"start_logits": y["b"], "end_logits": y["a"]}), AGREEMENT),
    ],
    ids=["column", "flat", "scores", "embedding", "image", "rows", "logits", "log-softmax", "boxes", "two-logits"],
)
def test_without_labels_class_scores_are_compared_by_agreement_and_all_else_by_r2(model, metric):
    space = workspace(model)
    assert space.metric is metric
    score = score_of(space, plan(space, body=1))
    assert score.drop > 0.05
    assert score.dense == 1


def test_agreement_of_tokens_counts_places():
    dense = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [1, 0]]])
    ours = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [1, 0]]])
    assert AGREEMENT.score(ours, dense) == 0.5
    assert AGREEMENT.score(ours.movedim(2, 1).unsqueeze(3), dense.movedim(2, 1).unsqueeze(3)) == 0.5  # pixels


def test_tokens_are_not_right_or_wrong_one_by_one():
    space = workspace(Wraps(Alone(a=12), lambda y: {"logits": y.view(-1, 3, 4)}))
    assert not space.judged.right_or_wrong
    found = compress(space.model, X[:4], X, X, max_drop=0.9, correct=False)
    assert found.cost.multiplies < found.dense_cost.multiplies


def test_agreement_by_name_is_refused_where_there_is_one_column():
    with pytest.raises(InvalidData, match=r"agreement compares class scores of two or more columns.*\(1, 1\); name"):
        _ = workspace(Alone(a=1), metric="agreement").judged


def test_what_is_the_same_for_all_samples_is_judged_by_its_own_size():
    """A table of anchors that a layer computes: it has no spread, and may be destroyed all the same."""

    def score(ours: Tensor, dense: Tensor) -> float:
        return RESEMBLANCE.score(ours, dense)

    anchors = numbers(1, 5).expand(40, 5)
    assert score(anchors, anchors) == 1
    assert score(anchors + 1e-7, anchors) == pytest.approx(1, abs=1e-9)
    assert score(torch.zeros(40, 5), anchors) == pytest.approx(0)
    assert score(torch.zeros(40, 5), torch.zeros(40, 5)) == 1
    assert score(torch.ones(40, 5), torch.zeros(40, 5)) == 0
    table = numbers(40, 5) + 1000
    assert score(table.mean(0).expand(40, 5), table) == pytest.approx(0, abs=1e-6)


def test_what_belongs_to_no_single_sample_is_not_judged():
    """Similarities of each sample to all others, as CLIP gives: their number is that of the batch."""
    space = workspace(
        Wraps(Heads(a=8), lambda y: {"embeds": y["a"], "logits": y["a"] @ y["a"].T, "mean": y["a"].mean(0)})
    )
    assert space.judged.names == ("embeds",)
    assert {o.name: o.left for o in space.judged.outputs if o.left} == dict.fromkeys(
        ("logits", "mean"), "without a batch axis"
    )


@pytest.mark.parametrize(
    ("end", "heads", "labels", "metric", "name"),
    [
        (nn.Sigmoid(), 1, torch.arange(96) % 2, None, "binary-probability"),
        (nn.Sigmoid(), 1, torch.arange(96) % 2, "binary", "binary-probability"),
        (nn.Identity(), 1, torch.arange(96) % 2, None, "binary"),
        (nn.Sigmoid(), 4, torch.arange(96)[:, None].expand(-1, 4) % 2, "multilabel-micro-f1", None),
        (nn.Identity(), 4, torch.arange(96)[:, None].expand(-1, 4) % 2, "multilabel-micro-f1", "multilabel-micro-f1"),
        (nn.Softmax(-1), 4, torch.arange(96) % 4, "perplexity", None),
        (nn.Softmax(-1), 4, torch.arange(96) % 4, None, "top-1"),
    ],
)
def test_what_a_network_answers_says_whether_it_is_a_logit_or_a_probability(end, heads, labels, metric, name):
    space = workspace(nn.Sequential(Alone(a=heads), end), labels, metric=metric)
    assert space.metric is METRICS[name or f"{metric}-probability"]
    assert ("probabilities, not logits" in space.judged.why) == space.metric.name.endswith("of probabilities")
    if name == "binary-probability":
        said = run(space.model, Dataset(X))["output"].flatten() > 0.5
        assert 0.2 < said.double().mean() < 0.8
        right = workspace(nn.Sequential(Alone(a=heads), end), said.long(), metric=metric)
        score = score_of(right, plan(right, body=1))
        assert (score.dense, right.judged.right_or_wrong) == (1, True)
        assert score.drop > 0.05


def test_logits_that_are_small_on_the_first_samples_are_logits_all_the_same():
    logits = torch.cat([torch.full((100, 1), 0.3), torch.full((100, 1), -0.3)])
    given = Dataset(logits, (logits > 0).long())
    assert judge(nn.Identity(), given).metric is METRICS["binary"]
    assert judge(nn.Identity(), replace(given, inputs=logits.abs())).metric is METRICS["binary-probability"]


@pytest.mark.parametrize("alone", [True, False])
def test_whole_numbers_are_answers_and_no_scores(alone):
    """As the classes of tokens that a network puts out beside its scores."""

    def ends(y: Tensor) -> dict[str, Tensor]:
        classes = {"classes": (y.view(-1, 3, 4) * 9).argmax(2)}
        return classes if alone else {**classes, "scores": y}

    with pytest.raises(InvalidData, match=r"classes holds whole ones \(int64\), which are answers already; choose"):
        _ = workspace(Wraps(Alone(a=12), ends), **({} if alone else {"outputs": ["classes"]})).judged

    def ones(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs == targets[:, None]).double().mean())

    own = workspace(Wraps(Alone(a=12), ends), torch.ones(96), outputs=["classes"], metric=ones)
    assert own.judged.names == ("classes",)


def test_the_only_output_must_have_a_place_for_each_sample():
    """One row of all samples' numbers was judged as if it had, until a search measured another network."""
    rows = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0))
    with pytest.raises(InvalidData, match=r"output is without a batch axis, \(9,\) for 3 samples"):
        judge(rows, Dataset(torch.ones(5, 4)))
    own = Metric("own", value=lambda outputs, targets: 1.0)
    assert judge(rows, Dataset(torch.ones(5, 4), torch.ones(5)), own).names == ("output",)


def test_numbers_as_targets_are_judged_by_r2_and_it_is_said():
    space = workspace(Alone(a=3), numbers(96, 3))
    assert space.metric is METRICS["r2"]
    assert space.judged.why == "the only output; targets are numbers of its shape"
    with pytest.raises(InvalidData, match=r"numbers of the output's shape.*got \(96, 2\) torch.float32"):
        _ = workspace(Alone(a=3), numbers(96, 2)).judged


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("broken", "within"), [("none", True), ("second", False), ("first", False)])
def test_a_verdict_is_that_of_all_outputs(broken, within):
    """One output keeps every answer, the other loses them: however good the one is, that is too much."""
    model = Wraps(Heads(a=2), lambda y: (y["a"], y["a"] + 1))
    space = workspace(model, run(filled(model).float().eval(), Dataset(X))["0"].argmax(1), outputs=[0, 1])

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = space.model(x)
            return first.flip(1) if broken == "first" else first, second.flip(1) if broken == "second" else second

    score = final_score(space.measure(Broken(), tolerance=0.2, keep=False))
    drops = {"none": (0, 0), "first": (1, 0), "second": (0, 1)}[broken]
    assert tuple(output.drop for output in score.outputs) == drops
    assert (score.drop, score.within) == (max(drops), within)


def test_prefixes_give_back_all_outputs_bit_for_bit():
    space = workspace(Heads(large=40, small=3))
    store = PrefixStore(Cuts(space.model, space.profile, space.reference.dataset, ("large", "small")))
    part = space.reference.dataset.pick(slice(0, 64))
    for rank in (1, 2, 3):
        model = space.compress(plan(space, small=rank))
        runner = store.runner(model, 64, record=[1, 2])
        outputs, whole = runner(part, 0), run(model, part)
        assert all(torch.equal(outputs[name], whole[name]) for name in whole)
        assert runner.reused == (rank > 1)


def test_one_number_for_the_change_of_all_outputs_is_that_of_the_worst():
    dense = {"a": numbers(50, 4), "b": 100 * numbers(50, 2, seed=1)}
    ours = {"a": dense["a"], "b": dense["b"] + 50 * numbers(50, 2, seed=2)}
    relative = float((ours["b"] - dense["b"]).double().square().mean() / dense["b"].double().var(correction=0))
    assert change_of(ours, dense) == pytest.approx(relative * float(dense["a"].double().var(correction=0)))
    assert divergence(RESEMBLANCE, ours, dense) == pytest.approx(relative)
    alone = {"b": dense["b"]}
    assert change_of(ours, alone) == pytest.approx(float((ours["b"] - dense["b"]).double().square().mean()))


def test_a_layer_of_a_small_head_has_a_curve_and_the_prediction_falls_for_all():
    space = workspace(Heads(large=40, small=3))
    points = list(measured(space, asks=[("heads.small", Choice("svd", (1,))), ("heads.large", Choice("svd", (1,)))]))
    assert all(point.loss > 0.1 and point.change > 0 for point in points)
    table = noise_table(space.reference)
    assert table.score[0] > 0.999 > 0.5 > table.score[-1]
    for number in (10, 25, 40):  # each output gets its own share of the noise
        noisy = {
            name: values + (torch.e ** table.log_variance[number] * float(values.var()) / table.rough) ** 0.5
            * numbers(*values.shape, seed=9)
            for name, values in run(space.model, Dataset(space.reference.dataset.inputs)).items()
        }  # fmt: skip
        dense = run(space.model, Dataset(space.reference.dataset.inputs))
        worst = min(score.value for score in output_scores(RESEMBLANCE, noisy, dense, None))
        assert table.score[number] == pytest.approx(worst, abs=0.1 * (1 - worst) + 0.01)


def test_training_teaches_every_output_that_is_judged():
    space = workspace(Heads(large=40, small=3))
    candidate = Candidate(plan(space, large=4, small=2))
    *_, last = finetune(space, candidate, Settings(epochs=8))
    before = {output.name: output.drop for output in score_of(space, candidate.plan).outputs}
    assert last.model is not None
    after = {output.name: output.drop for output in final_score(space.measure(last.model, keep=False)).outputs}
    assert after["large"] < before["large"]
    assert after["small"] < before["small"]


def test_scores_written_before_outputs_had_names_are_read(tmp_path: Path):
    score = score_of(space := workspace(Heads(a=4, b=3)), plan(space, a=1))
    assert plain(score)["outputs"] == [{"name": o.name, "value": o.value, "drop": o.drop} for o in score.outputs]
    old = {key: value for key, value in plain(score).items() if key != "outputs"}
    append_line(tmp_path / "old", ("key", old))
    (found,) = read_lines(tmp_path / "old", tuple[str, Score | float])
    assert (found[1].drop, found[1].outputs) == (score.drop, ())
    append_line(tmp_path / "new", ("key", score))
    assert next(iter(read_lines(tmp_path / "new", tuple[str, Score | float])))[1] == score
    assert Ledger(tmp_path / "new").remembered("key", lambda: 0.0) == score


# ---- files ----------------------------------------------------------------------------------------------------------


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process: a fresh one takes seconds and has tests of its own."""

    def outputs(kind: str, ref: Any, written: Path, batches: list[Any], own_seconds: float) -> list[dict[str, Tensor]]:
        return [_reload.READERS[kind](ref, str(written))(inputs) for inputs in batches]

    monkeypatch.setattr(_reload, "outputs_in_fresh_process", outputs)


@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors"])
def test_exports_keep_all_outputs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch)
    model = Wraps(Heads(a=5, b=4), lambda y: {"x": y["a"], "boxes": (y["b"], y["a"] * 2), "ids": y["a"].argmax(1)})
    space = workspace(model, outputs=["x"])
    small = space.compress(plan(space, body=8))
    written = EXPORTS[kind].write(space, Compressed(small, plan(space, body=8)), tmp_path / "file")
    ours = run(small, Dataset(X[:7]))
    theirs = _reload.READERS[kind](space.model, written.path)(X[:7])
    assert list(theirs) == list(ours) == ["x", "boxes.0", "boxes.1", "ids"]
    for name, values in ours.items():
        torch.testing.assert_close(theirs[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spoilt", ["a", "b"])
def test_a_file_is_refused_for_any_output(spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def outputs(kind: str, ref: Any, written: Path, batches: list[Any], own_seconds: float) -> list[dict[str, Tensor]]:
        found = [_reload.READERS[kind](ref, str(written))(inputs) for inputs in batches]
        found[-1][spoilt] = found[-1][spoilt] + 0.5
        return found

    monkeypatch.setattr(_reload, "outputs_in_fresh_process", outputs)
    space = workspace(Heads(a=5, b=4), outputs=["a"])
    with pytest.raises(InvalidFile, match=f"those of '{spoilt}' differ by 0.5"):
        EXPORTS["onnx"].write(space, Compressed(space.model, plan(space)), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_onnx_with_several_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Written by our own export, read again: names, figures and a choice in the .npz; surgery keeps all outputs."""
    here(monkeypatch)
    path, given = tmp_path / "net.onnx", workspace(PassedThrough(a=8))
    EXPORTS["onnx"].write(given, Compressed(given.model, plan(given)), path)
    space = Workspace.open(str(path))
    assert space.judged.names == ("2",)
    heads = workspace(Heads(large=40, small=3))
    EXPORTS["onnx"].write(heads, Compressed(heads.model, plan(heads)), path)
    np.savez(path.with_suffix(".npz"), inputs=X.numpy())
    space = Workspace.open(str(path))
    assert space.judged.names == ("large", "small")
    small = {layer.name: layer for layer in space.profile.layers if layer.spec.out_channels == 3}
    ranks = RankPlan.of(space.profile.fingerprint, {name: Choice("svd", (1,)) for name in small})
    expected = score_of(heads, plan(heads, small=1))
    assert score_of(space, ranks).drop == pytest.approx(expected.drop, rel=1e-4)
    EXPORTS["onnx"].write(space, Compressed(space.compress(ranks), ranks), tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert [output.name for output in session.get_outputs()] == ["large", "small"]
    np.savez(path.with_suffix(".npz"), inputs=X.numpy(), outputs=["large"])
    assert score_of(Workspace.open(str(path)), ranks).drop == pytest.approx(0, abs=1e-6)
    np.savez(path.with_suffix(".npz"), inputs=X.numpy(), outputs=[0.5])
    with pytest.raises(InvalidData, match="outputs must be an array of names or places"):
        Workspace.open(str(path))


def test_an_output_that_is_called_as_an_input_keeps_apart_in_onnx():
    from lowrank_core.graphs.exporting import onnx_program

    model = Wraps(Heads(a=5), lambda y: {"input": y["a"], "other": y["a"] + 1})
    proto = onnx_program(filled(model).float().eval(), X[:4])
    assert [value.name for value in proto.graph.output] == ["input_out", "other"]
    onnx.checker.check_model(proto)


# ---- commands -------------------------------------------------------------------------------------------------------

FILE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__(); torch.manual_seed(0)
        self.body = nn.Linear(24, 32); self.large = nn.Linear(32, 40); self.small = nn.Linear(32, 3)
    def forward(self, x):
        y = self.body(x).relu()
        return {"ids": x, "large": self.large(y), "small": self.small(y)}
def build_model(): return Net().eval()
X = torch.randn(96, 24, generator=torch.Generator().manual_seed(1))
def example_inputs(): return (X[:4],)
def eval_data(): return X, None
"""


def answer(*arguments: object) -> Any:
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_commands_say_what_is_judged_and_take_a_choice(tmp_path: Path):
    path, out = tmp_path / "net.py", tmp_path / "plan.json"
    path.write_text(FILE)
    told = answer("check", path)
    assert told["judged"]["outputs"] == ["large", "small"]
    assert {o["name"]: o["left"] for o in told["outputs"]} == {"ids": "reached by no weight", "large": "", "small": ""}
    found = answer("search", path, "--multiplies", 0.5, "--out", out)
    assert found["judged"]["outputs"] == ["large", "small"]
    assert [output["name"] for output in found["score"]["outputs"]] == ["large", "small"]
    assert found["score"]["drop"] == max(output["drop"] for output in found["score"]["outputs"])
    both = answer("evaluate", path, "--plan", out)
    assert both["drop"] == found["score"]["drop"]
    small = answer("evaluate", path, "--plan", out, "--outputs", "small")
    assert small["judged"]["outputs"] == ["small"]
    assert small["drop"] == next(output["drop"] for output in both["outputs"] if output["name"] == "small")
    path.write_text(FILE + 'outputs = ["small"]\n')
    assert answer("evaluate", path, "--plan", out)["drop"] == small["drop"]
    assert answer("profile", path, "--outputs", 1, "--samples", 32)["judged"]["outputs"] == ["large"]
    done = CliRunner().invoke(cli, ["evaluate", str(path), "--outputs", "tiny"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "there is no output 'tiny'; choose among ids, large, small" in done.stderr


# ---- networks of others ---------------------------------------------------------------------------------------------


def test_a_sentence_encoder_is_judged_by_both_its_outputs():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    tokens = {"input_ids": torch.randint(50, (40, 6), generator=torch.Generator().manual_seed(0))}
    space = Workspace.of(transformers.BertModel(config).eval(), tokens, tokens)
    assert space.judged.names == ("last_hidden_state", "pooler_output")
    broken = RankPlan.of(space.profile.fingerprint, {"pooler.dense": Choice("svd", (1,))})
    drops = {output.name: output.drop for output in score_of(space, broken).outputs}
    assert drops["last_hidden_state"] == 0
    assert drops["pooler_output"] > 0.2


def test_judge_looks_at_few_samples_of_any_number():
    model = filled(Heads(a=4, b=3)).float().eval()
    for samples in (1, 2, 50):
        assert judge(model, Dataset(X[:samples])).names == ("a", "b")
    assert judge(model, Dataset(X[:5], torch.arange(5) % 3), TOP1).names == ("b",)
