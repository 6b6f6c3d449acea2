"""The board in JupyterLab, in real Chromium: a thumb that is dragged in a cell is a plan in the kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import PATIENCE_SECONDS, ROOT, end, is_ready, visitor
from tests.hands import drag

pytest.importorskip("anywidget")
pytest.importorskip("jupyterlab")

MEASURED = "[data-testid=live-accuracy][data-state=measured]"
CELLS = (
    "from lowrank_core import Workspace\nfrom rank_explorer.notebook import board\n"
    'live = board(Workspace.open("builtin:digits-cnn"))\nlive',
    'print("the kernel has rank", dict(live.plan.choices)["conv3"].rank, live.score is not None)',
)


def notebook() -> str:
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{at}",
            "source": text,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
        for at, text in enumerate(CELLS)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook in a JupyterLab whose settings are its own."""
    (tmp_path / "ranks.ipynb").write_text(notebook())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(tmp_path / "settings")}
    settings = ["--IdentityProvider.token=", "--LabApp.news_url=", f"--ServerApp.root_dir={tmp_path}", "--allow-root"]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", *settings]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_ready(port, "/api/status"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/ranks.ipynb"
    finally:
        end(process)


@pytest.mark.slow
def test_a_drag_in_a_cell_is_a_plan_in_the_kernel(browser: Browser, lab: str) -> None:
    with visitor(browser, viewport={"width": 1440, "height": 1000}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(lab)
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
        cells = page.locator(".jp-Cell")
        cells.nth(0).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(MEASURED)
        handle = page.get_by_role("slider", name="conv3 rank", exact=True)
        rank = int(handle.input_value())
        drag(handle, rank // 2, release=False)
        expect(page.get_by_test_id("live-accuracy")).to_have_attribute("data-kind", "measured")
        page.mouse.up()
        page.wait_for_selector(MEASURED)
        moved = int(handle.input_value())
        assert moved < rank
        cells.nth(1).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        expect(page.get_by_text(f"the kernel has rank ({moved},)")).to_be_visible()
        page.get_by_role("button", name="Undo", exact=True).click()
        expect(handle).to_have_value(str(rank))
        assert not errors
