"""Rules from the literature that never look at a score: planted ranks come back, optima are those of brute force."""

import copy
from collections import OrderedDict
from dataclasses import replace
from itertools import product

import pytest
import torch
from awkward_layers import seeded
from torch import Tensor, nn

from lowrank_core.algebra.vbmf import evbmf, evbmf_of
from lowrank_core.compression.calibration import moment_bytes
from lowrank_core.errors import InvalidSearch
from lowrank_core.layers.data import Dataset
from lowrank_core.plans.cost import plan_cost, useful_rank
from lowrank_core.plans.plan import Choice
from lowrank_core.predict.sensitivity import asked
from lowrank_core.scoring.metrics import AGREEMENT
from lowrank_core.selection import RULES, balf, make
from lowrank_core.selection._problem import problem_of
from lowrank_core.sources._opened import Opened
from lowrank_core.workspace import Workspace

PUBLISHED = ("energy", "relative_error", "evbmf", "lc", "balf", "alds")
ALONE = ("energy", "relative_error", "evbmf", "alds")
MATRIX = {"balf": ("svd_aware",)}

pytestmark = pytest.mark.usefixtures("one_thread")


def opened(inputs: Tensor, **layers: nn.Module) -> Workspace:
    model, data = nn.Sequential(OrderedDict(layers)).eval(), Dataset(inputs, None)
    return Workspace(Opened("net", "net", "", model, (inputs[:2],), lambda: data, None, lambda _: AGREEMENT))


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer.weight.data = (weight / weight.norm() * 2).reshape(layer.weight.shape).to(layer.weight)
    return layer


def of_rank(layer: nn.Module, rank: int, seed: int) -> nn.Module:
    rows, columns = layer.weight.flatten(1).shape
    return with_weight(layer, seeded((rows, rank), seed) @ seeded((rank, columns), seed + 1))


PLANTED = {"a": 3, "b": 5, "c": 2}


@pytest.fixture(scope="module")
def planted() -> Workspace:
    """Layers of rank 3, 5 and 2."""
    return opened(
        seeded((64, 16, 5, 5), dtype=torch.float32),
        a=of_rank(nn.Conv2d(16, 24, 3, bias=False), 3, 1),
        r=nn.ReLU(),
        f=nn.Flatten(),
        b=of_rank(nn.Linear(216, 40), 5, 3),
        s=nn.ReLU(),
        c=of_rank(nn.Linear(40, 20), 2, 5),
    )


@pytest.fixture(scope="module")
def trained() -> Workspace:
    """Decaying spectra, small enough to try every plan: two Linears, a convolution with 16 inputs."""
    conv = with_weight(nn.Conv2d(16, 8, 3), decaying(8, 144, 0.8, 9))
    maps = [with_weight(nn.Linear(m, n), decaying(n, m, d, s)) for m, n, d, s in [(72, 12, 0.6, 1), (12, 14, 0.9, 2)]]
    return opened(
        seeded((80, 16, 5, 5), dtype=torch.float32),
        conv=conv,
        r=nn.ReLU(),
        f=nn.Flatten(),
        one=maps[0],
        s=nn.ReLU(),
        two=maps[1],
    )


@pytest.fixture(scope="module")
def scaled(trained) -> Workspace:
    """The same, with weights of unequal norm."""
    model = copy.deepcopy(trained.model)
    for name, scale in (("conv", 3.0), ("one", 0.2)):
        model.get_submodule(name).weight.data *= scale
    return Workspace(replace(trained.opened, model=model))


def decaying(rows: int, columns: int, decay: float, seed: int) -> Tensor:
    left, _, right = torch.linalg.svd(seeded((rows, columns), seed), full_matrices=False)
    return left * decay ** torch.arange(len(right)) @ right


def plan_of(rule: str, workspace: Workspace, settings: dict[str, str] | None = None, **wishes):
    """The plan of a rule with what it is published with, unmeasured."""
    made = make(rule, settings or {})
    problem = problem_of(workspace, **({"methods": made.methods} | wishes))
    *_, last = made.search(problem)
    assert last.score is None
    return last.candidate.plan, problem


