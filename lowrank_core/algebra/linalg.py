"""Truncatable factorisations of matrices: computed once, cut at any rank.

The Gram matrix in float64 and its eigenvalues on the shorter side: faster than an SVD and more accurate for the small
singular values than a float32 one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import TypeVar

import torch
from torch import Tensor

from lowrank_core.errors import InvalidModel
from lowrank_core.store.memo import Memo

R = TypeVar("R", Tensor, tuple[Tensor, Tensor])

EXACT = 128
"""Up to this many components singular values come from an SVD in float64, exact to the last. Those of a Gram matrix
lose what is below 1e-8 of the largest; float32 weights hold nothing there."""

BLOCK = 512
"""Rows of a Gram matrix formed at a time, so that only half of it is."""

BLOCK_BYTES = 32 * 2**20
"""Of a matrix that is turned into float64 at a time."""

WORTH_MOVING = 1024
"""Shorter side from which a matrix is worth the way to a CUDA device. Everything is float64 there, too: singular values
agree with the CPU's to 1e-7 of the largest, their squares to 1e-14, as those of two CPUs do."""


TINY = 1e-9
"""Added to a definite matrix, relative to its diagonal: keeps it definite."""


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """`left[:, :, :r] @ right[:, :r]` is the best rank-r approximation, for every r, of each matrix of a stack.

    left (groups, m, k), right (groups, k, n); the square root of each singular value sits on either side, so that both
    factors have the same scale (kind to fine-tuning and to 8-bit storage). singular_values (groups, k), float64.
    values() and factors() compute them when they are first asked for; the values alone take a fraction of the time.
    """

    values: Callable[[], Tensor]
    factors: Callable[[], tuple[Tensor, Tensor]]
    memo: Memo = field(default_factory=Memo)

    @property
    def left(self) -> Tensor:
        """The left factor, (groups, m, k): singular vectors times the root of their values."""
        return self._pair()[0]

    @property
    def right(self) -> Tensor:
        """The right factor, (groups, k, n): the root of the values times singular vectors."""
        return self._pair()[1]

    @property
    def singular_values(self) -> Tensor:
        """The singular values, (groups, k), float64, descending."""
        return self.memo("singular values", lambda: {"values": self.values()})["values"]

    def _pair(self) -> tuple[Tensor, Tensor]:
        factors = self.memo("factors", lambda: dict(zip(("left", "right"), self.factors(), strict=True)))
        return factors["left"], factors["right"]

    @property
    def spectrum(self) -> Tensor:
        """(k,) the singular values; of several groups the root of the sum of squares, since all are cut at one rank."""
        return self.singular_values.square().sum(0).sqrt()


@dataclass(frozen=True)
class MatrixFactorization:
    """A weight factorised as a matrix: how its slices become stage weights and its product the weight again.

    to_stages(right (groups, r, n), left (groups, m, r)) gives one weight per stage,
    to_weight(product (groups, m, n)) the weight.
    """

    nested: Nested
    to_stages: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    to_weight: Callable[[Tensor], Tensor]

    @property
    def memo(self) -> Memo:
        """What is worth keeping."""
        return self.nested.memo

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The singular values."""
        return (self.nested.spectrum,)

    @cached_property
    def _tail(self) -> list[float]:
        tail: list[float] = tail_energy(self.nested.spectrum).tolist()
        return tail

    def error(self, rank: tuple[int, ...]) -> float:
        """Share of the Frobenius norm beyond the rank (Eckart-Young: no matrix of that rank is closer)."""
        tail = self._tail
        return sqrt(tail[rank[0]] / tail[0]) if tail[0] > 0 else 0.0

    def weights(self, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """One contiguous weight per stage of the chain."""
        (r,) = rank
        return tuple(w.contiguous() for w in self.to_stages(self.nested.right[:, :r], self.nested.left[:, :, :r]))

    def reconstruct(self, rank: tuple[int, ...]) -> Tensor:
        """The product of the slices, in the shape of the weight."""
        (r,) = rank
        return self.to_weight(self.nested.left[:, :, :r] @ self.nested.right[:, :r]).contiguous()


def storage_dtype(weight: Tensor) -> torch.dtype:
    """Factors keep the weight's precision, but never less than float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def factorize_matrices(weight: Tensor, to_matrices: Callable[[Tensor], Tensor] = lambda weight: weight) -> Nested:
    """The singular value decomposition of each matrix (groups, m, n), with k = min(m, n) components.

    to_matrices(weight) gives them when they are needed: where it has to copy the weight, the copy is not held.
    Raises InvalidModel for NaN or Inf entries.
    """
    check_finite(weight)
    return Nested(lambda: singular_values(to_matrices(weight)), lambda: _where_fastest(_factors, to_matrices(weight)))


def check_finite(weight: Tensor) -> None:
    """Raise InvalidModel for NaN or Inf entries."""
    if not (torch.isfinite(weight.detach().sum()) or torch.isfinite(weight).all()):
        raise InvalidModel("a weight holds NaN or Inf; repair the checkpoint before factorising it.")


