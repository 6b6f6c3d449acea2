"""Answers that move, and where the error arises, in real Chromium: they follow a release, and are this plan's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from benchmarks.accessibility import violations
from lowrank_core.measure.answers import answers_of
from lowrank_core.measure.depth import depth_errors
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from tests.hands import drag

BOARD = "document.querySelector('.rb-root').__board"
MEASURED = "[data-testid=live-accuracy][data-state=measured]"
THOROUGH = "with the thorough correction."
PLACE_OF = """number => {
    const { xaxis } = document.querySelector("[data-testid=chart-depth]")._fullLayout;
    return xaxis._offset + xaxis.l2p(number);
}"""

RECORDINGS = """
import torch
from torch import nn

class_names = ["<b>hum</b>", "hiss", "click"]

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 12, 9, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 48, 40), nn.ReLU(),
                         nn.Linear(40, 3)).eval()

def data(samples, seed):
    return torch.randn(samples, 1, 200, generator=torch.Generator().manual_seed(seed))

def example_inputs():
    return (torch.zeros(1, 1, 200),)

def train_data():
    return data(80, 1)

def eval_data():
    return data(90, 2), torch.arange(90) % 3
"""

VOLUMES = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(24, 24)
        nn.init.orthogonal_(self.fc.weight)  # whose spectrum is flat: such a layer stays dense

    def forward(self, x):
        return x + 0.1 * torch.relu(self.fc(x))

def build_model():
    torch.manual_seed(0)
    blocks = [Block() for _ in range(149)]
    weight = blocks[70].fc.weight.data
    blocks[70].fc.weight.data = weight[:, :3] @ weight[:3] + 0.02 * weight
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(24, 2)).eval()

def example_inputs():
    return (torch.zeros(1, 2, 3, 2, 2),)

def eval_data():
    return torch.randn(70, 2, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(70, 2)

metric = "mse"
"""


def panel(page: Page, name: str) -> Locator:
    return page.get_by_test_id(f"panel-{name}")


def unfold(page: Page, *names: str) -> None:
    page.wait_for_selector(MEASURED)
    for name in names:
        panel(page, name).locator("> summary").press("Enter")  # wherever it is when the one before has filled
        expect(panel(page, name)).to_have_attribute("open", "")


def release(page: Page, layer: str, rank: int) -> None:
    """Drag a thumb to a rank and let go; while it is held the panels say that they are of the plan before."""
    handle = page.get_by_role("slider", name=f"{layer} rank", exact=True)
    drag(handle, rank, release=False)
    expect(page.get_by_test_id("answers-summary")).to_contain_text("Of the plan before.")
    page.mouse.up()


def choices(page: Page, workspace: Workspace) -> RankPlan:
    """The plan on the page."""
    found = page.evaluate(f"{BOARD}.choices()")
    return RankPlan.of(workspace.profile.fingerprint,
                       {n: Choice(c["method"], tuple(c["rank"])) for n, c in found.items()})  # fmt: skip


def test_samples_and_depth_follow_each_release_and_are_this_plan_s(serve: Callable[..., str], page: Page) -> None:
    page.goto(f"{serve()}/Ranks")
    unfold(page, "answers", "depth")
    summary, samples = page.get_by_test_id("answers-summary"), page.locator(".rb-sample")
    expect(summary).to_contain_text(THOROUGH)
    expect(samples).to_have_count(12)
    expect(page.locator(".rb-sample img")).to_have_count(12)
    expect(page.get_by_test_id("depth-summary")).to_contain_text(THOROUGH)
    before = summary.inner_text()

    release(page, "fc1", 2)
    expect(summary).to_contain_text("with the quick correction.")
    expect(summary).to_contain_text(THOROUGH)
    expect(page.get_by_test_id("depth-summary")).to_contain_text(THOROUGH)
    workspace = Workspace.open("builtin:digits-cnn")
    candidate = workspace.candidate(choices(page, workspace))
    answers, depth = answers_of(workspace, candidate), depth_errors(workspace, candidate)
    assert answers.changed > 0
    expect(summary).to_have_text(f"{answers.changed} of 797 measured samples changed, {THOROUGH}")
    shown = [int(sample.get_attribute("data-sample") or -1) for sample in samples.all()]
    assert shown == [pair.sample for pair in answers.pairs]
    first = answers.pairs[0]
    expect(samples.first).to_contain_text(f"{first.dense.label} → {first.ours.label}")
    expect(samples.first).to_contain_text(f"is {first.target}")
    expect(page.locator(".rb-sample[data-changed]")).to_have_count(sum(pair.changed for pair in answers.pairs))
    drawn = page.evaluate(
        "document.querySelector('[data-testid=chart-depth]').data.slice(0, 2).map(trace => [...trace.y])"
    )
    for errors, kind in zip(drawn, ("plain", "corrected"), strict=True):
        expected = [getattr(layer, kind) for layer in depth.layers]
        assert all(abs(a - b) < 1e-4 + 0.01 * b for a, b in zip(errors, expected, strict=True))

    chart = page.get_by_test_id("chart-depth")
    box = chart.bounding_box()
    at = page.evaluate(PLACE_OF, 4)
    assert box is not None
    chart.click(position={"x": at, "y": box["height"] / 2})
    expect(page.locator(".rb-selected")).to_have_attribute("data-layer", "fc2")
    page.locator(".rb-figures > summary").press("Enter")
    table = page.get_by_role("region", name="Error of each layer")
    expect(table.get_by_role("row")).to_have_count(7)
    table.get_by_role("button", name="conv1").press("Enter")
    expect(page.locator(".rb-selected")).to_have_attribute("data-layer", "conv1")
    assert not violations(page)

    page.get_by_role("button", name="Undo").click()
    expect(summary).to_have_text(before)


