"""Whole plans measured: score, time, bytes."""
