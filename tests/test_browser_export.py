"""What is exported in the browser is what was evaluated: plan and checkpoint, loaded in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from playwright.sync_api import Page, expect
from safetensors.torch import load_file

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import read_plan
from lowrank_core.workspace import Workspace

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
