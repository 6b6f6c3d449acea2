"""One layer selected on all pages, many layers at once, and everything by keyboard, in real Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from lowrank_core.plans.plan import read_plan
from tests.conftest import AT_REST, watched_page
from tests.hands import point, until

BOARD = "document.querySelector('.rb-root').__board"
IDLE = AT_REST
FOCUSED = "(e => (e.ariaLabel || e.innerText || '').trim().split('\\n').pop())(document.activeElement)"
"""What the focus is on, by its name or the last line of its text."""
LISTEN = """() => {
    window.said = [];
    const region = document.querySelector(".rb-status");
    new MutationObserver(() => window.said.push(region.textContent)).observe(region, { childList: true });
}"""
"""Keeps all that the live region says, also where the next words come at once."""


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture(scope="module")
def visit(browser: Browser, url: str) -> Iterator[Page]:
    """One visit of Ranks for all tests that say by themselves where they begin."""
    with watched_page(browser) as page:
        page.goto(f"{url}/Ranks")
        measured(page)
        page.evaluate(LISTEN)
        yield page


@pytest.fixture
def ranks(visit: Page) -> Page:
    """All dense, unlocked, in the network's order, and nothing marked."""
    visit.keyboard.press("Escape")
    visit.evaluate(f"""() => {{
        const b = {BOARD};
        b.sortRows("network");
        b.mark([]);
        if (b.locked.size) b.act("lock", {{ locked: [] }});
        for (const row of b.rows.values()) row.method = row.layer.default;
        b.preset("dense");
        b.select("conv1");
    }}""")
    settled(visit)
    visit.evaluate("window.said = []")
    return visit


def measured(page: Page) -> None:
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    page.wait_for_selector(IDLE)


def settled(page: Page) -> None:
    """What was asked for has been heard, and the figure is there."""
    heard = "!b.outbox.length && b.data.rev === b.rev && JSON.stringify(b.choices()) === b.sent"
    page.wait_for_function(f"() => {{ const b = {BOARD}; return {heard}; }}")
    measured(page)


def said(page: Page, words: str) -> None:
    """The live region says this, after what it was last asked for."""
    page.wait_for_function(
        """words => {
            const at = window.said.findIndex(text => new RegExp(words).test(text));
            if (at >= 0) window.said.splice(0, at + 1);
            return at >= 0;
        }""",
        arg=words,
    )


def layer_in_address(page: Page, name: str) -> None:
    page.wait_for_function("name => new URL(location.href).searchParams.get('layer') === name", arg=name)


