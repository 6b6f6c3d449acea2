"""How often 95 % intervals hold the truth, and how wide they are, by simulation.

    python -m benchmarks.coverage [--part pairs|metrics|documents|weights|verdict]

pairs: the paired drop of a metric that is right or wrong, 20,000 draws for each cell, for four published methods; then
the method in use without draws, over all counts that may come, with many more small chances of a change. metrics: drop
and value of other metrics, in worlds that are made up, 8,000 draws each, 2,000 of AUC; where an interval is not always
given, coverage is that of those given. documents: perplexity of texts that are cut into parts. weights: samples that
count differently. verdict: how often the sequential test, looked at after every 64 of 5,120 samples, is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import erf, exp, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.layers.data import Dataset
from lowrank_core.scoring.intervals import GROUPS, Z95, jackknife_interval
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.scoring.scores import Reference, Score, evaluate, final_score
from lowrank_core.scoring.verdict import is_within

Numbers = NDArray[np.float64]
Counts = tuple[Numbers, Numbers, Numbers, Numbers]
"""Both right, only the dense network, only ours, neither."""

DRAWS = 20_000
SIZES = (30, 50, 100, 200, 500, 1000, 2000, 5000)
DROPS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
DISCORDANT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
RIGHT = (0.5, 0.75, 0.95)
"""Share of samples that the dense network gets right, which some methods depend on."""

CHUNK = 1000
"""Draws that are in memory at once."""

AUC_CHUNK = 100

PART_CHUNK = 200

WORLD_SAMPLES = 1_000_000
"""Of which a figure counts as the true one, where no formula gives it."""

MANY = 20
"""Discordant samples, expected, from which on intervals should be neither short nor long."""


# ---- right or wrong: methods ----------------------------------------------------------------------------------------


def bonett_price(both: Numbers, dense: Numbers, ours: Numbers, neither: Numbers) -> tuple[Numbers, Numbers]:
    """What `paired_interval` computes, of many counts at once."""
    return _adjusted(both, dense, ours, neither, 1.0)


def agresti_min(both: Numbers, dense: Numbers, ours: Numbers, neither: Numbers) -> tuple[Numbers, Numbers]:
    """Half a sample more in each of the four cells (Agresti & Min 2005)."""
    return _adjusted(both, dense, ours, neither, 0.5)


def _adjusted(both: Numbers, dense: Numbers, ours: Numbers, neither: Numbers, more: float) -> tuple[Numbers, Numbers]:
    n = both + dense + ours + neither + 2
    up, down = (dense + more) / n, (ours + more) / n
    half = Z95 * np.sqrt((up + down - (up - down) ** 2) / n)
    return np.maximum(-1, up - down - half), np.minimum(1, up - down + half)


def newcombe(both: Numbers, dense: Numbers, ours: Numbers, neither: Numbers) -> tuple[Numbers, Numbers]:
    """Method 10 of Newcombe (1998), from Wilson's intervals of both shares."""
    n = both + dense + ours + neither
    first, second = (both + dense) / n, (both + ours) / n
    (l1, u1), (l2, u2) = _wilson(first, n), _wilson(second, n)
    margins = (both + dense) * (ours + neither) * (both + ours) * (dense + neither)
    product = both * neither - dense * ours
    product = np.where(product > 0, np.maximum(product - n / 2, 0), product)
    phi = np.divide(product, np.sqrt(margins), out=np.zeros_like(product), where=margins > 0)

    def distance(a: Numbers, b: Numbers) -> Numbers:
        return np.sqrt(np.maximum(0, a * a - 2 * phi * a * b + b * b))

    return first - second - distance(first - l1, u2 - second), first - second + distance(u1 - first, second - l2)


def _wilson(share: Numbers, n: Numbers) -> tuple[Numbers, Numbers]:
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return np.maximum(0, centre - half), np.minimum(1, centre + half)


def tango_holds(both: Numbers, dense: Numbers, ours: Numbers, neither: Numbers, drop: float) -> NDArray[np.bool_]:
    """Whether the score interval of Tango (1998) holds the drop: whether the score test lets it stand."""
    n = both + dense + ours + neither
    b = -dense - ours + (2 * n - dense + ours) * drop
    other = (np.sqrt(np.maximum(0, b * b + 8 * n * ours * drop * (1 - drop))) - b) / (4 * n)
    variance = n * (2 * other + drop * (1 - drop))
    return (dense - ours - n * drop) ** 2 <= Z95**2 * variance + 1e-9


