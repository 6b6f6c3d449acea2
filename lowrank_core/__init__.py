"""lowrank_core: choose, measure and ship the ranks of a low-rank factorised network, without the dashboard."""
