"""The folder that comes out: what `export --format hf` writes, its blocks a file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowrank_core.errors import InvalidFile, few
from lowrank_core.exports.hf import (
    CARD,
    PLAN,
    Measured,
    card,
    copy_beside,
    put_config,
    put_index,
    thin_layers,
)
from lowrank_core.figures import count
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.store.as_json import plain
from lowrank_core.store.files import same_file, whole_folder, whole_or_nothing, write_whole
from lowrank_core.store.kinds import HF_FILES, file_hash
from lowrank_core.streaming.request import Request
from lowrank_core.streaming.skeleton import Skeleton
from lowrank_core.version import versions


def write_folder(
    request: Request,
    skeleton: Skeleton,
    profile: ModelProfile,
    plan: RankPlan,
    score: Score,
    blocks: list[Path],
    text: str,
) -> None:
    """Put the files of the blocks together with all else, and take the place of `out`; raises InvalidFile.

    text: the hash of what factors were fitted to.
    """
    with whole_folder(request.out) as folder:
        copy_beside(skeleton.folder, folder)
        layers = []
        for name, choice in plan.choices:
            stages = METHODS[choice.method].stages(profile.layer(name).spec, choice.rank)
            layers.append({"name": name, "parts": [{"op": s.op, "args": s.arguments} for s in stages]})
        config: dict[str, Any] = {**skeleton.config}
        if layers:
            config["quantization_config"] = thin_layers(layers, skeleton.ties)
        put_config(folder, config, skeleton.dtype)
        places, size = _put_weights(skeleton, blocks, folder)
        put_index(folder, places, size)
        write_whole(folder / CARD, _card(request, skeleton, profile, plan, score).encode())
        files = {one.name: file_hash(one) for one in sorted(folder.iterdir())}
        fitted = _correction(request, text)
        provenance = {
            "model": {
                "name": skeleton.folder.resolve().name,
                "fingerprint": profile.fingerprint,
                "source": {"ref": skeleton.folder.resolve().name},
            },
            "cost": {"dense": plain(plan_cost(profile)), "compressed": plain(plan_cost(profile, plan))},
            "score": plain(score),
            "data": {"calibration": text},
            "versions": versions(),
            HF_FILES: files,
        }
        document = plan.to_json(
            model_name=skeleton.folder.resolve().name,
            correction=None if fitted is None else fitted.to_dict(),
            provenance=provenance,
        )
        write_whole(folder / PLAN, document.encode())


def _correction(request: Request, text: str) -> Correction | None:
    """What was fitted, as plans say it."""
    if request.correction in ("svd", "whitened"):
        return None
    kind: Any = "thorough" if request.correction == "thorough" else "least_squares"
    return Correction(kind, samples=request.windows, data=text)


def _put_weights(skeleton: Skeleton, blocks: list[Path], folder: Path) -> tuple[dict[str, str], int]:
    """({tensor: file}, bytes of all). The first file holds what is outside of the blocks."""
    total = len(blocks) + 1
    places: dict[str, str] = {}
    size = 0

    def named(number: int) -> str:
        return f"model-{number:05}-of-{total:05}.safetensors"

    state: dict[str, Tensor] = {name: skeleton.stored[name].whole for name in skeleton.outside}
    with whole_or_nothing(folder / named(1)) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    places |= dict.fromkeys(state, named(1))
    size += sum(tensor.nbytes for tensor in state.values())
    del state
    for number, (name, block) in enumerate(zip(skeleton.blocks, blocks, strict=True), 2):
        same_file(block, folder / named(number))
        with safe_open(folder / named(number), "pt") as file:
            names = [*file.keys()]
            size += sum(file.get_tensor(one).nbytes for one in names)
        if foreign := [one for one in names if not one.startswith(f"{name}.")]:
            raise InvalidFile(f"{block} holds {few(foreign)}, which is not of {name}; remove its folder, begin anew.")
        places |= dict.fromkeys(names, named(number))
    return places, size


def _card(request: Request, skeleton: Skeleton, profile: ModelProfile, plan: RankPlan, score: Score) -> str:
    cost, dense = plan_cost(profile, plan), plan_cost(profile)
    bounds = "" if score.low is None else f" (95 % interval {score.low:.4g} to {score.high:.4g})"
    rows = [
        f"| Weights | {count(cost.bytes, 'B')} | {count(dense.bytes, 'B')} |",
        f"| {score.metric}, {score.samples:,} windows | {score.value:.4g}{bounds} | {score.dense:.4g} |",
    ]
    interval = None if score.low is None or score.high is None else (score.low, score.high)
    held = request.held_out or request.text
    measured = Measured(held.stem, score.metric, score.value, interval, score.dense, score.samples)
    name = skeleton.folder.resolve().name
    return card(name, skeleton.architecture, (len(plan.choices), len(profile.layers)), rows, measured)
