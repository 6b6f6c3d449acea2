"""Measure what compressing single layers of the built-in networks does; the app then predicts from the first second.

python -m benchmarks.builtin.learn [NAME ...]

Without names all of them, and what was there before is removed. Files are named by the sha256 of weights, data,
correction and version, so a network trained anew never meets old ones; one whose code was edited must be measured anew.
"""

import sys

from lowrank_core.builtin import BUILTIN, POINTS
from lowrank_core.measure.ledger import Ledger
from lowrank_core.predict.sensitivity import PointFile, measured
from lowrank_core.predict.survey import learnt_contexts, write_context
from lowrank_core.workspace import Workspace


def main() -> None:
    names = sys.argv[1:] or list(BUILTIN)
    for stale in () if sys.argv[1:] else POINTS.iterdir():
        stale.unlink()
    for name in names:
        workspace = Workspace.open(f"builtin:{name}")
        for correction in (workspace.correction, None):
            file = PointFile.shipped(POINTS, workspace, correction)
            file.path.unlink(missing_ok=True)
            for point in measured(workspace, correction):
                file.add(point)
            *_, context = learnt_contexts(workspace, correction, file.load(), Ledger())
            write_context(file, context)
            print(f"{name}, {'corrected' if correction else 'plain'}: {len(file.load())} points", flush=True)


if __name__ == "__main__":
    main()
