"""Prefix reuse: the same bits as a full pass on any graph, less work, a limit on memory, and never a stale output."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.compression.apply import apply
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.layers.data import Dataset, run
from lowrank_core.networks.discover import discover
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.scoring.metrics import TOP1
from lowrank_core.scoring.prefix import Cuts, PrefixStore
from lowrank_core.scoring.scores import Reference, evaluate


class Block(nn.Module):
    """Residual, with in-place activations, one of them shared."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out += x
        return F.relu_(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(act) for _ in range(3)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x.mul_(0.5)
        return self.head(self.blocks(x).mean((2, 3)))


class UNet(nn.Module):
    """A skip from the first layer to the last, and a mirror of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.up1, self.up2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(19, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x).relu_()
        b = self.down2(a)
        c = F.interpolate(self.up1(self.middle(F.gelu(b)) + b), scale_factor=2)
        return self.head(self.up2(torch.cat([a, c, x.flip(3)], 1)).amax((2, 3)))


class Twice(nn.Module):
    """One layer called twice, one in two places under two names, one called again by its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 12)
        self.again = nn.Linear(12, 12)
        self.tail = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), self.again, nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        y = self.again(self.first(x).tanh())
        return self.tail(y + self.again(y))


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 8)
        self.seen = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.sum(1, keepdim=True)
        return self.map(x)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.writer, self.middle, self.last = Writer(), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.writer(x.mean((2, 3)))) * self.writer.seen)


class Branches(nn.Module):
    """Its path depends on values: half of the batches go round the middle layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x.mean((2, 3))).relu())
        if float(x.sum()) > 0:
            x = self.middle(x)
        return self.last(self.gate(x))


@pytest.fixture(autouse=True)
def one_thread():
    """Small sums, and other tests at work beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


GRAPHS = {"residual": Residual, "u-net": UNet, "twice": Twice, "stateful": Stateful, "branches": Branches}
BATCH = 8


class Bench:
    """A network with its store, and plans that differ from each other from one layer on."""

    def __init__(self, build: type[nn.Module], **options: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = build().eval()
            x = torch.randn(32, 3, 8, 8)
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-1, 1)
        self.profile = discover(self.model, (x[:2],))
        self.data = Dataset(x, torch.arange(32) % 4)
        self.reference = Reference(self.model, self.data, TOP1, batch=BATCH)
        self.factors = FactorStore(self.model, self.profile)
        self.corrector = Corrector(self.model, self.profile, self.factors, lambda: Dataset(x[:16]))
        self.store = PrefixStore(Cuts(self.model, self.profile, self.reference.dataset), **options)

    def plan(self, changed: int, rank: int) -> RankPlan:
        """Rank 2 everywhere, another from layer `changed` on."""
        names = [layer.name for layer in self.profile.layers]
        ranks = {name: 2 if i < changed else rank for i, name in enumerate(names)}
        return RankPlan.of(self.profile.fingerprint, {name: Choice("svd", (r,)) for name, r in ranks.items()})

    def compress(self, plan: RankPlan, correction: Correction | None = None) -> nn.Module:
        compressed = apply(self.model, self.profile, plan, self.factors)
        if correction is not None:
            load_overlay(compressed, self.corrector(plan, correction))
        return compressed

    def full(self, model: nn.Module) -> list[Tensor]:
        return [run(model, part)["output"] for part, _ in self.reference.batches()]

    def reusing(self, model: nn.Module, **options: object) -> tuple[list[Tensor], int]:
        runner = self.store.runner(model, len(self.data), **options)
        outputs = [runner(part, BATCH * i)["output"] for i, (part, _) in enumerate(self.reference.batches())]
        return outputs, runner.reused


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


CORRECTIONS = None, Correction(samples=16), Correction("batchnorm", samples=16)


