"""Who imports whom in lowrank_core, read from the syntax trees: packages, edges, upward edges, cycles.

python -m benchmarks.imports                             # prints them
python -m benchmarks.imports --write                     # also into docs/architecture.md, with a drawing
python -m benchmarks.imports --core FOLDER --write       # of the code as it was: the part "before"
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from benchmarks.arcs import drawing
from benchmarks.page import ROOT, between
from lowrank_core.store.files import write_whole

CORE = ROOT / "lowrank_core"
PAGE = ROOT / "docs" / "architecture.md"

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
    "samples",
    "readers",
    "sources",
    "workspace",
    "measure",
    "exports",
    "training",
    "predict",
    "selection",
    "streaming",
    "one_call",
    "reports",
    "commands",
)
"""Packages (and the modules that stand alone), bottom to top: each imports from those above it in this list only."""

OUTSIDE = ("", "__main__", "onnx_surgery")
"""The public names, the command and what is superseded stand over all: no other module imports them."""


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


def outside(modules: dict[str, ast.Module]) -> set[str]:
    """The modules that stand over all; in an older state one of them may have been imported like any other."""
    return set(OUTSIDE) - set().union(*imports(modules).values())


def edges(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Of each package, the packages that it imports."""
    found: dict[str, set[str]] = {}
    over = outside(modules)
    for name, targets in imports(modules).items():
        if name not in over:
            found.setdefault(package(name), set()).update({package(target) for target in targets} - {package(name)})
    return found


def upward(modules: dict[str, ast.Module], order: Sequence[str] = ORDER) -> list[tuple[str, str]]:
    """Pairs of modules of which the first imports the second, though that stands above it."""
    rank, over = {name: place for place, name in enumerate(order)}, outside(modules)
    return [
        (name, target)
        for name, targets in imports(modules).items()
        for target in targets
        if name not in over and rank[package(target)] > rank[package(name)]
    ]


def cycle(modules: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other in a ring; [] where there is none."""
    try:
        TopologicalSorter(imports(modules)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def order_of(modules: dict[str, ast.Module]) -> tuple[str, ...]:
    """Packages, bottom to top: as they are meant to stand, or in an older state where their `__init__` can stand."""
    if set(edges(modules)) <= set(ORDER):
        return ORDER
    needed = {name: sorted(targets) for name, targets in sorted(imports(modules).items())}
    built, over = TopologicalSorter(needed).static_order(), outside(modules)
    return tuple(name for name in built if package(name) == name and name not in over)


def meaning(modules: dict[str, ast.Module], name: str) -> str:
    """The first line of a package's docstring."""
    return (ast.get_docstring(modules[name]) or "").partition("\n")[0].rstrip(".")


def package_table(core: Path = CORE) -> str:
    """Packages from bottom to top, what each is for, and from which it imports, as Markdown."""
    modules = trees(core)
    below = edges(modules)
    order = order_of(modules)
    rows = []
    for place, name in enumerate(order, start=1):
        imported_names = ", ".join(sorted(below[name], key=order.index)) or "none"
        rows.append(f"| {place} | `{name}` | {meaning(modules, name)} | {imported_names} |")
    return "| | package | what it is for | imports |\n|---|---|---|---|\n" + "\n".join(rows)


def figures(core: Path = CORE) -> str:
    """How many packages, edges, upward edges and cycles there are, in one line."""
    modules = trees(core)
    below, up, ring = edges(modules), upward(modules, order_of(modules)), cycle(modules)
    rooms = sorted({(package(name), package(target)) for name, target in up})
    return (
        f"{len(modules)} modules, {len(below)} names at the top of `lowrank_core`, "
        f"{sum(map(len, below.values()))} edges between them, {len(rooms)} of them upward"
        f"{''.join(f' ({name} to {target})' for name, target in rooms)}; "
        f"cycles of modules: {1 if ring else 0}{f' ({chr(32).join(ring)})' if ring else ''}"
    )


def graph(core: Path = CORE) -> str:
    """The packages and who imports whom, as SVG."""
    modules = trees(core)
    return drawing(order_of(modules), edges(modules))


def picture(core: Path = CORE) -> Path:
    """Where the drawing lies."""
    return PAGE.with_name("imports.svg" if core == CORE else "imports-before.svg")


def section(core: Path = CORE) -> str:
    """What stands in the page on the architecture."""
    drawn = f"![Who imports whom]({picture(core).name})\n\n{figures(core)}."
    return f"{package_table(core)}\n\n{drawn}" if core == CORE else drawn


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=Path, default=CORE, help="another state of lowrank_core")
    parser.add_argument("--write", action="store_true", help="also into docs/architecture.md")
    options = parser.parse_args()
    core = options.core.resolve()
    print(f"{package_table(core)}\n\n{figures(core)}")
    if options.write:
        name = "imports" if core == CORE else "imports before"
        write_whole(picture(core), graph(core).encode())
        write_whole(PAGE, between(PAGE, name, section(core)).encode())


if __name__ == "__main__":
    main()
