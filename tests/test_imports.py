"""Who may import whom, read from the syntax trees; and what the core never does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "lowrank_core"
FILES = {path: ast.parse(path.read_text(), str(path)) for path in sorted(CORE.rglob("*.py"))}

# A module imports from the rows above its own, never from its own row or below. "methods.*" is each file of a package,
# "methods" the package's __init__. A module that is not here has no place yet: give it one.
LEVELS = (
    "doing errors files interrupt lines room switches template verdict linears chain computed",
    "stop",
    "layers recurrent attention data metrics jobs steps parallel torch_file builtin builtin.samples builtin.stored",
    "linalg gram knapsack plan opened evaluate onnx_program onnx_file onnx_ops memory onnx_chain builtin.*",
    "aware cp evbmf tucker npz_data onnx_graph weights",
    "methods spectra cache latency predict sources",
    "methods.*",
    "discover",
    "factors cost model_file inventory",
    "apply calibration sources.*",
    "storage",
    "correct checkpoint prefix",
    "candidate start training",
    "workspace",
    "sensitivity onnx_surgery staircase ledger",
    "context",
    "selection finetune",
    "drops",
    "selection.* reload measurement comparison survey sweep",
    "exports check builtin.learn builtin.splits",
    "exports.* terminal",
    "commands",
    "commands.*",
    "__main__",
)
ONE_FILE_EACH = {"methods", "selection", "sources", "exports", "commands"}
OPTIONAL = {"dask", "onnx", "onnxruntime", "onnxscript", "sklearn", "transformers"}  # heavy, imported where used
COMMANDS = {"terminal", "commands", "builtin.train", "builtin.learn"}  # run by a person in a terminal
FOREIGN = {"streamlit", "plotly", "matplotlib", "altair", "pages", "app", "tests", "benchmarks"}

LEVEL = {name: number for number, row in enumerate(LEVELS) for name in row.split()}
every_file = pytest.mark.parametrize(("path", "tree"), FILES.items(), ids=[str(p.relative_to(CORE)) for p in FILES])


def module_name(path: Path) -> str:
    """'methods.svd' for lowrank_core/methods/svd.py, 'methods' for its __init__, '' for the core's own."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted name that is imported, anywhere in the file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield str(node.module), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def level(module: str) -> int:
    package, _, leaf = module.rpartition(".")
    found = LEVEL.get(module, LEVEL.get(f"{package}.*") if leaf else None)
    assert found is not None, f"lowrank_core.{module} has no row in LEVELS; give it one"
    return found


@every_file
def test_imports_point_one_way(path, tree):
    name = module_name(path)
    if not name:
        return
    for full, line in imported(tree):
        target = full.removeprefix("lowrank_core").removeprefix(".")
        if not full.startswith("lowrank_core") or target not in MODULES:
            continue
        assert target, f"line {line}: {name} imports the public names; import the module that defines them"
        assert level(target) < level(name), f"line {line}: {name} must not import {target}"


@every_file
def test_variants_never_import_a_sibling(path, tree):
    package, _, leaf = module_name(path).partition(".")
    if package in ONE_FILE_EACH and leaf:
        for full, line in imported(tree):
            target = full.removeprefix("lowrank_core.")
            assert not target.startswith(f"{package}.") or target not in MODULES, f"line {line}: {target}"


@every_file
def test_the_core_imports_no_screen(path, tree):
    assert not {full.partition(".")[0] for full, _ in imported(tree)} & FOREIGN


@every_file
def test_imports_stand_at_the_top(path, tree):
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late = {full.partition(".")[0] for full, _ in imported(function)}
            assert late <= OPTIONAL, f"line {function.lineno}: {late - OPTIONAL} imported inside a function"


@every_file
def test_the_core_reads_no_environment_and_prints_nothing(path, tree):
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
    used |= {full for full, _ in imported(tree)}
    assert not used & {"os.environ", "os.environb", "os.getenv"}
    if module_name(path) not in COMMANDS:
        assert not used & {"print", "sys.stdout", "sys.stderr"}


def test_the_public_names_are_imports_and_nothing_else():
    tree = FILES[CORE / "__init__.py"]
    assert not [node for node in tree.body if not isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr)]


def test_no_module_is_called_utils():
    assert not [name for name in MODULES if name.rpartition(".")[2] in {"utils", "util", "helpers", "common", "misc"}]
