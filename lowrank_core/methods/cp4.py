"""CP with each side of the window as an axis: 1 x 1, a depthwise k x 1, a depthwise 1 x k, 1 x 1."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.algebra.cp import CpFactorization, Start, als, cp_max_rank, cp_obstacle
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import factorize_transposed, kernel_text


@dataclass(frozen=True, slots=True)
class Cp4:
    """CP decomposition of the four-way kernel (Lebedev et al., arXiv 1412.6553)."""

    name: str = "cp4"
    label: str = "CP, k x 1 and 1 x k"
    axes: tuple[str, ...] = ("rank",)
    nested: bool = False
    reference: bool = False
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Ungrouped two-dimensional convolutions whose window is larger than one on both axes."""
        if len(spec.kernel) != 2:
            return f"{spec.op}: splitting a window takes a two-dimensional one"
        if min(spec.kernel) == 1 < max(spec.kernel):
            return f"kernel {kernel_text(spec)}: there is no window to split, so cp3 does the same with one factor less"
        return cp_obstacle(spec, sum(spec.kernel))

    def max_rank(self, spec: LayerSpec) -> Rank:
        """The break-even in parameters, the larger of the two."""
        return (cp_max_rank(spec, sum(spec.kernel)),)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (1 x 1) -> r -> (k x 1) -> r -> (1 x k) -> r -> (1 x 1) -> out; the middle two channel by channel"""
        (r,) = rank
        return (
            spec.pointwise(spec.in_channels, r),
            replace(spec.along(0, r, r), groups=r),
            replace(spec.along(1, r, r), groups=r),
            spec.pointwise(r, spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """The start in closed form; each rank is fitted when its weights are first asked for."""
        if spec.transposed:
            return factorize_transposed(self, spec, weight, second_moment)
        start = Start.of_weight(weight, joint_window=False)
        return CpFactorization(spec, weight, start, als(start))


register(Cp4())
