"""What a network must keep to: read, judged by intervals, and an exit status of its own."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lowrank_core import Choice, RankPlan, Workspace, plan_cost
from lowrank_core.commands import cli
from lowrank_core.commands._requirements import judge_all, read_requirement
from lowrank_core.errors import InvalidSettings
from lowrank_core.measure.formats import plan_flash_bytes
from lowrank_core.scoring.scores import Score

MODEL = "builtin:iris-mlp"


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open(MODEL)


@pytest.fixture(scope="module")
def plan(workspace: Workspace) -> RankPlan:
    return RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (2,)), "fc2": Choice("svd", (1,))})


@pytest.fixture
def plan_file(plan: RankPlan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    return path


def evaluate(plan_file: Path, *bounds: str, more: tuple[object, ...] = ()) -> Result:
    required = [word for bound in bounds for word in ("--require", bound)]
    arguments = ["evaluate", MODEL, "--plan", str(plan_file), *required, *map(str, more), "--json"]
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize(
    ("text", "quantity", "limit", "number", "of_dense"),
    [
        ("drop<=1%", "drop", 0.01, "as it is", False),
        ("drop <= 1.5 points", "drop", 0.015, "as it is", False),
        ("accuracy>=98%", "score", 0.98, "as it is", False),
        ("bytes<=64KiB", "bytes", 65536, "as it is", False),
        ("bytes<=64kB", "bytes", 64000, "as it is", False),
        ("peak RAM int8 <= 20 KiB", "RAM", 20480, "int8", False),
        ("flash float16<=0.5MiB", "flash", 524288, "float16", False),
        ("MACs<=1.5M", "multiplies", 1.5e6, "as it is", False),
        ("parameters<=50%", "parameters", 0.5, "as it is", True),
        ("latency≤2ms", "microseconds", 2000, "as it is", False),
    ],
)
def test_requirements_are_read_with_their_units(text, quantity, limit, number, of_dense):
    found = read_requirement(text)
    assert (found.quantity, found.limit, found.number, found.of_dense) == (quantity, limit, number, of_dense)


@pytest.mark.parametrize(
    "text",
    ["speed<=3", "bytes<=3 miles", "bytes>=3", "drop", "drop<=", "drop<=-1%", "bytes int8<=3", "score>=1.2.3", ""],
)
def test_what_says_nothing_known_is_wrong_usage_in_one_line(text, plan_file):
    with pytest.raises(InvalidSettings):
        read_requirement(text)
    result = evaluate(plan_file, text)
    assert result.exit_code == 2
    assert "--require" in result.stderr.strip().splitlines()[-1]


def score(drop: float, low: float | None, high: float | None, samples: int = 500) -> Score:
    return Score("top-1 accuracy", 0.9 - drop, 0.9, samples, True, 0.8, 0.95, drop, low, high)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (score(0.002, -0.004, 0.008), "holds"),
        (score(0.002, -0.004, 0.0101), "undecided"),
        (score(0.02, 0.008, 0.03), "undecided"),
        (score(0.02, 0.0101, 0.03), "broken"),
        (score(0.0, None, None), "undecided"),
        (score(0.0, None, None, samples=0), "holds"),  # evaluate(model) gives no interval
        (score(0.02, None, None, samples=0), "broken"),
    ],
)
def test_a_drop_is_judged_by_its_interval(workspace, plan, measured, verdict):
    (found,) = judge_all(workspace, [read_requirement("drop<=1%")], workspace.model, plan, measured, None)
    assert found.verdict == verdict
    assert f": {verdict};" in found.says


def test_answers_that_are_not_finite_break_a_drop(workspace, plan):
    bad = Score("top-1 accuracy", float("nan"), 0.9, 9, True, None, None, float("inf"), None, None, not_finite=3)
    (found,) = judge_all(workspace, [read_requirement("drop<=99%")], workspace.model, plan, bad, None)
    assert found.verdict == "broken"


def test_where_one_does_not_hold_the_exit_status_is_three_and_the_rest_is_told(workspace, plan, plan_file):
    cost = plan_cost(workspace.profile, plan)
    flash = plan_flash_bytes(workspace.model, workspace.profile, plan, "int8")
    held = (f"bytes<={cost.bytes}", f"flash int8<={flash}B", "multiplies<=200%", "RAM<=1MB", "score>=1%")
    result = evaluate(plan_file, *held)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [one["verdict"] for one in found["requirements"]] == ["holds"] * len(held)
    assert found["broken"] == []
    result = evaluate(plan_file, *held, f"bytes<={cost.bytes - 1}", f"parameters<={cost.parameters - 2}")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert [one["over"] for one in found["requirements"][-2:]] == [1, 2]
    assert len(found["broken"]) == 2
    last = result.stderr.strip().splitlines()[-1]
    assert "1 B over" in last
    assert "2 over" in last


def test_microseconds_come_from_a_table_that_knows_every_layer(plan_file, tmp_path):
    table = tmp_path / "table.csv"
    rows = "layer,method,rank,microseconds\nfc1,svd,2,3\nfc1,dense,,5\nfc2,svd,1,4\n"
    table.write_text(rows)
    unknown = evaluate(plan_file, "microseconds<=50%", more=("--latency-table", table))
    assert unknown.exit_code == 1
    assert "no time of 'fc2'" in unknown.stderr
    table.write_text(f"{rows}fc2,dense,,9\n")
    result = evaluate(plan_file, "microseconds<=7us", "latency<=40%", more=("--latency-table", table))
    assert [one["verdict"] for one in json.loads(result.stdout)["requirements"]] == ["holds", "broken"]
    assert "--latency-table" in evaluate(plan_file, "microseconds<=1ms").stderr