# ---- every rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", PUBLISHED)
def test_a_budget_of_the_planted_ranks_is_spent_on_them(rule, planted):
    wanted = {name: Choice(MATRIX.get(rule, ("svd",))[0], (rank,)) for name, rank in PLANTED.items()}
    budget = plan_cost(planted.profile, problem_of(planted).plan(wanted)).bytes
    plan, _ = plan_of(rule, planted, bytes=budget, methods=MATRIX.get(rule, ("svd",)))
    assert dict(plan.choices) == wanted


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("energy", {"keep": "0.999999"}),
        ("relative_error", {"epsilon": "1e-3"}),
        ("evbmf", {"strength": "1"}),
        ("alds", {"epsilon": "1e-3"}),
    ],
)
def test_settings_alone_find_the_planted_ranks(rule, settings, planted):
    plan, _ = plan_of(rule, planted, settings, methods=("svd",))
    assert {name: choice.rank for name, choice in plan.choices} == {name: (rank,) for name, rank in PLANTED.items()}


@pytest.mark.parametrize(
    ("budgets", "multiple_of"),
    [({"multiplies": 0.5}, 1), ({"bytes": 0.7}, 4), ({"multiplies": 0.7, "bytes": 0.5}, 4)],
    ids=str,
)
@pytest.mark.parametrize("rule", PUBLISHED)
def test_budgets_are_kept_and_spent(rule, budgets, multiple_of, planted):
    plan, problem = plan_of(rule, planted, multiple_of=multiple_of, lock=["c"], **budgets)
    assert problem.fits(plan)
    assert set(dict(plan.choices)) <= {"a", "b"}
    for name, choice in plan.choices:
        assert all(r % multiple_of == 0 for r in choice.rank)
        layer = planted.profile.layer(name)
        if len(choice.rank) == 1:
            assert choice.rank <= useful_rank(layer, choice.method)
        assert problem.layer_amount(layer, choice, "bytes") < problem.layer_amount(layer, None, "bytes")
    again, _ = plan_of(rule, planted, multiple_of=multiple_of, lock=["c"], **budgets)
    assert plan == again


@pytest.mark.parametrize("rule", PUBLISHED)
def test_a_larger_budget_is_made_use_of(rule, trained):
    spent = []
    for share in (0.4, 0.6, 0.8, 0.95, 1.0):
        plan, problem = plan_of(rule, trained, bytes=share)
        spent.append(problem.amount("bytes", plan) / problem.amount("bytes"))
        assert spent[-1] > share - 0.25
    assert spent == sorted(spent)


@pytest.mark.parametrize("rule", PUBLISHED)
def test_rules_serve_what_they_say(rule):
    assert RULES[rule].serves == ({"budget", "nothing"} if rule in ALONE else {"budget"})
    assert RULES[rule].__doc__.splitlines()[0].endswith((".", "budget", "budget."))


@pytest.mark.parametrize(
    ("rule", "settings"),
    [("energy", {"keep": "0"}), ("relative_error", {"epsilon": "-1"}), ("evbmf", {"strength": "2"})],
)
def test_settings_out_of_bounds_are_refused(rule, settings):
    with pytest.raises(InvalidSearch, match="must be from"):
        make(rule, settings)


# ---- energy and relative error --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps() -> Workspace:
    """One layer whose squared singular values are 8, 4, 2, 1, 1 sixteenths."""
    values = torch.tensor([8.0, 4, 2, 1, 1] + 15 * [0.0], dtype=torch.float64).sqrt()
    left, _, right = torch.linalg.svd(seeded((20, 30)), full_matrices=False)
    return opened(seeded((20, 30), dtype=torch.float32), fc=with_weight(nn.Linear(30, 20), left * values @ right))


@pytest.mark.parametrize(("keep", "rank"), [(0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.88, 4), (0.99, 5)])
def test_energy_of_a_known_spectrum(keep, rank, steps):
    plan, _ = plan_of("energy", steps, {"keep": str(keep)})
    assert plan.get("fc").rank == (rank,)
    plan, _ = plan_of("relative_error", steps, {"epsilon": str((1 - keep) ** 0.5)})
    assert plan.get("fc").rank == (rank,)
    plan, _ = plan_of("energy", steps, {"keep": str(keep)}, multiple_of=4)
    assert plan.get("fc").rank == (4 if rank <= 4 else 8,)


@pytest.mark.parametrize("rule", ["energy", "relative_error"])
def test_what_no_paying_rank_reaches_stays_dense(rule, trained):
    plan, _ = plan_of(rule, trained, {"energy": {"keep": "0.999"}, "relative_error": {"epsilon": "0.03"}}[rule])
    assert plan.get("two") is None
    assert plan.get("one") is not None


def test_both_axes_of_tucker_keep_the_energy(trained):
    plan, problem = plan_of("energy", trained, {"keep": "0.7"}, methods=("tucker2", "svd"))
    spectra = problem.workspace.factors("conv", "tucker2").spectra
    for spectrum, rank in zip(spectra, plan.get("conv").rank, strict=True):
        energy = spectrum.square().cumsum(0) / spectrum.square().sum()
        assert energy[rank - 1] >= 0.7
        assert rank == 1 or energy[rank - 2] < 0.7


