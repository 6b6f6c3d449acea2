"""The Ranks page in real Chromium: what moves before release, what is measured after it, and nothing lost."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from lowrank_core.builtin import POINTS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.interval import Residuals, predicted
from lowrank_core.predict.prediction import curves, noise_table, plan_changes
from lowrank_core.predict.survey import Learnt, survey
from lowrank_core.running.jobs import Job
from lowrank_core.workspace import Workspace
from tests.conftest import AT_REST, slow_network, watched_page
from tests.hands import DRAWN, at_rank, drag, point

BOARD = "document.querySelector('.rb-root').__board"
FIGURES = ("accuracy", "bytes", "multiplies")


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


AS_OPENED = "as opened"
PUT_BACK = f"""plan => {{
    const b = {BOARD};
    b.filter.value = "";
    b.applyFilter();
    b.snapSelect.value = b.multiple = 1;
    b.setHold(null);
    if (!b.data.corrected) b.act("correct", {{ on: true }});
    if (b.data.tolerance !== null) b.act("tolerate", {{ drop: null }});
    if (b.locked.size) b.act("lock", {{ locked: [] }});
    for (const s of b.data.snapshots) if (s.name !== "{AS_OPENED}") b.act("remove", {{ name: s.name }});
    if (JSON.stringify(b.choices()) !== plan) b.act("restore", {{ name: "{AS_OPENED}" }});
}}"""
IS_BACK = f"""plan => {{
    const b = {BOARD}, d = b.data;
    return !b.outbox.length && d.rev === b.rev && JSON.stringify(b.choices()) === plan
        && d.corrected && d.tolerance === null && !d.locked.length && d.snapshots.length === 1;
}}"""


@dataclass(frozen=True)
class Visit:
    """The page with the default model, what it has sent, and the plan that it opened with, as text."""

    page: Page
    sent: list[bytes]
    plan: str

    @classmethod
    def begin(cls, page: Page, url: str) -> Visit:
        sent: list[bytes] = []
        page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(bytes(frame))))
        page.goto(f"{url}/Ranks")
        measured(page)
        page.evaluate(f"name => {BOARD}.act('snapshot', {{ name }})", AS_OPENED)
        visit = cls(page, sent, page.evaluate(f"JSON.stringify({BOARD}.choices())"))
        visit.put_back()
        return visit

    def put_back(self) -> None:
        """Plan, settings and snapshots as they were when it was opened; only the steps of undo stay."""
        self.page.mouse.up()
        self.page.evaluate(PUT_BACK, self.plan)
        self.page.wait_for_function(IS_BACK, arg=self.plan)
        measured(self.page)


@pytest.fixture(scope="module")
def visits(browser: Browser, url: str) -> Iterator[Callable[[int], Visit]]:
    """`visits(failures)`: one visit for all tests, and a new one after a test that failed."""
    with ExitStack() as pages:
        begun: dict[int, Visit] = {}

        def visit(failures: int) -> Visit:
            if failures in begun:
                begun[failures].put_back()
            else:
                begun[failures] = Visit.begin(pages.enter_context(watched_page(browser)), url)
            return begun[failures]

        yield visit


@pytest.fixture
def visit(visits: Callable[[int], Visit], request: pytest.FixtureRequest) -> Visit:
    return visits(request.session.testsfailed)


@pytest.fixture
def ranks(visit: Visit) -> Page:
    """The page with the default model as it opens, its first plan measured; steps of undo may be there from before."""
    return visit.page


@pytest.fixture
def fresh(page: Page, url: str) -> Page:
    """The same for one test alone."""
    page.goto(f"{url}/Ranks")
    measured(page)
    return page


def measured(page: Page) -> None:
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    page.wait_for_selector(AT_REST)


def figure(page: Page, kind: str) -> str:
    return page.inner_text(f"[data-testid=live-{kind}]")


def picture(page: Page, kind: str) -> list[str]:
    """What a chart shows: the outlines of its bars."""
    return page.eval_on_selector_all(
        f"[data-testid=chart-{kind}] .barlayer path", "paths => paths.map(p => p.getAttribute('d'))"
    )


def slider(page: Page, layer: str) -> Locator:
    return page.get_by_role("slider", name=f"{layer} rank", exact=True)


def test_drag_is_live_before_release(visit: Visit) -> None:
    page, sent = visit.page, visit.sent
    page.route("**/live", lambda route: None)  # what is asked while the thumb is held gets no answer
    before = {kind: figure(page, kind) for kind in FIGURES}
    pictures = {kind: picture(page, kind) for kind in FIGURES}
    sent.clear()
    handle = slider(page, "fc1")
    drag(handle, 30, release=False)
    assert not sent, "nothing may be committed while the thumb moves"
    during = {kind: figure(page, kind) for kind in FIGURES}
    for kind in FIGURES:
        assert during[kind] != before[kind], f"live-{kind} must move before release"
        assert picture(page, kind) != pictures[kind], f"chart-{kind} must move before release"
    predicted = page.locator("[data-testid=live-accuracy]")
    assert predicted.get_attribute("data-state") in {"rough", "predicted"}
    low, high = (float(predicted.get_attribute(f"data-{end}") or "nan") for end in ("low", "high"))
    assert 0 <= low < high <= 1.05
    assert re.fullmatch(r"\d+(\.\d+)? to \d+(\.\d+)?\u202f%", during["accuracy"])
    bands = page.locator(".rb-band:visible")
    assert bands.count() == 2, "on the bar of the total, and in the chart against cost"
    moved = picture(page, "accuracy")
    page.mouse.up()
    measured(page)
    said = {number for frame in sent for number in re.findall(rb'\\?"id\\?": ?(\d+)', frame)}
    assert len(said) == 1, "one message per release, though it goes out again where an answer is late"
    assert "95 %" in page.inner_text("section[aria-label='Top-1 accuracy']")
    assert predicted.get_attribute("data-low") is None
    assert bands.count() == 0
    assert picture(page, "accuracy") != moved
    assert {k: figure(page, k) for k in ("bytes", "multiplies")} == {k: during[k] for k in ("bytes", "multiplies")}
    page.unroute("**/live")


def test_a_thumb_that_rests_is_measured_before_it_is_let_go(visit: Visit) -> None:
    """Of each plan it rests on, and when it comes back to one at once; at its release the same figure is measured."""
    page, sent = visit.page, visit.sent
    accuracy = page.get_by_test_id("live-accuracy")
    assert accuracy.get_attribute("data-kind") == "measured"
    handle = slider(page, "fc1")
    page.evaluate("addEventListener('rank-answered', e => { window.answer = e.detail; })")
    drag(handle, 12, release=False)
    sent.clear()
    page.wait_for_function("window.answer?.score && window.answer.plan.includes('12')")
    shown = figure(page, "accuracy")
    samples = int(accuracy.get_attribute("data-samples") or 0)
    assert (accuracy.get_attribute("data-kind"), accuracy.get_attribute("data-state")) == ("measured", "measuring")
    assert f"{samples} samples" in page.inner_text("section[aria-label='Top-1 accuracy']")
    page.evaluate(f"{BOARD}.tooSlow = 'it takes a day here'")
    page.mouse.move(*at_rank(handle, 70), steps=3)
    page.evaluate(DRAWN)
    assert accuracy.get_attribute("data-kind") == "predicted"
    assert "measured when you let go: it takes a day here" in page.inner_text("section[aria-label='Top-1 accuracy']")
    assert accuracy.get_attribute("data-samples") is None
    page.mouse.move(*at_rank(handle, 12), steps=3)
    page.evaluate(DRAWN)
    assert (figure(page, "accuracy"), accuracy.get_attribute("data-kind")) == (shown, "measured")
    assert not sent, "nothing is committed"
    assert page.evaluate(f"{BOARD}.answers.size < 5"), "one question at a time"
    page.mouse.up()
    measured(page)
    assert page.evaluate(f"{BOARD}.question") is None
    workspace = Workspace.open("builtin:digits-cnn")
    choices = page.evaluate(f"{BOARD}.choices()").items()
    plan = RankPlan.of(workspace.profile.fingerprint, {n: Choice(c["method"], tuple(c["rank"])) for n, c in choices})
    scores = workspace.measure(workspace.compress(plan, workspace.correction))
    expected = next(score.value for score in scores if score.samples == samples)
    left_out = page.evaluate("window.answer.left_out")
    assert left_out or shown.split()[0] == f"{100 * expected:.2f}"


@pytest.mark.parametrize("thumb", ["fc1 rank", "digits-cnn group"])
def test_nothing_is_committed_while_a_thumb_is_held(visit: Visit, thumb: str) -> None:
    """Not where it rests in between, not what Python has not answered yet; all of it goes out when it is let go."""
    page, sent = visit.page, visit.sent
    page.evaluate(f"() => {{ const b = {BOARD}; b.sends = b.send; b.send = () => {{ b.send = b.sends; }}; }}")
    lost = "act('lock', { locked: ['fc3'] })"  # so that it has to go out again, as this test says and no timer
    page.evaluate(f"() => {{ const b = {BOARD}; b.{lost}; clearTimeout(b.again); }}")
    handle = page.get_by_role("slider", name=thumb, exact=True)
    sent.clear()
    for rank in (70, 20):
        if rank == 70:
            drag(handle, rank, release=False)
        else:
            page.mouse.move(*at_rank(handle, rank), steps=8)
        page.wait_for_timeout(600)  # longer than keys rest until what they chose is sent
        page.evaluate(f"{BOARD}.post()")  # as its timer does
    assert page.evaluate(f"{BOARD}.outbox.length") == 1
    assert not sent
    chosen = page.evaluate(f"{BOARD}.choices()")
    page.mouse.up()
    page.wait_for_function(f"!{BOARD}.pressed && {BOARD}.outbox.length === 0")
    measured(page)
    assert page.evaluate(f"{BOARD}.data.choices") == chosen
    assert page.evaluate(f"{BOARD}.data.locked") == ["fc3"]


def test_figures_that_come_in_a_drag_are_those_of_a_plan_that_it_goes_back_to(ranks: Page) -> None:
    handle = slider(ranks, "fc1")
    start, shown = handle.input_value(), figure(ranks, "accuracy")
    known = ranks.evaluate(
        f"() => {{ const b = {BOARD}; return {{ model: b.model.key, rev: b.rev, score: b.score, plain: b.plain }}; }}"
    )
    ranks.evaluate(f"known => {BOARD}.feed({{ ...known, doing: 'measuring', done: false }})", known)
    assert ranks.get_attribute("[data-testid=live-accuracy]", "data-state") == "measuring"
    drag(handle, 30, release=False)
    assert handle.input_value() != start
    ranks.evaluate(f"known => {BOARD}.feed({{ ...known, doing: '', done: true }})", known)
    assert ranks.get_attribute("[data-testid=live-accuracy]", "data-state") in {"rough", "predicted", "measuring"}
    handle.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", start)
    ranks.mouse.up()
    measured(ranks)
    assert figure(ranks, "accuracy") == shown


def test_the_figures_are_those_of_the_core(ranks: Page) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    drag(slider(ranks, "fc1"), 41)
    measured(ranks)
    plan = plan_on(ranks, workspace)
    cost = plan_cost(workspace.profile, plan)
    assert figure(ranks, "bytes").split() == [f"{cost.bytes / 1e3:.4g}", "kB"]
    assert figure(ranks, "multiplies").split() == [f"{cost.multiplies / 1e3:.4g}", "k"]
    *_, score = workspace.measure(workspace.compress(plan, workspace.thorough))
    assert figure(ranks, "accuracy").split() == [f"{100 * score.value:.2f}", "%"]


def test_the_quick_figure_is_there_first_and_the_thorough_one_takes_its_place(ranks: Page) -> None:
    """Each is named in the card, and said in the status line."""
    workspace = Workspace.open("builtin:digits-cnn")
    ranks.get_by_label("conv2 exact rank").fill("5")
    ranks.get_by_label("conv2 exact rank").press("Enter")
    card = ranks.locator(".rb-card:has([data-testid=live-accuracy])")
    ranks.wait_for_selector("[data-testid=live-accuracy]:not([data-state=measured])")
    ranks.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    expect(card).to_contain_text("quick correction")
    first = figure(ranks, "accuracy")
    expect(card).to_contain_text("thorough correction")
    expect(card).not_to_contain_text("quick correction")
    expect(ranks.get_by_role("status").filter(has_text="thorough correction")).to_be_attached()
    plan = plan_on(ranks, workspace)
    quick, thorough = (
        [*workspace.measure(workspace.compress(plan, each))][-1] for each in (workspace.correction, workspace.thorough)
    )
    shown = first, figure(ranks, "accuracy")
    assert [text.split()[0] for text in shown] == [f"{100 * score.value:.2f}" for score in (quick, thorough)]


def plan_on(page: Page, workspace: Workspace) -> RankPlan:
    """The plan whose ranks stand in the fields of the board."""
    plan = RankPlan.of(workspace.profile.fingerprint, {})
    for layer in workspace.profile.layers:
        text = page.get_by_label(f"{layer.name} exact rank").input_value()
        if text != "dense":
            plan = plan.with_choice(layer.name, Choice(layer.methods[0].name, (int(text),)))
    return plan


def test_totals_of_the_browser_equal_pythons_for_1000_random_plans(ranks: Page) -> None:
    profile = Workspace.open("builtin:digits-cnn").profile
    draw = random.Random(0)
    plans: list[RankPlan] = []
    for _ in range(1000):
        choices = {}
        for layer in profile.layers:
            method = draw.choice([m for m in layer.methods if not m.reference])
            if draw.random() < 0.8:
                rank = tuple(draw.randint(1, top) for top in method.max_rank(layer.spec))
                choices[layer.name] = Choice(method.name, rank)
        plans.append(RankPlan.of(profile.fingerprint, choices))
    sent = [{n: {"method": c.method, "rank": list(c.rank)} for n, c in plan.choices} for plan in plans]
    found = ranks.evaluate(
        "plans => { const m = Object.values(RankBoard.models)[0]; return plans.map(p => RankBoard.totals(m, p)); }",
        sent,
    )
    expected = [plan_cost(profile, plan) for plan in plans]
    assert [(t["bytes"], t["multiplies"]) for t in found] == [(c.bytes, c.multiplies) for c in expected]


def test_undo_and_redo(fresh: Page) -> None:
    handle = slider(fresh, "conv2")
    start = handle.input_value()
    drag(handle, 30)
    measured(fresh)
    dragged = handle.input_value()
    assert dragged != start
    fresh.get_by_role("button", name="Undo").click()
    fresh.wait_for_function("([e, v]) => e.value === v", arg=[handle.element_handle(), start])
    measured(fresh)
    assert fresh.get_by_role("button", name="Undo").is_disabled()
    fresh.get_by_role("button", name="Redo").click()
    fresh.wait_for_function("([e, v]) => e.value === v", arg=[handle.element_handle(), dragged])


ONE_PLAN = f"() => {{ const b = {BOARD}; return b.data.rev === b.rev && JSON.stringify(b.choices()) === b.sent; }}"


def test_steps_of_undo_that_come_close_together_are_all_taken(ranks: Page) -> None:
    """Streamlit keeps the later one of two triggers of a component."""
    handle = slider(ranks, "fc1")
    start = handle.input_value()
    for rank in ("9", "11", "13", "15"):
        entry = ranks.get_by_label("fc1 exact rank")
        entry.fill(rank)
        entry.press("Enter")
        measured(ranks)
    ranks.evaluate(f"() => {{ for (let i = 0; i < 4; i++) setTimeout(() => {BOARD}.act('undo'), 15 * i); }}")
    ranks.wait_for_function("([e, v]) => e.value === v", arg=[handle.element_handle(), start])
    measured(ranks)
    assert ranks.evaluate(ONE_PLAN)
    assert ranks.evaluate(f"{BOARD}.outbox") == []


def test_a_rank_chosen_before_an_undo_has_answered_is_the_plan(ranks: Page) -> None:
    entry = ranks.get_by_label("fc1 exact rank")
    for rank in ("9", "11"):
        entry.fill(rank)
        entry.press("Enter")
        measured(ranks)
    ranks.get_by_label("fc1 exact rank").fill("21")
    ranks.evaluate(f"() => {{ {BOARD}.act('undo'); {BOARD}.enter({BOARD}.rows.get('fc1')); }}")
    ranks.wait_for_timeout(500)
    measured(ranks)
    ranks.wait_for_function(ONE_PLAN)
    assert slider(ranks, "fc1").input_value() == "21"
    assert ranks.evaluate(f"{BOARD}.data.choices.fc1.rank") == [21]


@pytest.mark.parametrize("step", ["act('restore', { name: 'as opened' })", "act('undo')"])
def test_what_is_pressed_right_after_a_key_takes_its_step_back(ranks: Page, step: str) -> None:
    """Keys rest for a moment before they count as let go; until then the board believes its own plan."""
    thumb = slider(ranks, "fc1")
    before = thumb.input_value()
    ranks.evaluate(f"() => {{ const b = {BOARD}; b.drag(b.rows.get('fc1'), 0, 3); b.{step}; }}")
    ranks.wait_for_function("([e, v]) => e.value === v", arg=[thumb.element_handle(), before])
    ranks.wait_for_function(ONE_PLAN)


def test_what_comes_while_a_thumb_is_held_where_it_stands_is_taken_when_it_is_let_go(ranks: Page) -> None:
    ranks.evaluate(f"() => {{ const b = {BOARD}; b.act('undo'); b.pressed = b.dragging = true; }}")
    ranks.wait_for_function(f"{BOARD}.data.rev > {BOARD}.rev")
    ranks.evaluate(f"() => {{ const b = {BOARD}; b.pressed = false; b.settle(); }}")
    ranks.wait_for_function(ONE_PLAN)


def test_a_message_that_was_lost_comes_again(ranks: Page) -> None:
    ranks.evaluate(f"() => {{ const b = {BOARD}; b.sends = b.send; b.send = () => {{ b.send = b.sends; }}; }}")
    entry = ranks.get_by_label("fc1 exact rank")
    entry.fill("19")
    entry.press("Enter")
    ranks.wait_for_function(f"{BOARD}.outbox.length === 0")
    measured(ranks)
    assert ranks.evaluate(f"{BOARD}.data.choices.fc1.rank") == [19]


def test_a_step_after_a_page_switch_is_a_step_of_its_own(ranks: Page) -> None:
    handle = slider(ranks, "fc1")
    drag(handle, 30)
    measured(ranks)
    before = handle.input_value()
    for name in ("Model", "Ranks"):
        ranks.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
        ranks.get_by_role("heading", name=name, exact=True).wait_for()
    measured(ranks)
    drag(slider(ranks, "fc1"), 12)
    measured(ranks)
    ranks.get_by_role("button", name="Undo").click()
    ranks.wait_for_function("([e, v]) => e.value === v", arg=[slider(ranks, "fc1").element_handle(), before])


HELD = "e => { for (let i = 0; i < 5; i++) { e.stepUp(); e.dispatchEvent(new Event('input', { bubbles: true })); } }"
"""What a held key does to a slider; five keys from here may come a second apart where the machine is busy."""


def test_keyboard_moves_a_rank_and_held_keys_are_one_step_of_undo(ranks: Page) -> None:
    handle = slider(ranks, "conv3")
    start = int(handle.input_value())
    handle.focus()
    for steps, move in ((1, lambda: ranks.keyboard.press("ArrowRight")), (6, lambda: handle.evaluate(HELD))):
        move()
        assert int(handle.input_value()) == start + steps
        assert "rank" in (handle.get_attribute("aria-valuetext") or "")
        ranks.wait_for_timeout(400)
        measured(ranks)
    for steps in (1, 0):
        ranks.keyboard.press("Control+z")
        ranks.wait_for_function("([e, v]) => e.value === v", arg=[handle.element_handle(), str(start + steps)])


def test_exact_entry_and_its_bad_input(ranks: Page) -> None:
    entry = ranks.get_by_label("fc1 exact rank")
    entry.fill("17")
    entry.press("Enter")
    measured(ranks)
    assert slider(ranks, "fc1").input_value() == "17"
    entry.fill("9999")
    entry.press("Enter")
    assert "from 1 to" in ranks.inner_text(".rb-status")
    assert slider(ranks, "fc1").input_value() == "17"


def test_all_dense_gives_the_dense_score(ranks: Page) -> None:
    ranks.get_by_role("button", name="All dense").click()
    measured(ranks)
    assert figure(ranks, "multiplies").split() == ["698.6", "k"]
    assert "+0.00 points" in ranks.inner_text("section[aria-label='Top-1 accuracy']")


def test_tucker_has_two_ranks_and_the_method_is_chosen_per_layer(ranks: Page) -> None:
    ranks.get_by_role("button", name="conv3", exact=True).click()
    ranks.get_by_label("Method", exact=True).select_option("tucker2")
    measured(ranks)
    for axis in ("out", "in"):
        assert ranks.get_by_role("slider", name=f"conv3 rank {axis}").is_visible()
    before = figure(ranks, "bytes")
    drag(ranks.get_by_role("slider", name="conv3 rank in"), 5)
    measured(ranks)
    assert figure(ranks, "bytes") != before


def test_snapshot_and_restore(ranks: Page) -> None:
    entry = ranks.get_by_label("fc1 exact rank")
    entry.fill("17")  # a plan that no snapshot holds yet
    entry.press("Enter")
    measured(ranks)
    kept = slider(ranks, "fc1").input_value()
    ranks.get_by_label("Snapshot name").fill("before")
    ranks.get_by_role("button", name="Snapshot", exact=True).click()
    snapshot = ranks.locator(".rb-snapshots").get_by_role("button", name="before", exact=True)
    snapshot.wait_for()
    drag(slider(ranks, "fc1"), 10)
    measured(ranks)
    assert slider(ranks, "fc1").input_value() != kept
    snapshot.click()
    ranks.wait_for_function("([e, v]) => e.value === v", arg=[slider(ranks, "fc1").element_handle(), kept])


def test_budget_lock_holds(ranks: Page) -> None:
    total = "Object.values(document.querySelectorAll('.rb-root'))[0].__board"
    ranks.get_by_label("Budget lock").select_option("bytes")
    held = ranks.evaluate(f"{total}.hold.total")
    others = {name: slider(ranks, name).input_value() for name in ("conv2", "conv3", "fc2")}
    drag(slider(ranks, "fc1"), 100)
    measured(ranks)
    now = ranks.evaluate(f"RankBoard.totals({total}.model, {total}.choices()).bytes")
    assert now <= held
    assert now > 0.97 * held
    assert any(slider(ranks, name).input_value() != value for name, value in others.items())


def test_locked_layers_stay(ranks: Page) -> None:
    kept = slider(ranks, "fc1").input_value()
    ranks.get_by_role("button", name="Lock fc1").click()
    ranks.get_by_label("Preset").select_option("share:0.25")
    measured(ranks)
    assert slider(ranks, "fc1").input_value() == kept
    assert slider(ranks, "fc2").input_value() != kept


def test_group_slider_moves_its_block(ranks: Page) -> None:
    before = [slider(ranks, name).input_value() for name in ("conv2", "conv3", "fc2")]
    ranks.get_by_role("slider", name="digits-cnn group").fill("20")
    measured(ranks)
    after = [slider(ranks, name).input_value() for name in ("conv2", "conv3", "fc2")]
    assert all(int(a) < int(b) for a, b in zip(after, before, strict=True))


def test_ranks_snap_to_multiples(ranks: Page) -> None:
    ranks.get_by_label("Snap ranks to multiples").select_option("8")
    drag(slider(ranks, "fc1"), 45)
    measured(ranks)
    assert int(slider(ranks, "fc1").input_value()) % 8 == 0


def test_filter_box(ranks: Page) -> None:
    ranks.get_by_label("Filter layers").fill("conv")
    assert ranks.locator(".rb-row:visible").count() == 3


def test_a_click_on_the_spectrum_sets_the_rank(ranks: Page) -> None:
    ranks.get_by_role("button", name="fc1", exact=True).click()
    before = slider(ranks, "fc1").input_value()
    plot = ranks.locator("[data-testid=chart-spectrum] .nsewdrag").first
    ranks.evaluate(DRAWN)
    ranks.wait_for_timeout(200)
    ranks.mouse.click(*point(plot, 0.8))
    handle = slider(ranks, "fc1").element_handle()
    ranks.wait_for_function("([e, v]) => Number(e.value) > v", arg=[handle, int(before)])


WIDTHS = (1920, 1440, 1280, 1100, 1024, 960, 821, 820, 600, 390)
FITS = f"""() => {{
    const b = {BOARD}, tracks = [...document.querySelectorAll(".rb-track")].filter(t => t.offsetParent);
    if (b.root.scrollWidth > b.root.clientWidth + 1 || tracks.some(t => t.clientWidth < 120)) return false;
    const at = box => box.getBoundingClientRect().left + box.getBoundingClientRect().width / 2;
    const ticks = [...b.detailChart.querySelectorAll(".xaxislayer-above .xtick text")]
        .map(t => [Number(t.textContent), at(t)]);
    const [first, last] = [ticks[0], ticks[ticks.length - 1]];
    const row = b.rows.get(b.selected), scale = (last[1] - first[1]) / (last[0] - first[0]);
    const mark = b.detailChart.querySelector(".rb-mark-chosen").getBoundingClientRect().left + 1;
    return Math.abs(first[1] + scale * (row.rank[0] - first[0]) - mark) <= 1.5;
}}"""
"""No track is too narrow for a thumb, nothing sticks out, and the mark is where the chart's own axis has its rank."""


