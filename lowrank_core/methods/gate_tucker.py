"""Tucker of a recurrent layer's gates: one basis of the inputs and one of the hidden units, shared by all gates.

The weight (gates * hidden, inputs) is a tensor (gates, hidden, inputs) whose gates are kept whole: its core mixes
inputs into hidden ones for every gate, and the same matrix turns those of each gate into its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.algebra.tucker import TuckerFactorization, tucker_max_rank
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.methods import Factorization, register
from lowrank_core.methods._adapters import GateStacked, gate_kernel, gate_obstacle, stacked_gates


@dataclass(frozen=True, slots=True)
class GateTucker:
    """Tucker-2 (Tucker, Psychometrika 1966) by the sequentially truncated higher-order SVD."""

    name: str = "gate_tucker"
    label: str = "Tucker, gates share bases"
    axes: tuple[str, ...] = ("out", "in")
    nested: bool = True
    reference: bool = False
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Weights of LSTM and GRU that hold several gates."""
        return gate_obstacle(spec)

    def max_rank(self, spec: LayerSpec) -> Rank:
        """(hidden, inputs), never more than the other axes can span."""
        return tucker_max_rank(stacked_gates(spec))

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> r_in -> gates * r_out -> for every gate the same r_out -> hidden"""
        r_out, r_in = rank
        return (
            spec.pointwise(spec.in_channels, r_in),
            spec.pointwise(r_in, spec.gates * r_out),
            replace(spec.pointwise(spec.gates * r_out, spec.out_channels, bias=spec.bias), copies=spec.gates),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """Factorise the kernel (hidden, in, gates): both unfoldings once, in float64."""
        return GateStacked(spec, TuckerFactorization.of(stacked_gates(spec), gate_kernel(spec, weight)))


register(GateTucker())
