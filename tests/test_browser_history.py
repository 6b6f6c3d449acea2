"""History in real Chromium: two tabs, steps and branches, snapshots, an address that only shows, Back and Forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import pytest
from playwright.sync_api import Browser, Page, expect

from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.documents import unsealed
from lowrank_core.store.files import own_folder
from pages.ui.history import History, read_history
from pages.ui.history_file import KIND
from tests.conftest import AT_REST, watched_page
from tests.test_browser_ranks import BOARD, measured

IRIS = "model=builtin:iris-mlp"


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture
def ranks(page: Page, url: str) -> Page:
    """The board of a small network, in a session of its own."""
    page.goto(f"{url}/Ranks?{IRIS}")
    measured(page)
    return page


SET_RANK = f"""([layer, rank]) => {{
    const b = {BOARD}, row = b.rows.get(layer);
    b.newGesture();
    b.setRank(row, [rank], 1);
    b.say("commit", b.pending());
}}"""
HEARD = f"() => {{ const b = {BOARD}; return !b.outbox.length && b.data.rev >= b.rev; }}"


def set_rank(page: Page, layer: str, rank: int) -> None:
    """As a thumb that is let go, without the way there."""
    page.evaluate(SET_RANK, [layer, rank])
    heard(page)


def heard(page: Page) -> None:
    """Until Python has heard all and the board shows what it made of it."""
    page.wait_for_function(HEARD)


def rank_of(page: Page, layer: str) -> int:
    return int(page.evaluate(f"layer => {BOARD}.rows.get(layer).rank[0]", layer))


def session_of(page: Page) -> str:
    return page.evaluate("new URL(location.href).searchParams.get('w')")


def saved(w: str) -> History:
    (file,) = own_folder("state").glob(f"{w}-*.json")
    history = read_history(unsealed(KIND, file.read_bytes())).history
    assert history is not None
    return history


def ranks_in(plans: Iterable[RankPlan], layer: str) -> list[int]:
    """The ranks that a layer has in plans, one after the other."""
    return [choice.rank[0] for choice, _ in groupby(plan.get(layer) for plan in plans) if choice is not None]


@pytest.fixture
def two_tabs(ranks: Page, browser: Browser) -> Iterator[tuple[Page, Page]]:
    """Of two people at one address."""
    with watched_page(browser) as other:
        other.goto(ranks.url)
        measured(other)
        yield ranks, other


def test_two_tabs_that_change_one_plan_in_turn_a_hundred_times_lose_nothing(two_tabs: tuple[Page, Page]) -> None:
    """Each sets a layer of its own, and does not wait for the other; now and then both keep the plan under a name."""
    layers, made = ("fc1", "fc2"), {layer: [rank_of(two_tabs[0], layer)] for layer in ("fc1", "fc2")}
    for number in range(100):
        tab, layer = two_tabs[number % 2], layers[number % 2]
        made[layer].append(2 if made[layer][-1] == 1 else 1)
        tab.evaluate(SET_RANK, [layer, made[layer][-1]])
        if number % 20 == 19:
            for each in two_tabs:
                each.evaluate(f"name => {BOARD}.act('snapshot', {{ name }})", f"at {number}")
                heard(each)
    history = saved(session_of(two_tabs[0]))
    assert {layer: ranks_in(history.line, layer) for layer in layers} == made
    assert len(history.line) == 101
    assert len({snapshot.plan for snapshot in history.snapshots}) == len(history.snapshots) > 1


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def test_where_both_tabs_set_a_layer_a_person_chooses_and_undo_leads_to_the_other(two_tabs: tuple[Page, Page]) -> None:
    one, other = two_tabs
    assert rank_of(one, "fc1") == 1
    set_rank(one, "fc1", 2)
    set_rank(other, "fc1", 3)
    asks = other.locator(".st-key-collision")
    expect(asks).to_contain_text("fc1 (SVD 2 there, dense here)")
    asks.get_by_role("button", name="Load it").click()
    other.wait_for_function(f"{BOARD}.data.choices.fc1?.rank[0] === 2")
    expect(asks).to_have_count(0)
    other.get_by_role("button", name="Undo").click()
    other.wait_for_function(f"!{BOARD}.data.choices.fc1")


def test_steps_branches_snapshots_and_what_was_removed(ranks: Page) -> None:
    """Kept by Enter, never twice; a click in the history goes there, and what undo had left is a branch."""
    start = rank_of(ranks, "fc1")
    other = 2 if start == 1 else 1
    name = ranks.get_by_label("Snapshot name")
    name.fill("<b>bold</b> " + "x" * 200)
    name.press("Enter")
    rows = ranks.locator(".rb-snapshots > li")
    expect(rows).to_have_count(1)
    kept = ("<b>bold</b> " + "x" * 200)[:40]
    expect(rows.get_by_role("button", name=kept, exact=True)).to_be_visible()
    assert rows.locator("b").count() == 0, "a name is no markup"
    expect(rows).to_contain_text("thorough")
    name.fill("again")
    name.press("Enter")
    expect(ranks.get_by_role("status").filter(has_text="holds this plan already")).to_contain_text(kept)
    expect(rows).to_have_count(1)
    rows.get_by_role("button", name="Rename").click()
    ranks.get_by_label("New name").fill("light")
    ranks.get_by_label("Note", exact=True).fill("for the <i>tag</i>")
    ranks.get_by_label("Note", exact=True).press("Enter")
    expect(rows.get_by_role("button", name="light", exact=True)).to_be_visible()
    expect(rows).to_contain_text("for the <i>tag</i>")
    rows.get_by_role("button", name="Remove snapshot light").click()
    expect(rows).to_have_count(0)

    for rank in (other, start):
        set_rank(ranks, "fc1", rank)
    ranks.evaluate(f"{BOARD}.act('undo')")
    heard(ranks)
    set_rank(ranks, "fc2", 2 if rank_of(ranks, "fc2") == 1 else 1)
    ranks.reload()
    measured(ranks)
    ranks.get_by_role("button", name="Bring snapshot light back").click()
    expect(rows).to_contain_text("for the <i>tag</i>")

    ranks.get_by_text("History · 3 steps").click()
    steps = ranks.locator(".rb-line-of-steps > li > button")
    expect(steps).to_have_count(3)
    assert [text.split("\n")[-1].startswith("now") for text in steps.all_inner_texts()] == [True, False, False]
    branch = ranks.locator(".rb-branch")
    expect(branch).to_contain_text("Branch of 1 step")
    branch.locator("summary").click()
    branch.get_by_role("button").click()
    ranks.wait_for_function(f"rank => {BOARD}.data.choices.fc1?.rank[0] === rank", arg=start)
    expect(branch).to_contain_text("fc2")
    steps.last.click()
    expect(steps.last).to_have_attribute("aria-current", "step")
    expect(ranks.get_by_role("button", name="Redo")).to_be_enabled()
    expect(ranks.get_by_role("button", name="Undo")).to_be_disabled()


def test_labels_of_snapshots_do_not_touch_each_other_and_are_letters(ranks: Page) -> None:
    ranks.evaluate(
        f"""() => {{
            const b = {BOARD}, half = b.model.dense.multiplies / 2;
            b.data.snapshots = Array.from({{ length: 60 }}, (_, i) => ({{
                name: `<b>${{i}}</b> & more of it`, choices: {{}}, how: "",
                score: 0.97 + 0.0002 * i, multiplies: half + i / 9,
            }}));
            b.drawTradeoff();
        }}"""
    )
    labels = ranks.locator(".rb-tradeoff .textpoint text")
    boxes = labels.evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON()).filter(box => box.width)")
    assert 2 <= len(boxes) < 60
    assert ranks.locator(".rb-tradeoff .textpoint text").filter(has_text="<b>59</b> & mor…").count() == 1
    for one in boxes:
        for other in boxes:
            apart = one["right"] <= other["left"] or other["right"] <= one["left"]
            assert one is other or apart or one["bottom"] <= other["top"] + 3 or other["bottom"] <= one["top"] + 3


def test_a_read_only_link_shows_all_of_it_changes_nothing_and_gives_a_copy(
    ranks: Page, browser: Browser, url: str
) -> None:
    w = session_of(ranks)
    ranks.evaluate(f"{BOARD}.act('snapshot', {{ name: 'mine' }})")
    set_rank(ranks, "fc1", 2 if rank_of(ranks, "fc1") == 1 else 1)
    ranks.get_by_text("History · 2 steps").click()
    link = ranks.get_by_label("Read-only link").input_value()
    assert w not in link
    before = saved(w)
    with watched_page(browser) as viewer:
        viewer.goto(link)
        measured(viewer)
        expect(viewer.get_by_text("A read-only view of another session's plans")).to_be_visible()
        assert texts(viewer, ".rb-snapshots > li > button:first-child") == ["mine"]
        shown = rank_of(viewer, "fc1")
        assert shown == rank_of(ranks, "fc1")
        viewer.evaluate(SET_RANK.replace("b.pending()", "b.pending() || {}"), ["fc1", 3 - shown])
        viewer.wait_for_function(f"rank => {BOARD}.rows.get('fc1').rank[0] === rank", arg=shown)
        expect(viewer.get_by_role("status").filter(has_text="Nothing is changed")).to_be_visible()
        viewer.get_by_role("button", name="Remove snapshot mine").click()
        assert saved(w) == before
        viewer.get_by_role("button", name="Make a copy of my own").click()
        viewer.wait_for_function("new URL(location.href).searchParams.get('w')")
        assert session_of(viewer) != w
        viewer.wait_for_function(f"!{BOARD}.data.read_only")
        set_rank(viewer, "fc1", 3 - shown)
        assert saved(session_of(viewer)).snapshots == before.snapshots
        assert ranks_in([saved(session_of(viewer)).plan], "fc1") == [3 - shown]
    assert saved(w) == before


def test_back_takes_one_press_for_each_page_and_brings_its_model(page: Page, url: str) -> None:
    def shown(title: str, model: str) -> None:
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        expect(page.get_by_test_id("stSidebar").get_by_text(model, exact=True)).to_be_visible()
        page.wait_for_selector(AT_REST)

    def link(title: str) -> None:
        page.get_by_test_id("stSidebar").get_by_role("link", name=title, exact=True).click()

    page.goto(f"{url}/_stcore/health")  # a page before
    page.goto(url)
    shown("Rank Explorer", "digits-cnn")
    link("Model")
    shown("Model", "digits-cnn")
    link("Home")
    shown("Rank Explorer", "digits-cnn")
    page.get_by_text("iris-mlp", exact=True).click()
    shown("Rank Explorer", "iris-mlp")
    link("Model")
    shown("Model", "iris-mlp")
    link("Spectra")
    shown("Spectra", "iris-mlp")
    trail = [
        ("Model", "iris-mlp"),
        ("Rank Explorer", "iris-mlp"),
        ("Rank Explorer", "digits-cnn"),
        ("Model", "digits-cnn"),
        ("Rank Explorer", "digits-cnn"),
    ]
    for title, model in trail:
        page.go_back()
        shown(title, model)
    page.go_back()  # from the app's first page out of it
    assert page.url == f"{url}/_stcore/health"
    for title, model in [*trail[::-1], ("Spectra", "iris-mlp")]:
        page.go_forward()
        shown(title, model)
