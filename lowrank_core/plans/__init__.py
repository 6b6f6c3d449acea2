"""The currency: a plan of ranks, the correction asked for, and what both cost."""
