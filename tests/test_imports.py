"""Who may import whom, package by package, read from the syntax trees; and what the core never does."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks.imports import CORE, ORDER, cycle, edges, imported, imports, package, trees, upward

ROOT = Path(__file__).resolve().parents[1]
MODULES = trees()

SUPERSEDED = {"onnx_surgery"}  # paths that people were told of; each warns
ONE_FILE_EACH = ("methods", "selection", "readers", "sources", "exports", "commands")
HANDED_OUT = {"measure._measure_on_device", "exports._litert"}  # runs elsewhere, without anything of ours
OPTIONAL = {
    "dask",
    "huggingface_hub",
    "lowrank_hf",
    "PIL",
    "joblib",
    "mlflow",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "pyarrow",
    "soundfile",
    "tensorly",
    "transformers",
    "executorch",
    "torchao",
}  # imported where used
TERMINAL = "commands"  # run by a person in a terminal
FOREIGN = {"streamlit", "plotly", "matplotlib", "altair", "sklearn", "pages", "app", "tests", "benchmarks"}


def test_every_package_has_its_place():
    packages = {package(name) for name in MODULES} - {"", "__main__", *SUPERSEDED}
    assert packages == set(ORDER)


def test_imports_point_one_way():
    assert upward(MODULES) == []


def test_no_module_imports_itself_by_way_of_others():
    assert cycle(MODULES) == []


def test_the_reader_of_imports_sees_what_it_should():
    """An upward import and a ring, planted."""
    planted = {
        "errors": ast.parse("from lowrank_core.layers import spec"),
        "layers": ast.parse(""),
        "layers.spec": ast.parse("def f():\n    import lowrank_core.errors"),
    }
    assert sorted(upward(planted)) == [("errors", "layers"), ("errors", "layers.spec")]
    assert set(cycle(planted)) == {"errors", "layers.spec"}
    assert edges(planted) == {"errors": {"layers"}, "layers": {"errors"}}


@pytest.mark.parametrize("name", ONE_FILE_EACH)
def test_a_variant_imports_no_sibling_but_what_starts_with_an_underscore(name):
    for module, targets in imports(MODULES).items():
        if package(module) == name and module != name:
            siblings = {target for target in targets if re.fullmatch(rf"{name}\.[^_]\w*", target)}
            assert not siblings, f"{module} imports {siblings}"


def test_the_core_imports_no_screen():
    for module, tree in MODULES.items():
        assert not {full.partition(".")[0] for full, _ in imported(tree)} & FOREIGN, module


def test_the_core_imports_by_full_names_from_where_things_are_defined():
    for module, tree in MODULES.items():
        for full, line in imported(tree):
            assert not full.startswith("."), f"{module}, line {line}: relative import"
            assert full != "lowrank_core" or module == "__main__", f"{module}, line {line}: imports the public names"


def test_imports_stand_at_the_top():
    for module, tree in MODULES.items():
        if module == "__main__" or module in HANDED_OUT:  # it first sees to Ctrl-C
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                late = {full.partition(".")[0] for full, _ in imported(function)}
                assert late <= OPTIONAL, f"{module}, line {function.lineno}: {late - OPTIONAL} imported inside"


def test_the_core_reads_no_environment_and_prints_nothing():
    for module, tree in MODULES.items():
        if module in HANDED_OUT:
            continue
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
        used |= {full for full, _ in imported(tree)}
        assert not used & {"os.environ", "os.environb", "os.getenv"}, module
        if package(module) != TERMINAL:
            assert not used & {"print", "sys.stdout", "sys.stderr"}, module


def test_no_module_is_called_utils():
    assert not [name for name in MODULES if name.rpartition(".")[2] in {"utils", "util", "helpers", "common", "misc"}]


def test_no_package_bears_the_name_of_a_public_function():
    public = (CORE / "__init__.py").read_text()
    named = set(re.findall(r'^    "(\w+)",$', public, re.MULTILINE))
    assert len(named) > 15
    assert not named & {package(name) for name in MODULES}


DOOR = "store.files"
"""The one module that opens files for writing, names temporary ones and moves them."""

INT8 = {"quant_pre_process", "quantization.quantize_static"}
LIBRARIES = {"torch.save", "torch.export.save", "onnx.save", "save_file", "safetensors.torch.save_file", *INT8}
"""What writes by a path itself; it is given one that the door handed out."""

BY_LIBRARY = {
    "__main__": {"os.open"},  # of the null device
    "compression.checkpoint": {"save_file"},  # to, of `whole_or_nothing` in exports.safetensors
    "exports._reload": {"torch.save"},  # into `writing`
    "exports._adapter": {"save_file"},
    "exports.bundle": {"zipfile.ZipFile"},
    "exports.hf": {"save_file"},
    "exports.onnx": {"onnx.save", *INT8},
    "exports.pt2": {"torch.export.save"},  # into `writing`
    "exports.tflite": {"torch.export.save", "torch.save"},  # into `writing`
    "pages/ui/node_data_form.py": {"zipfile.ZipFile"},  # into memory
    "store.lock": {"os.open"},  # of a file that holds nothing
    "streaming.folder": {"save_file"},  # to, of `whole_or_nothing`
    "streaming.work": {"save_file"},
    "training.finetune": {"torch.save"},  # into memory
}
WRITES = {"write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "rename", "renames"}
MOVES = {f"os.{name}" for name in ("replace", "rename", "renames", "link", "symlink", "open", "mkfifo", "mknod")}
MOVES |= {f"shutil.{name}" for name in ("move", "copy", "copy2", "copyfile", "copytree", "make_archive")}


def writes(tree: ast.AST) -> set[str]:
    """What a module calls that writes files, by name; of `open` and ZipFile with a mode that is not for reading."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        leaf = name.rpartition(".")[2]
        if leaf in ("open", "ZipFile") and name != "os.open":
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            texts = [arg.value for arg in given if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts):
                found.add(name)
        elif name in MOVES or name in LIBRARIES or name.startswith("tempfile.") or ("." in name and leaf in WRITES):
            found.add(name)
    return found


def test_every_file_is_written_through_one_door():
    pages = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in (ROOT / "pages").rglob("*.py")}
    for module, tree in {**MODULES, **pages, "app.py": ast.parse((ROOT / "app.py").read_text())}.items():
        if module != DOOR and module not in HANDED_OUT:
            assert writes(tree) <= BY_LIBRARY.get(module, set()), module
            assert "tempfile" not in {full.partition(".")[0] for full, _ in imported(tree)}, module


def test_the_reader_of_writes_sees_what_it_should():
    planted = """
open(path, "w"); path.open("ab"); open(path, mode="x"); path.open("r+"); path.write_text(""); path.write_bytes(b"")
os.replace(a, b); shutil.copy(a, b); tempfile.mkstemp(); torch.save(a, b); save_file(a, b); zipfile.ZipFile(path, "w")
open(path); path.open("rb"); ZipFile(path); Image.open(path);
Workspace.open("model"); text.replace("a", "b"); path.read_text()
"""
    assert writes(ast.parse(planted)) == {
        *("open", "path.open", "path.write_text", "path.write_bytes", "os.replace", "shutil.copy", "tempfile.mkstemp"),
        *("torch.save", "save_file", "zipfile.ZipFile"),
    }
