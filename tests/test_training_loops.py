"""Somebody else's training loop: the examples of docs/training.md run, and what they leave is taken back."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from streamlit.testing.v1 import AppTest

from lowrank_core import Workspace, load_checkpoint, read_plan
from lowrank_core.commands import cli
from lowrank_core.compression.elsewhere import BY, with_weights
from lowrank_core.errors import InvalidFile
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.store.torch_file import read_content
from pages.ui import compare, tuning
from tests.conftest import PATIENCE_SECONDS

IRIS = "builtin:iris-mlp"
ROOT = Path(__file__).parents[1]
EXAMPLES = {
    name.partition(", ")[0]: (name.partition(", ")[2], code)
    for name, code in re.findall(
        r"<!-- run: (.+?) -->\n\n```python\n(.+?)```", (ROOT / "docs" / "training.md").read_text("utf-8"), re.DOTALL
    )
}
NEEDS = {"plain": (), "trainer": ("transformers", "accelerate"), "lightning": ("lightning",), "quantised": ()}


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open(IRIS)


@pytest.fixture(scope="module")
def folder(iris: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loops")
    (made / "plan.json").write_text(uniform_plan(iris.profile, 0.6).to_json(model_name="iris-mlp"))
    return made


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, [options[0], IRIS, "--plan", str(folder / "plan.json"), *options[1:]])


def network_of(iris: Workspace, folder: Path) -> torch.nn.Module:
    return iris.compress(read_plan((folder / "plan.json").read_bytes()).plan)


def test_every_example_is_run() -> None:
    assert EXAMPLES.keys() == {"before each", *NEEDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_what_an_example_leaves_is_taken_back(name: str, iris: Workspace, folder: Path) -> None:
    missing = [package for package in NEEDS[name] if find_spec(package) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    file, code = EXAMPLES[name]
    own = {
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{EXAMPLES['before each'][1]}\n{code}"],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state = load_file(folder / file) if file.endswith(".safetensors") else read_content(folder / file)
    state = state.get("state_dict", state)
    returned = with_weights(network_of(iris, folder), folder / file)
    assert (name == "quantised") == any("observers" in notice for notice in returned.notices)
    for key, value in returned.model.state_dict().items():
        (theirs,) = [given for full, given in state.items() if full == key or full == f"network.{key}"]
        assert torch.equal(value, theirs)
    assert not all(map(torch.equal, returned.model.parameters(), network_of(iris, folder).parameters()))


def test_the_commands_measure_and_write_these_weights(iris: Workspace, folder: Path) -> None:
    network = network_of(iris, folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, folder / "z.pt"
    )
    zero = run(folder, "evaluate", "--tuned", str(folder / "z.pt"), "--json", "--no-cache")
    assert zero.exit_code == 0, zero.output
    told = json.loads(zero.stdout)
    assert told["value"] < 0.6 < told["dense"]
    assert told["correction"] is None
    out = folder / "small.safetensors"
    done = run(
        folder, "export", "--tuned", str(folder / "z.pt"), "--format", "safetensors", "--out", str(out), "--json"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["score"]["value"] == told["value"]  # not that of the plan, which may be known
    loaded = load_checkpoint(iris.model, out)
    assert loaded.provenance["tuned"]["by"] == "a training loop of somebody else"
    assert not any(parameter.any() for parameter in loaded.model.parameters())
    page = run(folder, "report", "--tuned", str(folder / "z.pt"), "--no-front", "--out", str(folder / "r.md"))
    assert page.exit_code == 0, page.output
    assert "a training loop of somebody else" in (folder / "r.md").read_text()
    wrong = run(folder, "evaluate", "--tuned", str(out))
    assert "give it as --checkpoint" in wrong.output


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state.popitem(), "missing: "),
        (lambda state: state.update(extra=torch.zeros(3)), "unexpected: extra"),
        (
            lambda state: state.update({next(iter(state)): torch.zeros(3, 3)}),
            r"of another shape or kind: .* \(3, 3\) for",
        ),
        (lambda state: state.update({name: value * torch.nan for name, value in state.items()}), "NaN|finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(spoil, said: str, iris: Workspace, folder: Path) -> None:
    state = network_of(iris, folder).state_dict()
    spoil(state)
    torch.save(state, folder / "bad.pt")
    with pytest.raises(InvalidFile, match=said) as found:
        with_weights(network_of(iris, folder), folder / "bad.pt")
    assert "\n" not in str(found.value)
    assert str(found.value).count(" Give ") == ("Give" in str(found.value))


def test_of_two_networks_in_one_file_none_is_taken_by_chance(iris: Workspace, folder: Path) -> None:
    state = network_of(iris, folder).state_dict()
    both = {
        f"{who}.{name}": value * factor
        for who, factor in (("teacher", 0), ("student", 1))
        for name, value in state.items()
    }
    torch.save({"state_dict": both}, folder / "both.ckpt")
    with pytest.raises(InvalidFile, match=r"more than once: under state_dict\.student and state_dict\.teacher; save"):
        with_weights(network_of(iris, folder), folder / "both.ckpt")


def test_the_dense_networks_weights_are_none_of_the_plans(iris: Workspace, folder: Path) -> None:
    torch.save(iris.model.state_dict(), folder / "dense.pt")
    said = run(folder, "evaluate", "--tuned", str(folder / "dense.pt"))
    assert said.exit_code == 1
    assert "Give the state_dict of the network that this plan makes." in said.output


@pytest.mark.parametrize("more", [("--checkpoint", "plan.json"), ("--depth",), ("--compare",)])
def test_options_that_contradict_are_refused(more: tuple[str, ...], folder: Path) -> None:
    given = [str(folder / one) if one.endswith(".json") else one for one in more]
    said = run(folder, "evaluate", "--tuned", str(folder / "plan.json"), *given)
    assert said.exit_code == 2
    alone = CliRunner().invoke(cli, ["evaluate", IRIS, "--tuned", str(folder / "plan.json")])
    assert "--tuned goes with --plan" in alone.output


def test_the_page_takes_them_for_compare_and_export(
    iris: Workspace, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", IRIS])
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    page.switch_page("pages/5_Fine_tune.py").run()
    plan = next(iter(page.session_state["histories"].values())).plan
    network = iris.compress(plan)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.save(network.state_dict(), tmp_path / "zero.pt")
    page.file_uploader[0].upload("bad.pt", b"PK nothing", "application/octet-stream").run()
    take = "Take these weights"
    next(one for one in page.button if one.label == take).click().run()
    assert ["neither safetensors" in error.value or "bad" in error.value for error in page.error] == [True]
    page.file_uploader[0].upload("zero.pt", (tmp_path / "zero.pt").read_bytes(), "application/octet-stream").run()
    next(one for one in page.button if one.label == take).click().run()
    assert not page.error
    assert "zero" in page.success[0].value
    page.switch_page("pages/7_Export.py").run()
    assert any("trained elsewhere" in option for option in page.radio[0].options)

    content = (tmp_path / "zero.pt").read_bytes()
    weights, epoch, said = tuning.given(iris, plan, content, tmp_path)
    assert (said, weights.given[:4].isalnum(), weights.score.value < weights.score.dense) == ((), True, True)
    again = tuning.weights(iris, weights, tmp_path)
    assert all(map(torch.equal, again.model.parameters(), epoch.model.parameters()))
    made = tuning.compressed(iris, weights, again)
    assert made.tuned == {"by": BY, "sha256": weights.given}
    assert not any(parameter.any() for parameter in made.model.parameters())
    column = compare.Column(weights.candidate, "as it is", weights)
    found = compare.network_of(iris, column, lambda one: tuning.weights(iris, one, tmp_path))
    assert not any(parameter.any() for parameter in found.model.parameters())
