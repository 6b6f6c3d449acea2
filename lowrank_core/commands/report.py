"""A report of plans: one page to keep, to print and to hand on."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import compressed_by, opened, points_of, read_plan_file
from lowrank_core.commands._options import CACHED, CORRECT, MODEL, OUTPUTS, TUNED, existing, writing
from lowrank_core.commands._outputs import write_text
from lowrank_core.commands._terminal import ProgressLine, score_line
from lowrank_core.figures import count
from lowrank_core.graphs.memory import peak, trace
from lowrank_core.measure.formats import FORMATS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.reports.as_html import html
from lowrank_core.reports.as_markdown import markdown
from lowrank_core.reports.findings import Findings, check_one_network, told, with_front
from lowrank_core.reports.sections import as_document, sections, title
from lowrank_core.running.scope import scope
from lowrank_core.selection._problem import problem_of
from lowrank_core.store.kinds import REPORT


@command
@MODEL
@existing("--plan", "plans", required=True, multiple=True, help="Rank plan, a JSON file (repeatable).")
@writing("--out", required=True, kind=REPORT, help="File to write, .html or .md; - prints Markdown.")
@click.option("--front/--no-front", default=True, help="Also the front and the curves of single layers; default on.")
@TUNED
@OUTPUTS
@CACHED
@CORRECT
def report(
    model: str,
    plans: tuple[Path, ...],
    out: Path,
    front: bool,
    tuned: Path | None,
    outputs: tuple[str, ...],
    cached: bool,
    corrected: bool,
) -> Answer:
    """Write what there is to say of a plan, or of several of one network, as one HTML or Markdown file.

    Figures with intervals, data, front, curves, every layer, classes, and the commands that repeat it. The HTML asks
    nothing of a network, follows light and dark, and prints.
    """
    as_text = out.suffix.lower() in (".md", ".markdown") or str(out) == "-"
    if not as_text and out.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"--out writes .html or .md, but got {out.name!r}.")
    if tuned is not None and len(plans) > 1:
        raise click.UsageError(f"--tuned goes with one --plan, whose network its weights are of, but got {len(plans)}.")
    check_one_network([(str(path), read_plan_file(path)) for path in plans])
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs, plan=plans[0])
    inputs, every, dense = workspace.opened.example_inputs, [], None
    for path, name in zip(plans, _names(plans), strict=True):
        made = compressed_by(workspace, path, None, tuned, corrected=corrected)
        traced = trace(made.model, inputs)
        peaks = {number: peak(traced, itemsize=size).bytes for number, size in FORMATS.items()}
        with scope(report=ProgressLine()):
            plan, dense = told(workspace, name, made, peaks)
        every.append(plan)
    traced = trace(workspace.model, inputs)
    peaks = {number: peak(traced, itemsize=size).bytes for number, size in FORMATS.items()}
    found = Findings(workspace, plan_cost(workspace.profile), tuple(every), dense, peaks)
    if front:
        problem = problem_of(workspace, folder=points_of(workspace), corrected=corrected)
        with scope(report=ProgressLine()):
            found = with_front(found, problem)
    written = (markdown if as_text else html)(title(found), sections(found))
    write_text(out, written)
    scores = "\n".join(f"{plan.name}: {score_line(plan.score, alone=False)}" for plan in every)
    document = {"path": str(out), "bytes": len(written.encode()), **as_document(found)}
    return document, f"{out}: {count(len(written.encode()), 'B')}.\n{scores}"


def _names(plans: tuple[Path, ...]) -> list[str]:
    """What each plan is called: its file without the ending, with its folder where two are alike."""
    stems = [path.stem for path in plans]
    named = [
        stem if stems.count(stem) == 1 else f"{path.parent.name}-{stem}"
        for path, stem in zip(plans, stems, strict=True)
    ]
    before = [named[:at].count(name) for at, name in enumerate(named)]
    return [name if same == 0 else f"{name} ({same + 1})" for name, same in zip(named, before, strict=True)]