def singular_values(matrices: Tensor) -> Tensor:
    """(groups, k) float64, descending, of each matrix (groups, m, n) in any floating type, with k = min(m, n).

    Beyond EXACT components by the eigenvalues of the Gram matrix: at 1e-4 of the largest value still good to about
    1e-8 of itself, where an SVD in float32 is off by 1e-3. Takes the memory of two k x k matrices in float64.

    >>> singular_values(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])).tolist()
    [[4.0, 3.0]]
    """
    return _where_fastest(_singular_values, matrices)


def worth_moving(side: int) -> bool:
    """Whether a matrix with that shorter side is worked on faster on the CUDA device, where there is one."""
    return side >= WORTH_MOVING and torch.cuda.is_available()


def _where_fastest(work: Callable[[Tensor], R], matrices: Tensor) -> R:
    """work(matrices) on a CUDA device where there is one, they are large, and they fit; else where they are."""
    if worth_moving(min(matrices.shape[1:])) and not matrices.is_cuda:
        with suppress(torch.cuda.OutOfMemoryError):
            moved = work(matrices.cuda())
            if isinstance(moved, Tensor):
                return moved.to(matrices.device)
            left, right = moved
            return left.to(matrices.device), right.to(matrices.device)
    return work(matrices)


def _singular_values(matrices: Tensor) -> Tensor:
    wide = matrices.detach()
    wide = wide if wide.shape[1] <= wide.shape[2] else wide.mT
    if wide.shape[1] <= EXACT:
        values: Tensor = torch.linalg.svdvals(wide.to(torch.float64))
        return values
    energies = torch.stack([torch.linalg.eigvalsh(lower_gram(matrix)) for matrix in wide])
    return energies.flip(-1).clamp_min(0).sqrt()


def lower_gram(matrix: Tensor) -> Tensor:
    """(m, m) float64: the lower triangle of M @ M.mT for M (m, n); what stands above it means nothing.

    Formed in blocks: M is in float64 a part at a time, and most of the upper triangle is left out.
    """
    rows = len(matrix)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    for part in torch.split(matrix, max(BLOCK, BLOCK_BYTES // (8 * rows)), dim=1):
        exact = part.to(torch.float64)
        for at in range(0, rows, BLOCK):
            gram[at : at + BLOCK, : at + BLOCK].addmm_(exact[at : at + BLOCK], exact[: at + BLOCK].mT)
    return gram


def _factors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """left (groups, m, k) and right (groups, k, n)."""
    stack = matrices.detach().to(torch.float64)
    _, rows, columns = stack.shape
    if rows == columns <= EXACT:
        left, sigma, right = torch.linalg.svd(stack, full_matrices=False)
        return _balanced(left, sigma[:, :, None] * right, matrices)
    if rows <= columns:
        basis = principal_basis(stack @ stack.mT)
        return _balanced(basis, basis.mT @ stack, matrices)
    basis = principal_basis(stack.mT @ stack)
    right, left = _balanced(basis, basis.mT @ stack.mT, matrices)
    return left.mT, right.mT


def principal_basis(gram: Tensor) -> Tensor:
    """Eigenvectors of a symmetric (..., n, n) matrix as columns, the largest eigenvalue first."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors.flip(-1)


def definite_root(matrices: Tensor) -> Tensor:
    """The factor of Cholesky (..., n, n), with as little more on the diagonal as rounding asks for."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    lift = TINY * diagonal + torch.finfo(matrices.dtype).eps * diagonal.amax(-1, keepdim=True).clamp_min(1e-30)
    while True:
        lifted = matrices.clone()
        lifted.diagonal(dim1=-2, dim2=-1).add_(lift)
        found: tuple[Tensor, Tensor] = torch.linalg.cholesky_ex(lifted)
        if not bool(found[1].any()) or not bool(lift.isfinite().all()):
            return found[0]
        lift = 100 * lift


def tail_energy(singular_values: Tensor) -> Tensor:
    """(k + 1,) energy lost at rank 0, 1, ..., k; summed from the small end, so it is exact near full rank."""
    energy = singular_values.to(torch.float64).square()
    return torch.cat([energy.flip(-1).cumsum(-1).flip(-1), energy.new_zeros(1)])


def _balanced(orthonormal: Tensor, rest: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Move the square root of each row norm of `rest` to the other factor; orthonormal @ rest is kept."""
    sigma = torch.linalg.vector_norm(rest, dim=-1)
    sigma, order = sigma.sort(dim=-1, descending=True)
    rest = rest.gather(1, order[:, :, None].expand_as(rest))
    orthonormal = orthonormal.gather(2, order[:, None, :].expand_as(orthonormal))
    root = sigma.sqrt()
    scale = torch.where(sigma > sigma[:, :1] * 1e-300, root, torch.ones_like(root)).clamp_min(1e-150)
    dtype = storage_dtype(like)
    return (orthonormal * scale[:, None, :]).to(dtype), (rest / scale[:, :, None]).to(dtype)
