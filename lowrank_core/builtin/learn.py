"""Measure what compressing single layers of the built-in networks does; the app then predicts from the first second.

python -m lowrank_core.builtin.learn [NAME ...]

Without names all of them, and what was there before is removed. Files are named by the sha256 of weights, data,
correction and version, so a network trained anew never meets old ones.
"""

import sys

from lowrank_core.builtin import BUILTIN, POINTS
from lowrank_core.sensitivity import PointFiles, measured
from lowrank_core.survey import learn_context, write_context
from lowrank_core.workspace import Workspace


def main() -> None:
    names = sys.argv[1:] or list(BUILTIN)
    for stale in () if sys.argv[1:] else POINTS.glob("*.json"):
        stale.unlink()
    for name in names:
        workspace = Workspace.open(f"builtin:{name}")
        for correction in (workspace.correction, None):
            points = [found.point for found in measured(workspace, correction)]
            files = PointFiles(POINTS, workspace, correction)
            files.save(points)
            if correction is not None:
                write_context(files, learn_context(workspace, tuple(points)))
            print(f"{name}, {'corrected' if correction else 'plain'}: {len(points)} points", flush=True)


if __name__ == "__main__":
    main()
