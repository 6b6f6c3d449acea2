"""Ranks: drag a layer's rank and see bytes, multiplies and accuracy move; let go and see it measured."""

from pages.ui.frame import page

page(
    "Ranks",
    "Drag a layer's thumb to choose its rank: bytes and multiplies move with it, and the accuracy is measured when you "
    "let go. Or let a rule choose them on **Search**. When the trade-off is right, go to **Export**.",
    body="pages.bodies.ranks",
)
