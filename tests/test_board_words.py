"""A figure reads the same on the board, whose script writes its own, as on every other page."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lowrank_core.figures import of_device, of_floor, times_fewer
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace
from pages.ui import words
from tests.board_script import answer, needs_node

pytestmark = needs_node

DRAW = random.Random(0)
WHOLE = [0, 1, 9, 12, 999, 1000, 1001, 9_999, 99_995, 999_949, 999_950, 999_999, 1_078_888, 40_551_040]
WHOLE += [999_949_999, 999_950_000, 10**9, 7 * 10**12, *(int(10 ** DRAW.uniform(0, 14)) for _ in range(500))]
HALVES = [0.98625, 0.98875, 0.125, 0.00125, 0.015625, 0.12345, 2.5, 0.5, 1.00005, 58.375]
PARTS = [0.0, 1.0, 1.005, 0.995, 0.99995, 0.0999, 2 / 3, 1e-4, 1e-5, 1e-7, *HALVES]
PARTS += [DRAW.random() for _ in range(300)] + [part / 800 for part in range(0, 801, 5)]
LARGE = [
    58.36003250334551,
    123.456,
    9999.5,
    99_995.0,
    123_456.0,
    1e7,
    2.5e9,
    *(10 ** DRAW.uniform(-3, 6) for _ in range(300)),
]


def shown(text: str) -> str:
    """As Python writes it: the board's space between a figure and its unit does not break."""
    return text.replace("\u202f", " ")


def read(body: str, **given: Any) -> list[str]:
    return [shown(text) for text in answer(body, **given)]


@pytest.fixture(scope="module", params=["iris-mlp", "text-lm"])
def workspace(request: pytest.FixtureRequest) -> Workspace:
    """One network whose score is a share, and one whose score is better when lower."""
    return Workspace.open(f"builtin:{request.param}")


@pytest.fixture
def model(workspace: Workspace) -> dict[str, Any]:
    return {"metric": {"share": words.shares(workspace), "higher": not words.rises(workspace)}}


@pytest.mark.parametrize("unit", ["", "B"])
def test_counts(unit: str) -> None:
    values = [*WHOLE, *(-value for value in WHOLE if value), 0.5, 999.96, 12.5]
    found = read("return values.map(value => words.count(value, unit));", values=values, unit=unit)
    assert found == [words.count(value, unit) for value in values]
    assert all(abs(float(text.split()[0])) < 1000 for text in found if not text.endswith(f"T{unit}"))  # not 1000.0 k


def test_quantities() -> None:
    found = read('return ["bytes", "multiplies"].map(q => words.quantity(q, 512));')
    assert found == [words.count(512, "B"), words.count(512)]


def test_bytes_beside_a_device() -> None:
    pairs = [(value, most) for value in WHOLE if value < 2**40 for most in (20 << 10, 1_500_000, 16 << 20, 8 * 10**9)]
    found = read("return pairs.map(([need, most]) => words.ofDevice(need, most));", pairs=pairs)
    assert found == [of_device(*pair) for pair in pairs]


def test_how_many_times_fewer() -> None:
    pairs = [(value, dense) for value in WHOLE[:60] for dense in (0, 1, 1000, 698_600)]
    found = read('return pairs.map(([now, dense]) => words.timesFewer(now, dense, "multiplies"));', pairs=pairs)
    assert found == [times_fewer(*pair, "multiplies") for pair in pairs]


def test_scores_beside_their_floor(workspace: Workspace, model: dict[str, Any]) -> None:
    floors = (0.98, 0.5, 0.97996, 0.9801)
    pairs = [(value, worst) for value in (*PARTS, 0.979996, 0.98, 0.9800001) for worst in floors]
    found = read("return pairs.map(([value, worst]) => words.ofFloor(model, value, worst));", pairs=pairs, model=model)
    percent, rises = words.shares(workspace), words.rises(workspace)
    assert found == [of_floor(*pair, percent=percent, rises=rises) for pair in pairs]


def test_shares() -> None:
    values = PARTS + LARGE
    assert read("return values.map(value => words.share(value));", values=values) == [words.share(v) for v in values]


def test_whole_numbers() -> None:
    assert read("return values.map(value => words.whole(value));", values=WHOLE) == [f"{value:,}" for value in WHOLE]


def test_scores(workspace: Workspace, model: dict[str, Any]) -> None:
    values = [*PARTS, *LARGE, *(-value for value in LARGE)]
    found = read("return values.map(value => words.score(model, value));", values=values, model=model)
    assert found == [words.score(workspace, value) for value in values]


def test_changes_with_their_intervals(workspace: Workspace, model: dict[str, Any]) -> None:
    drops: list[tuple[float, float | None, float | None]] = [(drop, None, None) for drop in (*PARTS, -1e-9, -0.004)]
    drops += [(d, d - DRAW.random(), d + DRAW.random()) for d in (DRAW.uniform(-1, 1) for _ in range(300))]
    samples = [number % 2 * 20 for number in range(len(drops))]
    sent = [
        {"drop": drop, "drop_low": low, "drop_high": high, "samples": count}
        for count, (drop, low, high) in zip(samples, drops, strict=True)
    ]
    found = read("return sent.map(score => words.change(model, score));", sent=sent, model=model)
    higher = not words.rises(workspace)
    scores = [
        Score("", 0.0, 0.0, count, higher, None, None, drop, low, high)
        for count, (drop, low, high) in zip(samples, drops, strict=True)
    ]
    assert "too few samples that differ for an interval" in found[1]
    assert found == [words.change(workspace, score, "against dense") for score in scores]
    assert words.change(workspace, scores[-1], "").count("to") == 1


def test_figures_of_fixed_length() -> None:
    values = [*PARTS, *LARGE, *(value + 0.5 for value in range(20))]
    body = "return values.flatMap(value => [0, 1, 2, 3].map(digits => fixed(value, digits)));"
    assert read(body, values=values) == [f"{value:.{digits}f}" for value in values for digits in range(4)]


def test_a_range_has_as_many_digits_as_it_tells_and_a_share_ends_at_0_and_100() -> None:
    ranges = [(0.9312, 0.9888), (0.981, 0.9903), (0.98912, 0.98991), (0.98991, 0.98991), (-0.02, 1.03), (0.2, 0.25)]
    shares = [{"low": low, "high": high} for low, high in ranges]
    body = "return ranges.map(one => words.range({ metric: { share } }, one));"
    found = ["93 to 99 %", "98.1 to 99.0 %", "98.91 to 98.99 %", "98.99 %", "0 to 100 %", "20 to 25 %"]
    assert read(body, ranges=shares, share=True) == found
    others = [{"low": 5.71, "high": 8.43}, {"low": 5.712, "high": 5.744}, {"low": 5.7, "high": 5.7}]
    assert read(body, ranges=others, share=False) == ["5.7 to 8.4", "5.71 to 5.74", "5.7"]
