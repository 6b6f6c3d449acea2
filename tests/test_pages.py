"""What a reader sees on each page, without a browser."""

import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from streamlit.runtime.scriptrunner_utils.exceptions import StopException
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData, ScriptRequests
from streamlit.testing.v1 import AppTest

from lowrank_core.builtin import BUILTIN
from lowrank_core.commands import cli
from lowrank_core.compression.start import suggested_plan
from lowrank_core.errors import InvalidFile, InvalidSettings, MissingExtra
from lowrank_core.exports import EXPORTS, Compressed, Exported, _reload
from lowrank_core.layers.data import Outputs
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import dense_cost, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan, read_plan
from lowrank_core.running import scope as scopes
from lowrank_core.running.jobs import Job
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.files import forget_not_kept
from lowrank_core.workspace import Workspace
from pages.ui import at_start, charts, tables, words
from pages.ui.commands import app_command, as_here, core_command
from pages.ui.state import downloads, jobs, models, runs, server, spectra
from tests.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "Rank Explorer": "app.py",
    "Model": "pages/1_Model.py",
    "Spectra": "pages/2_Spectra.py",
    "Ranks": "pages/3_Ranks.py",
    "Search": "pages/4_Search.py",
    "Fine-tune": "pages/5_Fine_tune.py",
    "Compare": "pages/6_Compare.py",
    "Export": "pages/7_Export.py",
}


