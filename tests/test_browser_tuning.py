"""Fine-tune in real Chromium: a newcomer trains, sees the score come back, and exports just these weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from playwright.sync_api import Locator, Page, expect

from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.plans.plan import read_plan
from lowrank_core.scoring.scores import final_score
from lowrank_core.workspace import Workspace
from tests.conftest import AT_REST, running_app, slow_network
from tests.hands import enter, until

MODEL = "builtin:digits-cnn"


def at_rest(page: Page) -> None:
    page.wait_for_selector(AT_REST)
    expect(start(page)).to_be_enabled()


def start(page: Page) -> Locator:
    """The button; while the page is built anew there are two for a moment, the old one first."""
    return page.get_by_role("button", name=re.compile("Start training")).last


def begin(page: Page) -> None:
    """Start it; a click that comes while the page is built anew is lost."""

    def press() -> None:
        if page.get_by_role("button", name="Cancel").count() == 0:
            start(page).click()

    said = page.get_by_role("button", name=re.compile("^(Cancel|Send to Export)$"))
    until(lambda patience: expect(said.first).to_be_visible(timeout=patience), press)


def fill(page: Page, label: str, value: str) -> None:
    box = page.get_by_role("spinbutton", name=label).last

    def in_sight() -> None:
        at_rest(page)
        if not box.is_visible():
            page.get_by_text("More settings").click()

    enter(box, value, in_sight)


def save(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as found:
        page.get_by_role("button", name=name).click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def test_a_newcomer_trains_and_exports_the_tuned_weights(page: Page, serve: Callable[..., str], tmp_path: Path) -> None:
    page.goto(f"{serve()}/Ranks")
    page.get_by_role("checkbox", name="Correction").uncheck()  # of the corrected start two epochs make nothing better
    expect(page.get_by_role("region", name="Top-1 accuracy")).not_to_contain_text("correction")
    expect(page.get_by_test_id("live-accuracy")).to_have_attribute("data-state", "measured")
    page.get_by_test_id("stSidebar").get_by_role("link", name="Fine-tune").click()
    fill(page, "Epochs", "2")
    fill(page, "Learning rate", "0.01")
    begin(page)
    expect(page.get_by_role("button", name="Send to Export")).to_be_visible()
    at_rest(page)
    expect(page.get_by_label("Top-1 accuracy and loss after each epoch")).to_be_visible()
    expect(page.locator(".scatterlayer .trace")).to_have_count(6)  # score, two losses, best, dense, as compressed
    expect(page.get_by_text(re.compile("Before, as compressed: .*95 %"))).to_be_visible()
    after = page.get_by_text(re.compile("After, weights of epoch [12] of 2: .*95 %")).inner_text()
    epoch, shown = re.search(r"epoch (\d) of 2: ([\d.]+) %", after).groups()

    page.get_by_role("button", name="Send to Export").click()
    expect(page).to_have_url(re.compile("/Export"))
    expect(page.get_by_role("radio", name=f"Tuned: epoch {epoch} of 2, {shown} %")).to_be_checked()
    page.get_by_role("button", name="Write the checkpoint").click()
    checkpoint = save(page, "Download the checkpoint", tmp_path)
    assert checkpoint.name == "digits-cnn-tuned.safetensors"

    workspace = Workspace.open(MODEL)
    tuned = load_checkpoint(workspace.model, checkpoint)
    assert f"{100 * final_score(workspace.measure(tuned.model)).value:.2f}" == shown
    plan = read_plan(save(page, "Download the plan", tmp_path).read_bytes()).plan
    untuned = workspace.compress(plan, workspace.correction).state_dict()
    assert tuned.plan == plan
    assert tuned.provenance["tuned"]["best_epoch"] == int(epoch)
    assert not torch.equal(tuned.model.state_dict()["fc1.0.weight"], untuned["fc1.0.weight"])


def epoch_reached(page: Page) -> int:
    """The number of the epoch in the line that says what goes on."""
    line = page.get_by_text(re.compile(r"epoch \d+ of 200"))
    expect(line).to_be_visible()
    return int(re.search(r"epoch (\d+) of", line.inner_text()).group(1))


def test_it_goes_on_elsewhere_and_after_the_server_ended(page: Page, tmp_path: Path) -> None:
    model = slow_network(tmp_path, 0.1, 200)
    with running_app(tmp_path / "first.log", model) as url:
        page.goto(f"{url}/Fine_tune")
        fill(page, "Epochs", "200")
        fill(page, "Patience", "200")
        begin(page)
        expect(page.get_by_text(re.compile(r"epoch ([3-9]|\d\d+) of 200 .* left"))).to_be_visible()
        page.get_by_role("link", name="Model", exact=True).click()
        expect(page.get_by_role("heading", name="Model", exact=True)).to_be_visible()
        page.get_by_role("link", name="Fine-tune", exact=True).click()
        reached = epoch_reached(page) - 1  # the line names the one that is under way
        address = page.url
    with running_app(tmp_path / "second.log", model) as again:
        page.goto(address.replace(url, again))
        fill(page, "Epochs", "200")
        fill(page, "Patience", "200")
        begin(page)
        gone_on = "n => Number((document.body.innerText.match(/epoch (\\d+) of 200/) || [0, 0])[1]) >= n"
        page.wait_for_function(gone_on, arg=reached)  # what the state holds is told first, epoch by epoch
        page.get_by_role("button", name="Cancel").click()
        kept = page.get_by_text(re.compile(r"Cancelled after \d+ of 200 epochs: the best weights so far are kept"))
        expect(kept).to_be_visible()
        assert int(re.search(r"after (\d+)", kept.inner_text()).group(1)) >= reached  # a new start writes over them
        expect(page.get_by_role("button", name="Send to Export")).to_be_visible()
        at_rest(page)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
