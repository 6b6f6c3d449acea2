"""Rank Explorer: choose the rank of every layer of a network, see what it costs and what it keeps."""

from pages.ui.frame import page

page(
    "Rank Explorer",
    "Make a trained network smaller and faster: replace each layer by thinner ones, choose their ranks, and see at "
    "once what that costs and what accuracy it keeps.",
    body="pages.bodies.home",
)
