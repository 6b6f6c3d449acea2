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
from lowrank_core.layers.spec import LayerSpec, Size, half_up
from lowrank_core.measure.staircases import Setting, ranks
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
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
        alike.setdefault((layer.spec, layer.in_sizes, layer.shares), []).append(layer)
    longest, listed = 0, []
    for first, *others in alike.values():
        names = [m.name for m in first.methods if (not m.reference if allowed is None else m.name in allowed)]
        sizes = {(size, share): first.in_sizes.count(size) for size, share in first.passes}
        places = [(size, max(1, half_up(share * setting.batch))) for size, share in sizes]
        try:
            (dense, most), timed = _chain((first.spec,), places, setting), {}
            for name in names:
                asked = ranks(first, name)
                chains = [_chain(METHODS[name].stages(first.spec, rank), places, setting) for rank in asked]
                most = max(most, *(numbers for _, numbers in chains))
                timed[name] = {"ranks": asked, "chains": [chain for chain, _ in chains]}
        except InvalidModel:
            continue
        if timed:
            longest = max(longest, most)
            kind = "int64" if first.spec.table else setting.dtype
            shapes = [input_shape(first.spec, size, batch) for size, batch in places]
            listed.append(
                {
                    "names": [layer.name for layer in (first, *others)],
                    "shapes": shapes,
                    "calls": list(sizes.values()),
                    "kind": kind,
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


def _chain(stages: tuple[LayerSpec, ...], places: list[tuple[Size, int]], setting: Setting) -> tuple[list[Any], int]:
    """A chain for each size that the layer sees, as the program takes it, and the numbers of its largest weight."""
    if setting.runtime == "torch":
        parts = [(stage.op, stage.arguments) for stage in stages]
        if not all(hasattr(nn, op) for op, _ in parts):
            raise InvalidModel("a layer that is none of PyTorch's own")
        return [parts for _ in places], 0
    made, most = [], 0
    for size, batch in places:
        model = onnx_chain(stages, size, batch)
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
