"""A program that `torch.export.save` has written (.pt2), with its layers as plain modules again.

Loading one may run code that is in it, so it is opened like a Python file: only where a person names it when the
command or the app is started. What can be seen to carry code is refused before; that is no proof of the contrary.
"""

from __future__ import annotations

import inspect
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.unflatten import InterpreterModule, UnflattenedModule
from torch.utils._pytree import tree_map

from lowrank_core.errors import InvalidFile, InvalidModel, UnknownModel, few
from lowrank_core.layers.data import Dataset, Inputs, batch_size, call, tensors
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import ModelContract, open_contract
from lowrank_core.sources._npz_data import NpzData, read_npz
from lowrank_core.sources._opened import COMPARED, Opened
from lowrank_core.sources._plain_layers import plain_layer

SAMPLES = 64
FREE_BATCH = "torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim('batch')},))"


def _open(ref: str) -> Opened:
    """The program, its example inputs, and as data the arrays of `NAME.npz` beside it; without them random inputs."""
    path = Path(ref).expanduser().resolve()
    if not path.is_file():
        raise UnknownModel(f"there is no file {ref}.")
    refuse_code(path)
    program = _load(path)
    inputs = _inputs(program, path)
    beside = path.with_suffix(".npz")
    contract = ModelContract(
        name=path.stem,
        build_model=lambda: _model(_load(path), inputs, path),
        example_inputs=lambda: inputs,
        description=f"A program of torch.export{'' if beside.is_file() else ', with random inputs'}.",
        ref=str(path),
        path=path,
    )
    if beside.is_file():
        data = _data(beside, inputs, _argument_names(program.module_call_graph))
        contract = replace(
            contract,
            eval_data=lambda: data.eval,
            train_data=None if data.train is None else lambda: data.train,
            metric=data.metric,
            outputs=data.outputs,
        )
        return open_contract(contract)
    opened = open_contract(replace(contract, eval_data=lambda: _random(inputs)))
    notice = f"There is no {beside.name} with inputs and targets: the score is {COMPARED}, on random inputs."
    about_data = (notice, *opened.of_own_data)
    provides = opened.provides - {"eval_data"}
    return replace(opened, notices=(notice, *opened.notices), of_own_data=about_data, provides=provides)


class _Payload(msgspec.Struct):
    """Where a tensor or an object of the program lies."""

    path_name: str
    use_pickle: bool | None = None


class _Config(msgspec.Struct):
    """What an archive says of its weights or constants."""

    config: dict[str, _Payload]


