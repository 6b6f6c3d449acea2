"""The map of costs: areas as large as their shares, side by side, and names that are never markup."""

import re
from itertools import combinations

import pytest

from pages.ui.cost_map import HEIGHT, WIDTH, Area, Box, cost_map, squarified


@pytest.mark.parametrize(
    "sizes",
    [[5], [3, 3, 3], [6, 6, 4, 3, 2, 2, 1], [1e6, 1, 1e-6], [1 / 150] * 150, sorted(range(1, 90), reverse=True)],
)
def test_places_fill_the_box_and_do_not_overlap(sizes):
    box = Box(10, 20, 1000, 420)
    places = squarified(sizes, box)
    for size, place in zip(sizes, places, strict=True):
        assert place.width * place.height == pytest.approx(size / sum(sizes) * 420_000, abs=1e-3)
        assert box.x - 1e-6 <= place.x <= place.x + place.width <= box.x + box.width + 1e-6
        assert box.y - 1e-6 <= place.y <= place.y + place.height <= box.y + box.height + 1e-6
    for a, b in combinations(places, 2):
        across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
        down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
        assert across < 1e-6 or down < 1e-6


def test_like_sizes_are_like_squares():
    places = squarified([1.0] * 24, Box(0, 0, WIDTH, HEIGHT))
    assert all(0.4 < place.width / place.height < 2.5 for place in places)


def test_no_box_has_no_room_for_anything():
    assert squarified([1, 2], Box(0, 0, 0, 10)) == [Box(0, 0, 0, 0)] * 2
    assert squarified([], Box(0, 0, 5, 5)) == []


def test_names_are_text_and_every_layer_that_can_be_aimed_at_is_a_button():
    areas = [Area(f"block.{n}.<img src=x>", 0.24, "a & b") for n in range(4)]
    areas += [Area("tiny", 1e-6, "tiny"), Area("none", 0.0, "none"), Area("outside", 0.04, "rest", False)]
    html = cost_map(areas, "block.2.<img src=x>", dark=False)
    assert "<img" not in html
    assert html.count("<button") == 4
    assert html.count('tabindex="0"') == 1
    assert re.search(r'data-pick-layer="block.2.&lt;img src=x&gt;" tabindex="0"[^>]*aria-current="true"', html)
    assert "<span" in html
    assert 'data-pick-layer="tiny"' in html
    assert 'data-pick-layer="none"' not in html
    assert 'data-pick-layer="outside"' not in html


def test_layers_of_a_block_stand_together_under_its_name():
    areas = [Area(f"layers.{n}.{part}", 0.125, "") for n in range(2) for part in ("q", "k", "v", "o")]
    html = cost_map(areas, None, dark=True)
    assert html.count("cm-block") == 2 + 1  # and its style
    assert "layers.1 · 50 %" in html
    assert "<b>q</b>" in html