def turn_to(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()
    page.wait_for_selector(IDLE)


# ---- one layer on all pages -----------------------------------------------------------------------------------------


def test_a_click_selects_on_all_pages_and_in_the_address_without_an_entry_in_the_history(page: Page, url: str) -> None:
    page.goto(f"{url}/Spectra?layer=fc2")
    box = page.get_by_role("combobox", name="Layer")
    expect(box).to_have_value("fc2")
    page.wait_for_selector(IDLE)
    entries = page.evaluate("history.length")
    page.locator("[data-pick-layer=conv3]").click()
    layer_in_address(page, "conv3")
    expect(box).to_have_value("conv3")
    expect(page.locator(".rk-said")).to_have_text("Layer conv3 is selected.")
    page.locator("[data-pick-layer=conv3]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(box).to_have_value("fc1")
    layer_in_address(page, "fc1")
    assert page.evaluate("history.length") == entries
    turn_to(page, "Model")
    layer_in_address(page, "fc1")
    page.locator("button[data-pick-layer=conv3]").click()
    layer_in_address(page, "conv3")
    cells = page.locator("[data-testid=stDataFrame]:visible").first  # what each layer costs
    rows = 7  # the headings and six layers
    address = "() => new URLSearchParams(location.search).get('layer') === 'fc2'"
    until(
        lambda patience: page.wait_for_function(address, timeout=patience),
        lambda: page.mouse.click(*point(cells, 0.05, 5.5 / rows)),
    )
    turn_to(page, "Ranks")
    measured(page)
    assert page.evaluate(f"{BOARD}.selected") == "fc2"
    entries = page.evaluate("history.length")
    page.get_by_role("button", name="conv2", exact=True).click()
    layer_in_address(page, "conv2")
    assert page.evaluate("history.length") == entries


# ---- by keyboard ----------------------------------------------------------------------------------------------------


def test_the_words_of_the_live_region(ranks: Page) -> None:
    page = ranks
    press = page.keyboard.press
    page.evaluate("document.activeElement.blur()")
    press("j")
    assert page.evaluate(FOCUSED) == "conv2 rank"
    press("m")
    said(page, r"^conv2: Spatial SVD, rank 16\. 484\.3\u202fkB, 551\.2\u202fk multiplies\.$")
    said(page, r"^Measured \d\d\.\d\d\u202f% with the (quick|thorough) correction on 797 samples; .+ multiplies\.$")
    settled(page)
    press("Control+z")
    said(page, r"^Undone: conv2 dense\. 493\.5\u202fkB, 698\.6\u202fk multiplies\.")
    settled(page)
    press("Control+Shift+Z")
    said(page, r"^Done again: conv2 rank 16\. ")
    settled(page)
    press("l")
    said(page, r"^conv2 locked\.$")
    press("l")
    said(page, r"^conv2 unlocked\.$")
    press("s")
    said(page, r"^Snapshot S\d+ taken\.")
    press("k")
    press("k")
    said(page, r"^This is the first layer\.$")
    press("Shift+ArrowDown")
    press("Shift+ArrowDown")
    said(page, r"^3 layers marked\.$")
    press("l")
    said(page, r"^3 layers locked\.$")
    press("l")
    said(page, r"^3 layers unlocked\.$")
    press("Escape")
    said(page, r"^No layer marked\.$")
    page.get_by_label("Order of the layers").select_option("name")
    said(page, r"^The layers are sorted by name\.$")
    page.get_by_label("Preset").select_option("share:0.5")
    said(
        page,
        r"^50 % of break-even: conv1 rank \d+; conv3 rank \d+; fc1 rank \d+ and 2 more layers\. .+ multiplies\.$",
    )
    page.get_by_label("Budget lock").select_option("bytes")
    said(page, r"^Bytes are held at \d+\.\d\u202fkB\.$")
    page.get_by_label("Budget lock").select_option("")
    page.get_by_label("Filter layers").fill("conv")
    said(page, r"^3 layers of 6\.$")
    page.get_by_label("Filter layers").fill("")


def test_no_key_acts_while_somebody_types(ranks: Page) -> None:
    before = ranks.evaluate(f"JSON.stringify([{BOARD}.choices(), {BOARD}.selected, {BOARD}.data.rev])")
    field = ranks.get_by_label("Filter layers")
    field.focus()
    for key in "jkmls?":
        ranks.keyboard.press(key)
    ranks.keyboard.press("Control+z")
    ranks.keyboard.press("Control+k")
    assert not ranks.locator("dialog[open]").count()
    assert ranks.evaluate(f"JSON.stringify([{BOARD}.choices(), {BOARD}.selected, {BOARD}.data.rev])") == before
    field.fill("")


def test_a_row_is_one_stop_and_enter_leads_through_it(ranks: Page) -> None:
    ranks.evaluate(f"() => {{ const b = {BOARD}; b.select('conv3'); b.setMethod('tucker2'); }}")
    settled(ranks)
    stops = ranks.evaluate(
        "[...document.querySelectorAll('.rb-row')].map(row => row.querySelectorAll('input:not([tabindex=\"-1\"]),"
        ' button:not([tabindex="-1"])\').length)'
    )
    assert stops == [1] * 6
    ranks.get_by_role("slider", name="conv3 rank out").focus()
    parts = []
    for _ in range(2):
        ranks.keyboard.press("Enter")
        parts.append(ranks.evaluate(FOCUSED))
    assert parts == ["conv3 rank in", "conv3 exact rank"]
    ranks.keyboard.press("Control+a")
    ranks.keyboard.type("7")
    ranks.keyboard.press("Escape")
    assert ranks.evaluate(FOCUSED) == "conv3 rank out"
    assert "7" not in ranks.get_by_label("conv3 exact rank").input_value().split(", ")
    ranks.keyboard.press("Tab")
    assert ranks.evaluate(FOCUSED) == "fc1 rank"


def test_the_list_of_keys_holds_the_focus_and_letters_can_be_switched_off(ranks: Page) -> None:
    ranks.get_by_role("slider", name="conv2 rank").focus()
    ranks.keyboard.press("?")
    keys = ranks.get_by_role("dialog", name="Keys")
    expect(keys).to_be_visible()
    for _ in range(6):
        ranks.keyboard.press("Tab")
        assert ranks.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    keys.get_by_role("checkbox").uncheck()
    ranks.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    assert ranks.evaluate(FOCUSED) == "conv2 rank", "back where it was"
    ranks.keyboard.press("j")
    assert ranks.evaluate(FOCUSED) == "conv2 rank"
    ranks.get_by_role("button", name="Keys").click()
    keys.get_by_role("checkbox").check()
    ranks.keyboard.press("Escape")
    ranks.get_by_role("slider", name="conv2 rank").focus()
    ranks.keyboard.press("j")
    assert ranks.evaluate(FOCUSED) == "conv3 rank"


def test_find_is_a_combobox_for_layers_presets_and_devices(ranks: Page) -> None:
    ranks.keyboard.press("Control+k")
    field = ranks.get_by_role("combobox", name="Find a layer, page, preset or device")
    expect(field).to_be_focused()
    ranks.keyboard.type("zzz")
    expect(ranks.locator(".rk-count")).to_have_text("Nothing of that name.")
    expect(field).to_have_attribute("aria-expanded", "false")
    field.fill("fc3")
    expect(ranks.locator("#rk-found").get_by_role("option", selected=True)).to_have_text("fc3 layer")
    marked = field.get_attribute("aria-activedescendant")
    assert ranks.locator(f"#{marked}").inner_text().startswith("fc3")
    ranks.keyboard.press("Enter")
    assert ranks.evaluate(FOCUSED) == "fc3 rank"
    layer_in_address(ranks, "fc3")
    ranks.keyboard.press("Control+k")
    ranks.keyboard.type("50 preset")
    ranks.keyboard.press("Enter")
    said(ranks, r"^50 % of break-even: ")
    settled(ranks)
    ranks.keyboard.press("Control+k")
    ranks.keyboard.type("device")
    name = ranks.locator("#rk-found").get_by_role("option", selected=True).locator("span").inner_text()
    ranks.keyboard.press("Enter")
    expect(ranks.get_by_test_id("stMain").get_by_role("combobox", name="Device")).to_have_value(name)


def test_from_home_to_an_exported_plan_by_keyboard_alone(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_text("dense top-1 accuracy").first.wait_for()
    page.wait_for_selector(IDLE)
    press = page.keyboard.press

    def tab_to(name: str, most: int = 60) -> None:
        for _ in range(most):
            press("Tab")
            if page.evaluate(FOCUSED) == name:
                return
        raise AssertionError(f"no way by Tab to {name}")

    tab_to("Tune the ranks")
    press("Enter")
    measured(page)
    page.evaluate(LISTEN)
    press("j")
    assert page.evaluate(FOCUSED) == "fc1 rank", "the first layer that is compressed is conv3"
    for _ in range(3):
        press("ArrowLeft")
    settled(page)
    chosen = page.evaluate(f"{BOARD}.choices().fc1.rank")
    said(page, r"^Measured ")
    press("s")
    said(page, r"^Snapshot S1 taken\.")
    press("Control+k")
    page.keyboard.type("export")
    press("Enter")
    page.get_by_role("heading", name="Export", exact=True).wait_for()
    page.get_by_role("button", name="Download the plan").wait_for()
    page.wait_for_selector(IDLE)
    tab_to("Download the plan")
    with page.expect_download() as download:
        press("Enter")
    plan = read_plan(Path(download.value.path()).read_bytes()).plan
    choice = plan.get("fc1")
    assert choice is not None
    assert list(choice.rank) == chosen


# ---- many layers ----------------------------------------------------------------------------------------------------


def test_several_rows_are_set_as_one_step_of_undo(ranks: Page) -> None:
    ranks.get_by_role("button", name="conv2", exact=True).click()
    ranks.get_by_role("button", name="fc1", exact=True).click(modifiers=["Shift"])
    ranks.get_by_role("button", name="fc3", exact=True).click(modifiers=["Control"])
    ranks.get_by_role("button", name="conv3", exact=True).click(modifiers=["Control"])
    bar = ranks.get_by_role("group", name="Marked layers")
    expect(bar).to_contain_text("3 layers")
    ranks.get_by_role("slider", name="Marked layers group").fill("40")
    settled(ranks)
    choices = ranks.evaluate(f"{BOARD}.choices()")
    assert sorted(choices) == ["conv2", "fc1", "fc3"]
    assert abs(int(ranks.get_by_role("slider", name="Marked layers group").input_value()) - 40) <= 2, "ranks are whole"
    ranks.get_by_label("Method of the marked layers").select_option("dense")
    settled(ranks)
    assert ranks.evaluate(f"{BOARD}.choices()") == {}
    ranks.keyboard.press("Control+z")
    ranks.wait_for_function(f"Object.keys({BOARD}.data.choices).length === 3")
    ranks.keyboard.press("Control+z")
    ranks.wait_for_function(f"Object.keys({BOARD}.data.choices).length === 0")
    settled(ranks)
    bar.get_by_role("button", name="Lock").click()
    ranks.wait_for_function(f"{BOARD}.data.locked.join() === 'conv2,fc1,fc3'")


def test_a_block_shows_its_sums_and_its_slider_the_true_share(ranks: Page) -> None:
    group = ranks.get_by_role("slider", name="digits-cnn group", exact=True)
    assert group.input_value() == "100"
    ranks.get_by_label("Preset").select_option("share:0.5")
    settled(ranks)
    assert abs(int(group.input_value()) - 50) <= 3
    ranks.keyboard.press("Control+z")
    ranks.wait_for_function(f"Object.keys({BOARD}.data.choices).length === 0")
    assert group.input_value() == "100", "back with an undo"
    sums = ranks.locator(".rb-sums span").all_inner_texts()
    layers = ranks.evaluate(f"{BOARD}.model.layers.map(l => [l.dense.bytes, l.dense.multiplies])")
    expected = [sum(one[at] for one in layers) for at in (0, 1)]
    assert [text.split("\u202f")[0] for text in sums[:2]] == [f"{amount / 1e3:.4g}" for amount in expected]
    assert sums[2] == "–"


NAMES = f"{BOARD}.sequence.map(row => row.layer.name)"
SHOWN = "[...document.querySelectorAll('.rb-row')].filter(row => row.offsetParent).map(row => row.dataset.layer)"


MANY = f"""layers => {{
    const old = {BOARD}, [pattern] = old.model.layers.slice(-1);
    const model = {{ ...old.model, key: `${{layers}} layers`, layers: Array.from({{ length: layers }}, (_, index) => ({{
        ...pattern, index, name: `blocks.${{index >> 1}}.${{index % 2 ? "up" : "down"}}`,
        leaf: index % 2 ? "up" : "down", block: `blocks.${{index >> 1}}`, methods: structuredClone(pattern.methods),
    }})) }};
    old.leave();
    const root = document.createElement("div");
    const data = {{ ...old.data, model: model.key, choices: {{}}, layer: "blocks.30.up" }};
    root.className = "rb-root";
    old.root.replaceWith(root);
    RankBoard.setModel(model);
    RankBoard.mount(root, data, () => {{}});
    window.rankPicker = {{ data: {{ layers: model.layers.map(layer => layer.name), devices: [] }}, pick: () => {{}} }};
}}"""
"""A board of so many layers, in the place of the one that is there."""


@pytest.mark.parametrize("layers", [150, 1000])
def test_many_layers_are_sorted_and_found(page: Page, url: str, layers: int) -> None:
    """Rows are all there in every order, stay while a rank changes, and one is found by a part of its name."""
    page.goto(f"{url}/Ranks")
    measured(page)
    page.evaluate(MANY, layers)
    network = page.evaluate(NAMES)
    assert len(network) == layers
    assert page.evaluate(f"{BOARD}.selected") == "blocks.30.up"
    row = page.locator("[data-layer='blocks.30.up']")
    page.wait_for_function(
        "e => { const box = e.getBoundingClientRect(), list = e.closest('.rb-layers').getBoundingClientRect();"
        " return box.top >= list.top && box.bottom <= list.bottom; }",
        arg=row.element_handle(),
    )
    page.evaluate(f"() => {{ const b = {BOARD}; b.drag(b.rows.get('blocks.9.down'), 0, 3); b.settle(); }}")
    order = page.get_by_label("Order of the layers")
    order.select_option("saving")
    first, *others = page.evaluate(NAMES)
    assert first == "blocks.9.down"
    assert others == [name for name in network if name != first], "equal ones as in the network"
    assert sorted(page.evaluate(SHOWN)) == sorted(network)
    page.evaluate(f"() => {{ const b = {BOARD}; b.drag(b.rows.get('blocks.7.down'), 0, 2); b.settle(); }}")
    assert page.evaluate(NAMES)[0] == "blocks.9.down", "nothing moves under a hand"
    page.get_by_role("button", name="Sort again").click()
    assert page.evaluate(NAMES)[:2] == ["blocks.7.down", "blocks.9.down"]
    order.select_option("name")
    assert page.evaluate(NAMES)[18:22] == ["blocks.9.down", "blocks.9.up", "blocks.10.down", "blocks.10.up"]
    order.select_option("network")
    assert page.evaluate(SHOWN) == network
    page.keyboard.press("Control+k")
    expect(page.locator(".rk-count")).to_contain_text(f"The first 50 of {layers // 1000 or ''}")
    last = f"blocks.{layers // 2 - 1}"
    page.keyboard.type(f"{layers // 2 - 1} down")
    page.keyboard.press("Enter")
    stops = []
    for _ in range(3):
        stops.append(page.evaluate(FOCUSED))
        page.keyboard.press("Tab")
    assert stops == [f"{last}.down rank", f"{last}.up rank", "Method"]
