"""From a plan to a network."""
