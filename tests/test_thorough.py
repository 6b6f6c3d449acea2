"""The thorough correction: every factor of a chain refitted, with planted answers and against explicit rows."""

import itertools
from typing import Any

import pytest
import torch
from awkward_layers import BY_FORM, Awkward, filled, seeded, unlike
from torch import Tensor, nn

from lowrank_core.compression import variable_projection
from lowrank_core.compression.apply import apply
from lowrank_core.compression.correct import CorrectedLayer, Corrector, load_overlay, remarks_text
from lowrank_core.compression.dense_pass import observe
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.compression.unfold import as_matrices, as_weight, output_rows
from lowrank_core.compression.variable_projection import Fit, Moments, chain_matrices, obstacle, refit, refit_table
from lowrank_core.errors import Cancelled
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import METHODS, Method
from lowrank_core.networks.discover import discover
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction, Kind
from lowrank_core.plans.plan import Choice, RankPlan, read_plan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.running.scope import scope
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

RIDGE = 1e-3


def chain_of(stages: tuple[LayerSpec, ...], weights: tuple[Tensor, ...]) -> nn.Sequential:
    """The modules of a chain, its offset zero."""
    chain: Any = nn.Sequential(*(stage.build(dtype=torch.float64) for stage in stages))
    with torch.no_grad():
        for part, weight in zip(chain, weights, strict=True):
            part.weight.copy_(weight)
            if part.bias is not None:
                part.bias.zero_()
    chained: nn.Sequential = chain.requires_grad_(False)
    return chained


