"""What benchmarks.wild does without the packages: networks that say what they are, rows kept, processes ended."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import pytest

from benchmarks import page, wild
from benchmarks.wild import HERE, NETWORKS, table
from benchmarks.wild_networks._packages import alone, ended_by, pinned

HEAD = "| network | score | of |\n|---|---|---|"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_says_what_it_is_and_where_it_comes_from(name):
    tree = ast.parse((HERE / f"{name}.py").read_text())
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assigned = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert ast.get_docstring(tree)
    assert "PACKAGES" in assigned | imported
    assert ({"FILE"} <= assigned and {"data"} <= defined) or {"build_model", "example_inputs", "eval_data"} <= defined


def test_packages_are_pinned_by_version_and_hash():
    assert len(pinned()) > 20
    for name, line in pinned().items():
        assert re.fullmatch(rf"{re.escape(name)}==[\d.]+ --hash=sha256:[0-9a-f]{{64}}", line), line


def test_a_run_of_some_renews_their_rows_and_keeps_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(wild, "PAGES", tmp_path)
    old = [["a", "1 %", "abc"], ["b", "2 %", "abc"], ["b", "3 %", "abc"]]
    assert table(HEAD, old, True).splitlines()[2:] == ["| a | 1 % | abc |", "| b | 2 % | abc |", "| b | 3 % | abc |"]
    other = "| network | bytes |\n|---|---|\n| b | 7 |"
    (tmp_path / "wild.md").write_text(f"# wild\n\n{table(HEAD, old, True)}\n\n{other}\n")
    new = table(HEAD, [["b", "", "def"], ["c", "5 %", "def"]], True)
    assert new.splitlines()[2:] == ["| a | 1 % | abc |", "| b |  | def |", "| c | 5 % | def |"]
    (tmp_path / "wild.md").write_text(f"# wild\n\n{new}\n\n{other}\n")
    assert table(HEAD, [["a", "4 %", "ghi"]], True).splitlines()[3] == "| b |  | def |"
    assert "abc" not in table(HEAD, [["b", "9 %", "ghi"]], False)


def test_options_that_choose_rows_make_no_part_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "PAGES", tmp_path)
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["wild.py", "--part", "files", "--only", "magika", "--folder", "/a/b", "--write"])
    page.run_benchmark(lambda: print("| a |\n|---|\n| 1 |"), apart=("--only", "--folder"))
    (heading,) = re.findall("^## .*$", (tmp_path / "wild.md").read_text(), re.MULTILINE)
    assert heading.endswith("python -m benchmarks.wild --part files`")
    assert "/a/b" not in (tmp_path / "wild.md").read_text()


def test_one_file_of_a_package_runs_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "shouts").mkdir()
    (tmp_path / "shouts" / "__init__.py").write_text("import what_is_not_there")
    (tmp_path / "shouts" / "loud.py").write_text(
        "import shouts\nfrom shouts.own import WORD\nTEXT = shouts.MARK + WORD"
    )
    (tmp_path / "shouts" / "own.py").write_text("WORD = 'hey'")
    monkeypatch.syspath_prepend(tmp_path)
    module = alone("shouts/loud.py", shouts={"MARK": "!", "__path__": [str(tmp_path / "shouts")]})
    assert module.TEXT == "!hey"
    assert "shouts" not in sys.modules


LIMITED = "from benchmarks.wild_networks._packages import limit_to\nlimit_to(1)\nwhile True: pass"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("print('well')", ""),
        ("raise ValueError('no weights')", "ValueError: no weights"),
        (LIMITED, "ended after 1 s of processor time"),
        ("import os\nos.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_what_ended_a_process_is_said(code, says):
    environment = os.environ | {"PYTHONPATH": str(Path(wild.__file__).parents[1])}
    assert ended_by([sys.executable, "-c", code], environment, 1) == says