def test_tracks_and_marks_fit_every_window(ranks: Page) -> None:
    before = ranks.viewport_size
    assert before is not None
    ranks.evaluate(f"{BOARD}.select('fc1')")
    for width in WIDTHS:
        ranks.set_viewport_size({"width": width, "height": 900})
        ranks.wait_for_function(FITS, timeout=30_000)
    ranks.set_viewport_size(before)
    ranks.wait_for_function(FITS, timeout=30_000)


def test_reload_keeps_the_plan_and_the_history(ranks: Page) -> None:
    start = slider(ranks, "fc1").input_value()
    drag(slider(ranks, "fc1"), 20)
    measured(ranks)
    dragged = slider(ranks, "fc1").input_value()
    assert dragged != start
    ranks.reload()
    measured(ranks)
    assert slider(ranks, "fc1").input_value() == dragged
    ranks.get_by_role("button", name="Undo").click()
    ranks.wait_for_function("([e, v]) => e.value === v", arg=[slider(ranks, "fc1").element_handle(), start])


def test_a_second_tab_with_another_model_does_not_disturb_the_first(ranks: Page, url: str) -> None:
    kept = slider(ranks, "fc1").input_value()
    other = ranks.context.new_page()
    other.goto(f"{url}/Ranks?model=builtin:iris-mlp")
    measured(other)
    assert other.get_by_role("slider", name="fc2 rank", exact=True).is_visible()
    other.get_by_role("button", name="All dense").click()
    measured(other)
    ranks.bring_to_front()
    drag(slider(ranks, "conv2"), 9)
    measured(ranks)
    assert slider(ranks, "fc1").input_value() == kept
    other.close()


