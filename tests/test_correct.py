"""Correction with planted answers: the last factor of each replacement is spoilt, and must come back."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.compression.apply import apply, chain_at
from lowrank_core.compression.correct import Corrector, Overlay, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.errors import Cancelled, InvalidPlan
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS, Factorization
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, fingerprint
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = Correction(ridge=1e-9)


@dataclass(frozen=True)
class Spoilt:
    """Factors whose last stage is mixed up by an invertible map of its inputs' weights."""

    factors: FactorStore

    def __call__(self, name: str, method: str) -> Factorization:
        inner = self.factors(name, method)

        class Wrapped:
            def weights(self, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
                *first, last = inner.weights(rank)
                noise = torch.randn(last.shape, generator=torch.Generator().manual_seed(1), dtype=last.dtype)
                return (*first, 0.3 * last + 0.2 * last.std() * noise)

        return Wrapped()  # type: ignore[return-value]


def correct(
    model: nn.Module, x: Tensor, plan: RankPlan, correction: Correction = EXACT, *, spoilt: bool = True
) -> tuple[nn.Module, nn.Module, Overlay]:
    """(uncorrected, corrected, overlay)"""
    profile = discover(model, x[:2])
    factors = FactorStore(model, profile)
    used = Spoilt(factors) if spoilt else factors
    *_, last = Corrector(model, profile, used, lambda: Dataset(x))(plan, correction)  # type: ignore[arg-type]
    before = apply(model, profile, plan, used)  # type: ignore[arg-type]
    after = load_overlay(apply(model, profile, plan, used), last.overlay)  # type: ignore[arg-type]
    return before, after, last.overlay


def full_rank(
    model: nn.Module, x: Tensor, method: str = "svd", only: Callable[[str], bool] = lambda _: True
) -> RankPlan:
    """Every layer at the largest rank of the method, so that the exact answer exists."""
    profile = discover(model, x[:2])
    layers = [layer for layer in profile.layers if only(layer.name) and METHODS[method].obstacle(layer.spec) is None]
    assert layers
    return RankPlan.of(
        profile.fingerprint, {la.name: Choice(method, METHODS[method].max_rank(la.spec)) for la in layers}
    )


def distance(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected, found = model(x), other(x)
    return float((expected - found).norm() / expected.norm())


LAYERS = {
    "stride 2x1": lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=1),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False),
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 1), padding=(0, 1), output_padding=(1, 0)),
    "transposed groups": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    "tokens": lambda: nn.Linear(10, 6),
}


FITTING = [
    (name, method)
    for name, build in LAYERS.items()
    for method in ("svd", "spatial_svd", "tucker2", "cp3")
    if METHODS[method].obstacle(LayerSpec.of(build())) is None
    and (method != "cp3" or name in ("stride 2x1", "reflect"))
]


@pytest.mark.parametrize(("name", "method"), FITTING)
def test_a_spoilt_last_factor_is_found_again(name: str, method: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    shape = (5, 10) if name == "tokens" else (4, 10) if name == "Conv1d" else (4, 9, 10)
    x = torch.randn(40, *shape, dtype=torch.float64)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    profile = discover(model, x[:2])
    plan = full_rank(model, x, method)
    before, after, _ = correct(model, x, plan)
    unspoilt = apply(model, profile, plan, FactorStore(model, profile))
    assert distance(model, before, x) > 0.3
    assert distance(model, after, x) < max(1e-4, 1.05 * distance(model, unspoilt, x))


def test_chains_of_layers_are_corrected_in_order_on_corrected_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(300, 8, dtype=torch.float64)
    before, after, overlay = correct(model, x, full_rank(model, x))
    assert distance(model, before, x) > 0.3
    assert distance(model, after, x) < 1e-6
    assert sorted(overlay) == sorted(f"{i}.1.{leaf}" for i in (0, 2, 4) for leaf in ("weight", "bias"))


class Residual(nn.Module):
    """Branches, a bias-free convolution with its BatchNorm, in-place activations right behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.side = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu_(self.conv2(y))
        return self.fc(F.relu_(y + self.side(x).mul_(2.0)).mean((2, 3)))


def trained_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """Give every BatchNorm statistics that differ from the initial ones."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(x)
    return model.eval()


def test_branches_and_in_place_activations() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 4, 8, 8, dtype=torch.float64) + 0.5
    model = trained_statistics(Residual().double(), x)
    before, after, overlay = correct(model, x, full_rank(model, x))
    assert distance(model, before, x) > 0.1
    assert distance(model, after, x) < 1e-6
    assert "bn1.running_mean" in overlay


