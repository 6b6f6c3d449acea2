"""Steps as one C99 header: weights, loops, and an arena in which arrays share memory over their lifetimes."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf
from typing import Any

import torch
from torch import Tensor

from lowrank_core.graphs.c_kernels import KERNELS, NEEDS
from lowrank_core.graphs.steps import MOST_DIMS, Port, Step, Steps

IN_PLACE = {"unary", "clamp", "table", "softmax", "log_softmax", "norm", "binary", "add_q", "mul_q"}
"""Steps that may write over their first operand, and those of two over either."""

MARK = "rank-explorer network"
"""What the first line of a header begins with."""

_ABOUT = "rank-explorer:"
_C_TYPES = {"f": "float", "q": "int8_t", "i": "int32_t"}
_BYTES = {"f": 4, "q": 1, "i": 4}
_PER_LINE = {"f": 8, "q": 24, "i": 12}
_RESERVED = {"auto", "case", "char", "const", "default", "do", "double", "enum", "extern", "float", "goto", "inline",
             "int", "long", "register", "restrict", "short", "signed", "sizeof", "static", "struct", "switch",
             "typedef", "union", "unsigned", "void", "volatile"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """The text of a header, its prefix, and the bytes that it takes: of constants, and of its arena."""

    text: str
    prefix: str
    constant_bytes: int
    arena_bytes: int


def prefix_of(name: str) -> str:
    """The name of a network as C can have it.

    >>> prefix_of("digits-cnn"), prefix_of("3D (int)"), prefix_of("int")
    ('digits_cnn', 'net_3d_int', 'net_int')
    """
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40].strip("_") or "net"
    return word if word[0].isalpha() and word not in _RESERVED and not keyword.iskeyword(word) else f"net_{word}"


def header(steps: Steps, name: str, about: Mapping[str, Any], words: Sequence[str]) -> Header:
    """The header of a network. about: what is kept in it as JSON, its plan among it; words: lines of its comment."""
    prefix = prefix_of(name)
    return _Writer(with_own_outputs(steps), prefix, name, about, tuple(words)).header()


def about_in(text: str) -> dict[str, Any]:
    """What a header says of itself; raises ValueError where it says nothing."""
    for line in text.splitlines():
        if line.startswith(f"   {_ABOUT}"):
            found: dict[str, Any] = json.loads(line.removeprefix(f"   {_ABOUT}"))
            return found
    raise ValueError("no header of this product")


def kinds_of(steps: Steps) -> dict[str, str]:
    """What each value and constant is made of: "f" float, "q" int8, "i" int32."""
    types = {torch.float32: "f", torch.int8: "q", torch.int32: "i", torch.int64: "i"}
    found = {name: types[value.dtype] for name, value in steps.constants.items()}
    found |= {port.value: "i" if port.integer else "f" for port in steps.inputs}
    for step in steps.steps:
        if step.op in ("copy", "gather", "join", "rows"):
            found[step.output] = found[step.inputs[0]]
        else:
            found[step.output] = "q" if step.op.endswith("_q") or step.op in ("table", "quantise") else "f"
    return found


def with_own_outputs(steps: Steps) -> Steps:
    """Each output a value of its own, which is neither an input nor a constant nor a part of another value."""
    made, outputs, taken = list(steps.steps), list[Port](), set[str]()
    by_step = {step.output: step for step in steps.steps}
    sizes = dict(steps.sizes)
    for port in steps.outputs:
        step = by_step.get(port.value)
        if step is None or _is_part(step) or port.value in taken:
            size = sizes.get(port.value, len(steps.constants.get(port.value, ())))
            name = f"out{len(outputs)}"
            pad = (1,) * (MOST_DIMS - 1), (0,) * (MOST_DIMS - 1)
            args = {"dims": (*pad[0], size), "strides": (*pad[1], 1), "offset": 0, "n": size, "apart": True}
            made.append(Step("copy", (port.value,), name, args))
            sizes[name] = size
            port = replace(port, value=name)
        taken.add(port.value)
        outputs.append(port)
    return replace(steps, steps=tuple(made), outputs=tuple(outputs), sizes=sizes)


def _is_part(step: Step) -> bool:
    """Whether a step gives numbers that lie one after the other in another value: no loop is needed for that."""
    if step.op != "copy" or step.args.get("apart"):
        return False
    *others, size = step.args["dims"]
    return all(each == 1 for each in others) and (size == 1 or step.args["strides"][-1] == 1)


# ---- memory ---------------------------------------------------------------------------------------------------------


@dataclass
class _Buffer:
    """Memory of one or more values. where: "" in the arena, else the name of what the caller gives."""

    bytes: int
    first: int
    last: int
    where: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each value lies: the buffer's own name or "", and bytes from its beginning."""

    places: Mapping[str, tuple[str, int]]
    arena_bytes: int