def test_difference_of_two_snapshots(ranks: Page) -> None:
    entry = ranks.get_by_label("fc1 exact rank")
    entry.fill("17")  # a plan that no snapshot holds yet
    entry.press("Enter")
    measured(ranks)
    ranks.get_by_label("Snapshot name").fill("a")
    ranks.get_by_role("button", name="Snapshot", exact=True).click()
    ranks.get_by_role("combobox", name="Compare", exact=True).select_option("a")
    entry = ranks.get_by_label("fc2 exact rank")
    entry.fill("33")
    entry.press("Enter")
    measured(ranks)
    lines = ranks.inner_text("[data-testid=snapshot-difference]")
    assert "fc2" in lines
    assert "SVD 33" in lines
    assert "fc1" not in lines


def test_the_table_drives_the_same_plan(ranks: Page) -> None:
    ranks.get_by_text("Edit as a table").click()
    ranks.wait_for_selector("[data-testid=stDataFrame] canvas")
    cells = ranks.locator("[data-testid=stDataFrame] [role=gridcell]")
    assert "conv1" in cells.first.text_content()
    entry = ranks.get_by_label("fc1 exact rank")
    entry.fill("19")
    entry.press("Enter")
    measured(ranks)
    table = ranks.locator("[data-testid=stDataFrame]")
    ranks.wait_for_function("t => t.textContent.includes('19')", arg=table.element_handle())