def left_over(spec: LayerSpec, chain: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """What is left of the dense rows y, with the best offset: explicitly, sample by sample."""
    rows = output_rows(spec, y) - output_rows(spec, chain(x))
    return float((rows - rows.mean(0)).square().sum(1).mean())


def moments_of(spec: LayerSpec, x: Tensor, y: Tensor) -> Moments:
    equations, rows = NormalEquations(spec), output_rows(spec, y)
    equations.add(x, torch.arange(len(rows)), rows)
    second, _, relation, _ = equations.means(intercept=True)
    return Moments(second, relation, len(rows))


def fitted(awkward: Awkward, method: str, rank: Rank, *, bound: float = 0.0) -> tuple[Fit, dict[str, float]]:
    """The fit, and what is really left over of each depth."""
    spec = awkward.spec
    layer: Any = filled(spec.build(dtype=torch.float64)).requires_grad_(False)
    x = awkward.inputs(30)
    x = torch.tanh(x + 0.5 * x.roll(1, -1)) + 0.3  # neither white nor centred
    y, stages = layer(x), METHODS[method].stages(spec, rank)
    weights = tuple(w.double() for w in METHODS[method].factorize(spec, layer.weight).weights(rank))
    chain, last = chain_of(stages, weights), NormalEquations(stages[-1])
    rows = output_rows(spec, y)
    last.add(chain[:-1](x), torch.arange(len(rows)), rows)
    quick = (*weights[:-1], last.solve(weights[-1], RIDGE, intercept=True)[0])
    assert obstacle(spec, stages) is None
    fit = refit(spec, stages, weights, moments_of(spec, x, y), layer.weight, ridge=RIDGE, bound=bound)
    total = float((rows - rows.mean(0)).square().sum(1).mean())
    left = {
        name: left_over(spec, chain_of(stages, each), x, y) / total
        for name, each in (("none", weights), ("quick", quick), ("thorough", fit.weights))
    }
    pulled = moments_of(spec, x, y).towards(as_matrices(spec, layer.weight), RIDGE)
    left["quick with the ridge"] = pulled.error(chain_matrices(spec, stages, quick))
    assert fit.error / total + 1 == pytest.approx(left["thorough"], abs=1e-9)  # the moments tell what the rows do
    return fit, left


def half(method: str, spec: LayerSpec) -> Rank:
    return tuple(max(1, n // 2) for n in METHODS[method].max_rank(spec))


@pytest.mark.parametrize(
    ("method", "awkward"), unlike([p for p in BY_FORM if p[0].nested or p[1].name == "up-3x2"]), ids=str
)
def test_it_is_never_worse_than_none_nor_with_the_ridge_than_quick(method: Method, awkward: Awkward) -> None:
    fit, left = fitted(awkward, method.name, half(method.name, awkward.spec))
    assert left["thorough"] <= left["none"] + 1e-9
    assert fit.loss <= left["quick with the ridge"] + 1e-9
    stages = method.stages(awkward.spec, half(method.name, awkward.spec))
    assert [tuple(weight.shape) for weight in fit.weights] == [stage.weight_shape for stage in stages]


def test_the_answer_of_a_chain_of_two_is_the_best_there_is() -> None:
    """Of white inputs that is the SVD cut off; of others no change of the factors makes it better."""
    awkward = Awkward("linear", LayerSpec(12, 7), ())
    fit, _ = fitted(awkward, "svd", (3,))
    x = torch.tanh(awkward.inputs(30) + 0.5 * awkward.inputs(30).roll(1, -1)) + 0.3
    layer: Any = filled(awkward.spec.build(dtype=torch.float64)).requires_grad_(False)
    moments = moments_of(awkward.spec, x, layer(x)).towards(layer.weight[None], RIDGE)
    factors = [weight.clone().requires_grad_() for weight in fit.weights]
    product = (factors[1] @ factors[0])[None]
    loss = ((product @ moments.second - 2 * moments.relation) * product).sum()
    assert float(loss.detach()) == pytest.approx(fit.loss, abs=1e-12)
    assert all(float(slope.abs().max()) < 1e-7 for slope in torch.autograd.grad(loss, factors))


@pytest.mark.parametrize("method", ["tucker2", "spatial_svd", "cp3"])
def test_a_layer_that_is_a_chain_is_found_from_factors_that_are_spoilt(method: str) -> None:
    spec = LayerSpec(6, 7, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    rank = half(method, spec) if method != "cp3" else (5,)
    stages = METHODS[method].stages(spec, rank)
    planted = tuple(seeded(stage.weight_shape, seed=n) for n, stage in enumerate(stages))
    spoilt = tuple(weight + 0.2 * seeded(tuple(weight.shape), seed=9) for weight in planted)
    dense = as_weight(spec, chain_matrices(spec, stages, planted))
    x = seeded((20, 6, 7, 8))
    y = torch.nn.functional.conv2d(x, dense, padding=1)
    moments = moments_of(spec, x, y)
    fit = refit(spec, stages, spoilt, moments, dense, ridge=RIDGE, bound=0.0)
    before, total = (moments.error(chain_matrices(spec, stages, each)) for each in (spoilt, planted))
    assert fit.depth == "thorough"
    assert fit.error - total < 2e-3 * (before - total)


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    return nn.Sequential(*layers).eval(), torch.tanh(torch.randn(80, 3, 8, 8)) + 0.2


def plan_of(model: nn.Module, x: Tensor, method: str = "") -> RankPlan:
    profile = discover(model, x[:2])
    methods = {layer.name: method or layer.methods[0].name for layer in profile.layers}
    ranks = {name: half(m, profile.layer(name).spec) for name, m in methods.items()}
    return RankPlan.of(profile.fingerprint, {name: Choice(m, ranks[name]) for name, m in methods.items()})


def corrected(
    model: nn.Module, x: Tensor, plan: RankPlan, kind: Kind, **given: Any
) -> tuple[nn.Module, CorrectedLayer]:
    profile, seen = discover(model, x[:2]), list[CorrectedLayer]()
    factors = FactorStore(model, profile)
    overlay = Corrector(model, profile, factors, lambda: Dataset(x))(plan, Correction(kind), each=seen.append)
    return load_overlay(apply(model, profile, plan, factors), overlay), seen[-1]


def change(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).norm() / model(x).norm())


def test_a_network_answers_more_like_the_dense_one_and_the_same_again() -> None:
    model, x = network()
    plan = plan_of(model, x)
    quick, (thorough, last) = corrected(model, x, plan, "least_squares")[0], corrected(model, x, plan, "thorough")
    assert change(model, thorough, x) < 0.9 * change(model, quick, x)
    again = corrected(model, x, plan, "thorough")[1].overlay
    assert all(torch.equal(value, again[name]) for name, value in last.overlay.items())
    assert {name for name in last.overlay if name.endswith("weight")} == {
        f"{i}.{n}.weight" for i in "025" for n in "01"
    }
    assert remarks_text(last.remarks) == (
        "layer '5': 80 rows tell less than its 288 inputs: what they leave open stays as in the dense layer",
    )


def test_a_single_layer_alone_is_as_in_a_plan_of_one() -> None:
    model, x = network()
    profile = discover(model, x[:2])
    factors = FactorStore(model, profile)
    corrector = Corrector(model, profile, factors, lambda: Dataset(x))
    for rank in ((2,), (4,)):  # the second from sums that are kept
        plan = RankPlan.of(profile.fingerprint, {"2": Choice("svd", rank)})
        whole = corrector(plan, Correction("thorough"))
        alone = corrector.alone(apply(model, profile, plan, factors), plan, Correction("thorough"))
        assert all(torch.equal(whole[name], value) for name, value in alone.items())


@pytest.mark.parametrize("classes", [True, False])
def test_scores_of_classes_are_fitted_by_what_they_say(classes: bool) -> None:
    """What varies most is the same for all classes, so that it tells none from another; as numbers it counts most."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5)).eval()
    with torch.no_grad():
        telling = torch.linalg.qr(torch.cat([torch.ones(5, 1), torch.randn(5, 3)], 1)).Q[:, 1:]
        model[1].weight.copy_(torch.cat([torch.ones(5, 1), 7 * telling], 1))
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
    x = torch.randn(400, 4) * torch.tensor([50.0, 1, 1, 1])
    profile = discover(model, x[:2])
    factors = FactorStore(model, profile)
    plan, kind = RankPlan.of(profile.fingerprint, {"1": Choice("svd", (3,))}), Correction("thorough")
    corrector = Corrector(model, profile, factors, lambda: Dataset(x), classes=lambda: classes)
    small = load_overlay(apply(model, profile, plan, factors), corrector(plan, kind))
    with torch.no_grad():
        alike = model(x).argmax(1) == small(x).argmax(1)
    assert (float(alike.float().mean()) > 0.95) == classes
    assert (change(model, small, x) < 0.1) != classes
    alone = corrector.alone(apply(model, profile, plan, factors), plan, kind)
    assert all(torch.equal(corrector(plan, kind)[name], value) for name, value in alone.items())


def test_what_the_samples_do_not_tell_is_said_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network()
    plan = plan_of(model, x, "svd")
    bad = x.clone()
    bad[7] = torch.nan
    _, last = corrected(model, bad, plan, "thorough")
    assert all(bool(value.isfinite().all()) for value in last.overlay.values())
    assert ("5", "1 of 80 rows are NaN or infinite and were left out") in last.remarks
    _, last = corrected(
        model, x[:1].expand(80, -1, -1, -1), RankPlan.of(plan.fingerprint, {"5": plan.get("5")}), "thorough"
    )
    assert remarks_text(last.remarks) == ("layer '5': all its inputs are alike, so that only its offset is fitted",)
    _, last = corrected(model, x * torch.nan, plan, "thorough")
    assert last.overlay == {}
    assert "so that it is not corrected" in last.remarks[0][1]
    monkeypatch.setattr(variable_projection, "MOMENT_BYTES", 8 * 72**2)
    _, last = corrected(model, x, plan, "thorough")
    assert last.remarks[0] == ("5", "only its last factor is refitted: the moments of its inputs would take 0.0 GB")
    assert "5.0.weight" not in last.overlay
    assert "2.0.weight" in last.overlay


def test_dead_channels_keep_what_the_dense_layer_has_there() -> None:
    model, x = network()
    with torch.no_grad():
        model[0].bias[:3] = -100.0  # type: ignore[index, union-attr]
    plan = plan_of(model, x, "svd")
    after, _ = corrected(model, x, plan, "thorough")
    assert change(model, after, x) < change(model, corrected(model, x, plan, "least_squares")[0], x)
    chain: Any = after[2]  # type: ignore[index]
    whole = torch.einsum("or,rcij->ocij", chain[1].weight[:, :, 0, 0], chain[0].weight)
    dense = model[2].weight  # type: ignore[index, union-attr]
    assert float((whole - dense).detach()[:, :3].norm()) < float(dense.detach()[:, :3].norm())


def test_rows_of_a_table_count_as_often_as_they_are_looked_up() -> None:
    rows, share = seeded((40, 6)), torch.zeros(40, dtype=torch.float64)
    share[:3] = 1 / 3
    plain = METHODS["svd"].factorize(LayerSpec(40, 6, bias=False, table=True), rows).weights((3,))
    fit = refit_table(plain, share, rows, ridge=1e-9)
    assert fit.depth == "thorough"
    torch.testing.assert_close(fit.weights[0][:3] @ fit.weights[1].mT, rows[:3], atol=1e-6, rtol=0)


def test_wide_layers_are_iterated_for_and_come_close_to_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (LayerSpec(24, 16), LayerSpec(16, 24)):
        awkward = Awkward("wide", spec, ())
        exact, _ = fitted(awkward, "svd", (6,))
        monkeypatch.setattr(variable_projection, "WIDE", 4)
        near, _ = fitted(awkward, "svd", (6,))
        monkeypatch.undo()
        assert exact.loss <= near.loss + 1e-6 * abs(exact.loss)
        assert near.loss <= exact.loss + 2e-3 * abs(exact.loss)


def test_it_is_cancelled_inside_of_one_layer() -> None:
    model, x = network()
    looks = itertools.count()
    plan = RankPlan.of(discover(model, x[:2]).fingerprint, {"2": Choice("spatial_svd", (4,))})
    with scope(cancelled=lambda: next(looks) == 6), pytest.raises(Cancelled):
        corrected(model, x, plan, "thorough")
    assert next(looks) == 7


def test_plans_say_which_correction_is_theirs_and_silent_ones_mean_the_quick_one() -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    plan = uniform_plan(workspace.profile, 0.5)
    new = workspace.candidate(plan)
    assert new.correction is not None
    assert new.correction.kind == "thorough"
    assert new.quick == Candidate(plan, workspace.correction)
    written = plan.to_json(correction=new.correction.to_dict())
    assert workspace.candidate_in(read_plan(written)) == new
    for old in (plan.to_json(), plan.to_json(correction={"kind": "least_squares", "samples": 256})):
        assert workspace.candidate_in(read_plan(old)) == new.quick


def test_the_iterations_end_where_they_win_next_to_nothing() -> None:
    asked = []

    def slope(x: Tensor) -> tuple[float, Tensor]:
        asked.append(x)
        return float(scales @ x.square()), 2 * scales * x

    scales = torch.logspace(0, 6, 40, dtype=torch.float64)
    found = variable_projection.minimise(slope, torch.ones(40, dtype=torch.float64), 10_000)
    assert float(scales @ found.square()) < 1e-2 * float(scales.sum())
    assert len(asked) < 200


def test_more_samples_than_usual_bring_rows_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)).eval()
    x = torch.randn(600, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    profile = discover(model, (x[:2],))
    rows = [len(observe(model, profile, Dataset(x[:samples]), 0, 2**30).targets["0"][0]) for samples in (64, 256, 512)]
    assert rows == [64 * 144, 16_384, 32_768]
