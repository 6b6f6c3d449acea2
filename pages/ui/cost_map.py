"""Where the cost is, as a map: each layer an area as large as its share, layers of one block together.

Squarified (Bruls, Huizing & van Wijk 2000). Plain elements, each of which selects its layer: a treemap of Plotly (7.1)
tells Streamlit (1.67) nothing of a click, and no keyboard reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pages.ui import words
from pages.ui.charts import BLUE, SKY
from pages.ui.tables import OTHERS

WIDTH, HEIGHT = 1000.0, 420.0
"""Of the map: its width is a thousand parts of whatever there is, its height in pixels."""

HEAD = 20.0
"""Pixels of a block's name above its layers."""

NARROW = 0.32
"""Pixels of one of the thousand parts where a window is narrow."""

LEAST = 24.0
"""Pixels of what can be aimed at; smaller areas are found in the tables and by Ctrl+K."""


@dataclass(frozen=True, slots=True)
class Area:
    """A layer, or what is outside of them: how much it takes of the whole network, and what is said of it."""

    name: str
    share: float
    says: str
    is_layer: bool = True


@dataclass(frozen=True, slots=True)
class Box:
    """A place on the map: left and width in thousandths, top and height in pixels."""

    x: float
    y: float
    width: float
    height: float

    def within(self, left: float, top: float, right: float, bottom: float) -> Box:
        """What is left of it inside its edges."""
        width, height = max(0.0, self.width - left - right), max(0.0, self.height - top - bottom)
        return Box(self.x + left, self.y + top, width, height)


def squarified(sizes: Sequence[float], box: Box) -> list[Box]:
    """A place for each size, largest first, together filling the box, each as near to a square as it can be.

    >>> [(round(b.width), round(b.height)) for b in squarified([6, 3, 3], Box(0, 0, 12, 10))]
    [(6, 10), (6, 5), (6, 5)]
    """
    total, placed, left = sum(sizes), list[Box](), box
    scale = box.width * box.height / total if total else 0.0
    areas, at = [size * scale for size in sizes], 0
    while at < len(areas):
        side, count = min(left.width, left.height), 1
        if side <= 0:
            return [*placed, *(Box(left.x, left.y, 0.0, 0.0) for _ in areas[at:])]
        while at + count < len(areas) and _worst(areas[at : at + count + 1], side) <= _worst(
            areas[at : at + count], side
        ):
            count += 1
        row = areas[at : at + count]
        thick, along = sum(row) / side, 0.0
        for area in row:
            long = area / thick if thick else 0.0
            if left.width >= left.height:
                placed.append(Box(left.x, left.y + along, thick, long))
            else:
                placed.append(Box(left.x + along, left.y, long, thick))
            along += long
        left = left.within(thick, 0, 0, 0) if left.width >= left.height else left.within(0, thick, 0, 0)
        at += count
    return placed


def _worst(row: Sequence[float], side: float) -> float:
    """How far the least square of a row along a side is from one."""
    total = sum(row)
    if not total or not min(row):
        return float("inf")
    return max(side**2 * max(row) / total**2, total**2 / (side**2 * min(row)))


def cost_map(areas: Sequence[Area], selected: str | None, *, dark: bool) -> str:
    """HTML of the map; areas that take nothing are not on it. Names are escaped. selected: the name of a layer."""
    blocks: dict[str, list[Area]] = {}
    for area in areas:
        if area.share > 0:
            block = words.block(area.name) if area.is_layer else OTHERS
            blocks.setdefault(block or area.name, []).append(area)
    largest = sorted(blocks.items(), key=lambda one: -sum(area.share for area in one[1]))
    boxes = squarified([sum(area.share for area in inside) for _, inside in largest], Box(0, 0, WIDTH, HEIGHT))
    stop = selected or next((area.name for _, inside in largest for area in inside if area.is_layer), None)
    parts: list[str] = []
    for (name, inside), box in zip(largest, boxes, strict=True):
        parts += _block(name, sorted(inside, key=lambda area: -area.share), box, selected, stop)
    areas_html = "".join(parts)
    if 'tabindex="0"' not in areas_html:  # the selected layer's area is too small to be a stop
        areas_html = areas_html.replace('tabindex="-1"', 'tabindex="0"', 1)
    style = f"--cm-line: {SKY if dark else BLUE}"
    label = "Share of the cost by layer; the same as a table below"
    return f'{STYLE}<div class="cost-map" role="group" aria-label="{label}" style="{style}">{areas_html}</div>'


