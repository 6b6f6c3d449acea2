"""CP of a recurrent layer's gates: rank-one parts of hidden units and inputs, which each gate weighs in its own way.

The weight (gates * hidden, inputs) is a tensor (gates, hidden, inputs), written as a sum of outer products: fewest
parameters. Fitted by alternating least squares from a closed-form start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.algebra.cp import CpFactorization, Start, als, cp_max_rank
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import GateStacked, gate_kernel, gate_obstacle, stacked_gates


@dataclass(frozen=True, slots=True)
class GateCp:
    """CP decomposition (Carroll & Chang, Psychometrika 1970)."""

    name: str = "gate_cp"
    label: str = "CP, gates share parts"
    axes: tuple[str, ...] = ("rank",)
    nested: bool = False
    reference: bool = False
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Weights of LSTM and GRU that hold several gates, large enough for rank 1 to pay."""
        if (reason := gate_obstacle(spec)) is None and cp_max_rank(stacked_gates(spec), spec.gates) < 1:
            return "too small: even rank 1 would not be cheaper"
        return reason

    def max_rank(self, spec: LayerSpec) -> Rank:
        """The break-even in parameters; that in multiplies is smaller, since every gate takes all hidden units."""
        return (cp_max_rank(stacked_gates(spec), spec.gates),)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> r -> (one number per gate and r) -> gates * r -> for every gate the same r -> hidden"""
        (r,) = rank
        return (
            spec.pointwise(spec.in_channels, r),
            replace(spec.pointwise(r, spec.gates * r), groups=r),
            replace(spec.pointwise(spec.gates * r, spec.out_channels, bias=spec.bias), copies=spec.gates),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """The start in closed form; each rank is fitted when its weights are first asked for."""
        kernel = gate_kernel(spec, weight)
        start = Start.of_weight(kernel, joint_window=True)
        return GateStacked(spec, CpFactorization(stacked_gates(spec), kernel, start, als(start)))


register(GateCp())