Open = Callable[..., AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """`opened(title)` or `opened(title, model)`: the page, run once in a fresh session of the app."""

    def opener(title: str, *model: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", *model])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
        return (app if PAGES[title] == "app.py" else app.switch_page(PAGES[title])).run()

    return opener


def test_a_run_that_streams_ends_for_a_newer_one_but_never_as_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended by itself, a run that Streamlit has replaced takes the fragments of the page that is there now with it."""
    requests = ScriptRequests()
    monkeypatch.setattr(runs, "get_script_run_ctx", lambda: SimpleNamespace(script_requests=requests))
    assert not runs.newer_run_waits()
    requests.request_rerun(RerunData())
    assert runs.newer_run_waits()
    requests.request_stop()
    with pytest.raises(StopException):
        runs.newer_run_waits()


@pytest.mark.parametrize("given", ["x", "0", "-5", "1.5"])
def test_a_limit_of_memory_that_is_none_is_one_clear_error(
    opened: Open, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv(models.MEMORY, given)
    models.room.clear()
    models._builtin.clear()
    try:
        assert f"must be a whole number of MB from 1, such as 512; got {given!r}" in opened("Model").error[0].value
    finally:
        models._builtin.clear()


def test_the_limit_of_memory_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.MEMORY, "512")
    models.room.clear()
    assert models.room().limit_bytes == 512_000_000
    models.room.clear()


def text(page: AppTest) -> str:
    """All prose on the page."""
    return "\n".join(str(element.value) for kind in ("markdown", "caption") for element in page.get(kind))


def metrics(page: AppTest) -> dict[str, str]:
    """Figures by their label."""
    return {metric.label: metric.value for metric in page.metric}


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


@pytest.mark.parametrize("title", PAGES)
def test_every_page_opens_alone_with_the_default_model(opened: Open, title: str, workspace: Workspace) -> None:
    page = opened(title)
    assert not page.exception
    assert not page.error
    assert page.title[0].value == title
    assert words.dense(workspace, *workspace.dense_score()) in text(page)


LANGUAGE = """
import torch
from torch import nn

class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rnn, self.head = nn.Embedding(30, 12), nn.GRU(12, 8, batch_first=True), nn.Linear(8, 30)
    def forward(self, tokens):
        return self.head(self.rnn(self.table(tokens))[0])

metric = "perplexity"
def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Language().eval()
def example_inputs(): return (torch.ones(1, 6).long(),)
def eval_data():
    tokens = torch.randint(30, (40, 7), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]
"""


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("language") / "language.py"
    path.write_text(LANGUAGE)
    return str(path)


@pytest.mark.parametrize("title", PAGES)
def test_every_page_takes_a_table_a_recurrent_layer_and_a_score_better_when_lower(
    opened: Open, title: str, language: str
) -> None:
    page = opened(title, language)
    assert not page.exception
    assert not page.error
    assert "dense perplexity" in text(page)


@pytest.mark.parametrize("title", PAGES)
def test_a_broken_model_is_one_clear_error_and_the_others_are_offered(opened: Open, title: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def build_model():\n    raise ValueError('no weights here')\n")
    page = opened(title, str(broken))
    assert not page.exception
    assert len(page.error) == 1
    assert "no weights here" in page.error[0].value
    page.radio[0].set_value("builtin:iris-mlp").run()
    assert not page.error
    assert "iris-mlp" in text(page)


def test_a_fault_of_a_page_is_shown_without_a_traceback(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "layer_costs", lambda profile: 1 / 0)
    page = opened("Model")
    assert not page.exception
    assert [error.value for error in page.error] == [
        "This page failed with ZeroDivisionError; the terminal that runs the app shows where."
    ]


def test_a_page_runs_once_more_where_a_run_before_it_wrote_to_the_session(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamlit goes through the session's state while a run that it has replaced may still write to it."""
    costs, raised = tables.layer_costs, [RuntimeError("dictionary changed size during iteration")]

    def once(profile: ModelProfile) -> list[dict[str, Any]]:
        if raised:
            raise raised.pop()
        return costs(profile)

    monkeypatch.setattr(tables, "layer_costs", once)
    page = opened("Model")
    assert not raised
    assert not page.error
    raised += [RuntimeError("dictionary changed size during iteration") for _ in range(5)]
    page.run()
    assert "failed with RuntimeError" in page.error[0].value, "again and again is no race"


def test_home_says_how_to_open_a_model_of_ones_own(opened: Open) -> None:
    page = opened("Rank Explorer")
    assert [button.label for button in page.button] == ["Tune the ranks", "Open the network"]
    commands = [code.value for code in page.code]
    assert commands == [core_command("new", "my_model.py"), app_command("path/to/model.py")]


def test_commands_work_as_they_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a checkout whose environment was never activated, with one that was, and from an installed package."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path)
    assert core_command("new", "a b.py") == ".venv/bin/python -m lowrank_core new 'a b.py'"
    assert app_command("m.py") == ".venv/bin/python -m streamlit run app.py -- m.py"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert core_command("new", "m.py") == f"{programs}/python -m lowrank_core new m.py"
    (programs / "rank-explorer").touch()
    assert app_command("m.py") == f"{programs}/rank-explorer app m.py"
    monkeypatch.setenv("PATH", str(programs))
    assert core_command("check", "m.py") == "rank-explorer check m.py"
    (programs / "rank-explorer").unlink()
    assert core_command("check", "m.py") == "python -m lowrank_core check m.py"
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    assert as_here("`python -m lowrank_core new FILE` writes one.") == (
        "`.venv/bin/python -m lowrank_core new FILE` writes one."
    )


@pytest.mark.parametrize("part", [0, 1])
def test_the_command_that_home_shows_runs(part: int) -> None:
    """Up to --help, in a shell that knows nothing of the environment."""
    command = (core_command("new", "m.py"), app_command("m.py"))[part].removesuffix("m.py").removesuffix("-- ")
    told = subprocess.run(
        f"{command} --help", shell=True, cwd=Path.cwd(), env={"PATH": os.defpath}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert "Usage" in told.stdout


def test_home_changes_the_model(opened: Open) -> None:
    page = opened("Rank Explorer")
    page.radio[0].set_value("builtin:iris-mlp").run()
    assert metrics(page)["Multiplies"] == "70"
    assert metrics(page)["Parameters"] == "83"


def test_model_shows_the_whole_cost_and_every_layer(opened: Open, workspace: Workspace) -> None:
    page = opened("Model")
    cost = plan_cost(workspace.profile)
    shown = metrics(page)
    assert shown["Multiplies per sample"] == words.count(cost.multiplies)
    assert shown["Additions per sample"] == words.count(cost.additions)
    chart, layers, ranks, skipped = (frame.value for frame in page.dataframe)
    shares = {row["layer"]: row["multiplies"] for row in chart.to_dict("records")}
    assert shares["fc1"] == pytest.approx(dense_cost(workspace.profile.layer("fc1")).multiplies / cost.multiplies)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(layers["Layer"]) == [layer.name for layer in workspace.profile.layers]
    assert layers["Multiplies"].sum() + workspace.profile.rest.multiplies == cost.multiplies
    assert layers["Bytes"].sum() + workspace.profile.rest.bytes == cost.bytes
    row = ranks[(ranks["Layer"] == "fc1") & (ranks["Method"] == "SVD")].iloc[0]
    assert (row["Maximum"], row["Break-even in bytes"]) == ("256", "127")
    assert list(skipped["Module"]) == [module.name for module in workspace.profile.skipped]


def test_shares_of_cost_add_up(workspace: Workspace) -> None:
    rows = tables.cost_shares(workspace.profile)
    for quantity in ("multiplies", "bytes"):
        assert sum(row[quantity] for row in rows) == pytest.approx(1)
    assert [row["layer"] for row in rows] == [*(x.name for x in workspace.profile.layers), tables.OTHERS]


def test_a_curve_carries_the_plan_and_the_marks(workspace: Workspace) -> None:
    layer = workspace.profile.layer("conv2")
    plan = RankPlan.of(workspace.profile.fingerprint, {"conv2": Choice("tucker2", (10, 6))})
    out, inner = tables.curves(workspace, layer, "tucker2", plan)
    assert (out.axis, out.top, out.chosen) == ("out", 32, 10)
    assert (inner.axis, inner.top, inner.chosen) == ("in", 16, 6)
    assert tables.curves(workspace, layer, "svd", plan)[0].chosen is None
    assert out.energy[out.rank_90 - 1] >= 0.9 > out.energy[out.rank_90 - 2]
    assert out.energy[-1] == pytest.approx(1)
    drawn = charts.spectrum(out)
    assert list(drawn.data[0].y) == list(out.sigma)
    labels = [note.text for note in drawn.layout.annotations]
    assert labels[0] == "chosen rank 10"
    assert len({note.yshift for note in drawn.layout.annotations}) == len(labels)


def test_spectra_shows_every_layer_and_one_large(opened: Open, workspace: Workspace) -> None:
    page = opened("Spectra")
    grid = next(element.proto.body for element in page.get("html") if 'class="sm-grid"' in element.proto.body)
    assert all(f"<b>{layer.name}</b>" in grid for layer in workspace.profile.layers)
    plan = suggested_plan(workspace.profile, workspace.factors)
    page.selectbox[0].set_value("fc1").run()
    shown = metrics(page)
    assert shown["Chosen rank"] == str(plan.get("fc1").rank[0])  # type: ignore[union-attr]
    assert shown["Break-even, bytes / multiplies"] == "127 / 127"
    figure = json.loads(page.get("plotly_chart")[0].proto.spec)
    assert len(figure["data"]) == 2


def test_work_that_nobody_waits_for_gives_way_to_the_spectra(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    curves, seen = tables.curves, []

    def watched(workspace: Workspace, *given: Any) -> Any:
        seen.append(bool(scopes._waiting))
        return curves(workspace, *given)

    monkeypatch.setattr(tables, "curves", watched)
    page = opened("Spectra")
    assert not page.exception
    assert all(seen[:-1])
    assert len(seen) > 5


def test_a_small_spectrum_is_filled_up_to_its_rank_and_is_no_document_of_its_own() -> None:
    curve = tables.Curve("fc", "rank", (1.0, 0.1, 0.01, 0.01), (0.9, 0.95, 0.98, 1.0), 1, 2, 2, 1.5, 1.1, 1, 2)
    drawn = charts.small_multiples([curve])
    assert "--kept:25.0%" in drawn
    assert "polygon(0 5.0%,12.5% 5.0%,37.5% 50.0%,62.5% 95.0%,87.5% 95.0%,100% 95.0%,100% 100%,0 100%)" in drawn
    assert 'style="left:37.5%"' in drawn
    assert "--kept:100.0%" in charts.small_multiples([replace(curve, chosen=None)])
    assert "<img" not in drawn, "an image of SVG takes a browser 30 ms"


def test_a_layer_name_is_never_markup() -> None:
    curve = tables.Curve("<img src=x>", "rank", (1.0, 0.1), (0.9, 1.0), 1, 1, 1, 1.5, 1.1, 1, 2)
    assert "<img src=x>" not in charts.small_multiples([curve])


def test_a_weight_of_zeros_can_be_drawn() -> None:
    curve = tables.Curve("fc", "rank", (1e-30, 1e-30), (1.0, 1.0), None, 0, 0, 0.0, 0.0, 1, 1)
    assert len(charts.spectrum(curve).data) == 2
    assert charts.small_multiples([curve])
    assert "leave it dense" in tables.advice(curve)
    assert "Every weight of this layer is zero" in tables.advice(replace(curve, even_bytes=5, even_multiplies=5))


def test_export_measures_the_plan_and_writes_a_checked_file(opened: Open, workspace: Workspace) -> None:
    page = opened("Export")
    plan = suggested_plan(workspace.profile, workspace.factors)
    assert metrics(page)["Multiplies"] == words.count(plan_cost(workspace.profile, plan).multiplies)
    next(button for button in page.button if button.label == "Write the checkpoint").click().run()
    assert not page.error
    assert "differ by **0** at most" in text(page)
    assert "Measured top-1 accuracy" in text(page)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not json", "not a valid plan file"),
        (b'{"format": "lowrank-plan", "version": 99}', "version must be 1 or 2"),
        (RankPlan("sha256:other").to_json().encode(), "was made for the model"),
    ],
)
def test_a_bad_plan_is_one_clear_error_and_nothing_is_lost(opened: Open, content: bytes, says: str) -> None:
    page = opened("Export")
    before = metrics(page)
    page.file_uploader[0].upload("mine.json", content, "application/json").run()
    assert not page.exception
    assert len(page.error) == 1
    assert says in page.error[0].value.replace("\\", "")
    assert metrics(page) == before


def test_an_uploaded_plan_is_adopted(opened: Open, workspace: Workspace) -> None:
    page = opened("Export")
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (5,))})
    page.file_uploader[0].upload("mine.json", plan.to_json().encode(), "application/json").run()
    assert not page.error
    assert metrics(page)["Layers factorised"] == "1 of 6"
    assert metrics(page)["Bytes"] == words.count(plan_cost(workspace.profile, plan).bytes, "B")
    assert "mine" in page.success[0].value