def memory_plan(steps: Steps) -> Plan:
    """Values into an arena: parts of values lie in them, results over an operand that nobody reads again.

    Then the largest buffers first, each at the lowest place that is free as long as it lives.
    """
    kinds, buffers, places = kinds_of(steps), list[_Buffer](), dict[str, tuple[int, int]]()
    last: dict[str, int] = {}
    for at, step in enumerate(steps.steps):
        last |= dict.fromkeys(step.inputs, at)
    end = len(steps.steps)
    last |= {port.value: end for port in steps.outputs}
    outputs = {port.value: f"out{number}" for number, port in enumerate(steps.outputs)}
    for number, port in enumerate(steps.inputs):
        places[port.value] = len(buffers), 0
        buffers.append(_Buffer(0, -1, end, f"in{number}"))
    root_last = _root_lasts(steps, last)
    for at, step in enumerate(steps.steps):
        size = _BYTES[kinds[step.output]] * steps.sizes[step.output]
        if _is_part(step) and step.inputs[0] in places:
            number, offset = places[step.inputs[0]]
            places[step.output] = number, offset + _BYTES[kinds[step.output]] * step.args["offset"]
        else:
            over = _over(step, at, size, kinds, places, buffers, root_last) if step.output not in outputs else None
            if over is None:
                over = len(buffers), 0
                buffers.append(_Buffer(size, at, at, outputs.get(step.output, "")))
            places[step.output] = over
        number = places[step.output][0]
        for name in (step.output, *step.inputs):
            if name in places:
                used = buffers[places[name][0]]
                used.last = max(used.last, at)
        buffers[number].last = max(buffers[number].last, last.get(step.output, at))
    arena = 0
    laid: list[_Buffer] = []
    for buffer in sorted((b for b in buffers if not b.where), key=lambda b: (-b.bytes, b.first)):
        others = sorted((b for b in laid if b.first <= buffer.last and buffer.first <= b.last), key=lambda b: b.offset)
        at = 0
        for other in others:
            if at + buffer.bytes <= other.offset:
                break
            at = max(at, _up(other.offset + other.bytes))
        buffer.offset = at
        laid.append(buffer)
        arena = max(arena, _up(at + buffer.bytes))
    return Plan({name: (buffers[n].where, buffers[n].offset + offset) for name, (n, offset) in places.items()}, arena)


def _root_lasts(steps: Steps, last: Mapping[str, int]) -> dict[str, int]:
    """When each value is read last, also as a part of it."""
    found = dict(last)
    for step in reversed(steps.steps):
        if _is_part(step):
            source = step.inputs[0]
            found[source] = max(found.get(source, 0), found.get(step.output, 0))
    return found


def _over(
    step: Step,
    at: int,
    size: int,
    kinds: Mapping[str, str],
    places: Mapping[str, tuple[int, int]],
    buffers: Sequence[_Buffer],
    last: Mapping[str, int],
) -> tuple[int, int] | None:
    """The operand that a step may write over: nobody reads its buffer later, and it is gone through in order."""
    if step.op not in IN_PLACE:
        return None
    operands = step.inputs[:2] if "dims" in step.args else step.inputs[:1]
    mine = [name for name in operands if name in places]
    for number, name in enumerate(operands):
        if name not in places:
            continue
        buffer, offset = places[name]
        if buffers[buffer].where or kinds[name] != kinds[step.output]:
            continue
        if any(last.get(other, -1) > at for other, (of, _) in places.items() if of == buffer):
            continue
        if "dims" in step.args and not _in_order(step.args["dims"], step.args["strides"][number]):
            continue
        if "n" in step.args and size != _BYTES[kinds[name]] * step.args["n"]:
            continue
        others = [places[other][1] for other in mine if other != name and places[other][0] == buffer]
        if all(abs(other - offset) >= size or other == offset for other in others):
            if any(other == offset for other in others) and len({_strides_of(step, n) for n in range(2)}) > 1:
                continue
            return buffer, offset
    return None


