"""Who imports whom in lowrank_core, read from the syntax trees: packages, edges, upward edges, cycles.

python -m benchmarks.imports [--write]
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

CORE = Path(__file__).resolve().parents[1] / "lowrank_core"

ORDER = (
    "errors",
    "version",
    "extras",
    "registry",
    "figures",
    "running",
    "store",
    "layers",
    "algebra",
    "methods",
    "networks",
    "plans",
    "scoring",
    "compression",
    "graphs",
    "builtin",
    "sources",
    "workspace",
    "measure",
    "exports",
    "training",
    "predict",
    "selection",
    "one_call",
    "commands",
)
"""Packages (and the modules that stand alone), bottom to top: each imports from those above it in this list only."""

OUTSIDE = ("", "__main__", "onnx_surgery")
"""The public names, the command and what is superseded stand over all."""


def module_name(path: Path, core: Path = CORE) -> str:
    """'methods.svd' for lowrank_core/methods/svd.py, 'methods' for its __init__, '' for the core's own."""
    parts = path.relative_to(core).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def trees(core: Path = CORE) -> dict[str, ast.Module]:
    """The syntax tree of every module."""
    return {module_name(path, core): ast.parse(path.read_text(), str(path)) for path in sorted(core.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted name that is imported, anywhere in the tree, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Of each module of the core, the modules of the core that it imports."""
    return {
        name: {
            target
            for full, _ in imported(tree)
            if full.startswith("lowrank_core.") and (target := full.removeprefix("lowrank_core.")) in modules
        }
        for name, tree in modules.items()
    }


def package(module: str) -> str:
    """'methods' of 'methods.svd'."""
    return module.partition(".")[0]


def edges(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Of each package, the packages that it imports."""
    found: dict[str, set[str]] = {}
    for name, targets in imports(modules).items():
        if name not in OUTSIDE:
            found.setdefault(package(name), set()).update({package(target) for target in targets} - {package(name)})
    return found


def upward(modules: dict[str, ast.Module]) -> list[tuple[str, str]]:
    """Pairs of modules of which the first imports the second, though that stands above it."""
    rank = {name: place for place, name in enumerate(ORDER)}
    return [
        (name, target)
        for name, targets in imports(modules).items()
        for target in targets
        if name not in OUTSIDE and rank[package(target)] > rank[package(name)]
    ]


def cycle(modules: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other in a ring; [] where there is none."""
    try:
        TopologicalSorter(imports(modules)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