def test_an_uploaded_plan_scores_as_its_own_correction_says(opened: Open, workspace: Workspace) -> None:
    asked = Correction("bias", samples=48, seed=3)
    plan = RankPlan.of(workspace.profile.fingerprint, {"conv2": Choice("svd", (3,)), "fc1": Choice("svd", (4,))})
    content = plan.to_json(correction=asked.to_dict()).encode()
    page = opened("Export")
    page.file_uploader[0].upload("mine.json", content, "application/json").run()
    assert "bias on 48 samples, seed 3" in page.info[0].value
    next(button for button in page.button if button.label == "Measure the accuracy").click().run()
    candidate = workspace.candidate_in(read_plan(content))  # as the command line takes it
    score = final_score(workspace.measure(workspace.compress(plan, candidate.correction)))
    assert words.plain(words.verdict(workspace, score)) in text(page)
    usual = final_score(workspace.measure(workspace.compress(plan, workspace.correction)))
    assert usual.value != score.value


def test_a_file_that_answers_otherwise_can_be_saved_all_the_same(
    opened: Open, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differing(kind: str, ref: str, file: Path, batches: list[Any], own_seconds: float) -> list[Outputs]:
        answers = _reload.READERS[kind](ref, str(file))
        return [{name: 1.05 * values for name, values in answers(inputs).items()} for inputs in batches]

    monkeypatch.setattr(_reload, "outputs_in_fresh_process", differing)
    page = opened("Export")
    next(button for button in page.button if button.label == "Write the checkpoint").click().run()
    assert "was not saved" in page.error[0].value
    next(button for button in page.button if button.label == "Save it all the same").click().run()
    assert not page.error
    assert "more than rounding explains, and was accepted" in text(page)


# ---- weights without a model, and many layers ----


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Sixty layers in blocks, and a norm."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.{part}.weight": torch.randn(6, 5, generator=generator) for n in range(30) for part in "ab"}
    save_file(tensors | {"norm.weight": torch.ones(5)}, tmp_path / "large.safetensors")
    return str(tmp_path / "large.safetensors")


