"""A checkpoint: weights and list of layers in one safetensors file, tried in a fresh process before it is saved."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from warnings import warn

from lowrank_core.compression.checkpoint import write_checkpoint
from lowrank_core.compression.precision import DTYPES
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._provenance import plan_document, provenance
from lowrank_core.layers.attention import Attention
from lowrank_core.layers.chain import Chain, TransposedLinear
from lowrank_core.layers.linears import GroupedLinear, SharedLinear
from lowrank_core.layers.recurrent import Cell, Recurrent
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report, scope
from lowrank_core.scoring.scores import Score
from lowrank_core.store.files import whole_or_nothing
from lowrank_core.workspace import Workspace

TOLERANCE = 1e-5
"""Largest distance of outputs that passes, relative to the largest output.

On one machine it is nearly always 0; float32 sums that a kernel makes in another order differ by 1e-6, and were seen to
on a busy server. Other weights differ by far more.
"""

LOADER = """import json

from safetensors import safe_open
from torch import nn

PARTS = {op: getattr(nn, op) for op in dir(nn) if op[:4] in ("Line", "Embe", "Sequ", "Conv", "Cons")}


def load_lowrank(model: nn.Module, path: str) -> nn.Module:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["lowrank"])
        state = {name: file.get_tensor(name) for name in file.keys()}
    assert about["format"] == "lowrank-checkpoint/1", about["format"]
    for layer in about["layers"]:
        old = model.get_submodule(layer["name"])
        parts = [PARTS[part["op"]](**part["args"]) for part in layer["parts"]]
        new = (PARTS["Sequential"](*parts) if len(parts) > 1 else parts[0]).to(next(old.parameters()))
        for parent, name in [(p, n) for p in model.modules() for n, child in p._modules.items() if child is old]:
            setattr(parent, name, new)
        model = new if old is model else model
    for module in model.modules():  # fused encoders would read weights that are gone
        vars(module).update(activation_relu_or_gelu=0, use_nested_tensor=False)
    model.load_state_dict(state | {alias: state[name] for alias, name in about["ties"].items()})
    return model.eval()
"""
"""Everything a program needs that has only torch and safetensors."""

MODULES = f"""from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

{inspect.getsource(GroupedLinear)}

{inspect.getsource(SharedLinear)}

{inspect.getsource(Recurrent).replace("  # noqa: RUF012", "")}

{inspect.getsource(Cell)}

{inspect.getsource(Attention)}

{inspect.getsource(Chain)}

{inspect.getsource(TransposedLinear)}

PARTS |= {{kind: partial(Recurrent, kind) for kind in Recurrent.GATES}}
PARTS |= {{f"{{kind}}Cell": partial(Cell, kind) for kind in Recurrent.GATES}}
PARTS |= {{"MultiheadAttention": Attention, "TransposedLinear": TransposedLinear, "Sequential": Chain}}
"""
"""What is added where nn.Sequential and plain layers are not enough; see `Layer.plain`."""


def export_checkpoint(
    workspace: Workspace,
    plan: RankPlan,
    path: str | Path,
    *,
    correction: Correction | None = None,
    score: Score | None = None,
    progress: Callable[[str], None] | None = None,
) -> Exported:
    """Compress by the plan, correct where a correction is given, and write the checkpoint; see `write`.

    progress: deprecated, `with scope(report=...)` around the call hears the same.
    """
    fitted = None if correction is None else correction.to_dict()
    compressed = Compressed(workspace.compress(plan, correction), plan, score, fitted)
    if progress is None:
        return write(workspace, compressed, Path(path))
    warn(
        "export_checkpoint(progress=...) goes with the next version; put `with lowrank_core.running.scope.scope("
        "report=...)` around the call.",
        DeprecationWarning,
        stacklevel=2,
    )
    hears = progress
    with scope(report=lambda done: hears(done.words)):
        return write(workspace, compressed, Path(path))


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the checkpoint under a temporary name, reload it in a fresh process, compare, then move it to `path`.

    Reports what is being done. Raises InvalidFile where any step fails; then `path` is as it was.
    """
    with whole_or_nothing(path) as temporary:
        report(Progress("writing"))
        write_checkpoint(
            compressed.model,
            workspace.profile,
            compressed.plan,
            temporary,
            plan_document=plan_document(workspace, compressed),
            provenance=provenance(workspace, compressed),
            dtype=DTYPES.get(compressed.storage.dtype or ""),
        )
        largest = reloaded("safetensors", workspace, compressed.model, temporary, path, tolerance=TOLERANCE)
    return Exported(str(path), path.stat().st_size, largest, compressed.score)


def snippets(ref: str, file: str) -> tuple[Snippet, ...]:
    """Two lines with this package, or a function that needs only torch and safetensors."""
    name = Path(ref).name if Path(ref).is_file() else ref
    short = f"""from lowrank_core import load_checkpoint, open_source

model = load_checkpoint(open_source({name!r}).model, {file!r}).model
"""
    if name.endswith(".onnx"):  # there is no build_model() to call
        return (Snippet("with lowrank_core", short),)
    module = Path(ref).stem if Path(ref).is_file() else ref
    if ref.startswith("builtin:"):
        module = f"lowrank_core.builtin.{ref.removeprefix('builtin:').replace('-', '_')}"
    use = f"""from {module} import build_model

model = load_lowrank(build_model(), {file!r})
"""
    if name.endswith(".pt2"):
        use = f"""import torch

model = load_lowrank(torch.export.unflatten(torch.export.load({name!r})), {file!r})
"""
    return (
        Snippet("with lowrank_core", short),
        _alone(LOADER, use, partial=False),
        _alone(f"{LOADER}\n\n{MODULES}", use, partial=True),
    )


def _alone(loader: str, use: str, *, partial: bool) -> Snippet:
    return Snippet("with torch and safetensors alone", f"{loader}\n\n{use}", partial, loader)


register(Export("safetensors", "Checkpoint (safetensors)", ".safetensors", write, snippets, tuple(DTYPES)))
