"""A checkpoint: weights and list of layers in one safetensors file, tried in a fresh process before it is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from warnings import warn

from lowrank_core.compression.checkpoint import write_checkpoint
from lowrank_core.compression.precision import DTYPES
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._provenance import plan_document, provenance
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report, scope
from lowrank_core.scoring.scores import Score
from lowrank_core.store.files import whole_or_nothing
from lowrank_core.store.reference import address_of, in_its_folder
from lowrank_core.workspace import Workspace

TOLERANCE = 1e-5
"""Largest distance of outputs that passes, relative to the largest output.

On one machine it is nearly always 0; float32 sums that a kernel makes in another order differ by 1e-6, and were seen to
on a busy server. Other weights differ by far more.
"""

LOADER = files("lowrank_core.exports").joinpath("_load_lowrank.py").read_text("utf-8")
"""All that a program needs which has only torch and safetensors."""

MODULES = files("lowrank_core.layers").joinpath("parts.py").read_text("utf-8")
"""What is added to LOADER where nn.Sequential and plain layers are not enough; see `Layer.plain`."""


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

    def save(compressed: Compressed, to: Path) -> None:
        write_checkpoint(
            compressed.model,
            workspace.profile,
            compressed.plan,
            to,
            plan_document=plan_document(workspace, compressed),
            provenance=provenance(workspace, compressed),
            dtype=DTYPES.get(compressed.storage.dtype or ""),
        )

    with whole_or_nothing(path) as temporary:
        report(Progress("writing"))
        save(compressed, temporary)
        largest, verdict = reloaded("safetensors", workspace, compressed, temporary, path, tolerance=TOLERANCE)
        if verdict == "accepted":
            save(replace(compressed, accepted=largest), temporary)
        size = temporary.stat().st_size
    return Exported(str(path), size, largest, compressed.score, verdict)


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Two lines with this package, or a function that needs only torch and safetensors."""
    if ref is None:
        return _of_live(file)
    name, ref = in_its_folder(ref), address_of(ref).model
    alone = in_its_folder(ref)  # a network of any weights, which the file replaces
    short = f"""from lowrank_core import load_checkpoint, open_source

model = load_checkpoint(open_source({name!r}).model, {file!r}).model
"""
    if alone.endswith(".onnx"):  # there is no build_model() to call
        return (Snippet("with lowrank_core", short),)
    module = Path(ref).stem if Path(ref).is_file() else ref
    if ref.startswith("builtin:"):
        module = f"lowrank_core.builtin.{ref.removeprefix('builtin:').replace('-', '_')}"
    use = f"""from {module} import build_model

model = load_lowrank(build_model(), {file!r})
"""
    if alone.endswith(".pt2"):
        use = f"""import torch

model = load_lowrank(torch.export.unflatten(torch.export.load({alone!r})), {file!r})
"""
    return (
        Snippet("with lowrank_core", short),
        _alone(LOADER, use, partial=False),
        _alone(f"{LOADER}\n\n{MODULES}", use, partial=True),
    )


def _of_live(file: str) -> tuple[Snippet, ...]:
    """The same for a network from Python, which the reader has to build."""
    short = f"""from lowrank_core import load_checkpoint

model = load_checkpoint(dense, {file!r}).model  # dense: the network that was compressed, with its weights
"""
    use = f"model = load_lowrank(dense, {file!r})  # dense: the network that was compressed, of any weights\n"
    return (
        Snippet("with lowrank_core", short),
        _alone(LOADER, use, partial=False),
        _alone(f"{LOADER}\n\n{MODULES}", use, partial=True),
    )


def _alone(loader: str, use: str, *, partial: bool) -> Snippet:
    return Snippet("with torch and safetensors alone", f"{loader}\n\n{use}", partial, loader)


register(Export("safetensors", "Checkpoint (safetensors)", ".safetensors", write, snippets, tuple(DTYPES)))
