"""`search` and `profile` on the command line."""

import json
from fnmatch import fnmatch

import pytest
from click.testing import CliRunner

from lowrank_core import Workspace, plan_cost, read_plan
from lowrank_core.commands import _opening, cli
from lowrank_core.errors import InvalidSearch
from lowrank_core.selection._problem import largest_drop

MODEL = "builtin:iris-mlp"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def run(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def test_search_writes_a_plan_that_keeps_the_budget(tmp_path, cache):
    out = tmp_path / "plan.json"
    result = run("search", MODEL, "--rule", "budget", "--multiplies", 0.8, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.keys() >= {"plan", "dense", "compressed", "score", "trials", "seconds"}
    assert found["compressed"]["multiplies"] <= 0.8 * found["dense"]["multiplies"]
    file = read_plan(out.read_bytes())
    workspace = Workspace.open(MODEL)
    assert plan_cost(workspace.profile, file.plan).multiplies == found["compressed"]["multiplies"]
    assert json.loads(out.read_text()) == found["plan"]
    assert file.provenance["search"]["rule"] == "budget"
    assert file.correction["samples"] > 0
    assert any(fnmatch(path.name, "points-*.jsonl") for path in (cache / "points").iterdir())
    evaluated = json.loads(run("evaluate", MODEL, "--plan", out, "--json").stdout)
    assert evaluated["value"] == found["score"]["value"]


def test_without_a_cache_nothing_is_written(tmp_path, cache):
    result = run(
        "search", MODEL, "--rule", "uniform", "--bytes", 0.9, "--no-cache", "--no-correct", "--out", tmp_path / "p"
    )
    assert result.exit_code == 0
    assert not cache.exists()
    assert read_plan((tmp_path / "p").read_bytes()).correction is None


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--multiplies", 0.01], 1, "cannot be reached"),
        (["--rule", "best", "--bytes", 0.5], 1, "unknown rule 'best'"),
        (["--bytes", 0.5, "--set", "samples"], 2, "KEY=VALUE"),
        (["--bytes", 0.5, "--set", "samples=1"], 1, "must be from 8"),
        (["--bytes", 0.5, "--lock", "fc9"], 1, "no layer goes by 'fc9'"),
        (["--max-drop", 0.001], 1, "cannot be told from chance"),
        (["--max-drop", "1%"], 1, "a drop of at most 0.01 cannot be told"),
        (["--max-drop", 2], 1, "must be below 1, but got 2; write 0.02 or 2%"),
        (["--max-drop", "100%"], 1, "must be below 1, but got 100%; write 0.01 or 1%"),
        (["--max-drop", "a lot"], 1, "a number or a percentage such as 1%, but got 'a lot'"),
        ([], 1, "works from a budget or a largest drop"),
    ],
    ids=str,
)
def test_bad_questions_get_one_line_and_no_file(tmp_path, arguments, status, says):
    result = run("search", MODEL, "--out", tmp_path / "plan.json", *arguments)
    assert result.exit_code == status
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "plan.json").exists()


def test_a_percentage_is_a_drop_of_a_share_alone():
    assert largest_drop(Workspace.open(MODEL), "2.5%") == largest_drop(Workspace.open(MODEL), 0.025)
    perplexity = Workspace.open("builtin:text-lm")
    assert largest_drop(perplexity, 3.5) == 3.5
    with pytest.raises(InvalidSearch, match="is none; write it in the score's own unit"):
        largest_drop(perplexity, "1%")


def test_profile_gives_every_point_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "profile.json"
    first = json.loads(run("profile", MODEL, "--out", out, "--json").stdout)
    assert json.loads(out.read_text()) == first
    assert first["evaluations"] == sum(len(layer["points"]) for layer in first["layers"]) > 0
    for layer in first["layers"]:
        for point in layer["points"]:
            assert point.keys() >= {"rank", "bytes", "multiplies", "loss_increase", "drop"}
            assert point["loss_increase"] >= 0
    again = run("profile", MODEL, "--json")
    assert json.loads(again.stdout)["layers"] == first["layers"]
    assert "measuring" not in again.stderr


def test_finetune_finds_its_ranks_first(tmp_path):
    out = tmp_path / "tuned.safetensors"
    result = run("finetune", MODEL, "--max-drop", 0.1, "--epochs", 1, "--no-distill", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert "bisection found ranks" in result.stderr
    found = json.loads(result.stdout)
    evaluated = json.loads(run("evaluate", MODEL, "--checkpoint", out, "--json").stdout)
    assert evaluated["value"] == found["score"]["value"]


@pytest.mark.parametrize("arguments", [[], ["--plan", __file__, "--bytes", 0.5]], ids=["neither", "both"])
def test_finetune_takes_a_plan_or_a_question(tmp_path, arguments):
    result = run("finetune", MODEL, "--out", tmp_path / "x", *arguments)
    assert result.exit_code == 2
    assert "give --plan, or what to search" in result.stderr
