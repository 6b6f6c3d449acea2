"""Model: what the network is made of, where its cost lies, what can be compressed and what not."""

from pages.ui.frame import page

page(
    "Model",
    "Find the layers that cost most: there a smaller rank pays. Then see in the spectra how far each can shrink.",
    body="pages.bodies.model",
)
