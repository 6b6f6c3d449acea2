"""Fine-tune: train the thin layers at their ranks, watch the score come back, and send the weights to Export."""

from pages.ui.frame import page

page(
    "Fine-tune",
    "Train the thin layers: their ranks stay as they are chosen, their weights learn on the training samples. Watch "
    "the score come back, and take the tuned weights to **Export**.",
    body="pages.bodies.fine_tune",
)
