"""A LoRA adapter at other ranks: chosen by energy, by one rank or by bytes, and written for PEFT or kohya's tools."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lowrank_core.algebra.product import distance
from lowrank_core.algebra.spectra import rank_for_energy
from lowrank_core.errors import InvalidFile, InvalidPlan, InvalidSettings
from lowrank_core.sources._adapter import CONFIG, WEIGHTS, Adapter, Pair
from lowrank_core.store.as_json import plain
from lowrank_core.store.files import folder_or_zip, whole_or_nothing, write_whole
from lowrank_core.store.kinds import ADAPTER_KEY
from lowrank_core.version import versions


@dataclass(frozen=True, slots=True)
class Resized:
    """An adapter that was written. lost: {module: share of the energy of its product that is lost, as stored}."""

    path: str
    bytes: int
    ranks: dict[str, int]
    lost: dict[str, float]


# ---- which ranks ----------------------------------------------------------------------------------------------------


def ranks_for_energy(adapter: Adapter, share: float) -> dict[str, int]:
    """For each module the smallest rank that keeps this share of the squared singular values of its product."""
    if not 0 < share <= 1:
        raise InvalidSettings(f"the share of the energy must be above 0 and at most 1, but is {share:g}.")
    return {
        pair.name: max(1, min(pair.rank, rank_for_energy(adapter.product(pair.name).sigma, share)))
        for pair in adapter.pairs
    }


def ranks_at_most(adapter: Adapter, rank: int) -> dict[str, int]:
    """The same rank for every module, where it has so many."""
    if rank < 1:
        raise InvalidSettings(f"a rank must be 1 or more, but is {rank}.")
    return {name: min(rank, there) for name, there in adapter.ranks.items()}


def ranks_within(adapter: Adapter, most_bytes: int) -> dict[str, int]:
    """Ranks whose tensors take at most so many bytes and lose the least of what the adapter adds to the weights.

    Each further rank goes where it adds the most energy for a byte, the scale of the module counted; the best that
    bytes allow, but for what is left of them. Raises InvalidSettings where rank 1 takes more.
    """
    ranks = dict.fromkeys(adapter.ranks, 1)
    left = most_bytes - adapter.bytes_at(ranks)
    if left < 0:
        raise InvalidSettings(
            f"rank 1 everywhere takes {adapter.bytes_at(ranks):,} B, more than {most_bytes:,} B; allow more."
        )
    gains = {
        pair.name: (adapter.product(pair.name).sigma * (1.0 if pair.scale is None else pair.scale)) ** 2
        for pair in adapter.pairs
    }
    pairs = {pair.name: pair for pair in adapter.pairs}

    def entry(name: str) -> tuple[float, str] | None:
        at = ranks[name]
        return (-float(gains[name][at]) / pairs[name].rank_bytes, name) if at < len(gains[name]) else None

    waiting = [found for name in ranks if (found := entry(name))]
    heapq.heapify(waiting)
    while waiting:
        gain, name = heapq.heappop(waiting)
        if gain == 0 or pairs[name].rank_bytes > left:
            continue
        ranks[name] += 1
        left -= pairs[name].rank_bytes
        if following := entry(name):
            heapq.heappush(waiting, following)
    return ranks


def kept_energy(adapter: Adapter, ranks: Mapping[str, int]) -> float:
    """The share of what the adapter adds to all weights, as squared sums, that these ranks keep."""
    whole = kept = 0.0
    for pair in adapter.pairs:
        energy = (adapter.product(pair.name).sigma * (1.0 if pair.scale is None else pair.scale)) ** 2
        whole += float(energy.sum())
        kept += float(energy[: ranks[pair.name]].sum())
    return kept / whole if whole else 1.0


# ---- the file -------------------------------------------------------------------------------------------------------


def check_ranks(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks in the order of the adapter, those not named as they are; raises InvalidPlan."""
    if foreign := [name for name in ranks if name not in adapter.ranks]:
        raise InvalidPlan(f"the adapter has no module {foreign[0]!r}; `rank-explorer layers` lists them.")
    for name, rank in ranks.items():
        if not 1 <= rank <= adapter.ranks[name]:
            raise InvalidPlan(f"{name!r}: the rank must be 1 to {adapter.ranks[name]}, but is {rank}.")
    return {**adapter.ranks, **ranks}