def test_a_rank_that_pays_is_allowed_on_both_sides_of_the_path(trained):
    """(8, 2) is cheaper than dense although the output axis alone is beyond the break-even of equal shares."""
    problem = problem_of(trained)
    layer = trained.profile.layer("conv")
    assert useful_rank(layer, "tucker2")[0] < 8
    assert problem.choice(layer, "tucker2", (8, 2)) == Choice("tucker2", (8, 2))
    assert problem.choice(layer, "tucker2", (8, 16)) is None
    assert problem.choice(layer, "tucker2", (9, 1)) is None


# ---- EVBMF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1e-6, 0.3])
@pytest.mark.parametrize("shape", [(16, 144), (40, 60), (64, 64), (8, 500)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 6])
def test_a_planted_rank_stands_out_of_the_noise(rank, shape, noise):
    rows, columns = shape
    signal = seeded((rows, rank), 1) @ seeded((rank, columns), 2)
    matrix = signal + noise * seeded(shape, 3)
    found = evbmf(matrix)
    assert found.rank == rank
    assert found.noise_variance == pytest.approx(noise**2, rel=0.35)
    assert evbmf(1e4 * matrix).rank == evbmf(matrix.mT).rank == rank


def test_signal_below_the_threshold_is_noise():
    """A value just above or below the edge of the noise's own: the rank follows the noise, not the signal."""
    signal = torch.outer(seeded((40,), 1), seeded((60,), 2))
    assert evbmf(signal + seeded((40, 60), 3)).rank == 1
    assert evbmf(signal + 20 * seeded((40, 60), 3)).rank == 0


@pytest.mark.parametrize("shape", [(4, 4), (1, 30), (30, 1), (5, 3)], ids=str)
def test_zeros_and_single_rows_have_no_rank(shape):
    assert evbmf(torch.zeros(shape)).rank == 0
    if min(shape) == 1:
        assert evbmf(seeded(shape)).rank == 0


def test_an_exact_rank_needs_no_noise():
    assert evbmf(seeded((12, 4)) @ seeded((4, 30), 1)).rank == 4
    assert evbmf_of(torch.tensor([3.0, 1, 0, 0]), 4, 9).rank == 2


def test_evbmf_makes_no_square_of_the_long_side(monkeypatch):
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, full_matrices=True, **k: pytest.fail("a full SVD"))
    assert evbmf(seeded((3, 40_000))).rank == 0


def test_both_unfoldings_of_a_kernel_have_their_own_rank():
    core, out, inner = seeded((3, 5, 3, 3)), seeded((24, 3), 1), seeded((20, 5), 2)
    kernel = torch.einsum("pqxy,op,iq->oixy", core, out, inner)
    kernel += 0.02 * kernel.std() * seeded(tuple(kernel.shape), 3)
    net = opened(seeded((20, 20, 4, 4), dtype=torch.float32), conv=with_weight(nn.Conv2d(20, 24, 3), kernel))
    plan, _ = plan_of("evbmf", net, {"strength": "1"})
    assert plan.get("conv") == Choice("tucker2", (3, 5))
    plan, _ = plan_of("evbmf", net, {"strength": "0.5"})
    assert plan.get("conv") == Choice("tucker2", (13, 12))


def test_a_budget_below_the_evbmf_ranks_is_reached():
    net = opened(seeded((40, 30), dtype=torch.float32), fc=with_weight(nn.Linear(30, 30), decaying(30, 30, 0.97, 1)))
    plan, problem = plan_of("evbmf", net, bytes=0.2)
    assert problem.amount("bytes", plan) > 0.1 * problem.amount("bytes")


def test_evbmf_says_which_methods_it_can_use(trained):
    with pytest.raises(InvalidSearch, match="tucker2, svd, spatial_svd"):
        plan_of("evbmf", trained, methods=("cp3",))


# ---- optima, by brute force -----------------------------------------------------------------------------------------


def every_plan(problem):
    """(plan, losses of the layers) for every combination of the first method's ranks and dense."""
    menus = [problem.menu(layer, problem.method_of(layer)) for layer in problem.layers]
    names = [layer.name for layer in problem.layers]
    for picked in product(*(list(zip(*menu, strict=True)) for menu in menus)):
        plan = problem.plan({name: choice for name, (choice, _) in zip(names, picked, strict=True)})
        yield plan, [loss for _, loss in picked]


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_balf_keeps_most_energy_of_all_plans(share, trained):
    plan, problem = plan_of("balf", trained, multiplies=share, bytes=0.9)
    found = {p: sum(losses) for p, losses in every_plan(problem) if problem.fits(p)}
    assert found[plan] <= min(found.values()) * (1 + 1e-9)