def test_correction_can_be_switched_off(ranks: Page) -> None:
    card = ranks.locator("section[aria-label='Top-1 accuracy']")
    expect(card).to_contain_text("without correction")
    corrected = figure(ranks, "accuracy")
    ranks.get_by_label("Correction").uncheck()
    ranks.wait_for_function(
        "([e, v]) => e.innerText !== v && e.dataset.state === 'measured'",
        arg=[ranks.locator("[data-testid=live-accuracy]").element_handle(), corrected],
    )
    assert float(figure(ranks, "accuracy").split()[0]) < float(corrected.split()[0])


def test_a_measurement_stops_once_it_is_decided_against_the_tolerance(ranks: Page) -> None:
    ranks.get_by_label("Tolerance").select_option("0.05")
    entry = ranks.get_by_label("fc1 exact rank")
    entry.fill("45")
    entry.press("Enter")
    card = ranks.locator("section[aria-label='Top-1 accuracy']")
    expect(card).to_contain_text("within tolerance")
    measured(ranks)
    samples = int(card.inner_text().split(" samples")[0].split()[-1])
    assert 64 <= samples < 797


def test_no_late_rerun_moves_a_thumb_back(fresh: Page) -> None:
    old = fresh.evaluate(f"({{...{BOARD}.data}})")
    drag(slider(fresh, "fc1"), 44)
    measured(fresh)
    kept = slider(fresh, "fc1").input_value()
    fresh.evaluate(f"old => {BOARD}.update({{...old, choices: {{}}}})", old)
    assert slider(fresh, "fc1").input_value() == kept
    newer = old | {"rev": fresh.evaluate(f"{BOARD}.rev") + 1, "choices": {"fc1": {"method": "svd", "rank": [9]}}}
    fresh.evaluate(f"data => {BOARD}.update(data)", newer)
    assert slider(fresh, "fc1").input_value() == "9"


