"""Search: ask a rule for ranks, watch the plans it tries, compare rules, and adopt a plan to drag further."""

from pages.ui.frame import page

page(
    "Search",
    "Let a rule choose the ranks: say how small the network must be or what it may lose, compare what rules find, and "
    "adopt a plan to drag it further on **Ranks**.",
    body="pages.bodies.search",
)