METHODS = {"Bonett & Price": bonett_price, "Newcombe 10": newcombe, "Agresti & Min": agresti_min}


# ---- right or wrong: cells ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """Samples, true drop, share of samples on which the networks differ, and what was found by each method."""

    samples: int
    drop: float
    discordant: float
    right: float
    covered: dict[str, float]
    width: dict[str, float]

    @property
    def many(self) -> bool:
        """Whether 20 or more discordant samples are expected."""
        return self.samples * self.discordant >= MANY - 1e-9


def cells(draws: int) -> Iterator[Cell]:
    """Every size, drop and share of discordant samples from the drop on, and every share of right answers."""
    rng = np.random.default_rng(0)
    for samples in SIZES:
        for drop in DROPS:
            for discordant in sorted({drop, *(share for share in DISCORDANT if share > drop)}):
                up, down = (discordant + drop) / 2, (discordant - drop) / 2
                for right in RIGHT:
                    both = min(1 - discordant, max(0.0, right - up))
                    shares = (both, up, down, max(0.0, 1 - both - up - down))
                    drawn = rng.multinomial(samples, shares, size=draws).astype(float)
                    yield _cell(samples, drop, discordant, right, tuple(drawn.T))  # type: ignore[arg-type]


def _cell(samples: int, drop: float, discordant: float, right: float, counts: Counts) -> Cell:
    covered, width = {}, {}
    for name, method in METHODS.items():
        low, high = method(*counts)
        covered[name] = float(((low <= drop + 1e-12) & (drop - 1e-12 <= high)).mean())
        width[name] = float((high - low).mean())
    covered["Tango"] = float(tango_holds(*counts, drop).mean())
    return Cell(samples, drop, discordant, right, covered, width)


def exact(samples: int, up: float, down: float) -> float:
    """How often Bonett & Price's interval holds the drop, over all counts: chances, not draws."""
    worse, better = (_counts(samples * share, samples) for share in (up, down))
    chance = _binomial(worse, samples, up)[:, None] * _binomial(
        better[None, :], samples - worse[:, None], down / (1 - up)
    )
    first, second = np.meshgrid(worse, better, indexing="ij")
    low, high = bonett_price(np.zeros_like(first), first, second, samples - first - second)
    return float(chance[(low <= up - down + 1e-12) & (up - down - 1e-12 <= high)].sum())


def _counts(expected: float, samples: int) -> Numbers:
    reach = 9 * sqrt(expected) + 12
    return np.arange(max(0, int(expected - reach)), min(samples, int(expected + reach)) + 1, dtype=float)


def _binomial(counts: Numbers, n: Numbers | int, share: float) -> Numbers:
    n = torch.as_tensor(n, dtype=torch.float64)
    k = torch.as_tensor(counts)
    choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    chance = (choose + torch.xlogy(k, torch.tensor(share)) + torch.xlogy(n - k, torch.tensor(1 - share))).exp()
    return torch.where(k <= n, chance, 0.0).numpy()


