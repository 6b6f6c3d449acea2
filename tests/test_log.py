"""What is told to a team's log: a line of JSON, a run of MLflow, a study of Optuna; and never an end of the work."""

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli

MODEL = "builtin:iris-mlp"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    fingerprint = Workspace.open(MODEL).profile.fingerprint
    path.write_text(RankPlan.of(fingerprint, {"fc1": Choice("svd", (2,))}).to_json())
    return path


def test_a_line_for_each_command_with_plan_figures_and_hashes(plan_file, tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "small.safetensors"
    assert run("evaluate", MODEL, "--plan", plan_file, "--require", "bytes<=1", "--log", log).exit_code == 3
    assert run("apply", MODEL, "--plan", plan_file, "--out", out, "--log", log).exit_code == 0
    evaluated, applied = (json.loads(line) for line in log.read_text().splitlines())
    assert [evaluated["command"], applied["command"]] == ["evaluate", "apply"]
    assert datetime.fromisoformat(applied["time"]).tzinfo is not None
    assert evaluated["plans"][0]["layers"] == json.loads(plan_file.read_text())["layers"]
    assert {"value", "drop", "drop_low", "drop_high", "samples"} <= set(evaluated["figures"])
    assert evaluated["requirements"][0]["verdict"] == "broken"
    (file,) = applied["files"]
    assert file == {
        "path": str(out),
        "bytes": out.stat().st_size,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    assert applied["figures"]["score.value"] == evaluated["figures"]["value"]


@pytest.mark.parametrize("kind", ["folder", "missing", "other", "input"])
def test_a_log_that_cannot_be_written_is_said_once_and_the_work_goes_on(kind, plan_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine\n")
    names = {
        "folder": tmp_path,
        "missing": tmp_path / "no" / "log",
        "other": tmp_path / "notes.txt",
        "input": plan_file,
    }
    before = plan_file.read_bytes()
    done = run("evaluate", MODEL, "--plan", plan_file, "--log", names[kind])
    assert done.exit_code == 0
    assert done.stderr.count("--log: ") == 1
    assert "the work goes on" in done.stderr
    assert "top-1 accuracy" in done.stdout
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
    assert plan_file.read_bytes() == before


def test_a_log_that_fills_the_disk_at_the_end_is_said_and_the_file_is_there(plan_file, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr("lowrank_core.commands._log.append", full)
    out = tmp_path / "small.safetensors"
    done = run("apply", MODEL, "--plan", plan_file, "--out", out, "--log", tmp_path / "log.jsonl")
    assert done.exit_code == 0
    assert "No space left" in done.stderr
    assert out.exists()


def test_a_log_is_no_output_of_the_same_command(plan_file, tmp_path):
    same = tmp_path / "same"
    refused = run("apply", MODEL, "--plan", plan_file, "--out", same, "--log", same)
    assert refused.exit_code == 1
    assert "--log" in refused.stderr


def test_a_log_is_no_standard_output(plan_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = run("apply", MODEL, "--plan", plan_file, "--out", tmp_path / "small", "--log", "-")
    assert refused.exit_code == 2
    assert "- is standard output" in refused.stderr
    assert not (tmp_path / "-").exists()


def test_a_run_of_mlflow_has_params_figures_and_files(plan_file, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    out = tmp_path / "small.safetensors"
    done = run("apply", MODEL, "--plan", plan_file, "--out", out, "--log", "mlflow")
    assert done.exit_code == 0, done.output
    assert "--log" not in done.stderr
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert found.data.params["model"] == MODEL
    assert found.data.metrics["score.samples"] == 74
    assert {a.path for a in client.list_artifacts(found.info.run_id)} == {"plan.json", "small.safetensors"}
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = run("evaluate", MODEL, "--plan", plan_file, "--log", "mlflow")
    assert done.exit_code == 0
    assert done.stderr.count("--log: MLflow is not written to") == 1


def test_a_study_of_optuna_holds_the_trials_and_the_answer(tmp_path):
    optuna = pytest.importorskip("optuna")
    path, plan = tmp_path / "study.db", tmp_path / "plan.json"
    for _ in range(2):  # it takes the place of an older one
        done = run("search", MODEL, "--multiplies", "0.7", "--out", plan, "--optuna", path)
        assert done.exit_code == 0, done.output
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{path}")
    study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{path}")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    (answer,) = [trial for trial in study.trials if trial.user_attrs.get("answer")]
    layers = json.loads(plan.read_text())["layers"]
    assert {name: [answer.params[f"{name}: rank"]] for name in layers} == {n: c["rank"] for n, c in layers.items()}
    assert answer.values[1] <= 0.7 * 70
    (tmp_path / "mine.db").write_bytes(b"SQLite format 3\0 something else")
    refused = run("search", MODEL, "--multiplies", "0.7", "--out", plan, "--optuna", tmp_path / "mine.db", "--force")
    assert refused.exit_code == 1
