"""Truncated SVD: a Linear becomes two; a convolution becomes k x k to `rank` channels, then 1 x 1.

A transposed convolution becomes 1 x 1, then transposed k x k: so both work at the size of its input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment, factorize_aware, moment_of
from lowrank_core.algebra.linalg import (
    MatrixFactorization,
    Nested,
    factorize_matrices,
    principal_basis,
    singular_values,
    storage_dtype,
)
from lowrank_core.layers.spec import LayerSpec, Rank, inputs_first
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import Transposed, depthwise_obstacle, outputs_first


@dataclass(frozen=True, slots=True)
class Svd:
    """Channel SVD (Denton et al., arXiv 1404.0736; Zhang et al., arXiv 1505.06798)."""

    name: str = "svd"
    label: str = "SVD"
    axes: tuple[str, ...] = ("rank",)
    nested: bool = True
    reference: bool = False
    data_aware: bool = False
    free: bool = True

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Everything but a depthwise convolution."""
        return depthwise_obstacle(spec)

    def max_rank(self, spec: LayerSpec) -> Rank:
        """min(out, in * window), both per group."""
        if spec.table:
            return (min(spec.weight_shape),)
        if spec.transposed:
            return (min(spec.in_channels // spec.groups, prod(spec.weight_shape[1:])),)
        return (min(spec.out_channels // spec.groups, spec.fan_in),)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (k x k) -> r -> (1 x 1) -> out; a table becomes a narrower one and a Linear.

        Transposed: in -> (1 x 1) -> r -> (k x k, transposed) -> out, so that the first factor sees the smaller input.
        """
        channels = spec.groups * rank[0]
        if spec.transposed:
            return spec.pointwise(spec.in_channels, channels), replace(spec, in_channels=channels)
        return (
            replace(spec, out_channels=channels, bias=False, gates=0),
            spec.pointwise(channels, spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """One decomposition of the (out, in * window) matrix of each group."""
        if spec.table:
            return _table(weight, second_moment if self.data_aware else None)
        if spec.transposed:
            return self._transposed(spec, weight, second_moment)
        ones = (1,) * len(spec.kernel)

        def to_stages(right: Tensor, left: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            return right.reshape(-1, *spec.weight_shape[1:]), left.reshape(spec.out_channels, -1, *ones)

        if self.data_aware and second_moment is not None:
            return factorize_aware(spec, weight, second_moment, 1, self.max_rank(spec), to_stages)
        shape = spec.groups, spec.out_channels // spec.groups, -1
        nested = factorize_matrices(weight, lambda w: w.reshape(shape))
        return MatrixFactorization(nested, to_stages, lambda m: m.reshape(spec.weight_shape))

    def _transposed(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None) -> Factorization:
        """One decomposition of the (in, out * window) matrix of each group."""
        inputs, ones = spec.in_channels // spec.groups, (1,) * len(spec.kernel)

        def to_stages(right: Tensor, left: Tensor) -> tuple[Tensor, ...]:
            return left.mT.reshape(-1, inputs, *ones), right.reshape(-1, *spec.weight_shape[1:])

        def to_taps(first: Tensor, last: Tensor, _: Tensor) -> tuple[Tensor, ...]:
            return first.reshape(-1, inputs, *ones), last.reshape(spec.out_channels, -1, *spec.kernel)

        if self.data_aware and second_moment is not None:
            plain, taps = outputs_first(spec), inputs_first(weight.detach(), spec.groups)
            ranks, window = self.max_rank(spec), prod(spec.kernel)
            aware = factorize_aware(plain, taps, second_moment, window, ranks, to_taps)
            return Transposed(self.stages, spec, aware)
        nested = factorize_matrices(weight, lambda w: w.reshape(spec.groups, inputs, -1))
        return MatrixFactorization(nested, to_stages, lambda m: m.reshape(spec.weight_shape))


def _table(weight: Tensor, second_moment: SecondMoment | None) -> Factorization:
    """Of a table (V, d); the second moment is the share of each token (V,), so that rows weigh as often as they occur.

    The best columns U of E|x - U U^T x|^2 over rows x as they occur need no more than the d x d moment of the rows.
    """
    columns = weight.detach().mT[None]
    nested = factorize_matrices(columns)
    if second_moment is not None:
        moment = second_moment

        def weighted() -> tuple[Tensor, Tensor]:
            rows = weight.detach().double()
            basis = principal_basis(rows.mT @ (moment_of(moment)[:, None] * rows))[:, : min(rows.shape)]
            return basis[None].to(dtype), (basis.mT @ rows.mT)[None].to(dtype)

        dtype = storage_dtype(weight)
        nested = Nested(lambda: singular_values(columns.double() * moment_of(moment).sqrt()), weighted)
    return MatrixFactorization(nested, lambda right, left: (right[0].mT, left[0]), lambda product: product[0].mT)


register(Svd())
register(Svd("svd_aware", "SVD, data-aware", data_aware=True))