def _block(name: str, inside: Sequence[Area], box: Box, selected: str | None, stop: str | None) -> Iterator[str]:
    several = len(inside) > 1
    if several and box.height > 2.5 * HEAD and box.width * NARROW > 30:
        share = sum(area.share for area in inside)
        yield (
            f'<span class="cm-block" style="{_place(Box(box.x, box.y, box.width, HEAD))}" aria-hidden="true">'
            f"{escape(name)} · {words.share(share)}</span>"
        )
        box = box.within(0, HEAD, 0, 0)
    for area, place in zip(inside, squarified([area.share for area in inside], box), strict=True):
        yield _area(area, place, name if several else "", selected, stop)


def _area(area: Area, box: Box, block: str, selected: str | None, stop: str | None) -> str:
    name, says = escape(area.name), escape(area.says)
    tail = escape(area.name.removeprefix(f"{block}.")) if block else name
    kind = "cm-area" + (" cm-rest" if not area.is_layer else "") + (" cm-selected" if area.name == selected else "")
    shown = f"<b>{tail}</b><i>{words.share(area.share)}</i>" if box.height >= LEAST else ""
    aimed = box.height >= LEAST and box.width * NARROW >= LEAST
    given = f'class="{kind}" style="{_place(box)}" title="{says}"'
    if not area.is_layer:
        return f"<span {given}>{shown}</span>"
    if not aimed:
        return f'<span {given} data-pick-layer="{name}">{shown}</span>'
    current = ' aria-current="true"' if area.name == selected else ""
    tab = 0 if area.name == stop else -1
    return (
        f'<button type="button" {given} data-pick-layer="{name}" tabindex="{tab}" aria-label="{says}"{current}>'
        f"{shown}</button>"
    )


def _place(box: Box) -> str:
    return (
        f"left:{100 * box.x / WIDTH:.3f}%;width:{100 * box.width / WIDTH:.3f}%;"
        f"top:{box.y:.1f}px;height:{box.height:.1f}px"
    )


STYLE = f"""
<style>
.cost-map {{ position: relative; height: {HEIGHT:.0f}px; margin: 4px 0 8px; }}
.cost-map > * {{ position: absolute; overflow: hidden; margin: 0; box-sizing: border-box; text-align: left; }}
.cm-area {{ container-type: size; border: 1px solid transparent; background-clip: padding-box; }}
.cm-area {{ padding: 3px 6px; border-radius: 3px; font: inherit; font-size: .8rem; line-height: 1.25; color: inherit;
  background-color: color-mix(in srgb, var(--cm-line) 24%, transparent); }}
.cm-area[data-pick-layer] {{ cursor: pointer; }}
.cm-area[data-pick-layer]:hover {{ background-color: color-mix(in srgb, var(--cm-line) 42%, transparent); }}
.cm-area:focus-visible {{ outline: 3px solid var(--cm-line); outline-offset: -3px; }}
.cm-selected {{ box-shadow: inset 0 0 0 3px var(--cm-line); }}
.cm-rest {{ background-color: color-mix(in srgb, currentColor 9%, transparent); }}
.cm-area b, .cm-area i {{ display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  font-style: normal; font-weight: 500; }}
.cm-area i {{ font-weight: 400; }}
@container (max-width: 34px) {{ .cm-area b, .cm-area i {{ display: none; }} }}
@container (max-width: 46px) or (max-height: 30px) {{ .cm-area i {{ display: none; }} }}
.cm-block {{ padding: 1px 6px; font-size: .75rem; line-height: 18px; white-space: nowrap; text-overflow: ellipsis; }}
@media (forced-colors: active) {{ .cm-area {{ border-color: CanvasText; }} .cm-selected {{ outline: 3px solid Highlight;
  outline-offset: -3px; }} }}
</style>
"""