def write_adapter(adapter: Adapter, ranks: Mapping[str, int], path: Path) -> Resized:
    """Write the adapter at these ranks: a folder for PEFT, or a zip of one; one .safetensors with kohya's names.

    Modules that keep their rank are written as they are. Raises InvalidFile where the scale of its products is not
    known, where `path` ends otherwise, or where writing fails; then `path` is as it was.
    """
    ranks, ending = check_ranks(adapter, ranks), path.suffix.lower()
    if adapter.peft and adapter.config is None:
        raise InvalidFile(
            f"{adapter.path} was not resized: it has no {CONFIG} beside it, which says what its products are "
            "multiplied by and which modules they are of; put it there."
        )
    if (ending == ".safetensors") == adapter.peft:
        fits = "a folder, or a name that ends with .zip" if adapter.peft else "a name that ends with .safetensors"
        raise InvalidFile(f"{path} is no name for this adapter, which {_READS[adapter.peft]}; give {fits}.")
    state, lost = _state(adapter, ranks)
    about = json.dumps(plain({"versions": versions(), "ranks": {"before": adapter.ranks, "now": ranks}}))
    metadata = {"format": "pt", ADAPTER_KEY: about}
    if not adapter.peft:
        with whole_or_nothing(path) as temporary:
            save_file(state, temporary, metadata=metadata)
            size = temporary.stat().st_size
        return Resized(str(path), size, ranks, lost)
    with folder_or_zip(path) as folder:
        save_file(state, folder / WEIGHTS, metadata=metadata)
        write_whole(folder / CONFIG, (json.dumps(peft_config(adapter, ranks), indent=2) + "\n").encode())
        size = sum(file.stat().st_size for file in folder.iterdir())
    return Resized(str(path), size, ranks, lost)


_READS = {True: "PEFT reads from a folder", False: "is one file"}


def _state(adapter: Adapter, ranks: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors at these ranks, and what each module lost."""
    state = {tensor.name: tensor.whole.contiguous() for tensor in adapter.others}
    lost = {}
    for pair in adapter.pairs:
        rank, alpha = ranks[pair.name], pair.alpha
        b, a = pair.b.whole, pair.a.whole
        lost[pair.name] = 0.0
        if rank < pair.rank:
            product = adapter.product(pair.name)
            thin_b, thin_a = product.factors(rank)
            if alpha is not None:
                state[alpha.name], ratio = _alpha(alpha.whole, _scale(pair), rank)
                thin_b = thin_b * ratio
            elif adapter.peft:  # where no alpha gives the scale to the last bit, B makes it good
                thin_b = thin_b * (_scale(pair) / _scale_of(_scale(pair), rank, adapter.rslora))
            new_b = thin_b.to(b.dtype).reshape(-1, rank, *b.shape[2:])
            new_a = thin_a.to(a.dtype).reshape(rank, *a.shape[1:])
            norm = float(product.sigma.norm())
            far = distance(pair.factors, (new_b.flatten(1), new_a.flatten(1)))
            lost[pair.name] = (far / norm) ** 2 if norm else 0.0
            b, a = new_b, new_a
        elif alpha is not None:
            state[alpha.name] = alpha.whole
        state |= {pair.b.name: b.contiguous(), pair.a.name: a.contiguous()}
    return state, lost


def _alpha(stored: Tensor, scale: float, rank: int) -> tuple[Tensor, float]:
    """alpha at a rank, in its own type where that holds it, and what B is multiplied by for what it does not."""
    for dtype in (stored.dtype, torch.float32):
        alpha = torch.full_like(stored, scale * rank, dtype=dtype)
        if float(alpha.reshape(-1)[0].double()) / rank == scale:
            return alpha, 1.0
    return alpha, scale * rank / float(alpha.reshape(-1)[0].double())


def peft_config(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json for these ranks: one for most modules, patterns for the others, every scale as it was."""
    alphas = {pair.name: alpha_for(_scale(pair), ranks[pair.name], rslora=adapter.rslora) for pair in adapter.pairs}
    (usual, alpha), _ = Counter((ranks[name], alphas[name]) for name in alphas).most_common(1)[0]
    keys = {name: _key(name, alphas) for name in alphas}
    return {
        **(adapter.config or {}),
        "r": usual,
        "lora_alpha": alpha,
        "rank_pattern": {keys[name]: ranks[name] for name in alphas if ranks[name] != usual},
        "alpha_pattern": {keys[name]: alphas[name] for name in alphas if alphas[name] != alpha},
    }


def _key(name: str, names: Mapping[str, Any]) -> str:
    """A pattern of PEFT for this module alone, though another's name may end like it."""
    ends = [other for other in names if other != name and other.endswith(f".{name}")]
    return f"^{name}" if ends else name


def _scale(pair: Pair) -> float:
    assert pair.scale is not None
    return pair.scale


def _scale_of(scale: float, rank: int, rslora: bool) -> float:
    """The scale that PEFT computes at a rank."""
    return alpha_for(scale, rank, rslora=rslora) / (math.sqrt(rank) if rslora else rank)


def alpha_for(scale: float, rank: int, *, rslora: bool = False) -> float | int:
    """The alpha by which PEFT multiplies with this scale at a rank, to the last bit where there is one.

    >>> alpha_for(2.0, 5), alpha_for(0.1, 7) / 7
    (10, 0.1)
    """
    divisor = math.sqrt(rank) if rslora else rank
    near = scale * divisor
    beside = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    alpha = next((one for one in (float(round(near)), *beside) if one / divisor == scale), near)
    return int(alpha) if alpha.is_integer() else alpha
