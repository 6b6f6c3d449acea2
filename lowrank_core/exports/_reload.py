"""Prove that a file can be used: load it in a fresh process, run stored inputs there, compare the outputs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import torch
from torch import nn

from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.errors import Cancelled, InvalidFile, LowRankError
from lowrank_core.graphs.c_compiled import CNetwork
from lowrank_core.graphs.executorch_network import ExecutorchNetwork
from lowrank_core.graphs.exporting import OnnxNetwork
from lowrank_core.graphs.openvino import OpenVinoNetwork
from lowrank_core.layers.data import BatchAxes, Dataset, Inputs, Outputs, call, cloned, first_axes, run
from lowrank_core.running.fresh_process import in_fresh_process
from lowrank_core.running.own_process import hush_libraries
from lowrank_core.sources import open_source
from lowrank_core.store.files import scratch, write_whole, writing

BATCHES = (1, 2, 7)
DENSE = "dense.pickle"
"""Written and read by this product alone, in a folder of its own."""

DENSE_ALONE = "dense"
"""The kind of no file: the fresh process opens the uncompressed network by its reference."""

LIMIT_SECONDS = 600.0
"""Seconds that a fresh process may take, to start and to open what it is to run."""

LIMIT_TIMES = 20.0
"""Besides, so many times as long as the same batches took in this process."""


def answers_of(
    kind: str, dense: str | nn.Module, written: Path, batches: list[Inputs], own_seconds: float, *, name: str
) -> list[Outputs]:
    """What a written file, read in a fresh process, answers to each batch of inputs.

    kind: a key of READERS. dense: the reference of the uncompressed network, or that network where it has none.
    own_seconds: what the batches took here. name: what the file is called in messages.
    Raises InvalidFile where the file cannot be used.
    """
    try:
        return outputs_in_fresh_process(kind, dense, written, batches, own_seconds)
    except InvalidFile as error:
        raise InvalidFile(f"{name} was not saved: {str(error).replace(str(written.resolve()), name)}") from error


def batches_for(kind: str, inputs: Inputs, axes: BatchAxes | None = None) -> list[Inputs]:
    """What a file of that kind is tried on: all the inputs at once and, but for checkpoints, batches of 1, 2 and 7."""
    places = axes or first_axes(inputs)
    return [inputs] if kind == "safetensors" else [inputs, *(_batch(inputs, size, places) for size in BATCHES)]


def answer_of(kind: str, dense: str | nn.Module, written: Path, inputs: Inputs, own_seconds: float) -> Outputs:
    """What a written file, read in a fresh process, answers to one batch; see `outputs_in_fresh_process`."""
    (answer,) = outputs_in_fresh_process(kind, dense, written, [inputs], own_seconds)
    return answer


def outputs_in_fresh_process(
    kind: str, dense: str | nn.Module, written: Path, batches: list[Inputs], own_seconds: float
) -> list[Outputs]:
    """What a new Python process computes that loads the file and runs each batch of inputs.

    Raises InvalidFile with the reason where it fails, or takes longer than LIMIT_SECONDS and LIMIT_TIMES own_seconds.
    """
    with scratch() as folder:
        with writing(folder / "inputs.pt") as file:
            torch.save(batches, file)
        if isinstance(dense, nn.Module) and kind == "safetensors":
            _hand_over(dense, Path(folder, DENSE))
        ref = dense if isinstance(dense, str) else None
        request = {"kind": kind, "ref": ref, "file": str(written.resolve()), "threads": torch.get_num_threads()}
        write_whole(folder / "request.json", json.dumps(request).encode())
        limit = LIMIT_SECONDS + LIMIT_TIMES * own_seconds
        try:
            in_fresh_process(f"{__name__}:answer", Path(folder), limit_seconds=limit)
        except Cancelled:
            raise
        except LowRankError as error:
            raise InvalidFile(f"a fresh process could not use it: {error}") from error
        outputs: list[Outputs] = torch.load(Path(folder, "outputs.pt"), weights_only=True)
        return outputs


def answer(folder: Path) -> None:
    """What the fresh process does: load the file, answer the inputs, write the outputs."""
    request = json.loads(Path(folder, "request.json").read_text())
    hush_libraries()
    torch.set_num_threads(request["threads"])
    handed = Path(folder, DENSE)
    dense = pickle.loads(handed.read_bytes()) if handed.is_file() else request["ref"]
    outputs = READERS[request["kind"]](dense, request["file"])
    batches = torch.load(Path(folder, "inputs.pt"), weights_only=True)
    answers = [cloned(outputs(inputs)) for inputs in batches]
    with writing(Path(folder, "outputs.pt")) as file:
        torch.save(answers, file)


def _hand_over(dense: nn.Module, path: Path) -> None:
    """Write a network for the fresh process, its class too where that is of a script or a notebook."""
    try:
        with writing(path) as file:
            cloudpickle.dump(dense, file)
    except OSError:
        raise
    except Exception as error:  # whatever an attribute of a module says that cannot be pickled
        raise InvalidFile(
            f"a fresh process cannot be given a network from Python that has no pickle ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); write a model file (`python -m lowrank_core new FILE`)"
        ) from error


def _checkpoint(dense: str | nn.Module, file: str) -> Callable[[Inputs], Outputs]:
    model = load_checkpoint(dense if isinstance(dense, nn.Module) else open_source(dense).model, file).model
    return lambda inputs: run(model, Dataset(inputs))


def _graph(dense: str | nn.Module, file: str) -> Callable[[Inputs], Outputs]:
    with open(file, "rb") as opened:
        model = torch.export.load(opened).module()
    return torch.no_grad()(lambda inputs: call(model, inputs))


def _folder(dense: str | nn.Module, file: str) -> Callable[[Inputs], Outputs]:
    model = open_source(file).model
    return lambda inputs: run(model, Dataset(inputs))


def _run_by(network: Callable[[str], nn.Module]) -> Callable[[str | nn.Module, str], Callable[[Inputs], Outputs]]:
    def read(dense: str | nn.Module, file: str) -> Callable[[Inputs], Outputs]:
        model = network(file)
        return lambda inputs: call(model, inputs)

    return read


def _dense_alone(dense: str | nn.Module, file: str) -> Callable[[Inputs], Outputs]:
    model = dense if isinstance(dense, nn.Module) else open_source(dense).model
    return lambda inputs: run(model, Dataset(inputs))


RUNNABLE: dict[str, Callable[..., nn.Module]] = {
    "onnx": OnnxNetwork,
    "executorch": ExecutorchNetwork,
    "openvino": OpenVinoNetwork,
}
"""Files that their own runtime runs as a module, given the path and what the outputs are to be called."""

READERS: dict[str, Callable[[str | nn.Module, str], Callable[[Inputs], Outputs]]] = {
    "safetensors": _checkpoint,
    "pt2": _graph,
    "hf": _folder,
    "c": _run_by(lambda file: CNetwork(Path(file))),
    DENSE_ALONE: _dense_alone,
    **{kind: _run_by(network) for kind, network in RUNNABLE.items()},
}
"""How the fresh process reads each kind of file, given the reference of the model, or that itself, and the path."""


def _batch(inputs: Inputs, size: int, axes: BatchAxes) -> Inputs:
    """The first samples, over and over where there are too few."""
    return axes.pick(inputs, torch.arange(size) % axes.samples(inputs))