def test_a_score_is_shown_only_with_the_plan_it_belongs_to(ranks: Page) -> None:
    before = figure(ranks, "accuracy")
    stale = "{model: b.model.key, rev: b.rev - 1, score: {value: 0.5, dense: 0.9, samples: 9, drop: 0.4}, done: true}"
    ranks.evaluate(f"() => {{ const b = {BOARD}; b.feed({stale}); }}")
    assert figure(ranks, "accuracy") == before
    drag(slider(ranks, "fc1"), 33, release=False)
    kind, state, named = ranks.eval_on_selector(
        "[data-testid=live-accuracy]", "e => [e.dataset.kind, e.dataset.state, e.className]"
    )
    assert state != "measured"
    assert ("rb-unsure" in named) == (kind == "predicted")
    ranks.mouse.up()


def test_the_prediction_of_the_browser_is_pythons(ranks: Page, tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    job = Job("survey", lambda: survey(workspace, corrected=True, folder=tmp_path, shipped=POINTS))
    learnt = Learnt.of(job.wait())
    found, table = curves(learnt.points), noise_table(workspace.reference)
    assert learnt.context.repairs
    draw = random.Random(1)
    plans = []
    for _ in range(200):
        chosen = [layer for layer in workspace.profile.layers if draw.random() < 0.7]
        choices = {
            layer.name: Choice(layer.methods[0].name, (draw.randint(1, layer.methods[0].max_rank(layer.spec)[0]),))
            for layer in chosen
        }
        plans.append(RankPlan.of(workspace.profile.fingerprint, choices))
    ranks.wait_for_function("() => Object.values(RankBoard.models)[0].context?.residuals.logs.length")
    known = Residuals(**ranks.evaluate("() => Object.values(RankBoard.models)[0].context.residuals"))
    assert len(known.logs) > len(learnt.context.joints), "what was measured on the page counts, too"
    expected = []
    for plan in plans:
        changes = plan_changes(plan, found, table.rough, lambda n, m: workspace.factors(n, m).spectra, learnt.context)
        expected.append(predicted(changes, table, known).value)
    sent = [{n: {"method": c.method, "rank": list(c.rank)} for n, c in plan.choices} for plan in plans]
    shown = ranks.evaluate(
        "plans => plans.map(p => RankBoard.predict(Object.values(RankBoard.models)[0], p).value)",
        sent,
    )
    assert max(abs(a - b) for a, b in zip(shown, expected, strict=True)) < 0.01
    assert min(expected) < 0.8 < 0.99 < max(expected)


def test_many_layers_share_bars_and_rows_out_of_sight_follow_at_rest(
    page: Page, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERS", "240")
    page.goto(f"{serve('benchmarks/deep_network.py')}/Ranks")
    slider(page, "head").wait_for()
    page.wait_for_function(f"{BOARD}.hidden.size > 150")
    total = f"RankBoard.totals({BOARD}.model, {BOARD}.choices()).multiplies"
    for kind in ("accuracy", "bytes", "multiplies"):
        bars = page.locator(f"[data-testid=chart-{kind}] .subplot.x2y2 .barlayer .trace:last-child .point")
        assert bars.count() == 121
    page.get_by_label("Budget lock").select_option("multiplies")
    held = page.evaluate(f"{BOARD}.hold.total")
    name, moved, shown, kept = page.evaluate(f"""() => {{
        const board = {BOARD};
        board.drag(board.rows.get("blocks.0.down"), 0, 90);
        board.draw(false);
        const far = [...board.stale].pop();
        return [far.layer.name, far.rank[0], Number(far.tracks[0].input.value), {total}];
    }}""")
    assert moved < shown
    assert 0.97 * held < kept <= held
    page.wait_for_function(f"{BOARD}.stale.size === 0")
    assert slider(page, name).input_value() == str(moved)
    assert (slider(page, name).get_attribute("aria-valuetext") or "").startswith(f"rank {moved} of 96")


def test_a_newer_release_ends_the_measurement_before_it(page: Page, serve: Callable[..., str], tmp_path: Path) -> None:
    page.goto(f"{serve(slow_network(tmp_path, 0.2, 64_000))}/Ranks")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measuring]")
    page.evaluate("window.heard = []; window.addEventListener('rank-feed', e => window.heard.push(e.detail))")
    for rank in ("3", "5"):
        entry = page.get_by_label("fc1 exact rank")
        entry.fill(rank)
        entry.press("Enter")
        page.wait_for_function(f"() => {{ const b = {BOARD}; return b.data.rev === b.rev && !b.outbox.length; }}")
        page.wait_for_selector("[data-testid=live-accuracy][data-state=measuring]")
    (tmp_path / "go").touch()
    measured(page)
    heard = page.evaluate("window.heard.filter(h => h.done !== undefined).map(h => [h.rev, h.done])")
    last = max(rev for rev, _ in heard)
    assert [last, True] in heard
    assert not [rev for rev, done in heard if done and rev < last], "an older measurement went on to its end"


NOTHING_TO_COMPRESS = """
import torch
from torch import nn

class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Bilinear(4, 4, 6)

    def forward(self, x):
        return self.mix(x[:, 0], x[:, 0])

def build_model():
    return Last().eval()

def example_inputs():
    return (torch.ones(1, 7, 4),)
"""


def test_a_network_without_a_compressible_layer_is_told_so(
    page: Page, serve: Callable[..., str], tmp_path: Path
) -> None:
    model = tmp_path / "last.py"
    model.write_text(NOTHING_TO_COMPRESS)
    page.goto(f"{serve(model)}/Ranks")
    measured(page)
    assert "No layer of this network can be compressed" in page.inner_text(".rb-layers")
