"""Tucker-2: 1 x 1 to `in` channels, k x k to `out` channels, 1 x 1 to the outputs. Two ranks per layer.

`tucker2` is the sequentially truncated higher-order SVD, `tucker2_hooi` refines it with tensorly's `partial_tucker`: a
slow reference to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment, factorize_aware
from lowrank_core.algebra.tucker import TuckerFactorization, tucker_max_rank
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import depthwise_obstacle, factorize_transposed, kernel_text


@dataclass(frozen=True, slots=True)
class Tucker2:
    """Tucker-2 convolution (Kim et al., arXiv 1511.06530)."""

    name: str = "tucker2"
    label: str = "Tucker-2"
    axes: tuple[str, ...] = ("out", "in")
    nested: bool = True
    reference: bool = False
    data_aware: bool = False
    free: bool = True

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Convolutions with a window; a matrix has one rank, not two."""
        if prod(spec.kernel) == 1:
            shape = f"kernel {kernel_text(spec)}" if spec.kernel else "Linear"
            return f"{shape}: a matrix has one rank, so svd does the same with one factor less"
        return depthwise_obstacle(spec)

    def max_rank(self, spec: LayerSpec) -> Rank:
        """(out, in) per group, never more than the other axes can span."""
        return tucker_max_rank(spec)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (1 x 1) -> r_in -> (k x k) -> r_out -> (1 x 1) -> out"""
        r_out, r_in = (spec.groups * r for r in rank)
        return (
            spec.pointwise(spec.in_channels, r_in),
            replace(spec, in_channels=r_in, out_channels=r_out, bias=False),
            spec.pointwise(r_out, spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """Both unfoldings, in float64, when they are first needed."""
        if spec.transposed:
            return factorize_transposed(self, spec, weight, second_moment)

        def to_stages(first: Tensor, core: Tensor, basis: Tensor) -> tuple[Tensor, ...]:
            ones, r_in = (1,) * len(spec.kernel), first.shape[1]
            return (
                first.reshape(-1, spec.in_channels // spec.groups, *ones),
                core.reshape(-1, r_in, *spec.kernel),
                basis.reshape(spec.out_channels, -1, *ones),
            )

        if self.data_aware and second_moment is not None:
            return factorize_aware(spec, weight, second_moment, prod(spec.kernel), self.max_rank(spec), to_stages)
        return TuckerFactorization.of(spec, weight, hooi=not self.nested)


register(Tucker2())
register(Tucker2("tucker2_aware", "Tucker-2, data-aware", data_aware=True))
register(Tucker2("tucker2_hooi", "Tucker-2 (HOOI)", nested=False, reference=True))
