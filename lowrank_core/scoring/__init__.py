"""How good outputs are, paired with those of the dense network."""
