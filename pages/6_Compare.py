"""Compare: the dense network, the plan and snapshots side by side, by score, time, memory and what changed."""

from pages.ui.frame import page

page(
    "Compare",
    "The dense network, your plan and your snapshots side by side: what they lose, what they take, and whether they "
    "are faster **on this machine**.",
    body="pages.bodies.compare",
)
