"""A LoRA adapter in real Chromium: its ranks by slider and rule, and the file that is written."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from benchmarks.accessibility import in_each_view
from tests.test_adapters import peft_folder


def test_an_adapter_is_made_smaller_and_downloaded(serve: Callable[..., str], page: Page, tmp_path: Path) -> None:
    page.goto(f"{serve(peft_folder(tmp_path / 'peft'))}/Ranks")
    slider = page.get_by_role("group", name="conv", exact=True).get_by_role("slider")
    expect(page.get_by_role("group", name="model.layers.0.self_attn.q_proj")).to_be_visible()
    expect(slider).to_be_visible()
    for view, found in in_each_view(page):
        assert not found, view
    size = page.get_by_test_id("stMetric").filter(has_text="Bytes of the tensors")
    before = size.inner_text()
    slider.focus()
    slider.press("ArrowLeft")
    expect(slider).to_have_value("5")
    expect(size).to_contain_text("against the file")
    assert size.inner_text() != before
    page.get_by_role("button", name="Write the adapter").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the adapter").click()
    with zipfile.ZipFile(download.value.path()) as written:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {Path(name).name for name in written.namelist()}
    for view, found in in_each_view(page):
        assert not found, view
