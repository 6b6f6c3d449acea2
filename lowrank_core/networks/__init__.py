"""Which layers a network has, and what is in the way of compressing them."""
