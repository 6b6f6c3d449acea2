"""A large network compressed block by block, from a folder of save_pretrained to another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._log import LOG
from lowrank_core.commands._opening import read_plan_file
from lowrank_core.commands._options import existing, writing
from lowrank_core.commands._terminal import ProgressLine, say, score_line
from lowrank_core.figures import count, duration, how_many, share
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import Score
from lowrank_core.store.kinds import EXPORTED
from lowrank_core.streaming.compress import compressing, look
from lowrank_core.streaming.request import TOKENS, WINDOWS, Outlook, Request, Step


@command
@click.argument("folder", type=click.Path(path_type=Path))
@existing("--text", required=True, help="Text that factors are fitted to, in UTF-8.")
@click.option("--bytes", "bytes_share", type=float, help="At most this share of its bytes; default 0.8 without --plan.")
@existing("--plan", help="Rank plan of this network, a JSON file, in place of --bytes.")
@writing("--out", required=True, kind=EXPORTED["hf"], help="Folder to write.")
@existing("--held-out", help="Text to score on; without it the last tenth of --text, which is kept apart.")
@click.option("--windows", default=WINDOWS, show_default=True, help="Parts of the text that factors are fitted to.")
@click.option("--tokens", default=TOKENS, show_default=True, help="Tokens of each, or as many as the network takes.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Where it is computed; default: CUDA where there is."
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what is done meanwhile; default .OUT.work beside OUT. Removed at the end.",
)
@LOG
def compress(
    folder: Path,
    text: Path,
    bytes_share: float | None,
    plan: Path | None,
    out: Path,
    held_out: Path | None,
    windows: int,
    tokens: int,
    device: str | None,
    work: Path | None,
) -> Answer:
    """Compress a network that is larger than memory, block by block.

    FOLDER is one of save_pretrained (transformers), OUT becomes one that from_pretrained loads with lowrank_hf. Each
    block is read alone, its factors fitted to the text (the thorough correction) and written. What was done is kept:
    after Ctrl-C or a kill the same command goes on.
    """
    request = Request(
        folder=folder,
        text=text,
        out=out,
        bytes_share=0.8 if bytes_share is None and plan is None else bytes_share,
        plan=None if plan is None else read_plan_file(plan).plan,
        held_out=held_out,
        windows=windows,
        tokens=tokens,
        device=device,
        work=work,
        replace=True,  # what must not be replaced was refused before
    )
    outlook = look(request)
    say(_before(outlook))
    line, answer = ProgressLine(), None
    with scope(report=line):
        try:
            for step in compressing(request):
                line.wipe()
                if step.answer is None:
                    say(_step_line(step))
                answer = step.answer
        except BaseException:
            line.wipe()
            if request.work_folder.exists():
                say(f"What is done lies in {request.work_folder}; the same command goes on from there.")
            raise
    assert answer is not None
    document = {
        "path": str(answer.path),
        "layers": answer.layers,
        "compressed_layers": len(answer.plan.choices),
        "bytes": answer.bytes,
        "dense_bytes": answer.dense_bytes,
        "score": answer.score,
        "seconds": answer.seconds,
        "before": asdict(outlook),
        "plan": {name: choice.to_dict() for name, choice in answer.plan.choices},
    }
    return document, _answer_text(document, answer.score)


def _before(outlook: Outlook) -> str:
    """What can be said before any block is read."""
    wanted = (
        "" if outlook.bytes is None else f", at most {count(outlook.bytes, 'B')} of {count(outlook.dense_bytes, 'B')}"
    )
    done = f" {outlook.blocks_done} of them are done." if outlook.blocks_done else ""
    memory, disk = count(outlook.memory_bytes, "B"), count(outlook.disk_bytes, "B")
    return (
        f"{outlook.name} ({outlook.architecture}): {how_many(outlook.layers, 'layer')} in "
        f"{how_many(outlook.blocks, 'block')}{wanted}.{done}\n"
        f"Fitted to {outlook.windows:,} windows of {outlook.tokens:,} tokens, scored on {outlook.held_out:,} others, "
        f"on {outlook.device}: at most {memory} of memory, {disk} of disk."
    )


def _step_line(step: Step) -> str:
    """A block that is done."""
    what = {"looking": "spectra of block", "fitting": "factors of block", "scoring": "scored, part"}[step.phase]
    error = "" if step.error is None else f", hidden states {share(step.error)} from the dense ones"
    return f"{what} {step.done} of {step.total}: {duration(max(1, step.seconds))}{error}"


def _answer_text(document: dict[str, Any], score: Score) -> str:
    return (
        f"{document['path']}: {document['compressed_layers']} of {document['layers']} layers compressed, "
        f"{count(document['bytes'], 'B')}, {share(document['bytes'] / document['dense_bytes'])} of the bytes.\n"
        f"Held-out text: {score_line(score, alone=False)}"
    )