def test_balf_goes_on_without_a_moment_that_does_not_fit_in_memory(planted, monkeypatch):
    widths = {layer.name: moment_bytes(layer.spec) for layer in planted.profile.layers}
    monkeypatch.setattr(balf, "MOMENT_BYTES", widths["b"] - 1)
    problem = problem_of(planted, multiplies=0.5, methods=make("balf", {}).methods)
    *_, last = make("balf", {}).search(problem)
    assert {name: choice.method.endswith("_aware") for name, choice in last.candidate.plan.choices} == {
        name: wide < widths["b"] for name, wide in widths.items()
    }
    assert [last.candidate.plan.get(name).rank for name in "bc"] == [(5,), (2,)]  # no larger for what was rounded
    assert last.note == "without the second moment of b, which would not fit in memory"
    *_, asked = make("balf", {}).search(replace(problem, methods=("svd_aware",)))
    assert {choice.method for _, choice in asked.candidate.plan.choices} == {"svd_aware"}


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_lc_loses_least_of_all_plans_that_cost_no_more(share, relative, scaled):
    plan, problem = plan_of("lc", scaled, {"relative": str(relative)}, bytes=share)
    norms = [scaled.model.get_submodule(layer.name).weight.square().sum().item() for layer in problem.layers]
    weights = [1.0] * len(norms) if relative else norms
    cost = problem.amount("bytes", plan)
    found = {
        p: sum(w * loss for w, loss in zip(weights, losses, strict=True))
        for p, losses in every_plan(problem)
        if problem.amount("bytes", p) <= cost
    }
    assert found[plan] <= min(found.values()) * (1 + 1e-6)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_alds_has_the_least_largest_error_of_all_plans(share, trained):
    plan, problem = plan_of("alds", trained, bytes=share, methods=("svd",))

    def error(name: str, choice: Choice | None) -> float:
        values = torch.linalg.svdvals(trained.model.get_submodule(name).weight.detach().double().flatten(1))
        return 0.0 if choice is None else float(values[choice.rank[0]] / values[0])

    names = [layer.name for layer in problem.layers]
    found = {p: max(error(name, p.get(name)) for name in names) for p, _ in every_plan(problem) if problem.fits(p)}
    assert found[plan] <= min(found.values()) + 1e-9


def test_alds_groups_inputs_where_that_is_cheaper():
    """Four groups of inputs that each matter in one direction: together rank 4, in groups of rank 1."""
    blocks = [torch.outer(seeded((12,), g), seeded((36,), g + 9)) for g in range(4)]
    conv = with_weight(nn.Conv2d(16, 12, 3), torch.cat([b / b.norm() for b in blocks], 1))
    net = opened(seeded((20, 16, 4, 4), dtype=torch.float32), conv=conv)
    plan, _ = plan_of("alds", net, {"epsilon": "1e-3"})
    assert plan.get("conv") == Choice("svd_g4", (1,))


@pytest.mark.parametrize("method", ["svd", "svd_g2", "svd_g4", "svd_g8"])
def test_the_error_of_alds_is_that_of_the_groups(method, trained):
    """The true relative operator norm of what is lost is the error that decides, or up to sqrt(groups) times it."""
    parts = int(method.partition("_g")[2] or 1)
    weight = trained.model.get_submodule("conv").weight.detach().double()
    for epsilon in (0.2, 0.5, 0.9):
        plan, _ = plan_of("alds", trained, {"epsilon": str(epsilon)}, methods=(method,))
        if (choice := plan.get("conv")) is not None:
            lost = weight - trained.factors("conv", method).reconstruct(choice.rank)
            bound = epsilon * parts**0.5 * torch.linalg.matrix_norm(weight.flatten(1), 2)
            assert torch.linalg.matrix_norm(lost.flatten(1), 2) <= bound * (1 + 1e-6)


def test_group_folds_are_never_chosen_by_themselves(trained):
    problem = problem_of(trained)
    conv = trained.profile.layer("conv")
    assert not [m for m in problem.methods_of(conv) if m.startswith("svd_g")]
    assert not [a for a in asked(trained) if a[1].method.startswith("svd_g")]
    assert replace(problem, methods=("svd_g4",)).methods_of(conv) == ("svd_g4",)
