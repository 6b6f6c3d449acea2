"""A graph whose names stand in a column, as SVG: an arc to the right for each edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1d2733; text-anchor: end; dominant-baseline: middle }
path { fill: none; stroke: #0072b2; stroke-width: 1; opacity: .22 }
.next { stroke-width: 1.6; opacity: .9 }
.up { stroke: #c24a00; stroke-width: 2.4; opacity: 1 }
circle { fill: #1d2733 }
@media (prefers-color-scheme: dark) {
  svg { background: #12171d } text { fill: #e6eaef } path { stroke: #56b4e9 } .up { stroke: #f0823c }
  circle { fill: #e6eaef }
}
"""


def drawing(order: Sequence[str], below: Mapping[str, set[str]]) -> str:
    """Names from bottom to top in their order, an arc from each to those it imports.

    Dark: edges that no path of others stands for. Orange: from a name to one that stands above it.
    """
    step = 26 if len(order) < 40 else 17
    place = {name: step * (len(order) - number) for number, name in enumerate(order)}
    height = step * (len(order) + 1)
    axis = 10 + 8 * max(map(len, order))
    width = axis + height // 2
    body = [*_arcs(place, below, axis), *_names(place, axis)]
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}</style>", *body, "</svg>\n"])


def _arcs(place: Mapping[str, int], below: Mapping[str, set[str]], axis: int) -> Iterator[str]:
    for name, targets in sorted(below.items()):
        for target in sorted(targets):
            start, end = place[name], place[target]
            reach = abs(end - start) / 2
            kind = ' class="up"' if end < start else ' class="next"' if _is_next(name, target, below) else ""
            turn = 1 if end > start else 0
            yield f'<path{kind} d="M{axis} {start} A{reach:g} {reach:g} 0 0 {turn} {axis} {end}"/>'


def _names(place: Mapping[str, int], axis: int) -> Iterator[str]:
    for name, height in place.items():
        yield f'<text x="{axis - 9}" y="{height}">{escape(name)}</text><circle cx="{axis}" cy="{height}" r="3"/>'


def _is_next(name: str, target: str, below: Mapping[str, set[str]]) -> bool:
    """Whether no other import of `name` leads to `target`."""
    seen: set[str] = set()
    ahead = list(below[name] - {target})
    while ahead:
        one = ahead.pop()
        if one not in seen:
            seen.add(one)
            ahead += below.get(one, ())
    return target not in seen
