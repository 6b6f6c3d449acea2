"""The command line: `python -m lowrank_core COMMAND`."""

from __future__ import annotations

from lowrank_core.commands import cli
from lowrank_core.running.interrupt import as_usual

if __name__ == "__main__":
    as_usual()
    cli(prog_name="python -m lowrank_core")