@pytest.mark.parametrize("title", PAGES)
def test_every_page_says_what_weights_alone_are_good_for(opened: Open, weights: str, title: str) -> None:
    page = opened(title, weights)
    assert not page.exception
    assert not page.error
    if title != "Spectra":
        assert "sizes and spectra only" in page.info[0].value


def test_model_lists_weights_by_block_and_by_layer(opened: Open, weights: str) -> None:
    page = opened("Model", weights)
    blocks, layers, left = (element.value for element in page.dataframe)
    assert list(blocks["Block"]) == [f"layers.{n}" for n in range(30)]
    assert set(blocks["Parameters"]) == {60}
    assert len(layers) == 60
    assert "Multiplies" not in layers
    assert list(left["Tensor"]) == ["norm.weight"]
    assert metrics(page)["Parameters"] == "1.805 k"


def test_spectra_of_weights_alone_arrive_unasked_where_that_is_quick(opened: Open, weights: str) -> None:
    page = opened("Spectra", weights)
    drawn = [element.proto.body for element in page.get("html") if 'class="sm-grid"' in element.proto.body]
    assert sum(body.count('<figure class="sm"') for body in drawn) == 60
    assert "<summary>layers.0 to layers.23, 48 layers</summary>" in drawn[0]
    assert metrics(page)["Break-even in bytes"] == "2"


