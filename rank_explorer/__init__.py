"""Rank Explorer beside its dashboard: what other programs show of it. The library is `lowrank_core`."""
