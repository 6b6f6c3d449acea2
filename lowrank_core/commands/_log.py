"""What a command has done, told where a team logs: a line of JSON in a file, or a run of MLflow.

A log that cannot be written is said once, and the work goes on: what was written and printed stays.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lowrank_core.errors import InvalidFile, cut
from lowrank_core.extras import extra
from lowrank_core.store.as_json import plain, whole_characters
from lowrank_core.store.files import append, try_place
from lowrank_core.store.kinds import LOG as KIND
from lowrank_core.store.kinds import file_hash
from lowrank_core.store.reads import same_file
from lowrank_core.version import versions

MLFLOW = "mlflow"

PLANS_READ = "lowrank_core plans read"
"""Where a command keeps the plans that it has read, by their paths."""

_KEY = "lowrank_core log"

UNTOLD = {"plan", "plans", "trials", "epochs", "runs", "outputs", "depth", "correction", "tuned", "versions", "judged"}
"""Of an answer, what is no figure of the whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a command. figures: by name, as `score.drop`; files: what was written."""

    command: str
    arguments: dict[str, Any]
    plans: list[dict[str, Any]]
    figures: dict[str, float]
    files: list[dict[str, Any]]
    seconds: float
    requirements: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the time now."""
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "arguments": self.arguments,
            "plans": self.plans,
            "figures": self.figures,
            "files": self.files,
            "seconds": round(self.seconds, 3),
            **({"requirements": self.requirements} if self.requirements else {}),
            "versions": versions(),
        }


Write = Callable[[Entry], None]


def _noted(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    """Files as they are called from where the person stands, whatever folder a model file changes to."""
    if any(not target.strip("\x00 ") for target in value):
        raise click.BadParameter("it is empty; name a file, or mlflow.", ctx, param)
    if "-" in value:
        raise click.BadParameter("- is standard output, where the answer goes; name a file, or mlflow.", ctx, param)
    ctx.meta[_KEY] = tuple(target if target == MLFLOW else os.path.abspath(target) for target in value)


LOG = click.option(
    "--log",
    multiple=True,
    metavar="FILE",
    expose_value=False,
    callback=_noted,
    help="Add what was done to FILE as a line of JSON: time, plan, figures, files with hashes; mlflow: as a run of it.",
)


def logs(ctx: click.Context, outputs: Sequence[Path]) -> list[Write]:
    """Who is to be told, tried before the work; what cannot be written is said and left out.

    Raises MissingExtra where MLflow is asked for and not installed, InvalidFile for a file that is an output, too.
    """
    found: list[Write] = []
    for target in ctx.meta.get(_KEY, ()):
        if target == MLFLOW:
            with extra("mlflow", "--log mlflow"):
                import mlflow  # noqa: F401
            found.append(_to_mlflow)
            continue
        path = Path(target)
        if any(same_file(path, output) for output in outputs):
            raise InvalidFile(f"--log: {path} is an output of this command, too; give another name.")
        why = _fault(path)
        if why:
            _say(target, why)
        else:
            found.append(_to_file(path))
    return found


def tell(
    ctx: click.Context, writes: Sequence[Write], document: dict[str, Any], outputs: Sequence[Path], seconds: float
) -> None:
    """Log a command that is done."""
    if not writes:
        return
    entry = Entry(
        str(ctx.info_name),
        {name: _shown(value) for name, value in ctx.params.items() if value not in (None, (), False)},
        list(_plans(ctx, document)),
        dict(_figures(document)),
        [_file(path) for path in outputs if path.is_file()],
        seconds,
        plain(document.get("requirements", [])),
    )
    for write in writes:
        write(entry)


def _to_file(path: Path) -> Write:
    def write(entry: Entry) -> None:
        line = whole_characters(json.dumps(plain(entry.to_dict()), ensure_ascii=False, allow_nan=False))
        try:
            append(path, f"{line}\n".encode())
        except OSError as error:
            _say(path, error.strerror or str(error))

    return write


def _to_mlflow(entry: Entry) -> None:
    import mlflow

    try:
        with mlflow.start_run(run_name=f"{entry.command} {entry.arguments.get('model', '')}".strip()):
            mlflow.set_tags(
                {"rank_explorer.command": entry.command, "rank_explorer.version": versions()["rank_explorer"]}
            )
            mlflow.log_params({name: str(value)[:500] for name, value in entry.arguments.items()})
            mlflow.log_metrics(entry.figures | {"seconds": entry.seconds})
            for number, plan in enumerate(entry.plans, start=1):
                mlflow.log_dict(plan, "plan.json" if len(entry.plans) == 1 else f"plan-{number}.json")
            for file in entry.files:
                mlflow.log_artifact(file["path"])
    except Exception as error:  # of a server, a disk, a network
        _say("MLflow", cut(" ".join(str(error).split()) or type(error).__name__, 300))


def _say(target: object, why: str) -> None:
    click.echo(f"--log: {target} is not written to ({why}); the work goes on without it.", err=True)


def _fault(path: Path) -> str:
    """Why nothing can be added to a file; "" where it can."""
    try:
        there = try_place(path)
    except (InvalidFile, OSError) as error:
        return str(error).rstrip(".")
    if there is not None and not stat.S_ISREG(there.st_mode):
        return "it is no plain file"
    return "" if there is None or KIND(path) else "it is there and holds something else than a log of this product"


def _plans(ctx: click.Context, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plans that were read, or the one that was found, as their files hold them."""
    found = document.get("plan")
    if isinstance(found, dict):
        yield found
        return
    for path, file in ctx.meta.get(PLANS_READ, {}).items():
        text = file.plan.to_json(model_name=file.model_name, correction=file.correction, provenance=file.provenance)
        yield {"path": str(path), **json.loads(text)}


def _figures(document: dict[str, Any], under: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of an answer outside of its lists, by its name."""
    for name, value in plain(document).items():
        if name in UNTOLD or isinstance(value, bool):
            continue
        if isinstance(value, dict):
            yield from _figures(value, f"{under}{name}.")
        elif isinstance(value, int | float):
            yield f"{under}{name}", float(value) if isinstance(value, float) else value


def _file(path: Path) -> dict[str, Any]:
    try:
        return {"path": str(path), "bytes": path.stat().st_size, "sha256": file_hash(path)}
    except OSError as error:
        return {"path": str(path), "bytes": None, "sha256": None, "error": error.strerror or str(error)}


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    text = getattr(value, "text", None)
    return value if isinstance(value, str | int | float | bool) else text if isinstance(text, str) else str(value)