def test_spectra_that_take_long_are_announced_and_wait(
    opened: Open, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "SPECTRA_SECONDS", 0.0)
    page = opened("Spectra", weights)
    assert "The spectra of 59 layers take about 1 s on this machine" in page.info[0].value, "one is shown large"
    assert not [element for element in page.get("html") if 'class="sm-grid"' in element.proto.body]
    next(button for button in page.button if button.label == "Compute them all").click().run()
    drawn = [element.proto.body for element in page.get("html") if 'class="sm-grid"' in element.proto.body]
    assert sum(body.count('<figure class="sm"') for body in drawn) == 60


def test_export_writes_each_format_as_it_is_asked_for(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision of a .pt2, into a folder; a folder that is not there is one clear line."""
    traced_here: list[object] = []
    monkeypatch.setattr(torch.export, "export", lambda *given, **more: traced_here.append(given))
    page = opened("Export", "builtin:digits-cnn", f"--export-folder={tmp_path}")
    page.button_group(key="format").set_value("pt2").run()
    page.selectbox(key="dtype pt2").set_value("bfloat16")
    page.text_input(key="export folder").set_value(str(tmp_path)).run()
    next(button for button in page.button if button.label == "Write the exported program").click().run()
    assert not page.error
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".pt2"
    assert "1, 2, 7 and all samples" in text(page)
    assert str(file.name) in page.success[0].value.replace("\\", "")
    assert traced_here == [], "exporters run in a process of their own"
    page.text_input(key="export folder").set_value(str(tmp_path / "missing")).run()
    assert "there is no folder" in page.error[0].value


def test_export_says_before_any_work_that_it_cannot_write(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(workspace: Workspace) -> None:
        raise MissingExtra("it needs more packages")

    monkeypatch.setitem(EXPORTS, "safetensors", replace(EXPORTS["safetensors"], ready=ready))
    page = opened("Export", "builtin:iris-mlp")
    monkeypatch.setattr("lowrank_core.workspace.Workspace.compress", None)
    next(button for button in page.button if button.label == "Write the checkpoint").click().run()
    assert not page.exception
    assert [error.value for error in page.error] == ["it needs more packages"]


def test_export_asks_before_it_replaces_a_file(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "builtin:iris-mlp"
    there = tmp_path / "iris-mlp-lowrank.safetensors"
    there.write_text("somebody's")
    begun: list[Path] = []

    def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
        begun.append(path)
        path.write_text("written")
        return Exported(str(path), 7, 0.0, None)

    monkeypatch.setitem(EXPORTS, "safetensors", replace(EXPORTS["safetensors"], write=write))
    page = opened("Export", model, "--export-folder", str(tmp_path))
    page.text_input(key="export folder").set_value(str(tmp_path)).run()
    assert not page.error
    assert not page.warning, "nobody has asked for anything yet"

    def press(label: str) -> None:
        next(button for button in page.button if button.label == label).click().run()

    press("Write the checkpoint")
    assert "is there already" in page.warning[0].value
    page.run()
    assert "is there already" in page.warning[0].value, "the question stays"
    assert not begun
    assert there.read_text() == "somebody's"
    press(f"Replace {there.name}")
    assert begun == [there]
    assert there.read_text() == "written"
    assert not page.warning
    press("Write the checkpoint")
    assert "is there already" in page.warning[0].value, "it is asked each time"
    assert begun == [there]


def test_a_page_writes_below_the_start_folder_and_folders_named_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, named, other = (tmp_path / name for name in ("start", "named", "other"))
    for folder in (start / "deep", named, other, start / "waiting" / "session"):
        folder.mkdir(parents=True)
    (start / "out").symlink_to(other)
    (start / "in").symlink_to(named)
    (start / "file").touch()
    (start / "deep" / "led-out").symlink_to(other / "victim")
    monkeypatch.setattr(at_start, "STARTED_IN", start)
    monkeypatch.setattr(sys, "argv", ["app.py", "model.py", "--export-folder", "../named"])

    def place(folder: str, file: str = "x") -> Path:
        return at_start.place_for(file, folder, never=start / "waiting")

    for folder in (start, start / "deep", named, "deep", ".", "deep/..", "in", "../named"):
        assert place(str(folder)) == start / folder / "x"
    outside = (other, tmp_path, "..", "/", "out", "out/deep", "deep/../../other", "waiting", "waiting/session", "~")
    for folder in outside:
        with pytest.raises(InvalidFile, match=r"is none of the folders that pages may write to.*--export-folder DIR"):
            place(str(folder))
    with pytest.raises(InvalidFile, match="pages may write to"):
        place("deep", "led-out")
    for folder, says in (
        ("missing", "there is no folder 'missing'; create it first"),
        ("file", "'file' is a file; name a folder"),
        ("d" * 5000, "cannot be the name of a folder"),
        ("a\0b", "cannot be the name of a folder"),
        ("~nobody-of-that-name", "cannot be the name of a folder"),
        ("/" + "d/" * 3000, "pages may write to|cannot be the name"),
    ):
        with pytest.raises(InvalidFile, match=says) as refused:
            place(folder)
        assert len(str(refused.value)) < 400 + len(at_start.places())
        assert "\n" not in str(refused.value)


def test_what_is_named_at_the_start_is_looked_at_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_start.at_start(["--export-folder=/a=b", "model=1.py", "more"]).model == "model=1.py"
    for told in (["--export-folder"], ["--export-folder="], ["--export-folder", str(tmp_path / "none")]):
        monkeypatch.setattr(sys, "argv", ["app.py", *told])
        with pytest.raises(InvalidSettings, match="--export-folder must name a folder that exists"):
            at_start.check()
    monkeypatch.setattr(sys, "argv", ["app.py", "--export-folder", str(tmp_path)])
    at_start.check()
    assert at_start.at_start().writable[1:] == (tmp_path.resolve(),)


def test_the_command_hands_on_what_it_was_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(runpy, "run_module", lambda name, **how: started.append(list(sys.argv)))
    folder = str(tmp_path)
    done = CliRunner().invoke(cli, ["app", "model.py", "--export-folder", folder, "--export-folder", "."])
    assert done.exit_code == 0, done.output
    told = started[0][started[0].index("--") + 1 :]
    assert at_start.at_start(told) == at_start.AtStart("model.py", (tmp_path, at_start.STARTED_IN / "."))
    done = CliRunner().invoke(cli, ["app", "--export-folder", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "--export-folder" in done.output


def test_a_folder_that_cannot_be_written_is_said_and_the_pages_work(
    opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """State and cache folder are files: all is kept in memory, and one line says which folders, nothing it again."""
    for name in ("state", "cache"):
        (tmp_path / name).write_text("mine")
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
    server.start.clear()
    forget_not_kept()
    try:
        page = opened("Search")
        next(button for button in page.button if button.label == "Start search").click().run()
        for shown in (page, opened("Ranks"), opened("Export")):
            assert not shown.error
            (line,) = (warning.value for warning in shown.warning if "memory" in warning.value)
            assert "move away" in line
            assert all(f"{tmp_path}/{name}" in line.replace("\\", "") for name in ("state", "cache"))
    finally:
        forget_not_kept()
        server.start.clear()
    assert (tmp_path / "state").read_text() == "mine"


def test_a_score_that_gets_worse_by_rising_is_told_so():
    text, digits = Workspace.open("builtin:text-lm"), Workspace.open("builtin:digits-lstm")
    rise = Score("perplexity", 60.0, 58.0, 369, False, 55.0, 65.0, 2.0, 1.5, 2.75)
    drop = Score("top-1 accuracy", 0.95, 0.97, 797, True, 0.94, 0.96, 0.02, 0.01, 0.03)
    assert words.change(text, rise, "against dense") == "+2.00 against dense (95 %: +1.50 to +2.75)"
    assert words.change(digits, drop, "against dense") == "−2.00 points against dense (95 %: −3.00 to −1.00)"
    assert [words.change_title(text), words.change_title(digits)] == ["Change", "Change, points"]
    assert [words.interval(text, rise), words.interval(digits, drop)] == ["+1.50 to +2.75", "−3.00 to −1.00"]
    assert [words.axis(text), words.axis(digits)] == ["Perplexity, lower is better", "Top-1 accuracy"]


def test_exports_that_wait_for_their_download_are_bounded(tmp_path: Path) -> None:
    for number in range(5):
        file = tmp_path / f"session {number % 2}" / f"{number}.onnx"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (number, number))
    downloads.keep_newest(tmp_path, 250)
    assert sorted(path.stem for path in tmp_path.rglob("*.onnx")) == ["3", "4"]
    downloads.keep_newest(tmp_path, 10)
    assert [path.stem for path in tmp_path.rglob("*.onnx")] == ["4"], "the newest is about to be downloaded"


def test_all_built_in_models_stay_open_and_share_one_room() -> None:
    refs = [f"builtin:{name}" for name in BUILTIN]
    first = [models.open_model(ref, "") for ref in refs]
    assert [models.open_model(ref, "") for ref in refs] == first
    assert {id(workspace._room) for workspace in first} == {id(models.room())}


def test_spectra_of_weights_are_a_job_that_other_pages_show(
    opened: Open, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "SPECTRA_SECONDS", 0.0)
    page = opened("Spectra", weights)
    hold, compute = threading.Event(), Inventory.spectrum

    def slow(self: Inventory, name: str, **how: Any) -> torch.Tensor:
        hold.wait()
        return compute(self, name, **how)

    monkeypatch.setattr(Inventory, "spectrum", slow)
    stock = models.open_model(weights, models.stamp(weights))
    assert isinstance(stock, Inventory)
    session = page.session_state["session"]
    job = jobs.spectra().begin(
        session,
        spectra.weights_key(stock),
        spectra.ALL,
        lambda: Job("Spectra of large", lambda: spectra.all_spectra(stock)),
    )
    page = page.switch_page("pages/1_Model.py").run()
    assert any("Spectra of large · since" in label for label in links(page))
    hold.set()
    assert job.wait().error is None
    page = page.run()
    assert "Spectra of large · done" in links(page)
    page = page.switch_page("pages/2_Spectra.py").run()
    page = page.switch_page("pages/1_Model.py").run()
    assert not any("Spectra of large" in label for label in links(page))


def links(page: AppTest) -> list[str]:
    return [link.proto.label for link in page.get("page_link")]
