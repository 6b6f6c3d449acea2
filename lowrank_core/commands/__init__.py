"""The commands of `rank-explorer` and `python -m lowrank_core`: each file of this package is one or two of them.

A command is a function that answers with a JSON object and the same for people to read. Its file is imported when it is
asked for, so none waits for what others need; nothing here imports PyTorch.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import click

from lowrank_core.commands._log import logs, tell
from lowrank_core.commands._outputs import has_outputs, say_not_kept, tried
from lowrank_core.errors import MESSAGE_LETTERS, NO_TEXT, LowRankError, UnknownModel, cut
from lowrank_core.registry import register_all
from lowrank_core.store.as_json import json_text
from lowrank_core.store.files import forget_not_kept
from lowrank_core.version import __version__

Answer = tuple[dict[str, Any], str]
"""What a command answers: a JSON object, and the same for people to read."""


def printable(text: str) -> str:
    """A text as any terminal takes it: what would act on it, or is half a character, as an escape.

    >>> printable("net\\x1b[2J.py"), printable("caf\\udce9")
    ('net\\\\x1b[2J.py', 'caf\\\\udce9')
    """
    return NO_TEXT.sub(lambda found: found[0] if found[0] in "\n\r\t" else ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A refusal in one line of at most MESSAGE_LETTERS."""
    return printable(cut(" ".join(text.split()), MESSAGE_LETTERS))


class Refused(click.ClickException):
    """An input that exists but is bad, in one line: exit status 1."""

    def __init__(self, error: object) -> None:
        super().__init__(one_line(str(error)))


class Broken(Refused):
    """What was required does not hold, or is not shown to; all else was done."""

    exit_code = 3


class NotThere(Refused):
    """A model that nothing goes by: wrong usage."""

    exit_code = 2


class Commands(click.Group):
    """All commands, each imported when it is asked for."""

    def load(self, name: str | None = None) -> None:
        """Import the command of that name; all, where none is named or no file bears the name."""
        if name is None or name not in {info.name for info in iter_modules(__path__)}:
            register_all(__name__, __path__)
        else:
            import_module(f"{__name__}.{name}")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is named; a refusal is one line, however long what was given is."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = one_line(error.message)  # type: ignore[misc]
            raise

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None where there is none."""
        if cmd_name not in self.commands:
            self.load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, each of which is imported for it."""
        self.load()
        return super().list_commands(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="Rank Explorer %(version)s")
def cli() -> None:
    """Look at a network, compress it by a rank plan, measure and export it; or open the dashboard.

    MODEL is builtin:NAME, path/to/model.py, package.module, a program of torch.export (.pt2; like a Python file it may
    run code), or a folder written by save_pretrained (with transformers installed; offline, none of its code is run).
    layers and spectra also take weights alone: .safetensors, an index or a folder of shards, a state_dict (.pt, .pth).
    Exit status: 0 done, 1 refused, 2 wrong usage, 3 done, but a requirement of `evaluate --require` does not hold.
    """


FORCE = click.option(
    "--force", is_flag=True, help="Replace a file that holds something else than what is written; never an input."
)


def _no_option(function: Callable[..., None]) -> Callable[..., None]:
    return function


def command(function: Callable[..., Answer]) -> click.Command:
    """A command with --json, and with --force where it writes files; what a person's own code prints goes to stderr."""

    forced: Callable[[Callable[..., None]], Callable[..., None]] = FORCE if has_outputs(function) else _no_option

    @cli.command(function.__name__)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
    @forced
    @functools.wraps(function)
    def run(as_json: bool, force: bool = False, **options: Any) -> None:
        here = click.get_current_context()
        forget_not_kept()
        try:
            with tried(here, options, as_json=as_json, force=force) as outputs, redirect_stdout(sys.stderr):
                files = [output.path for output in outputs.written if not output.goes_on]
                writes, began = logs(here, files), time.monotonic()
                document, text = function(**options)
                tell(here, writes, document, files, time.monotonic() - began)
        except UnknownModel as error:
            raise NotThere(error) from error
        except (LowRankError, OSError) as error:
            raise Refused(error) from error
        finally:
            say_not_kept()
        text = json_text(document) if as_json else printable(text)
        try:
            for printed in outputs.printed:
                click.echo(printed, nl=False)
            click.echo(text, err=bool(outputs.printed))
        except BrokenPipeError:  # as of `| head`, of which click ends without a word
            raise
        except OSError as error:
            raise Refused(f"standard output could not be written: {error.strerror}; what was kept stays.") from error
        if document.get("refused"):
            raise Refused("; ".join(document["refused"]))
        if document.get("broken"):
            raise Broken("; ".join(document["broken"]))

    return run
