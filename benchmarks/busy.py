"""A busy machine: processes that use as much of a core as they get, for as long as a command runs or for some seconds.

    python -m benchmarks.busy 8 -- python -m pytest tests/test_jobs.py
    python -m benchmarks.busy 8 --seconds 60

Ends with the command's exit status. The processes end with this one, however it ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BURN = """
import os
parent = int(os.environ["BUSY_PARENT"])
while os.getppid() == parent:
    sum(range(100_000))
"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but compute, while the block runs."""
    environment = os.environ | {"BUSY_PARENT": str(os.getpid())}
    burning = [subprocess.Popen([sys.executable, "-S", "-c", BURN], env=environment) for _ in range(processes)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
        for process in burning:
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("processes", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, where no command is given")
    parser.add_argument("command", nargs="*", help="what runs meanwhile, after --")
    asked = parser.parse_args()
    with busy(asked.processes):
        if asked.command:
            return subprocess.run(asked.command).returncode
        time.sleep(asked.seconds)
        return 0


if __name__ == "__main__":
    sys.exit(main())
