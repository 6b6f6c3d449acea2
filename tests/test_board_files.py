"""The board's files: one script that parses, passes its linter and has no dead ends; a style sheet without a slip."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest
import tinycss2
from playwright.sync_api import Page

from pages.ui import board
from pages.ui.board_values import FOLDER, SCRIPTS, script
from tests.board_script import NODE, needs_node

STYLES = (FOLDER / "board.css").read_text(encoding="utf-8")
OXLINT = Path(sysconfig.get_path("scripts")) / "oxlint"
METHOD = re.compile(r"^  (\w+)\(.*\) \{", re.MULTILINE)
CALLED_BY_JAVASCRIPT = {"constructor"}


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module as a browser gets it."""
    path = tmp_path_factory.mktemp("board") / "board.mjs"
    path.write_text(script(), encoding="utf-8")
    return path


def place(line: int) -> str:
    """File and line of a line of the joined script."""
    lengths = [(FOLDER / name).read_text(encoding="utf-8").count("\n") + 1 for name in SCRIPTS]
    starts = [0, *accumulate(lengths)]
    file = bisect_right(starts, line - 1) - 1
    return f"{SCRIPTS[file]}:{line - starts[file]}"


def test_every_file_is_joined_once() -> None:
    assert sorted(SCRIPTS) == sorted(path.name for path in FOLDER.glob("*.js"))


@needs_node
def test_the_script_parses(joined: Path) -> None:
    done = subprocess.run([str(NODE), "--check", joined], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_linter_finds_nothing(joined: Path) -> None:
    """Undefined and unused names, double declarations, and what is most likely a mistake; see oxlint.json."""
    command = [OXLINT, "--config", FOLDER / "oxlint.json", "--format", "json", "--threads", "1", joined]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    found = [f"{place(one['labels'][0]['span']['line'])} {one['message']}" for one in told["diagnostics"]]
    assert told["number_of_files"] == 1
    assert not found, "\n".join(found)


def test_the_linter_names_the_file_of_a_line() -> None:
    lines = script().splitlines()
    for name in SCRIPTS:
        first, *_ = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        assert place(lines.index(first) + 1) == f"{name}:1"
    assert place(len(lines)) == f"{SCRIPTS[-1]}:{len((FOLDER / SCRIPTS[-1]).read_text().splitlines())}"


def test_every_method_of_the_board_is_defined_once_and_called() -> None:
    """What no linter sees: the methods stand in several files, and a second one of a name would replace the first."""
    source = script()
    defined = Counter(METHOD.findall(source[source.index("class Board") :]))
    assert len(defined) > 50
    assert [name for name, times in defined.items() if times > 1] == []
    called = set(re.findall(r"\.(\w+)\(", source)) | CALLED_BY_JAVASCRIPT
    assert sorted(set(defined) - called) == []


def test_every_class_of_the_style_sheet_is_used() -> None:
    source = script() + Path(board.__file__).read_text(encoding="utf-8")
    made = tuple(re.findall(r"(rb-[\w-]*-)\$\{", source))  # `rb-mark-${kind}`
    classes = set(re.findall(r"\.(rb[\w-]*)", STYLES))
    assert len(classes) > 40
    unused = {name for name in classes if not re.search(rf"[\"'` .]{name}[\"' ]", source)}
    assert sorted(name for name in unused if not name.startswith(made)) == []


def test_every_colour_of_the_style_sheet_is_defined_and_used() -> None:
    assert set(re.findall(r"(--rb-\w+):", STYLES)) == set(re.findall(r"var\((--rb-\w+)", STYLES))


def declarations(styles: str) -> list[tuple[str, str]]:
    """Every property with its value, also those inside @media; an error of the grammar raises."""
    found: list[tuple[str, str]] = []
    rules = tinycss2.parse_stylesheet(styles, skip_comments=True, skip_whitespace=True)
    while rules:
        rule = rules.pop()
        assert rule.type in ("qualified-rule", "at-rule"), f"line {rule.source_line}: {rule.message}"
        if rule.type == "at-rule":
            rules += tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            continue
        for one in tinycss2.parse_blocks_contents(rule.content, skip_comments=True, skip_whitespace=True):
            assert one.type == "declaration", f"line {one.source_line}: {getattr(one, 'message', one.type)}"
            found.append((one.name, tinycss2.serialize(one.value).strip()))
    return found


@pytest.mark.parametrize("slip", [".a { color red }", ".a { } }", "@media (x) { .a { : 1px } }"])
def test_a_slip_of_the_grammar_is_found(slip: str) -> None:
    with pytest.raises(AssertionError, match="line 1"):
        declarations(slip)


def test_a_browser_knows_every_property_and_value(page: Page) -> None:
    asked = [(name, value) for name, value in declarations(STYLES) if not name.startswith("--")]
    asked += [("colour", "red"), ("color", "redd")]
    known = page.evaluate("asked => asked.map(([name, value]) => CSS.supports(name, value))", asked)
    unknown = [one for one, good in zip(asked, known, strict=True) if not good]
    assert unknown == asked[-2:]
    assert len(asked) > 200
