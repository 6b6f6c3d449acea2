"""A compressed network that came from a graph of ONNX, as that graph with the compressed nodes replaced.

Each layer of the plan becomes the nodes of its chain; every other tensor that differs from the file's (a corrected
offset, trained weights) is written in its place. Names, inputs, outputs, opset and all other nodes stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_core.compression.apply import chain_at
from lowrank_core.errors import InvalidFile
from lowrank_core.extras import extra
from lowrank_core.graphs.as_found import Packed
from lowrank_core.graphs.exporting import PLACES
from lowrank_core.graphs.onnx_network import GATES, OnnxGraph, Site, build, gates
from lowrank_core.graphs.reading import read_onnx
from lowrank_core.graphs.recurrent import Writer, write_layer
from lowrank_core.layers.parts import IdentityColumns, IdentityRows, Recurrent
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import fingerprint
from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.reference import address_of
from lowrank_core.workspace import Workspace

INITIALIZERS_ALONE = 4
"""From this version of the format on a stored tensor need not be listed among the inputs."""

OWN_OPSET = 11
"""From here on `Pad` and `Gemm` are as they are written here: amounts as an input, a bias only where there is one."""


def came_from_onnx(workspace: Workspace) -> bool:
    """Whether the workspace's network was read from a graph of ONNX, so that it can be written into it again."""
    return isinstance(workspace.model, OnnxGraph)


def compressed_onnx(
    workspace: Workspace, model: nn.Module, plan: RankPlan, properties: Mapping[str, str] | None = None
) -> Any:
    """The `onnx.ModelProto` of a compressed copy of a network that came from ONNX, checked by ONNX's own checker.

    model: as `workspace.compress(plan, ...)` or a training gives it. properties: added to the file's own.

    Raises InvalidFile where the file has changed since it was opened.
    """
    with extra("onnx", "ONNX"):
        import onnx
    dense = workspace.model
    assert isinstance(dense, OnnxGraph)
    path = Path(address_of(workspace.address).model)
    read = read_onnx(path, dense.program.held)
    if fingerprint(build(read.model)) != workspace.profile.fingerprint:
        raise InvalidFile(f"{path} has changed since it was opened; open it again.")
    layers = [workspace.profile.layer(name) for name, _ in plan.choices]
    chosen = {each.name for layer in layers for each in (layer, *layer.tied)}
    sites = _changed(dense, model, chosen)
    own = read.own is not None and not read.packed and _stands_in(read.own, dense, model, sites)
    proto = read.own if own else read.model
    _Surgeon(proto, dense, model, chosen).operate(sites)
    pack(proto, read.packed)
    proto.ir_version = max(proto.ir_version, INITIALIZERS_ALONE)
    properties_there = {entry.key: entry.value for entry in proto.metadata_props}
    places = dense.program.places
    fixed = {PLACES: places.to_json()} if places else {}
    onnx.helper.set_model_props(proto, properties_there | fixed | dict(properties or {}))
    if proto.ByteSize() < 2**31:
        onnx.checker.check_model(proto)
    return proto


