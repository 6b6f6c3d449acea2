"""Spectra: how fast the singular values of every layer fall, and which ranks pay."""

from pages.ui.frame import page

page(
    "Spectra",
    "Look for curves that fall steeply: such a layer keeps nearly everything at a small rank. Then choose the ranks.",
    body="pages.bodies.spectra",
)