def pairs(draws: int) -> None:
    """The tables of the paired drop."""
    found = list(cells(draws))
    many = [cell for cell in found if cell.many]
    print(
        "| method | least coverage, % | at samples, drop, discordant | cells below 93 % | of 20 or more discordant, % |"
    )
    print("|---|---|---|---|---|")
    for name in (*METHODS, "Tango"):
        least = min(found, key=lambda cell: cell.covered[name])
        low, high = (end(cell.covered[name] for cell in many) for end in (min, max))
        below = sum(cell.covered[name] < 0.93 for cell in found)
        print(
            f"| {name} | {100 * least.covered[name]:.1f} | {least.samples:,}, {100 * least.drop:g}, "
            f"{100 * least.discordant:g} % | {below} of {len(found)} | {100 * low:.1f} to {100 * high:.1f} |"
        )
    print(
        "\nWidths are those of a drop of 0 of 2 % discordant, 1 of 2 %, and 10 of 20 %; fewest and most of all cells.\n"
    )
    print("| samples | coverage, % | of 20 or more discordant, % | width, points |")
    print("|---|---|---|---|")
    ours = next(iter(METHODS))
    for samples in SIZES:
        here = [cell for cell in found if cell.samples == samples]
        sure = [cell.covered[ours] for cell in here if cell.many]
        widths = [
            100 * cell.width[ours]
            for cell in here
            if (cell.drop, cell.discordant) in ((0, 0.02), (0.01, 0.02), (0.1, 0.2)) and cell.right == RIGHT[0]
        ]
        enough = f"{100 * min(sure):.1f} to {100 * max(sure):.1f}" if sure else "none"
        covered = [cell.covered[ours] for cell in here]
        print(
            f"| {samples:,} | {100 * min(covered):.1f} to {100 * max(covered):.1f} | {enough} | "
            f"{', '.join(f'{width:.2f}' for width in widths)} |"
        )
    expected = np.exp(np.linspace(np.log(0.01), np.log(60), 240))
    least = min(
        (exact(samples, float(up + down) / samples, float(down) / samples), samples, up, down)
        for samples in (30, 100, 1000, 5000)
        for up in expected
        for down in (0.0, 0.3, 3.0)
        if (up + 2 * down) / samples <= 0.2
    )
    print(
        f"\nWithout draws, drops of 0.01 to 60 expected samples: {ours} covers least {100 * least[0]:.2f} %, at "
        f"{least[1]:,} samples of which {least[2] + least[3]:.2f} are expected to get worse and {least[3]:g} better."
    )


# ---- other metrics --------------------------------------------------------------------------------------------------

Drawn = tuple[torch.Tensor, torch.Tensor]
"""What ours and dense add up to in each sample, both (draws, N, k)."""


@dataclass(frozen=True, slots=True)
class World:
    """Samples as they come. of: the figure of sums (..., k); bounded: as `Metric.bounded`; rises: lower is better."""

    name: str
    draw: Callable[[torch.Generator, int, int], Drawn]
    of: Callable[[torch.Tensor], torch.Tensor]
    bounded: bool = False
    rises: bool = False


