"""lowrank_core: choose, measure and ship the ranks of a low-rank factorised network, without the dashboard.

Each public name is imported when it is first asked for: a plan can be read without waiting for PyTorch.
"""

from typing import TYPE_CHECKING

from lowrank_core.version import __version__ as __version__

if TYPE_CHECKING:
    from lowrank_core.compression.apply import apply
    from lowrank_core.compression.checkpoint import Checkpoint, load_checkpoint
    from lowrank_core.errors import LowRankError
    from lowrank_core.exports._onnx_surgery import compressed_onnx
    from lowrank_core.exports.safetensors import export_checkpoint
    from lowrank_core.layers.spec import LayerSpec
    from lowrank_core.networks.discover import discover
    from lowrank_core.networks.profile import ModelProfile
    from lowrank_core.one_call import compress
    from lowrank_core.plans.cost import Cost, plan_cost
    from lowrank_core.plans.plan import Choice, RankPlan, read_plan
    from lowrank_core.scoring.scores import Score, evaluate
    from lowrank_core.sources import open_source
    from lowrank_core.store.cache import Cache
    from lowrank_core.workspace import Workspace
else:
    from importlib import import_module

    _HOMES = {
        "Cache": "store.cache",
        "Checkpoint": "compression.checkpoint",
        "Choice": "plans.plan",
        "Cost": "plans.cost",
        "LayerSpec": "layers.spec",
        "LowRankError": "errors",
        "ModelProfile": "networks.profile",
        "RankPlan": "plans.plan",
        "Score": "scoring.scores",
        "Workspace": "workspace",
        "apply": "compression.apply",
        "compress": "one_call",
        "compressed_onnx": "exports._onnx_surgery",
        "discover": "networks.discover",
        "evaluate": "scoring.scores",
        "export_checkpoint": "exports.safetensors",
        "load_checkpoint": "compression.checkpoint",
        "open_source": "sources",
        "plan_cost": "plans.cost",
        "read_plan": "plans.plan",
    }
    """Where each public name is defined."""

    def __getattr__(name):
        """A public name, imported from where it is defined."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value

    def __dir__():
        """What is there, whether or not it is imported yet."""
        return sorted({*globals(), *_HOMES})


__all__ = [
    "Cache",
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
    "compressed_onnx",
    "discover",
    "evaluate",
    "export_checkpoint",
    "load_checkpoint",
    "open_source",
    "plan_cost",
    "read_plan",
]