class Repeated(nn.Module):
    """One layer called at three places, with others between."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.between = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)
        self.alias = self.shared

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.between(x))
        return self.head(torch.tanh(self.alias(x)) + torch.tanh(self.shared(-x)))


def test_a_layer_called_several_times_is_fitted_on_all_its_calls() -> None:
    torch.manual_seed(0)
    model, x = Repeated().double().eval(), torch.randn(200, 8, dtype=torch.float64)
    before, after, overlay = correct(model, x, full_rank(model, x))
    assert distance(model, before, x) > 0.3
    assert {name.split(".")[0] for name in overlay} == {"shared", "between", "head"}
    assert distance(model, after, x) < distance(model, before, x) / 2


def test_all_calls_count_where_each_sees_only_a_part() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 6, bias=False)
            self.head = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.arange(8) < 4
            return self.head(torch.cat([self.fc(x * mask), self.fc(x * ~mask)], 1))

    torch.manual_seed(0)
    model, x = Halves().double().eval(), torch.randn(100, 8, dtype=torch.float64)
    plan = full_rank(model, x)
    before, after, _ = correct(model, x, plan)
    assert distance(model, before, x) > 0.3
    assert distance(model, after, x) < 1e-6


class NormBehind(nn.Module):
    """conv -> BatchNorm, in variants where something else sees the convolution's output too."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.conv = nn.Conv2d(4, 6, 3, bias=False)
        self.other = nn.Conv2d(4, 6, 3, bias=False)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.variant == "alone":
            return self.bn(y) + self.other(x)
        if self.variant == "branch":
            return self.bn(y) + y + self.other(x)
        if self.variant == "in place":
            return self.bn(F.relu_(y)) + self.other(x)
        return self.bn(y) + self.bn(self.other(x))


@pytest.mark.parametrize(
    ("variant", "folded"), [("alone", True), ("branch", False), ("in place", False), ("shared norm", False)]
)
def test_an_offset_goes_only_into_a_norm_that_alone_takes_the_output(variant: str, folded: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4, 8, 8, dtype=torch.float64) + 1
    model = trained_statistics(NormBehind(variant).double(), x)
    profile = discover(model, x[:2])
    plan = RankPlan.of(profile.fingerprint, {"conv": Choice("svd", (2,))})
    _, after, overlay = correct(model, x, plan, spoilt=False)
    assert ("bn.running_mean" in overlay) is folded
    assert not any(name.endswith("bias") for name in overlay)
    with torch.no_grad():
        rows = F.unfold(x, 3).transpose(1, 2).flatten(0, 1) @ after.conv[0].weight.flatten(1).mT
        target = model.conv(x).movedim(1, -1).reshape(-1, 6)
        fitted = rows @ overlay["conv.1.weight"].flatten(1).mT
        if folded:
            fitted = fitted + (model.bn.running_mean - overlay["bn.running_mean"])
            rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    best = rows @ torch.linalg.lstsq(rows, target).solution
    assert float((fitted - target).norm()) == pytest.approx(float((best - target).norm()), rel=1e-6)


def test_two_norms_behind_two_calls_both_take_the_offset() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn1(self.fc(x)) + self.bn2(self.fc(x.flip(1)))

    torch.manual_seed(0)
    x = torch.randn(60, 6) + 1
    model = trained_statistics(Switch(), x)
    plan = RankPlan.of(fingerprint(model), {"fc": Choice("svd", (2,))})
    _, _, overlay = correct(model, x, plan, spoilt=False)
    assert {"bn1.running_mean", "bn2.running_mean"} < set(overlay)


def test_dead_channels_and_fewer_samples_than_features() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 30)).eval()
    with torch.no_grad():
        model[0].bias[:15] = -100
    x = torch.randn(6, 40)
    before, after, overlay = correct(model, x, full_rank(model, x), Correction())
    assert all(torch.isfinite(value).all() for value in overlay.values())
    assert distance(model, after, x) < 0.2 * distance(model, before, x)