def test_panels_are_remembered_and_cost_nothing_when_folded(serve: Callable[..., str], page: Page) -> None:
    page.add_init_script("addEventListener('rank-feed', e => (window.fed ||= []).push(Object.keys(e.detail)))")
    page.goto(f"{serve()}/Ranks?model=builtin:text-lm")
    unfold(page, "answers")
    summary = page.get_by_test_id("answers-summary")
    expect(summary).to_contain_text("measured samples changed in at least one place, with the")
    first = page.locator(".rb-sample").first
    expect(first).to_contain_text("of 32 tokens changed")
    expect(first.locator(".rb-text")).to_have_text(re.compile(r"^[a-z<>.,;:() ]+…?$"))
    expect(first.locator(".rb-answer").nth(1)).to_contain_text(" → ")
    page.reload()
    expect(summary).to_contain_text("measured samples changed in at least one place, with the")
    expect(panel(page, "depth")).not_to_have_attribute("open", "")

    panel(page, "answers").locator("> summary").click()
    page.wait_for_function(f"!{BOARD}.outbox.length && !{BOARD}.data.unfolded.length")
    page.evaluate("window.fed = []")
    page.get_by_role("button", name="All dense").click()
    page.wait_for_function(f"window.fed.length && {BOARD}.rev === {BOARD}.scoreRev && !{BOARD}.measuring")
    assert not page.evaluate("window.fed.some(keys => keys.includes('answers') || keys.includes('errors'))")


def test_recordings_are_lines_and_classes_go_by_their_names(
    serve: Callable[..., str], page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "recordings.py"
    path.write_text(RECORDINGS)
    page.goto(f"{serve(path)}/Ranks")
    unfold(page, "answers")
    expect(page.locator(".rb-sample svg polyline")).to_have_count(12)
    release(page, "3", 1)
    expect(page.get_by_test_id("answers-summary")).to_contain_text("of 90 measured samples changed")
    expect(page.locator(".rb-sample[data-changed]")).not_to_have_count(0)
    names = set(page.locator(".rb-sample .rb-answer b").all_inner_texts())
    assert {part for name in names for part in name.split(" → ")} <= {"<b>hum</b>", "hiss", "click"}
    assert all(" → " in name for name in page.locator(".rb-sample[data-changed] b").all_inner_texts())


def test_150_layers_whose_samples_cannot_be_drawn(serve: Callable[..., str], page: Page, tmp_path: Path) -> None:
    path = tmp_path / "volumes.py"
    path.write_text(VOLUMES)
    page.goto(f"{serve(path)}/Ranks")
    unfold(page, "answers", "depth")
    expect(panel(page, "answers")).to_contain_text(
        "Samples of 2×3×2×2 numbers cannot be drawn: the first 6 of 24 are shown."
    )
    expect(page.locator(".rb-text").first).to_contain_text(", ")
    expect(page.get_by_test_id("answers-summary")).to_contain_text("moved by more than 1 % of the spread")
    expect(page.get_by_test_id("depth-summary")).to_contain_text("on 16 calibration samples")
    page.get_by_test_id("chart-depth").scroll_into_view_if_needed()  # out of sight it is not drawn
    page.wait_for_function("document.querySelector('[data-testid=chart-depth]').data?.length")
    errors = page.evaluate("[...document.querySelector('[data-testid=chart-depth]').data[0].y]")
    assert len(errors) == 150
    assert next(number for number, error in enumerate(errors) if error > 0) == 70, "where a layer was compressed"
    page.locator(".rb-figures > summary").press("Enter")
    expect(page.locator(".rb-figures tbody tr")).to_have_count(150)


STILL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.read, self.still = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.read(x) + self.still(torch.ones_like(x))

def build_model():
    return Net().eval()

def example_inputs():
    return (torch.zeros(1, 16),)

def eval_data():
    return torch.randn(90, 16, generator=torch.Generator().manual_seed(1)), torch.arange(90) % 16
"""


def test_what_the_correction_met_is_said_behind_a_button(page: Page, serve: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "still.py").write_text(STILL)
    page.goto(f"{serve(str(tmp_path / 'still.py'))}/Ranks")
    page.wait_for_selector(MEASURED)
    entry = page.get_by_role("textbox", name="still exact rank")
    entry.fill("3")
    entry.press("Enter")
    about = page.get_by_role("button", name="About the correction")
    about.click()
    expect(
        page.get_by_text("layer 'still': all its inputs are alike, so that only its offset is fitted")
    ).to_be_visible()
    entry.fill("dense")
    entry.press("Enter")
    expect(about).to_be_hidden()