def pack(proto: Any, packed: Mapping[str, Packed]) -> None:
    """Write tensors that are still what integers of a quantised file give as these: (integers - zero) times scale.

    In plain operators, which runtimes compute once: behind a DequantizeLinear some round the other factor too.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for tensor in [t for t in proto.graph.initializer if t.name in packed]:
        name, each = tensor.name, packed[tensor.name]
        if not np.array_equal(numpy_helper.to_array(tensor), each.floats()):
            continue
        shape = [1] * each.integers.ndim
        if each.scale.ndim:
            shape[each.axis] = -1
        parts = {"integers": each.integers, "scale": each.scale.reshape(shape)}
        steps: list[Any] = [("Cast", [f"{name}.integers"], {"to": TensorProto.FLOAT})]
        if each.zero is not None and each.zero.any():
            parts["zero"] = each.zero.astype(np.float32).reshape(shape)
            steps.append(("Sub", [f"{name}.floats", f"{name}.zero"], {}))
        steps.append(("Mul", [f"{name}.{'shifted' if 'zero' in parts else 'floats'}", f"{name}.scale"], {}))
        names = [*(f"{name}.floats", f"{name}.shifted")[: len(steps) - 1], name]
        nodes += [helper.make_node(op, x, [y], name=y, **more) for (op, x, more), y in zip(steps, names, strict=True)]
        proto.graph.initializer.remove(tensor)
        proto.graph.initializer.extend(numpy_helper.from_array(v, f"{name}.{part}") for part, v in parts.items())
    if nodes:
        copies = [*nodes, *map(_copied, proto.graph.node)]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)


def _changed(dense: OnnxGraph, model: nn.Module, chosen: set[str]) -> list[Site]:
    """The places of the graph at which a module is replaced, or has other tensors than the file."""

    def differs(path: str) -> bool:
        module, before = model.get_submodule(path), dense.get_submodule(path).state_dict()
        ours = module.state_dict()
        return isinstance(module, Recurrent) or not all(torch.equal(ours[n], value) for n, value in before.items())

    return [site for site in dense.program.sites if site.module in chosen or differs(site.module)]


def _stands_in(own: Any, dense: OnnxGraph, model: nn.Module, sites: list[Site]) -> bool:
    """Whether the file's own graph has every node and tensor that is replaced, as it was read; then it is kept."""
    nodes = {_key(node): node for node in own.graph.node}
    named = {i.name for i in own.graph.initializer} | {name for node in own.graph.node for name in node.output}
    opset = next(o.version for o in own.opset_import if o.domain in ("", "ai.onnx"))
    changed = {
        name for name, value in dense.constants.named_parameters() if not torch.equal(value, _constant(model, name))
    }
    return (
        opset >= OWN_OPSET
        and all(site.nodes[0] in nodes and nodes[site.nodes[0]].op_type == site.op for site in sites)
        and all(key in nodes for site in sites for key in site.nodes)
        and {site.input for site in sites} <= named | {i.name for i in own.graph.input}
        and {name for name, buffer in dense.program.buffers.items() if buffer in changed} <= named
    )


def _constant(model: nn.Module, buffer: str) -> Tensor:
    return model.get_parameter(f"constants.{buffer}")


