"""A folder that `from_pretrained` of transformers loads, with `lowrank_hf` imported; tokenizer and model card in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lowrank_core.compression.checkpoint import listed_layers, untied
from lowrank_core.compression.precision import DTYPES
from lowrank_core.errors import InvalidModel, InvalidSettings
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._provenance import plan_document
from lowrank_core.extras import extra
from lowrank_core.figures import count
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.own_process import nothing_printed
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import folder_or_zip, write_whole
from lowrank_core.store.kinds import HF_FILES, file_hash
from lowrank_core.store.reference import address_of
from lowrank_core.workspace import Workspace

TOLERANCE = 1e-5
"""Largest distance of outputs that passes, relative to the largest output."""

SHARD_BYTES = 5 * 10**9
"""Of one file of weights, at most; more go to several, with an index."""

CARD, CONFIG, PLAN = "README.md", "config.json", "plan.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.gguf")
"""Files of the network as it was, which are not copied."""

LARGEST_BESIDE = 10**8
"""Bytes of a file beside the weights that is copied, at most: a tokenizer of a million words takes a third."""


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the folder, or a zip of it where the name ends so, load it in a fresh process and compare.

    Raises InvalidModel where the network did not come from a folder of transformers, InvalidFile where a step fails;
    then `path` is as it was.
    """
    source = _source(workspace)
    if compressed.storage.fold_bias:
        raise InvalidSettings(
            f"{path}: a folder of transformers has no folded biases, since its networks ask layers for theirs; write "
            "it without, or as pt2 or ONNX."
        )
    with extra("hf", "a folder of transformers"), nothing_printed():
        import transformers
    with folder_or_zip(path) as folder:
        report(Progress("writing"))
        config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        copy_beside(source, folder)
        _write_network(workspace, compressed, config, getattr(transformers, config["architectures"][0]), folder)
        write_whole(folder / CARD, _card(workspace, compressed, source).encode())

        def put_plan(**more: Any) -> None:
            files = {one.name: file_hash(one) for one in sorted(folder.iterdir()) if one.name != PLAN}
            write_whole(folder / PLAN, plan_document(workspace, compressed, **{HF_FILES: files}, **more).encode())

        put_plan()
        largest, verdict = reloaded("hf", workspace, compressed, folder, path, tolerance=TOLERANCE)
        if verdict == "accepted":
            put_plan(accepted_difference=largest)
        size = sum(one.stat().st_size for one in folder.iterdir())
    return Exported(str(path), size, largest, compressed.score, verdict, compressed.notes)


def _source(workspace: Workspace) -> Path:
    """The folder that the network came from; raises InvalidModel where it came from none."""
    if not _came_from_folder(workspace):
        raise InvalidModel(
            f"{workspace.name} did not come from a folder of save_pretrained (transformers), so there is no "
            "configuration to write; export --format safetensors, pt2 or onnx write it."
        )
    return Path(address_of(str(workspace.opened.ref)).model)


def _came_from_folder(workspace: Workspace) -> bool:
    """Whether it was opened from a folder of `save_pretrained`."""
    folder = Path(address_of(workspace.opened.ref).model) if workspace.opened.ref else None
    return folder is not None and (folder / CONFIG).is_file() and hasattr(workspace.model, "base_model_prefix")


def copy_beside(source: Path, folder: Path) -> None:
    """Tokenizer, processor and what else lies beside the weights; no folders, no code, no card and plan of before."""
    others = {CONFIG, CARD, PLAN, *(file.name for pattern in WEIGHTS for file in source.glob(pattern))}
    for file in sorted(source.iterdir()):
        known = file.suffix in (".json", ".txt", ".model", ".jinja", ".vocab", ".bpe") or file.name == "LICENSE"
        if file.is_file() and known and file.name not in others and file.stat().st_size <= LARGEST_BESIDE:
            write_whole(folder / file.name, file.read_bytes())


def _write_network(
    workspace: Workspace, compressed: Compressed, config: dict[str, Any], kind: Any, folder: Path
) -> None:
    """config.json and the weights; what the network had and this one has not is an empty tensor of its name."""
    before = config.pop("quantization_config", {"layers": []})
    layers = [*before["layers"], *listed_layers(compressed.model, workspace.profile, compressed.plan)]
    state, ties = untied(compressed.model, DTYPES.get(compressed.storage.dtype or ""))
    parameters = {name for name, _ in compressed.model.named_parameters(remove_duplicate=False)}
    for alias in sorted({*ties} - parameters):  # transformers ties parameters alone
        state[alias] = state[ties.pop(alias)].clone()
    if layers:
        config["quantization_config"] = thin_layers(layers, ties)
        with torch.device("meta"), nothing_printed():
            dense = kind(kind.config_class.from_dict({**config, "quantization_config": None})).state_dict()
        state |= {name: torch.empty(0) for name in dense if name not in state and name not in ties}
    put_config(folder, config, next(compressed.model.parameters()).dtype)
    _save(state, folder)