def test_features_that_never_move_keep_their_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    profile = discover(model, x[:2])
    factors = FactorStore(model, profile)
    direction = factors("0", "svd").weights((3,))[0][1]
    x = x - (x @ direction)[:, None] * direction / direction.square().sum()
    plan = RankPlan.of(profile.fingerprint, {"0": Choice("svd", (3,))})
    before, after, _ = correct(model, x, plan)
    assert torch.equal(before[0][1].weight[:, 1], after[0][1].weight[:, 1])
    assert not torch.equal(before[0][1].weight[:, 0], after[0][1].weight[:, 0])


@pytest.mark.parametrize(("apart", "told"), [(1e-2, True), (1e-4, False)])
def test_what_the_samples_hardly_tell_apart_keeps_its_weights(apart: float, told: bool) -> None:
    """Two features that differ by `apart`: their difference has a quarter of its square of the strongest variance."""
    generator = torch.Generator().manual_seed(0)
    common, own, noise = torch.randn(3, 4000, 1, generator=generator, dtype=torch.float64)
    x, old = torch.cat([common, common + apart * own], 1), torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    equations = NormalEquations(LayerSpec(2, 1, bias=False))
    equations.add(x, torch.arange(4000), 3 * common + noise)
    new, _ = equations.solve(old, 0.0, intercept=False)
    best = torch.linalg.lstsq(x, 3 * common + noise).solution.mT
    if told:
        torch.testing.assert_close(new, best)
        return
    assert float((best - old).abs().max()) > 50  # it would fit the noise
    assert float(new.sum()) == pytest.approx(3, abs=0.1)  # what both tell together is learnt
    assert float(new[0, 0] - new[0, 1]) == pytest.approx(2.5, abs=0.01)


def three_layers() -> tuple[nn.Module, Tensor, ModelProfile, RankPlan]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 10),
    )  # fmt: skip
    x = torch.randn(64, 3, 6, 6)
    trained_statistics(model, x)
    profile = discover(model, x[:2])
    plan = RankPlan.of(
        profile.fingerprint,
        {
            layer.name: Choice(layer.methods[0].name, rank_at(useful_rank(layer, layer.methods[0].name), 0.5))
            for layer in profile.layers
        },
    )
    return model, x, profile, plan


def test_kept_prefixes_give_the_same_as_from_scratch() -> None:
    model, x, profile, plan = three_layers()
    factors = FactorStore(model, profile)
    corrector = Corrector(model, profile, factors, lambda: Dataset(x))
    *_, first = corrector(plan, Correction())
    names = [layer.name for layer in profile.layers]
    for changed, kept in ((names[2], 2), (names[1], 1), (names[0], 0)):
        other = plan.with_choice(changed, None)
        *_, warm = corrector(other, Correction())
        *_, cold = Corrector(model, profile, factors, lambda: Dataset(x))(other, Correction())
        assert set(warm.overlay) == set(cold.overlay)
        assert all(torch.equal(warm.overlay[name], cold.overlay[name]) for name in cold.overlay)
        same = {name for name in warm.overlay if warm.overlay[name] is first.overlay.get(name)}
        assert {name.split(".")[0] for name in same if "running" not in name} == set(names[:kept])
    *_, again = corrector(plan, Correction())
    assert all(again.overlay[name] is first.overlay[name] for name in first.overlay)


@pytest.mark.parametrize("kind", ["least_squares", "bias", "batchnorm"])
def test_the_model_is_untouched_and_no_parameter_is_added(kind: str) -> None:
    model, x, _profile, plan = three_layers()
    before_fingerprint = fingerprint(model)
    before, after, overlay = correct(model, x, plan, Correction(kind), spoilt=False)  # type: ignore[arg-type]
    assert overlay
    assert fingerprint(model) == before_fingerprint
    assert {n: p.shape for n, p in before.named_parameters()} == {n: p.shape for n, p in after.named_parameters()}
    assert {n: b.shape for n, b in before.named_buffers()} == {n: b.shape for n, b in after.named_buffers()}
    assert kind == "batchnorm" or distance(model, after, x) < distance(model, before, x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (model, after) for m in net.modules())


def test_bias_correction_restores_the_means_and_nothing_else() -> None:
    model, x, _profile, plan = three_layers()
    plan = RankPlan.of(plan.fingerprint, dict(plan.choices[:1]))
    _, after, overlay = correct(model, x, plan, Correction("bias"), spoilt=False)
    assert set(overlay) == {"1.running_mean"}
    with torch.no_grad():
        assert torch.allclose(model[1](model[0](x)).mean((0, 2, 3)), after[1](after[0](x)).mean((0, 2, 3)), atol=1e-5)


