"""Measure what compressing single layers of the built-in networks does: `python -m lowrank_core.builtin.points`.

The files ship with the networks, so that their boards predict at once. Each names the fingerprint of its network: one
that is trained again never meets points of the old one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from lowrank_core.builtin import BUILTIN
from lowrank_core.sensitivity import SHIPPED, VERSION, document, measured
from lowrank_core.workspace import Workspace


def write(name: str, folder: Path = SHIPPED, say: Callable[[str], None] = print) -> Path:
    """Measure one built-in network, without correction and with the default one, and write its file."""
    workspace = Workspace.open(f"builtin:{name}")
    sets = []
    for correction in (None, workspace.correction):
        points = []
        for found in measured(workspace, correction):
            points.append(found.point)
            if found.done % 50 == 0 or found.done == found.total:
                say(f"{name}: point {found.done} of {found.total}, {found.seconds_left:.0f} s left")
        sets.append(document(correction, points))
    content = {"fingerprint": workspace.profile.fingerprint, "version": VERSION, "sets": sets}
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n", encoding="utf-8")
    say(f"{name}: {path.stat().st_size:,} bytes")
    return path


def main() -> None:
    """Write the files of the named built-ins, or of all."""
    parser = argparse.ArgumentParser(description="Measure the sensitivity of the built-in networks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BUILTIN)} (default: all)")
    names = parser.parse_args().names or list(BUILTIN)
    unknown = sorted(set(names) - set(BUILTIN))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BUILTIN)}")
    torch.set_num_threads(1)
    for name in names:
        write(name)


if __name__ == "__main__":
    main()