@pytest.mark.parametrize(
    ("graph", "correction"),
    [(g, c) for g in GRAPHS for c in CORRECTIONS if c is None or g != "branches"],  # its path depends on values
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_any_graph_gives_the_same_bits(graph, correction):
    """Every layer in turn is the first to differ; the store has seen all the plans before."""
    bench = Bench(GRAPHS[graph])
    reused = 0
    for rank in (2, 1):
        for changed in range(len(bench.profile.layers)):
            model = bench.compress(bench.plan(changed, rank), correction)
            outputs, n = bench.reusing(model)
            reused += n
            assert same(outputs, bench.full(model)), (rank, changed)
    assert (reused > 0) == (graph != "stateful")


def test_only_what_comes_after_the_change_runs():
    bench = Bench(Residual)
    first = bench.compress(bench.plan(5, 2))
    bench.reusing(first, record=[5])
    assert bench.store.cuts.cut(5).needed == ("blocks.1",)
    model, ran = bench.compress(bench.plan(5, 1)), []
    runner = bench.store.runner(model, len(bench.data))
    for name, module in runner._player.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(lambda m, a, name=name: ran.append(name))
    runner(bench.reference.dataset.pick(slice(0, BATCH)), 0)
    assert {name.rpartition(".")[0] for name in ran} == {"blocks.2.conv1", "blocks.2.conv2", "head"}
    assert len(ran) == 6


@pytest.mark.parametrize(
    ("graph", "before", "needed"),
    [
        ("residual", 1, {"stem"}),
        ("residual", 2, {"stem", "blocks.0.bn1"}),
        ("residual", 3, {"blocks.0"}),
        ("u-net", 2, {"down1", "down2"}),
        ("u-net", 4, {"down1", "down2", "middle"}),
        ("u-net", 5, {"down1", "up1"}),
        ("twice", 2, {"first"}),
        ("stateful", 1, None),
        ("stateful", 2, None),
    ],
)
def test_the_fewest_outputs_are_kept(graph, before, needed):
    cut = Bench(GRAPHS[graph]).store.cuts.cut(before)
    assert (None if cut is None else set(cut.needed)) == needed


def test_a_change_ahead_of_the_cut_is_never_answered_from_memory():
    """One element of one early weight is enough, also where it is no layer of the plan."""
    bench = Bench(Residual)
    plan = bench.plan(6, 2)
    bench.reusing(bench.compress(plan), record=[6])
    changed = bench.compress(plan)
    assert bench.reusing(changed)[1] == 4
    with torch.no_grad():
        changed.blocks[0].bn1.running_mean[0] += 0.25
    outputs, reused = bench.reusing(changed)
    assert reused == 0
    assert same(outputs, bench.full(changed))
    assert not same(outputs, bench.full(bench.compress(plan)))


def test_memory_stays_within_the_limit_and_the_least_used_goes_first():
    sample = 8 * 8 * 8 * 4
    bench = Bench(Residual, limit_bytes=2 * 32 * sample)
    models = {rank: bench.compress(bench.plan(0, rank)) for rank in (1, 2, 3)}
    bench.reusing(models[1], record=[3])
    assert bench.store.bytes == 32 * sample
    bench.reusing(models[2], record=[3])
    assert bench.store.bytes == 64 * sample
    assert bench.reusing(models[1], record=[])[1] == 4  # used again: now the other is the oldest
    bench.reusing(models[3], record=[3])
    assert bench.store.bytes == 64 * sample
    assert [bench.reusing(models[rank], record=[])[1] for rank in (1, 2, 3)] == [4, 0, 4]


def test_no_memory_means_no_reuse_and_the_same_bits():
    bench = Bench(Residual, limit_bytes=0)
    model = bench.compress(bench.plan(0, 2))
    for _ in range(2):
        outputs, reused = bench.reusing(model)
        assert reused == bench.store.bytes == 0
        assert same(outputs, bench.full(model))


def test_a_measurement_cancelled_leaves_what_it_did():
    bench = Bench(Residual)
    model = bench.compress(bench.plan(0, 2))
    scores = evaluate(model, bench.reference, forward=bench.store.runner(model, 32))
    next(scores), next(scores)
    scores.close()
    assert bench.reusing(model)[1] == 2
    assert bench.reusing(model)[1] == 4


def test_threads_share_one_store():
    bench = Bench(Residual, limit_bytes=200_000)
    models = [bench.compress(bench.plan(changed, rank)) for changed in (1, 3, 5) for rank in (1, 2)]
    expected = [bench.full(model) for model in models]
    wrong: list[int] = []

    def work(shift: int) -> None:
        for i in range(12):
            which = (i * (shift + 1) + shift) % len(models)
            if not same(bench.reusing(models[which])[0], expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bench.store.bytes <= 200_000


def test_a_foreign_network_and_the_network_itself_are_simply_run():
    bench = Bench(Residual)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    assert same(bench.reusing(other)[0], bench.full(other))
    for _ in range(2):
        outputs, reused = bench.reusing(bench.model)
        assert same(outputs, bench.full(bench.model))
    assert reused == 4
    assert not any("forward" in vars(module) for module in bench.model.modules())
