"""Spatial SVD: k x k becomes k x 1 to `rank` channels, then 1 x k. Cheap in multiplies and fast in practice."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment, factorize_aware
from lowrank_core.algebra.linalg import MatrixFactorization, factorize_matrices
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import factorize_transposed, kernel_text


@dataclass(frozen=True, slots=True)
class SpatialSvd:
    """Separable filters (Jaderberg et al., arXiv 1405.3866; Tai et al., arXiv 1511.06067)."""

    name: str = "spatial_svd"
    label: str = "Spatial SVD"
    axes: tuple[str, ...] = ("rank",)
    nested: bool = True
    reference: bool = False
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Two-dimensional windows larger than one on both axes."""
        if len(spec.kernel) != 2:
            return f"{spec.op}: splitting a window takes a two-dimensional one"
        if min(spec.kernel) == 1:
            return f"kernel {kernel_text(spec)}: there is no window to split"
        if spec.groups > 1 and spec.in_channels == spec.groups and max(spec.kernel) < 5:
            height, width = spec.kernel
            return (
                f"depthwise {height}x{width}: rank 1 would be the only cheaper one, "
                f"{height} + {width} instead of {height} * {width} weights a filter"
            )
        return None

    def max_rank(self, spec: LayerSpec) -> Rank:
        """min(out * kw, in * kh), both per group."""
        height, width = spec.kernel
        return (min(spec.out_channels // spec.groups * width, spec.in_channels // spec.groups * height),)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (k x 1) -> r -> (1 x k) -> out; each stage keeps the stride and padding of its own axis"""
        channels = spec.groups * rank[0]
        return (
            spec.along(0, spec.in_channels, channels),
            spec.along(1, channels, spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """One decomposition of the (out * kw, in * kh) matrix of each group."""
        if spec.transposed:
            return factorize_transposed(self, spec, weight, second_moment)
        inputs, (height, width) = spec.in_channels // spec.groups, spec.kernel

        def to_stages_aware(first: Tensor, last: Tensor, _: Tensor) -> tuple[Tensor, ...]:
            return first.reshape(-1, inputs, height, 1), last.reshape(spec.out_channels, -1, 1, width)

        if self.data_aware and second_moment is not None:
            return factorize_aware(spec, weight, second_moment, width, self.max_rank(spec), to_stages_aware)

        def to_stages(right: Tensor, left: Tensor) -> tuple[Tensor, ...]:
            vertical = right.reshape(-1, inputs, height, 1)
            horizontal = left.reshape(spec.out_channels, width, -1).mT
            return vertical, horizontal[:, :, None, :]

        def to_weight(product: Tensor) -> Tensor:
            return product.reshape(spec.out_channels, width, inputs, height).permute(0, 2, 3, 1)

        def to_matrices(weight: Tensor) -> Tensor:
            return weight.permute(0, 3, 1, 2).reshape(spec.groups, -1, inputs * height)

        return MatrixFactorization(factorize_matrices(weight, to_matrices), to_stages, to_weight)


register(SpatialSvd())
register(SpatialSvd("spatial_svd_aware", "Spatial SVD, data-aware", data_aware=True))
