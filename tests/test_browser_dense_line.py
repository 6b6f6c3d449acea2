"""One dense score per screen: what stands beside the title, on the card and on the next page are one figure."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.conftest import AT_REST

MODEL = """
import torch
from torch import nn


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 3)).eval()


def example_inputs():
    return (torch.zeros(1, 16),)


def eval_data():
    inputs = torch.randn(3000, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answers = build_model()(inputs).argmax(1)
    return inputs, torch.where(torch.arange(3000) % 7 == 0, (answers + 1) % 3, answers)
"""
"""More samples than the dense network is scored on when it is opened; it is right on 85.7 % of all."""


def test_the_line_beside_the_title_follows_the_card(page: Page, serve: Callable[..., str], tmp_path: Path) -> None:
    model = tmp_path / "sevenths.py"
    model.write_text(MODEL)
    url = serve(model)
    page.goto(f"{url}/Model")
    expect(page.get_by_text("on 1,024 samples")).to_be_visible()
    page.goto(f"{url}/Ranks")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    line = page.get_by_text(re.compile("dense top-1 accuracy"))
    expect(line).to_contain_text("85.70 % on 3,000 samples")
    expect(line).to_have_count(1)
    assert page.evaluate("document.querySelector('.rb-root').__board.model.metric.dense") == 2571 / 3000
    page.get_by_role("slider", name="0 rank", exact=True).press("ArrowLeft")  # a run of the board alone
    page.wait_for_selector("[data-testid=live-accuracy]:not([data-state=measured])")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    page.wait_for_selector(AT_REST)
    expect(line).to_contain_text("85.70 % on 3,000 samples")
    page.get_by_role("link", name="Search").click()
    expect(page.get_by_role("heading", name="Search")).to_be_visible()
    expect(line).to_contain_text("85.70 % on 3,000 samples")
