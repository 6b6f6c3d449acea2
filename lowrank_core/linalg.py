"""Truncatable factorisations of matrices: computed once, cut at any rank.

The Gram matrix in float64 and `eigh` on the smaller side: faster than an SVD and more accurate for the small singular
values than a float32 one. tensorly runs on its PyTorch backend throughout the package.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tensorly
import torch
from torch import Tensor

from lowrank_core.errors import InvalidModel

tensorly.set_backend("pytorch")


@dataclass(frozen=True, slots=True)
class Nested:
    """`left[:, :, :r] @ right[:, :r]` is the best rank-r approximation, for every r, of each matrix of a stack.

    left (groups, m, k), right (groups, k, n); the square root of each singular value sits on either side, so that both
    factors have the same scale (kind to fine-tuning and to 8-bit storage). singular_values (groups, k), float64.
    """

    left: Tensor
    right: Tensor
    singular_values: Tensor

    @property
    def spectrum(self) -> Tensor:
        """(k,) the singular values; of several groups the root of the sum of squares, since all are cut at one rank."""
        return self.singular_values.square().sum(0).sqrt()


@dataclass(frozen=True, slots=True)
class MatrixFactorization:
    """A weight factorised as a matrix: how its slices become stage weights and its product the weight again.

    to_stages(right (groups, r, n), left (groups, m, r)) gives one weight per stage,
    to_weight(product (groups, m, n)) the weight.
    """

    nested: Nested
    to_stages: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    to_weight: Callable[[Tensor], Tensor]

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The singular values."""
        return (self.nested.spectrum,)

    def error(self, rank: tuple[int, ...]) -> float:
        """Share of the Frobenius norm beyond the rank (Eckart-Young: no matrix of that rank is closer)."""
        tail = tail_energy(self.nested.spectrum)
        return float((tail[rank[0]] / tail[0]).sqrt()) if tail[0] > 0 else 0.0

    def weights(self, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """One contiguous weight per stage."""
        (r,) = rank
        return tuple(w.contiguous() for w in self.to_stages(self.nested.right[:, :r], self.nested.left[:, :, :r]))

    def reconstruct(self, rank: tuple[int, ...]) -> Tensor:
        """The product of the slices, in the shape of the weight."""
        (r,) = rank
        return self.to_weight(self.nested.left[:, :, :r] @ self.nested.right[:, :r]).contiguous()


_thread_count = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices are not worth handing round: with busy cores two threads take fifty times longer than one."""
    with _thread_count:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def storage_dtype(weight: Tensor) -> torch.dtype:
    """Factors keep the weight's precision, but never less than float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def factorize_matrices(matrices: Tensor) -> Nested:
    """The singular value decomposition of each matrix (groups, m, n), with k = min(m, n) components.

    Raises InvalidModel for NaN or Inf entries.
    """
    stack = matrices.detach().to(torch.float64)
    if not torch.isfinite(stack).all():
        raise InvalidModel("a weight holds NaN or Inf; repair the checkpoint before factorising it.")
    _, rows, columns = stack.shape
    if rows == columns:
        left, sigma, right = torch.linalg.svd(stack, full_matrices=False)
        return _balanced(left, sigma[:, :, None] * right, matrices)
    if rows < columns:
        basis = principal_basis(stack @ stack.mT)
        return _balanced(basis, basis.mT @ stack, matrices)
    basis = principal_basis(stack.mT @ stack)
    flipped = _balanced(basis, basis.mT @ stack.mT, matrices)
    return Nested(flipped.right.mT.contiguous(), flipped.left.mT.contiguous(), flipped.singular_values)


def principal_basis(gram: Tensor) -> Tensor:
    """Eigenvectors of a symmetric (..., n, n) matrix as columns, the largest eigenvalue first."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors.flip(-1)


def tail_energy(singular_values: Tensor) -> Tensor:
    """(k + 1,) energy lost at rank 0, 1, ..., k; summed from the small end, so it is exact near full rank."""
    energy = singular_values.to(torch.float64).square()
    return torch.cat([energy.flip(-1).cumsum(-1).flip(-1), energy.new_zeros(1)])


def _balanced(orthonormal: Tensor, rest: Tensor, like: Tensor) -> Nested:
    """Move the square root of each row norm of `rest` to the other factor; orthonormal @ rest is kept."""
    sigma = torch.linalg.vector_norm(rest, dim=-1)
    sigma, order = sigma.sort(dim=-1, descending=True)
    rest = rest.gather(1, order[:, :, None].expand_as(rest))
    orthonormal = orthonormal.gather(2, order[:, None, :].expand_as(orthonormal))
    root = sigma.sqrt()
    scale = torch.where(sigma > sigma[:, :1] * 1e-300, root, torch.ones_like(root)).clamp_min(1e-150)
    dtype = storage_dtype(like)
    return Nested((orthonormal * scale[:, None, :]).to(dtype), (rest / scale[:, :, None]).to(dtype).contiguous(), sigma)
