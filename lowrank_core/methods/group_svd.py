"""SVD of groups of input channels: k x k in groups to `rank` channels each, then 1 x 1 over all of them.

Each group keeps input directions of its own, which pays where few directions serve all channels; the price is a wider
last factor. Only a rule that asks for these methods uses them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.algebra.linalg import MatrixFactorization, factorize_matrices
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import depthwise_obstacle, factorize_transposed


@dataclass(frozen=True, slots=True)
class GroupSvd:
    """Channel SVD of `parts` slices of the input channels (ALDS: Liebenwein et al., NeurIPS 2021, section 3.1)."""

    parts: int
    name: str
    label: str
    axes: tuple[str, ...] = ("rank",)
    nested: bool = True
    reference: bool = True
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Convolutions whose input channels split evenly; a Linear has no groups."""
        if not spec.kernel:
            return "Linear: its inputs cannot be taken in groups"
        inputs = spec.in_channels // spec.groups
        if why := depthwise_obstacle(spec):
            return why
        return f"{inputs} input channels do not split into {self.parts} equal groups" if inputs % self.parts else None

    def max_rank(self, spec: LayerSpec) -> Rank:
        """min(out, in / parts * window), both per group of the layer."""
        return (min(spec.out_channels // spec.groups, spec.fan_in // self.parts),)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (k x k in parts) -> parts * r -> (1 x 1) -> out"""
        groups = spec.groups * self.parts
        return (
            replace(spec, out_channels=groups * rank[0], groups=groups, bias=False),
            spec.pointwise(groups * rank[0], spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """One decomposition of the (out, in / parts * window) matrix of each part of each group."""
        if spec.transposed:
            return factorize_transposed(self, spec, weight, second_moment)
        groups, parts, outputs = spec.groups, self.parts, spec.out_channels // spec.groups

        def to_stages(right: Tensor, left: Tensor) -> tuple[Tensor, ...]:
            beside = left.reshape(groups, parts, outputs, -1).transpose(1, 2)
            first = right.reshape(-1, spec.weight_shape[1] // parts, *spec.kernel)
            return first, beside.reshape(spec.out_channels, -1, *(1,) * len(spec.kernel))

        def to_weight(product: Tensor) -> Tensor:
            return product.reshape(groups, parts, outputs, -1).transpose(1, 2).reshape(spec.weight_shape)

        def to_matrices(weight: Tensor) -> Tensor:
            return weight.reshape(groups, outputs, parts, -1).transpose(1, 2).reshape(groups * parts, outputs, -1)

        return MatrixFactorization(factorize_matrices(weight, to_matrices), to_stages, to_weight)


for _parts in (2, 4, 8, 16, 32):
    register(GroupSvd(_parts, f"svd_g{_parts}", f"SVD, {_parts} groups"))