def refuse_code(path: Path) -> None:
    """Raise InvalidFile where a pickle in the archive names anything but tensors, or where it holds script objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
                sum(m.file_size for m in members) > path.stat().st_size
            ):
                raise InvalidFile(f"{path} claims more than it holds; torch.export.save writes no such file.")
            names = {m.filename.partition("/")[2]: m.filename for m in members}
            if not any(name.startswith(("models/", "serialized_exported_program")) for name in names):
                raise InvalidFile(f"{path} is no program of torch.export; give weights as .pt or .safetensors.")
            for name in _pickled(archive, names):
                _check_pickle(path, name, archive.read(names[name]))
    except InvalidFile:
        raise
    except Exception as error:  # whatever zipfile and JSON say of damaged bytes
        raise InvalidFile(f"{path} is cut short or damaged ({' '.join(str(error).split())[:200]}).") from error


def _pickled(archive: zipfile.ZipFile, names: dict[str, str]) -> Iterator[str]:
    """Members that the loader of PyTorch unpickles: sample inputs, and what a config marks so."""
    yield from (name for name in names if name.endswith((".pt", ".pkl")))
    for name in names:
        if not name.endswith("_config.json"):
            continue
        for entry in msgspec.json.decode(archive.read(names[name]), type=_Config).config.values():
            held = f"{name.rpartition('/')[0]}/{entry.path_name}"
            if entry.use_pickle or "_obj_" in entry.path_name:
                yield held


def _check_pickle(path: Path, name: str, raw: bytes) -> None:
    if not raw:  # of a program that holds nobody's samples, as our own export
        return
    if not raw.startswith(b"PK"):
        raise InvalidFile(f"{path} carries a plain pickle or script object ({name}), which could run code; not opened.")
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(raw))
    except Exception as error:  # whatever a damaged pickle makes the reader raise
        raise InvalidFile(f"{path}: {name} cannot be read ({' '.join(str(error).split())[:200]}).") from error
    if unsafe:
        raise InvalidFile(
            f"{path} carries code: {name} names {few(unsafe)}, which loading would call; it was not opened."
        )


def _load(path: Path) -> ExportedProgram:
    try:
        return torch.export.load(path)
    except Exception as error:  # the archive is a person's file: anything may be wrong with it
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InvalidModel(
            f"{path} cannot be loaded by PyTorch {torch.__version__} ({said}); export it again."
        ) from error


# ---- the network ----------------------------------------------------------------------------------------------------


def _model(program: ExportedProgram, inputs: Inputs, path: Path) -> nn.Module:
    """The program module by module, those of one linear map or a normalisation as plain `torch.nn` layers."""
    model = torch.export.unflatten(program)
    for name, module in list(model.named_modules()):
        if isinstance(module, InterpreterModule) and (plain := _plain(module)) is not None:
            model.set_submodule(name, plain)
    for module in model.modules():
        if isinstance(module, InterpreterModule | UnflattenedModule):
            for node in module.graph.nodes:
                node.meta.clear()  # symbolic sizes, which cannot be copied
            module.finalize()  # type: ignore[no-untyped-call]
    model.meta.clear()
    model.check_input_constraints = False
    _name_arguments(model)
    model.eval()
    _check_batch(model, inputs, path)
    return model


def _name_arguments(model: UnflattenedModule) -> None:
    """Give `forward` the arguments of the network that was exported; without them it could not be exported again."""
    names = _argument_names(model.module_call_graph)

    def forward(self: UnflattenedModule, *args: Any, **kwargs: Any) -> Any:
        return UnflattenedModule.forward(self, *args, **kwargs)  # type: ignore[no-untyped-call]

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])
    vars(forward)["__signature__"] = signature
    model.__class__ = type("Program", (UnflattenedModule,), {"forward": forward})


def _argument_names(calls: list[ModuleCallEntry]) -> list[str]:
    """Names of the arguments of the whole network, in order."""
    signature = calls[0].signature
    assert signature is not None
    positional, keywords = signature.in_spec.children()
    return signature.forward_arg_names or [*(f"input_{n}" for n in range(positional.num_children)), *keywords.context]


def _plain(module: InterpreterModule) -> nn.Module | None:
    """The `torch.nn` layer that does the same, with the same parameters; None where there is none."""
    nodes = list(module.graph.nodes)
    if [n.op for n in nodes].count("placeholder") != 1 or any(n.op == "call_module" for n in nodes):
        return None
    calls = [n for n in nodes if n.op == "call_function"]
    if len(calls) != 1 or dict(module.named_children()):
        return None
    return plain_layer(calls[0], "", module)


def _check_batch(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """One sample more must be answered, and the others as before: programs are often exported for one size alone."""
    wider = tree_map(lambda t: torch.cat([t, t[:1]]) if isinstance(t, Tensor) else t, inputs)
    try:
        with torch.no_grad():
            once, more = call(model, inputs), call(model, wider)
        samples = batch_size(inputs)
        pairs = [(value, more[name]) for name, value in once.items() if value.ndim and len(value) == samples]
        free = bool(pairs) and all(
            len(wide) == samples + 1 and torch.allclose(wide[:-1].double(), value.double(), rtol=1e-3, atol=1e-5)
            for value, wide in pairs
        )
    except Exception:  # whatever an operator says about a size it was not made for
        free = False
    if not free:
        raise InvalidModel(
            f"{path} was exported for batches of {batch_size(inputs)} alone; export it with a free batch: {FREE_BATCH}."
        )


# ---- its inputs and data --------------------------------------------------------------------------------------------


def _inputs(program: ExportedProgram, path: Path) -> Inputs:
    """The example inputs of the program, or random ones of the shapes it was exported for."""
    if program.example_inputs is not None:
        positional, named = program.example_inputs
        if positional and named:
            raise InvalidModel(f"{path} takes positional and keyword inputs; export it with the one or the other.")
        return named or tuple(positional)
    spec = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in _user_inputs(program)]
    shapes = [tuple(n if isinstance(n, int) else 2 for n in node.meta["val"].shape) for node in spec]
    return tuple(
        _random_tensor(torch.zeros(shape, dtype=node.meta["val"].dtype), shape, torch.Generator().manual_seed(0))
        for node, shape in zip(spec, shapes, strict=True)
    )


def _user_inputs(program: ExportedProgram) -> set[str]:
    return {str(name) for name in program.graph_signature.user_inputs}


def _random(inputs: Inputs) -> Inputs:
    """Samples like the example inputs, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def like(leaf: Any) -> Any:
        return _random_tensor(leaf, (SAMPLES, *leaf.shape[1:]), generator) if isinstance(leaf, Tensor) else leaf

    batches = tree_map(like, inputs)
    return batches if isinstance(batches, dict) else [(batches, None)]


def _random_tensor(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal with mean and deviation of a float tensor, (0, 1) where it is constant; the values of any other, mixed."""
    if not like.is_floating_point():
        values = like.reshape(-1)
        return values[torch.randint(max(1, len(values)), shape, generator=generator)]
    deviation = float(like.double().std(correction=0))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return ((drawn * deviation + float(like.double().mean())) if deviation > 0 else drawn).to(like.dtype)


def _data(path: Path, inputs: Inputs, names: list[str]) -> NpzData:
    """The arrays of an .npz, in the types of the example inputs."""
    npz = read_npz(path, names)
    like = tensors(inputs)

    def fitting(data: Dataset) -> Dataset:
        cast = [array.to(one.dtype) for array, one in zip(tensors(data.inputs), like, strict=True)]
        given = dict(zip(inputs, cast, strict=True)) if isinstance(inputs, dict) else tuple(cast)
        return replace(data, inputs=given)

    return NpzData(fitting(npz.eval), None if npz.train is None else fitting(npz.train), npz.metric, npz.outputs)


register(Source("pt2", lambda ref: ref.endswith(".pt2"), _open, "a program of torch.export (.pt2)"))
