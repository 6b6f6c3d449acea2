"""The singular values of a product B A of two thin matrices, which is never formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ThinProduct:
    """The SVD of B A, its sides by their thin QR factors. left: (out, r), sigma: (r,) descending, right: (r, in).

    r is at most the smallest of all four sides; all float64.

    >>> product = ThinProduct.of(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0, 2.0, 0.0]]))
    >>> product.sigma.tolist()
    [10.0]
    """

    left: Tensor
    sigma: Tensor
    right: Tensor

    @classmethod
    def of(cls, b: Tensor, a: Tensor) -> ThinProduct:
        """Of b (out, rank) and a (rank, in), in (out + in) rank^2 multiplies."""
        left, upper = torch.linalg.qr(b.double())
        right, lower = torch.linalg.qr(a.double().mT)
        u, sigma, v = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
        return cls(left @ u, sigma, (right @ v.mT).mT)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(B, A), (out, rank) and (rank, in): the nearest product of that rank, both sides of one size."""
        root = self.sigma[:rank].sqrt()
        missing = max(0, rank - len(root))  # a rank that the product does not have is zeros
        b, a = self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        return torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))


def distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The Frobenius norm of B A - B' A', of two pairs (B, A): neither product is formed."""
    b = torch.cat([first[0].double(), -second[0].double()], 1)
    a = torch.cat([first[1].double(), second[1].double()])
    return float(ThinProduct.of(b, a).sigma.norm())