def test_batchnorm_reestimation_is_that_of_the_calibration_batch() -> None:
    model, x, _profile, plan = three_layers()
    _, after, overlay = correct(model, x, plan, Correction("batchnorm"), spoilt=False)
    assert set(overlay) == {"1.running_mean", "1.running_var"}
    with torch.no_grad():
        y = after[0](x)
    assert torch.allclose(after[1].running_mean, y.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(after[1].running_var, y.transpose(0, 1).flatten(1).var(1), rtol=1e-5)


def test_a_network_that_is_one_layer_and_one_layer_twice_named() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 6).double().eval(), torch.randn(50, 8, dtype=torch.float64)
    before, after, overlay = correct(model, x, full_rank(model, x))
    assert set(overlay) == {"1.weight", "1.bias"}
    assert distance(model, before, x) > 0.3
    assert distance(model, after, x) < 1e-6
    assert chain_at(model, after, "Linear") is after


def test_an_empty_plan_and_progress() -> None:
    model, x, profile, plan = three_layers()
    corrector = Corrector(model, profile, FactorStore(model, profile), lambda: Dataset(x))
    assert [(s.done, s.total, s.overlay) for s in corrector(RankPlan(profile.fingerprint), Correction())] == [
        (0, 0, {})
    ]
    steps = list(corrector(plan, Correction()))
    assert [(s.name, s.done, s.total) for s in steps] == [("", 0, 3), ("0", 1, 3), ("3", 2, 3), ("6", 3, 3)]
    assert len(steps[1].overlay) == 2  # growing, and earlier steps are not written to


def test_cancelling_and_closing_end_the_work() -> None:
    model, x, profile, plan = three_layers()
    corrector = Corrector(model, profile, FactorStore(model, profile), lambda: Dataset(x))
    seen = []
    with pytest.raises(Cancelled):
        seen.extend(step.done for step in corrector(plan, Correction(), cancelled=lambda: True))
    assert seen[-1] < 3
    steps = corrector(plan, Correction())
    next(steps)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


def test_a_bad_plan_is_refused_by_name() -> None:
    model, x, profile, _ = three_layers()
    corrector = Corrector(model, profile, FactorStore(model, profile), lambda: Dataset(x))
    with pytest.raises(InvalidPlan, match="nowhere"):
        list(corrector(RankPlan.of(profile.fingerprint, {"nowhere": Choice("svd", (1,))}), Correction()))


def test_little_memory_means_fewer_samples_and_positions() -> None:
    model, x, profile, plan = three_layers()
    factors = FactorStore(model, profile)
    large = Corrector(model, profile, factors, lambda: Dataset(x))
    small = Corrector(model, profile, factors, lambda: Dataset(x), memory_bytes=200_000)
    assert large.samples(Correction()) == 64
    assert 0 < small.samples(Correction()) < 64
    assert large.samples(Correction(samples=10)) == 10
    targets = small.dense_pass(Correction()).targets
    assert sum(t.numel() * t.element_size() for per_call in targets.values() for t in per_call) <= 100_000
    *_, last = small(plan, Correction())
    assert all(torch.isfinite(value).all() for value in last.overlay.values())


def test_truncated_layers_come_closer_on_samples_never_seen() -> None:
    model, _x, _profile, plan = three_layers()
    fresh = torch.randn(200, 3, 6, 6, generator=torch.Generator().manual_seed(9))
    calibration = torch.randn(256, 3, 6, 6, generator=torch.Generator().manual_seed(8))
    before, after, _ = correct(model, calibration, plan, Correction(), spoilt=False)
    assert distance(model, after, fresh) < 0.8 * distance(model, before, fresh)


def test_corrections_are_read_strictly() -> None:
    correction = Correction("bias", samples=100, seed=3, ridge=0.1, data="sha256:0")
    assert Correction.from_dict(correction.to_dict()) == correction
    for wrong in (
        {"kind": "magic"},
        {"kind": "bias", "samples": 0},
        {"kind": "bias", "samples": 10, "ridge": -1},
        {"kind": "bias", "samples": 10, "extra": 1},
        {"kind": "bias", "samples": "10"},
        {},
        [],
    ):
        with pytest.raises(InvalidPlan, match="correction"):
            Correction.from_dict(wrong)
