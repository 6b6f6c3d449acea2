"""lowrank_core: choose, measure and ship the ranks of a low-rank factorised network, without the dashboard."""

from lowrank_core.running import interrupt as interrupt

# isort: split
from lowrank_core.compression.apply import apply
from lowrank_core.compression.checkpoint import Checkpoint, load_checkpoint
from lowrank_core.errors import LowRankError
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.one_call import compress
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan, read_plan
from lowrank_core.scoring.scores import Score, evaluate
from lowrank_core.sources import open_source
from lowrank_core.workspace import Workspace

__all__ = [
    "Checkpoint",
    "Choice",
    "Cost",
    "LayerSpec",
    "LowRankError",
    "ModelProfile",
    "RankPlan",
    "Score",
    "Workspace",
    "apply",
    "compress",
    "discover",
    "evaluate",
    "export_checkpoint",
    "load_checkpoint",
    "open_source",
    "plan_cost",
    "read_plan",
]
