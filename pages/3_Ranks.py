"""Ranks: drag a layer's rank and see bytes, multiplies and accuracy move; let go and see it measured."""

from pages.ui.frame import page

page(
    "Ranks",
    "Drag a layer's thumb to choose its rank: bytes, multiplies and a predicted accuracy move with it; where it rests "
    "the accuracy is measured. Or let a rule choose them on **Search**. When the trade-off is right, go to **Export**.",
    body="pages.bodies.ranks",
)
