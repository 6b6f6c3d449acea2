"""A file that times a network's layers on a device of its own, without this product: what `--latency-table` reads."""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from torch import nn

from lowrank_core.errors import InvalidModel
from lowrank_core.graphs.onnx_chain import input_shape, onnx_chain
from lowrank_core.layers.data import tensors
from lowrank_core.measure.staircases import Call, Setting, calls_of, ranks
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import computed
from lowrank_core.workspace import Workspace

NAME = "measure_on_device.py"

PROGRAM = files("lowrank_core.measure").joinpath("_measure_on_device.py").read_text("utf-8")
"""All of it but the list of what is timed."""

_PLACE = 'WORK = ""'
_INLINE_NUMBERS = 16
"""A weight of more numbers is made up by the device."""


def device_file(workspace: Workspace, setting: Setting, *, methods: Iterable[str] | None = None) -> str:
    """The program as a text, with the chains of every layer at about ten ranks of each method, and no weights.

    Layers of one shape are timed once. methods: all but references, unless given by name.
    Raises InvalidModel where nothing of the network can be timed so.

    >>> from lowrank_core.workspace import Workspace
    >>> text = device_file(Workspace.open("builtin:iris-mlp"), Setting("torch"))
    >>> compile(text, NAME, "exec") is not None, text.startswith(PROGRAM[:100])
    (True, True)
    """
    allowed = None if methods is None else set(methods)
    alike: dict[tuple[Any, ...], list[Layer]] = {}
    for layer in workspace.profile.layers:
        alike.setdefault(tuple(computed((layer.spec,), layer)), []).append(layer)
    longest, listed = 0, []
    for first, *others in alike.values():
        names = [m.name for m in first.methods if (not m.reference if allowed is None else m.name in allowed)]
        calls = calls_of((first.spec,), first, setting)
        try:
            (dense, most), timed = _chains(calls, setting), {}
            for name in names:
                asked = ranks(first, name)
                stages = [METHODS[name].stages(first.spec, rank) for rank in asked]
                chains = [_chains(calls_of(one, first, setting), setting) for one in stages]
                most = max(most, *(numbers for _, numbers in chains))
                timed[name] = {"ranks": asked, "chains": [chain for chain, _ in chains]}
        except InvalidModel:
            continue
        if timed:
            longest = max(longest, most)
            listed.append(
                {
                    "names": [layer.name for layer in (first, *others)],
                    "shapes": [input_shape(chain[0], size, batch) for chain, size, batch in calls],
                    "kinds": ["int64" if chain[0].table else setting.dtype for chain, *_ in calls],
                    "calls": list(calls.values()),
                    "dense": dense,
                    "methods": timed,
                }
            )
    if not listed:
        raise InvalidModel(f"no layer of {workspace.name} can be timed with {setting.runtime} on a device of its own.")
    given = tensors(workspace.opened.example_inputs)
    work = {
        "model": workspace.name,
        "fingerprint": workspace.profile.fingerprint,
        "runtime": setting.runtime,
        "dtype": setting.dtype,
        "weights": longest,
        "inputs": [(list(value.shape), str(value.dtype).removeprefix("torch.")) for value in given],
        "layers": listed,
    }
    packed = base64.b64encode(lzma.compress(json.dumps(work).encode())).decode()
    return PROGRAM.replace(_PLACE, f'WORK = "{packed}"', 1)


def _chains(calls: Iterable[Call], setting: Setting) -> tuple[list[Any], int]:
    """The chains that are called, as the program takes them, and the numbers of their largest weight."""
    if setting.runtime == "torch":
        parts = [[(stage.op, stage.arguments) for stage in chain] for chain, *_ in calls]
        if not all(hasattr(nn, op) for chain in parts for op, _ in chain):
            raise InvalidModel("a layer that is none of PyTorch's own")
        return parts, 0
    made, most = [], 0
    for chain, size, batch in calls:
        model = onnx_chain(chain, size, batch)
        most = max([most, *map(_outside, model.graph.initializer)])
        made.append(model.SerializeToString().decode("latin-1"))  # which packs well
    return made, most


def _outside(weight: Any) -> int:
    """Point to the file of random numbers in place of a weight; how many of them it takes."""
    import onnx

    count = len(weight.raw_data) // 4
    if weight.data_type != onnx.TensorProto.FLOAT or count <= _INLINE_NUMBERS:
        return 0
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(4 * count))):
        weight.external_data.add(key=key, value=value)
    return count
