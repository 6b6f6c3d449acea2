"""Compare: the dense network, the plan, trained weights and snapshots side by side, each in one number format."""

from pages.ui.frame import page

page(
    "Compare",
    "The dense network, your plan, its trained weights and your snapshots side by side, and what int8 alone would do: "
    "what they lose, what they take, and whether they are faster **on this machine**.",
    body="pages.bodies.compare",
)
