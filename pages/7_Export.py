"""Export: what the plan costs and keeps, its files and the lines that load them; and a plan opened from a file."""

from pages.ui.frame import page

page(
    "Export",
    "Take the plan and the compressed network with you: write a file, tried before it counts as saved, and load "
    "it with the lines below.",
    body="pages.bodies.export",
)