def in_parts(draws: int) -> None:
    """Perplexity of texts in parts: groups of whole documents, as the product has them, and of parts dealt out alone.

    Documents of 1 to 8 parts of 60 words; all parts of one are as hard, and lose as much, as it is.
    """
    sizes = (30, 50, 100, 500)
    print(f"\n| coverage, % (width over that of a known spread) | {' | '.join(f'{n:,} documents' for n in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for whole in (True, False):
        rows = list(zip(*(_in_parts(n, draws, whole=whole) for n in sizes), strict=True))
        for kind, row in zip(("drop", "value"), rows, strict=True):
            name = "groups of documents" if whole else "groups of loose parts"
            print(f"| perplexity, documents in parts, {name}: {kind} | {' | '.join(row)} |", flush=True)


def _in_parts(n: int, draws: int, *, whole: bool) -> list[str]:
    """Coverage of drop and value as in `covered`; the truth is the mean over all documents, by their words."""
    g = torch.Generator().manual_seed(n)
    found: list[Drawn] = []
    sizes = torch.ones(1)
    for _ in range(max(1, draws // PART_CHUNK)):
        words = 60.0 * (torch.randint(1, 9, (PART_CHUNK, n, 1), generator=g) > torch.arange(8))
        hard = 2.5 + 0.6 * normal(g, PART_CHUNK, n, 1)
        dense = hard + 0.2 * normal(g, PART_CHUNK, n, 8)
        ours = dense + 0.1 + 0.15 * normal(g, PART_CHUNK, n, 1) + 0.06 * normal(g, PART_CHUNK, n, 8)
        figures = []
        for nats in (ours, dense):
            totals = torch.stack([nats * words, words], -1)
            sums, sizes = grouped(totals.sum(2) if whole else totals.flatten(1, 2))
            figures.append(perplexity(sums))
        found.append((figures[0], figures[1]))
    value, base = (torch.cat(figures) for figures in zip(*found, strict=True))
    texts = []
    for figures, true in ((value - base, _PARTS_TRUTH[0] - _PARTS_TRUTH[1]), (value, _PARTS_TRUTH[0])):
        low, high = jackknife_interval(figures[:, 0], figures[:, 1:], sizes, n, bounded=False)
        holds = ((low <= true) & (true <= high)).double().mean()
        wide = float((high - low).median() / (2 * Z95 * figures[:, 0].std()))
        texts.append(f"{100 * float(holds):.1f} ({wide:.2f})")
    return texts


_PARTS_TRUTH = (exp(2.6), exp(2.5))
"""exp of the mean surprise of a word: difficulty has nothing to do with length here."""


def normal(g: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def regression(noise: float, change: float, *, heavy: bool = False) -> Callable[[torch.Generator, int, int], Drawn]:
    """R2 of y = x + noise: dense answers x, ours x with a change; heavy: the noise is Laplace's."""

    def draw(g: torch.Generator, draws: int, n: int) -> Drawn:
        x, e = normal(g, draws, n), normal(g, draws, n)
        if heavy:
            e = e.sign() * -torch.rand(draws, n, generator=g, dtype=torch.float64).log()
        y = x + noise * e

        def totals(answer: torch.Tensor) -> torch.Tensor:
            return torch.stack([(y - answer).square(), y, y.square(), torch.ones_like(y)], dim=-1)

        return totals(x + change * normal(g, draws, n)), totals(x)

    return draw


def r2(t: torch.Tensor) -> torch.Tensor:
    """From squares, sums of targets and of their squares, and how many there are."""
    return 1 - t[..., 0] / (t[..., 2] - t[..., 1].square() / t[..., 3])


def documents(spread: float, length: int) -> Callable[[torch.Generator, int, int], Drawn]:
    """Perplexity: documents of varied length (gamma) and difficulty; ours is 0.1 nats worse, more on some."""

    def draw(g: torch.Generator, draws: int, n: int) -> Drawn:
        words = -(torch.rand(2, draws, n, generator=g, dtype=torch.float64).log().sum(0) * length / 2)
        words = words.round().clamp(min=1)
        dense = 2.5 + spread * normal(g, draws, n) + 1.5 * normal(g, draws, n) / words.sqrt()
        ours = dense + 0.1 + 0.15 * normal(g, draws, n) + 0.5 * normal(g, draws, n) / words.sqrt()
        return torch.stack([ours * words, words], -1), torch.stack([dense * words, words], -1)

    return draw


def means(kind: str) -> Callable[[torch.Generator, int, int], Drawn]:
    """Means over samples: squares of errors, of eight numbers with a scale of their own, cosines near 1."""

    def draw(g: torch.Generator, draws: int, n: int) -> Drawn:
        e = normal(g, draws, n)
        if kind == "squares":
            dense, ours = e.square(), (e + 0.5 * normal(g, draws, n)).square()
        elif kind == "squares, dense exact":
            dense, ours = 0 * e, e.square()
        elif kind == "squares, scales":
            scale = (0.5 * normal(g, draws, n)).exp()
            dense, ours = 0 * e, scale.square() * normal(g, draws, n, 8).square().mean(-1)
        else:
            miss = 0.05 * normal(g, draws, n, 8).square().mean(-1) * (0.5 * e).exp()
            dense, ours = torch.ones_like(e), 1 - miss
        one = torch.ones_like(e)
        return torch.stack([ours, one], -1), torch.stack([dense, one], -1)

    return draw


def ratio(t: torch.Tensor) -> torch.Tensor:
    """The mean."""
    return t[..., 0] / t[..., 1]


def perplexity(t: torch.Tensor) -> torch.Tensor:
    """exp of the mean."""
    return ratio(t).exp()


def classes(count: int, right: float, changed: float) -> Callable[[torch.Generator, int, int], Drawn]:
    """Macro F1: classes 1 : 2 : 3 ..., dense right on a share, ours a random class instead on another."""

    def draw(g: torch.Generator, draws: int, n: int) -> Drawn:
        shares = torch.arange(1, count + 1, dtype=torch.float64).expand(draws, -1)
        asked = torch.multinomial(shares, n, replacement=True, generator=g)
        other = torch.randint(count, (2, draws, n), generator=g)
        chance = torch.rand(2, draws, n, generator=g)
        dense = torch.where(chance[0] < right, asked, other[0])
        ours = torch.where(chance[1] < changed, other[1], dense)
        one = torch.eye(count, dtype=torch.float64)
        hot = [torch.cat([one[a] * one[asked], one[a] + one[asked]], -1) for a in (ours, dense)]
        return hot[0], hot[1]

    return draw


def macro_f1(t: torch.Tensor) -> torch.Tensor:
    """The mean of 2 right / both over the classes that are there."""
    right, both = t.chunk(2, -1)
    there = both > 0.5
    return torch.where(there, 2 * right / both, 0).sum(-1) / there.sum(-1)


WORLDS = (
    World("R2, dense 0.8, 0.01 less", regression(0.5, 0.1), r2),
    World("R2, dense 0.8, 0.2 less", regression(0.5, 0.5), r2),
    World("R2, dense 0.99, 0.09 less", regression(0.1, 0.3), r2),
    World("R2, Laplace's noise", regression(0.5, 0.3, heavy=True), r2),
    World("perplexity, documents of 40 words", documents(0.3, 40), perplexity, rises=True),
    World("perplexity, 100 words, varied", documents(0.8, 100), perplexity, rises=True),
    World("squares", means("squares"), ratio, rises=True),
    World("squares, dense exact", means("squares, dense exact"), ratio, rises=True),
    World("squares of 8, varied scale", means("squares, scales"), ratio, rises=True),
    World("cosine", means("cosine"), ratio),
    World("macro F1, 3 classes, 10 % changed", classes(3, 0.8, 0.1), macro_f1, bounded=True),
    World("macro F1, 3 classes, 2 % changed", classes(3, 0.95, 0.02), macro_f1, bounded=True),
    World("macro F1, 10 classes, 30 % changed", classes(10, 0.8, 0.3), macro_f1, bounded=True),
)


def grouped(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(draws, 1 + groups, k): sums of all samples, then without each group; and the sizes of the groups."""
    draws, n, k = numbers.shape
    groups = min(n, GROUPS)
    group = torch.arange(n) % groups
    sums = torch.zeros(draws, groups, k, dtype=torch.float64).index_add_(1, group, numbers)
    whole = sums.sum(1, keepdim=True)
    return torch.cat([whole, whole - sums], 1), torch.bincount(group).double()


def covered(world: World, n: int, draws: int, truth: tuple[float, float]) -> list[str]:
    """Coverage of drop and value, and the width in standard deviations of the drop."""
    g = torch.Generator().manual_seed(n)
    found: list[Drawn] = []
    for _ in range(max(1, draws // CHUNK)):
        (a, sizes), (b, _) = (grouped(numbers) for numbers in world.draw(g, min(draws, CHUNK), n))
        found.append((world.of(a), world.of(b)))
    value, base = (torch.cat(figures) for figures in zip(*found, strict=True))
    sign = -1 if world.rises else 1
    texts = []
    for figures, true in ((sign * (base - value), sign * (truth[1] - truth[0])), (value, truth[0])):
        low, high = jackknife_interval(figures[:, 0], figures[:, 1:], sizes, n, bounded=world.bounded)
        there = low.isfinite()
        holds = ((low <= true + 1e-12) & (true - 1e-12 <= high))[there].double().mean()
        wide = float(((high - low)[there]).median() / (2 * Z95 * figures[:, 0].std()))
        given = "" if bool(there.all()) else f", given to {100 * float(there.double().mean()):.0f} %"
        texts.append(f"{100 * float(holds):.1f} ({wide:.2f}{given})")
    return texts


def truth_of(world: World) -> tuple[float, float]:
    """The figures of ours and dense on 4 million samples."""
    sums: list[torch.Tensor] = [torch.zeros(()), torch.zeros(())]
    g = torch.Generator().manual_seed(10**6)
    for _ in range(40):
        drawn = world.draw(g, 1, 100_000)
        sums = [total + part.sum((0, 1)) for total, part in zip(sums, drawn, strict=True)]
    return float(world.of(sums[0])), float(world.of(sums[1]))


def metrics(draws: int) -> None:
    """The tables of metrics that are no counts of right and wrong."""
    sizes = (30, 50, 100, 500)
    print(f"| coverage, % (width over that of a known spread) | {' | '.join(f'{n:,} samples' for n in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for world in WORLDS:
        truth = truth_of(world)
        rows = list(zip(*(covered(world, n, draws, truth) for n in sizes), strict=True))
        for kind, row in zip(("drop", "value"), rows, strict=True):
            print(f"| {world.name}: {kind} | {' | '.join(row)} |", flush=True)
    sizes = (30, 50, 100)
    print(f"\n| coverage, % (mean width) | {' | '.join(f'{n} samples' for n in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for share, apart, change in ((0.5, 1.5, 0.5), (0.3, 2.5, 0.3), (0.2, 2.0, 0.5), (0.5, 3.0, 0.5)):
        rows = list(zip(*(ranked(n, share, apart, change, draws // 4) for n in sizes), strict=True))
        for kind, row in zip(("drop", "value"), rows, strict=True):
            print(f"| AUC, {100 * share:.0f} % of one class, {apart} apart: {kind} | {' | '.join(row)} |", flush=True)


class Answers(nn.Module):
    """What a network is given to say: one column of its inputs."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, networks, ...) -> (N, ...)."""
        return x[:, self.column]


def scored(
    metric: str, ours: torch.Tensor, dense: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> Score:
    """The score that the product gives."""
    data = Dataset(torch.stack([ours, dense], dim=1), targets, weights)
    return final_score(evaluate(Answers(0), Reference(Answers(1), data, METRICS[metric], batch=len(ours))))


def ranked(n: int, share: float, apart: float, change: float, draws: int) -> list[str]:
    """AUC of one logit, normal in both classes; ours has normal noise added. From all pairs, as Mann and Whitney."""
    g = torch.Generator().manual_seed(n)
    true = [(1 + erf(apart / sqrt(2 * (1 + noise**2)) / sqrt(2))) / 2 for noise in (change, 0.0)]
    ends: list[list[tuple[float, float]]] = [[], []]
    groups = min(n, GROUPS)
    member = torch.nn.functional.one_hot(torch.arange(n) % groups).double()  # (N, groups)
    for _ in range(draws // AUC_CHUNK):
        labels = (torch.rand(AUC_CHUNK, n, generator=g) < share).double()
        dense = apart * labels + normal(g, AUC_CHUNK, n)

        def areas(scores: torch.Tensor, labels: torch.Tensor = labels) -> Drawn:
            pairs = labels[:, :, None] * (1 - labels)[:, None, :]
            won = pairs * (scores[:, :, None] > scores[:, None, :])
            return _without(won, member), _without(pairs, member)

        (won, all_pairs), (won_dense, _) = areas(dense + change * normal(g, AUC_CHUNK, n)), areas(dense)
        value, base = won / all_pairs, won_dense / all_pairs
        for at, figures in enumerate((base - value, value)):
            low, high = jackknife_interval(figures[:, 0], figures[:, 1:], member.sum(0), n, bounded=True)
            ends[at] += [pair for pair in zip(low.tolist(), high.tolist(), strict=True) if pair[0] == pair[0]]
    return [_told(found, truth) for found, truth in zip(ends, (true[1] - true[0], true[0]), strict=True)]


def _without(pairs: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """(draws, 1 + groups): the sum over all pairs of samples (draws, N, N), then over those without each group."""
    blocks = torch.einsum("dij,ig,jh->dgh", pairs, member, member)
    of_group = blocks.sum(1) + blocks.sum(2) - blocks.diagonal(dim1=1, dim2=2)
    whole = blocks.sum((1, 2)).unsqueeze(1)
    return torch.cat([whole, whole - of_group], dim=1)


def _told(ends: list[tuple[float, float]], truth: float) -> str:
    if not ends:
        return "none given"
    held = [low <= truth <= high for low, high in ends]
    return f"{100 * np.mean(held):.1f} ({np.mean([high - low for low, high in ends]):.3f})"


# ---- weights --------------------------------------------------------------------------------------------------------


def weights(draws: int) -> None:
    """The table of weighted accuracy: weights that have nothing to do with the answers, and weights that do."""
    sizes = (60, 200, 1000)
    print(f"| weighted top-1, coverage of the drop, % (mean width) | {' | '.join(f'{n:,} samples' for n in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for name, lean in (("weights 1 to 5 that say nothing", 0.0), ("heavy samples change more often", 0.1)):
        row = [weighted_pairs(n, lean, draws // 10) for n in sizes]
        print(f"| {name} | {' | '.join(row)} |", flush=True)
    print()
    print(f"| weighted, coverage, % (mean width) | {' | '.join(f'{n:,} samples' for n in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for metric in ("auc", "average-precision"):
        for name, lean in (("weights 1 to 5 that say nothing", 0.0), ("heavy samples change more", 0.3)):
            rows = zip(*(weighted_ranks(metric, n, lean, draws // 10) for n in sizes), strict=True)
            for kind, row in zip(("drop", "value"), rows, strict=True):
                print(f"| {METRICS[metric].name}, {name}: {kind} | {' | '.join(row)} |", flush=True)


def weighted_pairs(n: int, lean: float, draws: int) -> str:
    """Ours is wrong where dense is right on 5 % of the samples, and on more of the heavy ones."""
    g = torch.Generator().manual_seed(n)
    counts = torch.arange(1.0, 6.0, dtype=torch.float64)
    chance = 0.05 + lean * (counts - 1) / 4
    true = float((counts * (chance - 0.02)).sum() / counts.sum())
    ends = []
    for _ in range(draws):
        weight = counts[torch.randint(5, (n,), generator=g)]
        drawn = torch.rand(n, generator=g, dtype=torch.float64)
        dense = (drawn < 0.98).double()
        ours = (drawn >= 0.05 + lean * (weight - 1) / 4).double()
        score = scored("binary", ours - 0.5, dense - 0.5, torch.ones(n).long(), weight)
        if score.drop_low is not None and score.drop_high is not None:
            ends.append((score.drop_low, score.drop_high))
    return _told(ends, true)


def weighted_ranks(metric: str, n: int, lean: float, draws: int) -> list[str]:
    """Drop and value of one logit, 30 % of one class and two apart; ours has noise added, more on the heavy samples."""
    g = torch.Generator().manual_seed(n)

    def drawn(samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        weight = torch.randint(1, 6, (samples,), generator=g).double()
        labels = (torch.rand(samples, generator=g) < 0.3).long()
        dense = 2.0 * labels + normal(g, samples)
        return dense + (0.3 + lean * (weight - 1)) * normal(g, samples), dense, labels, weight

    ours, dense, labels, weight = drawn(WORLD_SAMPLES)
    area = METRICS[metric].value
    assert area is not None
    value, base = (area(answers[:, None], labels, weight) for answers in (ours, dense))
    ends: list[list[tuple[float, float]]] = [[], []]
    for _ in range(draws):
        score = scored(metric, *drawn(n))
        for at, pair in enumerate(((score.drop_low, score.drop_high), (score.low, score.high))):
            if pair[0] is not None and pair[1] is not None:
                ends[at].append((pair[0], pair[1]))
    return [_told(found, truth) for found, truth in zip(ends, (base - value, value), strict=True)]


# ---- the sequential test --------------------------------------------------------------------------------------------


def verdict(runs: int) -> None:
    """How often a drop that is too large is accepted, and one that is small enough refused."""
    print(
        "| tolerance, points | true drop | discordant, % | accepted, % | refused, % | undecided, % | samples, median |"
    )
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for tolerance in (0.005, 0.01, 0.03):
        for over in (1.0, 1.0001, 1.5, 3.0):
            for more in (0.0, 0.02, 0.1):
                up, down = over * tolerance + more / 2, more / 2
                accepted, refused, taken = _verdicts(rng, up, down, tolerance, runs)
                print(
                    f"| {100 * tolerance:g} | {100 * over * tolerance:.4g} | {100 * (up + down):.4g} | "
                    f"{100 * accepted:.1f} | {100 * refused:.1f} | {100 * (1 - accepted - refused):.1f} | {taken} |",
                    flush=True,
                )


def _verdicts(
    rng: np.random.Generator, up: float, down: float, tolerance: float, runs: int
) -> tuple[float, float, str]:
    found, taken = [], []
    for _ in range(runs):
        drawn = rng.multinomial(64, (up, down, 1 - up - down), size=80).cumsum(0)
        for worse, better, same in drawn.tolist():
            answer = is_within(worse, better, same, tolerance)
            if answer is not None:
                taken.append(worse + better + same)
                break
        found.append(answer)
    return found.count(True) / runs, found.count(False) / runs, f"{np.median(taken):.0f}" if taken else "none"


PARTS: dict[str, Callable[[], None]] = {
    "pairs": lambda: pairs(DRAWS),
    "metrics": lambda: metrics(8000),
    "documents": lambda: in_parts(4000),
    "weights": lambda: weights(8000),
    "verdict": lambda: verdict(500),
}


def main() -> None:
    """Print the tables of one part, or of all."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--part", choices=PARTS)
    chosen = parser.parse_args().part
    torch.set_num_threads(1)
    for name in [chosen] if chosen else PARTS:
        PARTS[name]()
        print(flush=True)


if __name__ == "__main__":
    run_benchmark(main)
