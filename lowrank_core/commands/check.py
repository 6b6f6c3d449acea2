"""What a model brings."""

from __future__ import annotations

from dataclasses import asdict

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import opened
from lowrank_core.commands._options import MODEL, OUTPUTS
from lowrank_core.commands._terminal import say, score_line, table
from lowrank_core.figures import count
from lowrank_core.measure.check import SAMPLES
from lowrank_core.measure.check import check as look_over


@command
@MODEL
@OUTPUTS
def check(model: str, outputs: tuple[str, ...]) -> Answer:
    """Say what a model brings, what is missing and what that costs."""
    report = look_over(opened(model, outputs=outputs))
    for notice in report.notices:
        say(notice)
    document = {
        "name": report.name,
        "fingerprint": report.fingerprint,
        "functions": [asdict(finding) for finding in report.findings],
        "self_check": [asdict(one) for one in report.self_check.checked],
        "layers": report.layers,
        "skipped": report.skipped,
        **asdict(report.cost),
        "score": report.score,
        "judged": None if report.judged is None else report.judged.told,
        "outputs": [] if report.judged is None else [asdict(output) for output in report.judged.outputs],
        "notices": report.notices,
        "refused": [finding.detail for finding in report.refusals],
    }
    rows = [[f.function, f.state, f.detail] for f in report.findings]
    seen = [[one.what, "ok" if one.ok else "NO", one.detail] for one in report.self_check.checked]
    text = [
        table(["function", "", "what was found, or what its absence costs"], rows),
        "",
        table(["opening", "", "what the network tells of itself"], seen),
        "",
        f"{report.layers} layers can be compressed, {report.skipped} are left as they are; "
        f"{report.cost.parameters:,} parameters, {count(report.cost.bytes, 'B')}, "
        f"{count(report.cost.multiplies)} multiplies per sample.",
    ]
    if report.score is not None:
        text.append(f"Dense network, on up to {SAMPLES:,} samples: {score_line(report.score, alone=True)}")
    if report.judged is not None:
        text.append(f"Judged: {report.judged}.")
        left = [f"{output.name} ({output.left})" for output in report.judged.outputs if output.left]
        others = [o.name for o in report.judged.outputs if not o.left and o.name not in report.judged.names]
        if left or others:
            text.append(f"Not judged: {', '.join([*others, *left])}. --outputs NAME chooses others.")
    return document, "\n".join(text)
