"""Matrices and kernels taken apart."""
