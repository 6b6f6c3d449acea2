"""Fine-tune: train the factors at ranks that are chosen, watch the score come back, and send the weights to Export."""

from pages.ui.frame import page

page(
    "Fine-tune",
    "Let the loss itself find the factors, at ranks that are chosen: train them on the training samples, watch the "
    "score come back, and take the tuned weights to **Export**.",
    body="pages.bodies.fine_tune",
)
