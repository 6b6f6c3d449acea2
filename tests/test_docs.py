"""The documents say what the code says, their links lead somewhere, and the pages of benchmarks are kept right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import page, reference
from benchmarks.arcs import drawing
from benchmarks.page import PAGES, ROOT, between, part

BY_HAND = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
NO_BENCHMARK = {"arcs", "busy", "deep_network", "imports", "page", "reference", "screenshots"}
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py") if path.stem not in NO_BENCHMARK)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]+)(?:#[^)]*)?\)")


def test_the_pages_that_the_code_writes_are_what_it_writes():
    stale = [str(path.relative_to(ROOT)) for path in reference.outdated()]
    assert not stale, "run python -m benchmarks.reference --write"


def test_a_page_that_differs_is_found(monkeypatch):
    monkeypatch.setattr(reference, "PLACES", (("docs/rules.md", "rules", lambda: "another text"),))
    assert reference.outdated().keys() == {ROOT / "docs" / "rules.md"}


@pytest.mark.parametrize("name", BY_HAND)
def test_links_lead_to_files(name):
    links = [link for link in LINK.findall((ROOT / name).read_text(encoding="utf-8")) if "://" not in link]
    assert links or name == "CHANGELOG.md"
    assert not [link for link in links if not (ROOT / link).exists()]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_documents_name_no_file_that_is_not_there():
    """Modules and scripts of this repository that a page names exist."""
    for path in [*(ROOT / name for name in BY_HAND), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"benchmarks\.(\w+)", text):
            assert (ROOT / "benchmarks" / f"{name}.py").exists() or name == "NAME", f"{path.name}: benchmarks.{name}"
        for name in re.findall(r"\b(?:lowrank_core|pages|tests)/[\w/]+\.py\b", text):
            assert (ROOT / name).exists() or "NAME" in name.upper(), f"{path.name}: {name}"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_page_and_takes_write(name):
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    for each in page.PART.split(text)[1:]:
        assert re.search(r"commit [0-9a-f]{7}", each), f"a part of {name}.md does not say of which commit it is"
    source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert "benchmark_parser(__doc__)" in source
    assert "run_benchmark(main" in source


def test_a_run_replaces_its_own_part_alone(tmp_path):
    path = tmp_path / "speed.md"
    path.write_text(
        page.page(path, "How fast.", part("python -m benchmarks.speed", "then", "old")) + "\n## By hand\n\nwords\n"
    )
    path.write_text(page.page(path, "How fast.", part("python -m benchmarks.speed --more", "then", "more")))
    path.write_text(page.page(path, "How fast it is.", part("python -m benchmarks.speed", "now", "new")))
    text = path.read_text()
    assert text.startswith(
        "# speed\n\nHow fast it is.\n\n## `python -m benchmarks.speed`\n\nnow\n\n```text\nnew\n```\n"
    )
    assert "old" not in text
    assert text.index("--more") < text.index("## By hand\n\nwords")


SPEED = '''"""How fast."""
import sys
from benchmarks import page
from benchmarks.page import benchmark_parser, run_benchmark
from pathlib import Path

page.PAGES = page.ROOT = Path(sys.argv.pop())

def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--fail", action="store_true")
    options = parser.parse_args()
    print("| a | b |\\n|---|---|\\n| 1 | 2 |\\nthree")
    sys.exit(options.fail)

run_benchmark(main)
'''


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A benchmark of its own in a process of its own, with another folder for pages."""
    (folder / "speed.py").write_text(SPEED)
    command = [sys.executable, folder / "speed.py", *words, folder]
    return subprocess.run(
        command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=False
    )


def test_write_makes_a_page_of_what_is_printed(tmp_path):
    plain, done = run(tmp_path), run(tmp_path, "--write")
    assert not done.returncode, done.stderr
    assert done.stdout == plain.stdout == "| a | b |\n|---|---|\n| 1 | 2 |\nthree\n"
    text = (tmp_path / "speed.md").read_text()
    assert "## `python -m benchmarks.speed`\n" in text
    assert "\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```text\nthree\n```\n" in text
    assert re.search(r"\d{4}-\d\d-\d\d · commit \w+.* · \d+ cores, .* · Python 3\.\d+\.\d+, torch 2", text)


@pytest.mark.parametrize("words", [(), ("--write", "--fail"), ("--write", "--help")])
def test_no_page_without_write_nor_of_a_run_that_failed(tmp_path, words):
    run(tmp_path, *words)
    assert not list(tmp_path.glob("*.md"))


def test_a_place_that_is_missing_is_said(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("head\n<!-- rules -->\nold\n<!-- end of rules -->\ntail\n")
    assert between(path, "rules", "new") == "head\n<!-- rules -->\n\nnew\n\n<!-- end of rules -->\ntail\n"
    with pytest.raises(ValueError, match="once each"):
        between(path, "methods", "new")


def test_the_drawing_marks_what_leads_up_and_what_others_stand_for():
    drawn = drawing(("low", "middle", "high"), {"low": {"high"}, "middle": {"low"}, "high": {"middle", "low"}})
    assert drawn.count("<path") == 4
    assert drawn.count('class="up"') == 1
    straight = drawing(("low", "middle", "high"), {"low": set(), "middle": {"low"}, "high": {"middle", "low"}})
    assert straight.count('class="next"') == 2
    assert 'class="up"' not in straight


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "benchmarks" / "quality.html").exists()
