"""A folder of save_pretrained whose network is not built, in real Chromium: asked, watched, called off, done."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks.accessibility import in_each_view
from tests.conftest import AT_REST, running_app
from tests.hands import enter
from tests.test_streaming import WORDS, folder_of, tiny


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server is started in: a network in shards, and a text."""
    start = tmp_path_factory.mktemp("start")
    folder_of(start / "net", tiny("llama"), "llama")
    draw = random.Random(0)
    lines = (" ".join(f"w{int(WORDS * draw.random() ** 2)}" for _ in range(60)) for _ in range(40))
    (start / "book.txt").write_text("\n\n".join(lines))
    return start


def fill(page: Page, **fields: str) -> None:
    for label, value in fields.items():
        field = page.get_by_label(label.replace("_", " "), exact=True)
        enter(field, value, lambda: page.wait_for_selector(AT_REST))


def test_a_folder_is_compressed_block_by_block_and_opens_again(page: Page, start: Path, tmp_path: Path) -> None:
    index = start / "net" / "model.safetensors.index.json"
    with running_app(tmp_path / "log", index, folder=start) as url:
        page.goto(f"{url}/Export")
        press = page.get_by_role("button", name="Compress the folder")
        expect(press).to_be_disabled()
        for view, found in in_each_view(page):
            assert not found, view
        fill(page, Text_that_layers_are_fitted_to="book.txt", Folder_to_write="small")
        fill(page, Windows="12", Tokens_of_each="16")
        expect(page.get_by_text("LlamaForCausalLM: 14 layers in 2 blocks; ")).to_be_visible()
        expect(page.get_by_text("Fitted to 12 windows of 16 tokens")).to_be_visible()
        press.click()
        expect(page.get_by_text(f"Written to {start / 'small'}")).to_be_visible()
        expect(page.get_by_text("Perplexity: ")).to_contain_text(" before, ")
        expect(page.get_by_text("LlamaForCausalLM.from_pretrained")).to_be_visible()
        for view, found in in_each_view(page):
            assert not found, view
        fill(page, Folder_to_write="net")
        expect(page.get_by_text("is there already; name another folder.")).to_be_visible()
        expect(press).to_be_disabled()
        link = page.get_by_test_id("stSidebar").get_by_role("link", name="Spectra")  # folded away in a narrow window
        page.goto(f"{url}/{link.get_attribute('href')}")
        expect(page.get_by_role("link", name="Compress it block by block")).to_be_visible()
        page.get_by_role("link", name="Compress it block by block").click()
        page.get_by_text("Energy of each layer", exact=True).click()
        expect(page.get_by_text("of 14 layers factorised.")).to_be_visible()
    assert (start / "small" / "config.json").is_file()
    assert not (start / ".small.work").exists()