def _strides_of(step: Step, number: int) -> tuple[int, ...]:
    return tuple(step.args["strides"][number])


def _in_order(dims: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for size, stride in zip(reversed(dims), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _up(size: int) -> int:
    return -(-size // 4) * 4


# ---- text -----------------------------------------------------------------------------------------------------------


class _Writer:
    """The text of one header."""

    def __init__(self, steps: Steps, prefix: str, name: str, about: Mapping[str, Any], words: tuple[str, ...]) -> None:
        self._steps, self._prefix, self._name, self._about, self._words = steps, prefix, name, about, words
        self._kinds = kinds_of(steps)
        self._plan = memory_plan(steps)
        self._tables: dict[tuple[str, ...], str] = {}
        self._used = dict[str, str]()

    def header(self) -> Header:
        prefix, upper = self._prefix, self._prefix.upper()
        calls = [self._call(step) for step in self._steps.steps]
        data = [self._array(name, value) for name, value in self._steps.constants.items()]
        arguments = ", ".join(
            [
                *(f"const {'int32_t' if p.integer else 'float'} *in{n}" for n, p in enumerate(self._steps.inputs)),
                *(f"float *out{n}" for n, _ in enumerate(self._steps.outputs)),
            ]
        )
        sizes = [
            f"#define {upper}_{side}{n}_SIZE {_numbers(port)} /* {_comment(port.name)}: "
            f"{' x '.join(map(str, port.shape)) or '1'} */"
            for side, ports in (("IN", self._steps.inputs), ("OUT", self._steps.outputs))
            for n, port in enumerate(ports)
        ]
        kernels = self._kernels()
        arena = self._plan.arena_bytes
        memory = (
            f"static union {{ float f[{arena // 4}]; int32_t i[{arena // 4}]; int8_t q[{arena}]; }} {prefix}_arena;\n"
            if arena
            else ""
        )
        text = "\n".join(
            [
                self._comment(),
                f"#ifndef {upper}_H",
                f"#define {upper}_H",
                "",
                "#include <stdint.h>",
                "",
                "#ifdef __cplusplus",
                'extern "C" {',
                "#endif",
                "",
                *sizes,
                "",
                f"void {prefix}_run({arguments});",
                "",
                "#ifdef __cplusplus",
                "}",
                "#endif",
                "",
                f"#endif /* {upper}_H */",
                "",
                f"#if defined({upper}_IMPLEMENTATION) && !defined({upper}_DONE)",
                f"#define {upper}_DONE",
                "",
                "#include <math.h>",
                "",
                *data,
                *kernels,
                *(self._table(key, name) for key, name in self._tables.items()),
                "",
                memory,
                f"void {prefix}_run({arguments}) {{",
                *(f"    {line}" for call in calls for line in call),
                "}",
                "",
                f"#endif /* {upper}_IMPLEMENTATION */",
                "",
            ]
        )
        constant = sum(_BYTES[self._kinds[name]] * len(value) for name, value in self._steps.constants.items())
        return Header(text, prefix, constant, arena)

    def _comment(self) -> str:
        upper, prefix = self._prefix.upper(), self._prefix
        ins = [
            f"{'int32_t' if p.integer else 'float'} in{n}[{upper}_IN{n}_SIZE]" for n, p in enumerate(self._steps.inputs)
        ]
        outs = [f"float out{n}[{upper}_OUT{n}_SIZE]" for n, _ in enumerate(self._steps.outputs)]
        names = [
            *(f"in{n}" for n, _ in enumerate(self._steps.inputs)),
            *(f"out{n}" for n, _ in enumerate(self._steps.outputs)),
        ]
        example = [
            f"    #define {upper}_IMPLEMENTATION  (in one file; all others include the header alone)",
            f'    #include "{prefix}.h"',
            "",
            *(f"    static {each};" for each in (*ins, *outs)),
            "",
            "    int main(void) {",
            "        for (;;) {  (fill the inputs, row by row)",
            f"            {prefix}_run({', '.join(names)});",
            "        }",
            "    }",
        ]
        about = json.dumps(self._about, sort_keys=True).replace("/", "\\u002f").replace("?", "\\u003f")
        lines = [
            f"/* {MARK}: {_comment(self._name)}",
            *(f"   {_comment(line)}" if line else "" for line in self._words),
            "",
            *(f"   {line}" if line else "" for line in example),
            "",
            "   No malloc, no input or output of its own; one call at a time, since the arena is static. Inputs and",
            "   outputs belong to the caller and must not overlap.",
            "",
            f"   {_ABOUT} {about}",
            "*/",
        ]
        return "\n".join(lines)

    def _kernels(self) -> list[str]:
        texts = []
        needed = set(self._used)
        for name in self._used:
            needed |= set(NEEDS.get(name.partition(":")[0], ()))
        for name, text in KERNELS.items():
            for each in sorted(key for key in needed if key.partition(":")[0] == name):
                kind = _C_TYPES.get(each.partition(":")[2], "")
                texts.append(text.replace("NUMBER", kind).replace("@", f"{self._prefix}_"))
        return texts

    def _kernel(self, name: str, kind: str = "") -> str:
        self._used[f"{name}:{kind}" if kind else name] = ""
        return f"{self._prefix}_{name}{f'_{_C_TYPES[kind]}' if kind else ''}"

    def _array(self, name: str, value: Tensor) -> str:
        kind = self._kinds[name]
        numbers = [_float(v) for v in value.tolist()] if kind == "f" else [str(int(v)) for v in value.tolist()]
        rows = [", ".join(numbers[at : at + _PER_LINE[kind]]) for at in range(0, len(numbers), _PER_LINE[kind])]
        body = ",\n    ".join(rows)
        return f"static const {_C_TYPES[kind]} {self._prefix}_{name}[{len(numbers)}] = {{\n    {body}\n}};"

    def _table(self, key: tuple[str, ...], name: str) -> str:
        kind, *row = key
        return f"static const {kind} {name}{'[]' if kind == 'int' else ''} = {{{', '.join(row)}}};"

    def _numbers(self, kind: str, values: Iterable[int]) -> str:
        """A table of plain numbers, once for all that take the same."""
        key = (kind, *map(str, values))
        name = self._tables.setdefault(key, f"{self._prefix}_d{len(self._tables)}")
        return f"&{name}" if kind != "int" else name

    def _window(self, step: Step) -> str:
        a = step.args
        out, groups = a.get("out", a["channels"]), a.get("groups", 1)
        values = (
            a["channels"],
            a["height"],
            a["width"],
            out,
            a["rows"],
            a["columns"],
            *a["kernel"],
            *a["stride"],
            *a["padding"],
            *a["dilation"],
            groups,
        )
        return self._numbers(f"{self._prefix}_window", values)

    def _at(self, name: str) -> str:
        if name in self._steps.constants:
            return f"{self._prefix}_{name}"
        where, offset = self._plan.places[name]
        kind = self._kinds[name]
        base = where or f"{self._prefix}_arena.{kind}"
        return f"{base} + {offset // _BYTES[kind]}" if offset else base

    def _call(self, step: Step) -> list[str]:
        """The lines that carry out a step."""
        a, kind = step.args, self._kinds[step.output]
        if _is_part(step) and step.inputs[0] in self._plan.places:
            return []
        given, to = [self._at(name) for name in step.inputs], self._at(step.output)
        limits = [_float(step.low), _float(step.high)]
        op, args = step.op, list[Any]()
        if op == "copy":
            dims = (*a["dims"], *a["strides"], *_contiguous(a["dims"]), a["offset"], 0)
            return [f"{self._kernel('copy', kind)}({self._numbers('int', dims)}, {given[0]}, {to});"]
        if op == "join":
            lines = []
            if a["fill"] is not None:
                value = _float(a["fill"]) if kind == "f" else str(int(a["fill"]))
                lines.append(f"{self._kernel('fill', kind)}({to}, {a['n']}, {value});")
            for source, (dims, strides, offset) in zip(given, a["pieces"], strict=True):
                table = self._numbers("int", (*dims, *_contiguous(dims), *strides, 0, offset))
                lines.append(f"{self._kernel('copy', kind)}({table}, {source}, {to});")
            return lines
        name = op
        before: list[Any] = []
        if op in ("conv", "conv_q", "pool", "pool_q"):
            before = [self._window(step)]
        elif "dims" in a:
            before = [self._numbers("int", (*a["dims"], *a["strides"][0], *a["strides"][1]))]
        if op in ("gather", "rows"):
            name = self._kernel(op, kind)
            args = [a["n"]] if op == "gather" else [a["n"] // a["width"], a["width"], a["rows"]]
            return [f"{name}({', '.join(map(str, (*given, to, *args)))});"]
        if op == "pool":
            name, args = f"pool_{a['of']}", [int(a["counted"])] if a["of"] == "mean" else []
        elif op == "pool_q":
            name, args = f"pool_{a['of']}_q", [a[w] for w in _RESCALE] if a["of"] == "mean" else []
        elif op in ("reduce", "reduce_q"):
            name = a["of"] + op.removeprefix("reduce")
            if a["of"] == "sum" and op == "reduce_q":
                name = "mean_q"
            args = [a["outer"], a["size"], a["inner"]]
            args += [a[w] for w in _RESCALE] if op == "reduce_q" and a["of"] != "max" else []
        elif op in ("softmax", "log_softmax"):
            name, args = "softmax", [a["outer"], a["size"], a["inner"], int(op == "log_softmax")]
        elif op == "conv":
            args = limits
        elif op == "linear":
            args = [a["rows"], a["columns"], a["out"], *limits]
        elif op in ("conv_q", "linear_q"):
            sizes = [] if op == "conv_q" else [a["rows"], a["columns"], a["out"]]
            args = [*sizes, *given[3:], a["zero_x"], a["zero_y"], int(step.low), int(step.high)]
            given = given[:3]
        elif op == "binary":
            name, args = a["of"], limits
        elif op in ("add_q", "mul_q"):
            words = ("by_a", "by_b", "shift") if op == "add_q" else ("multiplier", "shift")
            args = [a[w] for w in (*words, "zero_a", "zero_b", "zero_y")] + [int(step.low), int(step.high)]
        elif op == "matmul":
            args = [a["batch"], a["rows"], a["inner"], a["columns"]]
        elif op == "norm":
            args = [a["outer"], a["inner"], _float(a["eps"])]
        elif op == "unary":
            name, args = a["of"], [a["n"], *([_float(a["slope"])] if "slope" in a else [])]
        elif op == "clamp":
            args = [a["n"], *limits]
        elif op == "table":
            args = [a["n"]]
        else:  # quantise, dequantise
            args = [a["n"], _float(a["by"]), a["zero"]]
        return [f"{self._kernel(name)}({', '.join(map(str, (*before, *given, to, *args)))});"]


_RESCALE = ("multiplier", "shift", "zero_x", "zero_y")


def _contiguous(dims: Sequence[int]) -> tuple[int, ...]:
    strides, step = list[int](), 1
    for size in reversed(dims):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _numbers(port: Port) -> int:
    size = 1
    for each in port.shape:
        size *= each
    return size


def _float(value: float) -> str:
    """A float32 that is read back as it is."""
    if isinf(value):
        return "INFINITY" if value == inf else "-INFINITY"
    text = f"{value:.9g}"
    return f"{text}f" if ("." in text or "e" in text) else f"{text}.0f"


def _comment(text: str) -> str:
    """A text that can stand in a comment of C."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
