"""CP with the window as one axis: 1 x 1 to `rank` channels, a depthwise k x k, 1 x 1 to the outputs. Fewest multiplies.

`cp3` fits by alternating least squares from a closed-form start. `cp3_parafac` is tensorly's `parafac`: a reference to
compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.algebra.cp import CpFactorization, Factors, Start, als, cp_max_rank, cp_obstacle
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import factorize_transposed


def _parafac(kernel: Tensor, rank: int) -> Factors:
    if not kernel.any():
        return [kernel.new_zeros(extent, rank) for extent in kernel.shape]
    from tensorly import backend_context
    from tensorly.decomposition import parafac

    with backend_context("pytorch", local_threadsafe=True):
        try:
            scale, (first, *rest) = parafac(kernel, rank=rank, n_iter_max=100, tol=1e-8, init="svd", random_state=0)
        except RuntimeError as error:  # a singular system
            raise InvalidModel(f"parafac fails at rank {rank}: {error}; choose another rank, or cp3.") from error
    return [first * scale, *rest]


@dataclass(frozen=True, slots=True)
class Cp3:
    """CP decomposition with a depthwise window (Astrid & Lee, arXiv 1701.07148)."""

    name: str = "cp3"
    label: str = "CP, k x k"
    axes: tuple[str, ...] = ("rank",)
    nested: bool = False
    reference: bool = False
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Why CP-3 does not fit: it wants an ungrouped convolution with a window."""
        return cp_obstacle(spec, prod(spec.kernel))

    def max_rank(self, spec: LayerSpec) -> Rank:
        """The break-even in parameters, the larger of the two."""
        return (cp_max_rank(spec, prod(spec.kernel)),)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (1 x 1) -> r -> (k x k, each channel alone) -> r -> (1 x 1) -> out"""
        (r,) = rank
        return (
            spec.pointwise(spec.in_channels, r),
            replace(spec, in_channels=r, out_channels=r, groups=r, bias=False),
            spec.pointwise(r, spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """The start in closed form; each rank is fitted when its weights are first asked for."""
        if spec.transposed:
            return factorize_transposed(self, spec, weight, second_moment)
        start = Start.of_weight(weight, joint_window=True)
        return CpFactorization(spec, weight, start, _parafac if self.reference else als(start))


register(Cp3())
register(Cp3("cp3_parafac", "CP, k x k (parafac)", reference=True))
