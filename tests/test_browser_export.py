"""What is exported in the browser is what was evaluated: plan and checkpoint, loaded in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import load_file

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import read_plan
from lowrank_core.workspace import Workspace
from tests.conftest import watched_page

ROOT = Path(__file__).resolve().parents[1]
MODEL = "builtin:digits-cnn"

OUTPUTS = """
import sys, torch
from safetensors.torch import save_file
from lowrank_core import load_checkpoint, open_source
torch.set_num_threads(int(sys.argv[1]))
opened = open_source(sys.argv[2])
model = load_checkpoint(opened.model, sys.argv[3]).model.eval()
with torch.no_grad():
    save_file({"outputs": model(opened.eval_data().inputs[:64])}, sys.argv[4])
"""


def run(*arguments: object) -> str:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def download(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as found:
        page.get_by_role("button", name=name).click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def test_exported_in_the_browser_is_what_was_evaluated(page: Page, serve: Callable[..., str], tmp_path: Path) -> None:
    page.goto(f"{serve()}/Ranks")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    bytes_now = page.get_by_test_id("live-bytes")
    before = bytes_now.inner_text()
    entry = page.get_by_label("fc1 exact rank")
    entry.fill("37")
    entry.press("Enter")
    expect(bytes_now).not_to_have_text(before)
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    expect(page.get_by_role("region", name="Top-1 accuracy")).to_contain_text("thorough correction")  # after the quick
    shown = float(page.inner_text("[data-testid=live-accuracy]").split()[0])

    page.get_by_role("link", name="Export").click()
    page.get_by_role("button", name="Write the checkpoint").click()
    page.get_by_role("button", name="Download the checkpoint").wait_for()
    checkpoint = download(page, "Download the checkpoint", tmp_path)
    plan_file = download(page, "Download the plan", tmp_path)

    for option, path in (("--checkpoint", checkpoint), ("--plan", plan_file)):
        found = json.loads(run("-m", "lowrank_core", "evaluate", MODEL, option, path, "--json"))
        assert f"{100 * found['value']:.2f}" == f"{shown:.2f}", option

    workspace = Workspace.open(MODEL)
    written = read_plan(plan_file.read_bytes())
    assert written.plan.get("fc1").rank == (37,)
    model = workspace.compress(written.plan, Correction.from_dict(written.correction))
    with torch.no_grad():
        expected = model(workspace.opened.eval_data().inputs[:64])
    run("-c", OUTPUTS, torch.get_num_threads(), MODEL, checkpoint, tmp_path / "outputs.safetensors")
    assert torch.equal(load_file(tmp_path / "outputs.safetensors")["outputs"], expected)


def test_work_and_report_leave_the_app_and_the_work_goes_on_in_another_place(
    page: Page, serve: Callable[..., str], browser: Browser, tmp_path: Path
) -> None:
    page.goto(f"{serve()}/Ranks")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    bytes_now = page.get_by_test_id("live-bytes")
    before = bytes_now.inner_text()
    entry = page.get_by_label("fc2 exact rank")
    entry.fill("9")
    entry.press("Enter")
    expect(bytes_now).not_to_have_text(before)
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    expect(page.get_by_role("region", name="Top-1 accuracy")).to_contain_text("thorough correction")
    page.evaluate("document.querySelector('.rb-root').__board.act('snapshot', { name: 'for <b>them</b>' })")
    expect(page.locator(".rb-snapshots > li")).to_have_count(1)
    size = bytes_now.inner_text()

    page.get_by_role("link", name="Export").click()
    work = download(page, "Download the work", tmp_path)
    page.get_by_text("With the front").click()
    page.get_by_role("button", name="Write the report").click()
    page.get_by_role("button", name="Download the report").wait_for()
    report = download(page, "Download the report", tmp_path)
    assert work.name == "digits-cnn-work.jsonl"
    assert "digits-cnn under this plan" in report.read_text()
    assert "class \\ answer" in report.read_text()
    content = work.read_text()
    session = page.url.split("w=")[1].split("&")[0]
    assert session not in content
    assert str(Path.home()) not in content

    with watched_page(browser) as there:
        there.goto(serve())
        there.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(work)
        expect(there.get_by_text("its plan is the plan now, 1 snapshot")).to_be_visible()
        there.get_by_role("link", name="Ranks").click()
        row = there.locator(".rb-snapshots > li")
        expect(row).to_contain_text("for <b>them</b>")
        expect(row).to_contain_text("%")  # its score came along
        expect(there.get_by_test_id("live-bytes")).to_have_text(size)
        there.goto(f"{serve()}/Export?model=builtin:iris-mlp")
        there.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(work)
        refused = there.get_by_role("alert").filter(has_text="is not used")
        expect(refused).to_contain_text("the work on digits-cnn")
        expect(refused).to_contain_text("the network here is iris-mlp")