class _Surgeon:
    """Replaces the compressed nodes of one ONNX graph, in place."""

    def __init__(self, proto: Any, dense: OnnxGraph, model: nn.Module, chosen: set[str]) -> None:
        self.graph, self.dense, self.model, self.chosen = proto.graph, dense, model, chosen
        self.opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        self.nodes = {_key(node): node for node in self.graph.node}
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.uses = Counter(name for node in self.graph.node for name in _read_by(node))
        self.taken = {name for node in self.graph.node for name in (*_read_by(node), *node.output, node.name)}
        self.taken |= {value.name for value in (*self.graph.initializer, *self.graph.input, *self.graph.output)}
        self.written: dict[tuple[str, str], str] = {}  # (module, tensor in it) -> name of what holds it
        self.homes: dict[int, str] = {}  # of a tensor that several modules share: where it is stored
        parameters = [p for m in model.modules() for p in m.parameters(recurse=False)]
        self.shared = {key for key, count in Counter(map(id, parameters)).items() if count > 1}

    def operate(self, sites: list[Site]) -> None:
        """Replace the nodes of the plan, write what else has changed, and remove what nothing needs any more."""
        new: dict[str, list[Any]] = {}  # by the last of the nodes that they replace
        for site in sites:
            if site.module in self.chosen:
                new |= {key: [] for key in site.nodes} | {site.nodes[-1]: list(self._chain(site))}
            elif isinstance(self.model.get_submodule(site.module), Recurrent):
                new[site.nodes[-1]] = self._recurrent(site)
            else:
                self._update(site)
        settled = set()  # weights that a node gave by turning one round, and that are stored from now on
        for buffer, value in self.dense.constants.named_parameters():
            changed = _constant(self.model, buffer)
            if not torch.equal(value, changed):
                for name in (n for n, b in self.dense.program.buffers.items() if b == buffer):
                    settled.add(name)
                    self._store(name, changed.mT if name in self.dense.program.turned else changed)
        left = [node for node in self.graph.node if not settled & set(node.output)]
        nodes = [part for node in left for part in new.get(_key(node), [node])]
        self._settle(nodes, {name for key in new for name in (*self.nodes[key].input, *self.nodes[key].output)})

    def _settle(self, nodes: list[Any], idle: set[str]) -> None:
        """Put the nodes into the graph without those, and the tensors, that gave only what nothing takes any more."""
        outputs = {output.name for output in self.graph.output}
        gone: set[str] = set()
        while idle:
            used = outputs | {name for node in nodes for name in _read_by(node)}
            idle -= used
            gone |= idle
            ended = [node for node in nodes if idle & set(node.output) and not used & set(node.output)]
            nodes = [node for node in nodes if not any(node is other for other in ended)]
            idle = {name for node in ended for name in _read_by(node)}
        given = {name for node in nodes for name in node.output}
        copies = [_copied(node) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        for values in (self.graph.initializer, self.graph.value_info):
            for value in [v for v in values if v.name in gone - given]:
                values.remove(value)
        for value in [v for v in self.graph.input if v.name in gone and v.name in self.stored]:
            self.graph.input.remove(value)

    def _chain(self, site: Site) -> Iterator[Any]:
        """The chain of a site as nodes, from its input to its output."""
        from onnx import helper

        chain = chain_at(self.dense, self.model, site.module)
        value = site.input
        if site.pads:
            before, after = zip(*site.pads, strict=True)
            pads = torch.tensor([0, 0, *before, 0, 0, *after])
            amounts = self._stored(site.module, "pads", pads)
            padded = self._name(f"{site.output}.padded")
            yield helper.make_node("Pad", [value, amounts], [padded], name=self._name(f"{site.module}.pad"))
            value = padded
        for number, stage in enumerate(chain):
            last = number == len(chain) - 1
            output = site.output if last else self._name(f"{site.output}.{number}")
            name = self._name(f"{site.module}.{number}")
            yield from self._stage(site, stage, f"{site.module}.{number}", name, value, output)
            value = output

    def _recurrent(self, site: Site) -> list[Any]:
        """A recurrent node whose weights have factors, as `write_layer` writes it, between the same names."""

        def stored(base: str, value: Tensor) -> str:
            path, _, name = base.rpartition(".")
            return self._stored(path, name, value)

        node, to = self.nodes[site.nodes[0]], Writer(self._name, stored, self.opset)
        x, *_, lengths = (*node.input, *[""] * 5)[:5]
        states, path = [name for name in node.input[5:] if name], site.module
        loops = False if path in self.dense.by_lengths else None
        write_layer(to, self.model.get_submodule(path), path, 0, x, states, node.output, lengths, loops=loops)
        return to.nodes

    def _stage(self, site: Site, stage: nn.Module, path: str, name: str, x: str, y: str) -> Iterator[Any]:
        from onnx import helper

        spec = LayerSpec.of(stage)
        weight = stage.get_parameter("weight")
        if isinstance(stage, IdentityRows | IdentityColumns):
            yield from self._partly_identity(site, stage, path, name, x, y)
            return
        bias = self._stored(path, "bias", stage.get_parameter("bias")) if spec.bias else ""
        if spec.table:
            yield helper.make_node("Gather", [self._stored(path, "weight", weight), x], [y], name=name, axis=0)
        elif spec.kernel:
            window: dict[str, Any] = {"strides": spec.stride, "dilations": spec.dilation, "group": spec.groups}
            if site.same:
                window["auto_pad"] = site.same
            else:
                window["pads"] = (*spec.padding, *spec.padding)
            if spec.transposed:
                window["output_padding"] = spec.output_padding
            inputs = [x, self._stored(path, "weight", weight), *([bias] if bias else [])]
            op = "ConvTranspose" if spec.transposed else "Conv"
            yield helper.make_node(op, inputs, [y], name=name, kernel_shape=spec.kernel, **window)
        elif site.op == "Gemm":
            inputs = [x, self._stored(path, "weight", weight), *([bias] if bias else [])]
            yield helper.make_node("Gemm", inputs, [y], name=name, transB=int(not spec.transposed))
        else:
            product = self._name(f"{y}.product") if bias else y
            yield from self._times(path, name, x, weight, product, turned=spec.transposed)
            if bias:
                yield helper.make_node("Add", [product, bias], [y], name=self._name(f"{name}.bias"))

    def _partly_identity(
        self, site: Site, stage: IdentityRows | IdentityColumns, path: str, name: str, x: str, y: str
    ) -> Iterator[Any]:
        """A stage some of whose rows or columns are those of the identity, as it computes."""
        from onnx import helper

        rows, axis = isinstance(stage, IdentityRows), 1 if stage.axes else -1
        weight, bias = stage.get_parameter("weight"), stage._parameters.get("bias")
        order = self._stored(path, "order", stage.order)
        kept, others, product, both = x, x, self._name(f"{y}.product"), self._name(f"{y}.both")
        if not rows:
            ordered, kept, others = (self._name(f"{y}.{part}") for part in ("ordered", "kept", "others"))
            yield helper.make_node("Gather", [x, order], [ordered], name=self._name(f"{name}.order"), axis=axis)
            last = y if not weight.numel() else kept
            for value, start, end in ((last, 0, stage.ends[1]), (others, stage.ends[1], stage.ends[0])):
                cut = [
                    self._stored(path, f"{what}{at}", torch.tensor([at]))
                    for what, at in (("from", start), ("to", end), ("axis", axis))
                ]
                if start < end:
                    yield helper.make_node("Slice", [ordered, *cut], [value], name=self._name(f"{name}.cut"))
        if weight.numel():
            if stage.axes:
                window: dict[str, Any] = {"kernel_shape": (1,) * stage.axes, "group": stage.groups}
                inputs = [others, self._stored(path, "weight", weight)]
                yield helper.make_node("Conv", inputs, [product], name=name, **window)
            else:
                yield from self._times(path, name, others, weight, product, turned=getattr(stage, "turned", False))
            if not rows:
                yield helper.make_node("Add", [kept, product], [y], name=self._name(f"{name}.sum"))
            else:
                yield helper.make_node("Concat", [x, product], [both], name=self._name(f"{name}.both"), axis=axis)
        if rows:
            ordered = self._name(f"{y}.ordered") if bias is not None else y
            source = both if weight.numel() else x
            yield helper.make_node("Gather", [source, order], [ordered], name=self._name(f"{name}.order"), axis=axis)
            if bias is not None:
                shift = self._stored(path, "bias", bias.view(-1, *(1,) * stage.axes))
                yield helper.make_node("Add", [ordered, shift], [y], name=self._name(f"{name}.bias"))

    def _times(self, path: str, name: str, x: str, weight: Tensor, y: str, *, turned: bool = False) -> Iterator[Any]:
        """The product of inputs with a weight (out, in), or (in, out) of a turned one."""
        from onnx import helper

        if turned:
            flipped = self._stored(path, "weight", weight)
        elif id(weight) in self.shared:  # stored once, as the others need it
            flipped = self._name(f"{path}.flipped")
            stored = self._stored(path, "weight", weight)
            yield helper.make_node("Transpose", [stored], [flipped], name=self._name(f"{name}.flip"), perm=[1, 0])
        else:
            flipped = self._stored(path, "weight", weight.T)
        yield helper.make_node("MatMul", [x, flipped], [y], name=name)

    def _update(self, site: Site) -> None:
        """Tensors of a module that stays, where they are no longer the file's."""
        module, dense = (m.get_submodule(site.module) for m in (self.model, self.dense))
        ours, theirs = module.state_dict(), dense.state_dict()
        if isinstance(module, nn.RNNBase):
            for number, value in _packed(module).items():
                self._put(site, f"{number}", (site.output, number, False), value)
            return
        for name, where in site.values.items():
            if not torch.equal(ours[name], theirs[name]):
                self._put(site, name, where, ours[name])

    def _put(self, site: Site, name: str, where: tuple[str, int, bool], value: Tensor) -> None:
        """Give a node another tensor: in the place of the old one where nothing else uses that, else beside it."""
        output, number, transposed = where
        node = self.nodes[output]
        old = node.input[number]
        value = value.T if transposed else value
        if old in self.stored and value.numel() == _elements(self.stored[old]):
            value = value.reshape(tuple(self.stored[old].dims))
            if self.uses[old] == 1 or self._is_tied(site, name, old):
                self._store(old, value)
                return
        node.input[number] = self._stored(site.module, name, value)

    def _is_tied(self, site: Site, name: str, old: str) -> bool:
        """Whether all that reads a stored tensor reads the parameter that this module has, so that it stays one."""
        buffer = self.dense.program.buffers.get(old)
        own = self.dense.get_submodule(site.module)._parameters.get(name)
        return buffer is not None and own is not None and self.dense.constants._parameters.get(buffer) is own

    def _stored(self, path: str, name: str, value: Tensor) -> str:
        """The name of an initializer that holds this tensor of a module; the module may be at several places."""
        path = self.homes.setdefault(id(value), path) if id(value) in self.shared else path
        if (path, name) not in self.written:
            self.written[path, name] = self._name(f"{path}.{name}")
            self._store(self.written[path, name], value)
        return self.written[path, name]

    def _store(self, name: str, value: Tensor) -> None:
        from onnx import TensorProto, helper, numpy_helper

        value = value.detach().cpu().contiguous()
        if value.dtype is torch.bfloat16:
            raw = value.view(torch.uint8).numpy().tobytes()
            tensor = helper.make_tensor(name, TensorProto.BFLOAT16, tuple(value.shape), raw, raw=True)
        else:
            tensor = numpy_helper.from_array(value.numpy(), name)
        if name in self.stored:
            self.stored[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self.stored[name] = self.graph.initializer[-1]

    def _name(self, base: str) -> str:
        """A name that nothing in the graph has."""
        name, number = base, 1
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name


def _key(node: Any) -> str:
    """What a node is known by: its first output."""
    return next(filter(None, node.output), "")


def _read_by(node: Any) -> Iterator[str]:
    """All that a node reads, and every name in the graphs inside it, some of which are read from outside."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from (output.name for output in attribute.g.output)
            for inner in attribute.g.node:
                yield from _read_by(inner)


def _copied(message: Any) -> Any:
    """A copy of a message that does not go with the graph it was in."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _elements(tensor: Any) -> int:
    total = 1
    for n in tensor.dims:
        total *= n
    return total


def _packed(module: nn.RNNBase) -> dict[int, Tensor]:
    """{number of the input: the weights of a recurrent module as ONNX stacks them}."""
    kind = type(module).__name__
    back = tuple(sorted(range(len(GATES[kind])), key=GATES[kind].__getitem__))
    state = module.state_dict()
    ways = ("", "_reverse") if module.bidirectional else ("",)

    def stacked(name: str) -> Tensor:
        return torch.stack([gates(kind, state[f"{name}_l0{way}"], back) for way in ways])

    tensors = {1: stacked("weight_ih"), 2: stacked("weight_hh")}
    if module.bias:
        tensors[3] = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1)
    return tensors
