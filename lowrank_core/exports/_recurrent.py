"""What a graph does with the factors of recurrent layers, said and counted: some of them it multiplies out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from lowrank_core.errors import few
from lowrank_core.exports import Compressed
from lowrank_core.graphs.recurrent import Written, forms
from lowrank_core.layers.spec import half_up
from lowrank_core.plans.cost import dense_cost, layer_cost, plan_cost
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Forms:
    """How the weights of recurrent layers are written. multiplies: of the whole graph, for one sample; planned: of the
    plan. when: the factors of a weight are multiplied out.
    """

    weights: tuple[Written, ...]
    multiplies: int
    planned: int
    when: str

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each form there is."""
        said = []
        for op, how in dict.fromkeys((each.op, each.how) for each in self.weights if each.how != "dense"):
            names = few([each.weight for each in self.weights if (each.op, each.how) == (op, how)])
            if how == "product":
                said.append(
                    f"{names}: the file holds the factors; {op} itself, which has no place for them, takes their "
                    f"product, made {self.when}, with the multiplies of the dense weight"
                )
            elif op == "Scan":
                said.append(f"{names}: a loop (Scan) over the steps takes the factors")
            else:
                said.append(f"{names}: a thin product in front of {op}")
        if said and self.multiplies != self.planned:
            said.append(f"in all {self.multiplies:,} multiplies; the plan counts {self.planned:,}")
        return tuple(said)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the file itself says; empty where no recurrent layer has factors."""
        if not self.weights:
            return {}
        return {"graph": {"multiplies": self.multiplies, "recurrent": [asdict(each) for each in self.weights]}}


def forms_of(workspace: Workspace, compressed: Compressed, *, called: bool = False) -> Forms:
    """How a compressed network is written as ONNX, or called: as a program of `torch.export`."""
    profile, plan = workspace.profile, compressed.plan
    written = forms(compressed.model, called=called)
    layers = {layer.name: layer for layer in profile.layers}
    planned = multiplies = plan_cost(profile, plan).multiplies
    for each in written:
        layer = layers.get(each.weight)
        if layer is not None:
            written_as = half_up(Fraction(dense_cost(layer).multiplies * each.multiplies, layer.spec.weights))
            multiplies += written_as - layer_cost(layer, plan.get(layer.name)).multiplies
    return Forms(written, multiplies, planned, "at every call" if called else "once, when the file is opened")