def thin_layers(layers: list[dict[str, Any]], ties: dict[str, str]) -> dict[str, Any]:
    """What config.json says of layers {"name", "parts": [{"op", "args"}]} that are chains, for `lowrank_hf`."""
    return {"quant_method": "lowrank", "format": "lowrank-hf/1", "layers": layers, "ties": ties}


def put_config(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Write config.json, with the type of the weights."""
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_whole(folder / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def put_index(folder: Path, places: dict[str, str], size: int) -> None:
    """Write the index of several files of weights: {tensor: file}, and the bytes of all tensors."""
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_whole(folder / "model.safetensors.index.json", json.dumps(index, indent=2).encode())


def _save(state: dict[str, Tensor], folder: Path) -> None:
    """The weights in one file, or in several and an index, each filled in the order of the network."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if parts[-1] and size + tensor.nbytes > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    put_index(folder, places, sum(tensor.nbytes for tensor in state.values()))


def _card(workspace: Workspace, compressed: Compressed, source: Path) -> str:
    """README.md of an opened network's export."""
    score, profile = compressed.score, workspace.profile
    data = address_of(str(workspace.opened.ref)).data
    measured = None
    cost, dense = plan_cost(profile, compressed.plan), plan_cost(profile)
    rows = [
        f"| Weights | {count(cost.bytes, 'B')} | {count(dense.bytes, 'B')} |",
        f"| Multiplies of one sample | {count(cost.multiplies)} | {count(dense.multiplies)} |",
    ]
    if score is not None:
        if data is not None:
            interval = None if score.low is None or score.high is None else (score.low, score.high)
            measured = Measured(Path(data).stem, score.metric, score.value, interval, score.dense, score.samples)
        bounds = "" if score.low is None else f" (95 % interval {score.low:.4g} to {score.high:.4g})"
        what = f"{score.metric}, {score.samples:,} {'random inputs' if data is None else 'samples'}"
        rows.append(f"| {what} | {score.value:.4g}{bounds} | {score.dense:.4g} |")
    chosen = len(compressed.plan.choices), len(profile.layers)
    return card(workspace.name, architecture_in(source), chosen, rows, measured)


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure for the Hub: on which data, which metric, after compression with its 95 % interval, and before."""

    data: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    before: float
    samples: int


def card(name: str, kind: str, layers: tuple[int, int], rows: list[str], measured: Measured | None) -> str:
    """README.md as the Hub reads it: what it was made from, what was measured, how it is loaded. No licence.

    kind: the class of transformers; layers: how many of how many are compressed; rows: of the table.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task = next((task for ending, task in TASKS.items() if kind.endswith(ending)), None)
    results = None
    if measured is not None and task is not None:
        interval = {} if measured.interval is None else {"interval_95": [*measured.interval]}
        results = [
            EvalResult(
                task_type=task,
                dataset_type=measured.data,
                dataset_name=measured.data,
                metric_type=measured.metric,
                metric_value=measured.value,
                metric_args={**interval, "before": measured.before, "samples": measured.samples},
            )
        ]
    about = ModelCardData(
        base_model=name,
        base_model_relation="quantized",
        library_name="transformers",
        pipeline_tag=task,
        tags=["lowrank", "rank-explorer"],
        model_name=f"{name}-lowrank",
        eval_results=results,
    )
    return f"""---
{about.to_yaml().strip()}
# license: yours to choose; that of the base model may bind you
---

# {name}, compressed

{layers[0]} of {layers[1]} layers are products of thinner ones, by the plan in `{PLAN}`.

| | compressed | before |
|---|---|---|
{chr(10).join(rows)}

`pip install 'rank-explorer[hf]'` brings `lowrank_hf`, without which loading is an error:

```python
{_code(kind, "FOLDER").strip()}
```
"""


TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
}
"""What the Hub calls the task of a network, by how its class ends."""


def architecture_in(source: Path) -> str:
    """The class of the network in a folder."""
    return str(json.loads((source / CONFIG).read_text(encoding="utf-8"))["architectures"][0])


def _code(kind: str, folder: str) -> str:
    return f"""import lowrank_hf  # of rank-explorer: it puts the thin layers in
from transformers import {kind}

model = {kind}.from_pretrained({folder!r})
"""


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """The lines that load it, after unpacking where it is a zip."""
    source = Path(address_of(ref).model) if ref else Path()
    kind = architecture_in(source) if (source / CONFIG).is_file() else "AutoModel"
    folder = file.removesuffix(".zip")
    unpack = f"import zipfile\n\nzipfile.ZipFile({file!r}).extractall({folder!r})\n\n" if folder != file else ""
    return (Snippet("with transformers and lowrank_hf", unpack + _code(kind, folder)),)


register(
    Export(
        "hf",
        "Folder of transformers (zip)",
        ".zip",
        write,
        snippets,
        tuple(DTYPES),
        offered=_came_from_folder,
        ready=_source,
    )
)
